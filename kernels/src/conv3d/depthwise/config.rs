//! How depthwise work is assigned: tiles of an H x W slice, marches and their split-K slices; and what these
//! need of a device.

use super::march::{MAX_TAPS, MarchWindow};
use super::weight;
use crate::conv3d::frames::FrameTile;
use crate::conv3d::gemm::RegisterTile;
use crate::conv3d::gemm::gather::{AxisGather, Gather, gathers, positions, taps};
use crate::conv3d::loops::nest;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::split::{SERIAL_PRODUCTS, SliceCount, affordable_slices, even_slices};
use crate::limits::Limits;

/// Threads per threadgroup assumed when estimating how much work fills the device.
pub(super) const THREADS: usize = 256;

/// Output positions along H whose windows overlap in one thread.
const ROWS: usize = 4;

/// The march of a gather; `marches` gives the number of marches of a channel for a number of positions along
/// H per thread. Few marches get small threadgroups.
pub(super) fn march_window(gather: &Gather, marches: impl Fn(usize) -> usize) -> MarchWindow {
    let rows = if !gather[1].is_dense() {
        1
    } else {
        [ROWS, 2, 1][usize::from(gather[1].positions < 3) + usize::from(gather[1].positions < 2)]
    };
    let threads = if marches(rows) <= 64 { 64 } else { 256 };
    MarchWindow { taps: gather.map(|axis| axis.taps), rows, reuses_frames: gather[0].is_dense(), threads }
}

/// Output positions of a thread along H in a staged forward pass, and in a staged weight gradient, whose
/// accumulators need the registers.
pub(super) const FORWARD_ROWS: [usize; 2] = [4, 8];
pub(super) const WEIGHT_ROWS: [usize; 2] = [2, 4];

/// Bytes of shared memory that a frame may take.
const MAX_FRAME_BYTES: usize = 24 * 1024;

/// The tile for a gather, the cheapest by an instruction count: multiply-adds, shared-memory loads, and a
/// cost per global load, position and thread. None unless stride and dilation are 1, nor if the tile is
/// mostly empty.
pub(super) fn staged_tile(gather: &Gather, rows: &[usize], limits: &Limits) -> Option<FrameTile> {
    let [_, height, width] = gather.map(|axis| axis.positions);
    let taps = gather.map(|axis| axis.taps);
    if !gather.iter().all(AxisGather::is_dense) || taps.iter().product::<usize>() > MAX_TAPS {
        return None;
    }
    let columns = (8..=128usize.min(width.next_multiple_of(8))).step_by(8);
    let tiles = columns.flat_map(|columns| {
        let threads = [64, 128, 256].into_iter().filter(move |threads| columns <= *threads);
        threads.flat_map(move |threads| {
            rows.iter().map(move |rows| FrameTile { taps, rows: *rows, columns, threads })
        })
    });
    let cost = |tile: &FrameTile| {
        let products = tile.rows * tile.tap_count();
        let values = (tile.rows + taps[1] - 1) * taps[2] * tile.bank_passes();
        // A vector of four weights counts twice, and a shared-memory load costs two multiply-adds.
        let shared = 2 * (values + 2 * tile.tap_count().div_ceil(4));
        let tiles: usize = tile.tiles(height, width).iter().product();
        tiles * tile.threads * (products + shared + 8 * tile.loads() + 8 * tile.rows + 40)
    };
    let fits = |tile: &FrameTile| {
        4 * tile.loads() * tile.threads <= MAX_FRAME_BYTES && staged_bytes(tile) <= limits.shared_bytes
    };
    let tile = tiles.filter(fits).min_by_key(cost)?;
    let filled = tile.tiles(height, width).iter().product::<usize>() * tile.threads * tile.rows;
    (3 * height * width >= filled).then_some(tile)
}

/// Frames of a march, at most `most`: all of them if there are enough threads, because every chunk loads the
/// frames at its ends again.
pub(super) fn depth_chunk(depth: usize, columns: usize, most: usize, limits: &Limits) -> usize {
    let wanted = 2 * limits.cubes_in_flight * THREADS;
    let chunks = wanted.div_ceil(columns.max(1)).min(depth.div_ceil(8)).max(depth.div_ceil(most)).max(1);
    depth.div_ceil(chunks).max(1)
}

/// Frames of a chunk of staged tiles, at most `most`, and the threadgroups of one channel of one image.
pub(super) fn chunks(
    problem: &Conv3dProblem,
    gather: &Gather,
    tile: &FrameTile,
    most: usize,
    limits: &Limits,
) -> (usize, usize) {
    let [depth, height, width] = gather.map(|axis| axis.positions);
    let tiles: usize = tile.tiles(height, width).iter().product();
    let images = problem.batch * problem.channels;
    let chunk = depth_chunk(depth, images * tiles * THREADS, most, limits);
    (chunk, tile.threadgroups(gather, chunk))
}

