//! Depthwise conv3d (groups = C = O): [`staged`] for the forward pass and the input gradient,
//! [`staged_weight`] for the weight gradient, both with frames in shared memory. Strides, dilation and the
//! smallest frames are left to [`march`] and [`weight`], which read frames through the cache.
//!
//! # Safety of the launches
//!
//! What every unchecked launch here relies on: `conv3d::check::check_operands` has checked the shapes,
//! `conv3d::check` that the plan serves the launched problem; `address_type` reaches every offset;
//! threadgroups past the span of a dispatch exit; loads are masked to the source and stores to the result;
//! threads write disjoint elements. `// SAFETY` at a launch adds what is particular to it.

mod config;
mod march;
mod staged;
mod staged_weight;
mod weight;

use super::frames::{FrameTile, FrameTilingLaunch};
use super::gemm::gather::{Gather, few_phases, gather_args, gathers, positions, taps};
use super::pass::Pass;
use super::problem::Conv3dProblem;
use super::split::{SERIAL_PRODUCTS, affordable_slices};
use super::{gemm, reduce};
use crate::activation::Activation;
use crate::error::ConvError;
use crate::launch::dispatches;
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
pub(crate) use config::needs;
use config::{
    FORWARD_ROWS, THREADS, WEIGHT_ROWS, WeightWork, depth_chunk, march_window, staged_tile, weight_work,
};
use cubecl::prelude::*;
use march::{MAX_TAPS, MarchWorkLaunch, march_kernel};
use staged::staged_kernel;
use staged_weight::staged_weight_kernel;

/// Whether the problem is depthwise and small enough to be indexed.
pub(crate) fn serves(problem: &Conv3dProblem, pass: Pass) -> bool {
    let groups = problem.window.groups;
    let elements = [problem.x_shape(), problem.y_shape()].map(|shape| shape.iter().product::<usize>());
    problem.channels == groups
        && problem.out_channels == groups
        && problem.taps() <= MAX_TAPS
        && few_phases(problem, pass)
        // Threads are counted below 2^31, idle ones included.
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
            // Positions that no window reads: a product with K = 0 writes their zeros.
            gemm::launch_gather(client, problem, pass, walks, limits, operands)?;
        } else if let Some(tile) = staged_tile(walks, &FORWARD_ROWS, limits) {
            launch_staged(client, problem, pass, (walks, tile), limits, operands, bias)?;
        } else {
            launch_march(client, problem, pass, walks, limits, operands, bias)?;
        }
    }
    Ok(())
}

/// Frames of a chunk of staged tiles, at most `most`, and the threadgroups of one channel of one image.
fn chunks(
    problem: &Conv3dProblem,
    walks: &Gather,
    tile: &FrameTile,
    most: usize,
    limits: &Limits,
) -> (usize, usize) {
    let [depth, height, width] = walks.map(|walk| walk.positions);
    let tiles: usize = tile.tiles(height, width).iter().product();
    let images = problem.batch * problem.channels;
    let chunk = depth_chunk(depth, images * tiles * THREADS, most, limits);
    (chunk, tiles * depth.div_ceil(chunk))
}

/// The grid of staged tiles as a kernel argument.
fn tiling(
    problem: &Conv3dProblem,
    walks: &Gather,
    tile: &FrameTile,
    (chunk, threadgroups): (usize, usize),
    activation: Activation,
) -> FrameTilingLaunch {
    let [depth, height, width] = walks.map(|walk| walk.positions);
    let [tiles_h, tiles_w] = tile.tiles(height, width);
    FrameTilingLaunch {
        tiles_w: tiles_w as u32,
        tiles_h: tiles_h as u32,
        chunks: depth.div_ceil(chunk) as u32,
        channels: problem.channels as u32,
        channel_count: problem.channels as u32,
        threadgroups: threadgroups as u32,
        height: height as u32,
        width: width as u32,
        depth: depth as u32,
        chunk: chunk as u32,
        activation: activation.code(),
    }
}

