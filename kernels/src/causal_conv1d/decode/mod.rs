//! Decoding: [`update()`] one step, [`update_steps`] several, with shifted states or rings
//! ([`update`](mod@update)); a vectorized kernel for Mamba's single step ([`step`]); and the states with
//! which decoding of packed sequences begins ([`last_states`]).

mod last_states;
mod step;
mod update;

pub(super) use last_states::launch_last_states;
pub use update::{DecodingSteps, check_update_steps, update, update_steps};
