//! The weight gradient with a shared input window for all taps of a frame: its tile, its split-K slices and
//! its launch.

mod chunk;
mod kernel;
mod tiling;

use super::extents::{halo, has_few_taps};
use crate::conv3d::cache::cache_args;
use crate::conv3d::call::Conv3dCall;
use crate::conv3d::gemm::config::SUBGROUP;
use crate::conv3d::gemm::gather::{Gather, gather_args, gathers};
use crate::conv3d::gemm::{self, fragment, stage_vector};
use crate::conv3d::loops::nest;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::reduce;
use crate::conv3d::row_segments::RowSegments;
use crate::conv3d::split::{LastWave, MIN_STAGES, ReductionSplit, TiledProduct, affordable_slices};
use crate::conv3d::tiles::Tiles;
use crate::error::ConvError;
use crate::launch::dispatches;
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::prelude::*;
use kernel::{TAPS, window_weight_kernel};
use tiling::WeightTilingLaunch;

/// The tile of a threadgroup: four subgroups, each with two by one fragments for each of nine taps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct WindowWeightTile {
    /// Positions of a chunk: what shared memory holds of dy.
    pub positions: usize,
    /// Elements of the source in shared memory: whole chunks.
    pub ring: usize,
    /// M, N and K of a fragment: 8 on Apple's simdgroups, 16 elsewhere.
    pub fragment: usize,
}

/// Fragments of 16 (f16): 144 accumulators a thread, 23 KiB of shared memory.
const SIXTEEN: [WindowWeightTile; 1] = [WindowWeightTile { positions: 32, ring: 160, fragment: 16 }];
/// Fragments of 8 (f32): 36 accumulators a thread, 19 KiB of shared memory.
const EIGHT: [WindowWeightTile; 1] = [WindowWeightTile { positions: 32, ring: 160, fragment: 8 }];

/// Multiply-adds in the time of storing one result (H200).
const EPILOGUE: f64 = 2200.0;

/// Subgroups of a threadgroup: two along the channels of x by two along those of dy.
const SUBGROUPS: usize = 4;

impl WindowWeightTile {
    /// The tiles for a fragment size.
    pub fn all(fragment: usize) -> &'static [Self] {
        match fragment {
            8 => &EIGHT,
            16 => &SIXTEEN,
            _ => &[],
        }
    }

    /// Threads of a threadgroup.
    pub fn threads(&self) -> usize {
        SUBGROUPS * SUBGROUP
    }

    /// Channels of x of a threadgroup.
    pub fn channels(&self) -> usize {
        2 * self.fragment
    }

    /// Channels of dy of a threadgroup.
    pub fn out_channels(&self) -> usize {
        4 * self.fragment
    }

    /// Bytes of shared memory with stage elements of `size` bytes.
    pub fn shared_bytes(&self, size: usize) -> usize {
        let patches = SUBGROUPS * self.fragment * self.fragment * 4;
        (self.ring + self.fragment) * (self.channels() * size + 16)
            + self.positions * (self.out_channels() * size + 16)
            + patches
    }

    /// Vectors of `width` channels that a thread loads of a chunk with `channels` channels.
    pub(super) fn loads(&self, channels: usize, width: usize) -> usize {
        self.positions * channels / width / self.threads()
    }

    /// The name used in tables and reports.
    pub fn name(&self) -> String {
        format!("{}x{}x{TAPS}", self.out_channels(), self.channels())
    }

    /// Pitch of a stage in vectors of `width` elements: the channels of one position, padded by 16 bytes
    /// against bank conflicts.
    pub(super) fn pitch(&self, channels: usize, width: usize, size: usize) -> usize {
        (channels + 16 / size) / width
    }
}

/// What K runs over: the row segments of all frames, halo included.
#[derive(Clone, Copy, Debug)]
struct WeightSegments {
    segments: RowSegments,
    /// Frames of all images.
    frames: usize,
    /// Rows of a frame.
    rows: usize,
    /// Chunks by which dy lags behind x: what the taps of one chunk reach beyond it.
    lag: usize,
}

