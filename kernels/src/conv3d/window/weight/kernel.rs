//! The weight gradient on matrix units with a window of the source in shared memory for nine taps of a plane,
//! fp32 accumulation.
//!
//! ```text
//! partial[part, o, c, tap] = sum over the part's sites q of dy[o][q] * x[c][q shifted by kh * pitch + kw]
//!
//!   elements of a strip, row by row:     | chunk s - 2 | chunk s - 1 | chunk s |    32 elements each
//!   the source, 32 channels of each       +-------------- ring --------------+
//!   dy, 64 channels of each               +-- one chunk -+
//!
//!   a chunk is written once and is read by all taps of the chunks that its windows reach
//! ```
//!
//! A strip's row is its sites and the rim that their windows reach ([`crate::conv3d::window::kernel`]); dy
//! is zero in the rim, and so are its products. The ring holds a chunk and what its taps reach (at most four
//! more); its first rows stand once more behind its last, so that a fragment may begin in any of them. A
//! plane holds the sums of 32x16 channels (Apple: 16x8) for nine taps; where fewer are left the last one is
//! repeated and not written. Per chunk a cube reads `32 * (32 + 64)` elements for `2 * 64 * 32 * 32 * 9`
//! operations. Parts are summed in order by `reduce.rs`. Declined: strides in the plane, windows whose taps
//! reach further than the ring.

use super::WindowWeightTile;
use super::places::{Share, Strip, WeightTiling, dy_place, strip_at, x_place};
use crate::conv3d::gemm::config::SUBGROUP;
use crate::conv3d::gemm::fragments::{accumulators, pack_vector, store_to_scratch};
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use cubecl::cmma::{self, MatrixIdent, MatrixLayout};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Taps of a plane whose sums a cube holds.
pub(super) const TAPS: usize = 9;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn window_weight_kernel<E: Float, S: Float, O: Float, V: Size>(
    source: &[E],
    dy: &[E],
    out: &mut [O],
    walk: GatherArgs,
    tiling: WeightTiling,
    span: Span,
    #[comptime] padding: PaddingMode,
    #[comptime] tile: WindowWeightTile,
    #[comptime] size: usize,
    #[define(E)] _dtype: ElemType,
    #[define(S)] _stage_dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let share = tiling.share(span.cube() as u32, tile);
    let width = V::value();
    let x_row = comptime!(tile.row(tile.channels(), width, size));
    let dy_row = comptime!(tile.row(tile.out_channels(), width, size));
    let mut ring = Shared::<[Vector<S, V>]>::new_slice(comptime!((tile.ring + tile.fragment) * x_row));
    let mut chunk = Shared::<[Vector<S, V>]>::new_slice(comptime!(tile.sites * dy_row));
    let sums = accumulators(comptime!(2 * TAPS * tile.fragment * tile.fragment), tile.fragment);
    // How far each tap's elements lie behind a site.
    let mut shifts = Sequence::<u32>::new();
    #[unroll]
    for tap in 0..TAPS {
        let (h, w) = tiling.row_taps.div_mod(min(share.first_tap + tap as u32, tiling.taps - 1u32));
        shifts.push(h * walk.height.step * tiling.pitch_count + w * walk.width.step);
    }

    let slots = comptime!((tile.ring / tile.sites) as u32);
    let mut index = share.part * tiling.part_strips;
    let end = min(index + tiling.part_strips, tiling.strip_count);
    while index < end {
        let strip = strip_at(&walk, &tiling, &share, index, padding);
        let chunks = (strip.rows * tiling.pitch_count).div_ceil(tile.sites as u32) + tiling.ahead;
        let chunks = select(strip.inside, chunks, 0u32);
        let mut number = 0u32.runtime();
        let (x_values, dy_values) =
            read_chunk(source, dy, &walk, &tiling, &share, &strip, number, chunks, padding, width, tile);
        sync_cube();
        write_chunk(&x_values, &dy_values, &mut ring, &mut chunk, 0u32, (x_row, dy_row), tile);
        sync_cube();
        while number < chunks {
            let multiplied = number >= tiling.ahead;
            // The ring's row of the chunk's first site.
            let first = (number + slots - tiling.ahead) % slots * comptime!(tile.sites as u32);
            if multiplied {
                let mut k = 0u32.runtime();
                while k < comptime!((tile.sites - tile.fragment) as u32) {
                    multiply(&ring, &chunk, &sums, &shifts, first, k, (x_row, dy_row), tile);
                    k += comptime!(tile.fragment as u32);
                }
            }
            // The next chunk travels while the last products are computed.
            number += 1u32;
            let (x_values, dy_values) =
                read_chunk(source, dy, &walk, &tiling, &share, &strip, number, chunks, padding, width, tile);
            if multiplied {
                let k = comptime!((tile.sites - tile.fragment) as u32).runtime();
                multiply(&ring, &chunk, &sums, &shifts, first, k, (x_row, dy_row), tile);
            }
            sync_cube();
            write_chunk(&x_values, &dy_values, &mut ring, &mut chunk, number % slots, (x_row, dy_row), tile);
            sync_cube();
        }
        index += 1u32;
    }
    write_result(&sums, out, &tiling, &share, tile);
}

