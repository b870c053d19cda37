//! Layers of at most four output channels per group, stride and dilation 1: forward pass, input gradient
//! (where dx has few channels) and weight gradient. [`kernel`] computes all outputs of a tile, one input
//! channel after the other; where the tiles are too few to fill the device (small frames) the channels are
//! split into split-K slices that `reduce.rs` adds. [`weight`] sums all taps of a channel over tiles, always
//! in slices.
//!
//! # Safety of the launches
//!
//! What every unchecked launch here relies on: `conv3d::check::check_operands` has checked the shapes,
//! `conv3d::check` that the plan serves the launched problem; `address_type` reaches every offset;
//! threadgroups past the span of a dispatch exit; loads are masked to the source and stores to the result;
//! threads write disjoint elements. `// SAFETY` at a launch adds what is particular to it.

mod config;
mod kernel;
mod weight;

pub use config::FewOutputsTile;

use super::frames::FrameTilingLaunch;
use super::gemm::gather::{Gather, divisor, gather_args, gathers};
use super::loops::nest;
use super::pass::Pass;
use super::plan::Tiles;
use super::problem::Conv3dProblem;
use super::{reduce, split};
use crate::activation::Activation;
use crate::error::ConvError;
use crate::launch::dispatches;
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use config::{FewOutputsShape, MAX_OUTPUTS, cheapest, is_offered};
use cubecl::prelude::*;
use kernel::{ChannelSplitLaunch, few_outputs_kernel};
use weight::{TileSplitLaunch, few_outputs_weight_kernel};

/// Below this many tiles per slice of a weight gradient, the reduction over the threads dominates.
const MIN_SLICE_TILES: usize = 8;

/// Below this many channels per split-K slice, prologue and epilogue dominate.
const MIN_SLICE_CHANNELS: usize = 4;

/// The walk of a pass that is served, and its output channels.
fn dense_walk(problem: &Conv3dProblem, pass: Pass) -> Option<(Gather, usize)> {
    let pass = if pass == Pass::WeightGradient { Pass::Forward } else { pass };
    let (channels, outputs) = problem.channels_of(pass);
    // A strided input gradient is one small product per phase: `subpixel` serves those.
    let single_walk = pass == Pass::Forward || pass == Pass::InputGradient && problem.window.stride == [1; 3];
    let few = single_walk && channels > 0 && (1..=MAX_OUTPUTS).contains(&outputs);
    few.then(|| (gathers(problem, pass)[0], outputs))
}

/// The split of K: split-K slices, and channels of each.
fn channel_slices(
    problem: &Conv3dProblem,
    pass: Pass,
    threadgroups: usize,
    limits: &Limits,
) -> (usize, usize) {
    let (channels, _) = problem.channels_of(pass);
    if threadgroups > limits.cubes_in_flight {
        return (1, channels);
    }
    let out = if pass == Pass::Forward { problem.y_shape() } else { problem.x_shape() };
    let affordable = split::affordable_slices(out.iter().product(), limits);
    let wanted = 2 * limits.cubes_in_flight / threadgroups.max(1);
    let slices = wanted.min(channels / MIN_SLICE_CHANNELS).min(affordable).max(1);
    let length = channels.div_ceil(slices);
    (channels.div_ceil(length), length)
}

/// The split of a weight gradient's tiles: slices, and tiles of each.
fn tile_slices(
    problem: &Conv3dProblem,
    tiles: usize,
    shape: &FewOutputsShape,
    limits: &Limits,
) -> (usize, usize) {
    let affordable = split::affordable_slices(problem.weight_shape().iter().product(), limits);
    let wanted = (4 * limits.cubes_in_flight).div_ceil(problem.channels.max(1));
    let accurate = tiles.div_ceil((split::SERIAL_PRODUCTS / (shape.frames * shape.tile.rows)).max(1));
    let slices = wanted.min(tiles / MIN_SLICE_TILES).max(accurate).min(affordable).max(1);
    let length = tiles.div_ceil(slices).max(1);
    (tiles.div_ceil(length).max(1), length)
}

/// Threadgroups of one split-K slice.
fn threadgroups(problem: &Conv3dProblem, walks: &Gather, shape: &FewOutputsShape) -> usize {
    problem.batch.saturating_mul(problem.window.groups).saturating_mul(shape.threadgroups(walks))
}

/// Whether the tile serves a pass: stride and dilation 1, windows that fit shared memory, at most four
/// outputs per group, counts below 2^31, and loops within the device's limit.
pub(crate) fn serves(problem: &Conv3dProblem, pass: Pass, tile: &FewOutputsTile, limits: &Limits) -> bool {
    let Some((walks, outputs)) = dense_walk(problem, pass) else { return false };
    if !is_offered(&walks, pass, outputs, tile) {
        return false;
    }
    let shape = FewOutputsShape::of(&walks, outputs, tile);
    let counts = if pass == Pass::WeightGradient {
        let tiles = problem.batch.saturating_mul(shape.threadgroups(&walks));
        let (slices, _) = tile_slices(problem, tiles, &shape, limits);
        tiles.max(problem.channels.saturating_mul(slices * tile.threads))
    } else {
        let threadgroups = threadgroups(problem, &walks, &shape);
        let (slices, _) = channel_slices(problem, pass, threadgroups, limits);
        threadgroups.saturating_mul(slices * tile.threads)
    };
    counts < i32::MAX as usize
        && shape.shared_bytes() <= limits.shared_bytes
        && limits.loop_iterations.is_none_or(|most| loop_iterations(problem, pass, tile, limits) <= most)
}

