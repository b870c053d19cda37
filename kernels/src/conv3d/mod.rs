//! conv3d: cross-correlation in three dimensions with PyTorch's semantics, and its three gradients. The input
//! gradient is also the transposed convolution, with bias and activation ([`transposed_forward`]).
//!
//! ```text
//! y[n,o,q] = activation( b[o] + sum_{c in group(o), k} X(n, c, q*stride - begin + k*dilation) * w[o,c,k] )
//!            + residual[n,o,q]
//! ```
//!
//! `X` reads zero outside the input, or an element of it (`padding.rs`). Problem -> plan -> kernel:
//! [`Conv3dProblem`] is validated, [`plan`] chooses, [`forward`], [`input_gradient`] and [`weight_gradient`]
//! launch (`call.rs`). [`fastest_plan`] measures instead of choosing (`tune.rs`). Every plan accumulates in
//! fp32 with one final rounding. No plan uses atomics: results are bitwise reproducible, also under other
//! limits on dispatches, which split the grid into more launches.
//!
//! # Non-finite operands, and the range of finite ones
//!
//! One contract for every plan but Winograd's and strided `Subpixel`, every device and pass
//! ([`reference::reach`] states it per result). With NaN or infinities among the operands
//!
//! - a result is not finite where a product of its sum holds one of them;
//! - other results of the same channel may be not finite: a weight `w[o,c,k]` may reach any result of channel
//!   o (dx: of channel c), an element of x or dy any weight gradient of its channel. Most plans multiply by
//!   the zeros of the padding and of windows that do not exist, and 0 times infinity is NaN. [`Plan::Direct`]
//!   skips these;
//! - every other result is finite and right.
//!
//! Under [`Plan::Winograd`] (`Auto` may take it) an element of x (dx: of dy) also reaches the other results
//! of its m x m tiles along H and W (in dw all taps of its channel's 3x3 filters); under [`Plan::Subpixel`]
//! an element of dy, where windows have a stride along H or W, the other positions of the stride x stride
//! blocks that its window reaches. [`Notes::non_finite`] says which of them holds for a plan.
//!
//! Finite operands give finite, right results under every plan where the products' magnitudes have a finite
//! sum, counted with the largest of each channel: `C/groups * taps * max|x| * max|w| < 2^128` is enough (dx:
//! `O/groups * taps * max|dy| * max|w|`; dw: `N*OD*OH*OW * max|x| * max|dy|`). Results in a half type are
//! infinite above its largest number.
//!
//! # Long sums
//!
//! The weight's and the bias' gradients sum in slices of bounded length and add the slices as trees: see
//! `split.rs` for each kernel's bound. y and dx are fp32 sums over `C/groups * taps` and `O/groups * taps`
//! products, in one piece or in the few split-K slices that fill the device.
//!
//! # Safety of the launches
//!
//! Kernels are launched without bounds checks. Every launch relies on this contract; its `SAFETY` comment
//! adds what keeps its own indices in bounds.
//!
//! - Operands have the problem's shapes and dtype (`check.rs`), and every extent is below 2^31
//!   (`Conv3dProblem::new`).
//! - The plan serves the problem that is launched, within the device's limits (`call.rs`).
//! - The kernel's address type reaches every offset (`address_type`).
//! - The caller's output tensors overlap no input. Kernels that work in place (`reduce.rs`) touch each
//!   thread's own elements only.
//! - Threadgroups past the end of their span exit (`Span::is_idle`).
//!
//! tests/conformance runs every plan with guard zones around the tensors.

mod activation_pass;
mod args;
mod call;
mod check;
mod choose;
mod depthwise;
mod direct;
mod direct_weight;
mod epilogue;
mod family;
mod few_outputs;
mod fold;
mod frames;
mod gemm;
mod loops;
mod mma;
mod needs;
mod notes;
mod padding;
mod pass;
mod plan;
mod problem;
mod reduce;
pub mod reference;
mod rewrite;
mod row_segments;
mod split;
mod subpixel;
mod tiles;
mod transposed;
mod tune;
mod window;
pub mod winograd;

pub use crate::activation::Activation;
pub use activation_pass::activation_gradient;
pub use call::Added;
pub use call::reads_cache;
pub use depthwise::DepthwiseKernel;
pub use few_outputs::FewOutputsTile;
pub use gemm::{GemmTile, MatrixTile, RegisterTile};
pub use notes::{NonFinite, Notes};
pub use pass::Pass;
pub use plan::{Algorithm, Plan, eligible, gradient_plan, plan, predicted_bytes, predicted_seconds};
pub use problem::{Conv3dProblem, PaddingMode, Window};
pub use subpixel::SubpixelTile;
pub use tiles::Tiles;
pub use transposed::{transposed_forward, transposed_forward_with_pre};
pub use tune::fastest_plan;
pub use window::{WindowKernel, WindowTile, WindowWeightTile};
pub use winograd::{RegionExtent, WinogradConfig, WinogradTile};

