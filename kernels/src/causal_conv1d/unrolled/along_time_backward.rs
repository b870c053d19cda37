//! `[B, C, T]` backward in one sweep: rows are shared out as in [`super::along_time`].
//!
//! ```text
//!   turn of a cube      <- | runs of this turn | halo |      from the end of the row to its beginning
//!   a unit, per run        the sums again -> gradient before the activation (dpre) -> its terms of dw and db, in registers
//!                          dpre -> shared memory -> dpre of the W-1 steps that follow -> dx
//! ```
//!
//! The halo are the first runs of the turn before, kept in shared memory; a segment that ends within a row begins with the
//! turn after it, of which it computes dpre only. A cube works through some segments of its channels, then adds its units'
//! sums: partial sums of dw and db, or the whole ones where it was alone with its channels.
//!
//! Bytes: x, dy and dx once; per cube W + 1 sums for each of its channels. Operations per element: 3 W + 1 multiply-adds and
//! the activation's derivative. Shared memory: 16 or 32 bytes per run, 4 (taps + 1) per unit: 16 KiB at most.

use super::access::{Quad, Sizes, Strides, quad_of, read_run, read_taps, write_run};
use super::along_time::{Tile, TimeShare, columns, ids_from, read_runs, state_index, sums};
use super::sums::store_total;
use crate::activation::activate_gradient_all;
use crate::causal_conv1d::args::Present;
use crate::cells::Cells;
use crate::grid::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn backward_kernel<X: Float, S: Numeric, W: Float, I: Int, N: Size>(
    x: &[Vector<S, N>],
    dy: &[Vector<S, N>],
    weight: &[W],
    bias: &[W],
    initial: ComptimeOption<&Tensor<X>>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    dfinal: ComptimeOption<&Tensor<X>>,
    dx: &mut [Vector<S, N>],
    dinitial: &mut Tensor<X>,
    dw: &mut Tensor<W>,
    db: &mut Tensor<W>,
    partials: &mut Tensor<f32>,
    sizes: Sizes,
    x_strides: Strides,
    dy_strides: Strides,
    dx_strides: Strides,
    share: TimeShare,
    span: Span,
    #[comptime] tile: Tile,
    #[define(X)] _dtype: ElemType,
    #[define(S)] _memory: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let (part, group) = share.groups.div_mod(span.cube() as u32);
    let (row_of_cube, lane, channel) = share.place(group);
    let exists = channel < sizes.channels;
    let c = min(channel, sizes.channels - 1u32);
    let before = comptime!(4 * tile.before());
    let weights = read_taps(weight, &sizes, c, tile.taps);
    let offset = sizes.bias_of(bias, c);
    let totals = Cells::<f32>::new(comptime!(tile.taps + 1), 0.0f32);
    #[unroll]
    for k in 0..comptime!(tile.taps + 1) {
        totals.set(k, 0.0f32);
    }
    // Gradients before the activation: the first quads of every run of this turn, and those of the first runs of this turn and
    // the one before.
    let run = comptime!(tile.run());
    let heads = comptime!(if tile.wide { tile.before() } else { 1 });
    let places = comptime!(tile.units * tile.together);
    let runs_per_turn = share.lane_count * tile.together as u32;
    let shared_row = row_of_cube * runs_per_turn;
    let halo_row = row_of_cube * comptime!(tile.before() as u32);
    let halo_length = comptime!((tile.units / 4 * tile.before()) as u32);
    let mut gradients = Shared::<[Quad]>::new_slice(comptime!(places * heads));
    let mut halo = Shared::<[Quad]>::new_slice(comptime!(tile.units / 2 * tile.before()));
    let mut side = 0u32;

    let last = min((part + 1u32) * share.items_per_cube, share.items);
    for item in part * share.items_per_cube..last {
        let (b, segment) = share.cuts.div_mod(item);
        let first_turn = segment * share.turns;
        let end_turn = min(first_turn + share.turns, share.turns_of_row);
        // A segment in the middle of a row begins with the turn after it, for its halo.
        let halo_turns = select(end_turn < share.turns_of_row, 1u32, 0u32);
        if lane < comptime!(tile.before() as u32) {
            halo[((1u32 - side) * halo_length + halo_row + lane) as usize] = Quad::new(0.0f32);
        }
        for back in 0..end_turn - first_turn + halo_turns {
            let turn = end_turn + halo_turns - 1u32 - back;
            let own = turn < end_turn;
            let first = turn * runs_per_turn + lane;
            let mut raw = Sequence::<Vector<S, N>>::new();
            let mut raw_dy = Sequence::<Vector<S, N>>::new();
            #[unroll]
            for u in 0..tile.together {
                let index = first + u as u32 * share.lane_count;
                read_runs(x, &x_strides, &sizes, b, c, index, &mut raw, tile);
                let row = dy_strides.row(b, c);
                read_run(dy, row, dy_strides.t, index * run as u32, sizes.length, &mut raw_dy, tile.wide);
            }
            // ahead[u * (before + run) ..]: gradients of the unit's run and of those that follow it.
            let ahead = Cells::<f32>::new(comptime!(tile.together * (before + run)), 0.0f32);
            #[unroll]
            for u in 0..tile.together {
                let index = first + u as u32 * share.lane_count;
                let step = index * run as u32;
                let columns = columns::<X, S, N>(&raw, initial, &sizes, b, c, index, u, tile);
                let ids = ids_from(seq_idx, &sizes, b, step - before as u32, comptime!(before + run));
                let pre = sums(&columns, &weights, &ids, offset, &sizes, tile);
                let gradient = Cells::<f32>::new(run, 0.0f32);
                #[unroll]
                for q in 0..comptime!(run / 4) {
                    let quad = quad_of::<X, S, N>(&raw_dy, u, q, tile.wide);
                    #[unroll]
                    for i in 0..4usize {
                        gradient.set(comptime!(4 * q + i), quad.extract(i));
                    }
                }
                activate_gradient_all(&pre, &gradient, run, sizes.activation, tile.straight);
                let together = N::value();
                #[unroll]
                for i in 0..run {
                    // Selects, so that not even a NaN beside the row or at padding gets through. Vectors end where rows end.
                    let mut counts = step < sizes.length;
                    if comptime!(together != 4) {
                        counts = step + (i as u32) < sizes.length;
                    }
                    if comptime!(tile.packed) {
                        counts = counts && *ids.index(comptime!(before + i)) >= I::from_int(0);
                    }
                    let value = select(counts, gradient.get(i), 0.0f32);
                    gradient.set(i, value);
                    ahead.set(comptime!(u * (before + run) + i), value);
                }
                let place = lane + u as u32 * share.lane_count;
                #[unroll]
                for q in 0..heads {
                    let mut passed = Quad::new(0.0f32);
                    #[unroll]
                    for i in 0..4usize {
                        passed.insert(i, gradient.get(comptime!(4 * q + i)));
                    }
                    gradients[(shared_row + place) as usize + comptime!(q * places)] = passed;
                    if place < comptime!(tile.runs_before() as u32) {
                        halo[(side * halo_length + halo_row + place + q as u32) as usize] = passed;
                    }
                }
                if own && exists && step < sizes.length {
                    add_terms(&columns, &gradient, &ids, &totals, tile);
                }
            }
            sync_cube();
            #[unroll]
            for u in 0..tile.together {
                let index = first + u as u32 * share.lane_count;
                let step = index * run as u32;
                let place = lane + u as u32 * share.lane_count;
                #[unroll]
                for p in 0..tile.before() {
                    // Quad p after the run: of the run that follows it, or the first of the p-th.
                    let head = comptime!(if tile.wide { p } else { 0 });
                    let next = place + comptime!(if tile.wide { 1u32 } else { p as u32 + 1 });
                    let inside = (shared_row + min(next, runs_per_turn - 1u32)) as usize;
                    let mut following = gradients[inside + comptime!(head * places)];
                    if next >= runs_per_turn {
                        let at = (1u32 - side) * halo_length + halo_row + next - runs_per_turn + head as u32;
                        following = halo[at as usize];
                    }
                    #[unroll]
                    for i in 0..4usize {
                        ahead.set(comptime!(u * (before + run) + run + 4 * p + i), following.extract(i));
                    }
                }
                if own && exists {
                    let ids = ids_from(seq_idx, &sizes, b, step, comptime!(before + run));
                    let offset = comptime!(u * (before + run));
                    let results = handed_back(&ahead, &weights, &ids, &sizes, offset, tile);
                    if comptime!(tile.extras) && sizes.has(Present::DFINAL) {
                        add_final(&results, dfinal.unwrap(), &sizes, b, c, step, tile);
                    }
                    let row = dx_strides.row(b, c);
                    write_run::<X, S, N>(dx, row, dx_strides.t, step, sizes.length, &results, tile.wide);
                    if comptime!(tile.extras) && index == 0u32 && sizes.has(Present::DINITIAL) {
                        let dfinal = dfinal.unwrap();
                        write_initial(&ahead, &weights, &ids, dfinal, dinitial, &sizes, b, c, offset, tile);
                    }
                }
            }
            // What was passed on has been read.
            sync_cube();
            side = 1u32 - side;
        }
    }
    write_totals(&totals, dw, db, partials, &sizes, &share, part, lane, channel, tile);
}

