//! What [`crate::conv3d::Plan::Depthwise`] serves, needs and launches: its kernels, and the sums over a
//! weight gradient's split-K slices.
//!
//! # Safety of the launches
//!
//! The contract of [`crate::conv3d`]. Loads are masked to the source and stores to the result, and threads
//! write disjoint elements.

use super::config::{
    FORWARD_ROWS, THREADS, WeightWork, chunks, depth_chunk, gather_needs, march_window, staged_tile,
    staged_weight, weight_needs, weight_work,
};
use super::march::{MarchWorkLaunch, march_kernel};
use super::staged::staged_kernel;
use super::staged_weight::staged_weight_kernel;
use super::weight;
use super::{DepthwiseKernel, serves};
use crate::activation::Activation;
use crate::conv3d::cache::cache_args;
use crate::conv3d::call::Conv3dCall;
use crate::conv3d::epilogue::Epilogue;
use crate::conv3d::family::Family;
use crate::conv3d::frames::FrameTile;
use crate::conv3d::gemm;
use crate::conv3d::gemm::gather::{Gather, gather_args, gathers, positions, taps};
use crate::conv3d::needs::kernel_needs;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::reduce;
use crate::conv3d::split::affordable_slices;
use crate::error::{ConvError, unsupported};
use crate::launch::dispatches;
use crate::limits::Limits;
use crate::needs::Needs;
use crate::operand::{Operand, address_type};
use cubecl::prelude::*;

impl Family for DepthwiseKernel {
    fn plan_name(&self) -> String {
        match self {
            Self::Staged => "depthwise",
            Self::March => "depthwise_march",
            Self::Phases => "depthwise_phases",
        }
        .into()
    }

