//! The input gradient of stems: few channels of dx, which a product with a row per position would leave its
//! columns empty for. The positions of a plane are taken in blocks of one stride by one stride, which see the
//! same windows.
//!
//! ```text
//! dx[c, block * stride + phase] = sum over depth taps, o, taps j of the plane of
//!                                 dy[o, block + origin + j * step] * W[j, o][c, phase]
//!
//!    a strip of a plane, row by row    rows of the product: blocks, `tile_m` behind each other in a strip;
//!    +--------------------------+        those in its rim are computed and not written
//!    | blocks            | rim  |      columns: channels of dx, phases of the block: 3 * 2 * 2 for stride 2
//!    | blocks   ..tile.. | rim  |      a unit:  blocks u, u + units, .. and the tile's columns, in registers
//!    +--------------------------+      a tap:   the same window of dy, read from another place
//! ```
//!
//! A cube computes one frame, so that depth taps that reach it from no window are left out. Of two channels
//! of dy at a time it holds the window and the weights in shared memory: it reads `2 * reach` elements and
//! `8 * taps * columns` bytes of weights for `4 * taps * tile_m * columns` operations. Per tap and channel a
//! unit reads `rows + columns / 4` times from shared memory (blocks beside those of its neighbours, columns
//! the same as theirs) for `rows * columns` multiply-adds. Phases that a tap does not reach multiply zeros: 8
//! of 7 taps along an axis for a kernel of 7, 4 of 3 for one of 3. A sum that is split leaves fp32 partials
//! for `reduce.rs`. Declined: more than four channels per group, windows that do not fit ([`super::config`]),
//! other passes.

use super::config::SubpixelTile;
use super::tiling::{Places, Share, Tiling, places};
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn subpixel_kernel<E: Float, O: Float>(
    dy: &[E],
    weight: &[Vector<f32, Const<4>>],
    out: &mut [O],
    tiling: Tiling,
    span: Span,
    #[comptime] tile: SubpixelTile,
    #[comptime] unroll: bool,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let share = tiling.share(span.index() as u32, tile.tile_m);
    let mut window = Shared::<[f32]>::new_slice(comptime!(tile.channels * tile.window));
    let mut weights = Shared::<[Vector<f32, Const<4>>]>::new_slice(tile.stage_vectors());
    let sums = Registers::<f32>::new(comptime!(tile.rows * tile.columns), 0.0f32.runtime());
    let places = places(&tiling, &share, comptime!(tile.reads()), tile);
    let source = share.n as usize * tiling.source_batch_stride
        + (share.group * tiling.channels) as usize * tiling.source_channel_stride;
    let first_chunk = share.part * tiling.part_chunks;
    let end_chunk = min(first_chunk + tiling.part_chunks, tiling.chunks);
    let (first_tap, taps) = tiling.depth.inside(share.d);
    let of_tap = (share.group * tiling.column_tile_count + share.column_tile) * tiling.depth.taps;

    // A stage is read while the one before it is multiplied: it waits in registers.
    let stages = taps * (max(end_chunk, first_chunk) - first_chunk);
    let mut tap = first_tap;
    let mut chunk = first_chunk;
    let mut stage = 0u32.runtime();
    let (frame, _) = tiling.depth.window(share.d, tap);
    let more = stages > 0u32;
    let sources = read_window(dy, &tiling, &places, source, frame, chunk, more, tile);
    let factors = read_weights(weight, &tiling, of_tap + tap, chunk, more, tile);
    write_window(&sources, &mut window, tile);
    write_weights(&factors, &mut weights, tile);
    sync_cube();
    while stage < stages {
        stage += 1u32;
        chunk += 1u32;
        if chunk == end_chunk {
            chunk = first_chunk;
            tap += tiling.depth.tap_step;
        }
        let (frame, _) = tiling.depth.window(share.d, tap);
        let more = stage < stages;
        let sources = read_window(dy, &tiling, &places, source, frame, chunk, more, tile);
        let factors = read_weights(weight, &tiling, of_tap + tap, chunk, more, tile);
        multiply(&window, &weights, &sums, &tiling, tile, unroll);
        sync_cube();
        write_window(&sources, &mut window, tile);
        write_weights(&factors, &mut weights, tile);
        sync_cube();
    }
    write(&sums, out, &tiling, &share, tile);
}

/// Reads this unit's elements of a window into registers.
#[cube]
#[allow(clippy::too_many_arguments)]
fn read_window<E: Float>(
    dy: &[E],
    tiling: &Tiling,
    places: &Places,
    source: usize,
    frame: u32,
    chunk: u32,
    exists: bool,
    #[comptime] tile: SubpixelTile,
) -> Sequence<E> {
    let first_channel = chunk * tile.channels as u32;
    let mut at = source
        + first_channel as usize * tiling.source_channel_stride
        + frame as usize * tiling.depth.source_stride;
    let mut values = Sequence::<E>::new();
    #[unroll]
    for c in 0..tile.channels {
        let exists = exists && first_channel + (c as u32) < tiling.channels;
        #[unroll]
        for i in 0..comptime!(tile.reads()) {
            let mut value = E::from_int(0);
            if exists && places.mask & comptime!(1u32 << i) != 0u32 {
                value = dy[at + *places.at.index(i)];
            }
            values.push(value);
        }
        at += tiling.source_channel_stride;
    }
    values
}

