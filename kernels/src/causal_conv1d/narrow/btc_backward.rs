//! Backward pass in `[B, T, C]` layout, all gradients in one sweep forward in time.
//!
//! ```text
//! dpre[t] = dy[t] * activation'(sum[t])
//! dw[k]  += sum over t of dpre[t] * X(t - (W-1) + k)       db += sum over t of dpre[t]
//! dx[t]   = sum over k of w[k] * dpre[t + (W-1) - k]
//!
//!   thread, step t     recompute sum -> dpre -> dw, db in registers
//!                      dx of step t - (taps-1), which needs dpre of the `taps` steps up to t
//!   register rings     x and dpre of the last `taps` steps: step t is in slot t mod taps
//!
//!   segment            | history | ----- segment ----- | taps-1 steps |    after it: dpre only, no dw
//! ```
//!
//! Segments and channels are assigned as in [`super::btc`]. At the end a threadgroup adds its segments' sums
//! in shared memory: partial sums of dw and db ([`super::reduce`]), or dw and db themselves where it has all
//! steps of its channels.
//!
//! HBM traffic: x, dy and dx once; W + 1 floats per threadgroup and channel. Work per element: 3 W + 1 FMA
//! and the activation's derivative, for `taps - 1` more steps per segment. Shared memory: 16 bytes per
//! thread. Any strides; declined: widths above 8.

use super::access::{CallParams, Quad, Strides, quad_of_slice};
use super::bct::{NarrowConfig, id_at, last_step, state_index};
use super::btc::{
    BtcWork, TimeSegment, channel_bias, channel_taps, read_history, read_history_ids, read_step,
    step_pre_activation, write_step,
};
use super::reduce::store_total;
use crate::activation::activate_gradient_quad;
use crate::causal_conv1d::args::Present;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn channels_backward_kernel<X: Float, W: Float, H: Float, I: Int, N: Size>(
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
    let segment = work.segment(span.index(), &params);
    let totals = Registers::<Quad>::new(comptime!(config.taps + 1), Quad::new(0.0f32));
    #[unroll]
    for k in 0..comptime!(config.taps + 1) {
        totals.set(k, Quad::new(0.0f32));
    }
    if segment.exists {
        let weights = channel_taps(weight, &params, segment.c, config);
        let bias = channel_bias(bias, &params, segment.c);
        let columns = Registers::<Quad>::new(config.taps, Quad::new(0.0f32));
        let dpre = Registers::<Quad>::new(config.taps, Quad::new(0.0f32));
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
                        read_step(x, &x_strides, &params, &segment, t, end, &mut raw);
                        read_step(dy, &dy_strides, &params, &segment, t, end, &mut raw_dy);
                    }
                }
                if in_segment || comptime!(i + 1 < config.taps) {
                    let t = first + i as u32;
                    let slot = comptime!(i % config.taps);
                    // `select` keeps out NaN loaded past the row or at padding.
                    let mut valid = t < params.length;
                    let column = quad_of_slice::<X, X, N>(&raw, i, 0usize, false);
                    columns.set(slot, select(valid, column, Quad::new(0.0f32)));
                    if comptime!(config.has_ids) {
                        let id = id_at(seq_idx.unwrap(), &params, segment.b, t);
                        ids.set(slot, id);
                        valid = valid && id >= I::from_int(0);
                    }
                    let pre = step_pre_activation(&columns, &weights, &ids, bias, &params, slot, config);
                    let gradient = quad_of_slice::<X, X, N>(&raw_dy, i, 0usize, false);
                    let gradient =
                        activate_gradient_quad(pre, gradient, params.activation, config.branch_free);
                    let gradient = select(valid, gradient, Quad::new(0.0f32));
                    dpre.set(slot, gradient);
                    if in_segment {
                        add_weight_gradient(&columns, gradient, &ids, &totals, slot, config);
                    }
                    if comptime!(i + 1 >= config.taps) || iteration > 0u32 {
                        let t = t - lag;
                        let mut result = input_gradient(&dpre, &weights, &ids, &params, slot, config);
                        if comptime!(config.extras) && params.has(Present::DFINAL) {
                            let column = t + params.history();
                            let mut held = column >= final_end && column - final_end < params.history();
                            if comptime!(config.has_ids) {
                                held = held && ids.get(comptime!((slot + 1) % config.taps)) == final_id;
                            }
                            if held {
                                result += state_quad(dfinal.unwrap(), &params, &segment, column - final_end);
                            }
                        }
                        write_step(dx, &dx_strides, &params, &segment, t, result);
                    }
                    if comptime!(config.extras && i + 2 == config.taps)
                        && t == lag - 1u32
                        && params.has(Present::DINITIAL)
                    {
                        let dfinal = dfinal.unwrap();
                        write_initial_gradient(
                            &dpre, &weights, &ids, final_end, final_id, dfinal, dinitial, &params, &segment,
                            config,
                        );
                    }
                }
            }
        }
    }
    write_totals(&totals, dw, db, partials, &params, &work, &segment, config);
}

