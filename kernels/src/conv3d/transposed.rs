//! The transposed convolution: a problem's input gradient as a forward pass, with bias and activation.
//!
//! ```text
//! y[n,c,p] = activation( b[c] + sum over o in group(c), k, q with q*stride - begin + k*dilation = p
//!                               of x[n,o,q] * w[o,c,k] )
//! ```
//!
//! The problem is that of the convolution from y to x: x has its [`Conv3dProblem::y_shape`], y its
//! [`Conv3dProblem::x_shape`]; the bias is `[C]`, the activation its window's. Plans are those of
//! [`Pass::InputGradient`], and every one fuses bias and activation: in the epilogue of its kernels, or where
//! the sum is split in the kernel that adds the slices. Positions that no window reaches are
//! `activation(b[c])`. One rounding. Non-finite operands and range: as the input gradient.

use super::activation_pass;
use super::call::Conv3dCall;
use super::check::check_operands;
use super::pass::Pass;
use super::plan::Plan;
use super::problem::{Conv3dProblem, PaddingMode};
use crate::error::{ConvError, invalid};
use crate::limits::Limits;
use crate::operand::Operand;
use cubecl::prelude::*;

/// Computes y `[N, C, D, H, W]` of x `[N, O, OD, OH, OW]`, weight `[O, C/groups, KD, KH, KW]` and bias `[C]`
/// under a plan for the problem's input gradient. The problem's own bias means nothing here.
///
/// # Errors
/// When the operands do not have the problem's shapes and dtype, the plan cannot serve the problem, or its
/// padding is not of zeros.
pub fn transposed_forward(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    plan: &Plan,
    [x, w, y]: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    check(problem, [x, w, y], bias)?;
    let mut call = Conv3dCall::new(client, limits, problem, Pass::InputGradient, plan)?;
    (call.bias, call.activation) = (bias, problem.window.activation);
    call.launch([x, w, y])
}

/// [`transposed_forward`] that also stores the value before the activation in `pre`, as
/// [`super::forward_with_pre`] does: y has the bits of [`transposed_forward`] under every plan.
///
/// # Errors
/// As [`transposed_forward`], and when `pre` or y does not have the shape, dtype or order.
pub fn transposed_forward_with_pre(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    plan: &Plan,
    [x, w, y]: [&Operand; 3],
    pre: &Operand,
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    check(problem, [x, w, y], bias)?;
    activation_pass::check(pre, y)?;
    let mut call = Conv3dCall::new(client, limits, problem, Pass::InputGradient, plan)?;
    call.bias = bias;
    call.launch([x, w, pre])?;
    activation_pass::apply(client, limits, problem.window.activation, None, [pre, y])
}

/// Refuses operands that do not fit the problem, and padding that an input gradient folds.
fn check(problem: &Conv3dProblem, [x, w, y]: [&Operand; 3], bias: Option<&Operand>) -> Result<(), ConvError> {
    let modes = problem.window.padding_mode;
    if modes != [PaddingMode::Zeros; 3] {
        invalid!("conv3d: a transposed convolution has padding with zeros, the problem's is {modes:?}");
    }
    check_operands(
        problem,
        &[("x", x, problem.y_shape()), ("w", w, problem.weight_shape()), ("y", y, problem.x_shape())],
    )?;
    match bias {
        Some(bias) if bias.shape != [problem.channels] || bias.dtype != problem.dtype => invalid!(
            "conv3d: the transposed convolution's bias is {} of shape {:?}, the problem needs {} of shape [{}]",
            bias.dtype.name(),
            bias.shape,
            problem.dtype.name(),
            problem.channels
        ),
        _ => Ok(()),
    }
}
