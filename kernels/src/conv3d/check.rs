//! Whether operands fit a problem.

use super::problem::Conv3dProblem;
use crate::error::{ConvError, invalid};
use crate::operand::Operand;

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
