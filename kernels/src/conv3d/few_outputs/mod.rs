//! Heads: layers of at most four result channels per group whose windows move by one element: forward pass,
//! input gradient (of stems, whose dx has few channels) and weight gradient. [`kernel`] computes all results
//! of a tile from windows of one channel after the other; where tiles are too few to fill the device (small
//! planes) the channels are cut into parts that `reduce.rs` adds. [`weight`] sums all taps of a channel over
//! tiles, always in parts.

mod config;
mod kernel;
mod weight;

pub use config::FewOutputsTile;

use super::frames::TilingLaunch;
use super::gemm::gather::{Gather, divisor, gather_args, gathers};
use super::needs::nest;
use super::plan::{Pass, Tiles};
use super::problem::Conv3dProblem;
use super::{reduce, split};
use crate::activation::Activation;
use crate::error::ConvError;
use crate::launch::dispatches;
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use config::{MOST_RESULTS, Shape, cheapest, is_offered};
use cubecl::prelude::*;
use kernel::{ShareLaunch, few_outputs_kernel};
use weight::{WeightShareLaunch, few_outputs_weight_kernel};

/// Tiles of a weight gradient's part: fewer would spend their time on the sum over the units.
const LEAST_TILES: usize = 8;

/// Channels of a part of the sum: fewer would spend their time on its ends.
const LEAST_CHANNELS: usize = 4;

/// The walk of a pass that is one of these, and its results.
fn walk(problem: &Conv3dProblem, pass: Pass) -> Option<(Gather, usize)> {
    let pass = if pass == Pass::WeightGradient { Pass::Forward } else { pass };
    let (channels, results) = problem.channels_of(pass);
    // The phases of a strided input gradient are several walks, each of few products: they are Stem's.
    let one = pass == Pass::Forward || pass == Pass::InputGradient && problem.window.stride == [1; 3];
    let few = one && channels > 0 && (1..=MOST_RESULTS).contains(&results);
    few.then(|| (gathers(problem, pass)[0], results))
}

/// How the sum is cut: parts, and channels of each.
fn parts(problem: &Conv3dProblem, pass: Pass, cubes: usize, limits: &Limits) -> (usize, usize) {
    let (channels, _) = problem.channels_of(pass);
    if cubes > limits.cubes_in_flight {
        return (1, channels);
    }
    let out = if pass == Pass::Forward { problem.y_shape() } else { problem.x_shape() };
    let affordable = split::affordable_parts(out.iter().product(), limits);
    let wanted = 2 * limits.cubes_in_flight / cubes.max(1);
    let parts = wanted.min(channels / LEAST_CHANNELS).min(affordable).max(1);
    let length = channels.div_ceil(parts);
    (channels.div_ceil(length), length)
}

/// How a weight gradient's tiles are shared out: parts, and tiles of each.
fn weight_parts(problem: &Conv3dProblem, tiles: usize, shape: &Shape, limits: &Limits) -> (usize, usize) {
    let affordable = split::affordable_parts(problem.weight_shape().iter().product(), limits);
    let wanted = (4 * limits.cubes_in_flight).div_ceil(problem.channels.max(1));
    let accurate = tiles.div_ceil((split::RUN / (shape.frames * shape.plane.rows)).max(1));
    let parts = wanted.min(tiles / LEAST_TILES).max(accurate).min(affordable).max(1);
    let length = tiles.div_ceil(parts).max(1);
    (tiles.div_ceil(length).max(1), length)
}

/// Cubes of a part of the sum.
fn cubes(problem: &Conv3dProblem, walks: &Gather, shape: &Shape) -> usize {
    problem.batch.saturating_mul(problem.window.groups).saturating_mul(shape.cubes(walks))
}

/// Whether the tile serves a pass: windows that move by one element and fit shared memory, at most four
/// results per group, counts that 31 bits hold, and loops as long as the device makes them.
pub(crate) fn serves(problem: &Conv3dProblem, pass: Pass, tile: &FewOutputsTile, limits: &Limits) -> bool {
    let Some((walks, results)) = walk(problem, pass) else { return false };
    if !is_offered(&walks, pass, results, tile) {
        return false;
    }
    let shape = Shape::of(&walks, results, tile);
    let counts = if pass == Pass::WeightGradient {
        let tiles = problem.batch.saturating_mul(shape.cubes(&walks));
        let (parts, _) = weight_parts(problem, tiles, &shape, limits);
        tiles.max(problem.channels.saturating_mul(parts * tile.units))
    } else {
        let cubes = cubes(problem, &walks, &shape);
        let (parts, _) = parts(problem, pass, cubes, limits);
        cubes.saturating_mul(parts * tile.units)
    };
    counts < i32::MAX as usize
        && shape.shared_bytes() <= limits.shared_bytes
        && limits.loop_iterations.is_none_or(|most| loop_iterations(problem, pass, tile, limits) <= most)
}