/// Loop iterations of a thread: the channels of its slice (weight gradient: its tiles), the columns of a
/// window, and the sums written.
pub(crate) fn loop_iterations(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: &FewOutputsTile,
    limits: &Limits,
) -> usize {
    let Some((walks, outputs)) = dense_walk(problem, pass) else { return 0 };
    let shape = FewOutputsShape::of(&walks, outputs, tile);
    if pass == Pass::WeightGradient {
        let tiles = problem.batch.saturating_mul(shape.threadgroups(&walks));
        let (_, length) = tile_slices(problem, tiles, &shape, limits);
        return nest(length, 0) + shape.tile.reduction_iterations(shape.tile.tap_count() * outputs);
    }
    let (_, length) = channel_slices(problem, pass, threadgroups(problem, &walks, &shape), limits);
    let columns = if limits.unroll { 0 } else { nest(problem.kernel[2], 0) };
    nest(length, columns) + outputs * nest(shape.frames * shape.tile.rows, 0)
}

/// Bytes of threadgroup memory of a threadgroup.
pub(crate) fn shared_bytes(problem: &Conv3dProblem, pass: Pass, tile: &FewOutputsTile) -> usize {
    dense_walk(problem, pass)
        .map_or(0, |(walks, outputs)| FewOutputsShape::of(&walks, outputs, tile).shared_bytes())
}

/// The tiles of a pass, for [`super::Plan::tiles`].
pub(crate) fn extent(problem: &Conv3dProblem, pass: Pass, tile: &FewOutputsTile) -> Option<Tiles> {
    let (walks, outputs) = dense_walk(problem, pass)?;
    let (channels, _) = problem.channels_of(pass);
    let shape = FewOutputsShape::of(&walks, outputs, tile);
    if pass == Pass::WeightGradient {
        let positions = tile.frames * tile.rows * tile.threads;
        return Some(Tiles {
            count: problem.channels * problem.batch * shape.threadgroups(&walks),
            rows: problem.taps(),
            columns: outputs,
            terms: positions,
        });
    }
    Some(Tiles {
        count: threadgroups(problem, &walks, &shape),
        rows: tile.frames * tile.rows * tile.threads,
        columns: outputs,
        terms: channels * problem.taps(),
    })
}

