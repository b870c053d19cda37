//! The implicit GEMM of [`super::kernel`] for windows with one tap in the frame (1x1x1, 3x1x1) over
//! contiguous frames: no halo, and vector loads along positions.
//!
//! ```text
//! D[n][m] += sum over depth taps, stages of W[n][stage] * X[stage][m]
//!
//!             tile_m positions     stage: stage_blocks blocks of 16 channels, [channel][position], pitch
//!           +---------------+             padded by 16 bytes; stages run on from one depth tap to the next
//!    tile_n | sub-  | sub-  |
//!  channels | group | group |     source:         H x W slices contiguous and aligned to vectors
//!           +-------+-------+     packed weights: as for the other kernel, memory -> fragments
//!           | sub-  | sub-  |     result:         vectors of four positions
//!           | group | group |
//!           +-------+-------+
//! ```
//!
//! Per block a threadgroup loads `tile_m * 16` source elements and `16 * tile_n` weights (each subgroup those
//! of its own channels), for `2 * tile_m * tile_n * 16` FLOP. The blocks of a depth tap are padded to whole
//! stages, with zeros on both sides. Declined: frames of the source, the result or the residual that are not
//! contiguous (the other kernel's).

use super::config::{CHANNELS, WindowTile};
use super::epilogue::write_contiguous;
use super::kernel::weight_fragments;
use super::phases::{PhaseWork, Phases, work_of};
use super::tiling::{BlockRange, WindowTiling};
use crate::conv3d::cache::CacheArgs;
use crate::conv3d::gemm::config::SUBGROUP;
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::mma::{accumulators, load_fragment, multiply_fragments};
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use cubecl::cmma::{self, MatrixIdent, MatrixLayout};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn contiguous_kernel<E: Float, S: Float, O: Float, V: Size>(
    source: &[Vector<E, V>],
    cache: ComptimeOption<&[Vector<E, V>]>,
    weight: &[Vector<S, V>],
    bias: ComptimeOption<&Tensor<E>>,
    residual: ComptimeOption<&Tensor<Vector<E, Const<4>>>>,
    out: &mut [Vector<O, Const<4>>],
    gather: GatherArgs,
    cache_args: ComptimeOption<CacheArgs>,
    tiling: WindowTiling,
    phases: ComptimeOption<Phases>,
    span: Span,
    // Along depth, and along H and W.
    #[comptime] padding: [PaddingMode; 2],
    #[comptime] tile: WindowTile,
    #[comptime] prefetch: bool,
    #[comptime] size: usize,
    // For the kernel's key, in which optional arguments do not count.
    #[comptime] _has_residual: bool,
    #[comptime] _has_cache: bool,
    #[define(E)] _dtype: ElemType,
    #[define(S)] _stage_dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole threadgroup exits: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let PhaseWork { gather, tiling, work, taps } =
        work_of(&phases, gather, tiling, span.index() as u32, tile);
    let width = V::value();
    let pitch = comptime!(tile.stage_pitch(width, size));
    let mut stage = Shared::<[Vector<S, V>]>::new_slice(comptime!(tile.stage_blocks() * CHANNELS * pitch));
    let acc = accumulators(comptime!(tile.subgroup_m * tile.subgroup_n), tile.fragment);
    let blocks = BlockRange::new(&gather, &cache_args, &tiling, &work, &taps, comptime!(padding[0]));
    // Vectors from one packed block to the next, and where the subgroup's channels begin in a block.
    let block_vectors = comptime!(CHANNELS / width) * tiling.packed_n as usize;
    let in_tile = UNIT_POS as usize / SUBGROUP / comptime!(tile.tile_m / tile.subgroup_m) * tile.subgroup_n;
    let column = (work.first_n as usize + in_tile) * comptime!(CHANNELS / width);

    let mut block = blocks.first;
    // A stage is in the source or, as a whole, in its cache. The end of a branch waits for loads: it has the
    // stores, too.
    if comptime!(prefetch) {
        if blocks.is_in_cache(block) {
            let values = read_stage(cache.unwrap(), &blocks, block, tile);
            write_stage(&values, &mut stage, pitch, tile);
        } else {
            let values = read_stage(source, &blocks, block, tile);
            write_stage(&values, &mut stage, pitch, tile);
        }
        sync_cube();
    }
    while block < blocks.end {
        let next = block + comptime!(tile.stage_blocks() as u32);
        if comptime!(prefetch) {
            if blocks.is_in_cache(next) {
                let values = read_stage(cache.unwrap(), &blocks, next, tile);
                multiply_stage(&stage, weight, &blocks, block, block_vectors, column, &acc, pitch, tile);
                sync_cube();
                write_stage(&values, &mut stage, pitch, tile);
            } else {
                let values = read_stage(source, &blocks, next, tile);
                multiply_stage(&stage, weight, &blocks, block, block_vectors, column, &acc, pitch, tile);
                sync_cube();
                write_stage(&values, &mut stage, pitch, tile);
            }
            sync_cube();
        } else {
            // The registers are free during the product.
            if blocks.is_in_cache(block) {
                let values = read_stage(cache.unwrap(), &blocks, block, tile);
                sync_cube();
                write_stage(&values, &mut stage, pitch, tile);
            } else {
                let values = read_stage(source, &blocks, block, tile);
                sync_cube();
                write_stage(&values, &mut stage, pitch, tile);
            }
            sync_cube();
            multiply_stage(&stage, weight, &blocks, block, block_vectors, column, &acc, pitch, tile);
        }
        block = next;
    }
    write_contiguous(&acc, bias, residual, out, &gather, &tiling, &work, tile, prefetch);
}