impl WeightSegments {
    /// The widest segments whose ring holds what the taps of a chunk reach; none where no ring does.
    fn of(problem: &Conv3dProblem, gather: &Gather, tile: &WindowWeightTile) -> Option<Self> {
        let [depth, height, width] = gather;
        let halo = halo(gather);
        let segments = RowSegments::of(width.positions, halo, tile.positions, tile.ring)?;
        let [halo_rows, halo_columns] = halo;
        (height.positions > 0).then_some(Self {
            segments,
            frames: depth.positions * problem.batch,
            rows: height.positions,
            lag: (halo_rows * segments.pitch + halo_columns).div_ceil(tile.positions),
        })
    }

    /// Rows of a band: few enough for an accurate sum, and for `tiles` threadgroups per band to fill the
    /// device.
    fn band_rows(&self, tiles: usize, tile: &WindowWeightTile, limits: &Limits) -> usize {
        let accurate = self.rows.div_ceil((ReductionSplit::LENGTH / self.segments.pitch).max(1));
        let worthwhile = (self.rows * self.segments.pitch).div_ceil(MIN_STAGES * tile.positions);
        let threadgroups = tiles * self.segments.count * self.frames;
        // A quarter of the threadgroups in flight keeps every core busy.
        let filling = (limits.cubes_in_flight / 4).div_ceil(threadgroups.max(1)).min(worthwhile);
        self.rows.div_ceil(accurate.max(filling).min(self.rows))
    }
}

/// Tiles along the channels of x, the channels of dy and the taps of a frame, then depth taps and groups.
fn tiles_of(problem: &Conv3dProblem, tile: &WindowWeightTile) -> [usize; 5] {
    let [depth, height, width] = problem.kernel;
    [
        problem.group_channels().div_ceil(tile.channels()),
        problem.group_out_channels().div_ceil(tile.out_channels()),
        (height * width).div_ceil(TAPS),
        depth,
        problem.window.groups,
    ]
}

/// The traversal of the windows; none where they have a stride within the frame.
fn weight_gather(problem: &Conv3dProblem) -> Option<Gather> {
    let [gather] = gathers(problem, Pass::Forward)[..] else { return None };
    (gather[1].scale == 1 && gather[2].scale == 1 && gather.iter().all(|axis| axis.taps > 0))
        .then_some(gather)
}

/// Whether the tile serves a weight gradient: no stride within the frame, and taps that reach no further than
/// the ring.
fn serves(problem: &Conv3dProblem, pass: Pass, tile: &WindowWeightTile) -> bool {
    pass == Pass::WeightGradient
        && gemm::serves(problem, pass)
        && problem.window_padding().is_some()
        && has_few_taps(problem, pass)
        && weight_gather(problem).is_some_and(|gather| WeightSegments::of(problem, &gather, tile).is_some())
}

/// The tiles of a weight gradient for [`crate::conv3d::Plan::tiles`].
pub(crate) fn extent(problem: &Conv3dProblem, tile: &WindowWeightTile) -> Option<Tiles> {
    let gather = weight_gather(problem)?;
    let WeightSegments { segments, frames, rows, .. } = WeightSegments::of(problem, &gather, tile)?;
    let k = frames * segments.count * rows * segments.pitch;
    Some(Tiles {
        count: tiles_of(problem, tile).iter().product(),
        rows: tile.out_channels(),
        columns: tile.channels() * TAPS,
        terms: k,
    })
}

/// How K is cut into slices that different threadgroups sum.
struct WeightSplit {
    band_rows: usize,
    bands: usize,
    /// Elements of a segment of a band, in whole chunks.
    elements: usize,
    /// Segments of all bands and frames.
    segment_count: usize,
    slice_segments: usize,
    k_slices: usize,
}

impl WeightSplit {
    /// For `tiles` threadgroups per slice and `results` sums.
    fn of(
        work: &WeightSegments,
        tiles: usize,
        results: usize,
        tile: &WindowWeightTile,
        limits: &Limits,
    ) -> Self {
        let WeightSegments { segments, frames, rows, .. } = *work;
        let band_rows = work.band_rows(tiles, tile, limits);
        let bands = rows.div_ceil(band_rows);
        let segment_count = bands * segments.count * frames;
        let elements = (band_rows * segments.pitch).next_multiple_of(tile.positions);
        let product = product(work, tiles, results, segment_count * elements, tile, limits);
        let most = limits.cubes_in_flight.div_ceil(tiles.max(1));
        let filling = product.fastest_slices(1..=most, limits);
        let split =
            ReductionSplit::filling(segment_count * elements, results, filling, tile.positions, limits);
        let affordable = segment_count.div_ceil(affordable_slices(results, limits));
        let slice_segments = (split.length / elements).max(affordable).max(1);
        let k_slices = segment_count.div_ceil(slice_segments);
        Self { band_rows, bands, elements, segment_count, slice_segments, k_slices }
    }
}

