//! A call of conv3d, from the problem that is asked for to the launch:
//!
//! ```text
//! rewrite (rewrite.rs) -> check the plan -> the family's launch -> fold (fold.rs) where the rewrite says so
//! ```
//!
//! A residual that the family's epilogue does not add is added behind its launch (activation_pass.rs).
//!
//! The problem is rewritten once and the plan is checked once, for the problem that is launched.

use super::activation_pass;
use super::epilogue::Epilogue;
use super::fold;
use super::gemm::has_even_images;
use super::pass::Pass;
use super::plan::Plan;
use super::problem::Conv3dProblem;
use super::rewrite::PassProblem;
use crate::activation::Activation;
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::limits::Limits;
use crate::operand::Operand;
use cubecl::prelude::*;

/// What a forward pass adds to its sums. Converts from a bias alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Added<'a> {
    /// `[O]`, added before the activation.
    pub bias: Option<&'a Operand>,
    /// Of y's shape and dtype, any strides; added after the activation, before y is rounded.
    pub residual: Option<&'a Operand>,
}

impl<'a> From<Option<&'a Operand>> for Added<'a> {
    fn from(bias: Option<&'a Operand>) -> Self {
        Self { bias, residual: None }
    }
}

/// One pass of a problem under a plan that serves it. Families launch from this.
#[derive(Clone, Copy)]
pub(super) struct Conv3dCall<'a> {
    pub(super) client: &'a Client,
    pub(super) limits: &'a Limits,
    /// The problem that is launched.
    pub(super) problem: Conv3dProblem,
    pub(super) pass: Pass,
    plan: &'a Plan,
    rewritten: PassProblem,
    /// The first frames of x, where they are in a tensor of their own.
    pub(super) cache: Option<&'a Operand>,
    /// Bias of the result's channels: of a forward pass, or of an input gradient as one (`transposed.rs`).
    pub(super) bias: Option<&'a Operand>,
    /// Applied to the fp32 sum.
    pub(super) activation: Activation,
    /// The forward pass' residual.
    residual: Option<&'a Operand>,
    /// db, where a weight gradient computes it in the same pass ([`super::family::Family::sums_bias`]).
    pub(super) bias_gradient: Option<&'a Operand>,
}

impl<'a> Conv3dCall<'a> {
    /// Rewrites the problem and checks the plan for it.
    ///
    /// # Errors
    /// When the plan was made for another problem or needs what the device lacks.
    pub(super) fn new(
        client: &'a Client,
        limits: &'a Limits,
        problem: &Conv3dProblem,
        pass: Pass,
        plan: &'a Plan,
    ) -> Result<Self, ConvError> {
        let rewritten = PassProblem::of(problem, pass);
        check(plan, &rewritten, limits)?;
        let problem = *plan.launched(&rewritten);
        let call = Self {
            client,
            limits,
            problem,
            pass,
            plan,
            rewritten,
            cache: None,
            bias: None,
            activation: problem.activation_of(pass),
            residual: None,
            bias_gradient: None,
        };
        Ok(call)
    }

    /// With the first frames of x in a tensor of their own. `Direct` takes what the plan does not read.
    pub(super) fn with_cache(self, x: &Operand, cache: &'a Operand) -> Self {
        let plan = if reads_cache(self.plan, x, cache) { self.plan } else { &Plan::Direct };
        Self { cache: Some(cache), plan, ..self }
    }

    /// With the bias of the result's channels.
    pub(super) fn with_bias(self, bias: Option<&'a Operand>) -> Self {
        Self { bias, ..self }
    }

    /// With another activation than the pass has by itself: gradients have none.
    pub(super) fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// With the forward pass' residual.
    pub(super) fn with_residual(self, residual: Option<&'a Operand>) -> Self {
        Self { residual, ..self }
    }

    /// What follows the pass' sums.
    pub(super) fn epilogue(&self) -> Epilogue<'a> {
        let Self { bias, residual, activation, .. } = *self;
        Epilogue { bias, residual, activation }
    }

    /// With db, for a plan that [`Self::sums_bias`].
    pub(super) fn with_bias_gradient(self, db: &'a Operand) -> Self {
        Self { bias_gradient: Some(db), ..self }
    }

    /// Launches the pass; operands as [`super::family::Family::launch`] takes them.
    ///
    /// # Errors
    /// When an operand cannot be addressed.
    pub(super) fn launch(&self, [first, second, result]: [&Operand; 3]) -> Result<(), ConvError> {
        if self.rewritten.is_empty() {
            return Ok(());
        }
        // Without channels or a batch the sums are empty and so may be the operands: the result is the bias,
        // or zero.
        let (first, second) = (&first.bindable(self.client), &second.bindable(self.client));
        let cache = self.cache.map(|cache| cache.bindable(self.client));
        let call = &Conv3dCall { cache: cache.as_ref(), ..*self };
        let family = self.plan.family();
        if let Some(residual) = self.residual.filter(|_| !family.fuses_residual()) {
            let unrounded = Operand::empty(self.client, &result.shape, FloatType::F32);
            family.launch(&call.with_residual(None), [first, second, &unrounded])?;
            let operands = [&unrounded, residual, result];
            return activation_pass::add_residual(self.client, self.limits, Activation::None, operands);
        }
        if !self.plan.folds(&self.rewritten) {
            return family.launch(call, [first, second, result]);
        }
        let extended = fold::extended_gradient(self.client, &self.problem);
        family.launch(call, [first, second, &extended])?;
        fold::fold(self.client, &self.rewritten.asked, self.limits, &extended, result)
    }

    /// Whether the launch of a weight gradient computes [`Self::bias_gradient`].
    pub(super) fn sums_bias(&self) -> bool {
        self.plan.family().sums_bias() && !self.rewritten.is_empty()
    }
}

/// Whether a plan reads x and a cache of these layouts where they are: the gathered GEMM counts image
/// channels, which have to be evenly spaced, and the window kernels read the frames of both by one layout.
/// What it does not read [`super::forward_cached`] and [`super::weight_gradient_cached`] leave to
/// [`Plan::Direct`].
pub fn reads_cache(plan: &Plan, x: &Operand, cache: &Operand) -> bool {
    match plan {
        Plan::Gemm(_) => [x, cache].into_iter().all(has_even_images),
        Plan::Window(_) => x.strides[3..] == cache.strides[3..],
        _ => true,
    }
}

/// Refuses a plan that was made for another problem or needs what the device lacks. Every plan computes an
/// empty result.
pub(super) fn check(plan: &Plan, problem: &PassProblem, limits: &Limits) -> Result<(), ConvError> {
    if problem.is_empty() {
        return Ok(());
    }
    plan.family().serves(plan.launched(problem), problem.pass, limits)?;
    plan.check_needs(problem, limits)
}
