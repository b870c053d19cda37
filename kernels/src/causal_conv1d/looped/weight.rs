//! dw and db: deterministic split-K sums without atomics. K runs over all (row, step) pairs.
//!
//! ```text
//! dw[c,k] = sum over b, t of g[b,c,t] * column(b, c, t + k)      db[c] = sum over b, t of g[b,c,t]
//!
//! stage 1   threadgroup: 1 tap (or db) x some channels x one split-K slice
//!           -> fp32 partials[slice, c, 0..=W], db in slot W
//! stage 2   while there are more than 64 slices: a thread adds 64 of them (`fold`)
//! stage 3   thread: one (c, k), slices in order, one rounding at the end
//! ```
//!
//! A thread adds a few dozen numbers at most, so the error grows with the logarithm of their number.
//!
//! `[B, C, T]`: the 256 threads run along the steps of one channel. `[B, T, C]`: 32 channels x 8 K elements.
//! Loads are coalesced in both. Bytes per threadgroup: g and the columns of its slice. FLOP: 2 per K element
//! and channel. Shared memory: 1 KiB. Any strides, any width.

use crate::causal_conv1d::args::{ConvParams, THREADS, column, offset2, offset3, sequence_id};
use crate::causal_conv1d::call::Conv1dCall;
use crate::causal_conv1d::plan::SplitK;
use crate::causal_conv1d::problem::{CausalConv1dProblem, Conv1dLayout};
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::index_operand::IndexOperand;
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// K elements that a thread adds before the tree reduction.
const K_PER_THREAD: usize = 64;

/// Channels per threadgroup; a power of two.
fn lanes(layout: Conv1dLayout) -> usize {
    match layout {
        Conv1dLayout::Bct => 1,
        Conv1dLayout::Btc => 32,
    }
}

/// The split of a problem's K elements.
fn split(problem: &CausalConv1dProblem, limits: &Limits) -> SplitK {
    let rows = THREADS as usize / lanes(problem.layout);
    let sums = problem.channels * (problem.width + 1);
    SplitK::of(problem.batch * problem.length, rows * K_PER_THREAD, sums, limits)
}

/// Iterations of the loop over a slice.
pub(crate) fn iterations(problem: &CausalConv1dProblem, limits: &Limits) -> usize {
    split(problem, limits).slice_length.div_ceil(THREADS as usize / lanes(problem.layout))
}

/// Number of split-K slices.
pub(crate) fn slices(problem: &CausalConv1dProblem, limits: &Limits) -> usize {
    split(problem, limits).slices
}

/// The split-K slices and their workspace `[slices, C, W + 1]`.
pub(crate) fn workspace(
    client: &Client,
    limits: &Limits,
    problem: &CausalConv1dProblem,
) -> (SplitK, Operand) {
    let split = split(problem, limits);
    let shape = [split.slices, problem.channels, problem.width + 1];
    (split, Operand::empty(client, &shape, FloatType::F32))
}

/// Slices that a thread of [`fold`] adds.
pub(crate) const FOLDED: usize = 64;

/// Reduces contiguous `partials [slices, ..]` to at most `most` slices: launches that add 64 slices each, in
/// order, repeated as needed.
pub(crate) fn fold(
    client: &Client,
    limits: &Limits,
    partials: Operand,
    most: usize,
) -> Result<Operand, ConvError> {
    let mut partials = partials;
    while partials.shape[0] > most {
        let mut shape = partials.shape.clone();
        shape[0] = shape[0].div_ceil(FOLDED);
        let folded = Operand::empty(client, &shape, FloatType::F32);
        let results = folded.len() / shape[0];
        let address = address_type("causal_conv1d", &[&partials], folded.len() + THREADS as usize, limits)?;
        let operations = (THREADS as usize * FOLDED) as f64;
        for dispatch in dispatches(folded.len().div_ceil(THREADS as usize), operations, limits) {
            // SAFETY: contract in `args`; the kernel masks slices, and an index with a slice has a result.
            unsafe {
                fold_kernel::launch_unchecked(
                    client,
                    dispatch.count(),
                    CubeDim::new_1d(THREADS),
                    address,
                    partials.buffer_arg(1),
                    folded.buffer_arg(1),
                    partials.shape[0],
                    results,
                    dispatch.span(),
                );
            }
        }
        partials = folded;
    }
    Ok(partials)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn fold_kernel(partials: &[f32], folded: &mut [f32], slices: usize, results: usize, span: Span) {
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
    let folded_slice = index / results;
    let first = folded_slice * FOLDED;
    if span.is_idle() || first >= slices {
        terminate!();
    }
    let result = index - folded_slice * results;
    let mut sum = 0.0f32;
    for other in first..min(first + FOLDED, slices) {
        sum += partials[other * results + result];
    }
    folded[index] = sum;
}

/// Stage 1 for channels `first..first + channels`: reads `g[b, c - first, t]`, writes these channels'
/// partials.
pub(crate) fn launch_partials(
    call: &Conv1dCall,
    g: &Operand,
    (first, channels): (usize, usize),
    (split, partials): (SplitK, &Operand),
) -> Result<(), ConvError> {
    let &Conv1dCall { client, limits, problem, ref views } = call;
    let lanes = lanes(problem.layout);
    let slots = problem.width + 1;
    let threadgroups = split.slices * slots * channels.div_ceil(lanes);
    let mut operands = views.operands();
    operands.extend([g, partials]);
    let largest =
        threadgroups.max(problem.batch * problem.length + THREADS as usize).max(views.index_extent());
    let address = address_type("causal_conv1d", &operands, largest, limits)?;
    let operations = 2.0 * (split.slice_length * lanes * 9) as f64;
    for dispatch in dispatches(threadgroups, operations, limits) {
        // SAFETY: contract in `args`; the kernel masks channels, K elements and columns.
        unsafe {
            partials_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                views.x.tensor_arg(),
                views.initial_or_x().tensor_arg(),
                views.seq_idx.as_ref().map(IndexOperand::tensor_arg).into(),
                g.tensor_arg(),
                partials.tensor_arg(),
                problem.params(first, channels, call.present(&[])),
                split.slice_length,
                dispatch.span(),
                views.seq_idx.is_some(),
                lanes,
                problem.dtype.elem(),
                problem.state_dtype.elem(),
                views.index_elem(),
                g.dtype.elem(),
            );
        }
    }
    Ok(())
}