    fn serves(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Result<(), ConvError> {
        let name = self.plan_name();
        if !serves(problem, pass) {
            unsupported!(
                "conv3d: the plan `{name}` serves as many groups as channels and at most 80 taps, this \
                 problem has {} groups, {} input and {} output channels and {} taps",
                problem.window.groups,
                problem.channels,
                problem.out_channels,
                problem.taps()
            );
        }
        let kernel = Self::of(problem, pass, limits);
        if kernel != *self {
            unsupported!(
                "conv3d: the plan `{name}` was made for another problem or device, this {} with stride {:?} and \
                 dilation {:?} runs under `{}`",
                pass.name(),
                problem.window.stride,
                problem.window.dilation,
                kernel.plan_name()
            );
        }
        Ok(())
    }

    fn needs(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Needs {
        let (bytes, iterations) = match pass {
            Pass::WeightGradient => weight_needs(problem, limits),
            _ => gather_needs(problem, pass, limits),
        };
        kernel_needs(bytes, THREADS, iterations)
    }

    fn launches(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> usize {
        if pass != Pass::WeightGradient {
            return gathers(problem, pass).iter().filter(|gather| positions(gather) > 0).count();
        }
        let staged = staged_weight(problem, limits).filter(|_| *self == Self::Staged);
        let slices = match staged {
            Some((_, (_, threadgroups))) => problem.batch * threadgroups,
            None => weight_work(problem, &gathers(problem, Pass::Forward)[0], limits).slices,
        };
        1 + reduce::sum_launches(slices)
    }

    fn launch(&self, call: &Conv3dCall, operands: [&Operand; 3]) -> Result<(), ConvError> {
        match call.pass {
            Pass::WeightGradient => weight_gradient(call, *self, operands),
            _ => forward_or_input_gradient(call, *self, operands),
        }
    }

    fn sums_bias(&self) -> bool {
        true
    }
}

/// Launches the forward pass (operands x, w, y) or the input gradient (dy, w, dx).
fn forward_or_input_gradient(
    call: &Conv3dCall,
    kernel: DepthwiseKernel,
    operands: [&Operand; 3],
) -> Result<(), ConvError> {
    let gathers = gathers(&call.problem, call.pass);
    let tile = |gather| staged_tile(gather, &FORWARD_ROWS, call.limits);
    let [gather, ..] = &gathers[..] else { return Ok(()) };
    match kernel {
        DepthwiseKernel::Staged => {
            let tile = tile(gather).expect("`check` has found that the plan serves the pass");
            launch_staged(call, (gather, tile), operands)
        }
        DepthwiseKernel::March => launch_march(call, gather, operands),
        DepthwiseKernel::Phases => {
            gathers.iter().filter(|gather| positions(gather) > 0).try_for_each(|gather| match tile(gather) {
                // Positions that no window reads: a product with K = 0 writes their zeros.
                _ if taps(gather) == 0 => gemm::launch_gather(call, gather, operands),
                Some(tile) => launch_staged(call, (gather, tile), operands),
                None => launch_march(call, gather, operands),
            })
        }
    }
}

fn launch_staged(
    call: &Conv3dCall,
    (gather, tile): (&Gather, FrameTile),
    [source, weight, out]: [&Operand; 3],
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, pass, cache, bias, activation, .. } = *call;
    let (chunk, threadgroups) = chunks(problem, gather, &tile, usize::MAX, limits);
    let all_threadgroups = problem.batch * problem.channels * threadgroups;
    let reached: Vec<_> = [source, weight, out].into_iter().chain(cache).collect();
    let address = address_type("conv3d", &reached, all_threadgroups * tile.threads, limits)?;
    let padding = problem.window_padding().expect("`serves` has checked the padding");
    let operations = 2.0 * (tile.threads * tile.rows * chunk * tile.tap_count()) as f64;
    for dispatch in dispatches(all_threadgroups, operations, limits) {
        // SAFETY: a threadgroup's tile, chunk, channel and image exist.
        unsafe {
            staged_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(tile.threads as u32),
                address,
                source.buffer_arg(1),
                cache.map(|cache| cache.buffer_arg(1)).into(),
                weight.buffer_arg(1),
                bias.map(|bias| bias.tensor_arg()).into(),
                out.buffer_arg(1),
                gather_args(problem, pass, gather, [source, weight, out]),
                cache.map(cache_args).into(),
                tile.tiling(gather, chunk, problem.channels, activation),
                dispatch.span(),
                pass,
                padding,
                tile,
                cache.is_some(),
                source.dtype.elem(),
                out.dtype.elem(),
            );
        }
    }
    Ok(())
}

fn launch_march(
    call: &Conv3dCall,
    gather: &Gather,
    [source, weight, out]: [&Operand; 3],
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, pass, cache, bias, activation, .. } = *call;
    let [depth, height, width] = gather.map(|axis| axis.positions);
    let images = problem.batch * problem.channels;
    let window = march_window(gather, |rows| height.div_ceil(rows) * width);
    let blocks = height.div_ceil(window.rows);
    let chunk = depth_chunk(depth, images * blocks * width, usize::MAX, limits);
    let chunks = depth.div_ceil(chunk);
    let marches = blocks * width * chunks;
    let threadgroups = marches.div_ceil(window.threads);
    let reached: Vec<_> = [source, weight, out].into_iter().chain(cache).collect();
    let address = address_type("conv3d", &reached, images * threadgroups * window.threads, limits)?;
    let padding = problem.window_padding().expect("`serves` has checked the padding");
    let operations = 2.0 * (window.threads * window.rows * chunk * window.tap_count()) as f64;
    for dispatch in dispatches(images * threadgroups, operations, limits) {
        // SAFETY: output positions are below the gather's extents; loads outside the source read element 0 in
        // their place.
        unsafe {
            march_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(window.threads as u32),
                address,
                source.buffer_arg(1),
                cache.map(|cache| cache.buffer_arg(1)).into(),
                weight.buffer_arg(1),
                bias.map(|bias| bias.tensor_arg()).into(),
                out.buffer_arg(1),
                gather_args(problem, pass, gather, [source, weight, out]),
                cache.map(cache_args).into(),
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
                padding,
                window,
                cache.is_some(),
                source.dtype.elem(),
                out.dtype.elem(),
            );
        }
    }
    Ok(())
}