/// Adds the terms of a run to the sums of dw and db.
#[cube]
fn add_terms<I: Int>(
    columns: &Cells<f32>,
    gradient: &Cells<f32>,
    ids: &Sequence<I>,
    totals: &Cells<f32>,
    #[comptime] tile: Tile,
) {
    let own = comptime!(4 * tile.before());
    let run = comptime!(tile.run());
    #[unroll]
    for k in 0..tile.taps {
        #[unroll]
        for i in 0..run {
            let column = comptime!(own + i + 1 + k - tile.taps);
            let total = fma(gradient.get(i), columns.get(column), totals.get(k));
            if comptime!(tile.packed) {
                // Padding has the ids of padding beside it.
                let own = *ids.index(comptime!(own + i));
                let same = *ids.index(column) == own && own >= I::from_int(0);
                totals.set(k, select(same, total, totals.get(k)));
            } else {
                totals.set(k, total);
            }
        }
    }
    #[unroll]
    for i in 0..run {
        totals.set(tile.taps, totals.get(tile.taps) + gradient.get(i));
    }
}

/// What the steps from a run on hand back to it: `ahead[offset..]` and `ids` begin with the run's own.
#[cube]
fn handed_back<I: Int>(
    ahead: &Cells<f32>,
    weights: &Cells<f32>,
    ids: &Sequence<I>,
    sizes: &Sizes,
    #[comptime] offset: usize,
    #[comptime] tile: Tile,
) -> Cells<f32> {
    let run = comptime!(tile.run());
    let results = Cells::<f32>::new(run, 0.0f32);
    #[unroll]
    for i in 0..run {
        results.set(i, 0.0f32);
    }
    #[unroll]
    for k in 0..tile.taps {
        if comptime!(tile.straight) || k as u32 + sizes.width >= tile.taps as u32 {
            #[unroll]
            for i in 0..run {
                let reader = comptime!(i + tile.taps - 1 - k);
                let sum = fma(weights.get(k), ahead.get(comptime!(offset + reader)), results.get(i));
                if comptime!(tile.packed) {
                    let same = *ids.index(i) == *ids.index(reader);
                    results.set(i, select(same, sum, results.get(i)));
                } else {
                    results.set(i, sum);
                }
            }
        }
    }
    results
}

