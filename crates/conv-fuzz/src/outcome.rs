//! The outcome of a case.

use crate::text::Case;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A comparison that passed: a pass and a plan.
pub type Check = (&'static str, String);

/// The outcome of a case.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Every comparison passed.
    Passed(Vec<Check>),
    /// Not a problem of this device: the numbers contradict each other, or the device lacks a type.
    Skipped(String),
    /// A comparison or a launch failed.
    Failed(Box<Failure>),
}

/// A failure.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The case, with the pass and the plan that failed where the op has them.
    pub case: Case,
    /// The kind of failure, which shrinking preserves.
    pub kind: &'static str,
    /// Expected and actual result.
    pub message: String,
}

impl Outcome {
    /// A failure of a case.
    pub fn failed(case: &Case, kind: &'static str, message: impl Into<String>) -> Self {
        Self::Failed(Box::new(Failure { case: case.clone(), kind, message: message.into() }))
    }
}

/// Results that differ from the reference.
pub const WRONG: &str = "wrong";
/// A launch that failed on the device: an access outside a buffer, a kernel that does not compile.
pub const LAUNCH: &str = "launch";
/// A panic.
pub const PANIC: &str = "panic";
/// A plan that was chosen and then refused at launch.
pub const REFUSED: &str = "refused";
/// No plan although there must be one.
pub const NO_PLAN: &str = "no plan";
/// A launch that exceeds the limits it was planned for.
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
