//! dw and db: deterministic sums in two stages, without atomics.
//!
//! ```text
//! stage 1   a cube: some channels x one part of the (row, step) terms
//!           -> fp32 partials[part, c, 0..=W], db in slot W
//! stage 2   while there are more than 64 parts: a unit adds 64 of them (`fold`)
//! stage 3   a unit: one (c, k): the parts in order, rounded once
//! ```
//!
//! No unit adds more than some dozens of numbers in a row, so that the error grows with the logarithm of
//! their number.
//!
//! In `[B, C, T]` the 256 units of a cube run along the steps of one channel; in `[B, T, C]` they are 32
//! channels x 8 rows of terms, so that loads are contiguous in either. One cube per tap.

use super::args::{Rows, UNITS, at2, at3, column, id_of};
use super::call::Call;
use super::plan::Split;
use super::problem::{CausalConv1dProblem, Conv1dLayout};
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::index_operand::IndexOperand;
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Terms that one unit adds before the tree.
const TERMS_PER_UNIT: usize = 64;

/// Channels side by side in a cube; a power of two.
fn lanes(layout: Conv1dLayout) -> usize {
    match layout {
        Conv1dLayout::Bct => 1,
        Conv1dLayout::Btc => 32,
    }
}

/// The split of a problem's terms.
fn split(problem: &CausalConv1dProblem, limits: &Limits) -> Split {
    let rows = UNITS as usize / lanes(problem.layout);
    let sums = problem.channels * (problem.width + 1);
    Split::of(problem.batch * problem.length, rows * TERMS_PER_UNIT, sums, limits)
}

/// Turns of the loops that add the terms of a part.
pub(crate) fn turns(problem: &CausalConv1dProblem, limits: &Limits) -> usize {
    split(problem, limits).length.div_ceil(UNITS as usize / lanes(problem.layout))
}

/// The split of the terms and its workspace `[parts, C, W + 1]`.
pub(crate) fn workspace(client: &Client, limits: &Limits, problem: &CausalConv1dProblem) -> (Split, Operand) {
    let split = split(problem, limits);
    let shape = [split.parts, problem.channels, problem.width + 1];
    (split, Operand::empty(client, &shape, FloatType::F32))
}

/// Partial sums that a unit adds in a row.
pub(crate) const FOLDED: usize = 64;