/// Iterations of the loops of a thread: of the channels of its slice (of a weight gradient its tiles), the
/// columns of a window, and the sums that are written.
pub(crate) fn loop_iterations(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: &FewOutputsTile,
    limits: &Limits,
) -> usize {
    let Some((walks, results)) = walk(problem, pass) else { return 0 };
    let shape = Shape::of(&walks, results, tile);
    if pass == Pass::WeightGradient {
        let tiles = problem.batch.saturating_mul(shape.cubes(&walks));
        let (_, length) = weight_parts(problem, tiles, &shape, limits);
        return nest(length, 0) + shape.plane.sum_turns(shape.plane.count() * results);
    }
    let (_, length) = parts(problem, pass, cubes(problem, &walks, &shape), limits);
    let columns = if limits.unroll { 0 } else { nest(problem.kernel[2], 0) };
    nest(length, columns) + results * nest(shape.frames * shape.plane.rows, 0)
}

/// Bytes of threadgroup memory of a cube.
pub(crate) fn shared_bytes(problem: &Conv3dProblem, pass: Pass, tile: &FewOutputsTile) -> usize {
    walk(problem, pass).map_or(0, |(walks, results)| Shape::of(&walks, results, tile).shared_bytes())
}

/// The tiles of a pass, as [`super::Plan::tiles`] says.
pub(crate) fn extent(problem: &Conv3dProblem, pass: Pass, tile: &FewOutputsTile) -> Option<Tiles> {
    let (walks, results) = walk(problem, pass)?;
    let (channels, _) = problem.channels_of(pass);
    let shape = Shape::of(&walks, results, tile);
    if pass == Pass::WeightGradient {
        let sites = tile.frames * tile.rows * tile.units;
        return Some(Tiles {
            count: problem.channels * problem.batch * shape.cubes(&walks),
            rows: problem.taps(),
            columns: results,
            terms: sites,
            reads: shape.source_frames() * shape.frame_elements() + sites * results,
        });
    }
    Some(Tiles {
        count: cubes(problem, &walks, &shape),
        rows: tile.frames * tile.rows * tile.units,
        columns: results,
        terms: channels * problem.taps(),
        reads: channels * (shape.source_frames() * shape.frame_elements() + problem.taps() * results),
    })
}