/// The tile of a staged weight gradient and its [`chunks`]; none where no tile fits or the workspace does not
/// hold the partials.
pub(super) fn staged_weight(problem: &Conv3dProblem, limits: &Limits) -> Option<(FrameTile, (usize, usize))> {
    let gather = &gathers(problem, Pass::Forward)[0];
    let tile = staged_tile(gather, &WEIGHT_ROWS, limits)?;
    let (chunk, threadgroups) = chunks(problem, gather, &tile, SERIAL_PRODUCTS / tile.rows, limits);
    let affordable = affordable_slices(problem.weight_shape().iter().product(), limits);
    (problem.batch * threadgroups <= affordable).then_some((tile, (chunk, threadgroups)))
}

/// How the marches of a weight gradient are split into slices.
pub(super) struct WeightWork {
    /// The whole window, and the part of it that one thread sums.
    pub(super) whole: MarchWindow,
    pub(super) window: MarchWindow,
    pub(super) cuts: usize,
    /// Frames of a march.
    pub(super) chunk: usize,
    pub(super) marches: usize,
    /// Split-K slices, and marches of each.
    pub(super) slices: usize,
    pub(super) slice_length: usize,
}

pub(super) fn weight_work(problem: &Conv3dProblem, gather: &Gather, limits: &Limits) -> WeightWork {
    let [depth, height, width] = gather.map(|axis| axis.positions);
    let [depth_taps, row_taps, column_taps] = gather.map(|axis| axis.taps);
    let whole = MarchWindow { rows: 1, ..march_window(gather, |_| usize::MAX) };
    // A window that does not fit the registers is split into its depth taps, each with marches of its own.
    let cuts = if whole.tap_count() > weight::MAX_SUMS { depth_taps } else { 1 };
    let taps = [depth_taps / cuts, row_taps, column_taps];
    let threads = weight::threads(taps.iter().product());
    let window = MarchWindow { taps, reuses_frames: whole.reuses_frames && cuts == 1, threads, ..whole };
    let columns = problem.batch * height * width;
    let chunk = depth_chunk(depth, columns * problem.channels, SERIAL_PRODUCTS, limits);
    let marches = columns * depth.div_ceil(chunk);
    let count = SliceCount {
        filling: (2 * limits.cubes_in_flight).div_ceil(problem.channels.max(1) * cuts),
        // Every threadgroup ends with a reduction over its threads; its marches should take longer than that.
        worthwhile: marches.div_ceil(threads),
        accurate: marches.div_ceil(threads * (SERIAL_PRODUCTS / chunk).max(1)),
        affordable: affordable_slices(problem.weight_shape().iter().product(), limits),
    };
    let (slices, length) = even_slices(marches, count.slices());
    let slice_length = length.min(marches);
    WeightWork { whole, window, cuts, chunk, marches, slices, slice_length }
}

/// Bytes of threadgroup memory of a staged tile: a frame and the weights.
pub(super) fn staged_bytes(tile: &FrameTile) -> usize {
    4 * tile.loads() * tile.threads + 16 * tile.tap_count().div_ceil(4)
}

/// Bytes of threadgroup memory and loop iterations of the forward pass or the input gradient.
pub(super) fn gather_needs(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> (usize, usize) {
    let frames = |gather: &Gather| gather[0].positions + gather[0].taps;
    let mut most = (0, 0);
    for gather in gathers(problem, pass).iter().filter(|gather| positions(gather) > 0) {
        let (bytes, iterations) = if taps(gather) == 0 {
            (RegisterTile::M128N8.shared_bytes(), 64)
        } else if let Some(tile) = staged_tile(gather, &FORWARD_ROWS, limits) {
            (staged_bytes(&tile), nest(frames(gather), 0))
        } else {
            let vectors = taps(gather).div_ceil(4);
            (16 * vectors, nest(frames(gather), 0) + nest(vectors.div_ceil(64), 0))
        };
        most = (most.0.max(bytes), most.1.max(iterations));
    }
    most
}

/// [`gather_needs`] of the weight gradient: the larger of its two kernels', whichever runs.
pub(super) fn weight_needs(problem: &Conv3dProblem, limits: &Limits) -> (usize, usize) {
    let gather = &gathers(problem, Pass::Forward)[0];
    let frames = nest(gather[0].positions + gather[0].taps, 0);
    let staged = staged_tile(gather, &WEIGHT_ROWS, limits).map_or((0, 0), |tile| {
        (staged_bytes(&tile), frames + tile.reduction_iterations(tile.tap_count() + 1))
    });
    let work = weight_work(problem, gather, limits);
    let (threads, taps) = (work.window.threads, work.window.tap_count());
    let marches = nest(work.slice_length.div_ceil(threads), nest(work.chunk + gather[0].taps, 0));
    let summed = nest(taps.div_ceil(threads), nest(threads, 0)) + nest((threads / taps).clamp(1, 16), 0);
    let bytes = 4 * threads * (taps + 1);
    (staged.0.max(bytes), staged.1.max(marches + summed))
}
