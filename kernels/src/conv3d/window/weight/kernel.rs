//! The weight gradient on MMA units with a shared input window for nine taps of a frame, fp32 accumulation.
//!
//! ```text
//! partial[slice, o, c, tap] = sum over the slice's positions q of
//!                             dy[o][q] * x[c][q + kh * dilation_h * pitch + kw * dilation_w]
//!
//!   a segment, row by row:           | chunk s - 2 | chunk s - 1 | chunk s |      32 elements each
//!   x,  [element][32 channels]        +-------------- ring --------------+
//!   dy, [position][64 channels]       +-- one chunk -+
//!
//!   a chunk of x is stored once and read by all taps of the dy chunks that reach it
//! ```
//!
//! Segments have a halo as in [`crate::conv3d::window::kernel`]; dy is zero there, and so are its products.
//! The ring holds a chunk and what its taps reach (at most four chunks more); its first rows are repeated
//! behind its last one, so that a fragment may begin at any row. A subgroup accumulates 32x16 channels for
//! nine taps; past the last tap of the frame that one is repeated and not stored. Fragments of 8 halve all
//! channel counts.
//!
//! Per chunk a threadgroup loads `32 * (32 + 64)` elements for `2 * 64 * 32 * 32 * 9` FLOP. Split-K slices
//! are summed in order by `reduce.rs`. The first frames may be in a cache: the frame of a segment is in one
//! tensor, so that a chunk's loads share one uniform branch. Declined: strides within the frame, taps that
//! reach further than the ring.