/// `partials [parts, ..]`, contiguous, in at most `most` parts: 64 at a time are added, in order, as often as
/// it takes.
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
        let address = address_type("causal_conv1d", &[&partials], folded.len() + UNITS as usize, limits)?;
        let operations = (UNITS as usize * FOLDED) as f64;
        for dispatch in dispatches(folded.len().div_ceil(UNITS as usize), operations, limits) {
            // SAFETY: the index is checked against the results, parts against their number.
            unsafe {
                fold_kernel::launch_unchecked(
                    client,
                    dispatch.count(),
                    CubeDim::new_1d(UNITS),
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
fn fold_kernel(partials: &[f32], folded: &mut [f32], parts: usize, results: usize, span: Span) {
    let index = span.index() * UNITS as usize + UNIT_POS as usize;
    let part = index / results;
    let first = part * FOLDED;
    if span.is_idle() || first >= parts {
        terminate!();
    }
    let result = index - part * results;
    let mut sum = 0.0f32;
    for other in first..min(first + FOLDED, parts) {
        sum += partials[other * results + result];
    }
    folded[index] = sum;
}

/// Stage 1 for channels `first..first + channels`: reads `g[b, c - first, t]`, writes the channels' partials.
pub(crate) fn launch_partials(
    call: &Call,
    g: &Operand,
    (first, channels): (usize, usize),
    (split, partials): (Split, &Operand),
) -> Result<(), ConvError> {
    let &Call { client, limits, problem, ref views } = call;
    let lanes = lanes(problem.layout);
    let slots = problem.width + 1;
    let cubes = split.parts * slots * channels.div_ceil(lanes);
    let mut operands = views.operands();
    operands.extend([g, partials]);
    let largest = cubes.max(problem.batch * problem.length + UNITS as usize).max(views.index_extent());
    let address = address_type("causal_conv1d", &operands, largest, limits)?;
    let operations = 2.0 * (split.length * lanes * 9) as f64;
    for dispatch in dispatches(cubes, operations, limits) {
        // SAFETY: channels, terms and columns are checked in the kernel; the conformance run puts guards
        // around every buffer.
        unsafe {
            partials_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                views.x.tensor_arg(),
                views.initial_or_x().tensor_arg(),
                views.seq_idx.as_ref().map(IndexOperand::tensor_arg).into(),
                g.tensor_arg(),
                partials.tensor_arg(),
                problem.rows(first, channels, call.present(&[])),
                split.length,
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

/// Stage 3: `target[c, i] = sum over parts of partials[part, c, slot + i]`; dw from slot 0, db as `[C, 1]`
/// from slot W.
pub(crate) fn launch_sums(
    client: &Client,
    limits: &Limits,
    partials: &Operand,
    (slot, target): (usize, &Operand),
) -> Result<(), ConvError> {
    let address = address_type("causal_conv1d", &[partials, target], target.len() + UNITS as usize, limits)?;
    let operations = f64::from(UNITS) * partials.shape[0] as f64;
    for dispatch in dispatches(target.len().div_ceil(UNITS as usize), operations, limits) {
        // SAFETY: the index is checked against the target's shape; its channels and slots exist in
        // `partials`.
        unsafe {
            sums_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
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

/// The sum of `value` over the units of the same lane, a tree of fixed shape; in every unit.
#[cube]
fn lane_sum(shared: &mut Shared<[f32]>, value: f32, #[comptime] lanes: usize) -> f32 {
    let unit = UNIT_POS as usize;
    // The previous sum has been read by all.
    sync_cube();
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for level in 1..comptime!((UNITS as usize / lanes).ilog2() + 1) {
        let half = comptime!((UNITS >> level) as usize);
        if unit < half {
            shared[unit] += shared[unit + half];
        }
        sync_cube();
    }
    shared[unit % lanes]
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn partials_kernel<X: Float, H: Float, I: Int, G: Float>(
    x: &Tensor<X>,
    initial: &Tensor<H>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    g: &Tensor<G>,
    partials: &mut Tensor<f32>,
    rows: Rows,
    split_length: usize,
    span: Span,
    #[comptime] packed: bool,
    #[comptime] lanes: usize,
    #[define(X)] _dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
    #[define(G)] _gradient_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let cube = span.index();
    let rest = cube / (rows.width + 1);
    let slot = cube - rest * (rows.width + 1);
    let blocks = rows.channels.div_ceil(lanes);
    let part = rest / blocks;
    let c = (rest - part * blocks) * lanes + UNIT_POS as usize % lanes;
    let row = UNIT_POS as usize / lanes;
    let channel = rows.first + c;

    let mut sum = 0.0f32;
    if c < rows.channels {
        let end = min((part + 1) * split_length, rows.batch * rows.length);
        let mut index = part * split_length + row;
        while index < end {
            let b = index / rows.length;
            let t = index - b * rows.length;
            let mut gradient = f32::cast_from(g[at3(g, b, c, t)]);
            let mut own = I::from_int(0);
            if comptime!(packed) {
                own = id_of(seq_idx.unwrap(), &rows, b, t + rows.history());
                gradient = select(own < I::from_int(0), 0.0f32, gradient);
            }
            if slot == rows.width {
                sum += gradient;
            } else {
                sum += term(x, initial, seq_idx, &rows, b, channel, t + slot, own, gradient);
            }
            index += comptime!(UNITS as usize / lanes);
        }
    }

    let mut shared = Shared::<[f32]>::new_slice(UNITS as usize);
    let total = lane_sum(&mut shared, sum, lanes);
    if row == 0 && c < rows.channels {
        let at = at3(&*partials, part, channel, slot);
        partials[at] = total;
    }
}

/// `g * column e`, or 0 for a column of another sequence than `own` and for padding, whose values must not
/// matter.
#[cube]
#[allow(clippy::too_many_arguments)]
fn term<X: Float, H: Float, I: Int>(
    x: &Tensor<X>,
    initial: &Tensor<H>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    rows: &Rows,
    b: usize,
    channel: usize,
    e: usize,
    own: I,
    gradient: f32,
) -> f32 {
    let product = gradient * column(x, initial, rows, b, channel, e);
    if comptime!(seq_idx.is_some()) {
        let same = own >= I::from_int(0) && id_of(seq_idx.unwrap(), rows, b, e) == own;
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
    let index = span.index() * UNITS as usize + UNIT_POS as usize;
    let channel = index / target.shape(1);
    let i = index - channel * target.shape(1);
    if span.is_idle() || channel >= target.shape(0) {
        terminate!();
    }
    let mut sum = 0.0f32;
    for part in 0..partials.shape(0) {
        sum += partials[at3(partials, part, channel, slot + i)];
    }
    let at = at2(&*target, channel, i);
    target[at] = W::cast_from(sum);
}
