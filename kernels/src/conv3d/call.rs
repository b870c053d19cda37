//! The functions of conv3d, and a call from the problem that is asked for to the launch:
//!
//! ```text
//! check the operands (check.rs) -> rewrite (plan.rs) -> check the plan -> the family's launch
//! -> fold (fold.rs) where the rewrite says so
//! ```
//!
//! A residual that the family's epilogue does not add is added after its launch (activation_pass.rs).
//!
//! The problem is rewritten once and the plan is checked once, for the problem that is launched.

use super::activation_pass;
use super::check::{check_added, check_bias_gradient, check_cached, check_operands, check_pass};
use super::epilogue::Epilogue;
use super::fold;
use super::gemm::has_even_images;
use super::pass::Pass;
use super::plan::{PassProblem, Plan};
use super::problem::{Conv3dProblem, Window};
use super::reduce;
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

/// Computes y `[N, O, OD, OH, OW]` with the bias and the residual that the problem has: operands x, w, y.
///
/// `limits` are the device's or smaller ones.
///
/// # Errors
/// When the operands do not have the problem's shapes and dtype, or the plan cannot serve the problem.
pub fn forward<'a>(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    plan: &Plan,
    operands: [&Operand; 3],
    added: impl Into<Added<'a>>,
) -> Result<(), ConvError> {
    check_pass(problem, Pass::Forward, operands)?;
    run_forward(client, limits, problem, plan, operands, (None, None, added.into()))
}

/// [`forward`] that also stores what the activation's gradient needs: the value before the activation, in
/// `pre`, an fp32 tensor of y's shape. Both are row-major. y has the bits of [`forward`] under every plan:
/// activation, residual and rounding act on the same fp32 number.
///
/// # Errors
/// As [`forward`], and when `pre` or y does not have that shape, dtype or order.
pub fn forward_with_pre<'a>(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    plan: &Plan,
    operands: [&Operand; 3],
    pre: &Operand,
    added: impl Into<Added<'a>>,
) -> Result<(), ConvError> {
    check_pass(problem, Pass::Forward, operands)?;
    run_forward(client, limits, problem, plan, operands, (None, Some(pre), added.into()))
}

/// [`forward`] whose first frames of x are in a tensor of their own, the cache `[N, C, frames, H, W]` of what
/// came before a piece of a clip: nothing is joined in memory. The problem is that of [cache, x] joined along
/// depth, [`Conv3dProblem::for_streams`]. With `pre` as [`forward_with_pre`].
///
/// Layouts that the plan does not read ([`reads_cache`]) go to [`Plan::Direct`], whose sums have another
/// order.
///
/// # Errors
/// As [`forward`], and when the cache has not the problem's shape but for its frames.
pub fn forward_cached<'a>(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    plan: &Plan,
    [x, w, y]: [&Operand; 3],
    (cache, pre, added): (&Operand, Option<&Operand>, impl Into<Added<'a>>),
) -> Result<(), ConvError> {
    check_cached(problem, cache, x, [("w", w, problem.weight_shape()), ("y", y, problem.y_shape())])?;
    run_forward(client, limits, problem, plan, [x, w, y], (Some(cache), pre, added.into()))
}

/// The forward pass of operands that fit the problem; bias and residual are checked here.
fn run_forward(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    plan: &Plan,
    [x, w, y]: [&Operand; 3],
    (cache, pre, added): (Option<&Operand>, Option<&Operand>, Added),
) -> Result<(), ConvError> {
    check_added(problem, added)?;
    let Added { bias, residual } = added;
    let Some(pre) = pre else {
        let call = Conv3dCall::new(client, limits, problem, Pass::Forward, plan)?;
        return Conv3dCall { bias, residual, ..call }.with_cache(x, cache)?.launch([x, w, y]);
    };
    activation_pass::check(pre, y)?;
    let window = Window { activation: Activation::None, ..problem.window };
    let before_activation = Conv3dProblem { window, residual: false, ..*problem };
    let call = Conv3dCall::new(client, limits, &before_activation, Pass::Forward, plan)?;
    Conv3dCall { bias, ..call }.with_cache(x, cache)?.launch([x, w, pre])?;
    activation_pass::apply(client, limits, problem.window.activation, residual, [pre, y])
}

