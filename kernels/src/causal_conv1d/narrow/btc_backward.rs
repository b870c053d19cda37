//! Backward pass in `[B, T, C]` layout, all gradients in one sweep forward in time.
//!
//! ```text
//! dpre[t] = dy[t] * activation'(sum[t])
//! dw[k]  += sum over t of dpre[t] * X(t - (W-1) + k)       db += sum over t of dpre[t]
//! dx[t]   = sum over k of w[k] * dpre[t + (W-1) - k]
//!
//!   thread, step t     recompute sum -> dpre -> dw, db in registers
//!                      add w[k] * dpre to dx of the `taps` steps up to t: step t - (taps-1) is complete
//!   register rings     x and dx of the last `taps` steps: step t is in slot t mod taps
//!
//!   segment            | history | ----- segment ----- | taps-1 steps |    after it: dx only, no dw
//! ```
//!
//! dx is scattered, not gathered. A scatter needs the conditions "same sequence" of one step at a time; a
//! gather would hold `taps` of them for each of `taps` steps. What is added to steps before the row's first
//! is the gradient of the initial state.
//!
//! Segments and channels are assigned as in [`super::btc`]. At the end a threadgroup adds its segments' sums
//! in shared memory: partial sums of dw and db ([`super::reduce`]), or dw and db themselves where it has all
//! steps of its channels.
//!
//! HBM traffic: x, dy and dx once; W + 1 floats per threadgroup and channel. Work per element: 3 W + 1 FMA
//! and the activation's derivative, for `taps - 1` more steps per segment. Shared memory: 4 bytes per
//! thread and channel of it. Any strides; declined: widths above 8.

