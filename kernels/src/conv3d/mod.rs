//! conv3d: cross-correlation in three dimensions with PyTorch's semantics, and its three gradients.
//!
//! ```text
//! y[n,o,q] = activation( b[o] + sum_{c in group(o), k} X(n, c, q*stride - begin + k*dilation) * w[o,c,k] )
//! ```
//!
//! `X` reads zero or the nearest element outside the input. Problem -> plan -> kernel: [`Conv3dProblem`] is
//! validated, [`plan`] chooses, [`forward`], [`input_gradient`] and [`weight_gradient`] launch. Every plan
//! accumulates in fp32 with one final rounding. No plan uses atomics: results are bitwise reproducible, also
//! under other limits on dispatches, which split the grid into more launches.
//!
//! # Non-finite operands, and the range of finite ones
//!
//! One contract for every plan but Winograd's, every device and pass ([`reference::reach`] states it per
//! result). With NaN or infinities among the operands
//!
//! - a result is not finite where a product of its sum holds one of them;
//! - other results of the same channel may be not finite: a weight `w[o,c,k]` may reach any result of channel
//!   o (dx: of channel c), an element of x or dy any weight gradient of its channel. Most plans multiply by
//!   the zeros of the padding and of windows that do not exist, and 0 times infinity is NaN. [`Plan::Direct`]
//!   skips these;
//! - every other result is finite and right.
//!
//! Under [`Plan::Winograd`] (`Auto` may take it) an element of x (dx: of dy) also reaches the other results
//! of its m x m tiles along H and W; under [`Plan::Subpixel`] an element of dy, where windows have a stride
//! along H or W, the other positions of the stride x stride blocks that its window reaches.
//! [`Notes::non_finite`] says which of them holds for a plan.
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
//! - Operands have the problem's shapes and dtype (checked in this file), and every extent is below 2^31
//!   (`Conv3dProblem::new`).
//! - The plan serves the problem that is launched, within the device's limits (`check.rs`).
//! - The kernel's address type reaches every offset (`address_type`).
//! - The caller's output tensors overlap no input. Kernels that work in place (`reduce.rs`) touch each
//!   thread's own elements only.
//! - Threadgroups past the end of their span exit (`Span::is_idle`).
//!
//! tests/conformance runs every plan with guard zones around the tensors.

mod activation_pass;
mod args;
mod check;
mod depthwise;
mod direct;
mod direct_weight;
mod few_outputs;
mod fold;
mod frames;
mod gemm;
mod implicit_gemm;
mod implicit_gemm_tile;
mod loops;
mod needs;
mod notes;
mod pass;
mod plan;
mod problem;
mod reduce;
pub mod reference;
mod split;
mod subpixel;
mod window;
pub mod winograd;

pub use crate::activation::Activation;
pub use activation_pass::activation_gradient;
pub use few_outputs::FewOutputsTile;
pub use gemm::{MatrixTile, RegisterTile};
pub use implicit_gemm_tile::TileConfig;
pub use notes::{NonFinite, Notes};
pub use pass::Pass;
pub use plan::{Algorithm, Plan, Tiles, eligible, gradient_plan, plan};
pub use problem::{Conv3dProblem, PaddingMode, Window};
pub use subpixel::SubpixelTile;
pub use window::{WindowTile, WindowWeightTile};
pub use winograd::{RegionExtent, WinogradConfig, WinogradTile};

use crate::error::{ConvError, invalid};
use crate::limits::Limits;
use crate::operand::Operand;
use check::{check_bias, check_bias_gradient, check_operands};
use cubecl::prelude::*;
use gemm::GemmTile;

/// Computes y `[N, O, OD, OH, OW]` into `y`.
///
/// `limits` are the device's or smaller ones.
///
/// # Errors
/// When the operands do not have the problem's shapes and dtype, or the plan cannot serve the problem.
pub fn forward(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    plan: &Plan,
    [x, w, y]: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    check_forward(problem, [x, w, y], bias)?;
    check::check(plan, problem, Pass::Forward, limits)?;
    run_forward(client, limits, problem, plan, [x, w, y], bias)
}