/// Reads this unit's vectors of chunk `number` of a strip of x, and of dy's chunk as many before it as its
/// taps reach beyond it.
#[cube]
#[allow(clippy::too_many_arguments)]
fn read_chunk<E: Float>(
    source: &[E],
    dy: &[E],
    walk: &GatherArgs,
    tiling: &WeightTiling,
    share: &Share,
    strip: &Strip,
    number: u32,
    chunks: u32,
    #[comptime] padding: PaddingMode,
    #[comptime] width: usize,
    #[comptime] tile: WindowWeightTile,
) -> (Sequence<E>, Sequence<E>) {
    // This unit's site of a chunk, and its first channel.
    let site = UNIT_POS % comptime!(tile.sites as u32);
    let run = UNIT_POS / comptime!(tile.sites as u32) * width as u32;
    let first_c = share.first_c + run;
    let first_o = share.first_o + run;
    let step = comptime!((tile.units() / tile.sites * width) as u32);
    let more = number < chunks;

    let (place, inside) = x_place(walk, tiling, strip, number * comptime!(tile.sites as u32) + site, padding);
    let values = read::<E>(
        source,
        place + walk.source_channel(share.group * tiling.channels + first_c),
        walk.source_channel(1u32),
        step,
        max(tiling.channels, first_c) - first_c,
        inside && more,
        comptime!(tile.loads(tile.channels(), width)),
        width,
    );
    let started = number >= tiling.ahead;
    let number = max(number, tiling.ahead) - tiling.ahead;
    let (place, inside) = dy_place(walk, tiling, strip, number * comptime!(tile.sites as u32) + site);
    let dy_values = read::<E>(
        dy,
        place + walk.out_channel(share.group * tiling.out_channels + first_o),
        walk.out_channel(1u32),
        step,
        max(tiling.out_channels, first_o) - first_o,
        inside && more && started,
        comptime!(tile.loads(tile.out_channels(), width)),
        width,
    );
    (values, dy_values)
}

/// Writes what [`read_chunk`] has read: x into a slot of the ring, the first one's first rows behind the last
/// as well, and dy.
#[cube]
fn write_chunk<E: Float, S: Float, V: Size>(
    x_values: &Sequence<E>,
    dy_values: &Sequence<E>,
    ring: &mut Shared<[Vector<S, V>]>,
    chunk: &mut Shared<[Vector<S, V>]>,
    slot: u32,
    #[comptime] rows: (usize, usize),
    #[comptime] tile: WindowWeightTile,
) {
    let (x_row, dy_row) = rows;
    let site = UNIT_POS % comptime!(tile.sites as u32);
    write(
        x_values,
        ring,
        slot * comptime!(tile.sites as u32) + site,
        x_row,
        comptime!(tile.channels()),
        tile,
    );
    if slot == 0u32 && site < comptime!(tile.fragment as u32) {
        write(x_values, ring, site + comptime!(tile.ring as u32), x_row, comptime!(tile.channels()), tile);
    }
    write(dy_values, chunk, site, dy_row, comptime!(tile.out_channels()), tile);
}

/// Reads this unit's vectors of a chunk into registers: runs of `width` channels of one element, `step`
/// channels apart, of the `end` that exist; lanes along elements.
#[cube]
#[allow(clippy::too_many_arguments)]
fn read<E: Float>(
    from: &[E],
    place: usize,
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
                value = from[place + channel as usize * stride];
            }
            values.push(value);
        }
    }
    values
}

