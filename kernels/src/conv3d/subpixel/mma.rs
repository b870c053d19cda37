//! The product of [`super::kernel`] on matrix units, fp32 accumulation: fragments of columns by blocks.
//!
//! ```text
//! D[columns][blocks] += W[columns][16 channels] * dy[16 channels][blocks shifted by the tap]
//! ```
//!
//! The window of 16 channels of dy lies in shared memory, channels of a block side by side; the weights of a
//! tap, 512 bytes in 16 bits that all planes of all cubes share, are read where they lie. A plane reads
//! `rows * 32` bytes of the window and those weights for `2 * 16 * 16 * rows` operations. Channels of dx fill
//! 12 of 16 columns for three channels and a stride of 2, 3 of 16 for a stride of 1. Declined: what
//! [`super::kernel`] declines, types without matrix units.

use super::config::SubpixelTile;
use super::tiling::{Places, Share, Tiling, places};
use crate::conv3d::gemm::config::SUBGROUP;
use crate::conv3d::gemm::fragments::{accumulators, pack_vector, store_to_scratch};
use crate::launch::Span;
use cubecl::cmma::{self, MatrixIdent, MatrixLayout};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn subpixel_mma_kernel<E: Float, S: Float, O: Float, V: Size>(
    dy: &[E],
    weight: &[Vector<S, V>],
    out: &mut [O],
    tiling: Tiling,
    span: Span,
    #[comptime] tile: SubpixelTile,
    #[comptime] size: usize,
    #[define(E)] _dtype: ElemType,
    #[define(S)] _stage_dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let share = tiling.share(span.cube() as u32, tile.tile_m);
    let width = V::value();
    let row = comptime!(tile.row(width, size));
    let mut window = Shared::<[Vector<S, V>]>::new_slice(comptime!(tile.window * row));
    let sums = accumulators(comptime!(tile.rows * tile.columns), tile.fragment);
    let places = places(&tiling, &share, comptime!(tile.vector_reads(width)), tile);
    let source = share.n as usize * tiling.source_batch_stride
        + (share.group * tiling.channels) as usize * tiling.source_channel_stride;
    let first_chunk = share.part * tiling.part_chunks;
    let end_chunk = min(first_chunk + tiling.part_chunks, tiling.chunks);
    let (first_tap, taps) = tiling.depth.inside(share.d);
    let of_tap = (share.group * tiling.column_tile_count + share.column_tile) * tiling.depth.taps;
    let plane_taps = tiling.height.taps * tiling.width.taps;

    // A stage is read while the one before it is multiplied: it waits in registers.
    let stages = taps * (max(end_chunk, first_chunk) - first_chunk);
    let mut tap = first_tap;
    let mut chunk = first_chunk;
    let mut stage = 0u32.runtime();
    let (frame, _) = tiling.depth.window(share.d, tap);
    let sources = read_window(dy, &tiling, &places, source, frame, chunk, stages > 0u32, width, tile);
    write_window(&sources, &mut window, row, tile);
    sync_cube();
    while stage < stages {
        let first = ((of_tap + tap) * tiling.chunks + chunk) * plane_taps;
        stage += 1u32;
        chunk += 1u32;
        if chunk == end_chunk {
            chunk = first_chunk;
            tap += tiling.depth.tap_step;
        }
        let (frame, _) = tiling.depth.window(share.d, tap);
        let more = stage < stages;
        let sources = read_window(dy, &tiling, &places, source, frame, chunk, more, width, tile);
        multiply(&window, weight, first as usize, &sums, &tiling, row, tile);
        sync_cube();
        write_window(&sources, &mut window, row, tile);
        sync_cube();
    }
    write(&sums, out, &tiling, &share, tile);
}

/// Reads this unit's vectors of a window into registers: some channels of a block, lanes along blocks.
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
    #[comptime] width: usize,
    #[comptime] tile: SubpixelTile,
) -> Sequence<E> {
    let first = source + frame as usize * tiling.depth.source_stride;
    let mut values = Sequence::<E>::new();
    #[unroll]
    for i in 0..comptime!(tile.vector_reads(width)) {
        let vector = UNIT_POS + comptime!((i * tile.units()) as u32);
        let channel = chunk * tile.channels as u32 + vector / comptime!(tile.window as u32) * width as u32;
        let at = first + *places.at.index(i) + channel as usize * tiling.source_channel_stride;
        let inside = exists && places.mask & comptime!(1u32 << i) != 0u32;
        #[unroll]
        for c in 0..width {
            let mut value = E::from_int(0);
            if inside && channel + (c as u32) < tiling.channels {
                value = dy[at + c * tiling.source_channel_stride];
            }
            values.push(value);
        }
    }
    values
}

