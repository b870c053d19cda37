//! [`Family`] of the kernels for few outputs.

use super::config::{FewOutputsShape, FewOutputsTile};
use super::launch::{launch, weight_gradient};
use super::{channel_slices, dense_gather, serves, threadgroups, tile_slices};
use crate::conv3d::call::Conv3dCall;
use crate::conv3d::family::Family;
use crate::conv3d::loops::nest;
use crate::conv3d::needs::kernel_needs;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::reduce;
use crate::conv3d::tiles::Tiles;
use crate::error::{ConvError, unsupported};
use crate::limits::Limits;
use crate::needs::Needs;
use crate::operand::Operand;

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

/// Loop iterations of a thread: the channels of its slice (weight gradient: its tiles), the frames and
/// columns of a window, and the sums written.
pub(super) fn loop_iterations(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: &FewOutputsTile,
    limits: &Limits,
) -> usize {
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