/// Stage 3: `target[c, i] = sum over slices of partials[slice, c, slot + i]`; dw from slot 0, db as `[C, 1]`
/// from slot W.
pub(crate) fn launch_sums(
    client: &Client,
    limits: &Limits,
    partials: &Operand,
    (slot, target): (usize, &Operand),
) -> Result<(), ConvError> {
    let address =
        address_type("causal_conv1d", &[partials, target], target.len() + THREADS as usize, limits)?;
    let operations = f64::from(THREADS) * partials.shape[0] as f64;
    for dispatch in dispatches(target.len().div_ceil(THREADS as usize), operations, limits) {
        // SAFETY: contract in `args`; the kernel masks channels by the target's shape, and `partials` has
        // all of the target's channels and slots.
        unsafe {
            sums_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                partials.tensor_arg(),
                target.tensor_arg(),
                slot,
                dispatch.span(),
                target.dtype.elem(),
            );
        }
    }
    Ok(())
}

/// The sum of `value` over the threads of a lane, returned to all of them: a tree reduction of fixed shape.
#[cube]
fn lane_sum(shared: &mut Shared<[f32]>, value: f32, #[comptime] lanes: usize) -> f32 {
    let thread = UNIT_POS as usize;
    // All threads have read the previous sum.
    sync_cube();
    shared[thread] = value;
    sync_cube();
    #[unroll]
    for level in 1..comptime!((THREADS as usize / lanes).ilog2() + 1) {
        let half = comptime!((THREADS >> level) as usize);
        if thread < half {
            shared[thread] += shared[thread + half];
        }
        sync_cube();
    }
    shared[thread % lanes]
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn partials_kernel<X: Float, H: Float, I: Int, G: Float>(
    x: &Tensor<X>,
    initial: &Tensor<H>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    g: &Tensor<G>,
    partials: &mut Tensor<f32>,
    params: ConvParams,
    slice_length: usize,
    span: Span,
    #[comptime] packed: bool,
    #[comptime] lanes: usize,
    #[define(X)] _dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
    #[define(G)] _gradient_dtype: ElemType,
) {
    // Uniform exit before the barriers.
    if span.is_idle() {
        terminate!();
    }
    let threadgroup = span.index();
    let rest = threadgroup / (params.width + 1);
    let slot = threadgroup - rest * (params.width + 1);
    let blocks = params.channels.div_ceil(lanes);
    let slice = rest / blocks;
    let c = (rest - slice * blocks) * lanes + UNIT_POS as usize % lanes;
    let row = UNIT_POS as usize / lanes;
    let channel = params.first + c;

    let mut sum = 0.0f32;
    if c < params.channels {
        let end = min((slice + 1) * slice_length, params.batch * params.length);
        let mut index = slice * slice_length + row;
        while index < end {
            let b = index / params.length;
            let t = index - b * params.length;
            let mut gradient = f32::cast_from(g[offset3(g, b, c, t)]);
            let mut own = I::from_int(0);
            if comptime!(packed) {
                own = sequence_id(seq_idx.unwrap(), &params, b, t + params.history());
                gradient = select(own < I::from_int(0), 0.0f32, gradient);
            }
            if slot == params.width {
                sum += gradient;
            } else {
                sum += masked_product(x, initial, seq_idx, &params, b, channel, t + slot, own, gradient);
            }
            index += comptime!(THREADS as usize / lanes);
        }
    }

    let mut shared = Shared::<[f32]>::new_slice(THREADS as usize);
    let total = lane_sum(&mut shared, sum, lanes);
    if row == 0 && c < params.channels {
        let at = offset3(&*partials, slice, channel, slot);
        partials[at] = total;
    }
}

/// `gradient * column e`; a selected 0 at padding and for a column of another sequence than `own`, whose
/// values must not matter.
#[cube]
fn masked_product<X: Float, H: Float, I: Int>(
    x: &Tensor<X>,
    initial: &Tensor<H>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    params: &ConvParams,
    b: usize,
    channel: usize,
    e: usize,
    own: I,
    gradient: f32,
) -> f32 {
    let product = gradient * column(x, initial, params, b, channel, e);
    if comptime!(seq_idx.is_some()) {
        let same = own >= I::from_int(0) && sequence_id(seq_idx.unwrap(), params, b, e) == own;
        select(same, product, 0.0f32)
    } else {
        product
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn sums_kernel<W: Float>(
    partials: &Tensor<f32>,
    target: &mut Tensor<W>,
    slot: usize,
    span: Span,
    #[define(W)] _dtype: ElemType,
) {
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
    let channel = index / target.shape(1);
    let i = index - channel * target.shape(1);
    if span.is_idle() || channel >= target.shape(0) {
        terminate!();
    }
    let mut sum = 0.0f32;
    for slice in 0..partials.shape(0) {
        sum += partials[offset3(partials, slice, channel, slot + i)];
    }
    let at = offset2(&*target, channel, i);
    target[at] = W::cast_from(sum);
}
