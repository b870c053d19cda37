//! Depthwise conv3d (groups = C = O): [`staged`] for the forward pass and the input gradient,
//! [`staged_weight`] for the weight gradient, both with frames in shared memory. Strides, dilation and the
//! smallest frames are left to [`march`] and [`weight`], which read frames through the cache.

mod config;
mod launch;
mod march;
mod staged;
mod staged_weight;
mod weight;

use super::gemm::gather::{few_phases, gathers};
use super::pass::Pass;
use super::problem::Conv3dProblem;
use crate::limits::Limits;
use config::{FORWARD_ROWS, staged_tile, staged_weight};
use march::MAX_TAPS;

/// The kernel of a depthwise plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DepthwiseKernel {
    /// Frames pass through shared memory: stride and dilation 1, tiles at least a third full.
    Staged,
    /// Frames are read through the cache: any stride and dilation.
    March,
    /// The input gradient of strided windows: one launch per residue class of the stride, each staged or a
    /// march by its own extents, or zeros where no tap reaches it.
    Phases,
}

impl DepthwiseKernel {
    /// The kernel for a pass of a problem that is served.
    pub(crate) fn of(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Self {
        let staged = match pass {
            Pass::InputGradient if problem.window.stride != [1; 3] => return Self::Phases,
            Pass::WeightGradient => staged_weight(problem, limits).is_some(),
            _ => staged_tile(&gathers(problem, pass)[0], &FORWARD_ROWS, limits).is_some(),
        };
        if staged { Self::Staged } else { Self::March }
    }
}

/// Whether the problem is depthwise and small enough to be indexed.
pub(crate) fn serves(problem: &Conv3dProblem, pass: Pass) -> bool {
    let groups = problem.window.groups;
    let elements = [problem.x_shape(), problem.y_shape()].map(|shape| shape.iter().product::<usize>());
    problem.channels == groups
        && problem.out_channels == groups
        && problem.taps() <= MAX_TAPS
        && problem.window_padding().is_some()
        && few_phases(problem, pass)
        // Threads are counted below 2^31, idle ones included.
        && elements.iter().all(|elements| *elements < 1 << 30)
}
