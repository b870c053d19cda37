//! What the families of conv3d start from where they state what a plan needs of a device.
//! [`super::Plan::needs`] adds the fold of an input gradient under padding other than zeros, the residual,
//! and a stream's cache.

use super::gemm;
use super::problem::Conv3dProblem;
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
