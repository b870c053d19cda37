//! Depthwise conv3d (groups = C = O): [`staged`] for the forward pass and the input gradient,
//! [`staged_weight`] for the weight gradient. Strides, dilation and the smallest planes take [`march`] and
//! [`weight`], which need no shared memory for them.

mod march;
mod share;
mod staged;
mod staged_weight;
mod weight;

use super::frames::{Tile, TilingLaunch};
use super::gemm::gather::{Gather, few_phases, gather_args, gathers, positions, taps};
use super::plan::Pass;
use super::problem::Conv3dProblem;
use super::split::{RUN, affordable_parts};
use super::{gemm, reduce};
use crate::activation::Activation;
use crate::error::ConvError;
use crate::launch::dispatches;
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::prelude::*;
use march::{MOST_TAPS, ShareLaunch, march_kernel};
pub(crate) use share::needs;
use share::{FORWARD_ROWS, UNITS, WEIGHT_ROWS, WeightShare, chunk, tile, weight_share, window};
use staged::staged_kernel;
use staged_weight::staged_weight_kernel;

/// Whether the problem is one of these.
pub(crate) fn serves(problem: &Conv3dProblem, pass: Pass) -> bool {
    let groups = problem.window.groups;
    let elements = [problem.x_shape(), problem.y_shape()].map(|shape| shape.iter().product::<usize>());
    problem.channels == groups
        && problem.out_channels == groups
        && problem.taps() <= MOST_TAPS
        && few_phases(problem, pass)
        // Units are counted in 31 bits, and some stand idle.
        && elements.iter().all(|elements| *elements < 1 << 30)
}

/// Launches the forward pass (operands x, w, y) or the input gradient (dy, w, dx).
pub(crate) fn gather(
    client: &Client,
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
    operands: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    for walks in gathers(problem, pass).iter().filter(|walks| positions(walks) > 0) {
        if taps(walks) == 0 {
            // Positions that no window reads: the product without terms writes their zeros.
            gemm::launch_gather(client, problem, pass, walks, limits, operands)?;
        } else if let Some(tile) = tile(walks, &FORWARD_ROWS, limits) {
            launch_staged(client, problem, pass, (walks, tile), limits, operands, bias)?;
        } else {
            launch(client, problem, pass, walks, limits, operands, bias)?;
        }
    }
    Ok(())
}

/// Frames of a chunk of staged tiles, at most `most`, and the cubes of one channel of one image.
fn chunks(
    problem: &Conv3dProblem,
    walks: &Gather,
    tile: &Tile,
    most: usize,
    limits: &Limits,
) -> (usize, usize) {
    let [depth, height, width] = walks.map(|walk| walk.positions);
    let tiles: usize = tile.tiles(height, width).iter().product();
    let images = problem.batch * problem.channels;
    let chunk = chunk(depth, images * tiles * UNITS, most, limits);
    (chunk, tiles * depth.div_ceil(chunk))
}

/// Staged tiles as a kernel argument.
fn tiling(
    problem: &Conv3dProblem,
    walks: &Gather,
    tile: &Tile,
    (chunk, cubes): (usize, usize),
    activation: Activation,
) -> TilingLaunch {
    let [depth, height, width] = walks.map(|walk| walk.positions);
    let [tiles_h, tiles_w] = tile.tiles(height, width);
    TilingLaunch::new(
        tiles_w as u32,
        tiles_h as u32,
        depth.div_ceil(chunk) as u32,
        problem.channels as u32,
        problem.channels as u32,
        cubes as u32,
        height as u32,
        width as u32,
        depth as u32,
        chunk as u32,
        activation.code(),
    )
}

fn launch_staged(
    client: &Client,
    problem: &Conv3dProblem,
    pass: Pass,
    (walks, tile): (&Gather, Tile),
    limits: &Limits,
    [source, weight, out]: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    let (chunk, cubes) = chunks(problem, walks, &tile, usize::MAX, limits);
    let cubes_of_all = problem.batch * problem.channels * cubes;
    let address = address_type("conv3d", &[source, weight, out], cubes_of_all * tile.units, limits)?;
    let operations = 2.0 * (tile.units * tile.rows * chunk * tile.count()) as f64;
    let activation = problem.activation_of(pass);
    for dispatch in dispatches(cubes_of_all, operations, limits) {
        // SAFETY: elements of a frame outside the source are not read, sites outside the plane are not
        // written; a cube's tile, chunk, channel and image exist.
        unsafe {
            staged_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(tile.units as u32),
                address,
                source.buffer_arg(1),
                weight.buffer_arg(1),
                bias.map(|bias| bias.tensor_arg()).into(),
                out.buffer_arg(1),
                gather_args(problem, pass, walks, [source, weight, out]),
                tiling(problem, walks, &tile, (chunk, cubes), activation),
                dispatch.span(),
                pass,
                problem.window.padding_mode,
                tile,
                source.dtype.elem(),
                out.dtype.elem(),
            );
        }
    }
    Ok(())
}