/// The tile of a pass; none where the tiles would compute more than twice the outputs there are. Channels are
/// prefetched on devices whose compilers schedule long straight-line code (`limits.unroll`); elsewhere
/// occupancy is worth more than the registers.
pub(crate) fn choice(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Option<FewOutputsTile> {
    let (walks, outputs) = dense_walk(problem, pass)?;
    let tile = cheapest(&walks, pass, outputs, None).filter(|tile| serves(problem, pass, tile, limits))?;
    let positions: usize = walks.iter().map(|walk| walk.positions).product();
    let computed = FewOutputsShape::of(&walks, outputs, &tile).threadgroups(&walks)
        * tile.frames
        * tile.rows
        * tile.threads;
    let prefetched = FewOutputsTile { prefetch: limits.unroll && pass != Pass::WeightGradient, ..tile };
    (computed <= 2 * positions).then_some(prefetched)
}

/// The tiles that serve a pass: the cheapest, the same with prefetch, and the cheapest of one frame.
pub(crate) fn tiles(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Vec<FewOutputsTile> {
    let Some((walks, outputs)) = dense_walk(problem, pass) else { return Vec::new() };
    let any = cheapest(&walks, pass, outputs, None);
    let prefetched = any.map(|tile| FewOutputsTile { prefetch: true, ..tile });
    let one = cheapest(&walks, pass, outputs, Some(1));
    let mut tiles = Vec::new();
    for tile in [any, prefetched, one].into_iter().flatten() {
        if !tiles.contains(&tile) && serves(problem, pass, &tile, limits) {
            tiles.push(tile);
        }
    }
    tiles
}

/// Launches the forward pass (operands x, w, y) or the input gradient (dy, w, dx).
pub(crate) fn launch(
    client: &Client,
    problem: &Conv3dProblem,
    pass: Pass,
    tile: FewOutputsTile,
    limits: &Limits,
    [source, weight, out]: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    let (walks, outputs) =
        dense_walk(problem, pass).expect("`check` has found that the plan serves the pass");
    let shape = FewOutputsShape::of(&walks, outputs, &tile);
    let (slices, length) = channel_slices(problem, pass, threadgroups(problem, &walks, &shape), limits);
    let whole = (bias, problem.activation_of(pass));
    let products = |out: &Operand, epilogue| {
        let operands = [source, weight, out];
        launch_slices(client, problem, pass, (&walks, &shape), (slices, length), limits, operands, epilogue)
    };
    if slices == 1 {
        return products(out, whole);
    }
    let (partials, slice) = reduce::split_result(client, slices, out);
    products(&slice, (None, Activation::None))?;
    reduce::finish_partials(client, limits, &partials, out, whole)
}

fn launch_slices(
    client: &Client,
    problem: &Conv3dProblem,
    pass: Pass,
    (walks, shape): (&Gather, &FewOutputsShape),
    (slices, length): (usize, usize),
    limits: &Limits,
    operands: [&Operand; 3],
    (bias, activation): (Option<&Operand>, Activation),
) -> Result<(), ConvError> {
    let [source, weight, out] = operands;
    let (channels, _) = problem.channels_of(pass);
    let threadgroups = threadgroups(problem, walks, shape) * slices;
    let threads = shape.tile.threads;
    let slice_stride = if slices == 1 { 0 } else { out.len() };
    let address =
        address_type("conv3d", &operands, (threadgroups * threads).max(slice_stride * slices), limits)?;
    let operations = 2.0 * (threads * shape.sums() * shape.tile.tap_count() * length) as f64;
    for dispatch in dispatches(threadgroups, operations, limits) {
        // SAFETY: a thread loads only weights of its channel's window; a threadgroup's tile, frames, group,
        // image and slice exist.
        unsafe {
            few_outputs_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(threads as u32),
                address,
                source.buffer_arg(1),
                weight.buffer_arg(1),
                bias.map(|bias| bias.tensor_arg()).into(),
                out.buffer_arg(1),
                gather_args(problem, pass, walks, operands),
                tiling(walks, shape, problem.window.groups, activation),
                ChannelSplitLaunch {
                    batch: divisor(problem.batch),
                    channels: channels as u32,
                    slice_channels: length as u32,
                    slice_stride,
                },
                dispatch.span(),
                pass,
                problem.window.padding_mode,
                *shape,
                limits.unroll,
                source.dtype.elem(),
                out.dtype.elem(),
            );
        }
    }
    Ok(())
}

/// The tiles of `channels` channels of an image as a kernel argument.
fn tiling(
    walks: &Gather,
    shape: &FewOutputsShape,
    channels: usize,
    activation: Activation,
) -> FrameTilingLaunch {
    let [depth, height, width] = walks.map(|walk| walk.positions);
    let [tiles_h, tiles_w] = shape.tile.tiles(height, width);
    FrameTilingLaunch {
        tiles_w: tiles_w as u32,
        tiles_h: tiles_h as u32,
        chunks: depth.div_ceil(shape.frames) as u32,
        channels: channels as u32,
        channel_count: channels as u32,
        threadgroups: shape.threadgroups(walks) as u32,
        height: height as u32,
        width: width as u32,
        depth: depth as u32,
        chunk: shape.frames as u32,
        activation: activation.code(),
    }
}

/// Launches the weight gradient: operands x, dy, dw.
pub(crate) fn weight_gradient(
    client: &Client,
    problem: &Conv3dProblem,
    tile: FewOutputsTile,
    limits: &Limits,
    [x, dy, dw]: [&Operand; 3],
) -> Result<(), ConvError> {
    let (walks, outputs) =
        dense_walk(problem, Pass::WeightGradient).expect("`check` has found that the plan serves the pass");
    let shape = FewOutputsShape::of(&walks, outputs, &tile);
    let tiles = problem.batch * shape.threadgroups(&walks);
    let (slices, length) = tile_slices(problem, tiles, &shape, limits);
    let partials = reduce::partials(client, slices, dw);
    let threadgroups = problem.channels * slices;
    let largest = (threadgroups * tile.threads).max(partials.len());
    let address = address_type("conv3d", &[x, dy, &partials], largest, limits)?;
    let operations = 2.0 * (tile.threads * shape.sums() * shape.tile.tap_count() * length) as f64;
    for dispatch in dispatches(threadgroups, operations, limits) {
        // SAFETY: a threadgroup's channel and slice exist, and every slice has its own partials.
        unsafe {
            few_outputs_weight_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(tile.threads as u32),
                address,
                x.buffer_arg(1),
                dy.buffer_arg(1),
                partials.buffer_arg(1),
                gather_args(problem, Pass::Forward, &walks, [x, dw, dy]),
                tiling(&walks, &shape, 1, Activation::None),
                TileSplitLaunch {
                    channels: divisor(problem.channels),
                    group_channels: divisor(problem.group_channels()),
                    tiles: tiles as u32,
                    slice_tiles: length as u32,
                    output_stride: problem.group_channels() * problem.taps(),
                    slice_stride: dw.len(),
                },
                dispatch.span(),
                problem.window.padding_mode,
                shape,
                x.dtype.elem(),
                partials.dtype.elem(),
            );
        }
    }
    reduce::sum_partials(client, limits, &partials, dw)
}
