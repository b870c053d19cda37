//! What the plans of conv3d need of a device. The families answer for their kernels; this file adds the fold
//! of an input gradient under padding other than zeros, the residual, and the cache of a stream.

use super::fold;
use super::gemm;
use super::pass::Pass;
use super::plan::Plan;
use super::problem::Conv3dProblem;
use super::rewrite::PassProblem;
use crate::error::ConvError;
use crate::limits::Limits;
use crate::needs::Needs;

/// Two operands, bias, result and arguments.
const BINDINGS: usize = 5;

/// Threads per threadgroup of the kernels without a tile: `Direct`, transforms, packing, reductions.
pub(super) const THREADS: usize = 256;

/// Iterations of the loops that run once per thread: clearing a stage, computing a window's addresses.
pub(super) const SETUP: usize = 128;

/// The needs of a plan whose main kernel takes these bytes of threadgroup memory, threads and loop
/// iterations.
pub(super) fn kernel_needs(shared_bytes: usize, threads: usize, loop_iterations: usize) -> Needs {
    Needs {
        shared_bytes,
        threads: threads.max(THREADS),
        bindings: BINDINGS,
        buffer_bytes: 0,
        loop_iterations,
    }
}

/// Bytes of an element of a stage for matrix units, at least those of the problem's type.
pub(super) fn stage_size(problem: &Conv3dProblem, limits: &Limits) -> usize {
    let stage = gemm::stage_type(problem.dtype, limits).map_or(4, |(stage, _)| stage.size());
    problem.dtype.size().max(stage)
}

impl Plan {
    /// Refuses a device that lacks what the plan needs for one pass of a problem that it serves.
    ///
    /// # Errors
    /// As [`Needs::check`].
    pub(super) fn check_needs(&self, problem: &PassProblem, limits: &Limits) -> Result<(), ConvError> {
        let what = format_args!("conv3d: the {} by {self}", problem.pass.name());
        self.needs_for(problem, limits).check(what, limits)
    }

    /// What the plan needs of a device for one pass of a problem that it serves.
    pub fn needs(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Needs {
        self.needs_for(&PassProblem::of(problem, pass), limits)
    }

    fn needs_for(&self, problem: &PassProblem, limits: &Limits) -> Needs {
        let launched = self.launched(problem);
        let needs = self.family().needs(launched, problem.pass, limits);
        // The cache of a stream, and a residual.
        let residual = launched.residual && problem.pass == Pass::Forward;
        let optional = [launched.streaming, residual].map(usize::from);
        let mut needs = Needs { bindings: needs.bindings + optional.iter().sum::<usize>(), ..needs };
        if residual && !self.family().fuses_residual() {
            needs.buffer_bytes = needs.buffer_bytes.max(fp32_bytes(launched.y_shape()));
        }
        if !self.folds(problem) {
            return needs;
        }
        Needs {
            buffer_bytes: needs.buffer_bytes.max(fp32_bytes(problem.launched.x_shape())),
            loop_iterations: needs.loop_iterations.max(fold::loop_iterations(&problem.asked)),
            ..needs
        }
    }
}

/// Bytes of an fp32 tensor.
fn fp32_bytes(shape: [usize; 5]) -> u64 {
    shape.iter().fold(4, |bytes, size| bytes.saturating_mul(*size as u64))
}

#[cfg(test)]
#[path = "needs_tests.rs"]
mod tests;