/// Adds the gradient of the final state to those steps of the run from `first` on that it holds.
#[cube]
fn add_final<X: Float>(
    results: &Cells<f32>,
    dfinal: &Tensor<X>,
    sizes: &Sizes,
    b: u32,
    c: u32,
    first: u32,
    #[comptime] tile: Tile,
) {
    #[unroll]
    for i in 0..comptime!(tile.run()) {
        let column = first + i as u32 + sizes.history();
        if column >= sizes.length && column - sizes.length < sizes.history() {
            results.set(
                i,
                results.get(i) + f32::cast_from(dfinal[state_index(dfinal, b, c, column - sizes.length)]),
            );
        }
    }
}

/// The gradient of the initial state from that of the row's first steps.
#[cube]
#[allow(clippy::too_many_arguments)]
fn write_initial<X: Float, I: Int>(
    ahead: &Cells<f32>,
    weights: &Cells<f32>,
    ids: &Sequence<I>,
    dfinal: &Tensor<X>,
    dinitial: &mut Tensor<X>,
    sizes: &Sizes,
    b: u32,
    c: u32,
    #[comptime] offset: usize,
    #[comptime] tile: Tile,
) {
    // Column m of `taps - 1`, the last W-1 of which are the state.
    #[unroll]
    for m in 0..comptime!(tile.taps - 1) {
        if m as u32 + sizes.width >= tile.taps as u32 {
            let column = m as u32 + sizes.width - tile.taps as u32;
            let mut sum = 0.0f32;
            #[unroll]
            for k in 0..comptime!(m + 1) {
                if k as u32 + sizes.width >= tile.taps as u32 {
                    let next = fma(weights.get(k), ahead.get(comptime!(offset + m - k)), sum);
                    if comptime!(tile.packed) {
                        // The state belongs to the first step's sequence.
                        let same = *ids.index(0) == *ids.index(comptime!(m - k));
                        sum = select(same, next, sum);
                    } else {
                        sum = next;
                    }
                }
            }
            if sizes.has(Present::DFINAL) && column >= sizes.length {
                sum += f32::cast_from(dfinal[state_index(dfinal, b, c, column - sizes.length)]);
            }
            let at = state_index(&*dinitial, b, c, column);
            dinitial[at] = X::cast_from(sum);
        }
    }
}