use crate::error::ConvError;
use crate::limits::Limits;
use crate::operand::Operand;
use call::Conv3dCall;
use check::{check_added, check_bias_gradient, check_cached, check_operands};
use cubecl::prelude::*;

/// Computes y `[N, O, OD, OH, OW]` into `y`, with the bias and the residual that the problem has.
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
    [x, w, y]: [&Operand; 3],
    added: impl Into<Added<'a>>,
) -> Result<(), ConvError> {
    let added = added.into();
    check_forward(problem, [x, w, y], added)?;
    let call = Conv3dCall::new(client, limits, problem, Pass::Forward, plan)?;
    call.with_bias(added.bias).with_residual(added.residual).launch([x, w, y])
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
    [x, w, y]: [&Operand; 3],
    pre: &Operand,
    added: impl Into<Added<'a>>,
) -> Result<(), ConvError> {
    let added = added.into();
    check_forward(problem, [x, w, y], added)?;
    activation_pass::check(pre, y)?;
    let call = Conv3dCall::new(client, limits, &before_activation(problem), Pass::Forward, plan)?;
    call.with_bias(added.bias).launch([x, w, pre])?;
    after_activation(client, limits, problem, added.residual, [pre, y])
}

/// The problem whose result is the value before the activation.
fn before_activation(problem: &Conv3dProblem) -> Conv3dProblem {
    let window = Window { activation: Activation::None, ..problem.window };
    Conv3dProblem { window, residual: false, ..*problem }
}

/// y from the value before the activation.
fn after_activation(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    residual: Option<&Operand>,
    [pre, y]: [&Operand; 2],
) -> Result<(), ConvError> {
    let activation = problem.window.activation;
    match residual {
        Some(residual) => activation_pass::add_residual(client, limits, activation, [pre, residual, y]),
        None => activation_pass::apply(client, limits, activation, pre, y),
    }
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
    let added = added.into();
    check_added(problem, added)?;
    let Some(pre) = pre else {
        let call = Conv3dCall::new(client, limits, problem, Pass::Forward, plan)?;
        let call = call.with_bias(added.bias).with_residual(added.residual);
        return call.with_cache(x, cache).launch([x, w, y]);
    };
    activation_pass::check(pre, y)?;
    let call = Conv3dCall::new(client, limits, &before_activation(problem), Pass::Forward, plan)?;
    call.with_bias(added.bias).with_cache(x, cache).launch([x, w, pre])?;
    after_activation(client, limits, problem, added.residual, [pre, y])
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
    call.with_cache(x, cache).launch([x, dy, dw])
}

/// Refuses operands that do not fit the problem.
fn check_forward(problem: &Conv3dProblem, [x, w, y]: [&Operand; 3], added: Added) -> Result<(), ConvError> {
    check_operands(
        problem,
        &[("x", x, problem.x_shape()), ("w", w, problem.weight_shape()), ("y", y, problem.y_shape())],
    )?;
    check_added(problem, added)
}

/// Computes dx `[N, C, D, H, W]` from dy (the gradient before the activation) and w.
///
/// # Errors
/// As [`forward`].
pub fn input_gradient(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    plan: &Plan,
    [dy, w, dx]: [&Operand; 3],
) -> Result<(), ConvError> {
    check_operands(
        problem,
        &[("dy", dy, problem.y_shape()), ("w", w, problem.weight_shape()), ("dx", dx, problem.x_shape())],
    )?;
    Conv3dCall::new(client, limits, problem, Pass::InputGradient, plan)?.launch([dy, w, dx])
}

/// Computes dw `[O, C/groups, KD, KH, KW]` from x and dy (the gradient before the activation).
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
    check_weight_gradient(problem, operands)?;
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
    check_bias_gradient(problem, db)?;
    check_weight_gradient(problem, operands)?;
    let call = Conv3dCall::new(client, limits, problem, Pass::WeightGradient, plan)?;
    if call.sums_bias() {
        return call.with_bias_gradient(db).launch(operands);
    }
    call.launch(operands)?;
    bias_gradient(client, limits, problem, operands[1], db)
}

/// Refuses operands that do not fit the problem.
fn check_weight_gradient(problem: &Conv3dProblem, [x, dy, dw]: [&Operand; 3]) -> Result<(), ConvError> {
    check_operands(
        problem,
        &[("x", x, problem.x_shape()), ("dy", dy, problem.y_shape()), ("dw", dw, problem.weight_shape())],
    )
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
    check_bias_gradient(problem, db)?;
    if db.is_empty() {
        return Ok(());
    }
    reduce::bias_gradient(client, problem, limits, &dy.bindable(client), db)
}