/// Writes what [`read`] has read into row `row` of a stage.
#[cube]
fn write<E: Float, S: Float, V: Size>(
    values: &Sequence<E>,
    stage: &mut Shared<[Vector<S, V>]>,
    row: u32,
    #[comptime] row_vectors: usize,
    #[comptime] channels: usize,
    #[comptime] tile: WindowWeightTile,
) {
    let width = V::value();
    let run = UNIT_POS as usize / tile.sites;
    #[unroll]
    for load in 0..comptime!(tile.loads(channels, width)) {
        stage[row as usize * row_vectors + run + comptime!(load * (tile.units() / tile.sites))] =
            pack_vector(values, load);
    }
}

/// Adds the products of a chunk's sites `k..k + fragment` to a plane's sums, for every tap; `first` is the
/// ring's row of the chunk's first site.
#[cube]
#[allow(clippy::too_many_arguments)]
fn multiply<S: Float, V: Size>(
    ring: &Shared<[Vector<S, V>]>,
    chunk: &Shared<[Vector<S, V>]>,
    sums: &Sequence<cmma::Matrix<f32>>,
    shifts: &Sequence<u32>,
    first: u32,
    k: u32,
    #[comptime] rows: (usize, usize),
    #[comptime] tile: WindowWeightTile,
) {
    let width = V::value();
    let plane = UNIT_POS as usize / SUBGROUP;
    let (x_row, dy_row) = rows;
    let c = plane % 2 * comptime!(tile.fragment / width);
    let o = plane / 2 * comptime!(2 * tile.fragment / width);
    let mut channels = Sequence::<cmma::Matrix<Vector<S, V>>>::new();
    #[unroll]
    for i in 0..2 {
        let at = k as usize * dy_row + o + comptime!(i * tile.fragment / width);
        channels.push(cmma::Matrix::<Vector<S, V>>::from_slice(
            MatrixIdent::A,
            tile.fragment,
            tile.fragment,
            tile.fragment,
            MatrixLayout::ColMajor,
            &chunk[at..comptime!(tile.sites * dy_row)],
            comptime!((dy_row * width) as u32),
        ));
    }
    #[unroll]
    for tap in 0..TAPS {
        let row = first + k + *shifts.index(tap);
        let row = select(row >= comptime!(tile.ring as u32), row - comptime!(tile.ring as u32), row);
        let at = row as usize * x_row + c;
        let sites = cmma::Matrix::<Vector<S, V>>::from_slice(
            MatrixIdent::B,
            tile.fragment,
            tile.fragment,
            tile.fragment,
            MatrixLayout::RowMajor,
            &ring[at..comptime!((tile.ring + tile.fragment) * x_row)],
            comptime!((x_row * width) as u32),
        );
        #[unroll]
        for i in 0..2 {
            let sum = sums.index(comptime!(tap * 2 + i));
            cmma::execute(channels.index(i), &sites, sum, sum);
        }
    }
}

/// Writes a plane's sums, through the plane's own patch of shared memory.
#[cube]
fn write_result<O: Float>(
    sums: &Sequence<cmma::Matrix<f32>>,
    out: &mut [O],
    tiling: &WeightTiling,
    share: &Share,
    #[comptime] tile: WindowWeightTile,
) {
    let plane = UNIT_POS as usize / SUBGROUP;
    let lane = (UNIT_POS as usize % SUBGROUP) as u32;
    let size = comptime!(tile.fragment * tile.fragment);
    let mut patches = Shared::<[f32]>::new_slice(comptime!(4 * size));
    let first_c = share.first_c + (plane % 2 * tile.fragment) as u32;
    let first_o = share.first_o + (plane / 2 * comptime!(2 * tile.fragment)) as u32;
    #[unroll]
    for tap in 0..TAPS {
        let in_plane = share.first_tap + tap as u32;
        #[unroll]
        for i in 0..2 {
            store_to_scratch(sums.index(comptime!(tap * 2 + i)), &mut patches, plane * size, tile.fragment);
            #[unroll]
            for step in 0..comptime!(size / SUBGROUP) {
                let in_patch = lane + comptime!((step * SUBGROUP) as u32);
                let c = first_c + in_patch % tile.fragment as u32;
                let o = first_o + comptime!((i * tile.fragment) as u32) + in_patch / tile.fragment as u32;
                if c < tiling.channels && o < tiling.out_channels && in_plane < tiling.taps {
                    let row = (share.group * tiling.out_channels + o) as usize * tiling.row_stride;
                    let tap = (share.depth_tap * tiling.taps + in_plane) as usize * tiling.tap_stride;
                    let at = row + c as usize * tiling.channel_stride + tap;
                    out[share.part as usize * tiling.part_stride + at] =
                        O::cast_from(patches[plane * size + in_patch as usize]);
                }
            }
        }
    }
}