use super::WindowWeightTile;
use super::chunk::{ChunkReader, write_chunk};
use super::tiling::{WeightTiling, WeightWork, segment_at};
use crate::conv3d::cache::CacheArgs;
use crate::conv3d::gemm::config::SUBGROUP;
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::mma::{
    accumulators, load_fragment, multiply_fragments, store_chosen_to_patch, store_to_patch,
};
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use cubecl::cmma::{self, MatrixIdent, MatrixLayout};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Taps of a frame that a threadgroup accumulates.
pub(super) const TAPS: usize = 9;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn window_weight_kernel<E: Float, S: Float, O: Float, V: Size>(
    source: &[E],
    cache: ComptimeOption<&[E]>,
    dy: &[E],
    out: &mut [O],
    gather: GatherArgs,
    cache_args: ComptimeOption<CacheArgs>,
    tiling: WeightTiling,
    span: Span,
    // Along depth, and along H and W.
    #[comptime] padding: [PaddingMode; 2],
    #[comptime] tile: WindowWeightTile,
    #[comptime] prefetch: bool,
    #[comptime] size: usize,
    // For the kernel's key, in which optional arguments do not count.
    #[comptime] _has_cache: bool,
    #[define(E)] _dtype: ElemType,
    #[define(S)] _stage_dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole threadgroup exits: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let work = tiling.work(span.index() as u32, tile);
    let width = V::value();
    let x_pitch = comptime!(tile.pitch(tile.channels(), width, size));
    let dy_pitch = comptime!(tile.pitch(tile.out_channels(), width, size));
    let mut ring = Shared::<[Vector<S, V>]>::new_slice(comptime!((tile.ring + tile.fragment) * x_pitch));
    let mut dy_stage = Shared::<[Vector<S, V>]>::new_slice(comptime!(tile.positions * dy_pitch));
    let acc = accumulators(comptime!(2 * TAPS * tile.fragment * tile.fragment), tile.fragment);
    // The shift of each tap in elements of the segment.
    let mut shifts = Sequence::<u32>::new();
    #[unroll]
    for tap in 0..TAPS {
        let (h, w) = tiling.row_taps.div_mod(min(work.first_tap + tap as u32, tiling.taps - 1u32));
        shifts.push(h * gather.height.step * tiling.pitch + w * gather.width.step);
    }

    let in_frame = comptime!(padding[1]);
    let reader = ChunkReader::new(source, cache, dy, &gather, &cache_args, &tiling, &work, in_frame, tile);
    let pitches = comptime!((x_pitch, dy_pitch));
    let slots = comptime!((tile.ring / tile.positions) as u32);
    let mut index = work.k_slice * tiling.slice_segments;
    let end = min(index + tiling.slice_segments, tiling.segment_count);
    while index < end {
        let segment = segment_at(&gather, &tiling, &cache_args, &work, index, comptime!(padding[0]));
        let chunks = (segment.rows * tiling.pitch).div_ceil(tile.positions as u32) + tiling.lag;
        let chunks = select(segment.inside, chunks, 0u32);
        let mut chunk = 0u32.runtime();
        if comptime!(prefetch) {
            let (x_values, dy_values) = reader.read(&segment, chunk, chunks, width);
            sync_cube();
            write_chunk(&x_values, &dy_values, &mut ring, &mut dy_stage, 0u32, pitches, tile);
            sync_cube();
            while chunk < chunks {
                let multiplies = chunk >= tiling.lag;
                // The ring's row of the first position of dy's chunk.
                let first = (chunk + slots - tiling.lag) % slots * comptime!(tile.positions as u32);
                if multiplies {
                    let mut k = 0u32.runtime();
                    while k < comptime!((tile.positions - tile.fragment) as u32) {
                        multiply(&ring, &dy_stage, &acc, &shifts, first, k, pitches, tile);
                        k += comptime!(tile.fragment as u32);
                    }
                }
                // Prefetch the next chunk before the last products.
                chunk += 1u32;
                let (x_values, dy_values) = reader.read(&segment, chunk, chunks, width);
                if multiplies {
                    let k = comptime!((tile.positions - tile.fragment) as u32).runtime();
                    multiply(&ring, &dy_stage, &acc, &shifts, first, k, pitches, tile);
                }
                sync_cube();
                write_chunk(&x_values, &dy_values, &mut ring, &mut dy_stage, chunk % slots, pitches, tile);
                sync_cube();
            }
        } else {
            // The loads' registers are free during the product: more threads hide the latency.
            while chunk < chunks {
                let (x_values, dy_values) = reader.read(&segment, chunk, chunks, width);
                // Every thread has finished with the previous chunk.
                sync_cube();
                write_chunk(&x_values, &dy_values, &mut ring, &mut dy_stage, chunk % slots, pitches, tile);
                sync_cube();
                if chunk >= tiling.lag {
                    let first = (chunk + slots - tiling.lag) % slots * comptime!(tile.positions as u32);
                    let mut k = 0u32.runtime();
                    while k < comptime!(tile.positions as u32) {
                        multiply(&ring, &dy_stage, &acc, &shifts, first, k, pitches, tile);
                        k += comptime!(tile.fragment as u32);
                    }
                }
                chunk += 1u32;
            }
        }
        index += 1u32;
    }
    write_result(&acc, out, &tiling, &work, tile, prefetch);
}

/// Accumulates the products of the chunk's positions `k..k + fragment` for every tap; `first` is the ring's
/// row of the chunk's first position.
#[cube]
fn multiply<S: Float, V: Size>(
    ring: &Shared<[Vector<S, V>]>,
    dy_stage: &Shared<[Vector<S, V>]>,
    acc: &Sequence<cmma::Matrix<f32>>,
    shifts: &Sequence<u32>,
    first: u32,
    k: u32,
    #[comptime] pitches: (usize, usize),
    #[comptime] tile: WindowWeightTile,
) {
    let width = V::value();
    let subgroup = UNIT_POS as usize / SUBGROUP;
    let (x_pitch, dy_pitch) = pitches;
    let c = subgroup % 2 * comptime!(tile.fragment / width);
    let o = subgroup / 2 * comptime!(2 * tile.fragment / width);
    let mut a = Sequence::<cmma::Matrix<Vector<S, V>>>::new();
    #[unroll]
    for i in 0..2 {
        let at = k as usize * dy_pitch + o + comptime!(i * tile.fragment / width);
        a.push(load_fragment(
            &dy_stage[at..comptime!(tile.positions * dy_pitch)],
            MatrixIdent::A,
            MatrixLayout::ColMajor,
            comptime!(dy_pitch * width),
            tile.fragment,
        ));
    }
    #[unroll]
    for tap in 0..TAPS {
        let row = first + k + *shifts.index(tap);
        let row = select(row >= comptime!(tile.ring as u32), row - comptime!(tile.ring as u32), row);
        let at = row as usize * x_pitch + c;
        let b = load_fragment(
            &ring[at..comptime!((tile.ring + tile.fragment) * x_pitch)],
            MatrixIdent::B,
            MatrixLayout::RowMajor,
            comptime!(x_pitch * width),
            tile.fragment,
        );
        multiply_fragments(&a, &b, acc, 2usize, comptime!(tap * 2), 1usize);
    }
}

