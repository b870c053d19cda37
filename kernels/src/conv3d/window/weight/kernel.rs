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
//! are summed in order by `reduce.rs`. Declined: strides within the frame, taps that reach further than the
//! ring.

use super::WindowWeightTile;
use super::tiling::{Segment, WeightTiling, WeightWork, dy_offset, segment_at, x_offset};
use crate::conv3d::gemm::config::SUBGROUP;
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::mma::{accumulators, load_fragment, multiply_fragments, pack_vector, store_to_patch};
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
    dy: &[E],
    out: &mut [O],
    walk: GatherArgs,
    tiling: WeightTiling,
    span: Span,
    #[comptime] padding: PaddingMode,
    #[comptime] tile: WindowWeightTile,
    #[comptime] prefetch: bool,
    #[comptime] size: usize,
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
        shifts.push(h * walk.height.step * tiling.pitch + w * walk.width.step);
    }

    let slots = comptime!((tile.ring / tile.positions) as u32);
    let mut index = work.k_slice * tiling.slice_segments;
    let end = min(index + tiling.slice_segments, tiling.segment_count);
    while index < end {
        let segment = segment_at(&walk, &tiling, &work, index, padding);
        let chunks = (segment.rows * tiling.pitch).div_ceil(tile.positions as u32) + tiling.lag;
        let chunks = select(segment.inside, chunks, 0u32);
        let mut chunk = 0u32.runtime();
        if comptime!(prefetch) {
            let (x_values, dy_values) =
                read_chunk(source, dy, &walk, &tiling, &work, &segment, chunk, chunks, padding, width, tile);
            sync_cube();
            write_chunk(&x_values, &dy_values, &mut ring, &mut dy_stage, 0u32, (x_pitch, dy_pitch), tile);
            sync_cube();
            while chunk < chunks {
                let multiplies = chunk >= tiling.lag;
                // The ring's row of the first position of dy's chunk.
                let first = (chunk + slots - tiling.lag) % slots * comptime!(tile.positions as u32);
                if multiplies {
                    let mut k = 0u32.runtime();
                    while k < comptime!((tile.positions - tile.fragment) as u32) {
                        multiply(&ring, &dy_stage, &acc, &shifts, first, k, (x_pitch, dy_pitch), tile);
                        k += comptime!(tile.fragment as u32);
                    }
                }
                // Prefetch the next chunk before the last products.
                chunk += 1u32;
                let (x_values, dy_values) = read_chunk(
                    source, dy, &walk, &tiling, &work, &segment, chunk, chunks, padding, width, tile,
                );
                if multiplies {
                    let k = comptime!((tile.positions - tile.fragment) as u32).runtime();
                    multiply(&ring, &dy_stage, &acc, &shifts, first, k, (x_pitch, dy_pitch), tile);
                }
                sync_cube();
                write_chunk(
                    &x_values,
                    &dy_values,
                    &mut ring,
                    &mut dy_stage,
                    chunk % slots,
                    (x_pitch, dy_pitch),
                    tile,
                );
                sync_cube();
            }
        } else {
            // The loads' registers are free during the product: more threads hide the latency.
            while chunk < chunks {
                let (x_values, dy_values) = read_chunk(
                    source, dy, &walk, &tiling, &work, &segment, chunk, chunks, padding, width, tile,
                );
                // Every thread has finished with the previous chunk.
                sync_cube();
                let pitches = comptime!((x_pitch, dy_pitch));
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
    write_result(&acc, out, &tiling, &work, tile);
}

/// Loads this thread's vectors of chunk `chunk` of a segment of x, and of the chunk of dy `lag` before it.
#[cube]
fn read_chunk<E: Float>(
    source: &[E],
    dy: &[E],
    walk: &GatherArgs,
    tiling: &WeightTiling,
    work: &WeightWork,
    segment: &Segment,
    chunk: u32,
    chunks: u32,
    #[comptime] padding: PaddingMode,
    #[comptime] width: usize,
    #[comptime] tile: WindowWeightTile,
) -> (Sequence<E>, Sequence<E>) {
    // This thread's position in a chunk, and its first channel.
    let position = UNIT_POS % comptime!(tile.positions as u32);
    let in_tile = UNIT_POS / comptime!(tile.positions as u32) * width as u32;
    let first_c = work.first_c + in_tile;
    let first_o = work.first_o + in_tile;
    let step = comptime!((tile.threads() / tile.positions * width) as u32);
    let exists = chunk < chunks;

    let (offset, inside) =
        x_offset(walk, tiling, segment, chunk * comptime!(tile.positions as u32) + position, padding);
    let values = read_channels::<E>(
        source,
        offset + walk.source_channel(work.group * tiling.channels + first_c),
        walk.source_channel(1u32),
        step,
        max(tiling.channels, first_c) - first_c,
        inside && exists,
        comptime!(tile.loads(tile.channels(), width)),
        width,
    );
    let started = chunk >= tiling.lag;
    let chunk = max(chunk, tiling.lag) - tiling.lag;
    let (offset, inside) =
        dy_offset(walk, tiling, segment, chunk * comptime!(tile.positions as u32) + position);
    let dy_values = read_channels::<E>(
        dy,
        offset + walk.out_channel(work.group * tiling.out_channels + first_o),
        walk.out_channel(1u32),
        step,
        max(tiling.out_channels, first_o) - first_o,
        inside && exists && started,
        comptime!(tile.loads(tile.out_channels(), width)),
        width,
    );
    (values, dy_values)
}

/// Stores what [`read_chunk`] has loaded: dy, and x into a slot of the ring; the first rows of slot 0 also
/// behind the last slot.
#[cube]
fn write_chunk<E: Float, S: Float, V: Size>(
    x_values: &Sequence<E>,
    dy_values: &Sequence<E>,
    ring: &mut Shared<[Vector<S, V>]>,
    dy_stage: &mut Shared<[Vector<S, V>]>,
    slot: u32,
    #[comptime] pitches: (usize, usize),
    #[comptime] tile: WindowWeightTile,
) {
    let (x_pitch, dy_pitch) = pitches;
    let position = UNIT_POS % comptime!(tile.positions as u32);
    write_channels(
        x_values,
        ring,
        slot * comptime!(tile.positions as u32) + position,
        x_pitch,
        comptime!(tile.channels()),
        tile,
    );
    if slot == 0u32 && position < comptime!(tile.fragment as u32) {
        write_channels(
            x_values,
            ring,
            position + comptime!(tile.ring as u32),
            x_pitch,
            comptime!(tile.channels()),
            tile,
        );
    }
    write_channels(dy_values, dy_stage, position, dy_pitch, comptime!(tile.out_channels()), tile);
}

/// Loads this thread's vectors of a chunk into registers: `width` consecutive channels of one element, `step`
/// channels apart, zero from channel `end` on; lanes along elements.
#[cube]
fn read_channels<E: Float>(
    from: &[E],
    offset: usize,
    stride: usize,
    step: u32,
    end: u32,
    exists: bool,
    #[comptime] loads: usize,
    #[comptime] width: usize,
) -> Sequence<E> {
    let mut values = Sequence::<E>::new();
    #[unroll]
    for load in 0..loads {
        #[unroll]
        for i in 0..width {
            let channel = step * load as u32 + i as u32;
            let mut value = E::from_int(0);
            if exists && channel < end {
                value = from[offset + channel as usize * stride];
            }
            values.push(value);
        }
    }
    values
}

/// Stores what [`read_channels`] has loaded into row `row` of a stage.
#[cube]
fn write_channels<E: Float, S: Float, V: Size>(
    values: &Sequence<E>,
    stage: &mut Shared<[Vector<S, V>]>,
    row: u32,
    #[comptime] pitch: usize,
    #[comptime] channels: usize,
    #[comptime] tile: WindowWeightTile,
) {
    let width = V::value();
    let vector = UNIT_POS as usize / tile.positions;
    #[unroll]
    for load in 0..comptime!(tile.loads(channels, width)) {
        stage[row as usize * pitch + vector + comptime!(load * (tile.threads() / tile.positions))] =
            pack_vector(values, load);
    }
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

/// Stores a subgroup's results, through its patch of shared memory.
#[cube]
fn write_result<O: Float>(
    acc: &Sequence<cmma::Matrix<f32>>,
    out: &mut [O],
    tiling: &WeightTiling,
    work: &WeightWork,
    #[comptime] tile: WindowWeightTile,
) {
    let subgroup = UNIT_POS as usize / SUBGROUP;
    let lane = (UNIT_POS as usize % SUBGROUP) as u32;
    let size = comptime!(tile.fragment * tile.fragment);
    let mut patches = Shared::<[f32]>::new_slice(comptime!(4 * size));
    let first_c = work.first_c + (subgroup % 2 * tile.fragment) as u32;
    let first_o = work.first_o + (subgroup / 2 * comptime!(2 * tile.fragment)) as u32;
    #[unroll]
    for tap in 0..TAPS {
        let frame_tap = work.first_tap + tap as u32;
        #[unroll]
        for i in 0..2 {
            store_to_patch(acc.index(comptime!(tap * 2 + i)), &mut patches, subgroup * size, tile.fragment);
            #[unroll]
            for step in 0..comptime!(size / SUBGROUP) {
                let in_patch = lane + comptime!((step * SUBGROUP) as u32);
                let c = first_c + in_patch % tile.fragment as u32;
                let o = first_o + comptime!((i * tile.fragment) as u32) + in_patch / tile.fragment as u32;
                if c < tiling.channels && o < tiling.out_channels && frame_tap < tiling.taps {
                    let row = (work.group * tiling.out_channels + o) as usize * tiling.row_stride;
                    let tap = (work.depth_tap * tiling.taps + frame_tap) as usize * tiling.tap_stride;
                    let at = row + c as usize * tiling.channel_stride + tap;
                    out[work.k_slice as usize * tiling.slice_stride + at] =
                        O::cast_from(patches[subgroup * size + in_patch as usize]);
                }
            }
        }
    }
}
