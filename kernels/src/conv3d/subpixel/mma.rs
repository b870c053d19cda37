//! The product of [`super::kernel`] with MMA, fp32 accumulation: fragments of columns by blocks.
//!
//! ```text
//! D[columns][blocks] += W[columns][16 channels] * dy[16 channels][blocks shifted by the tap]
//!
//!            blocks of a subgroup: `rows`
//!          +----------+----------+
//! columns  | fragment | fragment | ..      columns / fragment by rows / fragment accumulator fragments
//!          +----------+----------+
//! ```
//!
//! Layouts: dy and dx with any strides. Shared memory holds the window of 16 channels of dy, the channels of
//! a block contiguous. The weights of a tap, 512 bytes in 16 bits and the same for all subgroups, are loaded
//! straight from device memory (the cache). Per tap a subgroup loads `rows * 32` bytes of the window and
//! those weights for `2 * 16 * 16 * rows` FLOP. Three channels and a stride of 2 fill 12 of 16 columns, a
//! stride of 1 only 3. Declined: what [`super::kernel`] declines, types without matrix units.

use super::config::SubpixelTile;
use super::tiling::{SubpixelTiling, SubpixelWork, WindowLoads, window_loads};
use crate::activation::Activation;
use crate::conv3d::epilogue::finished;
use crate::conv3d::gemm::config::SUBGROUP;
use crate::conv3d::mma::{accumulators, load_fragment, multiply_fragments, store_to_patch, store_window};
use crate::launch::Span;
use cubecl::cmma::{self, MatrixIdent, MatrixLayout};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn subpixel_mma_kernel<E: Float, S: Float, O: Float, V: Size>(
    dy: &[E],
    weight: &[Vector<S, V>],
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    tiling: SubpixelTiling,
    span: Span,
    #[comptime] tile: SubpixelTile,
    #[comptime] activation: Activation,
    #[comptime] size: usize,
    #[define(E)] _dtype: ElemType,
    #[define(S)] _stage_dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole threadgroup exits: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let work = tiling.work(span.index() as u32, tile.tile_m);
    let width = V::value();
    let pitch = comptime!(tile.block_pitch(width, size));
    let (loads, threads) = comptime!((tile.vector_loads(width), tile.threads()));
    let mut window = Shared::<[Vector<S, V>]>::new_slice(comptime!(tile.window * pitch));
    let sums = accumulators(comptime!(tile.rows * tile.columns), tile.fragment);
    let offsets = window_loads(&tiling, &work, loads, tile);
    let source = work.n as usize * tiling.source_batch_stride
        + (work.group * tiling.channels) as usize * tiling.source_channel_stride;
    let frame_taps = tiling.height.taps * tiling.width.taps;

    // Software pipeline: the next stage is loaded into registers while this one is multiplied.
    let stages = tiling.stages(&work);
    let mut at = stages.first();
    let (frame, _) = tiling.depth.window(work.d, at.tap);
    let sources =
        read_window(dy, &tiling, &offsets, source, frame, at.chunk, stages.count > 0u32, width, tile);
    store_window(&sources, &mut window, tile.window, pitch, loads, threads);
    sync_cube();
    while at.stage < stages.count {
        let first = ((stages.tap_base + at.tap) * tiling.chunks + at.chunk) * frame_taps;
        at.advance(&stages, &tiling);
        let (frame, _) = tiling.depth.window(work.d, at.tap);
        let more = at.stage < stages.count;
        let sources = read_window(dy, &tiling, &offsets, source, frame, at.chunk, more, width, tile);
        multiply(&window, weight, first as usize, &sums, &tiling, pitch, tile);
        sync_cube();
        store_window(&sources, &mut window, tile.window, pitch, loads, threads);
        sync_cube();
    }
    write(&sums, bias, out, &tiling, &work, tile, activation);
}