use super::access::{CallParams, Strides};
use super::bct::{NarrowConfig, id_at, last_step, state_index};
use super::btc::{
    BtcWork, Lanes, TimeSegment, channel_bias, channel_taps, channels_of, read_history, read_history_ids,
    read_step, step_pre_activation, write_step,
};
use super::reduce::store_total;
use crate::activation::activate_gradient_vector;
use crate::causal_conv1d::args::Present;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn channels_backward_kernel<X: Float, W: Float, H: Float, I: Int, N: Size, C: Size>(
    x: &[Vector<X, N>],
    dy: &[Vector<X, N>],
    weight: &[W],
    bias: &[W],
    initial: ComptimeOption<&Tensor<H>>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    dfinal: ComptimeOption<&Tensor<H>>,
    dx: &mut [Vector<X, N>],
    dinitial: &mut Tensor<H>,
    dw: &mut Tensor<W>,
    db: &mut Tensor<W>,
    partials: &mut Tensor<f32>,
    params: CallParams,
    x_strides: Strides,
    dy_strides: Strides,
    dx_strides: Strides,
    work: BtcWork,
    span: Span,
    #[comptime] config: NarrowConfig,
    #[define(X)] _dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    // Whole threadgroups exit here: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let segment = work.segment::<C>(span.index(), &params);
    let totals = Registers::<Lanes<C>>::new(comptime!(config.taps + 1), Lanes::<C>::new(0.0f32));
    #[unroll]
    for k in 0..comptime!(config.taps + 1) {
        totals.set(k, Lanes::<C>::new(0.0f32));
    }
    if segment.exists {
        let weights = channel_taps::<W, C>(weight, &params, segment.c, config);
        let bias = channel_bias::<W, C>(bias, &params, segment.c);
        let columns = Registers::<Lanes<C>>::new(config.taps, Lanes::<C>::new(0.0f32));
        let gradients = Registers::<Lanes<C>>::new(config.taps, Lanes::<C>::new(0.0f32));
        #[unroll]
        for k in 0..config.taps {
            gradients.set(k, Lanes::<C>::new(0.0f32));
        }
        let ids =
            Registers::<I>::new(comptime!(if config.has_ids { config.taps } else { 1 }), I::from_int(0));
        read_history(x, &x_strides, initial, &params, &segment, &columns, config);
        read_history_ids(seq_idx, &params, &segment, &ids, config);
        // The end of the final state and the sequence it belongs to.
        let mut final_end = params.length;
        let mut final_id = I::from_int(0);
        if comptime!(config.has_ids) && params.has(Present::DFINAL) {
            let (steps, id) = last_step(seq_idx, &params, segment.b);
            final_end = steps;
            final_id = id;
        }
        let lag = comptime!(config.taps as u32 - 1);
        let end = min(params.length, segment.t + work.steps_per_segment + lag);
        for iteration in 0..work.iterations + 1u32 {
            // The last iteration covers only the `taps - 1` steps after the segment.
            let in_segment = iteration < work.iterations;
            let first = segment.t + iteration * config.steps_per_iteration() as u32;
            let mut raw = Sequence::<Vector<X, N>>::new();
            let mut raw_dy = Sequence::<Vector<X, N>>::new();
            #[unroll]
            for i in 0..config.steps_per_iteration() {
                if comptime!(i % config.load_batch == 0) {
                    #[unroll]
                    for j in 0..config.load_batch {
                        let t = first + comptime!((i + j) as u32);
                        read_step::<X, N, C>(x, &x_strides, &params, &segment, t, end, &mut raw);
                        read_step::<X, N, C>(dy, &dy_strides, &params, &segment, t, end, &mut raw_dy);
                    }
                }
                if in_segment || comptime!(i + 1 < config.taps) {
                    let t = first + i as u32;
                    let slot = comptime!(i % config.taps);
                    // `select` keeps out NaN loaded past the row or at padding.
                    let mut valid = t < params.length;
                    let column = channels_of::<X, N, C>(&raw, i);
                    columns.set(slot, select(valid, column, Lanes::<C>::new(0.0f32)));
                    if comptime!(config.has_ids) {
                        let id = id_at(seq_idx.unwrap(), &params, segment.b, t);
                        ids.set(slot, id);
                        valid = valid && id >= I::from_int(0);
                    }
                    let pre = step_pre_activation(&columns, &weights, &ids, bias, &params, slot, config);
                    let gradient = channels_of::<X, N, C>(&raw_dy, i);
                    let gradient =
                        activate_gradient_vector(pre, gradient, params.activation, config.branch_free);
                    let gradient = select(valid, gradient, Lanes::<C>::new(0.0f32));
                    if in_segment {
                        add_weight_gradient(&columns, gradient, &ids, &totals, slot, config);
                    }
                    add_input_gradient(&gradients, gradient, &weights, &ids, &params, slot, config);
                    let complete = gradients.get(comptime!((slot + 1) % config.taps));
                    if comptime!(i + 1 >= config.taps) || iteration > 0u32 {
                        let t = t - lag;
                        let mut result = complete;
                        if comptime!(config.extras) && params.has(Present::DFINAL) {
                            let column = t + params.history();
                            let mut held = column >= final_end && column - final_end < params.history();
                            if comptime!(config.has_ids) {
                                held = held && ids.get(comptime!((slot + 1) % config.taps)) == final_id;
                            }
                            if held {
                                result += state_channels::<H, C>(
                                    dfinal.unwrap(),
                                    &params,
                                    &segment,
                                    column - final_end,
                                );
                            }
                        }
                        write_step(dx, &dx_strides, &params, &segment, t, result);
                    }
                    if comptime!(config.extras && i + 1 < config.taps) {
                        // Column i of `taps - 1`, the last W-1 of which are the state.
                        let state = iteration == 0u32 && segment.t == 0u32 && params.has(Present::DINITIAL);
                        if state && i as u32 + params.width >= config.taps as u32 {
                            let column = i as u32 + params.width - config.taps as u32;
                            let mut result = complete;
                            let mut held = params.has(Present::DFINAL) && column >= final_end;
                            if comptime!(config.has_ids) {
                                held = held && (final_end == 0u32 || ids.get(0usize) == final_id);
                            }
                            if held {
                                let m = column - final_end;
                                result += state_channels::<H, C>(dfinal.unwrap(), &params, &segment, m);
                            }
                            write_state::<H, C>(dinitial, &params, &segment, column, result);
                        }
                    }
                }
            }
        }
    }
    write_totals(&totals, dw, db, partials, &params, &work, &segment, config);
}

/// Adds the products of the step in `slot` of the ring to the sums of dw and db.
#[cube]
fn add_weight_gradient<I: Int, C: Size>(
    columns: &Registers<Lanes<C>>,
    gradient: Lanes<C>,
    ids: &Registers<I>,
    totals: &Registers<Lanes<C>>,
    #[comptime] slot: usize,
    #[comptime] config: NarrowConfig,
) {
    #[unroll]
    for k in 0..config.taps {
        let column = comptime!((slot + 1 + k) % config.taps);
        let total = fma(gradient, columns.get(column), totals.get(k));
        if comptime!(config.has_ids) {
            // Neighbouring steps of padding have equal ids too.
            let id = ids.get(slot);
            let same = ids.get(column) == id && id >= I::from_int(0);
            totals.set(k, select(same, total, totals.get(k)));
        } else {
            totals.set(k, total);
        }
    }
    totals.set(config.taps, totals.get(config.taps) + gradient);
}