/// Stores a subgroup's results, through its patch of shared memory. Not unrolled, fragments are chosen at run
/// time.
#[cube]
fn write_result<O: Float>(
    acc: &Sequence<cmma::Matrix<f32>>,
    out: &mut [O],
    tiling: &WeightTiling,
    work: &WeightWork,
    #[comptime] tile: WindowWeightTile,
    #[comptime] unroll: bool,
) {
    let subgroup = UNIT_POS as usize / SUBGROUP;
    let lane = (UNIT_POS as usize % SUBGROUP) as u32;
    let size = comptime!(tile.fragment * tile.fragment);
    let mut patches = Shared::<[f32]>::new_slice(comptime!(4 * size));
    let first_c = work.first_c + (subgroup % 2 * tile.fragment) as u32;
    let first_o = work.first_o + (subgroup / 2 * comptime!(2 * tile.fragment)) as u32;
    let place = Place { lane, subgroup, first_c, first_o };
    if comptime!(unroll) {
        #[unroll]
        for tap in 0..TAPS {
            let frame_tap = work.first_tap + tap as u32;
            #[unroll]
            for i in 0..2 {
                let sum = acc.index(comptime!(tap * 2 + i));
                store_to_patch(sum, &mut patches, subgroup * size, tile.fragment);
                let row = comptime!((i * tile.fragment) as u32).runtime();
                write_fragment(&patches, out, tiling, work, &place, frame_tap, row, tile);
            }
        }
    } else {
        for fragment in 0..comptime!(2 * TAPS as u32) {
            store_chosen_to_patch(acc, fragment, &mut patches, subgroup * size, tile.fragment);
            let frame_tap = work.first_tap + fragment / 2u32;
            let row = fragment % 2u32 * tile.fragment as u32;
            write_fragment(&patches, out, tiling, work, &place, frame_tap, row, tile);
        }
    }
}

/// A lane's part of a threadgroup's tile, and the subgroup's first channels.
#[derive(CubeType)]
struct Place {
    lane: u32,
    subgroup: usize,
    first_c: u32,
    first_o: u32,
}

/// Stores a fragment of a tap, whose output channels begin `row` behind the subgroup's.
#[cube]
fn write_fragment<O: Float>(
    patches: &Shared<[f32]>,
    out: &mut [O],
    tiling: &WeightTiling,
    work: &WeightWork,
    place: &Place,
    frame_tap: u32,
    row: u32,
    #[comptime] tile: WindowWeightTile,
) {
    let size = comptime!(tile.fragment * tile.fragment);
    #[unroll]
    for step in 0..comptime!(size / SUBGROUP) {
        let in_patch = place.lane + comptime!((step * SUBGROUP) as u32);
        let c = place.first_c + in_patch % tile.fragment as u32;
        let o = place.first_o + row + in_patch / tile.fragment as u32;
        if c < tiling.channels && o < tiling.out_channels && frame_tap < tiling.taps {
            let row = (work.group * tiling.out_channels + o) as usize * tiling.row_stride;
            let tap = (work.depth_tap * tiling.taps + frame_tap) as usize * tiling.tap_stride;
            let at = row + c as usize * tiling.channel_stride + tap;
            out[work.k_slice as usize * tiling.slice_stride + at] =
                O::cast_from(patches[place.subgroup * size + in_patch as usize]);
        }
    }
}
