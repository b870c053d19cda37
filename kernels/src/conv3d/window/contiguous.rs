//! The product of [`super::kernel`] for windows with one tap in the plane where a plane is a run of sites
//! (1x1x1, 3x1x1): nothing is window, and the source travels in vectors of neighbouring sites.
//!
//! ```text
//! D[channels][sites] += sum over depth taps, stages of channels of W[channels][stage] * X[stage][sites]
//!
//!                tile_m sites          a stage: some blocks of 16 channels, sites fastest, rows 16 bytes
//!             +---------------+                 longer than the tile; blocks run on from one depth tap to
//!    tile_n   | plane | plane |                 the next
//!   channels  +-------+-------+        weights: from memory straight into fragments
//!             | plane | plane |
//!             +-------+-------+
//! ```
//!
//! Per block a cube reads `tile_m * 16` elements and `16 * tile_n` packed weights for each plane's own
//! channels, for `2 * tile_m * tile_n * 16` operations. A depth tap's blocks fill whole stages, with zeros in
//! the source and in the weights. Declined: planes whose rows or channels do not lie so (the other kernel
//! reads them).

use super::config::{CHANNELS, WindowTile};
use super::epilogue::write_runs;
use super::kernel::weight_fragments;
use super::phases::{Phases, Work, work_of};
use super::tiling::{Blocks, Tiling, block_at, blocks_of, packed_tap};
use crate::conv3d::gemm::config::SUBGROUP;
use crate::conv3d::gemm::fragments::accumulators;
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use cubecl::cmma::{self, MatrixIdent, MatrixLayout};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn contiguous_kernel<E: Float, S: Float, O: Float, V: Size>(
    source: &[Vector<E, V>],
    weight: &[Vector<S, V>],
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut [Vector<O, Const<4>>],
    walk: GatherArgs,
    tiling: Tiling,
    phases: ComptimeOption<Phases>,
    span: Span,
    #[comptime] padding: PaddingMode,
    #[comptime] tile: WindowTile,
    #[comptime] size: usize,
    #[define(E)] _dtype: ElemType,
    #[define(S)] _stage_dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let Work { walk, tiling, share, taps } = work_of(&phases, walk, tiling, span.cube() as u32, tile);
    let width = V::value();
    let row = comptime!(tile.run_row(width, size));
    let mut stage = Shared::<[Vector<S, V>]>::new_slice(comptime!(tile.run_blocks() * CHANNELS * row));
    let sums = accumulators(comptime!(tile.plane_m * tile.plane_n), tile.fragment);
    let blocks = blocks_of(&walk, &tiling, &share, padding);
    // Where the plane's channels begin in a block's weights, and the distance between two blocks.
    let block_vectors = comptime!(CHANNELS / width) * tiling.packed_n as usize;
    let plane_n = UNIT_POS as usize / SUBGROUP / comptime!(tile.tile_m / tile.plane_m) * tile.plane_n;
    let column = (share.first_n as usize + plane_n) * comptime!(CHANNELS / width);

    let mut block = blocks.first;
    let values = read_stage(source, &walk, &tiling, &blocks, share.first, block, padding, tile);
    write_stage(&values, &mut stage, row, tile);
    sync_cube();
    while block < blocks.end {
        let next = block + comptime!(tile.run_blocks() as u32);
        // The next stage travels while this one is multiplied.
        let values = read_stage(source, &walk, &tiling, &blocks, share.first, next, padding, tile);
        #[unroll]
        for i in 0..comptime!(tile.run_blocks()) {
            let packed = packed_tap(&taps, &tiling, &blocks, block + i as u32);
            multiply(&stage, weight, packed * block_vectors + column, &sums, i, row, tile);
        }
        block = next;
        sync_cube();
        write_stage(&values, &mut stage, row, tile);
        sync_cube();
    }
    write_runs(&sums, bias, out, &walk, &tiling, &share, tile);
}

/// Reads this unit's vectors of a stage into registers, lanes along sites.
#[cube]
#[allow(clippy::too_many_arguments)]
fn read_stage<E: Float, V: Size>(
    source: &[Vector<E, V>],
    walk: &GatherArgs,
    tiling: &Tiling,
    blocks: &Blocks,
    first_site: u32,
    first: u32,
    #[comptime] padding: PaddingMode,
    #[comptime] tile: WindowTile,
) -> Sequence<Vector<E, V>> {
    let mut values = Sequence::<Vector<E, V>>::new();
    let width = V::value();
    let lanes = comptime!((tile.tile_m / width) as u32);
    let site = first_site + UNIT_POS % lanes * width as u32;
    let exists = site < tiling.height * tiling.width;
    #[unroll]
    for i in 0..comptime!(tile.run_blocks()) {
        let index = first + i as u32;
        let block = block_at(walk, tiling, blocks, index, padding);
        #[unroll]
        for load in 0..comptime!(tile.run_loads(width)) {
            let channel = UNIT_POS / lanes + comptime!((load * tile.units()) as u32) / lanes;
            let mut value = Vector::<E, V>::new(E::from_int(0));
            if exists && index < blocks.end && channel < block.channels {
                value = source[(block.first + walk.source_channel(channel) + site as usize) / width];
            }
            values.push(value);
        }
    }
    values
}

/// Writes what [`read_stage`] has read: rows of sites.
#[cube]
fn write_stage<E: Float, S: Float, V: Size>(
    values: &Sequence<Vector<E, V>>,
    stage: &mut Shared<[Vector<S, V>]>,
    #[comptime] row: usize,
    #[comptime] tile: WindowTile,
) {
    let width = V::value();
    let lanes = comptime!(tile.tile_m / width);
    #[unroll]
    for load in 0..comptime!(tile.run_blocks() * tile.run_loads(width)) {
        let channel = UNIT_POS as usize / lanes + comptime!(load * tile.units() / lanes);
        stage[channel * row + UNIT_POS as usize % lanes] = Vector::cast_from(*values.index(load));
    }
}

/// Adds the products of the stage's block `block`, whose weights for this plane begin at `packed`, to the
/// plane's sums.
#[cube]
fn multiply<S: Float, V: Size>(
    stage: &Shared<[Vector<S, V>]>,
    weight: &[Vector<S, V>],
    packed: usize,
    sums: &Sequence<cmma::Matrix<f32>>,
    #[comptime] block: usize,
    #[comptime] row: usize,
    #[comptime] tile: WindowTile,
) {
    let width = V::value();
    let first_site = UNIT_POS as usize / SUBGROUP % comptime!(tile.tile_m / tile.plane_m) * tile.plane_m;
    #[unroll]
    for k in 0..comptime!(CHANNELS / tile.fragment) {
        let channels = weight_fragments(weight, packed, k, tile);
        #[unroll]
        for j in 0..comptime!(tile.plane_m / tile.fragment) {
            let at = first_site / width
                + comptime!((block * CHANNELS + k * tile.fragment) * row + j * tile.fragment / width);
            let sites = cmma::Matrix::<Vector<S, V>>::from_slice(
                MatrixIdent::B,
                tile.fragment,
                tile.fragment,
                tile.fragment,
                MatrixLayout::RowMajor,
                &stage[at..comptime!(tile.run_blocks() * CHANNELS * row)],
                comptime!((row * width) as u32),
            );
            #[unroll]
            for i in 0..comptime!(tile.plane_n / tile.fragment) {
                let sum = sums.index(comptime!(i * (tile.plane_m / tile.fragment) + j));
                cmma::execute(channels.index(i), &sites, sum, sum);
            }
        }
    }
}