/// Writes what [`read_window`] has read.
#[cube]
fn write_window<E: Float, S: Float, V: Size>(
    values: &Sequence<E>,
    window: &mut Shared<[Vector<S, V>]>,
    #[comptime] row: usize,
    #[comptime] tile: SubpixelTile,
) {
    let width = V::value();
    #[unroll]
    for i in 0..comptime!(tile.vector_reads(width)) {
        let vector = UNIT_POS as usize + comptime!(i * tile.units());
        window[vector % tile.window * row + vector / tile.window] = pack_vector(values, i);
    }
}

/// Adds the products of a stage to a plane's sums; `first` is its first tap among all packed ones.
#[cube]
fn multiply<S: Float, V: Size>(
    window: &Shared<[Vector<S, V>]>,
    weight: &[Vector<S, V>],
    first: usize,
    sums: &Sequence<cmma::Matrix<f32>>,
    tiling: &Tiling,
    #[comptime] row: usize,
    #[comptime] tile: SubpixelTile,
) {
    let width = V::value();
    let of_tap = comptime!(tile.columns * tile.channels / width);
    let mut from = first * of_tap;
    let mut shift = UNIT_POS as usize / SUBGROUP * tile.rows;
    let mut h = 0u32.runtime();
    while h < tiling.height.taps {
        let mut at = shift;
        let mut w = 0u32.runtime();
        while w < tiling.width.taps {
            #[unroll]
            for k in 0..comptime!(tile.channels / tile.fragment) {
                let mut columns = Sequence::<cmma::Matrix<Vector<S, V>>>::new();
                #[unroll]
                for i in 0..comptime!(tile.columns / tile.fragment) {
                    let start =
                        from + comptime!((i * tile.fragment * tile.channels + k * tile.fragment) / width);
                    columns.push(cmma::Matrix::<Vector<S, V>>::from_slice(
                        MatrixIdent::A,
                        tile.fragment,
                        tile.fragment,
                        tile.fragment,
                        MatrixLayout::RowMajor,
                        &weight[start..weight.len()],
                        tile.channels as u32,
                    ));
                }
                #[unroll]
                for j in 0..comptime!(tile.rows / tile.fragment) {
                    let start =
                        (at + comptime!(j * tile.fragment)) * row + comptime!(k * tile.fragment / width);
                    let blocks = cmma::Matrix::<Vector<S, V>>::from_slice(
                        MatrixIdent::B,
                        tile.fragment,
                        tile.fragment,
                        tile.fragment,
                        MatrixLayout::ColMajor,
                        &window[start..comptime!(tile.window * row)],
                        comptime!((row * width) as u32),
                    );
                    #[unroll]
                    for i in 0..comptime!(tile.columns / tile.fragment) {
                        let sum = sums.index(comptime!(i * (tile.rows / tile.fragment) + j));
                        cmma::execute(columns.index(i), &blocks, sum, sum);
                    }
                }
            }
            from += of_tap;
            at += tiling.width.step as usize;
            w += 1u32;
        }
        shift += (tiling.height.step * tiling.pitch_count) as usize;
        h += 1u32;
    }
}

/// Writes a plane's sums, but for positions past the input's end and columns past the last. Each fragment
/// passes through the plane's own patch of shared memory.
#[cube]
fn write<O: Float>(
    sums: &Sequence<cmma::Matrix<f32>>,
    out: &mut [O],
    tiling: &Tiling,
    share: &Share,
    #[comptime] tile: SubpixelTile,
) {
    let plane = UNIT_POS as usize / SUBGROUP;
    let lane = UNIT_POS % SUBGROUP as u32;
    let size = comptime!(tile.fragment * tile.fragment);
    let mut patches = Shared::<[f32]>::new_slice(comptime!(tile.planes() * size));
    let patch = plane * size;
    let first = tiling.out_first(share);
    let in_fragment = lane % tile.fragment as u32;
    #[unroll]
    for j in 0..comptime!(tile.rows / tile.fragment) {
        // A lane writes one block of the fragments.
        let element =
            share.first + (plane * tile.rows) as u32 + comptime!((j * tile.fragment) as u32) + in_fragment;
        #[unroll]
        for i in 0..comptime!(tile.columns / tile.fragment) {
            let sum = sums.index(comptime!(i * (tile.rows / tile.fragment) + j));
            store_to_scratch(sum, &mut patches, patch, tile.fragment);
            #[unroll]
            for step in 0..comptime!(size / SUBGROUP) {
                let in_patch =
                    comptime!((step * (SUBGROUP / tile.fragment)) as u32) + lane / tile.fragment as u32;
                let column = share.column_tile * tile.columns as u32
                    + comptime!((i * tile.fragment) as u32)
                    + in_patch;
                let (at, exists) = tiling.place(share, element, column);
                if exists {
                    out[first + at] = O::cast_from(
                        patches[patch + (in_patch * tile.fragment as u32 + in_fragment) as usize],
                    );
                }
            }
        }
    }
}
