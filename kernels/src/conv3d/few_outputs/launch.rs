//! What [`crate::conv3d::Plan::FewOutputs`] serves, needs and launches: the product or the weight gradient,
//! and the sums over their split-K slices.
//!
//! # Safety of the launches
//!
//! The contract of [`crate::conv3d`]. Loads are masked to the source and stores to the result, and threads
//! write disjoint elements.

use super::config::{FewOutputsShape, FewOutputsTile};
use super::kernel::{ChannelSplitLaunch, few_outputs_kernel};
use super::weight::{TileSplitLaunch, few_outputs_weight_kernel};
use super::{channel_slices, dense_gather, loop_iterations, serves, threadgroups, tile_slices};
use crate::activation::Activation;
use crate::conv3d::cache::cache_args;
use crate::conv3d::call::Conv3dCall;
use crate::conv3d::epilogue::Epilogue;
use crate::conv3d::family::Family;
use crate::conv3d::gemm::gather::{Gather, divisor, gather_args};
use crate::conv3d::needs::kernel_needs;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::reduce;
use crate::conv3d::tiles::Tiles;
use crate::error::{ConvError, unsupported};
use crate::launch::dispatches;
use crate::limits::Limits;
use crate::needs::Needs;
use crate::operand::{Operand, address_type};
use cubecl::prelude::*;

impl Family for FewOutputsTile {
    fn plan_name(&self) -> String {
        format!("few_outputs_{}", self.name())
    }

    fn serves(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Result<(), ConvError> {
        if serves(problem, pass, self, limits) {
            return Ok(());
        }
        let as_forward = if pass == Pass::WeightGradient { Pass::Forward } else { pass };
        let (channels, results) = problem.channels_of(as_forward);
        unsupported!(
            "conv3d: {} serves at most 4 result channels per group with stride and dilation 1 whose \
             windows fit shared memory and registers and whose sums fit the device's loop iterations, not \
             the {} of {channels} to {results} channels with the kernel {:?}, stride {:?} and dilation {:?}",
            self.plan_name(),
            pass.name(),
            problem.kernel,
            problem.window.stride,
            problem.window.dilation
        )
    }

    fn needs(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Needs {
        let bytes = dense_gather(problem, pass)
            .map_or(0, |(gather, outputs)| FewOutputsShape::of(&gather, outputs, self).shared_bytes());
        kernel_needs(bytes, self.threads, loop_iterations(problem, pass, self, limits))
    }

    fn tiles(&self, problem: &Conv3dProblem, pass: Pass) -> Option<Tiles> {
        let (gather, outputs) = dense_gather(problem, pass)?;
        let (channels, _) = problem.channels_of(pass);
        let shape = FewOutputsShape::of(&gather, outputs, self);
        let positions = self.frames * self.rows * self.threads;
        Some(if pass == Pass::WeightGradient {
            let count = problem.channels * shape.parts * problem.batch * shape.threadgroups(&gather);
            Tiles { count, rows: problem.taps(), columns: shape.outputs, terms: positions }
        } else {
            let count = threadgroups(problem, &gather, &shape);
            Tiles { count, rows: positions, columns: outputs, terms: channels * problem.taps() }
        })
    }

    fn launches(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> usize {
        let Some((gather, outputs)) = dense_gather(problem, pass) else { return 1 };
        let shape = FewOutputsShape::of(&gather, outputs, self);
        let (slices, _) = if pass == Pass::WeightGradient {
            let tiles = problem.batch.saturating_mul(shape.threadgroups(&gather));
            tile_slices(problem, tiles, &shape, limits)
        } else {
            channel_slices(problem, pass, threadgroups(problem, &gather, &shape), limits)
        };
        1 + reduce::sum_launches(slices)
    }

    fn launch(&self, call: &Conv3dCall, operands: [&Operand; 3]) -> Result<(), ConvError> {
        match call.pass {
            Pass::WeightGradient => weight_gradient(call, self, operands),
            _ => launch(call, self, operands),
        }
    }
}

/// Launches the forward pass (operands x, w, y) or the input gradient (dy, w, dx).
fn launch(
    call: &Conv3dCall,
    tile: &FewOutputsTile,
    [source, weight, out]: [&Operand; 3],
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, pass, .. } = *call;
    let (gather, outputs) =
        dense_gather(problem, pass).expect("`check` has found that the plan serves the pass");
    let shape = FewOutputsShape::of(&gather, outputs, tile);
    let (slices, length) = channel_slices(problem, pass, threadgroups(problem, &gather, &shape), limits);
    let products = |out: &Operand, epilogue| {
        let operands = [source, weight, out];
        launch_slices(call, (&gather, &shape), (slices, length), operands, epilogue)
    };
    if slices == 1 {
        return products(out, call.epilogue());
    }
    let (partials, slice) = reduce::split_result(client, slices, out);
    products(&slice, Epilogue::default())?;
    reduce::finish_partials(client, limits, &partials, out, call.epilogue())
}

fn launch_slices(
    call: &Conv3dCall,
    (gather, shape): (&Gather, &FewOutputsShape),
    (slices, length): (usize, usize),
    operands: [&Operand; 3],
    Epilogue { bias, activation, .. }: Epilogue,
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, pass, cache, .. } = *call;
    let [source, weight, out] = operands;
    let (channels, _) = problem.channels_of(pass);
    let threadgroups = threadgroups(problem, gather, shape) * slices;
    let threads = shape.tile.threads;
    let slice_stride = if slices == 1 { 0 } else { out.len() };
    let reached: Vec<_> = operands.into_iter().chain(cache).collect();
    let padding = problem.window_padding().expect("`serves` has checked the padding");
    let address =
        address_type("conv3d", &reached, (threadgroups * threads).max(slice_stride * slices), limits)?;
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
                cache.map(|cache| cache.buffer_arg(1)).into(),
                weight.buffer_arg(1),
                bias.map(|bias| bias.tensor_arg()).into(),
                out.buffer_arg(1),
                gather_args(problem, pass, gather, operands),
                cache.map(cache_args).into(),
                shape.tile.tiling(gather, shape.frames, problem.window.groups, activation),
                ChannelSplitLaunch {
                    batch: divisor(problem.batch),
                    channels: channels as u32,
                    slice_channels: length as u32,
                    slice_stride,
                },
                dispatch.span(),
                pass,
                padding,
                *shape,
                limits.unroll,
                cache.is_some(),
                source.dtype.elem(),
                out.dtype.elem(),
            );
        }
    }
    Ok(())
}