/// [`forward`] that also stores what the activation's gradient needs: the value before the activation, in
/// `pre`, an fp32 tensor of y's shape. Both are row-major. y has the bits of [`forward`] under every plan:
/// activation and rounding act on the same fp32 number.
///
/// # Errors
/// As [`forward`], and when `pre` or y does not have that shape, dtype or order.
pub fn forward_with_pre(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    plan: &Plan,
    [x, w, y]: [&Operand; 3],
    pre: &Operand,
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    check_forward(problem, [x, w, y], bias)?;
    activation_pass::check(pre, y)?;
    check::check(plan, problem, Pass::Forward, limits)?;
    let activation = problem.window.activation;
    let plain =
        Conv3dProblem { window: Window { activation: Activation::None, ..problem.window }, ..*problem };
    run_forward(client, limits, &plain, plan, [x, w, pre], bias)?;
    activation_pass::apply(client, limits, activation, pre, y)
}

/// Refuses operands that do not fit the problem.
fn check_forward(
    problem: &Conv3dProblem,
    [x, w, y]: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    check_operands(
        problem,
        &[("x", x, problem.x_shape()), ("w", w, problem.weight_shape()), ("y", y, problem.y_shape())],
    )?;
    check_bias(problem, bias)
}

/// The forward pass under a checked plan; y has the problem's dtype or fp32.
fn run_forward(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    plan: &Plan,
    [x, w, y]: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    // Without input channels x and w are empty and the result is the bias.
    let (x, w) = (&x.bindable(client), &w.bindable(client));
    match plan {
        Plan::Empty => Ok(()),
        Plan::Direct => direct::forward(client, problem, limits, [x, w, y], bias),
        Plan::ImplicitGemm(tile) => implicit_gemm::forward(client, problem, *tile, limits, [x, w, y], bias),
        Plan::Depthwise => depthwise::gather(client, problem, Pass::Forward, limits, [x, w, y], bias),
        Plan::Gemm(tile) => gemm::forward_or_input_gradient(
            client,
            problem,
            Pass::Forward,
            GemmTile::Fma(*tile),
            limits,
            [x, w, y],
            bias,
        ),
        Plan::MatrixGemm(tile) => gemm::forward_or_input_gradient(
            client,
            problem,
            Pass::Forward,
            GemmTile::Mma(*tile),
            limits,
            [x, w, y],
            bias,
        ),
        Plan::WindowGemm(tile) => {
            window::launch(client, problem, Pass::Forward, *tile, limits, [x, w, y], bias)
        }
        Plan::WindowWeight(_) => only_weight_gradient(plan),
        Plan::FewOutputs(tile) => {
            few_outputs::launch(client, problem, Pass::Forward, *tile, limits, [x, w, y], bias)
        }
        Plan::Subpixel(_) => invalid!("conv3d: {} has an input gradient only", plan.name()),
        Plan::Winograd(config) => winograd::forward(client, problem, *config, limits, [x, w, y], bias),
    }
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
    check::check(plan, problem, Pass::InputGradient, limits)?;
    // Without output channels dy and w are empty and the gradient is zero.
    let (dy, w) = (&dy.bindable(client), &w.bindable(client));
    if fold::is_folded(problem, Pass::InputGradient) && !matches!(plan, Plan::Empty | Plan::Direct) {
        // The problem that `check` has looked at.
        let launched = fold::launched(problem, Pass::InputGradient);
        let extended = fold::extended_gradient(client, &launched);
        run_input_gradient(client, &launched, plan, limits, [dy, w, &extended])?;
        return fold::fold(client, problem, limits, &extended, dx);
    }
    run_input_gradient(client, problem, plan, limits, [dy, w, dx])
}

