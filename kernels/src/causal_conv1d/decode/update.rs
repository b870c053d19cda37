//! Decoding: L steps from a state of S columns, and the state after them.
//!
//! ```text
//! shifted   h = [state | x]     y[l] = taps over h[S + l + 1 - W ..= S + l]
//!                               new state = last S columns of h
//! ring      p = lengths[b]      taps at (p + l - (W-1) + k) mod S, steps of x where p is reached
//!                               x[l] -> (p + l) mod S
//! ```
//!
//! One channel of one row per thread. No other thread accesses that state, and the thread writes it after its
//! last read, so the new state may be the old one's memory. A row without a slot writes zeros to y and no
//! state. Of rows that share a slot only the last has it: with slots a threadgroup has channels of one row,
//! and its threads search the later rows for the same slot in parallel.
//!
//! Bytes: x, y, the columns of the state that are read and written. FLOP: 2 W per step and the activation.
//! Any strides and widths.

use super::{UPDATE, check_update_steps, step};
use crate::activation::activate_by_code;
use crate::causal_conv1d::args::{Present, THREADS, offset2, offset3};
use crate::causal_conv1d::problem::UpdateProblem;
use crate::causal_conv1d::{check_operand, check_optional};
use crate::error::{ConvError, invalid};
use crate::index_operand::{IndexOperand, IndexType};
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Inputs and outputs of [`update_steps`].
#[derive(Clone, Copy, Debug)]
pub struct DecodingSteps<'a> {
    /// `[B, C, L]`: L steps.
    pub x: &'a Operand,
    /// `[B, C, S]`, oldest step first; with `slots` any number of rows, with `lengths` a ring.
    pub state: &'a Operand,
    /// `[C, W]`.
    pub weight: &'a Operand,
    /// `[C]`, in the weight's dtype.
    pub bias: Option<&'a Operand>,
    /// `[B]`: the number of steps each row has seen (`cache_seqlens`). The state is then a ring: step t is in
    /// column t mod S. Only the columns of the new steps are written; `new_state` must already hold the rest.
    pub lengths: Option<&'a IndexOperand>,
    /// `[B]`: the row of the state of each row of x (`conv_state_indices`); negative for padding, whose y is
    /// 0 and which has no state. Of rows that share a slot the last has it, the others are padding. Only
    /// these rows of the state are written; `new_state` must already hold the rest.
    pub slots: Option<&'a IndexOperand>,
    /// `[B, C, L]`.
    pub y: &'a Operand,
    /// Of the state's shape and dtype; may be the state's own memory.
    pub new_state: &'a Operand,
}

/// One decoding step: y `[B, C]` and the new state `[B, C, S]` from x `[B, C]`, state `[B, C, S]`, weight
/// `[C, W]` and bias `[C]`. `new_state` may be the state's own memory.
///
/// # Errors
/// As [`forward`](crate::causal_conv1d::forward).
pub fn update(
    client: &Client,
    limits: &Limits,
    problem: &UpdateProblem,
    x: &Operand,
    state: &Operand,
    weight: &Operand,
    bias: Option<&Operand>,
    y: &Operand,
    new_state: &Operand,
) -> Result<(), ConvError> {
    check_operand(UPDATE, "x", x, &problem.x_shape(), problem.dtype)?;
    check_operand(UPDATE, "y", y, &problem.x_shape(), problem.dtype)?;
    let [x, y] = [x, y].map(|operand| {
        let mut steps = operand.clone();
        steps.shape.push(1);
        steps.strides.push(1);
        steps
    });
    let (lengths, slots) = (None, None);
    let steps = DecodingSteps { x: &x, state, weight, bias, lengths, slots, y: &y, new_state };
    update_steps(client, limits, problem, &steps)
}

/// Several decoding steps at once, each from the state after the previous one.
///
/// # Errors
/// As [`forward`](crate::causal_conv1d::forward).
pub fn update_steps(
    client: &Client,
    limits: &Limits,
    problem: &UpdateProblem,
    steps: &DecodingSteps,
) -> Result<(), ConvError> {
    let &UpdateProblem { batch, channels, width, state_length, dtype, weight_dtype, .. } = problem;
    limits.check_dtype(UPDATE, dtype)?;
    limits.check_dtype(UPDATE, weight_dtype)?;
    let length = steps.x.shape.last().copied().unwrap_or(0);
    let rows = steps.slots.and(steps.state.shape.first()).copied().unwrap_or(batch);
    let (x, state) = ([batch, channels, length], [rows, channels, state_length]);
    check_operand(UPDATE, "x", steps.x, &x, dtype)?;
    limits.check_dtype(UPDATE, problem.state_dtype)?;
    check_operand(UPDATE, "the state", steps.state, &state, problem.state_dtype)?;
    check_operand(UPDATE, "weight", steps.weight, &problem.weight_shape(), weight_dtype)?;
    check_operand(UPDATE, "y", steps.y, &x, dtype)?;
    check_operand(UPDATE, "the new state", steps.new_state, &state, problem.state_dtype)?;
    check_optional(UPDATE, "bias", steps.bias, problem.bias, &[channels], weight_dtype)?;
    for (name, indices) in [("cache_seqlens", steps.lengths), ("state_indices", steps.slots)] {
        indices.map_or(Ok(()), |indices| indices.check(UPDATE, name, &[batch], client))?;
    }
    if let (Some(lengths), Some(slots)) = (steps.lengths, steps.slots)
        && lengths.dtype != slots.dtype
    {
        let names = [lengths.dtype.name(), slots.dtype.name()];
        invalid!(
            "{UPDATE}: cache_seqlens is {} and state_indices is {}, their dtypes must match",
            names[0],
            names[1]
        );
    }
    if steps.lengths.is_some() && state_length == 0 && width > 0 && length > 0 {
        invalid!("{UPDATE}: a ring of 0 steps holds no state, it must have at least 1");
    }
    if steps.y.is_empty() {
        return Ok(());
    }
    if step::serves(problem, steps) {
        return step::launch(client, limits, problem, steps);
    }
    launch(client, limits, problem, steps)
}

