//! conv3d: cross-correlation in three dimensions with PyTorch's semantics, and its three gradients.
//!
//! ```text
//! y[n,o,q] = activation( b[o] + sum_{c in group(o), k} X(n, c, q*stride - begin + k*dilation) * w[o,c,k] )
//! ```
//!
//! `X` reads zero or the nearest element outside the input. Problem -> plan -> kernel: [`Conv3dProblem`] is
//! validated, [`plan`] chooses, [`forward`], [`input_gradient`] and [`weight_gradient`] launch. Every plan
//! computes in fp32 and rounds once; no plan uses atomics, so equal calls give equal bits, and limits on
//! dispatches (which split the work into more launches) change none.
//!
//! # Numbers that are not finite, and the range of those that are
//!
//! One contract for every plan but Winograd's, every device and pass ([`reference::reach`] says it for each
//! result). With NaN or infinities among the operands
//!
//! - a result is not finite where a product of its sum holds one of them;
//! - other results of the same channel may be: a weight `w[o,c,k]` may make any result of channel o
//!   non-finite (dx: of channel c), an element of x or dy any weight's gradient of its channel. Most plans
//!   multiply by the zeros of the padding and of windows that do not exist, and 0 times infinity is NaN.
//!   [`Plan::Direct`] adds nothing there;
//! - every other result is finite and right.
//!
//! Under [`Plan::Winograd`] (`Auto` may take it) an element of x (dx: of dy) also reaches the other results
//! of its tiles, m x m in the plane; under [`Plan::Subpixel`] an element of dy, where windows stride in the
//! plane, the other positions of the blocks of one stride by one stride that its window reaches.
//! [`Notes::non_finite`] says which of them a plan is.
//!
//! Finite operands give finite, right results under every plan where the products' magnitudes have a finite
//! sum, counted with the largest of each channel: `C/groups * taps * max|x| * max|w| < 2^128` is enough (dx:
//! `O/groups * taps * max|dy| * max|w|`; dw: `N*OD*OH*OW * max|x| * max|dy|`). A half type's results are
//! infinite past its own largest number.
//!
//! # Long sums
//!
//! The weight's and the bias' gradient sum in parts of a bounded number of terms, and the parts in trees: see
//! `split.rs` for each kernel's bound. y and dx are single fp32 sums of `C/groups * taps` and
//! `O/groups * taps` terms, or of the few parts that fill the device.

mod activation;
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
mod needs;
mod notes;
mod plan;
mod problem;
mod reduce;
pub mod reference;
mod split;
mod subpixel;
mod tile;
mod window;
pub mod winograd;

pub use crate::activation::Activation;
pub use activation::activation_gradient;
pub use few_outputs::FewOutputsTile;
pub use gemm::{MatrixTile, RegisterTile};
pub use needs::Needs;
pub use notes::{NonFinite, Notes};
pub use plan::{Algorithm, Pass, Plan, Tiles, eligible, gradient_plan, plan};
pub use problem::{Conv3dProblem, PaddingMode, Window};
pub use split::ReductionSplit;
pub use subpixel::SubpixelTile;
pub use tile::TileConfig;
pub use window::{WindowTile, WindowWeightTile};
pub use winograd::{RegionExtent, WinogradConfig, WinogradTile};

use crate::error::{ConvError, invalid};
use crate::limits::Limits;
use crate::operand::Operand;
use cubecl::prelude::*;
use gemm::GemmTile;

/// Computes y `[N, O, OD, OH, OW]` into `y`.
///
/// `limits` are the device's, or smaller ones.
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

/// [`forward`] that keeps what the activation's gradient needs: `pre`, an fp32 tensor of y's shape, gets the
/// value before the activation. y has the bits that [`forward`] gives it, by every plan: a result is the same
/// fp32 number there before it goes through the same function and is rounded. Both are row-major.
///
/// # Errors
/// As [`forward`], and when `pre` or y is not such a tensor.
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
    activation::check(pre, y)?;
    check::check(plan, problem, Pass::Forward, limits)?;
    let activation = problem.window.activation;
    let plain =
        Conv3dProblem { window: Window { activation: Activation::None, ..problem.window }, ..*problem };
    run_forward(client, limits, &plain, plan, [x, w, pre], bias)?;
    activation::apply(client, limits, activation, pre, y)
}

/// Refuses operands of another problem.
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

/// The pass by a checked plan; y has the problem's dtype or fp32.
fn run_forward(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    plan: &Plan,
    [x, w, y]: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    // Without input channels the result is the bias: x and w are empty.
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
    // Without output channels the gradient is zero: dy and w are empty.
    let (dy, w) = (&dy.bindable(client), &w.bindable(client));
    if fold::is_folded(problem, Pass::InputGradient) && !matches!(plan, Plan::Empty | Plan::Direct) {
        // What `check` has looked at.
        let launched = fold::launched(problem, Pass::InputGradient);
        let extended = fold::extended_gradient(client, &launched);
        run_input_gradient(client, &launched, plan, limits, [dy, w, &extended])?;
        return fold::fold(client, problem, limits, &extended, dx);
    }
    run_input_gradient(client, problem, plan, limits, [dy, w, dx])
}

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

/// Computes dw (operands x, dy, dw) as [`weight_gradient`] does and db `[O]` as [`bias_gradient`] does: in
/// one sweep of dy where a depthwise plan holds it in registers, which then costs nothing, and in two
/// elsewhere, where the second is 1 to 2 % of the first.
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
    // Without a batch the gradient is zero: x and dy are empty.
    let (x, dy) = (&x.bindable(client), &dy.bindable(client));
    let split = ReductionSplit::of(problem.positions(), dw.len(), limits);
    match plan {
        Plan::Empty => Ok(()),
        Plan::Direct => direct_weight::weight_gradient(client, problem, split, limits, [x, dy, dw]),
        Plan::ImplicitGemm(tile) => {
            let split = ReductionSplit::filling(problem.positions(), dw.len(), 1, tile.tile_k, limits);
            implicit_gemm::weight_gradient(client, problem, *tile, split, limits, [x, dy, dw])
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

fn check_bias_gradient(problem: &Conv3dProblem, db: &Operand) -> Result<(), ConvError> {
    if db.shape != [problem.out_channels] {
        invalid!(
            "conv3d: db has shape {:?}, the problem has {} output channels",
            db.shape,
            problem.out_channels
        );
    }
    Ok(())
}

fn only_weight_gradient(plan: &Plan) -> Result<(), ConvError> {
    invalid!("conv3d: {} computes weight gradients only", plan.name())
}

fn check_bias(problem: &Conv3dProblem, bias: Option<&Operand>) -> Result<(), ConvError> {
    match (bias, problem.bias) {
        (Some(bias), true) if bias.shape == [problem.out_channels] && bias.dtype == problem.dtype => {}
        (None, false) => {}
        (bias, expected) => invalid!(
            "conv3d: a bias of {} elements was expected ({expected}), got {:?}",
            problem.out_channels,
            bias.map(|bias| &bias.shape)
        ),
    }
    Ok(())
}

fn check_operands(
    problem: &Conv3dProblem,
    operands: &[(&str, &Operand, [usize; 5])],
) -> Result<(), ConvError> {
    for (name, operand, shape) in operands {
        if operand.shape != shape {
            invalid!("conv3d: {name} has shape {:?}, the problem needs {shape:?}", operand.shape);
        }
        if operand.dtype != problem.dtype {
            invalid!("conv3d: {name} is {}, the problem is {}", operand.dtype.name(), problem.dtype.name());
        }
    }
    Ok(())
}