fn launch(
    client: &Client,
    problem: &Conv3dProblem,
    pass: Pass,
    walks: &Gather,
    limits: &Limits,
    [source, weight, out]: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    let [depth, height, width] = walks.map(|walk| walk.positions);
    let images = problem.batch * problem.channels;
    let window = window(walks, |rows| height.div_ceil(rows) * width);
    let blocks = height.div_ceil(window.rows);
    let chunk = chunk(depth, images * blocks * width, usize::MAX, limits);
    let chunks = depth.div_ceil(chunk);
    let marches = blocks * width * chunks;
    let cubes = marches.div_ceil(window.units);
    let address = address_type("conv3d", &[source, weight, out], images * cubes * window.units, limits)?;
    let operations = 2.0 * (window.units * window.rows * chunk * window.count()) as f64;
    let activation = problem.activation_of(pass);
    for dispatch in dispatches(images * cubes, operations, limits) {
        // SAFETY: sites stay below the walks' extents, places outside the source are not read.
        unsafe {
            march_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(window.units as u32),
                address,
                source.buffer_arg(1),
                weight.buffer_arg(1),
                bias.map(|bias| bias.tensor_arg()).into(),
                out.buffer_arg(1),
                gather_args(problem, pass, walks, [source, weight, out]),
                ShareLaunch::new(
                    width as u32,
                    blocks as u32,
                    chunks as u32,
                    problem.channels as u32,
                    problem.channels as u32,
                    depth as u32,
                    chunk as u32,
                    height as u32,
                    marches as u32,
                    cubes as u32,
                    window.count() as u32,
                    activation.code(),
                ),
                dispatch.span(),
                pass,
                problem.window.padding_mode,
                window,
                source.dtype.elem(),
                out.dtype.elem(),
            );
        }
    }
    Ok(())
}

/// Launches the weight gradient: operands x, dy, dw. The bias gradient `db` is a sum of what staged tiles
/// hold in registers; the other kernels leave it to a sweep of its own.
pub(crate) fn weight_gradient(
    client: &Client,
    problem: &Conv3dProblem,
    limits: &Limits,
    [x, dy, dw]: [&Operand; 3],
    db: Option<&Operand>,
) -> Result<(), ConvError> {
    let walks = &gathers(problem, Pass::Forward)[0];
    let staged = tile(walks, &WEIGHT_ROWS, limits);
    let staged = staged.map(|tile| (tile, chunks(problem, walks, &tile, RUN / tile.rows, limits)));
    let affordable = |elements| {
        staged.filter(|(_, (_, cubes))| problem.batch * cubes <= affordable_parts(elements, limits))
    };
    let together = affordable(dw.len() + db.map_or(0, Operand::len));
    if let (Some(db), None) = (db, together) {
        reduce::bias_gradient(client, problem, limits, dy, db)?;
    }
    if let Some((tile, chunks)) = affordable(dw.len()) {
        let db = db.filter(|_| together.is_some());
        return staged_weight_gradient(client, problem, (walks, tile), chunks, limits, [x, dy, dw], db);
    }
    let [depth, height, width] = walks.map(|walk| walk.positions);
    let WeightShare { window, whole, cuts, chunk, marches, parts, length } =
        weight_share(problem, walks, limits);
    let units = window.units;
    let partials = reduce::partials(client, parts, dw);
    let largest = (length * parts + units).max(problem.channels * parts * cuts);
    let address = address_type("conv3d", &[x, dy, &partials], largest, limits)?;
    let operations = 2.0 * (length * chunk * window.count()) as f64;
    for dispatch in dispatches(problem.channels * parts * cuts, operations, limits) {
        // SAFETY: as in `launch`.
        unsafe {
            weight::weight_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(units as u32),
                address,
                x.buffer_arg(1),
                dy.buffer_arg(1),
                partials.buffer_arg(1),
                gather_args(problem, Pass::Forward, walks, [x, dw, dy]),
                ShareLaunch::new(
                    width as u32,
                    height as u32,
                    depth.div_ceil(chunk) as u32,
                    problem.channels as u32,
                    problem.channels as u32,
                    depth as u32,
                    chunk as u32,
                    height as u32,
                    marches as u32,
                    cuts as u32,
                    whole.count() as u32,
                    Activation::None.code(),
                ),
                length,
                dispatch.span(),
                problem.window.padding_mode,
                window,
                x.dtype.elem(),
                partials.dtype.elem(),
            );
        }
    }
    reduce::sum_partials(client, limits, &partials, dw)
}

fn staged_weight_gradient(
    client: &Client,
    problem: &Conv3dProblem,
    (walks, tile): (&Gather, Tile),
    (chunk, cubes): (usize, usize),
    limits: &Limits,
    [x, dy, dw]: [&Operand; 3],
    db: Option<&Operand>,
) -> Result<(), ConvError> {
    let parts = problem.batch * cubes;
    let part = dw.len() + db.map_or(0, Operand::len);
    let partials = match db {
        Some(_) => reduce::workspace(client, parts, part),
        None => reduce::partials(client, parts, dw),
    };
    let cubes_of_all = problem.channels * parts;
    let largest = (cubes_of_all * tile.units).max(partials.len());
    let address = address_type("conv3d", &[x, dy, &partials], largest, limits)?;
    let operations = 2.0 * (tile.units * tile.rows * chunk * tile.count()) as f64;
    for dispatch in dispatches(cubes_of_all, operations, limits) {
        // SAFETY: as in `launch_staged`; every part has its own partials.
        unsafe {
            staged_weight_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(tile.units as u32),
                address,
                x.buffer_arg(1),
                dy.buffer_arg(1),
                partials.buffer_arg(1),
                gather_args(problem, Pass::Forward, walks, [x, dw, dy]),
                tiling(problem, walks, &tile, (chunk, cubes), Activation::None),
                part,
                dispatch.span(),
                db.is_some(),
                problem.window.padding_mode,
                tile,
                x.dtype.elem(),
                partials.dtype.elem(),
            );
        }
    }
    reduce::sum_partials(client, limits, &partials, dw)?;
    match db {
        Some(db) => {
            reduce::finish_partials_from(client, limits, (&partials, dw.len()), db, (None, Activation::None))
        }
        None => Ok(()),
    }
}
