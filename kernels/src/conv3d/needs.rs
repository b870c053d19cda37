//! What the plans of conv3d need of a device.

use super::gemm::{self, GemmTile};
use super::loops::nest;
use super::pass::Pass;
use super::plan::Plan;
use super::problem::Conv3dProblem;
use super::split::ReductionSplit;
use super::{depthwise, direct, direct_weight, few_outputs, fold, implicit_gemm, subpixel, window, winograd};
use crate::error::ConvError;
use crate::limits::Limits;
use crate::needs::Needs;

/// Two operands, bias, result and arguments.
const BINDINGS: usize = 5;

/// Threads per threadgroup of the kernels without a tile: `Direct`, transforms, packing, reductions.
const THREADS: usize = 256;

fn needs(shared_bytes: usize, threads: usize, loop_iterations: usize) -> Needs {
    Needs {
        shared_bytes,
        threads: threads.max(THREADS),
        bindings: BINDINGS,
        buffer_bytes: 0,
        loop_iterations,
    }
}

impl Plan {
    /// Refuses a device that lacks what the plan needs for one pass of a problem that it serves.
    ///
    /// # Errors
    /// As [`Needs::check`].
    pub(super) fn check_needs(
        &self,
        problem: &Conv3dProblem,
        pass: Pass,
        limits: &Limits,
    ) -> Result<(), ConvError> {
        let what = format_args!("conv3d: the {} by {self}", pass.name());
        self.needs(problem, pass, limits).check(what, limits)
    }

    /// What the plan needs of a device for one pass of a problem that it serves.
    pub fn needs(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Needs {
        let launched = fold::launched(problem, pass);
        if matches!(self, Self::Empty) {
            return Needs { bindings: 0, threads: 0, ..needs(0, 0, 0) };
        }
        if matches!(self, Self::Direct) {
            return direct_needs(problem, pass, limits);
        }
        let needs = kernel_needs(self, &launched, pass, limits);
        if !fold::is_folded(problem, pass) {
            return needs;
        }
        let bytes = launched.x_shape().iter().fold(4u64, |bytes, size| bytes.saturating_mul(*size as u64));
        Needs {
            buffer_bytes: needs.buffer_bytes.max(bytes),
            loop_iterations: needs.loop_iterations.max(fold::loop_iterations(problem)),
            ..needs
        }
    }
}

fn direct_needs(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Needs {
    if pass != Pass::WeightGradient {
        return needs(0, THREADS, direct::loop_iterations(problem, pass));
    }
    // A thread sums a short slice, a threadgroup a long one. dw has fp32 partials even for one slice.
    let ReductionSplit { slices, length } = direct_weight::weight_split(problem, limits);
    let iterations = nest(length.min(2 * THREADS).max(length.div_ceil(THREADS)), 0);
    let weights: usize = problem.weight_shape().iter().product();
    Needs { buffer_bytes: (4 * slices * weights) as u64, ..needs(4 * THREADS, THREADS, iterations) }
}

/// The needs of all plans but `Empty` and `Direct`, on the problem that they launch.
fn kernel_needs(plan: &Plan, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Needs {
    let size = problem
        .dtype
        .size()
        .max(gemm::stage_type(problem.dtype, limits).map_or(4, |(stage, _)| stage.size()));
    match plan {
        Plan::Empty | Plan::Direct => unreachable!("answered by the caller"),
        Plan::ImplicitGemm(tile) => {
            let k = match pass {
                Pass::Forward => problem.group_channels() * problem.taps(),
                Pass::InputGradient => problem.group_out_channels() * problem.taps(),
                Pass::WeightGradient => implicit_gemm::weight_split(problem, *tile, limits).length,
            };
            needs(tile.shared_bytes(), tile.threads() as usize, nest(k.div_ceil(tile.tile_k), 0))
        }
        Plan::Depthwise => {
            let (shared, threads, iterations) = depthwise::needs(problem, pass, limits);
            needs(shared, threads, iterations)
        }
        Plan::Gemm(tile) => {
            let stages = gemm::k_iterations(problem, pass, GemmTile::Fma(*tile), limits);
            let inner = if limits.unroll { 0 } else { nest(tile.tile_k, 0) };
            needs(tile.shared_bytes(), tile.threads(), nest(stages, inner) + SETUP)
        }
        Plan::MatrixGemm(tile) => {
            let stages = gemm::k_iterations(problem, pass, GemmTile::Mma(*tile), limits);
            needs(tile.shared_bytes(size), tile.threads(), nest(stages, 0) + SETUP)
        }
        Plan::WindowGemm(tile) => Needs {
            buffer_bytes: window::packed_bytes(problem, pass, tile, limits),
            ..needs(
                tile.shared_bytes(size).max(window::PACK_BYTES),
                tile.threads(),
                window::loop_iterations(problem, pass, tile, limits) + SETUP,
            )
        },
        Plan::WindowWeight(tile) => {
            let iterations = window::weight::loop_iterations(problem, tile, limits);
            needs(tile.shared_bytes(size), tile.threads(), iterations + SETUP)
        }
        Plan::FewOutputs(tile) => {
            let iterations = few_outputs::loop_iterations(problem, pass, tile, limits);
            needs(few_outputs::shared_bytes(problem, pass, tile), tile.threads, iterations)
        }
        Plan::Subpixel(tile) => Needs {
            buffer_bytes: subpixel::packed_bytes(problem, tile, limits),
            ..needs(tile.shared_bytes(size), tile.threads(), subpixel::loop_iterations(problem, tile, limits))
        },
        Plan::Winograd(config) => {
            let (shared, threads, iterations) = winograd::needs(problem, pass, config, limits);
            needs(shared, threads, iterations)
        }
    }
}

/// Iterations of the loops that run once per thread: clearing a stage, computing a window's addresses.
const SETUP: usize = 128;

#[cfg(test)]
#[path = "needs_tests.rs"]
mod tests;
