//! Whether a given plan serves a problem.

use super::pass::Pass;
use super::plan::{Plan, matrix_tiles, result_is_empty, window_tiles, window_weight_tiles};
use super::problem::Conv3dProblem;
use super::{depthwise, few_outputs, fold, gemm, subpixel, winograd};
use crate::error::{ConvError, invalid, unsupported};
use crate::limits::Limits;
use crate::operand::Operand;

/// Refuses a plan that was made for another problem or needs what the device lacks. Looks at the problem that
/// is launched.
pub(super) fn check(
    plan: &Plan,
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> Result<(), ConvError> {
    let launched = &fold::launched(problem, pass);
    serves(plan, launched, pass, limits)?;
    if result_is_empty(problem, pass) {
        return Ok(());
    }
    plan.check_needs(problem, pass, limits)
}

fn serves(plan: &Plan, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Result<(), ConvError> {
    let empty = result_is_empty(problem, pass);
    match plan {
        Plan::Empty if !empty => {
            unsupported!("conv3d: the plan `empty` was given for a {} whose result is not empty", pass.name())
        }
        Plan::Gemm(_) | Plan::MatrixGemm(_) if !empty && !gemm::serves(problem, pass) => {
            unsupported!(
                "conv3d: {} serves at most 10 taps along an axis with padding, positions and K elements that \
                 31 bits count and few phases of a stride, not the kernel {:?} with stride {:?} on {:?}",
                plan.name(),
                problem.kernel,
                problem.window.stride,
                problem.x_shape()
            )
        }
        Plan::MatrixGemm(tile) if !matrix_tiles(problem, pass, limits).any(|each| each == *tile) => {
            unsupported!(
                "conv3d: the device has no matrix units for the {} of {} in tiles of {}",
                pass.name(),
                problem.dtype.name(),
                tile.name()
            )
        }
        Plan::WindowGemm(_) | Plan::WindowWeight(_)
            if !empty && !window_serves(plan, problem, pass, limits) =>
        {
            unsupported!(
                "conv3d: {} does not serve the {} of {} with the kernel {:?}, stride {:?} and dilation {:?} \
                 on this device",
                plan.name(),
                pass.name(),
                problem.dtype.name(),
                problem.kernel,
                problem.window.stride,
                problem.window.dilation
            )
        }
        Plan::Subpixel(tile) if !empty && !subpixel::serves(problem, pass, tile, limits) => {
            unsupported!(
                "conv3d: {} serves the input gradient of at most 4 input channels per group whose windows \
                 and weights fit shared memory and whose sums fit the device's loop iterations, not the {} \
                 of {} channels with the kernel {:?}, stride {:?} and dilation {:?}",
                plan.name(),
                pass.name(),
                problem.group_channels(),
                problem.kernel,
                problem.window.stride,
                problem.window.dilation
            )
        }
        Plan::FewOutputs(tile) if !empty && !few_outputs::serves(problem, pass, tile, limits) => {
            let as_forward = if pass == Pass::WeightGradient { Pass::Forward } else { pass };
            let (channels, results) = problem.channels_of(as_forward);
            unsupported!(
                "conv3d: {} serves at most 4 result channels per group with stride and dilation 1 whose \
                 windows fit shared memory and registers and whose sums fit the device's loop iterations, not \
                 the {} of {channels} to {results} channels with the kernel {:?}, stride {:?} and dilation {:?}",
                plan.name(),
                pass.name(),
                problem.kernel,
                problem.window.stride,
                problem.window.dilation
            )
        }
        Plan::Depthwise if !depthwise::serves(problem, pass) => {
            unsupported!(
                "conv3d: the plan `depthwise` serves as many groups as channels and at most 80 taps, this \
                 problem has {} groups, {} input and {} output channels and {} taps",
                problem.window.groups,
                problem.channels,
                problem.out_channels,
                problem.taps()
            )
        }
        Plan::Winograd(config) if !empty => winograd::check(config, problem, pass, limits),
        _ => Ok(()),
    }
}

fn window_serves(plan: &Plan, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> bool {
    match plan {
        Plan::WindowGemm(tile) => window_tiles(problem, pass, limits).any(|each| each == *tile),
        Plan::WindowWeight(tile) => window_weight_tiles(problem, pass, limits).any(|each| each == *tile),
        _ => true,
    }
}

pub(super) fn check_bias_gradient(problem: &Conv3dProblem, db: &Operand) -> Result<(), ConvError> {
    if db.shape != [problem.out_channels] {
        invalid!(
            "conv3d: db has shape {:?}, the problem has {} output channels",
            db.shape,
            problem.out_channels
        );
    }
    Ok(())
}

pub(super) fn check_bias(problem: &Conv3dProblem, bias: Option<&Operand>) -> Result<(), ConvError> {
    match (bias, problem.bias) {
        (None, false) => Ok(()),
        (None, true) => {
            invalid!("conv3d: the problem has a bias of {} elements, none was given", problem.out_channels)
        }
        (Some(bias), false) => {
            invalid!("conv3d: the problem has no bias, one of shape {:?} was given", bias.shape)
        }
        (Some(bias), true) if bias.shape == [problem.out_channels] && bias.dtype == problem.dtype => Ok(()),
        (Some(bias), true) => invalid!(
            "conv3d: the bias is {} of shape {:?}, the problem needs {} of shape [{}]",
            bias.dtype.name(),
            bias.shape,
            problem.dtype.name(),
            problem.out_channels
        ),
    }
}

pub(super) fn check_operands(
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