fn launch_staged(
    client: &Client,
    problem: &Conv3dProblem,
    pass: Pass,
    (walks, tile): (&Gather, FrameTile),
    limits: &Limits,
    [source, weight, out]: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    let (chunk, threadgroups) = chunks(problem, walks, &tile, usize::MAX, limits);
    let all_threadgroups = problem.batch * problem.channels * threadgroups;
    let address = address_type("conv3d", &[source, weight, out], all_threadgroups * tile.threads, limits)?;
    let operations = 2.0 * (tile.threads * tile.rows * chunk * tile.tap_count()) as f64;
    let activation = problem.activation_of(pass);
    for dispatch in dispatches(all_threadgroups, operations, limits) {
        // SAFETY: a threadgroup's tile, chunk, channel and image exist.
        unsafe {
            staged_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(tile.threads as u32),
                address,
                source.buffer_arg(1),
                weight.buffer_arg(1),
                bias.map(|bias| bias.tensor_arg()).into(),
                out.buffer_arg(1),
                gather_args(problem, pass, walks, [source, weight, out]),
                tiling(problem, walks, &tile, (chunk, threadgroups), activation),
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

fn launch_march(
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
    let window = march_window(walks, |rows| height.div_ceil(rows) * width);
    let blocks = height.div_ceil(window.rows);
    let chunk = depth_chunk(depth, images * blocks * width, usize::MAX, limits);
    let chunks = depth.div_ceil(chunk);
    let marches = blocks * width * chunks;
    let threadgroups = marches.div_ceil(window.threads);
    let address =
        address_type("conv3d", &[source, weight, out], images * threadgroups * window.threads, limits)?;
    let operations = 2.0 * (window.threads * window.rows * chunk * window.tap_count()) as f64;
    let activation = problem.activation_of(pass);
    for dispatch in dispatches(images * threadgroups, operations, limits) {
        // SAFETY: output positions are below the walk's extents; loads outside the source read element 0 in
        // their place.
        unsafe {
            march_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(window.threads as u32),
                address,
                source.buffer_arg(1),
                weight.buffer_arg(1),
                bias.map(|bias| bias.tensor_arg()).into(),
                out.buffer_arg(1),
                gather_args(problem, pass, walks, [source, weight, out]),
                MarchWorkLaunch {
                    width: width as u32,
                    blocks: blocks as u32,
                    chunks: chunks as u32,
                    channels: problem.channels as u32,
                    channel_count: problem.channels as u32,
                    depth: depth as u32,
                    chunk: chunk as u32,
                    height: height as u32,
                    marches: marches as u32,
                    threadgroups: threadgroups as u32,
                    taps: window.tap_count() as u32,
                    activation: activation.code(),
                },
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

/// Launches the weight gradient: operands x, dy, dw. The staged kernel computes the bias gradient `db` from
/// the dy it has in registers; otherwise a separate pass over dy does.
pub(crate) fn weight_gradient(
    client: &Client,
    problem: &Conv3dProblem,
    limits: &Limits,
    [x, dy, dw]: [&Operand; 3],
    db: Option<&Operand>,
) -> Result<(), ConvError> {
    let walks = &gathers(problem, Pass::Forward)[0];
    let staged = staged_tile(walks, &WEIGHT_ROWS, limits);
    let staged =
        staged.map(|tile| (tile, chunks(problem, walks, &tile, SERIAL_PRODUCTS / tile.rows, limits)));
    let affordable = |elements| {
        staged.filter(|(_, (_, threadgroups))| {
            problem.batch * threadgroups <= affordable_slices(elements, limits)
        })
    };
    let with_bias = affordable(dw.len() + db.map_or(0, Operand::len));
    if let (Some(db), None) = (db, with_bias) {
        reduce::bias_gradient(client, problem, limits, dy, db)?;
    }
    if let Some((tile, chunks)) = affordable(dw.len()) {
        let db = db.filter(|_| with_bias.is_some());
        return staged_weight_gradient(client, problem, (walks, tile), chunks, limits, [x, dy, dw], db);
    }
    let [depth, height, width] = walks.map(|walk| walk.positions);
    let WeightWork { window, whole, cuts, chunk, marches, slices, slice_length } =
        weight_work(problem, walks, limits);
    let threads = window.threads;
    let partials = reduce::partials(client, slices, dw);
    let largest = (slice_length * slices + threads).max(problem.channels * slices * cuts);
    let address = address_type("conv3d", &[x, dy, &partials], largest, limits)?;
    let operations = 2.0 * (slice_length * chunk * window.tap_count()) as f64;
    for dispatch in dispatches(problem.channels * slices * cuts, operations, limits) {
        // SAFETY: marches are below the slice's end; loads outside x read element 0 in their place; every
        // slice has its own partials.
        unsafe {
            weight::weight_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(threads as u32),
                address,
                x.buffer_arg(1),
                dy.buffer_arg(1),
                partials.buffer_arg(1),
                gather_args(problem, Pass::Forward, walks, [x, dw, dy]),
                MarchWorkLaunch {
                    width: width as u32,
                    blocks: height as u32,
                    chunks: depth.div_ceil(chunk) as u32,
                    channels: problem.channels as u32,
                    channel_count: problem.channels as u32,
                    depth: depth as u32,
                    chunk: chunk as u32,
                    height: height as u32,
                    marches: marches as u32,
                    threadgroups: cuts as u32,
                    taps: whole.tap_count() as u32,
                    activation: Activation::None.code(),
                },
                slice_length,
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
    (walks, tile): (&Gather, FrameTile),
    (chunk, threadgroups): (usize, usize),
    limits: &Limits,
    [x, dy, dw]: [&Operand; 3],
    db: Option<&Operand>,
) -> Result<(), ConvError> {
    let slices = problem.batch * threadgroups;
    let slice_stride = dw.len() + db.map_or(0, Operand::len);
    let partials = match db {
        Some(_) => reduce::workspace(client, slices, slice_stride),
        None => reduce::partials(client, slices, dw),
    };
    let all_threadgroups = problem.channels * slices;
    let largest = (all_threadgroups * tile.threads).max(partials.len());
    let address = address_type("conv3d", &[x, dy, &partials], largest, limits)?;
    let operations = 2.0 * (tile.threads * tile.rows * chunk * tile.tap_count()) as f64;
    for dispatch in dispatches(all_threadgroups, operations, limits) {
        // SAFETY: a threadgroup's tile, chunk, channel and image exist; every slice has its own partials,
        // followed by those of `db` if there is one.
        unsafe {
            staged_weight_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(tile.threads as u32),
                address,
                x.buffer_arg(1),
                dy.buffer_arg(1),
                partials.buffer_arg(1),
                gather_args(problem, Pass::Forward, walks, [x, dw, dy]),
                tiling(problem, walks, &tile, (chunk, threadgroups), Activation::None),
                slice_stride,
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