/// Loads this thread's vectors of a window into registers: some channels of a block, lanes along blocks.
#[cube]
fn read_window<E: Float>(
    dy: &[E],
    tiling: &SubpixelTiling,
    offsets: &WindowLoads,
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
    for i in 0..comptime!(tile.vector_loads(width)) {
        let vector = UNIT_POS + comptime!((i * tile.threads()) as u32);
        let channel = chunk * tile.channels as u32 + vector / comptime!(tile.window as u32) * width as u32;
        let at = first + *offsets.at.index(i) + channel as usize * tiling.source_channel_stride;
        let inside = exists && offsets.mask & comptime!(1u32 << i) != 0u32;
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

/// Accumulates a stage in a subgroup's fragments; `first` is its first tap among all packed ones.
#[cube]
fn multiply<S: Float, V: Size>(
    window: &Shared<[Vector<S, V>]>,
    weight: &[Vector<S, V>],
    first: usize,
    sums: &Sequence<cmma::Matrix<f32>>,
    tiling: &SubpixelTiling,
    #[comptime] pitch: usize,
    #[comptime] tile: SubpixelTile,
) {
    let width = V::value();
    let tap_vectors = comptime!(tile.columns * tile.channels / width);
    let mut from = first * tap_vectors;
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
                    columns.push(load_fragment(
                        &weight[start..weight.len()],
                        MatrixIdent::A,
                        MatrixLayout::RowMajor,
                        tile.channels,
                        tile.fragment,
                    ));
                }
                #[unroll]
                for j in 0..comptime!(tile.rows / tile.fragment) {
                    let start =
                        (at + comptime!(j * tile.fragment)) * pitch + comptime!(k * tile.fragment / width);
                    let blocks = load_fragment(
                        &window[start..comptime!(tile.window * pitch)],
                        MatrixIdent::B,
                        MatrixLayout::ColMajor,
                        comptime!(pitch * width),
                        tile.fragment,
                    );
                    let rows = comptime!(tile.columns / tile.fragment);
                    multiply_fragments(
                        &columns,
                        &blocks,
                        sums,
                        rows,
                        j,
                        comptime!(tile.rows / tile.fragment),
                    );
                }
            }
            from += tap_vectors;
            at += tiling.width.step as usize;
            w += 1u32;
        }
        shift += (tiling.height.step * tiling.pitch_count) as usize;
        h += 1u32;
    }
}

/// Epilogue: each fragment goes through the subgroup's patch of shared memory to bias, activation, rounding
/// and a store masked to the input's positions and the tile's columns.
#[cube]
fn write<E: Float, O: Float>(
    sums: &Sequence<cmma::Matrix<f32>>,
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    tiling: &SubpixelTiling,
    work: &SubpixelWork,
    #[comptime] tile: SubpixelTile,
    #[comptime] activation: Activation,
) {
    let subgroup = UNIT_POS as usize / SUBGROUP;
    let lane = UNIT_POS % SUBGROUP as u32;
    let size = comptime!(tile.fragment * tile.fragment);
    let mut patches = Shared::<[f32]>::new_slice(comptime!(tile.subgroups() * size));
    let patch = subgroup * size;
    let first = tiling.out_base(work);
    let in_fragment = lane % tile.fragment as u32;
    #[unroll]
    for j in 0..comptime!(tile.rows / tile.fragment) {
        // A lane stores one block of the fragments.
        let element =
            work.first + (subgroup * tile.rows) as u32 + comptime!((j * tile.fragment) as u32) + in_fragment;
        #[unroll]
        for i in 0..comptime!(tile.columns / tile.fragment) {
            let sum = sums.index(comptime!(i * (tile.rows / tile.fragment) + j));
            store_to_patch(sum, &mut patches, patch, tile.fragment);
            #[unroll]
            for step in 0..comptime!(size / SUBGROUP) {
                let in_patch =
                    comptime!((step * (SUBGROUP / tile.fragment)) as u32) + lane / tile.fragment as u32;
                let column =
                    work.column_tile * tile.columns as u32 + comptime!((i * tile.fragment) as u32) + in_patch;
                let (at, exists) = tiling.out_position(work, element, column);
                if exists {
                    let sum = patches[patch + (in_patch * tile.fragment as u32 + in_fragment) as usize];
                    let bias = tiling.column_bias(bias, work, column);
                    out[first + at] = O::cast_from(finished(sum, bias, activation));
                }
            }
        }
    }
}