/// Adds the products of the step in `slot` of the ring to the sums of dw and db.
#[cube]
fn add_weight_gradient<I: Int>(
    columns: &Registers<Quad>,
    gradient: Quad,
    ids: &Registers<I>,
    totals: &Registers<Quad>,
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

/// dx of the step `taps - 1` before the one in `slot` of the ring.
#[cube]
fn input_gradient<I: Int>(
    dpre: &Registers<Quad>,
    weights: &Registers<Quad>,
    ids: &Registers<I>,
    params: &CallParams,
    #[comptime] slot: usize,
    #[comptime] config: NarrowConfig,
) -> Quad {
    let own = comptime!((slot + 1) % config.taps);
    let mut result = Quad::new(0.0f32);
    #[unroll]
    for k in 0..config.taps {
        if comptime!(config.branch_free) || k as u32 + params.width >= config.taps as u32 {
            let reader = comptime!((slot + config.taps - k) % config.taps);
            let sum = fma(weights.get(k), dpre.get(reader), result);
            if comptime!(config.has_ids) {
                result = select(ids.get(own) == ids.get(reader), sum, result);
            } else {
                result = sum;
            }
        }
    }
    if comptime!(config.has_ids) {
        // dpre is 0 at padding, but an infinite weight makes its product NaN.
        result = select(ids.get(own) < I::from_int(0), Quad::new(0.0f32), result);
    }
    result
}

/// The gradient of column `m` of the final state.
#[cube]
fn state_quad<H: Float>(dfinal: &Tensor<H>, params: &CallParams, segment: &TimeSegment, m: u32) -> Quad {
    let mut quad = Quad::new(0.0f32);
    #[unroll]
    for i in 0..4usize {
        let c = min(segment.c + i as u32, params.channels - 1u32);
        quad.insert(i, f32::cast_from(dfinal[state_index(dfinal, segment.b, c, m)]));
    }
    quad
}

/// Stores the gradient of the initial state: from dpre of the row's first `taps - 1` steps, which are in the
/// ring's first slots, and from the gradient of the final state where that still holds columns of the initial
/// one.
#[cube]
fn write_initial_gradient<H: Float, I: Int>(
    dpre: &Registers<Quad>,
    weights: &Registers<Quad>,
    ids: &Registers<I>,
    end: u32,
    final_id: I,
    dfinal: &Tensor<H>,
    dinitial: &mut Tensor<H>,
    params: &CallParams,
    segment: &TimeSegment,
    #[comptime] config: NarrowConfig,
) {
    // Column m of `taps - 1`, the last W-1 of which are the state.
    #[unroll]
    for m in 0..comptime!(config.taps - 1) {
        if m as u32 + params.width >= config.taps as u32 {
            let column = m as u32 + params.width - config.taps as u32;
            let mut sum = Quad::new(0.0f32);
            #[unroll]
            for k in 0..comptime!(m + 1) {
                if k as u32 + params.width >= config.taps as u32 {
                    let next = fma(weights.get(k), dpre.get(comptime!(m - k)), sum);
                    if comptime!(config.has_ids) {
                        // The initial state belongs to the first step's sequence.
                        let first = ids.get(0usize);
                        let same = first == ids.get(comptime!(m - k)) && first >= I::from_int(0);
                        sum = select(same, next, sum);
                    } else {
                        sum = next;
                    }
                }
            }
            let mut held = params.has(Present::DFINAL) && column >= end;
            if comptime!(config.has_ids) {
                held = held && (end == 0u32 || ids.get(0usize) == final_id);
            }
            if held {
                sum += state_quad(dfinal, params, segment, column - end);
            }
            #[unroll]
            for i in 0..4usize {
                let c = segment.c + i as u32;
                if c < params.channels {
                    let at = state_index(&*dinitial, segment.b, c, column);
                    dinitial[at] = H::cast_from(sum.extract(i));
                }
            }
        }
    }
}

/// Adds the sums of the threadgroup's segments in a tree of fixed shape, and stores them: dw and db, or a
/// partial sum.
#[cube]
fn write_totals<W: Float>(
    totals: &Registers<Quad>,
    dw: &mut Tensor<W>,
    db: &mut Tensor<W>,
    partials: &mut Tensor<f32>,
    params: &CallParams,
    work: &BtcWork,
    segment: &TimeSegment,
    #[comptime] config: NarrowConfig,
) {
    let mut shared = Shared::<[Quad]>::new_slice(config.threads);
    let thread = UNIT_POS as usize;
    let lanes = work.lane_count as usize;
    #[unroll]
    for k in 0..comptime!(config.taps + 1) {
        shared[thread] = totals.get(k);
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
        if segment.exists && segment.row == 0u32 && k as u32 + params.width >= config.taps as u32 {
            let slot = k as u32 + params.width - config.taps as u32;
            let total = shared[thread];
            #[unroll]
            for i in 0..4usize {
                let channel = segment.c + i as u32;
                if channel < params.channels {
                    store_total(total.extract(i), dw, db, partials, params, segment.partial, slot, channel);
                }
            }
        }
        // Row 0 has read its sum before the next tap's overwrite it.
        sync_cube();
    }
}
