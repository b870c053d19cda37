//! Backward pass in `[B, C, T]` layout, all gradients in one sweep backward in time.
//!
//! ```text
//! dpre[t] = dy[t] * activation'(sum[t])
//! dw[k]  += sum over t of dpre[t] * X(t - (W-1) + k)       db += sum over t of dpre[t]
//! dx[t]   = sum over k of w[k] * dpre[t + (W-1) - k]
//!
//!   one iteration      <--- | slice | slice | .. tile .. | halo |    from the end of a segment to its start
//!   thread, per slice   recompute sum -> dpre -> dw, db in registers
//!                       dpre -> shared memory -> dpre of the W-1 steps after the slice -> dx
//! ```
//!
//! The halo is the dpre of the first slices of the tile processed before, in shared memory. A segment that
//! ends inside a row first computes the tile after it, for its halo only. A threadgroup processes some
//! segments of its channels, then adds its threads' sums: partial sums of dw and db ([`super::reduce`]), or
//! dw and db themselves where it has all steps of its channels.
//!
//! With 16-bit words, where arithmetic and memory take about equally long, the loads of the next tile are in
//! flight while the current one computes, and threadgroups are smaller.
//!
//! HBM traffic: x, dy and dx once; W + 1 floats per threadgroup and channel. Work per element: 3 W + 1 FMA
//! and the activation's derivative. Shared memory: 16 or 32 bytes per slice, 4 (taps + 1) per thread, the
//! halo: 16 KiB at most. Any strides; declined: widths above 8.

