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

/// Refuses more steps at once than the device's limit on loop iterations allows, and lengths or slots
/// (`indexed`) on a device with too few bindings.
///
/// # Errors
/// As [`Needs::check`].
pub fn check_update_steps(
    problem: &UpdateProblem,
    steps: usize,
    indexed: bool,
    limits: &Limits,
) -> Result<(), ConvError> {
    // Per step one iteration of the outer loop, W of the inner one and its exit test; then the columns that
    // are written, and the rows that a thread searches for its slot.
    let taps = steps.saturating_mul(problem.width.saturating_add(2));
    let iterations = taps.saturating_add(problem.state_length + problem.batch.div_ceil(THREADS as usize) + 4);
    // With lengths or slots both are bound; the arguments take one more.
    let bindings = if indexed { 9 } else { 7 };
    let needs =
        Needs { bindings, threads: THREADS as usize, loop_iterations: iterations, ..Needs::default() };
    needs.check(format_args!("{UPDATE}: a call with steps = {steps}"), limits)
}
