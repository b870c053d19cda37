//! dx and the gradient of the initial state: one kernel, two ranges of the columns `[initial state | x]`.
//!
//! ```text
//! d[e] = sum over k < W of weight[k] * g[e - k]  (0 <= e - k < T, same sequence)  + dfinal[e - T]  (e >= T)
//! ```
//!
//! with g the gradient before the activation. `d[e]` is the initial state's for e < W-1, else that of x. Gather form:
//! every element has one writer. Bytes: g once from memory, dx once; units as in the forward pass.

use super::args::{Present, Rows, UNITS, at2, at3, id_of, steps};
use super::call::Call;
use super::problem::Conv1dLayout;
use crate::error::ConvError;
use crate::grid::{Span, dispatches};
use crate::index_operand::IndexOperand;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Columns `start..` of channels `first..first + channels`: reads `g[b, c - first, t]`, writes `target[b, c, e - start]`.
/// The target is dx with `start = W-1`, or the gradient of the initial state with `start = 0`.
pub(crate) fn launch(
    call: &Call,
    g: &Operand,
    dfinal: Option<&Operand>,
    (first, channels): (usize, usize),
    (start, target): (usize, &Operand),
) -> Result<(), ConvError> {
    let &Call { client, limits, problem, unrolled, ref views } = call;
    let columns = target.shape[2];
    let units = problem.batch * channels * columns.div_ceil(steps(unrolled));
    let operands: Vec<&Operand> = [&views.weight, g, target].into_iter().chain(dfinal).collect();
    let largest = (problem.batch * channels * columns).max(views.index_extent());
    let address = address_type("causal_conv1d", &operands, largest + UNITS as usize, limits)?;
    let operations = 2.0 * f64::from(UNITS) * (steps(unrolled) * (problem.width + 8)) as f64;
    for dispatch in dispatches(units.div_ceil(UNITS as usize), operations, limits) {
        // SAFETY: rows, steps and columns are checked in the kernel; the conformance run puts guards around every buffer.
        unsafe {
            gradient_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                views.weight.tensor_arg(),
                g.tensor_arg(),
                views.seq_idx.as_ref().map(IndexOperand::tensor_arg).into(),
                dfinal.map(Operand::tensor_arg).into(),
                target.tensor_arg(),
                problem.rows(first, channels),
                start,
                dispatch.span(),
                unrolled,
                [views.seq_idx.is_some(), dfinal.is_some()],
                problem.layout,
                problem.dtype.elem(),
                problem.weight_dtype.elem(),
                views.index_elem(),
                g.dtype.elem(),
            );
        }
    }
    Ok(())
}

/// `g` at the step that reads column `e` with tap `k`, or 0 where there is none or it is padding or of another sequence
/// than `own`.
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
) -> f32 {
    let mut value = 0.0f32;
    if e >= k && e - k < rows.length {
        value = f32::cast_from(g[at3(g, b, c, e - k)]);
        if comptime!(seq_idx.is_some()) {
            let ids = seq_idx.unwrap();
            let id = id_of(ids, rows, b, e - k + rows.history());
            let own = id_of(ids, rows, b, e);
            value = select(id == own && id >= I::from_int(0), value, 0.0f32);
        }
    }
    value
}

#[cube(launch_unchecked, address_type = "dynamic")]
// The nested `if`s are one of comptime and one of run time.
#[allow(clippy::too_many_arguments, clippy::collapsible_if)]
fn gradient_kernel<X: Float, W: Float, I: Int, G: Float>(
    weight: &Tensor<W>,
    g: &Tensor<G>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    dfinal: ComptimeOption<&Tensor<X>>,
    target: &mut Tensor<X>,
    rows: Rows,
    start: usize,
    span: Span,
    #[comptime] unrolled: Option<usize>,
    #[comptime] _present: Present<2>,
    #[comptime] layout: Conv1dLayout,
    #[define(X)] _dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
    #[define(G)] _gradient_dtype: ElemType,
) {
    let steps = comptime!(steps(unrolled));
    let columns = target.shape(2);
    let index = span.cube() * UNITS as usize + UNIT_POS as usize;
    let place = rows.place(index, columns.div_ceil(steps), layout);
    if span.is_idle() || place.b >= rows.batch {
        terminate!();
    }
    let channel = rows.first + place.c;
    let first_column = start + place.block * steps;

    let mut sums = Array::<f32>::new(steps);
    #[unroll]
    for step in 0..steps {
        sums[step] = 0.0f32;
    }
    if comptime!(unrolled.is_some()) {
        let width = comptime!(unrolled.unwrap_or(1));
        let mut weights = Array::<f32>::new(width);
        #[unroll]
        for k in 0..width {
            weights[k] = f32::cast_from(weight[at2(weight, channel, k)]);
        }
        let mut ids = Array::<I>::new(steps);
        if comptime!(seq_idx.is_some()) {
            #[unroll]
            for step in 0..steps {
                ids[step] = id_of(seq_idx.unwrap(), &rows, place.b, first_column + step);
            }
        }
        // j counts the steps of g from the first that any of the columns needs, `width - 1` before the first column.
        #[unroll]
        for j in 0..comptime!(width + steps - 1) {
            let ahead = first_column + j;
            let mut value = 0.0f32;
            if ahead >= comptime!(width - 1) && ahead - comptime!(width - 1) < rows.length {
                value = f32::cast_from(g[at3(g, place.b, place.c, ahead - comptime!(width - 1))]);
            }
            let mut id = I::from_int(0);
            if comptime!(seq_idx.is_some()) {
                // Column `ahead` is that very step of x.
                id = id_of(seq_idx.unwrap(), &rows, place.b, ahead);
                value = select(id < I::from_int(0), 0.0f32, value);
            }
            #[unroll]
            for step in 0..steps {
                // The column reads this step of g through tap k = width - 1 + step - j.
                if comptime!(j >= step && j < step + width) {
                    let product = weights[width - 1 + step - j] * value;
                    if comptime!(seq_idx.is_some()) {
                        sums[step] += select(id == ids[step], product, 0.0f32);
                    } else {
                        sums[step] += product;
                    }
                }
            }
        }
    } else {
        for k in 0..rows.width {
            let value = gradient_of(g, seq_idx, &rows, place.b, place.c, first_column, k);
            sums[0] += f32::cast_from(weight[at2(weight, channel, k)]) * value;
        }
    }

    #[unroll]
    for step in 0..steps {
        let e = first_column + step;
        if e - start < columns {
            let mut result = sums[step];
            if comptime!(dfinal.is_some()) {
                if e >= rows.length {
                    let dfinal = dfinal.unwrap();
                    result += f32::cast_from(dfinal[at3(dfinal, place.b, channel, e - rows.length)]);
                }
            }
            let at = at3(&*target, place.b, channel, e - start);
            target[at] = X::cast_from(result);
        }
    }
}
