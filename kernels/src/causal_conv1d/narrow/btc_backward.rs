//! `[B, T, C]` backward in one sweep: steps and channels are shared out as in [`super::along_channels`].
//!
//! ```text
//!   a unit, per step t     the sum again -> gradient before the activation (dpre) -> terms of dw and db
//!                          dx at t - (taps-1), whose readers are the `taps` steps up to t: as x, dpre is a
//!                          ring of registers
//! ```
//!
//! A unit marches `taps - 1` steps past its run, for the dpre that its last steps need, without adding their
//! terms. At the end the runs of a cube are added in shared memory: partial sums of dw and db, or the whole
//! ones where the cube was alone with its channels.
//!
//! Bytes: x, dy and dx once; per cube W + 1 sums for each of its channels. Operations per element: 3 W + 1
//! multiply-adds and the activation's derivative, `taps - 1` steps more per run. Shared memory: 16 bytes per
//! unit.

use super::access::{Quad, Sizes, Strides, quad_of};
use super::bct::{Tile, id_at, last_step, state_index};
use super::btc::{
    ChannelShare, Run, channel_bias, channel_taps, read_history, read_history_ids, read_step, step_sum,
    write_step,
};
use super::sums::store_total;
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
    sizes: Sizes,
    x_strides: Strides,
    dy_strides: Strides,
    dx_strides: Strides,
    share: ChannelShare,
    span: Span,
    #[comptime] tile: Tile,
    #[define(X)] _dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let run = share.run(span.index(), &sizes);
    let totals = Registers::<Quad>::new(comptime!(tile.taps + 1), Quad::new(0.0f32));
    #[unroll]
    for k in 0..comptime!(tile.taps + 1) {
        totals.set(k, Quad::new(0.0f32));
    }
    if run.exists {
        let weights = channel_taps(weight, &sizes, run.c, tile);
        let bias = channel_bias(bias, &sizes, run.c);
        let columns = Registers::<Quad>::new(tile.taps, Quad::new(0.0f32));
        let ahead = Registers::<Quad>::new(tile.taps, Quad::new(0.0f32));
        let ids = Registers::<I>::new(comptime!(if tile.packed { tile.taps } else { 1 }), I::from_int(0));
        read_history(x, &x_strides, initial, &sizes, &run, &columns, tile);
        read_history_ids(seq_idx, &sizes, &run, &ids, tile);
        // Where the final state ends, and whose it is.
        let mut final_end = sizes.length;
        let mut whose = I::from_int(0);
        if comptime!(tile.packed) && sizes.has(Present::DFINAL) {
            let (steps, id) = last_step(seq_idx, &sizes, run.b);
            final_end = steps;
            whose = id;
        }
        let behind = comptime!(tile.taps as u32 - 1);
        let end = min(sizes.length, run.t + share.steps + behind);
        for turn in 0..share.turns + 1u32 {
            // The last turn is only that of the steps past the run.
            let own = turn < share.turns;
            let first = run.t + turn * tile.steps() as u32;
            let mut raw = Sequence::<Vector<X, N>>::new();
            let mut raw_dy = Sequence::<Vector<X, N>>::new();
            #[unroll]
            for i in 0..tile.steps() {
                if comptime!(i % tile.batch == 0) {
                    #[unroll]
                    for j in 0..tile.batch {
                        let t = first + comptime!((i + j) as u32);
                        read_step(x, &x_strides, &sizes, &run, t, end, &mut raw);
                        read_step(dy, &dy_strides, &sizes, &run, t, end, &mut raw_dy);
                    }
                }
                if own || comptime!(i + 1 < tile.taps) {
                    let t = first + i as u32;
                    let place = comptime!(i % tile.taps);
                    // Not even a NaN beyond the row or at padding gets through.
                    let mut counts = t < sizes.length;
                    let column = quad_of::<X, X, N>(&raw, i, 0usize, false);
                    columns.set(place, select(counts, column, Quad::new(0.0f32)));
                    if comptime!(tile.packed) {
                        let id = id_at(seq_idx.unwrap(), &sizes, run.b, t);
                        ids.set(place, id);
                        counts = counts && id >= I::from_int(0);
                    }
                    let pre = step_sum(&columns, &weights, &ids, bias, &sizes, place, tile);
                    let gradient = quad_of::<X, X, N>(&raw_dy, i, 0usize, false);
                    let gradient = activate_gradient_quad(pre, gradient, sizes.activation, tile.straight);
                    let gradient = select(counts, gradient, Quad::new(0.0f32));
                    ahead.set(place, gradient);
                    if own {
                        add_terms(&columns, gradient, &ids, &totals, place, tile);
                    }
                    if comptime!(i + 1 >= tile.taps) || turn > 0u32 {
                        let t = t - behind;
                        let mut result = handed_back(&ahead, &weights, &ids, &sizes, place, tile);
                        if comptime!(tile.extras) && sizes.has(Present::DFINAL) {
                            let column = t + sizes.history();
                            let mut held = column >= final_end && column - final_end < sizes.history();
                            if comptime!(tile.packed) {
                                held = held && ids.get(comptime!((place + 1) % tile.taps)) == whose;
                            }
                            if held {
                                result += state_quad(dfinal.unwrap(), &sizes, &run, column - final_end);
                            }
                        }
                        write_step(dx, &dx_strides, &sizes, &run, t, result);
                    }
                    if comptime!(tile.extras && i + 2 == tile.taps)
                        && t == behind - 1u32
                        && sizes.has(Present::DINITIAL)
                    {
                        let dfinal = dfinal.unwrap();
                        write_initial(
                            &ahead, &weights, &ids, final_end, whose, dfinal, dinitial, &sizes, &run, tile,
                        );
                    }
                }
            }
        }
    }
    write_totals(&totals, dw, db, partials, &sizes, &share, &run, tile);
}

