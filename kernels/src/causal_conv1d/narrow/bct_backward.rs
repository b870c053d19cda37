//! `[B, C, T]` backward in one sweep: rows are shared out as in [`super::along_time`].
//!
//! ```text
//!   turn of a cube      <- | runs of this turn | halo |      from the end of the row to its beginning
//!   a unit, per run        the sums again -> gradient before the activation (dpre)
//!                          -> its terms of dw and db, in registers
//!                          dpre -> shared memory -> dpre of the W-1 steps that follow -> dx
//! ```
//!
//! The halo are the first runs of the turn before, kept in shared memory; a segment that ends within a row
//! begins with the turn after it, of which it computes dpre only. A cube works through some segments of its
//! channels, then adds its units' sums: partial sums of dw and db, or the whole ones where it was alone with
//! its channels.
//!
//! In 16 bits memory and arithmetic take about as long as each other: the reads of a turn begin before the
//! turn before it computes, which saves 4 % on an H200, and cubes are smaller, so that fewer units wait for
//! each other. In 32 bits, where memory is all, reading ahead saved nothing.
//!
//! Bytes: x, dy and dx once; per cube W + 1 sums for each of its channels. Operations per element: 3 W + 1
//! multiply-adds and the activation's derivative. Shared memory: 16 or 32 bytes per run, 4 (taps + 1) per
//! unit: 16 KiB at most.

use super::access::{Quad, Sizes, Strides, quad_of, read_run, read_taps, write_run};
use super::bct::{Tile, TimeShare, columns, ids_from, last_step, read_runs, sums};
use super::run_gradient::{add_final, add_terms, handed_back, write_initial};
use super::sums::store_total;
use crate::activation::activate_gradient_all;
use crate::causal_conv1d::args::Present;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn backward_kernel<X: Float, S: Numeric, W: Float, H: Float, I: Int, N: Size>(
    x: &[Vector<S, N>],
    dy: &[Vector<S, N>],
    weight: &[W],
    bias: &[W],
    initial: ComptimeOption<&Tensor<H>>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    dfinal: ComptimeOption<&Tensor<H>>,
    dx: &mut [Vector<S, N>],
    dinitial: &mut Tensor<H>,
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
    #[define(H)] _state_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let (part, group) = share.groups.div_mod(span.index() as u32);
    let (row_of_cube, lane, channel) = share.place(group);
    let exists = channel < sizes.channels;
    let c = min(channel, sizes.channels - 1u32);
    let before = comptime!(4 * tile.before());
    let weights = read_taps(weight, &sizes, c, tile.taps);
    let offset = sizes.bias_of(bias, c);
    let totals = Registers::<f32>::new(comptime!(tile.taps + 1), 0.0f32);
    #[unroll]
    for k in 0..comptime!(tile.taps + 1) {
        totals.set(k, 0.0f32);
    }
    // Gradients before the activation: the first quads of every run of this turn, and those of the first runs
    // of this turn and the one before.
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
    let mut item = part * share.items_per_cube;
    let mut back = 0u32;
    // What the first turn reads, where reads are early; nothing else.
    let mut read = Sequence::<Vector<S, N>>::new();
    let mut read_dy = Sequence::<Vector<S, N>>::new();
    if comptime!(tile.early) {
        let at = turn_of(&share, item, back);
        read_turn(
            x,
            &x_strides,
            dy,
            &dy_strides,
            &sizes,
            &share,
            &at,
            lane,
            c,
            &mut read,
            &mut read_dy,
            tile,
        );
    }
    let held = Registers::<Vector<S, N>>::from_values(&read);
    let held_dy = Registers::<Vector<S, N>>::from_values(&read_dy);
    while item < last {
        if back == 0u32 && lane < comptime!(tile.before() as u32) {
            halo[((1u32 - side) * halo_length + halo_row + lane) as usize] = Quad::new(0.0f32);
        }
        let at = turn_of(&share, item, back);
        let (b, own) = (at.b, at.own);
        let first = at.turn * runs_per_turn + lane;
        let next_item = select(at.ends, item + 1u32, item);
        let next_back = select(at.ends, 0u32, back + 1u32);
        let mut raw = held.values();
        let mut raw_dy = held_dy.values();
        let mut read = Sequence::<Vector<S, N>>::new();
        let mut read_dy = Sequence::<Vector<S, N>>::new();
        if comptime!(tile.early) {
            // After the last turn its own reads once more.
            let over = next_item >= last;
            let next = turn_of(&share, select(over, item, next_item), select(over, back, next_back));
            read_turn(
                x,
                &x_strides,
                dy,
                &dy_strides,
                &sizes,
                &share,
                &next,
                lane,
                c,
                &mut read,
                &mut read_dy,
                tile,
            );
        } else {
            read_turn(
                x,
                &x_strides,
                dy,
                &dy_strides,
                &sizes,
                &share,
                &at,
                lane,
                c,
                &mut raw,
                &mut raw_dy,
                tile,
            );
        }
        // ahead[u * (before + run) ..]: gradients of the unit's run and of those that follow it.
        let ahead = Registers::<f32>::new(comptime!(tile.together * (before + run)), 0.0f32);
        #[unroll]
        for u in 0..tile.together {
            let index = first + u as u32 * share.lane_count;
            let step = index * run as u32;
            let columns = columns::<X, H, S, N>(&raw, initial, &sizes, b, c, index, u, tile);
            let ids = ids_from(seq_idx, &sizes, b, step - before as u32, comptime!(before + run));
            let pre = sums(&columns, &weights, &ids, offset, &sizes, tile);
            let gradient = Registers::<f32>::new(run, 0.0f32);
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
                // Selects, so that not even a NaN beside the row or at padding gets through. Vectors end
                // where rows end.
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
                // Where the final state ends, and whose it is.
                let mut end = sizes.length;
                let mut whose = I::from_int(0);
                if comptime!(tile.packed) && sizes.has(Present::DFINAL) {
                    let (steps, id) = last_step(seq_idx, &sizes, b);
                    end = steps;
                    whose = id;
                }
                let results = handed_back(&ahead, &weights, &ids, &sizes, offset, tile);
                if comptime!(tile.extras) && sizes.has(Present::DFINAL) {
                    let dfinal = dfinal.unwrap();
                    add_final(&results, &ids, end, whose, dfinal, &sizes, b, c, step, tile);
                }
                let row = dx_strides.row(b, c);
                write_run::<X, S, N>(dx, row, dx_strides.t, step, sizes.length, &results, tile.wide);
                if comptime!(tile.extras) && index == 0u32 && sizes.has(Present::DINITIAL) {
                    let dfinal = dfinal.unwrap();
                    write_initial(
                        &ahead, &weights, &ids, end, whose, dfinal, dinitial, &sizes, b, c, offset, tile,
                    );
                }
            }
        }
        // What was passed on has been read.
        sync_cube();
        side = 1u32 - side;
        held.set_all(&read);
        held_dy.set_all(&read_dy);
        item = next_item;
        back = next_back;
    }
    write_totals(&totals, dw, db, partials, &sizes, &share, part, lane, channel, tile);
}