/// Adds the products of `gradient`, that of the step in `slot` of the ring, to dx of the steps that it reads.
#[cube]
fn add_input_gradient<I: Int, C: Size>(
    gradients: &Registers<Lanes<C>>,
    gradient: Lanes<C>,
    weights: &Registers<Lanes<C>>,
    ids: &Registers<I>,
    params: &CallParams,
    #[comptime] slot: usize,
    #[comptime] config: NarrowConfig,
) {
    // Until now the slot was that of the step `taps` before.
    gradients.set(slot, Lanes::<C>::new(0.0f32));
    #[unroll]
    for k in 0..config.taps {
        if comptime!(config.branch_free) || k as u32 + params.width >= config.taps as u32 {
            let read = comptime!((slot + 1 + k) % config.taps);
            let sum = fma(weights.get(k), gradient, gradients.get(read));
            if comptime!(config.has_ids) {
                // The gradient is 0 at padding, but an infinite weight makes its product NaN.
                let id = ids.get(slot);
                let same = ids.get(read) == id && id >= I::from_int(0);
                gradients.set(read, select(same, sum, gradients.get(read)));
            } else {
                gradients.set(read, sum);
            }
        }
    }
}

/// The gradient of column `m` of the final state.
#[cube]
fn state_channels<H: Float, C: Size>(
    dfinal: &Tensor<H>,
    params: &CallParams,
    segment: &TimeSegment,
    m: u32,
) -> Lanes<C> {
    let mut values = Lanes::<C>::new(0.0f32);
    #[unroll]
    for i in 0..C::value() {
        let c = min(segment.c + i as u32, params.channels - 1u32);
        values.insert(i, f32::cast_from(dfinal[state_index(dfinal, segment.b, c, m)]));
    }
    values
}

/// Stores the gradient of column `m` of the initial state.
#[cube]
fn write_state<H: Float, C: Size>(
    dinitial: &mut Tensor<H>,
    params: &CallParams,
    segment: &TimeSegment,
    m: u32,
    values: Lanes<C>,
) {
    #[unroll]
    for i in 0..C::value() {
        let c = segment.c + i as u32;
        if c < params.channels {
            let at = state_index(&*dinitial, segment.b, c, m);
            dinitial[at] = H::cast_from(values.extract(i));
        }
    }
}

/// Adds the sums of the threadgroup's segments in a tree of fixed shape, and stores them: dw and db, or a
/// partial sum.
#[cube]
fn write_totals<W: Float, C: Size>(
    totals: &Registers<Lanes<C>>,
    dw: &mut Tensor<W>,
    db: &mut Tensor<W>,
    partials: &mut Tensor<f32>,
    params: &CallParams,
    work: &BtcWork,
    segment: &TimeSegment,
    #[comptime] config: NarrowConfig,
) {
    let mut shared = Shared::<[Lanes<C>]>::new_slice(config.threads);
    // By the gauge a loop here costs this kernel 9 % more instructions in the main loop on an M1.
    let states = comptime!(config.taps == 8 && config.extras && !config.has_ids);
    if comptime!(config.unroll || states) {
        #[unroll]
        for k in 0..comptime!(config.taps + 1) {
            write_total(totals, k, k as u32, &mut shared, dw, db, partials, params, work, segment, config);
        }
    } else {
        let chosen = Registers::<Lanes<C>>::new(1usize, Lanes::<C>::new(0.0f32));
        for k in 0..comptime!(config.taps as u32 + 1) {
            totals.choose(&chosen, k, 0usize, comptime!(config.taps + 1), 0usize);
            write_total(&chosen, 0usize, k, &mut shared, dw, db, partials, params, work, segment, config);
        }
    }
}

/// Adds and stores element `own` of `sums`, which is of tap `k`, or of the bias behind the taps.
#[cube]
fn write_total<W: Float, C: Size>(
    sums: &Registers<Lanes<C>>,
    #[comptime] own: usize,
    k: u32,
    shared: &mut Shared<[Lanes<C>]>,
    dw: &mut Tensor<W>,
    db: &mut Tensor<W>,
    partials: &mut Tensor<f32>,
    params: &CallParams,
    work: &BtcWork,
    segment: &TimeSegment,
    #[comptime] config: NarrowConfig,
) {
    let thread = UNIT_POS as usize;
    let lanes = work.lane_count as usize;
    shared[thread] = sums.get(own);
    sync_cube();
    let mut half = work.rows / 2u32;
    while half > 0u32 {
        if segment.row < half {
            let other = shared[thread + half as usize * lanes];
            shared[thread] += other;
        }
        sync_cube();
        half /= 2u32;
    }
    if segment.exists && segment.row == 0u32 && k + params.width >= config.taps as u32 {
        let slot = k + params.width - config.taps as u32;
        let total = shared[thread];
        #[unroll]
        for i in 0..C::value() {
            let channel = segment.c + i as u32;
            if channel < params.channels {
                store_total(total.extract(i), dw, db, partials, params, segment.partial, slot, channel);
            }
        }
    }
    // Row 0 has read its sum before the next tap's overwrite it.
    sync_cube();
}
