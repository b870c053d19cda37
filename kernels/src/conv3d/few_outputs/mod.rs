//! Layers of at most four output channels per group, stride and dilation 1: forward pass, input gradient
//! (where dx has few channels) and weight gradient. [`kernel`] computes all outputs of a tile, one input
//! channel after the other; where the tiles are too few to fill the device (small frames) the channels are
//! split into split-K slices that `reduce.rs` adds. [`weight`] sums all taps of a channel over tiles, always
//! in slices.

mod config;
mod kernel;
mod launch;
mod load;
mod weight;

pub use config::FewOutputsTile;

use super::gemm::gather::{Gather, gathers};
use super::loops::nest;
use super::pass::Pass;
use super::problem::Conv3dProblem;
use super::split::{SERIAL_PRODUCTS, SliceCount, affordable_slices, even_slices};
use crate::limits::Limits;
use config::{FewOutputsShape, MAX_OUTPUTS, cheapest, is_offered};

/// Below this many tiles per slice of a weight gradient, the reduction over the threads dominates.
const MIN_SLICE_TILES: usize = 8;

/// Below this many channels per split-K slice, prologue and epilogue dominate.
const MIN_SLICE_CHANNELS: usize = 4;

/// The gather of a pass that is served, and its output channels.
fn dense_gather(problem: &Conv3dProblem, pass: Pass) -> Option<(Gather, usize)> {
    let readable = problem.window_padding().is_some();
    let pass = if pass == Pass::WeightGradient { Pass::Forward } else { pass };
    let (channels, outputs) = problem.channels_of(pass);
    // A strided input gradient is one small product per phase: `subpixel` serves those.
    let single_walk = pass == Pass::Forward || pass == Pass::InputGradient && problem.window.stride == [1; 3];
    let few = single_walk && channels > 0 && (1..=MAX_OUTPUTS).contains(&outputs);
    (few && readable).then(|| (gathers(problem, pass)[0], outputs))
}

/// The split of K: split-K slices, and channels of each. A stream's sums are not split: its threadgroups
/// depend on the number of frames.
fn channel_slices(
    problem: &Conv3dProblem,
    pass: Pass,
    threadgroups: usize,
    limits: &Limits,
) -> (usize, usize) {
    let (channels, _) = problem.channels_of(pass);
    if problem.streaming || threadgroups > limits.cubes_in_flight {
        return (1, channels);
    }
    let count = SliceCount {
        filling: 2 * limits.cubes_in_flight / threadgroups.max(1),
        worthwhile: channels / MIN_SLICE_CHANNELS,
        accurate: 1,
        affordable: affordable_slices(problem.result_elements(pass), limits),
    };
    even_slices(channels, count.slices())
}

/// The split of a weight gradient's tiles: slices, and tiles of each.
fn tile_slices(
    problem: &Conv3dProblem,
    tiles: usize,
    shape: &FewOutputsShape,
    limits: &Limits,
) -> (usize, usize) {
    let count = SliceCount {
        filling: (4 * limits.cubes_in_flight).div_ceil((problem.channels * shape.parts).max(1)),
        worthwhile: tiles / MIN_SLICE_TILES,
        accurate: tiles.div_ceil((SERIAL_PRODUCTS / (shape.frames * shape.tile.rows)).max(1)),
        affordable: affordable_slices(problem.weight_shape().iter().product(), limits),
    };
    even_slices(tiles, count.slices())
}

/// Threadgroups of one split-K slice.
fn threadgroups(problem: &Conv3dProblem, gather: &Gather, shape: &FewOutputsShape) -> usize {
    problem.batch.saturating_mul(problem.window.groups).saturating_mul(shape.threadgroups(gather))
}

/// Whether the tile serves a pass: stride and dilation 1, windows that fit shared memory, at most four
/// outputs per group, counts below 2^31, and loops within the device's limit.
pub(crate) fn serves(problem: &Conv3dProblem, pass: Pass, tile: &FewOutputsTile, limits: &Limits) -> bool {
    let Some((gather, outputs)) = dense_gather(problem, pass) else { return false };
    if !is_offered(&gather, pass, outputs, tile, limits) {
        return false;
    }
    let shape = FewOutputsShape::of(&gather, outputs, tile);
    let counts = if pass == Pass::WeightGradient {
        let tiles = problem.batch.saturating_mul(shape.threadgroups(&gather));
        let (slices, _) = tile_slices(problem, tiles, &shape, limits);
        tiles.max(problem.channels.saturating_mul(slices * shape.parts * tile.threads))
    } else {
        let threadgroups = threadgroups(problem, &gather, &shape);
        let (slices, _) = channel_slices(problem, pass, threadgroups, limits);
        threadgroups.saturating_mul(slices * tile.threads)
    };
    counts < i32::MAX as usize
        && shape.shared_bytes() <= limits.shared_bytes
        && limits.loop_iterations.is_none_or(|most| loop_iterations(problem, pass, tile, limits) <= most)
}

/// The tile of a pass with the least instructions and sectors, if any fits. Channels are prefetched on
/// devices whose compilers schedule long straight-line code (`limits.unroll`); elsewhere occupancy is worth
/// more than the registers.
pub(crate) fn cheapest_tile(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Option<FewOutputsTile> {
    let (gather, outputs) = dense_gather(problem, pass)?;
    let tile = cheapest(&gather, pass, outputs, limits)?;
    Some(FewOutputsTile { prefetch: limits.unroll && pass != Pass::WeightGradient, ..tile })
}

/// Output positions of one image and group: those that the tiles compute, and those that there are.
pub(crate) fn positions(problem: &Conv3dProblem, pass: Pass, tile: &FewOutputsTile) -> Option<[usize; 2]> {
    let (gather, outputs) = dense_gather(problem, pass)?;
    let threadgroups = FewOutputsShape::of(&gather, outputs, tile).threadgroups(&gather);
    let computed = threadgroups * tile.frames * tile.rows * tile.threads;
    Some([computed, gather.iter().map(|axis| axis.positions).product()])
}

/// The tiles of a pass that the choice may take: the cheapest.
pub(crate) fn tiles(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Vec<FewOutputsTile> {
    let tile = cheapest_tile(problem, pass, limits);
    tile.filter(|tile| serves(problem, pass, tile, limits)).into_iter().collect()
}

/// Loop iterations of a thread: the channels of its slice (weight gradient: its tiles), the frames and
/// columns of a window, and the sums written.
fn loop_iterations(problem: &Conv3dProblem, pass: Pass, tile: &FewOutputsTile, limits: &Limits) -> usize {
    let Some((gather, outputs)) = dense_gather(problem, pass) else { return 0 };
    let shape = FewOutputsShape::of(&gather, outputs, tile);
    // A stream's windows are loaded together only where few of their frames are cached.
    let together = if pass == Pass::WeightGradient { limits.unroll } else { shape.prefetch };
    let looped = !together || problem.streaming;
    let frames = if looped { nest(shape.source_frames(), 0) } else { 0 };
    if pass == Pass::WeightGradient {
        let tiles = problem.batch.saturating_mul(shape.threadgroups(&gather));
        let (_, length) = tile_slices(problem, tiles, &shape, limits);
        let sums = shape.tile.tap_count() * shape.outputs;
        return nest(length, frames) + shape.tile.reduction_iterations(sums);
    }
    let (_, length) = channel_slices(problem, pass, threadgroups(problem, &gather, &shape), limits);
    let columns = if limits.unroll { 0 } else { nest(problem.kernel[2], 0) };
    nest(length, columns + frames) + outputs * nest(shape.frames * shape.tile.rows, 0)
}