/// A turn of a cube.
#[derive(CubeType, Clone, Copy)]
struct Turn {
    b: u32,
    /// Counted from the beginning of the row.
    turn: u32,
    /// Whether it belongs to the segment; else it is there for its halo.
    own: bool,
    /// Whether it is the segment's last.
    ends: bool,
}

/// The turn that comes `back` turns after the first of an item. A segment in the middle of a row begins with
/// the turn after it, for its halo.
#[cube]
fn turn_of(share: &TimeShare, item: u32, back: u32) -> Turn {
    let (b, segment) = share.cuts.div_mod(item);
    let first_turn = segment * share.turns;
    let end_turn = min(first_turn + share.turns, share.turns_of_row);
    let turn = end_turn + select(end_turn < share.turns_of_row, 1u32, 0u32) - 1u32 - back;
    Turn { b, turn, own: turn < end_turn, ends: turn == first_turn }
}

/// Reads what a turn needs of x and dy.
#[cube]
#[allow(clippy::too_many_arguments)]
fn read_turn<S: Numeric, N: Size>(
    x: &[Vector<S, N>],
    x_strides: &Strides,
    dy: &[Vector<S, N>],
    dy_strides: &Strides,
    sizes: &Sizes,
    share: &TimeShare,
    at: &Turn,
    lane: u32,
    c: u32,
    raw: &mut Sequence<Vector<S, N>>,
    raw_dy: &mut Sequence<Vector<S, N>>,
    #[comptime] tile: Tile,
) {
    #[unroll]
    for u in 0..tile.together {
        let index = (at.turn * tile.together as u32 + u as u32) * share.lane_count + lane;
        read_runs(x, x_strides, sizes, at.b, c, index, raw, tile);
        let row = dy_strides.row(at.b, c);
        let step = index * comptime!(tile.run() as u32);
        read_run(dy, row, dy_strides.t, step, sizes.length, raw_dy, tile.wide);
    }
}

/// Adds the sums of a row's units, a tree of fixed shape, and writes them: whole, or as the cube's part.
#[cube]
#[allow(clippy::too_many_arguments)]
fn write_totals<W: Float>(
    totals: &Registers<f32>,
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
