//! The final state of a row, where it ends in rows with sequence ids, and the ids of packed sequences.
//!
//! ```text
//! out[b, c, m] = column(b, c, end + m), m < W-1      end: steps up to the row's last that is not padding
//! ```
//!
//! Without ids `end` is T. With ids a search finds it first ([`launch_ends`]), and columns of other sequences
//! than the one that ends there are 0. One element per thread, 256 per threadgroup: each element is read and
//! written once, no FLOP. The search reads a row's ids once, from its end to the first that is not padding.
//! Any strides. Nothing is declined.

use super::args::{ConvParams, Present, THREADS, canonical, column, offset2, offset3, sequence_id};
use super::problem::CausalConv1dProblem;
use crate::error::ConvError;
use crate::index_operand::{IndexOperand, IndexType};
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::needs::Needs;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// The final state into `out [B, C, W-1]`. With ids the problem must have rows and steps.
pub(crate) fn launch_final_state(
    client: &Client,
    limits: &Limits,
    problem: &CausalConv1dProblem,
    x: &Operand,
    initial_state: Option<&Operand>,
    seq_idx: Option<&IndexOperand>,
    out: &Operand,
) -> Result<(), ConvError> {
    let x = canonical(x, problem.layout).bindable(client);
    let ends = seq_idx.map(|ids| {
        let bytes = (problem.batch * ids.dtype.size()).max(16);
        let ends = IndexOperand::contiguous(client.empty(bytes), &[problem.batch, 1], ids.dtype);
        launch_ends(client, limits, problem, ids, (&ends, 0)).map(|()| ends)
    });
    let ends = ends.transpose()?;
    let index = seq_idx.map_or(IndexType::I32, |ids| ids.dtype);
    let operands: Vec<&Operand> = [&x, out].into_iter().chain(initial_state).collect();
    let present = Present::bits(&[(initial_state.is_some(), Present::INITIAL)]);
    let largest = out.len().max(seq_idx.map_or(0, IndexOperand::extent)) + THREADS as usize;
    let address = address_type("causal_conv1d", &operands, largest, limits)?;
    for dispatch in dispatches(out.len().div_ceil(THREADS as usize), 8.0 * f64::from(THREADS), limits) {
        // SAFETY: contract in `args`; the kernel masks rows and columns.
        unsafe {
            final_state_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                x.tensor_arg(),
                initial_state.unwrap_or(&x).tensor_arg(),
                seq_idx.map(IndexOperand::tensor_arg).into(),
                ends.as_ref().map(IndexOperand::tensor_arg).into(),
                out.tensor_arg(),
                problem.params(0, problem.channels, present),
                dispatch.span(),
                seq_idx.is_some(),
                problem.dtype.elem(),
                problem.state_dtype.elem(),
                index.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn final_state_kernel<X: Float, H: Float, I: Int>(
    x: &Tensor<X>,
    initial: &Tensor<H>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    ends: ComptimeOption<&Tensor<I>>,
    out: &mut Tensor<H>,
    params: ConvParams,
    span: Span,
    #[comptime] packed: bool,
    #[define(X)] _dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
    let row = index / params.history();
    let m = index - row * params.history();
    let b = row / params.channels;
    let c = row - b * params.channels;
    if span.is_idle() || b >= params.batch {
        terminate!();
    }
    let mut end = params.length;
    let mut same = true;
    if comptime!(packed) {
        let (ids, ends) = (seq_idx.unwrap(), ends.unwrap());
        end = usize::cast_from(ends[offset2(ends, b, 0usize)]);
        // The final state of a row that is all padding is its initial state.
        let last = sequence_id(ids, &params, b, max(end, 1usize) - 1 + params.history());
        same = end == 0 || sequence_id(ids, &params, b, end + m) == last;
    }
    let mut value = 0.0f32;
    if same {
        value = column(x, initial, &params, b, c, end + m);
    }
    let at = offset3(&*out, b, c, m);
    out[at] = H::cast_from(value);
}

/// Steps that a thread inspects per iteration.
const SEARCHED: usize = 8;

/// What the search for where rows with ids end needs of a device.
pub(crate) fn search_needs(problem: &CausalConv1dProblem) -> Needs {
    let threads = THREADS as usize;
    Needs {
        shared_bytes: 4 * threads,
        threads,
        bindings: 4,
        loop_iterations: problem.length.div_ceil(threads * SEARCHED) + 1,
        ..Needs::default()
    }
}

/// The number of steps of each row up to its last that is not padding, into column `column` of `out`. One
/// threadgroup per row, which searches from the row's end.
fn launch_ends(
    client: &Client,
    limits: &Limits,
    problem: &CausalConv1dProblem,
    seq_idx: &IndexOperand,
    (out, column): (&IndexOperand, usize),
) -> Result<(), ConvError> {
    search_needs(problem).check(format_args!("causal_conv1d: the search for the last steps"), limits)?;
    let largest = seq_idx.extent().max(out.extent()).max(problem.length + SEARCHED * THREADS as usize);
    let address = address_type("causal_conv1d", &[], largest, limits)?;
    for dispatch in dispatches(problem.batch, (problem.length * 2) as f64, limits) {
        // SAFETY: contract in `args`; one row per threadgroup, the kernel masks steps.
        unsafe {
            ends_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                seq_idx.tensor_arg(),
                out.tensor_arg(),
                problem.length,
                column,
                dispatch.span(),
                seq_idx.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn ends_kernel<I: Int>(
    seq_idx: &Tensor<I>,
    out: &mut Tensor<I>,
    length: usize,
    column: usize,
    span: Span,
    #[define(I)] _index_dtype: ElemType,
) {
    // Uniform exit before the barriers.
    if span.is_idle() {
        terminate!();
    }
    let b = span.index();
    let thread = UNIT_POS as usize;
    // A thread inspects every 256th step from the end backwards: `left - 1` is its next.
    let mut left = length - min(length, thread);
    let mut end = 0usize;
    while left > 0 {
        #[unroll]
        for i in 0..SEARCHED {
            let back = comptime!(i * THREADS as usize);
            let step = max(left, back) - back;
            if end == 0 && step > 0 && seq_idx[offset2(seq_idx, b, max(step, 1usize) - 1)] >= I::from_int(0) {
                end = step;
            }
        }
        let back = comptime!(SEARCHED * THREADS as usize);
        left = select(end > 0, 0usize, max(left, back) - back);
    }
    let mut shared = Shared::<[u32]>::new_slice(THREADS as usize);
    shared[thread] = end as u32;
    sync_cube();
    #[unroll]
    for level in 1..comptime!(THREADS.ilog2() + 1) {
        let half = comptime!((THREADS >> level) as usize);
        if thread < half {
            shared[thread] = max(shared[thread], shared[thread + half]);
        }
        sync_cube();
    }
    if thread == 0 {
        let at = offset2(&*out, b, column);
        out[at] = I::cast_from(shared[0usize]);
    }
}

/// The ids with the result of [`launch_ends`] appended at step T: `[B, T + 1]`, for the kernels that read the
/// gradient of the final state.
pub(crate) fn with_ends(
    client: &Client,
    limits: &Limits,
    problem: &CausalConv1dProblem,
    seq_idx: &IndexOperand,
) -> Result<IndexOperand, ConvError> {
    let shape = [problem.batch, problem.length + 1];
    let bytes = shape[0] * shape[1] * seq_idx.dtype.size();
    // The plan's needs count the smaller type of ids.
    Needs { buffer_bytes: bytes as u64, ..Needs::default() }
        .check(format_args!("causal_conv1d: the search for the last steps"), limits)?;
    let out = IndexOperand::contiguous(client.empty(bytes.max(16)), &shape, seq_idx.dtype);
    let threads = problem.batch * problem.length;
    let largest = seq_idx.extent().max(out.extent()) + THREADS as usize;
    let address = address_type("causal_conv1d", &[], largest, limits)?;
    for dispatch in dispatches(threads.div_ceil(THREADS as usize), 8.0 * f64::from(THREADS), limits) {
        // SAFETY: contract in `args`; the kernel masks rows, steps follow from the index.
        unsafe {
            copy_ids_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                seq_idx.tensor_arg(),
                out.tensor_arg(),
                dispatch.span(),
                seq_idx.dtype.elem(),
            );
        }
    }
    launch_ends(client, limits, problem, seq_idx, (&out, problem.length))?;
    Ok(out)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn copy_ids_kernel<I: Int>(
    seq_idx: &Tensor<I>,
    out: &mut Tensor<I>,
    span: Span,
    #[define(I)] _index_dtype: ElemType,
) {
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
    let b = index / seq_idx.shape(1);
    let t = index - b * seq_idx.shape(1);
    if span.is_idle() || b >= seq_idx.shape(0) {
        terminate!();
    }
    let at = offset2(&*out, b, t);
    out[at] = seq_idx[offset2(seq_idx, b, t)];
}

/// The ids of packed sequences into `out [1, T]`: i for the steps `bounds[i]..bounds[i + 1]`, -1 elsewhere. A
/// binary search per step.
pub(crate) fn launch_sequence_ids(
    client: &Client,
    limits: &Limits,
    bounds: &IndexOperand,
    out: &IndexOperand,
) -> Result<(), ConvError> {
    let largest = out.extent().max(bounds.extent()) + THREADS as usize;
    let address = address_type("causal_conv1d_seq_idx", &[], largest, limits)?;
    for dispatch in dispatches(out.shape[1].div_ceil(THREADS as usize), 64.0 * f64::from(THREADS), limits) {
        // SAFETY: contract in `args`; the kernel masks steps, and the search stays within `bounds`.
        unsafe {
            sequence_ids_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                bounds.tensor_arg(),
                out.tensor_arg(),
                dispatch.span(),
                bounds.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn sequence_ids_kernel<I: Int>(
    bounds: &Tensor<I>,
    out: &mut Tensor<I>,
    span: Span,
    #[define(I)] _index_dtype: ElemType,
) {
    let t = span.index() * THREADS as usize + UNIT_POS as usize;
    if span.is_idle() || t >= out.shape(1) {
        terminate!();
    }
    // Counts the bounds at or before the step.
    let (mut reached, mut end) = (0usize, bounds.shape(0));
    while reached < end {
        let middle = (reached + end) / 2;
        if bounds[middle * bounds.stride(0)] <= I::cast_from(t) {
            reached = middle + 1;
        } else {
            end = middle;
        }
    }
    let inside = reached < bounds.shape(0);
    let at = t * out.stride(1);
    out[at] = select(inside, I::cast_from(reached) - I::from_int(1), I::from_int(-1));
}