/// Adds the terms of the step at `place` of the ring to the sums of dw and db.
#[cube]
fn add_terms<I: Int>(
    columns: &Registers<Quad>,
    gradient: Quad,
    ids: &Registers<I>,
    totals: &Registers<Quad>,
    #[comptime] place: usize,
    #[comptime] tile: Tile,
) {
    #[unroll]
    for k in 0..tile.taps {
        let column = comptime!((place + 1 + k) % tile.taps);
        let total = fma(gradient, columns.get(column), totals.get(k));
        if comptime!(tile.packed) {
            // Padding has the ids of padding beside it.
            let own = ids.get(place);
            let same = ids.get(column) == own && own >= I::from_int(0);
            totals.set(k, select(same, total, totals.get(k)));
        } else {
            totals.set(k, total);
        }
    }
    totals.set(tile.taps, totals.get(tile.taps) + gradient);
}

/// What the step `taps - 1` before that at `place` of the ring gets back from itself and those that follow
/// it.
#[cube]
fn handed_back<I: Int>(
    ahead: &Registers<Quad>,
    weights: &Registers<Quad>,
    ids: &Registers<I>,
    sizes: &Sizes,
    #[comptime] place: usize,
    #[comptime] tile: Tile,
) -> Quad {
    let own = comptime!((place + 1) % tile.taps);
    let mut result = Quad::new(0.0f32);
    #[unroll]
    for k in 0..tile.taps {
        if comptime!(tile.straight) || k as u32 + sizes.width >= tile.taps as u32 {
            let reader = comptime!((place + tile.taps - k) % tile.taps);
            let sum = fma(weights.get(k), ahead.get(reader), result);
            if comptime!(tile.packed) {
                result = select(ids.get(own) == ids.get(reader), sum, result);
            } else {
                result = sum;
            }
        }
    }
    if comptime!(tile.packed) {
        // Padding reads padding: what it is handed back is 0, unless the weight is infinite.
        result = select(ids.get(own) < I::from_int(0), Quad::new(0.0f32), result);
    }
    result
}

