//! conv3d on matrix units with the source's window in shared memory once for all taps of a plane: forward
//! pass and input gradient of windows that move by one element (of strided ones the input gradient), fp32
//! accumulation.
//!
//! ```text
//! D[channels][sites] += sum over depth taps, blocks of 16 channels, taps (kh, kw) of
//!                       W[channels][16] * X[16][sites shifted by kh * pitch + kw]
//!
//!    a strip of a plane, row by row    window: the tile's sites and those its taps reach, 16 channels each
//!    +-------------------------+       tile:   tile_m sites behind each other in a strip; those past the end
//!    | sites             | rim |               of a row (its rim) are computed and not written
//!    | sites   ..tile..  | rim |       a tap:  the same fragments, read from another row of the window
//!    +-------------------------+
//! ```
//!
//! The first engine ([`crate::conv3d::gemm`]) gathers every tap anew: for a 3x3 plane 9 times the reads,
//! address sums and masks of this one. Per block a cube reads `window * 16` elements and
//! `taps of the plane * 16 * tile_n` packed weights, for `2 * tile_m * tile_n * 16 * taps of the plane`
//! operations. Depth taps that lie outside the source are left out. Weights come from memory straight into
//! fragments (cubes beside each other read the same ones), so that planes meet twice per block and not at
//! every tap. Strided input gradients: [`super::phases`]. Declined: strides in the plane, windows that do not
//! fit ([`super::config`]), the weight gradient.
//!
//! H200, f16, 256 -> 256, 43x62x106, forward: 3.4 ms. Weights that pass through shared memory, with a barrier
//! for each tap, take 5.0; planes of 32x64 sums 4.6 to 5.1. The next window is read before the last tap's
//! products, which stand behind it without a loop: read after them 3.8; before the last tap in a loop 5.4;
//! before the last two 4.5; a second window in shared memory, a part of it read at each tap, 5.6 at best.
//! Weights read a tap ahead: 3.7.

use super::config::{CHANNELS, WindowTile};
use super::epilogue::write_result;
use super::phases::{PhaseTaps, Phases, Work, work_of};
use super::tiling::{Share, SourceBlock, Tiling, block_at, blocks_of, packed_tap};
use crate::conv3d::gemm::config::SUBGROUP;
use crate::conv3d::gemm::fragments::{accumulators, pack_vector};
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use cubecl::cmma::{self, MatrixIdent, MatrixLayout};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn window_kernel<E: Float, S: Float, O: Float, V: Size>(
    source: &[E],
    weight: &[Vector<S, V>],
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
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
    let phased = taps.is_some();
    let width = V::value();
    let row = comptime!(tile.row(width, size));
    let mut window = Shared::<[Vector<S, V>]>::new_slice(comptime!(tile.window * row));
    let mut places = Shared::<[usize]>::new_slice(tile.window);
    let sums = accumulators(comptime!(tile.plane_m * tile.plane_n), tile.fragment);

    let blocks = blocks_of(&walk, &tiling, &share, padding);
    find_places(&walk, &tiling, &share, &mut places, padding, tile);
    sync_cube();
    let tap_vectors = comptime!(CHANNELS / width) * tiling.packed_n as usize;
    let plane_n = UNIT_POS as usize / SUBGROUP / comptime!(tile.tile_m / tile.plane_m) * tile.plane_n;
    let column = (share.first_n as usize + plane_n) * comptime!(CHANNELS / width);
    let mut block = blocks.first;
    let mut tap_at = packed_tap(&taps, &tiling, &blocks, block) * tap_vectors + column;
    let next = block_at(&walk, &tiling, &blocks, block, padding);
    let values = read_window(source, &walk, &places, &next, block < blocks.end, width, tile);
    write_window(&values, &mut window, row, tile);
    sync_cube();
    while block < blocks.end {
        block += 1u32;
        let next = block_at(&walk, &tiling, &blocks, block, padding);
        let mut tap = 0u32.runtime();
        while tap + 1u32 < tiling.taps {
            multiply(&window, weight, tap_at, &sums, &walk, &tiling, &taps, tap, row, tile);
            // All taps lie behind each other, those of the next block too: the next one is a fixed distance
            // away.
            if comptime!(!phased) {
                tap_at += tap_vectors;
            }
            tap += 1u32;
        }
        // The next window travels while the last tap is multiplied. In the loop above its values would be
        // waited for.
        let values = read_window(source, &walk, &places, &next, block < blocks.end, width, tile);
        multiply(&window, weight, tap_at, &sums, &walk, &tiling, &taps, tap, row, tile);
        if comptime!(phased) {
            tap_at = packed_tap(&taps, &tiling, &blocks, block) * tap_vectors + column;
        } else {
            tap_at += tap_vectors;
        }
        sync_cube();
        write_window(&values, &mut window, row, tile);
        sync_cube();
    }
    write_result(&sums, bias, out, &walk, &tiling, &share, tile);
}