fn launch(
    client: &Client,
    limits: &Limits,
    problem: &UpdateProblem,
    steps: &DecodingSteps,
) -> Result<(), ConvError> {
    let length = steps.x.shape[2];
    let given = [steps.lengths, steps.slots].into_iter().flatten().count();
    check_update_steps(problem, length, given, limits)?;
    let (state, new_state) = (steps.state.bindable(client), steps.new_state.bindable(client));
    // With slots each threadgroup has channels of one row, else threads are numbered linearly.
    let blocks = problem.channels.div_ceil(THREADS as usize);
    let threadgroups = if steps.slots.is_some() {
        problem.batch * blocks
    } else {
        (problem.batch * problem.channels).div_ceil(THREADS as usize)
    };
    let operands: Vec<&Operand> =
        [steps.x, &state, steps.weight, steps.y, &new_state].into_iter().chain(steps.bias).collect();
    let indices = [steps.lengths, steps.slots].into_iter().flatten().map(IndexOperand::extent).max();
    let largest = (threadgroups * THREADS as usize).max(indices.unwrap_or(0));
    let address = address_type(UPDATE, &operands, largest, limits)?;
    let operations = length * (2 * problem.width + 8) + problem.state_length;
    let present = Present::bits(&[(steps.bias.is_some(), Present::BIAS)]);
    let index = steps.lengths.or(steps.slots).map_or(IndexType::I32, |indices| indices.dtype);
    for dispatch in dispatches(threadgroups, f64::from(THREADS) * operations as f64, limits) {
        // SAFETY: contract in `args`; the kernel masks rows, channels and slots, state columns are below S.
        unsafe {
            update_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                steps.x.tensor_arg(),
                state.tensor_arg(),
                steps.weight.tensor_arg(),
                steps.bias.unwrap_or(steps.weight).tensor_arg(),
                steps.lengths.map(IndexOperand::tensor_arg).into(),
                steps.slots.map(IndexOperand::tensor_arg).into(),
                steps.y.tensor_arg(),
                new_state.tensor_arg(),
                problem.activation.code(),
                present,
                dispatch.span(),
                steps.slots.is_some(),
                problem.dtype.elem(),
                problem.weight_dtype.elem(),
                problem.state_dtype.elem(),
                index.elem(),
            );
        }
    }
    Ok(())
}

