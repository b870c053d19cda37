//! What the plans of causal conv1d need of a device, whichever optional tensors are given: a call has the
//! problem's, but gradients and states may be left out.

use super::args::THREADS;
use super::plan::{Pass, Plan};
use super::problem::CausalConv1dProblem;
use super::{looped, narrow, state, wide};
use crate::activation::Activation;
use crate::limits::Limits;
use crate::needs::Needs;

impl Plan {
    /// What the plan needs of a device for one pass of a problem that it serves, whichever optional tensors
    /// are given.
    pub fn needs(&self, problem: &CausalConv1dProblem, pass: Pass, limits: &Limits) -> Needs {
        if *self == Self::Empty {
            return Needs::default();
        }
        let ids = usize::from(problem.seq_idx);
        // Arguments included; the states' kernels bind at most seven.
        let (shared_bytes, bindings) = match (self, pass) {
            (Self::Narrow, Pass::Forward) => (0, 7 + ids),
            (Self::Narrow, Pass::Backward) => (narrow::BACKWARD_SHARED_BYTES, 12 + ids),
            (Self::Wide, Pass::Forward) => (wide::FORWARD_SHARED_BYTES, 8),
            (Self::Wide, Pass::Backward) => (wide::backward_shared_bytes(problem), 8),
            (Self::Looped, _) => (4 * THREADS as usize, 7 + ids),
            (Self::Empty, _) => (0, 0),
        };
        let loop_iterations = match (self, pass) {
            _ if problem.batch * problem.channels * problem.length == 0 => 0,
            (Self::Empty, _) => 0,
            (Self::Narrow, _) => narrow::loop_iterations(problem, pass, limits),
            (Self::Wide, Pass::Forward) => wide::iterations(problem),
            (Self::Wide, Pass::Backward) => {
                wide::iterations(problem).max(wide::WeightSplit::of(problem, limits).iterations())
            }
            // One more, in which the loop ends.
            (Self::Looped, Pass::Forward) => problem.width + 1,
            (Self::Looped, Pass::Backward) => {
                problem.width.max(looped::weight::iterations(problem, limits)) + 1
            }
        };
        let threads = THREADS as usize;
        let buffer_bytes = match pass {
            Pass::Forward => 0,
            Pass::Backward => self.workspace_bytes(problem, limits),
        };
        let needs = Needs { shared_bytes, threads, bindings, buffer_bytes, loop_iterations };
        if problem.seq_idx { needs.and(state::search_needs(problem)) } else { needs }
    }

    /// Bytes of the largest intermediate buffer of the backward pass: partial sums of dw and db, the
    /// pre-activation gradient of one channel, the ids with the ends of their rows (in the smaller of their
    /// types).
    fn workspace_bytes(&self, problem: &CausalConv1dProblem, limits: &Limits) -> u64 {
        let steps = problem.batch * problem.length;
        // Without steps `Narrow` is run as `Looped`.
        let narrow = *self == Self::Narrow && steps > 0;
        let slices = match self {
            Self::Narrow if narrow => narrow::partial_sums(problem, limits),
            Self::Wide => wide::WeightSplit::of(problem, limits).slices(),
            _ => looped::weight::slices(problem, limits),
        };
        let partials = problem.channels.saturating_mul(problem.width + 1).saturating_mul(slices);
        let stores_gradient = !narrow && problem.activation != Activation::None;
        let gradient = if stores_gradient { steps } else { 0 };
        let ids = if problem.seq_idx { steps + problem.batch } else { 0 };
        4u64.saturating_mul(partials.max(gradient).max(ids) as u64)
    }
}

#[cfg(test)]
#[path = "needs_tests.rs"]
mod tests;
