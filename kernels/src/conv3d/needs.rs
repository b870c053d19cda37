//! What a plan needs of a device. Planning declines what the device lacks, so that some plan always serves
//! and every refusal comes before a launch.
//!
//! Loop iterations are upper bounds for one thread, summed over all loops of a kernel: a software device ends
//! every loop once they are spent ([`Limits::loop_iterations`]).

use super::gemm::{self, GemmTile};
use super::loops::nest;
use super::pass::Pass;
use super::plan::Plan;
use super::problem::Conv3dProblem;
use super::split::ReductionSplit;
use super::{depthwise, direct, few_outputs, fold, subpixel, window, winograd};
use crate::error::{ConvError, unsupported};
use crate::limits::Limits;

/// What a plan needs of a device: the maximum over its kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Bytes of threadgroup memory.
    pub shared_bytes: usize,
    /// Threads of a threadgroup.
    pub threads: usize,
    /// Buffers that a kernel binds, its argument buffer included.
    pub bindings: usize,
    /// Bytes of the largest intermediate buffer.
    pub buffer_bytes: u64,
    /// Loop iterations of a thread, all loops together.
    pub loop_iterations: usize,
}

/// Two operands, bias, result and arguments.
const BINDINGS: usize = 5;

/// Threads per threadgroup of the kernels without a tile: `Direct`, transforms, packing, reductions.
const THREADS: usize = 256;

impl Needs {
    fn of(shared_bytes: usize, threads: usize, loop_iterations: usize) -> Self {
        Self {
            shared_bytes,
            threads: threads.max(THREADS),
            bindings: BINDINGS,
            buffer_bytes: 0,
            loop_iterations,
        }
    }

    /// Refuses what the device lacks, in one sentence.
    ///
    /// # Errors
    /// [`ConvError::Unsupported`] for a lack of threadgroup memory, threads or bindings,
    /// [`ConvError::TooLarge`] for buffers and loops.
    pub fn check(&self, plan: &Plan, pass: Pass, limits: &Limits) -> Result<(), ConvError> {
        let (pass, plan) = (pass.name(), plan.name());
        let resources = [
            (self.shared_bytes, limits.shared_bytes, "bytes of shared memory"),
            (self.threads, limits.units_per_cube as usize, "threads per threadgroup"),
            (self.bindings, limits.bindings, "buffer bindings"),
        ];
        for (needed, offered, what) in resources {
            if needed > offered {
                unsupported!("conv3d: the {pass} by {plan} needs {needed} {what}, the device has {offered}");
            }
        }
        if self.buffer_bytes > limits.buffer_bytes {
            return Err(ConvError::TooLarge(format!(
                "conv3d: the {pass} by {plan} needs an intermediate buffer of {} bytes, \
                 this device's largest has {}",
                self.buffer_bytes, limits.buffer_bytes
            )));
        }
        if let Some(most) = limits.loop_iterations
            && self.loop_iterations > most
        {
            return Err(ConvError::TooLarge(format!(
                "conv3d: the {pass} by {plan} takes {} loop iterations per thread, this software device \
                 ends loops after {most}",
                self.loop_iterations
            )));
        }
        Ok(())
    }
}

impl Plan {
    /// What the plan needs of a device for one pass of a problem that it serves.
    pub fn needs(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Needs {
        let launched = fold::launched(problem, pass);
        if matches!(self, Self::Empty) {
            return Needs { bindings: 0, threads: 0, ..Needs::of(0, 0, 0) };
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

/// How the simple plans split the weight gradient's sum.
fn weight_split(problem: &Conv3dProblem, limits: &Limits) -> ReductionSplit {
    ReductionSplit::of(problem.positions(), problem.weight_shape().iter().product(), limits)
}

fn direct_needs(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Needs {
    if pass != Pass::WeightGradient {
        return Needs::of(0, THREADS, direct::loop_iterations(problem, pass));
    }
    // A thread sums a short slice, a threadgroup a long one. dw has fp32 partials even for one slice.
    let ReductionSplit { slices, length } = weight_split(problem, limits);
    let iterations = nest(length.min(2 * THREADS).max(length.div_ceil(THREADS)), 0);
    let weights: usize = problem.weight_shape().iter().product();
    Needs { buffer_bytes: (4 * slices * weights) as u64, ..Needs::of(4 * THREADS, THREADS, iterations) }
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
                Pass::WeightGradient => weight_split(problem, limits).length,
            };
            Needs::of(tile.shared_bytes(), tile.threads() as usize, nest(k.div_ceil(tile.tile_k), 0))
        }
        Plan::Depthwise => {
            let (shared, threads, iterations) = depthwise::needs(problem, pass, limits);
            Needs::of(shared, threads, iterations)
        }
        Plan::Gemm(tile) => {
            let stages = gemm::k_iterations(problem, pass, GemmTile::Fma(*tile), limits);
            let inner = if limits.unroll { 0 } else { nest(tile.tile_k, 0) };
            Needs::of(tile.shared_bytes(), tile.threads(), nest(stages, inner) + SETUP)
        }
        Plan::MatrixGemm(tile) => {
            let stages = gemm::k_iterations(problem, pass, GemmTile::Mma(*tile), limits);
            Needs::of(tile.shared_bytes(size), tile.threads(), nest(stages, 0) + SETUP)
        }
        Plan::WindowGemm(tile) => Needs {
            buffer_bytes: window::packed_bytes(problem, pass, tile, limits),
            ..Needs::of(
                tile.shared_bytes(size).max(window::PACK_BYTES),
                tile.threads(),
                window::loop_iterations(problem, pass, tile, limits) + SETUP,
            )
        },
        Plan::WindowWeight(tile) => {
            let iterations = window::weight::loop_iterations(problem, tile, limits);
            Needs::of(tile.shared_bytes(size), tile.threads(), iterations + SETUP)
        }
        Plan::FewOutputs(tile) => {
            let iterations = few_outputs::loop_iterations(problem, pass, tile, limits);
            Needs::of(few_outputs::shared_bytes(problem, pass, tile), tile.threads, iterations)
        }
        Plan::Subpixel(tile) => Needs {
            buffer_bytes: subpixel::packed_bytes(problem, tile, limits),
            ..Needs::of(
                tile.shared_bytes(size),
                tile.threads(),
                subpixel::loop_iterations(problem, tile, limits),
            )
        },
        Plan::Winograd(config) => {
            let (shared, threads, iterations) = winograd::needs(problem, pass, config, limits);
            Needs::of(shared, threads, iterations)
        }
    }
}

/// Iterations of the loops that run once per thread: clearing a stage, computing a window's addresses.
const SETUP: usize = 128;

#[cfg(test)]
#[path = "needs_tests.rs"]
mod tests;