/// Launches the weight gradient: operands x, dy, dw.
fn weight_gradient(
    call: &Conv3dCall,
    tile: &FewOutputsTile,
    [x, dy, dw]: [&Operand; 3],
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, cache, .. } = *call;
    let (gather, outputs) =
        dense_gather(problem, Pass::WeightGradient).expect("`check` has found that the plan serves the pass");
    let shape = FewOutputsShape::of(&gather, outputs, tile);
    let tiles = problem.batch * shape.threadgroups(&gather);
    let (slices, length) = tile_slices(problem, tiles, &shape, limits);
    let partials = reduce::partials(client, slices, dw);
    let threadgroups = problem.channels * slices * shape.parts;
    let largest = (threadgroups * tile.threads).max(partials.len());
    let reached: Vec<_> = [x, dy, &partials].into_iter().chain(cache).collect();
    let padding = problem.window_padding().expect("`serves` has checked the padding");
    let address = address_type("conv3d", &reached, largest, limits)?;
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
                cache.map(|cache| cache.buffer_arg(1)).into(),
                dy.buffer_arg(1),
                partials.buffer_arg(1),
                gather_args(problem, Pass::Forward, &gather, [x, dw, dy]),
                cache.map(cache_args).into(),
                shape.tile.tiling(&gather, shape.frames, 1, Activation::None),
                TileSplitLaunch {
                    channels: divisor(problem.channels),
                    group_channels: divisor(problem.group_channels()),
                    tiles: tiles as u32,
                    slice_tiles: length as u32,
                    output_stride: problem.group_channels() * problem.taps(),
                    slice_stride: dw.len(),
                },
                dispatch.span(),
                padding,
                shape,
                limits.unroll,
                cache.is_some(),
                x.dtype.elem(),
                partials.dtype.elem(),
            );
        }
    }
    reduce::sum_partials(client, limits, &partials, dw)
}
