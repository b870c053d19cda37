//! What came of a case.

use crate::text::Case;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// One comparison that held: a pass and a plan.
pub type Check = (&'static str, String);

/// What came of a case.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Everything held.
    Passed(Vec<Check>),
    /// The numbers contradict each other, or the device lacks a type: there is no such problem here.
    Skipped(String),
    /// Something is wrong.
    Failed(Box<Failure>),
}

/// Something wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The case, with the pass and the plan that failed where the op has them.
    pub case: Case,
    /// What kind of failure: shrinking keeps it.
    pub kind: &'static str,
    /// What was expected and what came.
    pub message: String,
}

impl Outcome {
    /// A failure of a case.
    pub fn failed(case: &Case, kind: &'static str, message: impl Into<String>) -> Self {
        Self::Failed(Box::new(Failure { case: case.clone(), kind, message: message.into() }))
    }
}

/// Results that are not those of the reference.
pub const WRONG: &str = "wrong";
/// A launch that failed on the device: an access outside a buffer, a kernel that does not compile.
pub const LAUNCH: &str = "launch";
/// A panic.
pub const PANIC: &str = "panic";
/// A plan that was chosen, then refused at launch.
pub const REFUSED: &str = "refused";
/// No plan where there has to be one.
pub const NO_PLAN: &str = "no plan";
/// A launch past the limits that it was planned for.
pub const OVER: &str = "over";

/// Runs `action`; the text of its panic if it panics.
///
/// # Errors
/// The panic's text.
pub fn caught<T>(action: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(action)).map_err(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        text.or_else(|| payload.downcast_ref::<&str>().map(|text| text.to_string()))
            .unwrap_or_else(|| "a panic without a text".into())
    })
}