/// The most columns of a state, and taps, that [`one_step`] holds in registers.
const SHORT: usize = 8;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn update_kernel<X: Float, W: Float, H: Float, I: Int>(
    x: &Tensor<X>,
    state: &Tensor<H>,
    weight: &Tensor<W>,
    bias: &Tensor<W>,
    lengths: ComptimeOption<&Tensor<I>>,
    slots: ComptimeOption<&Tensor<I>>,
    y: &mut Tensor<X>,
    new_state: &mut Tensor<H>,
    activation: u32,
    present: u32,
    span: Span,
    // For the kernel's key, in which optional arguments do not count.
    #[comptime] _has_slots: bool,
    #[define(X)] _dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    // Uniform exit: barriers may follow.
    if span.is_idle() {
        terminate!();
    }
    let channels = x.shape(1);
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
    let mut b = index / channels;
    let mut c = index - b * channels;
    let mut last = true;
    if comptime!(slots.is_some()) {
        let blocks = channels.div_ceil(comptime!(THREADS as usize));
        b = span.index() / blocks;
        c = (span.index() - b * blocks) * THREADS as usize + UNIT_POS as usize;
        last = is_last(slots.unwrap(), b, x.shape(0));
    }
    if b >= x.shape(0) || c >= channels {
        terminate!();
    }
    let (size, width, count) = (state.shape(2), weight.shape(1), x.shape(2));
    let mut slot = b;
    let mut served = true;
    if comptime!(slots.is_some()) {
        let slots = slots.unwrap();
        let given = slots[b * slots.stride(0)];
        // A slot that does not exist counts as padding.
        served = last && given >= I::from_int(0) && given < I::cast_from(state.shape(0));
        slot = select(served, usize::cast_from(given), 0usize);
    }
    // Ring: the column that the first step is written to.
    let ring = comptime!(lengths.is_some());
    let mut ring_head = size;
    if comptime!(ring) {
        let lengths = lengths.unwrap();
        ring_head = usize::cast_from(lengths[b * lengths.stride(0)]) % max(size, 1usize);
    }
    let mut offset = 0.0f32;
    if present & Present::BIAS != 0u32 {
        offset = f32::cast_from(bias[c * bias.stride(0)]);
    }
    if comptime!(!ring) {
        let short = count == 1 && served && size <= SHORT && width <= SHORT;
        if short {
            one_step(x, state, weight, y, new_state, offset, activation, b, slot, c);
            terminate!();
        }
    }
    for l in 0..count {
        let mut sum = offset;
        for k in 0..width {
            // Tap k of step l reads step l - (W-1) + k: of x, or of the state if negative.
            let mut value = 0.0f32;
            if l + k + 1 >= width {
                value = f32::cast_from(x[offset3(x, b, c, l + k + 1 - width)]);
            }
            if l + k + 1 < width {
                let mut column = ring_head + l + k + 1 - width;
                if comptime!(ring) {
                    column = (ring_head + size + l + k + 1 - width) % size;
                }
                value = f32::cast_from(state[offset3(state, slot, c, column)]);
            }
            sum = fma(f32::cast_from(weight[offset2(weight, c, k)]), value, sum);
        }
        let result = select(served, activate_by_code(sum, activation), 0.0f32);
        let at = offset3(&*y, b, c, l);
        y[at] = X::cast_from(result);
    }
    if served {
        if comptime!(ring) {
            // Of steps that map to one column the last is kept.
            for l in count - min(count, size)..count {
                let at = offset3(&*new_state, slot, c, (ring_head + l) % size);
                new_state[at] = H::cast_from(x[offset3(x, b, c, l)]);
            }
        } else {
            // Column s of the new state is column s + L of [state | x], which is not yet overwritten.
            for s in 0..size {
                let at = offset3(&*new_state, slot, c, s);
                if s + count < size {
                    new_state[at] = state[offset3(state, slot, c, s + count)];
                } else {
                    new_state[at] = H::cast_from(x[offset3(x, b, c, s + count - size)]);
                }
            }
        }
    }
}

/// Whether no row after row `b` has the same slot; uniform over the threadgroup.
#[cube]
fn is_last<I: Int>(slots: &Tensor<I>, b: usize, batch: usize) -> bool {
    let mut taken = Shared::<[u32]>::new_slice(1usize);
    if UNIT_POS == 0u32 {
        taken[0usize] = 0u32;
    }
    sync_cube();
    if b < batch {
        let own = slots[b * slots.stride(0)];
        let mut other = b + 1 + UNIT_POS as usize;
        while other < batch {
            // A benign race: all writers store the same value.
            if slots[other * slots.stride(0)] == own {
                taken[0usize] = 1u32;
            }
            other += THREADS as usize;
        }
    }
    sync_cube();
    taken[0usize] == 0u32
}

/// One step of a channel with a short state, the common case: all loads are in flight before the first use,
/// while a loop waits for each. The sum has the loop's order: bitwise equal.
#[cube]
fn one_step<X: Float, W: Float, H: Float>(
    x: &Tensor<X>,
    state: &Tensor<H>,
    weight: &Tensor<W>,
    y: &mut Tensor<X>,
    new_state: &mut Tensor<H>,
    offset: f32,
    activation: u32,
    b: usize,
    slot: usize,
    c: usize,
) {
    let (size, width) = (state.shape(2), weight.shape(1));
    // [state | x] and the taps, both right-aligned.
    let history = Registers::<H>::new(comptime!(SHORT + 1), H::from_int(0));
    let taps = Registers::<W>::new(comptime!(SHORT + 1), W::from_int(0));
    let newest = H::cast_from(x[offset3(x, b, c, 0usize)]);
    #[unroll]
    for p in 0..SHORT {
        if size + p >= SHORT {
            history.set(p, state[offset3(state, slot, c, size + p - SHORT)]);
        }
    }
    history.set(SHORT, newest);
    #[unroll]
    for p in 1..comptime!(SHORT + 1) {
        if width + p > SHORT {
            taps.set(p, weight[offset2(weight, c, width + p - SHORT - 1)]);
        }
    }
    let mut sum = offset;
    #[unroll]
    for p in 1..comptime!(SHORT + 1) {
        if width + p > SHORT {
            sum = fma(f32::cast_from(taps.get(p)), f32::cast_from(history.get(p)), sum);
        }
    }
    let at = offset3(&*y, b, c, 0usize);
    y[at] = X::cast_from(activate_by_code(sum, activation));
    #[unroll]
    for p in 1..comptime!(SHORT + 1) {
        if size + p > SHORT {
            let at = offset3(&*new_state, slot, c, size + p - SHORT - 1);
            new_state[at] = history.get(p);
        }
    }
}