/// The input gradient under a checked plan; dx has the problem's dtype or fp32.
fn run_input_gradient(
    client: &Client,
    problem: &Conv3dProblem,
    plan: &Plan,
    limits: &Limits,
    operands: [&Operand; 3],
) -> Result<(), ConvError> {
    match plan {
        Plan::Empty => Ok(()),
        Plan::Direct => direct::input_gradient(client, problem, limits, operands),
        Plan::ImplicitGemm(tile) => implicit_gemm::input_gradient(client, problem, *tile, limits, operands),
        Plan::Depthwise => depthwise::gather(client, problem, Pass::InputGradient, limits, operands, None),
        Plan::Gemm(tile) => gemm::forward_or_input_gradient(
            client,
            problem,
            Pass::InputGradient,
            GemmTile::Fma(*tile),
            limits,
            operands,
            None,
        ),
        Plan::MatrixGemm(tile) => gemm::forward_or_input_gradient(
            client,
            problem,
            Pass::InputGradient,
            GemmTile::Mma(*tile),
            limits,
            operands,
            None,
        ),
        Plan::WindowGemm(tile) => {
            window::launch(client, problem, Pass::InputGradient, *tile, limits, operands, None)
        }
        Plan::WindowWeight(_) => only_weight_gradient(plan),
        Plan::FewOutputs(tile) => {
            few_outputs::launch(client, problem, Pass::InputGradient, *tile, limits, operands, None)
        }
        Plan::Subpixel(tile) => subpixel::launch(client, problem, *tile, limits, operands),
        Plan::Winograd(config) => winograd::input_gradient(client, problem, *config, limits, operands),
    }
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
    run_weight_gradient(client, limits, problem, plan, operands, None)
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
    if *plan == Plan::Depthwise {
        return run_weight_gradient(client, limits, problem, plan, operands, Some(db));
    }
    weight_gradient(client, limits, problem, plan, operands)?;
    bias_gradient(client, limits, problem, operands[1], db)
}

/// The weight gradient, with db where the plan computes it in the same pass.
fn run_weight_gradient(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    plan: &Plan,
    [x, dy, dw]: [&Operand; 3],
    db: Option<&Operand>,
) -> Result<(), ConvError> {
    check_operands(
        problem,
        &[("x", x, problem.x_shape()), ("dy", dy, problem.y_shape()), ("dw", dw, problem.weight_shape())],
    )?;
    check::check(plan, problem, Pass::WeightGradient, limits)?;
    // Without a batch x and dy are empty and the gradient is zero.
    let (x, dy) = (&x.bindable(client), &dy.bindable(client));
    match plan {
        Plan::Empty => Ok(()),
        Plan::Direct => direct_weight::weight_gradient(client, problem, limits, [x, dy, dw]),
        Plan::ImplicitGemm(tile) => {
            implicit_gemm::weight_gradient(client, problem, *tile, limits, [x, dy, dw])
        }
        Plan::Depthwise => depthwise::weight_gradient(client, problem, limits, [x, dy, dw], db),
        Plan::Gemm(tile) => gemm::weight_gradient(client, problem, GemmTile::Fma(*tile), limits, [x, dy, dw]),
        Plan::MatrixGemm(tile) => {
            gemm::weight_gradient(client, problem, GemmTile::Mma(*tile), limits, [x, dy, dw])
        }
        Plan::Winograd(config) => winograd::weight_gradient(client, problem, *config, limits, [x, dy, dw]),
        Plan::WindowWeight(tile) => window::weight::launch(client, problem, *tile, limits, [x, dy, dw]),
        Plan::FewOutputs(tile) => few_outputs::weight_gradient(client, problem, *tile, limits, [x, dy, dw]),
        Plan::WindowGemm(_) | Plan::Subpixel(_) => {
            invalid!("conv3d: {} has no weight gradient", plan.name())
        }
    }
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

fn only_weight_gradient(plan: &Plan) -> Result<(), ConvError> {
    invalid!("conv3d: {} computes weight gradients only", plan.name())
}