/// Adds the sums of a row's units, a tree of fixed shape, and writes them: whole, or as the cube's part.
#[cube]
#[allow(clippy::too_many_arguments)]
fn write_totals<W: Float>(
    totals: &Cells<f32>,
    dw: &mut Tensor<W>,
    db: &mut Tensor<W>,
    partials: &mut Tensor<f32>,
    sizes: &Sizes,
    share: &TimeShare,
    part: u32,
    lane: u32,
    channel: u32,
    #[comptime] tile: Tile,
) {
    let mut shared = Shared::<[f32]>::new_slice(comptime!((tile.taps + 1) * tile.units));
    let unit = UNIT_POS as usize;
    #[unroll]
    for k in 0..comptime!(tile.taps + 1) {
        shared[unit + comptime!(k * tile.units)] = totals.get(k);
    }
    sync_cube();
    let mut half = share.lane_count / 2u32;
    while half > 0u32 {
        if lane < half {
            #[unroll]
            for k in 0..comptime!(tile.taps + 1) {
                let at = unit + comptime!(k * tile.units);
                shared[at] += shared[at + half as usize];
            }
        }
        sync_cube();
        half /= 2u32;
    }
    if lane == 0u32 && channel < sizes.channels {
        #[unroll]
        for k in 0..comptime!(tile.taps + 1) {
            if k as u32 + sizes.width >= tile.taps as u32 {
                let slot = k as u32 + sizes.width - tile.taps as u32;
                let total = shared[unit + comptime!(k * tile.units)];
                store_total(total, dw, db, partials, sizes, part, slot, channel);
            }
        }
    }
}