/// Loads this thread's vectors of a stage into registers, lanes along positions.
#[cube]
fn read_stage<E: Float, V: Size>(
    from: &[Vector<E, V>],
    blocks: &BlockRange,
    first: u32,
    #[comptime] tile: WindowTile,
) -> Sequence<Vector<E, V>> {
    let mut values = Sequence::<Vector<E, V>>::new();
    let width = V::value();
    let lanes = comptime!((tile.tile_m / width) as u32);
    let position = blocks.work.first_m + UNIT_POS % lanes * width as u32;
    let exists = position < blocks.tiling.height * blocks.tiling.width;
    #[unroll]
    for i in 0..comptime!(tile.stage_blocks()) {
        let index = first + i as u32;
        let block = blocks.at(index);
        #[unroll]
        for load in 0..comptime!(tile.stage_loads(width)) {
            let channel = UNIT_POS / lanes + comptime!((load * tile.threads()) as u32) / lanes;
            let mut value = Vector::<E, V>::new(E::from_int(0));
            if exists && index < blocks.end && channel < block.channels_left {
                let at = (block.offset + block.channel(channel) + position as usize) / width;
                value = from[at];
            }
            values.push(value);
        }
    }
    values
}

/// Stores what [`read_stage`] has loaded, `[channel][position]`.
#[cube]
fn write_stage<E: Float, S: Float, V: Size>(
    values: &Sequence<Vector<E, V>>,
    stage: &mut Shared<[Vector<S, V>]>,
    #[comptime] pitch: usize,
    #[comptime] tile: WindowTile,
) {
    let width = V::value();
    let lanes = comptime!(tile.tile_m / width);
    #[unroll]
    for load in 0..comptime!(tile.stage_blocks() * tile.stage_loads(width)) {
        let channel = UNIT_POS as usize / lanes + comptime!(load * tile.threads() / lanes);
        stage[channel * pitch + UNIT_POS as usize % lanes] = Vector::cast_from(*values.index(load));
    }
}

/// Accumulates the products of a stage whose first block is `first`. Packed blocks are `block_vectors` long,
/// this subgroup's weights begin at `column` in each.
#[cube]
fn multiply_stage<S: Float, V: Size>(
    stage: &Shared<[Vector<S, V>]>,
    weight: &[Vector<S, V>],
    blocks: &BlockRange,
    first: u32,
    block_vectors: usize,
    column: usize,
    acc: &Sequence<cmma::Matrix<f32>>,
    #[comptime] pitch: usize,
    #[comptime] tile: WindowTile,
) {
    #[unroll]
    for i in 0..comptime!(tile.stage_blocks()) {
        let packed = blocks.packed_tap(first + i as u32);
        multiply(stage, weight, packed * block_vectors + column, acc, i, pitch, tile);
    }
}

/// Accumulates the products of the stage's block `block`; this subgroup's packed weights begin at `packed`.
#[cube]
fn multiply<S: Float, V: Size>(
    stage: &Shared<[Vector<S, V>]>,
    weight: &[Vector<S, V>],
    packed: usize,
    acc: &Sequence<cmma::Matrix<f32>>,
    #[comptime] block: usize,
    #[comptime] pitch: usize,
    #[comptime] tile: WindowTile,
) {
    let width = V::value();
    let first_m = UNIT_POS as usize / SUBGROUP % comptime!(tile.tile_m / tile.subgroup_m) * tile.subgroup_m;
    #[unroll]
    for k in 0..comptime!(CHANNELS / tile.fragment) {
        let a = weight_fragments(weight, packed, k, tile);
        #[unroll]
        for j in 0..comptime!(tile.subgroup_m / tile.fragment) {
            let at = first_m / width
                + comptime!((block * CHANNELS + k * tile.fragment) * pitch + j * tile.fragment / width);
            let b = load_fragment(
                &stage[at..comptime!(tile.stage_blocks() * CHANNELS * pitch)],
                MatrixIdent::B,
                MatrixLayout::RowMajor,
                comptime!(pitch * width),
                tile.fragment,
            );
            let rows = comptime!(tile.subgroup_n / tile.fragment);
            multiply_fragments(&a, &b, acc, rows, j, comptime!(tile.subgroup_m / tile.fragment));
        }
    }
}
