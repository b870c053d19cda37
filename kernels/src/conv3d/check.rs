//! Whether operands fit a problem.

use super::call::Added;
use super::problem::Conv3dProblem;
use crate::error::{ConvError, invalid};
use crate::operand::{Operand, check_shape};

pub(super) fn check_bias_gradient(problem: &Conv3dProblem, db: &Operand) -> Result<(), ConvError> {
    if db.shape != [problem.out_channels] {
        let (got, channels) = (&db.shape, problem.out_channels);
        let message = format!("conv3d: db has shape {got:?}, the problem has {channels} output channels");
        return Err(ConvError::shape("db", &[channels], got, message));
    }
    Ok(())
}

fn check_bias(problem: &Conv3dProblem, bias: Option<&Operand>) -> Result<(), ConvError> {
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

/// Refuses a bias or a residual that does not fit the problem.
pub(super) fn check_added(problem: &Conv3dProblem, Added { bias, residual }: Added) -> Result<(), ConvError> {
    check_bias(problem, bias)?;
    match (residual, problem.residual) {
        (None, false) => Ok(()),
        (None, true) => {
            invalid!("conv3d: the problem has a residual of shape {:?}, none was given", problem.y_shape())
        }
        (Some(residual), false) => {
            invalid!("conv3d: the problem has no residual, one of shape {:?} was given", residual.shape)
        }
        (Some(residual), true) => check_operands(problem, &[("the residual", residual, problem.y_shape())]),
    }
}

pub(super) fn check_operands(
    problem: &Conv3dProblem,
    operands: &[(&str, &Operand, [usize; 5])],
) -> Result<(), ConvError> {
    for (name, operand, shape) in operands {
        check_shape("conv3d", name, &operand.shape, shape)?;
        if operand.dtype != problem.dtype {
            let (got, expected) = (operand.dtype.name(), problem.dtype.name());
            let message = format!("conv3d: {name} is {got}, the problem is {expected}");
            return Err(ConvError::dtype(name, &[expected], got, message));
        }
    }
    Ok(())
}

/// Refuses operands that do not fit the problem of a cache and x joined along depth.
pub(super) fn check_cached(
    problem: &Conv3dProblem,
    cache: &Operand,
    x: &Operand,
    others: [(&str, &Operand, [usize; 5]); 2],
) -> Result<(), ConvError> {
    let [n, c, frames, h, w] = problem.x_shape();
    let held = cache.shape.get(2).copied().unwrap_or(0);
    if !problem.streaming || held == 0 || held >= frames {
        invalid!(
            "conv3d: a cache of shape {:?} was given for the {} {:?}",
            cache.shape,
            if problem.streaming { "stream of" } else { "problem of the whole clip" },
            problem.x_shape()
        );
    }
    let joined = [("cache", cache, [n, c, held, h, w]), ("x", x, [n, c, frames - held, h, w])];
    check_operands(problem, &joined)?;
    check_operands(problem, &others)
}