use super::access::{CallParams, Quad, Strides, quad_of_slice, read_slice, read_taps, write_slice};
use super::bct::{BctWork, NarrowConfig, ids_from, last_step, pre_activation, read_slices, slice_columns};
use super::reduce::store_total;
use super::slice_gradient::{
    add_final_gradient, add_weight_gradient, input_gradient, write_initial_gradient,
};
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
    params: CallParams,
    x_strides: Strides,
    dy_strides: Strides,
    dx_strides: Strides,
    work: BctWork,
    span: Span,
    #[comptime] config: NarrowConfig,
    #[define(X)] _dtype: ElemType,
    #[define(S)] _memory: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    // Whole threadgroups exit here: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let (partial, group) = work.channel_groups.div_mod(span.index() as u32);
    let (group_row, lane, channel) = work.position(group);
    let exists = channel < params.channels;
    let c = min(channel, params.channels - 1u32);
    let history = comptime!(4 * config.history_quads());
    let weights = read_taps(weight, &params, c, config.taps);
    let bias_value = params.bias_of(bias, c);
    let totals = Registers::<f32>::new(comptime!(config.taps + 1), 0.0f32);
    #[unroll]
    for k in 0..comptime!(config.taps + 1) {
        totals.set(k, 0.0f32);
    }
    // dpre in shared memory: the head (first quads) of every slice of this tile; the halo is double-buffered,
    // the first slices of this tile and of the one processed before it.
    let slice_len = comptime!(config.slice_len());
    let heads = comptime!(if config.words { config.history_quads() } else { 1 });
    let tile_slices = comptime!(config.threads * config.slices);
    let slices_per_tile = work.lane_count * config.slices as u32;
    let shared_row = group_row * slices_per_tile;
    let halo_row = group_row * comptime!(config.history_quads() as u32);
    let halo_length = comptime!((config.threads / 4 * config.history_quads()) as u32);
    let mut shared_dpre = Shared::<[Quad]>::new_slice(comptime!(tile_slices * heads));
    let mut halo = Shared::<[Quad]>::new_slice(comptime!(config.threads / 2 * config.history_quads()));
    let mut halo_half = 0u32;

    let end_segment = min((partial + 1u32) * work.segments_per_threadgroup, work.segments);
    let mut segment = partial * work.segments_per_threadgroup;
    let mut tiles_back = 0u32;
    // Prologue of the prefetch: the first tile. Empty without prefetch.
    let mut next_x = Sequence::<Vector<S, N>>::new();
    let mut next_dy = Sequence::<Vector<S, N>>::new();
    if comptime!(config.prefetch) {
        let at = tile_of(&work, segment, tiles_back);
        read_tile(
            x,
            &x_strides,
            dy,
            &dy_strides,
            &params,
            &work,
            &at,
            lane,
            c,
            &mut next_x,
            &mut next_dy,
            config,
        );
    }
    let pending_x = Registers::<Vector<S, N>>::from_values(&next_x);
    let pending_dy = Registers::<Vector<S, N>>::from_values(&next_dy);
    while segment < end_segment {
        if tiles_back == 0u32 && lane < comptime!(config.history_quads() as u32) {
            halo[((1u32 - halo_half) * halo_length + halo_row + lane) as usize] = Quad::new(0.0f32);
        }
        let at = tile_of(&work, segment, tiles_back);
        let (b, in_segment) = (at.b, at.in_segment);
        let first = at.tile * slices_per_tile + lane;
        let next_segment = select(at.is_last, segment + 1u32, segment);
        let next_tiles_back = select(at.is_last, 0u32, tiles_back + 1u32);
        let mut raw = pending_x.values();
        let mut raw_dy = pending_dy.values();
        let mut next_x = Sequence::<Vector<S, N>>::new();
        let mut next_dy = Sequence::<Vector<S, N>>::new();
        if comptime!(config.prefetch) {
            // The last iteration loads its own tile again.
            let done = next_segment >= end_segment;
            let next = tile_of(
                &work,
                select(done, segment, next_segment),
                select(done, tiles_back, next_tiles_back),
            );
            read_tile(
                x,
                &x_strides,
                dy,
                &dy_strides,
                &params,
                &work,
                &next,
                lane,
                c,
                &mut next_x,
                &mut next_dy,
                config,
            );
        } else {
            read_tile(
                x,
                &x_strides,
                dy,
                &dy_strides,
                &params,
                &work,
                &at,
                lane,
                c,
                &mut raw,
                &mut raw_dy,
                config,
            );
        }
        // dpre[u * (history + slice_len) ..]: of the thread's slice u, then of the `history` steps after it.
        let dpre = Registers::<f32>::new(comptime!(config.slices * (history + slice_len)), 0.0f32);
        #[unroll]
        for u in 0..config.slices {
            let index = first + u as u32 * work.lane_count;
            let step = index * slice_len as u32;
            let columns = slice_columns::<X, H, S, N>(&raw, initial, &params, b, c, index, u, config);
            let ids = ids_from(seq_idx, &params, b, step - history as u32, comptime!(history + slice_len));
            let pre = pre_activation(&columns, &weights, &ids, bias_value, &params, config);
            let gradient = Registers::<f32>::new(slice_len, 0.0f32);
            #[unroll]
            for q in 0..comptime!(slice_len / 4) {
                let quad = quad_of_slice::<X, S, N>(&raw_dy, u, q, config.words);
                #[unroll]
                for i in 0..4usize {
                    gradient.set(comptime!(4 * q + i), quad.extract(i));
                }
            }
            activate_gradient_all(&pre, &gradient, slice_len, params.activation, config.branch_free);
            let vector_size = N::value();
            #[unroll]
            for i in 0..slice_len {
                // `select` keeps out NaN loaded outside the row or at padding. Vectors never straddle the
                // end of a row.
                let mut valid = step < params.length;
                if comptime!(vector_size != 4) {
                    valid = step + (i as u32) < params.length;
                }
                if comptime!(config.has_ids) {
                    valid = valid && *ids.index(comptime!(history + i)) >= I::from_int(0);
                }
                let value = select(valid, gradient.get(i), 0.0f32);
                gradient.set(i, value);
                dpre.set(comptime!(u * (history + slice_len) + i), value);
            }
            let slice = lane + u as u32 * work.lane_count;
            #[unroll]
            for q in 0..heads {
                let mut head = Quad::new(0.0f32);
                #[unroll]
                for i in 0..4usize {
                    head.insert(i, gradient.get(comptime!(4 * q + i)));
                }
                shared_dpre[(shared_row + slice) as usize + comptime!(q * tile_slices)] = head;
                if slice < comptime!(config.history_slices() as u32) {
                    halo[(halo_half * halo_length + halo_row + slice + q as u32) as usize] = head;
                }
            }
            if in_segment && exists && step < params.length {
                add_weight_gradient(&columns, &gradient, &ids, &totals, config);
            }
        }
        sync_cube();
        #[unroll]
        for u in 0..config.slices {
            let index = first + u as u32 * work.lane_count;
            let step = index * slice_len as u32;
            let slice = lane + u as u32 * work.lane_count;
            #[unroll]
            for p in 0..config.history_quads() {
                // Quad p after the slice: of the next slice (words), or the only one of the p-th slice after
                // it.
                let head = comptime!(if config.words { p } else { 0 });
                let next = slice + comptime!(if config.words { 1u32 } else { p as u32 + 1 });
                let inside = (shared_row + min(next, slices_per_tile - 1u32)) as usize;
                let mut following = shared_dpre[inside + comptime!(head * tile_slices)];
                if next >= slices_per_tile {
                    let at =
                        (1u32 - halo_half) * halo_length + halo_row + next - slices_per_tile + head as u32;
                    following = halo[at as usize];
                }
                #[unroll]
                for i in 0..4usize {
                    dpre.set(
                        comptime!(u * (history + slice_len) + slice_len + 4 * p + i),
                        following.extract(i),
                    );
                }
            }
            if in_segment && exists {
                let ids = ids_from(seq_idx, &params, b, step, comptime!(history + slice_len));
                let offset = comptime!(u * (history + slice_len));
                // The end of the final state and the sequence it belongs to.
                let mut end = params.length;
                let mut final_id = I::from_int(0);
                if comptime!(config.has_ids) && params.has(Present::DFINAL) {
                    let (steps, id) = last_step(seq_idx, &params, b);
                    end = steps;
                    final_id = id;
                }
                let results = input_gradient(&dpre, &weights, &ids, &params, offset, config);
                if comptime!(config.extras) && params.has(Present::DFINAL) {
                    let dfinal = dfinal.unwrap();
                    add_final_gradient(&results, &ids, end, final_id, dfinal, &params, b, c, step, config);
                }
                let row = dx_strides.row(b, c);
                write_slice::<X, S, N>(dx, row, dx_strides.t, step, params.length, &results, config.words);
                if comptime!(config.extras) && index == 0u32 && params.has(Present::DINITIAL) {
                    let dfinal = dfinal.unwrap();
                    write_initial_gradient(
                        &dpre, &weights, &ids, end, final_id, dfinal, dinitial, &params, b, c, offset, config,
                    );
                }
            }
        }
        // All reads of `shared_dpre` and `halo` are done.
        sync_cube();
        halo_half = 1u32 - halo_half;
        pending_x.set_all(&next_x);
        pending_dy.set_all(&next_dy);
        segment = next_segment;
        tiles_back = next_tiles_back;
    }
    write_totals(&totals, dw, db, partials, &params, &work, partial, lane, channel, config);
}