/// Writes what [`read_window`] has read.
#[cube]
fn write_window<E: Float>(values: &Sequence<E>, window: &mut Shared<[f32]>, #[comptime] tile: SubpixelTile) {
    #[unroll]
    for c in 0..tile.channels {
        #[unroll]
        for i in 0..comptime!(tile.reads()) {
            window[UNIT_POS as usize + comptime!(c * tile.window + i * tile.units())] =
                f32::cast_from(*values.index(comptime!(c * tile.reads() + i)));
        }
    }
}

/// Reads this unit's vectors of a stage's packed weights into registers.
#[cube]
fn read_weights(
    weight: &[Vector<f32, Const<4>>],
    tiling: &Tiling,
    of_tap: u32,
    chunk: u32,
    exists: bool,
    #[comptime] tile: SubpixelTile,
) -> Sequence<Vector<f32, Const<4>>> {
    let stage = tiling.height.taps * tiling.width.taps * comptime!((tile.channels * tile.vectors()) as u32);
    let first = (of_tap * tiling.chunks + chunk) as usize * stage as usize;
    let mut values = Sequence::<Vector<f32, Const<4>>>::new();
    #[unroll]
    for i in 0..comptime!(tile.weight_reads()) {
        let at = UNIT_POS + comptime!((i * tile.units()) as u32);
        let mut value = Vector::<f32, Const<4>>::new(0.0f32);
        if exists && at < stage {
            value = weight[first + at as usize];
        }
        values.push(value);
    }
    values
}

/// Writes what [`read_weights`] has read.
#[cube]
fn write_weights(
    values: &Sequence<Vector<f32, Const<4>>>,
    weights: &mut Shared<[Vector<f32, Const<4>>]>,
    #[comptime] tile: SubpixelTile,
) {
    #[unroll]
    for i in 0..comptime!(tile.weight_reads()) {
        weights[UNIT_POS as usize + comptime!(i * tile.units())] = *values.index(i);
    }
}

/// Adds the products of a stage to a unit's sums: taps in order, channels in order.
#[cube]
fn multiply(
    window: &Shared<[f32]>,
    weights: &Shared<[Vector<f32, Const<4>>]>,
    sums: &Registers<f32>,
    tiling: &Tiling,
    #[comptime] tile: SubpixelTile,
    #[comptime] unroll: bool,
) {
    let mut row = UNIT_POS as usize;
    let mut from = 0usize.runtime();
    let mut h = 0u32.runtime();
    while h < tiling.height.taps {
        let mut at = row;
        let mut w = 0u32.runtime();
        while w < tiling.width.taps {
            #[unroll(unroll)]
            for c in 0..tile.channels {
                let mut factors = Sequence::<Vector<f32, Const<4>>>::new();
                #[unroll]
                for j in 0..comptime!(tile.vectors()) {
                    factors.push(weights[from + c * comptime!(tile.vectors()) + j]);
                }
                #[unroll]
                for i in 0..comptime!(tile.rows) {
                    let value = window[at + c * tile.window + comptime!(i * tile.units())];
                    #[unroll]
                    for j in 0..comptime!(tile.columns) {
                        let factor = factors.index(comptime!(j / 4)).extract(comptime!(j % 4));
                        let sum = comptime!(i * tile.columns + j);
                        sums.set(sum, fma(value, factor, sums.get(sum)));
                    }
                }
            }
            from += comptime!(tile.channels * tile.vectors());
            at += tiling.width.step as usize;
            w += 1u32;
        }
        row += (tiling.height.step * tiling.pitch_count) as usize;
        h += 1u32;
    }
}

/// Writes a unit's sums, but for positions past the input's end and columns past the last. (What
/// [`Tiling::place`] says, but computed behind the test: before it, 12 columns took a tenth longer on an
/// H200.)
#[cube]
fn write<O: Float>(
    sums: &Registers<f32>,
    out: &mut [O],
    tiling: &Tiling,
    share: &Share,
    #[comptime] tile: SubpixelTile,
) {
    let first = tiling.out_first(share);
    #[unroll]
    for j in 0..comptime!(tile.columns) {
        let column = share.column_tile * tile.columns as u32 + j as u32;
        let (rest, phase_w) = tiling.width.phases.div_mod(column);
        let (c, phase_h) = tiling.height.phases.div_mod(rest);
        let of_channel = first + c as usize * tiling.out_channel_stride;
        #[unroll]
        for i in 0..comptime!(tile.rows) {
            let element = share.first + UNIT_POS + comptime!((i * tile.units()) as u32);
            let (block_h, block_w) = tiling.block(share, element);
            let h = block_h * tiling.height.stride + phase_h;
            let w = block_w * tiling.width.stride + phase_w;
            let exists = block_w - share.strip < tiling.blocks && column < tiling.columns;
            if exists && h < tiling.height.positions && w < tiling.width.positions {
                let at =
                    of_channel + h as usize * tiling.height.out_stride + w as usize * tiling.width.out_stride;
                out[at] = O::cast_from(sums.get(comptime!(i * tile.columns + j)));
            }
        }
    }
}