/// The tile of a pass; none where the tiles would compute more than twice the results that there are.
/// Channels are read ahead on devices whose compilers schedule long straight code (H200, 96 to 3 channels,
/// 4x480x832, f32: 0.70 ms, else 0.78; f16 0.73 and 0.77), elsewhere the registers are left to more cubes.
pub(crate) fn choice(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Option<FewOutputsTile> {
    let (walks, results) = walk(problem, pass)?;
    let tile = cheapest(&walks, pass, results, None).filter(|tile| serves(problem, pass, tile, limits))?;
    let sites: usize = walks.iter().map(|walk| walk.positions).product();
    let computed = Shape::of(&walks, results, &tile).cubes(&walks) * tile.frames * tile.rows * tile.units;
    let ahead = FewOutputsTile { ahead: limits.unroll && pass != Pass::WeightGradient, ..tile };
    (computed <= 2 * sites).then_some(ahead)
}

/// The tiles that serve a pass: the cheapest, the same with channels read ahead, and the cheapest of one
/// frame.
pub(crate) fn tiles(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Vec<FewOutputsTile> {
    let Some((walks, results)) = walk(problem, pass) else { return Vec::new() };
    let any = cheapest(&walks, pass, results, None);
    let ahead = any.map(|tile| FewOutputsTile { ahead: true, ..tile });
    let one = cheapest(&walks, pass, results, Some(1));
    let mut tiles = Vec::new();
    for tile in [any, ahead, one].into_iter().flatten() {
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
    let (walks, results) = walk(problem, pass).expect("`check` has looked at the window");
    let shape = Shape::of(&walks, results, &tile);
    let (parts, length) = parts(problem, pass, cubes(problem, &walks, &shape), limits);
    let whole = (bias, problem.activation_of(pass));
    let products = |out: &Operand, epilogue| {
        let operands = [source, weight, out];
        launch_parts(client, problem, pass, (&walks, &shape), (parts, length), limits, operands, epilogue)
    };
    if parts == 1 {
        return products(out, whole);
    }
    let (partials, part) = reduce::split_result(client, parts, out);
    products(&part, (None, Activation::None))?;
    reduce::finish_partials(client, limits, &partials, out, whole)
}

#[allow(clippy::too_many_arguments)]
fn launch_parts(
    client: &Client,
    problem: &Conv3dProblem,
    pass: Pass,
    (walks, shape): (&Gather, &Shape),
    (parts, length): (usize, usize),
    limits: &Limits,
    operands: [&Operand; 3],
    (bias, activation): (Option<&Operand>, Activation),
) -> Result<(), ConvError> {
    let [source, weight, out] = operands;
    let (channels, _) = problem.channels_of(pass);
    let cubes = cubes(problem, walks, shape) * parts;
    let units = shape.plane.units;
    let part_stride = if parts == 1 { 0 } else { out.len() };
    let address = address_type("conv3d", &operands, (cubes * units).max(part_stride * parts), limits)?;
    let operations = 2.0 * (units * shape.sums() * shape.plane.count() * length) as f64;
    for dispatch in dispatches(cubes, operations, limits) {
        // SAFETY: elements of a frame outside the source are not read, nor are weights beside the window's;
        // sites outside the plane and frames past the last are not written; a cube's tile, frames, group,
        // image and part exist.
        unsafe {
            few_outputs_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(units as u32),
                address,
                source.buffer_arg(1),
                weight.buffer_arg(1),
                bias.map(|bias| bias.tensor_arg()).into(),
                out.buffer_arg(1),
                gather_args(problem, pass, walks, operands),
                tiling(walks, shape, problem.window.groups, activation),
                ShareLaunch::new(divisor(problem.batch), channels as u32, length as u32, part_stride),
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
fn tiling(walks: &Gather, shape: &Shape, channels: usize, activation: Activation) -> TilingLaunch {
    let [depth, height, width] = walks.map(|walk| walk.positions);
    let [tiles_h, tiles_w] = shape.plane.tiles(height, width);
    TilingLaunch::new(
        tiles_w as u32,
        tiles_h as u32,
        depth.div_ceil(shape.frames) as u32,
        channels as u32,
        channels as u32,
        shape.cubes(walks) as u32,
        height as u32,
        width as u32,
        depth as u32,
        shape.frames as u32,
        activation.code(),
    )
}

/// Launches the weight gradient: operands x, dy, dw.
pub(crate) fn weight_gradient(
    client: &Client,
    problem: &Conv3dProblem,
    tile: FewOutputsTile,
    limits: &Limits,
    [x, dy, dw]: [&Operand; 3],
) -> Result<(), ConvError> {
    let (walks, results) = walk(problem, Pass::WeightGradient).expect("`check` has looked at the window");
    let shape = Shape::of(&walks, results, &tile);
    let tiles = problem.batch * shape.cubes(&walks);
    let (parts, length) = weight_parts(problem, tiles, &shape, limits);
    let partials = reduce::partials(client, parts, dw);
    let cubes = problem.channels * parts;
    let largest = (cubes * tile.units).max(partials.len());
    let address = address_type("conv3d", &[x, dy, &partials], largest, limits)?;
    let operations = 2.0 * (tile.units * shape.sums() * shape.plane.count() * length) as f64;
    for dispatch in dispatches(cubes, operations, limits) {
        // SAFETY: elements outside x and dy are not read; a cube's channel and part exist, and every part has
        // its own partials.
        unsafe {
            few_outputs_weight_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(tile.units as u32),
                address,
                x.buffer_arg(1),
                dy.buffer_arg(1),
                partials.buffer_arg(1),
                gather_args(problem, Pass::Forward, &walks, [x, dw, dy]),
                tiling(&walks, &shape, 1, Activation::None),
                WeightShareLaunch::new(
                    divisor(problem.channels),
                    divisor(problem.group_channels()),
                    tiles as u32,
                    length as u32,
                    problem.group_channels() * problem.taps(),
                    dw.len(),
                ),
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