/// The tile of one loop iteration.
#[derive(CubeType, Clone, Copy)]
struct TimeTile {
    b: u32,
    /// Index in the row.
    tile: u32,
    /// Whether it belongs to the segment; otherwise only its halo is needed.
    in_segment: bool,
    /// Whether it is the last one processed, which is the segment's first in time.
    is_last: bool,
}

/// Tile number `tiles_back` of a segment, backward in time. A segment that ends inside a row begins with the
/// tile after it, for the halo.
#[cube]
fn tile_of(work: &BctWork, segment: u32, tiles_back: u32) -> TimeTile {
    let (b, segment_in_row) = work.blocks_per_row.div_mod(segment);
    let first_tile = segment_in_row * work.tiles_per_segment;
    let end_tile = min(first_tile + work.tiles_per_segment, work.tiles_per_row);
    let tile = end_tile + select(end_tile < work.tiles_per_row, 1u32, 0u32) - 1u32 - tiles_back;
    TimeTile { b, tile, in_segment: tile < end_tile, is_last: tile == first_tile }
}

/// Loads the thread's slices of a tile: x with its history, and dy.
#[cube]
fn read_tile<S: Numeric, N: Size>(
    x: &[Vector<S, N>],
    x_strides: &Strides,
    dy: &[Vector<S, N>],
    dy_strides: &Strides,
    params: &CallParams,
    work: &BctWork,
    at: &TimeTile,
    lane: u32,
    c: u32,
    raw: &mut Sequence<Vector<S, N>>,
    raw_dy: &mut Sequence<Vector<S, N>>,
    #[comptime] config: NarrowConfig,
) {
    #[unroll]
    for u in 0..config.slices {
        let index = (at.tile * config.slices as u32 + u as u32) * work.lane_count + lane;
        read_slices(x, x_strides, params, at.b, c, index, raw, config);
        let row = dy_strides.row(at.b, c);
        let step = index * comptime!(config.slice_len() as u32);
        read_slice(dy, row, dy_strides.t, step, params.length, raw_dy, config.words);
    }
}

/// Adds the sums of a row's threads in a tree of fixed shape, and stores them: dw and db, or a partial sum.
#[cube]
fn write_totals<W: Float>(
    totals: &Registers<f32>,
    dw: &mut Tensor<W>,
    db: &mut Tensor<W>,
    partials: &mut Tensor<f32>,
    params: &CallParams,
    work: &BctWork,
    partial: u32,
    lane: u32,
    channel: u32,
    #[comptime] config: NarrowConfig,
) {
    let mut shared = Shared::<[f32]>::new_slice(comptime!((config.taps + 1) * config.threads));
    let thread = UNIT_POS as usize;
    #[unroll]
    for k in 0..comptime!(config.taps + 1) {
        shared[thread + comptime!(k * config.threads)] = totals.get(k);
    }
    sync_cube();
    let mut half = work.lane_count / 2u32;
    while half > 0u32 {
        if lane < half {
            #[unroll]
            for k in 0..comptime!(config.taps + 1) {
                let at = thread + comptime!(k * config.threads);
                shared[at] += shared[at + half as usize];
            }
        }
        sync_cube();
        half /= 2u32;
    }
    if lane == 0u32 && channel < params.channels {
        #[unroll]
        for k in 0..comptime!(config.taps + 1) {
            if k as u32 + params.width >= config.taps as u32 {
                let slot = k as u32 + params.width - config.taps as u32;
                let total = shared[thread + comptime!(k * config.threads)];
                store_total(total, dw, db, partials, params, partial, slot, channel);
            }
        }
    }
}
