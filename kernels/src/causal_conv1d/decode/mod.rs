//! Decoding: [`update()`] one step, [`update_steps`] several, with shifted states or rings
//! ([`update`](mod@update)); a vectorized kernel for Mamba's single step ([`step`]); and the states with
//! which decoding of packed sequences begins ([`last_states`]).

mod last_states;
mod step;
mod update;

pub(super) use last_states::launch_last_states;
pub use update::{DecodingSteps, update, update_steps};

use super::args::THREADS;
use super::problem::UpdateProblem;
use crate::error::ConvError;
use crate::limits::Limits;
use crate::needs::Needs;

const UPDATE: &str = "causal_conv1d_update";

/// What a call of so many steps needs of a device; `indices`: how many of lengths and slots are given.
pub fn update_needs(problem: &UpdateProblem, steps: usize, indices: usize) -> Needs {
    // Per step one iteration of the outer loop, W of the inner one and its exit test; then the columns that
    // are written, and the rows that a thread searches for its slot.
    let taps = steps.saturating_mul(problem.width.saturating_add(2));
    let iterations = taps.saturating_add(problem.state_length + problem.batch.div_ceil(THREADS as usize) + 4);
    // x, both states, weight, bias, y and the arguments; slots share a word of memory.
    let (bindings, shared_bytes) = (7 + indices, 4);
    let threads = THREADS as usize;
    Needs { shared_bytes, bindings, threads, loop_iterations: iterations, ..Needs::default() }
}

/// Refuses more steps at once than the device's limit on loop iterations allows, and lengths or slots on a
/// device with too few bindings.
///
/// # Errors
/// As [`Needs::check`].
pub fn check_update_steps(
    problem: &UpdateProblem,
    steps: usize,
    indices: usize,
    limits: &Limits,
) -> Result<(), ConvError> {
    let needs = update_needs(problem, steps, indices);
    needs.check(format_args!("{UPDATE}: a call with steps = {steps}"), limits)
}