/// The product of a weight gradient over so many elements of segments; a segment starts anew.
fn product(
    work: &WeightSegments,
    tiles: usize,
    results: usize,
    elements: usize,
    tile: &WindowWeightTile,
    limits: &Limits,
) -> TiledProduct {
    let starts = work.segments.count * work.frames * work.lag * tile.positions;
    TiledProduct {
        tiles,
        products: (tile.out_channels() * tile.channels() * TAPS) as f64 * (elements + starts) as f64,
        // 144 accumulators a thread, of fragments of 16, halve occupancy.
        wave: (limits.cubes_in_flight * 8 / tile.fragment).max(1),
        last: LastWave::Idles(0.5),
        elements: results,
    }
}

/// The time of a weight gradient on the scale of [`TiledProduct::cost`].
pub(crate) fn cost(problem: &Conv3dProblem, tile: &WindowWeightTile, limits: &Limits) -> Option<f64> {
    let work = WeightSegments::of(problem, &weight_gather(problem)?, tile)?;
    let (tiles, results) =
        (tiles_of(problem, tile).iter().product(), problem.weight_shape().iter().product());
    let split = WeightSplit::of(&work, tiles, results, tile, limits);
    let elements = split.segment_count * split.elements;
    let cost = product(&work, tiles, results, elements, tile, limits).cost(split.k_slices.max(1), limits);
    Some(cost + EPILOGUE * results as f64)
}

/// Split-K slices of a weight gradient.
pub(super) fn slices(problem: &Conv3dProblem, tile: &WindowWeightTile, limits: &Limits) -> usize {
    let Some(gather) = weight_gather(problem) else { return 1 };
    let Some(work) = WeightSegments::of(problem, &gather, tile) else { return 1 };
    let results = problem.result_elements(Pass::WeightGradient);
    WeightSplit::of(&work, tiles_of(problem, tile).iter().product(), results, tile, limits).k_slices
}

/// Iterations of the loops of a thread: segments of a slice, their chunks, and fragments of a chunk.
pub(crate) fn loop_iterations(problem: &Conv3dProblem, tile: &WindowWeightTile, limits: &Limits) -> usize {
    let Some(gather) = weight_gather(problem) else { return 0 };
    let Some(work) = WeightSegments::of(problem, &gather, tile) else { return 0 };
    let tiles = tiles_of(problem, tile).iter().product();
    let split = WeightSplit::of(&work, tiles, problem.weight_shape().iter().product(), tile, limits);
    let chunks = split.elements / tile.positions + work.lag;
    nest(split.slice_segments, nest(chunks, nest(tile.positions / tile.fragment - 1, 0)))
}

