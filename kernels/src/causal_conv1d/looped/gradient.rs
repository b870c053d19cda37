//! dx and the gradient of the initial state: one kernel over two ranges of the columns `[initial state | x]`.
//!
//! ```text
//! d[e] = sum over k < W of weight[k] * g[e - k]  (0 <= e - k < T, same sequence)  + dfinal[e - T]  (e >= T)
//! ```
//!
//! g is the pre-activation gradient; `d[e]` is the gradient of the initial state for e < W-1, else of x. With
//! sequence ids, dfinal is added where the final state holds the column ([`final_state_column`]).
//!
//! Gather form: one writer per element, one column per thread. Bytes: g once from DRAM, dx once. FLOP per
//! element: 2 W. Any strides, any width.

use crate::causal_conv1d::args::{ConvParams, Present, THREADS, offset2, offset3, sequence_id};
use crate::causal_conv1d::call::Conv1dCall;
use crate::causal_conv1d::problem::Conv1dLayout;
use crate::error::ConvError;
use crate::index_operand::IndexOperand;
use crate::launch::{Span, dispatches};
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Columns `start..` of channels `first..first + channels`: reads `g[b, c - first, t]`, writes
/// `target[b, c, e - start]`. The target is dx for `start = W-1`, the gradient of the initial state for
/// `start = 0`.
pub(crate) fn launch(
    call: &Conv1dCall,
    g: &Operand,
    dfinal: Option<&Operand>,
    (first, channels): (usize, usize),
    (start, target): (usize, &Operand),
) -> Result<(), ConvError> {
    let &Conv1dCall { client, limits, problem, ref views } = call;
    let columns = target.shape[2];
    let threads = problem.batch * channels * columns;
    let operands: Vec<&Operand> = [&views.weight, g, target].into_iter().chain(dfinal).collect();
    let largest = (problem.batch * channels * columns).max(views.index_extent());
    let address = address_type("causal_conv1d", &operands, largest + THREADS as usize, limits)?;
    let operations = 2.0 * f64::from(THREADS) * (problem.width + 8) as f64;
    let present = call.present(&[(dfinal.is_some(), Present::DFINAL)]);
    for dispatch in dispatches(threads.div_ceil(THREADS as usize), operations, limits) {
        // SAFETY: contract in `args`; the kernel masks rows, steps and columns.
        unsafe {
            gradient_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                views.weight.tensor_arg(),
                g.tensor_arg(),
                views.seq_idx.as_ref().map(IndexOperand::tensor_arg).into(),
                dfinal.unwrap_or(target).tensor_arg(),
                target.tensor_arg(),
                problem.params(first, channels, present),
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

/// `g` at the step that reads column `e` with tap `k`, and whether that step exists, is not padding and is of
/// the column's sequence.
#[cube]
fn gradient_of<G: Float, I: Int>(
    g: &Tensor<G>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    params: &ConvParams,
    b: usize,
    c: usize,
    e: usize,
    k: usize,
) -> (f32, bool) {
    let mut value = 0.0f32;
    let mut reads = e >= k && e - k < params.length;
    if reads {
        value = f32::cast_from(g[offset3(g, b, c, e - k)]);
        if comptime!(seq_idx.is_some()) {
            let ids = seq_idx.unwrap();
            let id = sequence_id(ids, params, b, e - k + params.history());
            let own = sequence_id(ids, params, b, e);
            reads = id == own && id >= I::from_int(0);
        }
    }
    (value, reads)
}

/// Whether the final state holds column `e` of a row, and as which of its columns. The state's first column
/// has index `end`: the number of steps up to the row's last that is not padding. With ids, `end` is stored
/// at step T of them ([`with_ends`](crate::causal_conv1d::state::with_ends)), and columns of other sequences
/// than that step's are not in the state.
#[cube]
fn final_state_column<I: Int>(
    seq_idx: ComptimeOption<&Tensor<I>>,
    params: &ConvParams,
    b: usize,
    e: usize,
) -> (usize, bool) {
    let mut end = params.length;
    let mut held = true;
    if comptime!(seq_idx.is_some()) {
        let ids = seq_idx.unwrap();
        end = usize::cast_from(ids[offset2(ids, b, params.length)]);
        // The final state of a row that is all padding is its initial state.
        let last = sequence_id(ids, params, b, max(end, 1usize) - 1 + params.history());
        held = end == 0 || sequence_id(ids, params, b, e) == last;
    }
    (max(e, end) - end, held && e >= end && e < end + params.history())
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn gradient_kernel<X: Float, W: Float, H: Float, I: Int, G: Float>(
    weight: &Tensor<W>,
    g: &Tensor<G>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    dfinal: &Tensor<H>,
    target: &mut Tensor<X>,
    params: ConvParams,
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
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
    let position = params.position(index, columns, layout);
    if span.is_idle() || position.b >= params.batch {
        terminate!();
    }
    let channel = params.first + position.c;
    let e = start + position.t;
    let mut sum = 0.0f32;
    for k in 0..params.width {
        let (value, reads) = gradient_of(g, seq_idx, &params, position.b, position.c, e, k);
        let next = fma(f32::cast_from(weight[offset2(weight, channel, k)]), value, sum);
        sum = select(reads, next, sum);
    }
    if params.has(Present::DFINAL) {
        let (m, held) = final_state_column(seq_idx, &params, position.b, e);
        if held {
            sum += f32::cast_from(dfinal[offset3(dfinal, position.b, channel, m)]);
        }
    }
    let at = offset3(&*target, position.b, channel, position.t);
    target[at] = X::cast_from(sum);
}
