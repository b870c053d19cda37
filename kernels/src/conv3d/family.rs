//! What planning, checks, reports and launches ask of a plan. The type that a variant of [`super::Plan`]
//! carries implements it, in the `launch.rs` of its folder (`Direct` in `direct.rs`).

use super::call::Conv3dCall;
use super::needs::kernel_needs;
use super::notes::Notes;
use super::pass::Pass;
use super::problem::Conv3dProblem;
use super::tiles::Tiles;
use crate::error::{ConvError, unsupported};
use crate::limits::Limits;
use crate::needs::Needs;
use crate::operand::Operand;

/// What a plan answers. Problems are those that are launched ([`super::plan::PassProblem`]), with a result
/// that is not empty.
pub(super) trait Family {
    /// The plan's name in tables, reports and errors.
    fn plan_name(&self) -> String;

    /// Refuses, in one sentence, what the plan does not serve.
    fn serves(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Result<(), ConvError>;

    /// What the kernels need of a device.
    fn needs(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Needs;

    /// The GEMM tiles; none for plans that are not a single GEMM.
    fn tiles(&self, _problem: &Conv3dProblem, _pass: Pass) -> Option<Tiles> {
        None
    }

    /// Kernels of a pass, one after the other: what `launch.rs` splits for a watchdog counts once.
    fn launches(&self, _problem: &Conv3dProblem, _pass: Pass, _limits: &Limits) -> usize {
        1
    }

    /// Threadgroups of the product in one of its launches, in waves that fill the device. None where the
    /// model does not count idle ones (`choose/model.rs`): on matrix units, and in streams, whose sums are
    /// not split and of which no layer was timed under several plans.
    fn waves(&self, _problem: &Conv3dProblem, _pass: Pass, _limits: &Limits) -> Option<f64> {
        None
    }

    /// Error, workspace and spread of NaN.
    fn notes(&self, _problem: &Conv3dProblem, pass: Pass, _limits: &Limits) -> Notes {
        Notes::of_sum(pass)
    }

    /// Launches the pass: operands x, w, y (forward), dy, w, dx (input gradient) or x, dy, dw. The plan has
    /// been checked for the call's problem.
    fn launch(&self, call: &Conv3dCall, operands: [&Operand; 3]) -> Result<(), ConvError>;

    /// Whether the weight gradient's launch also computes [`Conv3dCall::bias_gradient`].
    fn sums_bias(&self) -> bool {
        false
    }

    /// Whether the forward pass' epilogue adds a residual. Else [`Conv3dCall::launch`] does, in a pass over
    /// fp32 results.
    fn fuses_residual(&self) -> bool {
        false
    }

    /// Whether an input gradient under padding other than zeros is computed for the padded input.
    fn is_rewritten(&self) -> bool {
        true
    }
}

/// The family of [`super::Plan::Empty`].
pub(super) struct Empty;

impl Family for Empty {
    fn plan_name(&self) -> String {
        "empty".into()
    }

    fn serves(&self, _: &Conv3dProblem, pass: Pass, _: &Limits) -> Result<(), ConvError> {
        unsupported!("conv3d: the plan `empty` was given for a {} whose result is not empty", pass.name())
    }

    fn needs(&self, _: &Conv3dProblem, _: Pass, _: &Limits) -> Needs {
        Needs { bindings: 0, threads: 0, ..kernel_needs(0, 0, 0) }
    }

    fn launches(&self, _: &Conv3dProblem, _: Pass, _: &Limits) -> usize {
        0
    }

    fn launch(&self, _: &Conv3dCall, _: [&Operand; 3]) -> Result<(), ConvError> {
        Ok(())
    }

    fn fuses_residual(&self) -> bool {
        true
    }

    fn is_rewritten(&self) -> bool {
        false
    }
}
