//! dx and the gradient of the initial state: one kernel, two ranges of the columns `[initial state | x]`.
//!
//! ```text
//! d[e] = sum over k < W of weight[k] * g[e - k]  (0 <= e - k < T, same sequence)  + dfinal[e - T]  (e >= T)
//! ```
//!
//! (with ids dfinal where the final state holds the column, see [`in_final`])
//!
//! with g the gradient before the activation. `d[e]` is the initial state's for e < W-1, else that of x.
//! Gather form: every element has one writer. Bytes: g once from memory, dx once; one column per unit.

use super::args::{Present, Rows, UNITS, at2, at3, id_of, in_final};
use super::call::Call;
use super::problem::Conv1dLayout;
use crate::error::ConvError;
use crate::index_operand::IndexOperand;
use crate::launch::{Span, dispatches};
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Columns `start..` of channels `first..first + channels`: reads `g[b, c - first, t]`, writes
/// `target[b, c, e - start]`. The target is dx with `start = W-1`, or the gradient of the initial state with
/// `start = 0`.
pub(crate) fn launch(
    call: &Call,
    g: &Operand,
    dfinal: Option<&Operand>,
    (first, channels): (usize, usize),
    (start, target): (usize, &Operand),
) -> Result<(), ConvError> {
    let &Call { client, limits, problem, ref views } = call;
    let columns = target.shape[2];
    let units = problem.batch * channels * columns;
    let operands: Vec<&Operand> = [&views.weight, g, target].into_iter().chain(dfinal).collect();
    let largest = (problem.batch * channels * columns).max(views.index_extent());
    let address = address_type("causal_conv1d", &operands, largest + UNITS as usize, limits)?;
    let operations = 2.0 * f64::from(UNITS) * (problem.width + 8) as f64;
    let present = call.present(&[(dfinal.is_some(), Present::DFINAL)]);
    for dispatch in dispatches(units.div_ceil(UNITS as usize), operations, limits) {
        // SAFETY: rows, steps and columns are checked in the kernel; the conformance run puts guards around
        // every buffer.
        unsafe {
            gradient_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                views.weight.tensor_arg(),
                g.tensor_arg(),
                views.seq_idx.as_ref().map(IndexOperand::tensor_arg).into(),
                dfinal.unwrap_or(target).tensor_arg(),
                target.tensor_arg(),
                problem.rows(first, channels, present),
                start,
                dispatch.span(),
                views.seq_idx.is_some(),
                problem.layout,
                target.dtype.elem(),
                problem.weight_dtype.elem(),
                problem.state_dtype.elem(),
                views.index_elem(),
                g.dtype.elem(),
            );
        }
    }
    Ok(())
}

/// `g` at the step that reads column `e` with tap `k`, and whether there is one that is no padding and of the
/// column's sequence.
#[cube]
#[allow(clippy::too_many_arguments)]
fn gradient_of<G: Float, I: Int>(
    g: &Tensor<G>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    rows: &Rows,
    b: usize,
    c: usize,
    e: usize,
    k: usize,
) -> (f32, bool) {
    let mut value = 0.0f32;
    let mut reads = e >= k && e - k < rows.length;
    if reads {
        value = f32::cast_from(g[at3(g, b, c, e - k)]);
        if comptime!(seq_idx.is_some()) {
            let ids = seq_idx.unwrap();
            let id = id_of(ids, rows, b, e - k + rows.history());
            let own = id_of(ids, rows, b, e);
            reads = id == own && id >= I::from_int(0);
        }
    }
    (value, reads)
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn gradient_kernel<X: Float, W: Float, H: Float, I: Int, G: Float>(
    weight: &Tensor<W>,
    g: &Tensor<G>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    dfinal: &Tensor<H>,
    target: &mut Tensor<X>,
    rows: Rows,
    start: usize,
    span: Span,
    #[comptime] _packed: bool,
    #[comptime] layout: Conv1dLayout,
    #[define(X)] _target_dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
    #[define(G)] _gradient_dtype: ElemType,
) {
    let columns = target.shape(2);
    let index = span.index() * UNITS as usize + UNIT_POS as usize;
    let place = rows.place(index, columns, layout);
    if span.is_idle() || place.b >= rows.batch {
        terminate!();
    }
    let channel = rows.first + place.c;
    let e = start + place.t;
    let mut sum = 0.0f32;
    for k in 0..rows.width {
        let (value, reads) = gradient_of(g, seq_idx, &rows, place.b, place.c, e, k);
        let next = fma(f32::cast_from(weight[at2(weight, channel, k)]), value, sum);
        sum = select(reads, next, sum);
    }
    if rows.has(Present::DFINAL) {
        let (m, held) = in_final(seq_idx, &rows, place.b, e);
        if held {
            sum += f32::cast_from(dfinal[at3(dfinal, place.b, channel, m)]);
        }
    }
    let at = at3(&*target, place.b, channel, place.t);
    target[at] = X::cast_from(sum);
}