/// The gradient of column `m` of the final state.
#[cube]
fn state_quad<H: Float>(dfinal: &Tensor<H>, sizes: &Sizes, run: &Run, m: u32) -> Quad {
    let mut quad = Quad::new(0.0f32);
    #[unroll]
    for i in 0..4usize {
        let c = min(run.c + i as u32, sizes.channels - 1u32);
        quad.insert(i, f32::cast_from(dfinal[state_index(dfinal, run.b, c, m)]));
    }
    quad
}

/// The gradient of the initial state from that of the row's first `taps - 1` steps, which stand at the ring's
/// first places.
#[cube]
#[allow(clippy::too_many_arguments)]
fn write_initial<H: Float, I: Int>(
    ahead: &Registers<Quad>,
    weights: &Registers<Quad>,
    ids: &Registers<I>,
    end: u32,
    own: I,
    dfinal: &Tensor<H>,
    dinitial: &mut Tensor<H>,
    sizes: &Sizes,
    run: &Run,
    #[comptime] tile: Tile,
) {
    // Column m of `taps - 1`, the last W-1 of which are the state.
    #[unroll]
    for m in 0..comptime!(tile.taps - 1) {
        if m as u32 + sizes.width >= tile.taps as u32 {
            let column = m as u32 + sizes.width - tile.taps as u32;
            let mut sum = Quad::new(0.0f32);
            #[unroll]
            for k in 0..comptime!(m + 1) {
                if k as u32 + sizes.width >= tile.taps as u32 {
                    let next = fma(weights.get(k), ahead.get(comptime!(m - k)), sum);
                    if comptime!(tile.packed) {
                        // The state belongs to the first step's sequence.
                        let first = ids.get(0usize);
                        let same = first == ids.get(comptime!(m - k)) && first >= I::from_int(0);
                        sum = select(same, next, sum);
                    } else {
                        sum = next;
                    }
                }
            }
            let mut held = sizes.has(Present::DFINAL) && column >= end;
            if comptime!(tile.packed) {
                held = held && (end == 0u32 || ids.get(0usize) == own);
            }
            if held {
                sum += state_quad(dfinal, sizes, run, column - end);
            }
            #[unroll]
            for i in 0..4usize {
                let c = run.c + i as u32;
                if c < sizes.channels {
                    let at = state_index(&*dinitial, run.b, c, column);
                    dinitial[at] = H::cast_from(sum.extract(i));
                }
            }
        }
    }
}

/// Adds the sums of the cube's runs, a tree of fixed shape, and writes them: whole, or as the cube's part.
#[cube]
#[allow(clippy::too_many_arguments)]
fn write_totals<W: Float>(
    totals: &Registers<Quad>,
    dw: &mut Tensor<W>,
    db: &mut Tensor<W>,
    partials: &mut Tensor<f32>,
    sizes: &Sizes,
    share: &ChannelShare,
    run: &Run,
    #[comptime] tile: Tile,
) {
    let mut shared = Shared::<[Quad]>::new_slice(tile.units);
    let unit = UNIT_POS as usize;
    let lanes = share.lane_count as usize;
    #[unroll]
    for k in 0..comptime!(tile.taps + 1) {
        shared[unit] = totals.get(k);
        sync_cube();
        let mut half = share.rows / 2u32;
        while half > 0u32 {
            if run.row < half {
                let other = shared[unit + half as usize * lanes];
                shared[unit] += other;
            }
            sync_cube();
            half /= 2u32;
        }
        if run.exists && run.row == 0u32 && k as u32 + sizes.width >= tile.taps as u32 {
            let slot = k as u32 + sizes.width - tile.taps as u32;
            let total = shared[unit];
            #[unroll]
            for i in 0..4usize {
                let channel = run.c + i as u32;
                if channel < sizes.channels {
                    store_total(total.extract(i), dw, db, partials, sizes, run.part, slot, channel);
                }
            }
        }
        // What has been added up is read before the next sums come.
        sync_cube();
    }
}