/// Launches the weight gradient: operands x, dy, dw.
pub(super) fn launch(
    call: &Conv3dCall,
    tile: WindowWeightTile,
    [x, dy, dw]: [&Operand; 3],
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, cache, .. } = *call;
    let gather = weight_gather(problem).expect("`serves` has checked the stride");
    let work = WeightSegments::of(problem, &gather, &tile).expect("`serves` has checked the window");
    let WeightSegments { segments, lag, .. } = work;
    let (stage, width) = stage_vector(tile.fragment, problem.dtype, limits);
    let [tiles_c, tiles_o, tap_tiles, depth_taps, groups] = tiles_of(problem, &tile);
    let tiles = tiles_c * tiles_o * tap_tiles * depth_taps * groups;
    let split = WeightSplit::of(&work, tiles, dw.len(), &tile, limits);
    let WeightSplit { band_rows, bands, elements, segment_count, slice_segments, k_slices } = split;
    let partials = reduce::partials(client, k_slices, dw);
    // Partials have the channels of a tap next to each other, for coalesced stores; dw has its taps so.
    let taps = problem.taps();
    let channels = problem.group_channels();
    let strides = if partials.shape == dw.shape {
        [channels * taps, taps, 1]
    } else {
        [channels, 1, dw.shape[0] * channels]
    };
    let [row_stride, channel_stride, tap_stride] = strides;
    let threadgroups = tiles * k_slices;
    let largest = threadgroups.max(segment_count * elements);
    let address = address_type("conv3d", &[x, cache.unwrap_or(x), dy, &partials], largest, limits)?;
    let operations = 2.0 * (tile.out_channels() * tile.channels() * TAPS * slice_segments * elements) as f64;
    let padding = problem.window_padding().expect("`serves` has checked the padding");
    for dispatch in dispatches(threadgroups, operations, limits) {
        // SAFETY: the contract of `conv3d::window`. Elements outside the source, positions of the halo and
        // channels past the last are not read; taps and channels past the last are not written; the ring
        // holds every element that the taps of a chunk reach.
        unsafe {
            window_weight_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_2d(SUBGROUP as u32, SUBGROUPS as u32),
                address,
                width,
                x.buffer_arg(1),
                cache.map(|cache| cache.buffer_arg(1)).into(),
                dy.buffer_arg(1),
                partials.buffer_arg(1),
                gather_args(problem, Pass::Forward, &gather, [x, dw, dy]),
                cache.map(cache_args).into(),
                WeightTilingLaunch {
                    tiles_c: tiles_c as u32,
                    tiles_o: tiles_o as u32,
                    tap_tiles: tap_tiles as u32,
                    depth_taps: depth_taps as u32,
                    k_slices: k_slices as u32,
                    bands: bands as u32,
                    segments: segments.count as u32,
                    depth: gather[0].positions as u32,
                    segment_count: segment_count as u32,
                    slice_segments: slice_segments as u32,
                    band_rows: band_rows as u32,
                    segment_width: segments.width as u32,
                    pitch_divmod: segments.pitch as u32,
                    pitch: segments.pitch as u32,
                    height: gather[1].positions as u32,
                    width: gather[2].positions as u32,
                    lag: lag as u32,
                    channels: problem.group_channels() as u32,
                    out_channels: problem.group_out_channels() as u32,
                    taps: (gather[1].taps * gather[2].taps) as u32,
                    row_taps: gather[2].taps as u32,
                    slice_stride: dw.len(),
                    row_stride,
                    channel_stride,
                    tap_stride,
                },
                dispatch.span(),
                padding,
                tile,
                limits.unroll,
                stage.size(),
                cache.is_some(),
                x.dtype.elem(),
                stage.elem(),
                partials.dtype.elem(),
            );
        }
    }
    if partials.shape == dw.shape {
        return Ok(());
    }
    let order = [2, 3, 4, 0, 1];
    let by_tap = Operand {
        shape: order.map(|axis| dw.shape[axis]).to_vec(),
        strides: order.map(|axis| dw.strides[axis]).to_vec(),
        ..dw.clone()
    };
    reduce::sum_partials(client, limits, &partials, &by_tap)
}

/// The tiles that serve the pass.
pub(crate) fn tiles(
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> impl Iterator<Item = WindowWeightTile> {
    let tiles = WindowWeightTile::all(fragment(problem, limits)).iter().copied();
    tiles.filter(move |tile| serves(problem, pass, tile))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_divide_evenly_among_threads_within_apples_limits() {
        for (tile, size) in SIXTEEN.iter().map(|tile| (tile, 2)).chain(EIGHT.iter().map(|tile| (tile, 4))) {
            assert!(tile.shared_bytes(size) <= 32 * 1024, "{tile:?}: {} bytes", tile.shared_bytes(size));
            assert_eq!(tile.ring % tile.positions, 0, "{tile:?}: the ring holds whole chunks");
            let width = if tile.fragment == 8 { 4 } else { 16 / size };
            // No load needs a mask for the chunk's end.
            for channels in [tile.channels(), tile.out_channels()] {
                assert_eq!(tile.positions * channels % (width * tile.threads()), 0, "{tile:?}");
            }
        }
    }
}