/// [`weight_gradient`] of [`forward_cached`].
///
/// # Errors
/// As [`forward_cached`].
pub fn weight_gradient_cached(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    plan: &Plan,
    [x, dy, dw]: [&Operand; 3],
    cache: &Operand,
) -> Result<(), ConvError> {
    check_cached(problem, cache, x, [("dy", dy, problem.y_shape()), ("dw", dw, problem.weight_shape())])?;
    let call = Conv3dCall::new(client, limits, problem, Pass::WeightGradient, plan)?;
    call.with_cache(x, Some(cache))?.launch([x, dy, dw])
}

/// Computes dx `[N, C, D, H, W]` from dy (the gradient before the activation) and w: operands dy, w, dx.
///
/// # Errors
/// As [`forward`].
pub fn input_gradient(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    plan: &Plan,
    operands: [&Operand; 3],
) -> Result<(), ConvError> {
    check_pass(problem, Pass::InputGradient, operands)?;
    Conv3dCall::new(client, limits, problem, Pass::InputGradient, plan)?.launch(operands)
}

/// Computes dw `[O, C/groups, KD, KH, KW]` from x and dy (the gradient before the activation): operands x, dy
/// and dw.
///
/// # Errors
/// As [`forward`].
pub fn weight_gradient(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    plan: &Plan,
    operands: [&Operand; 3],
) -> Result<(), ConvError> {
    check_pass(problem, Pass::WeightGradient, operands)?;
    Conv3dCall::new(client, limits, problem, Pass::WeightGradient, plan)?.launch(operands)
}

/// Computes dw (operands x, dy, dw) as [`weight_gradient`] and db `[O]` as [`bias_gradient`] do: in one pass
/// over dy under depthwise plans that hold it in registers, where db is free, else in two.
///
/// # Errors
/// As [`forward`].
pub fn weight_and_bias_gradient(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    plan: &Plan,
    operands: [&Operand; 3],
    db: &Operand,
) -> Result<(), ConvError> {
    check_bias_gradient(problem, &db.shape)?;
    check_pass(problem, Pass::WeightGradient, operands)?;
    let call = Conv3dCall::new(client, limits, problem, Pass::WeightGradient, plan)?;
    if call.sums_bias() {
        return Conv3dCall { bias_gradient: Some(db), ..call }.launch(operands);
    }
    call.launch(operands)?;
    bias_gradient(client, limits, problem, operands[1], db)
}

/// Computes db `[O]` from dy (the gradient before the activation).
///
/// # Errors
/// As [`forward`].
pub fn bias_gradient(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    dy: &Operand,
    db: &Operand,
) -> Result<(), ConvError> {
    check_operands(problem, &[("dy", dy, problem.y_shape())])?;
    check_bias_gradient(problem, &db.shape)?;
    if db.is_empty() {
        return Ok(());
    }
    reduce::bias_gradient(client, problem, limits, &dy.bindable(client), db)
}

/// Whether a plan reads x and a cache of these layouts where they are: the gathered GEMM counts image
/// channels, which have to be evenly spaced, and window kernels, those of few outputs and depthwise ones read
/// the frames of both by one layout. What a plan does not read, [`forward_cached`] and
/// [`weight_gradient_cached`] leave to [`Plan::Direct`].
pub fn reads_cache(plan: &Plan, x: &Operand, cache: &Operand) -> bool {
    // The stride of an axis of size one says nothing.
    let one_layout = || (3..5).all(|axis| x.shape[axis] == 1 || x.strides[axis] == cache.strides[axis]);
    match plan {
        Plan::Gemm(_) => [x, cache].into_iter().all(has_even_images),
        Plan::Window(_) | Plan::FewOutputs(_) | Plan::Depthwise(_) => one_layout(),
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
    /// Applied to the fp32 sum: gradients have none by themselves.
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
    ///
    /// # Errors
    /// When the device lacks what `Direct` needs.
    pub(super) fn with_cache(self, x: &Operand, cache: Option<&'a Operand>) -> Result<Self, ConvError> {
        let reads = cache.is_none_or(|cache| reads_cache(self.plan, x, cache));
        let plan = if reads { self.plan } else { &Plan::Direct };
        if !reads {
            check(plan, &self.rewritten, self.limits)?;
        }
        Ok(Self { cache, plan, ..self })
    }

    /// What follows the pass' sums.
    pub(super) fn epilogue(&self) -> Epilogue<'a> {
        let Self { bias, residual, activation, .. } = *self;
        Epilogue { bias, residual, activation }
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
            family.launch(&Conv3dCall { residual: None, ..*call }, [first, second, &unrounded])?;
            let Self { client, limits, .. } = *self;
            return activation_pass::apply(
                client,
                limits,
                Activation::None,
                Some(residual),
                [&unrounded, result],
            );
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