/// Where the elements of the window lie in a plane of the source, one added; zero where they do not.
#[cube]
fn find_places(
    walk: &GatherArgs,
    tiling: &Tiling,
    share: &Share,
    places: &mut Shared<[usize]>,
    #[comptime] padding: PaddingMode,
    #[comptime] tile: WindowTile,
) {
    let mut element = UNIT_POS;
    while element < comptime!(tile.window as u32) {
        let (row, column) = tiling.pitch.div_mod(share.first + element);
        let (h, h_inside) = walk.height.load_offset(walk.height.coordinate(row), padding);
        let (w, w_inside) = walk.width.load_offset(walk.width.coordinate(share.strip + column), padding);
        let mut place = 0usize.runtime();
        if h_inside && w_inside {
            place = h + w + 1usize;
        }
        places[element as usize] = place;
        element += comptime!(tile.units() as u32);
    }
}

/// Reads this unit's vectors of a block's window into registers: some channels of a site, lanes along sites.
#[cube]
fn read_window<E: Float>(
    source: &[E],
    walk: &GatherArgs,
    places: &Shared<[usize]>,
    block: &SourceBlock,
    exists: bool,
    #[comptime] width: usize,
    #[comptime] tile: WindowTile,
) -> Sequence<E> {
    let mut values = Sequence::<E>::new();
    #[unroll]
    for load in 0..comptime!(tile.window_loads(width)) {
        let vector = UNIT_POS as usize + comptime!(load * tile.units());
        let channel = (vector / tile.window * width) as u32;
        let place = places[vector % tile.window];
        let at = block.first + place + walk.source_channel(channel);
        let inside = place > 0usize && exists;
        #[unroll]
        for i in 0..width {
            let mut value = E::from_int(0);
            if inside && channel + (i as u32) < block.channels {
                value = source[at + walk.source_channel(i as u32) - 1usize];
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
    #[comptime] tile: WindowTile,
) {
    let width = V::value();
    #[unroll]
    for load in 0..comptime!(tile.window_loads(width)) {
        let vector = UNIT_POS as usize + comptime!(load * tile.units());
        window[vector % tile.window * row + vector / tile.window] = pack_vector(values, load);
    }
}

/// Adds the products of a tap of the plane to the plane's sums. Its weights for this plane begin at `tap_at`,
/// in a phase those of the block's first tap.
#[cube]
#[allow(clippy::too_many_arguments)]
fn multiply<S: Float, V: Size>(
    window: &Shared<[Vector<S, V>]>,
    weight: &[Vector<S, V>],
    tap_at: usize,
    sums: &Sequence<cmma::Matrix<f32>>,
    walk: &GatherArgs,
    tiling: &Tiling,
    taps: &ComptimeOption<PhaseTaps>,
    tap: u32,
    #[comptime] row: usize,
    #[comptime] tile: WindowTile,
) {
    let width = V::value();
    let first_site = UNIT_POS as usize / SUBGROUP % comptime!(tile.tile_m / tile.plane_m) * tile.plane_m;
    let (h, w) = tiling.row_taps.div_mod(tap);
    let tap_at = #[comptime]
    match taps {
        ComptimeOption::Some(taps) => {
            let in_plane = (h * taps.row_step + w * taps.step) as usize;
            tap_at + in_plane * comptime!(CHANNELS / width) * tiling.packed_n as usize
        }
        ComptimeOption::None => tap_at,
    };
    let shift = (h * walk.height.step * tiling.pitch_count + w * walk.width.step) as usize;
    #[unroll]
    for k in 0..comptime!(CHANNELS / tile.fragment) {
        let channels = weight_fragments(weight, tap_at, k, tile);
        #[unroll]
        for j in 0..comptime!(tile.plane_m / tile.fragment) {
            let first = first_site + comptime!(j * tile.fragment) + shift;
            let at = first * row + comptime!(k * tile.fragment / width);
            let sites = cmma::Matrix::<Vector<S, V>>::from_slice(
                MatrixIdent::B,
                tile.fragment,
                tile.fragment,
                tile.fragment,
                MatrixLayout::ColMajor,
                &window[at..comptime!(tile.window * row)],
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

/// The fragments of a plane's channels at the `k`-th run of terms of a block, whose packed weights for this
/// plane begin at `first`.
#[cube]
pub(super) fn weight_fragments<S: Float, V: Size>(
    weight: &[Vector<S, V>],
    first: usize,
    #[comptime] k: usize,
    #[comptime] tile: WindowTile,
) -> Sequence<cmma::Matrix<Vector<S, V>>> {
    let width = V::value();
    let end = weight.len();
    let mut channels = Sequence::<cmma::Matrix<Vector<S, V>>>::new();
    #[unroll]
    for i in 0..comptime!(tile.plane_n / tile.fragment) {
        let at = first + comptime!((i * tile.fragment * CHANNELS + k * tile.fragment) / width);
        channels.push(cmma::Matrix::<Vector<S, V>>::from_slice(
            MatrixIdent::A,
            tile.fragment,
            tile.fragment,
            tile.fragment,
            MatrixLayout::RowMajor,
            &weight[at..end],
            CHANNELS as u32,
        ));
    }
    channels
}