/// Launches the weight gradient: operands x, dy, dw. The staged kernel computes the bias gradient from the dy
/// it has in registers where the workspace holds its partials too; otherwise a separate pass over dy does.
fn weight_gradient(
    call: &Conv3dCall,
    kernel: DepthwiseKernel,
    operands: [&Operand; 3],
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, bias_gradient: db, .. } = *call;
    let [_, dy, dw] = operands;
    let gather = &gathers(problem, Pass::Forward)[0];
    let staged = (kernel == DepthwiseKernel::Staged)
        .then(|| staged_weight(problem, limits).expect("`check` has found that the plan serves the pass"));
    let fused = db.filter(|db| {
        staged.is_some_and(|(_, (_, threadgroups))| {
            problem.batch * threadgroups <= affordable_slices(dw.len() + db.len(), limits)
        })
    });
    if let (Some(db), None) = (db, fused) {
        reduce::bias_gradient(client, problem, limits, dy, db)?;
    }
    match staged {
        Some((tile, chunks)) => staged_weight_gradient(call, (gather, tile), chunks, operands, fused),
        None => march_weight_gradient(call, gather, operands),
    }
}

fn march_weight_gradient(
    call: &Conv3dCall,
    gather: &Gather,
    [x, dy, dw]: [&Operand; 3],
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, cache, .. } = *call;
    let [depth, height, width] = gather.map(|axis| axis.positions);
    let WeightWork { window, whole, cuts, chunk, marches, slices, slice_length } =
        weight_work(problem, gather, limits);
    let threads = window.threads;
    let partials = reduce::partials(client, slices, dw);
    let largest = (slice_length * slices + threads).max(problem.channels * slices * cuts);
    let reached: Vec<_> = [x, dy, &partials].into_iter().chain(cache).collect();
    let address = address_type("conv3d", &reached, largest, limits)?;
    let padding = problem.window_padding().expect("`serves` has checked the padding");
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
                cache.map(|cache| cache.buffer_arg(1)).into(),
                dy.buffer_arg(1),
                partials.buffer_arg(1),
                gather_args(problem, Pass::Forward, gather, [x, dw, dy]),
                cache.map(cache_args).into(),
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
                padding,
                window,
                cache.is_some(),
                x.dtype.elem(),
                partials.dtype.elem(),
            );
        }
    }
    reduce::sum_partials(client, limits, &partials, dw)
}

fn staged_weight_gradient(
    call: &Conv3dCall,
    (gather, tile): (&Gather, FrameTile),
    (chunk, threadgroups): (usize, usize),
    [x, dy, dw]: [&Operand; 3],
    db: Option<&Operand>,
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, cache, .. } = *call;
    let slices = problem.batch * threadgroups;
    let slice_stride = dw.len() + db.map_or(0, Operand::len);
    let partials = match db {
        Some(_) => reduce::workspace(client, slices, slice_stride),
        None => reduce::partials(client, slices, dw),
    };
    let all_threadgroups = problem.channels * slices;
    let largest = (all_threadgroups * tile.threads).max(partials.len());
    let reached: Vec<_> = [x, dy, &partials].into_iter().chain(cache).collect();
    let address = address_type("conv3d", &reached, largest, limits)?;
    let padding = problem.window_padding().expect("`serves` has checked the padding");
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
                cache.map(|cache| cache.buffer_arg(1)).into(),
                dy.buffer_arg(1),
                partials.buffer_arg(1),
                gather_args(problem, Pass::Forward, gather, [x, dw, dy]),
                cache.map(cache_args).into(),
                tile.tiling(gather, chunk, problem.channels, Activation::None),
                slice_stride,
                dispatch.span(),
                db.is_some(),
                padding,
                tile,
                cache.is_some(),
                x.dtype.elem(),
                partials.dtype.elem(),
            );
        }
    }
    reduce::sum_partials(client, limits, &partials, dw)?;
    match db {
        Some(db) => {
            reduce::finish_partials_from(client, limits, (&partials, dw.len()), db, Epilogue::default())
        }
        None => Ok(()),
    }
}
