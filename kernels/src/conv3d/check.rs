//! Whether operands fit a problem.

use super::call::Added;
use super::pass::Pass;
use super::problem::Conv3dProblem;
use crate::dtype::FloatType;
use crate::error::{ConvError, invalid};
use crate::operand::{Operand, check_shape};

/// Refuses a db of a shape that does not fit the problem.
pub(super) fn check_bias_gradient(problem: &Conv3dProblem, got: &[usize]) -> Result<(), ConvError> {
    if got != [problem.out_channels] {
        let channels = problem.out_channels;
        let message = format!("conv3d: db has shape {got:?}, the problem has {channels} output channels");
        return Err(ConvError::shape("db", &[channels], got, message));
    }
    Ok(())
}

/// Refuses a bias of a shape and type that do not fit the problem, or a missing one.
fn check_bias(problem: &Conv3dProblem, bias: Option<(&[usize], FloatType)>) -> Result<(), ConvError> {
    match (bias, problem.bias) {
        (None, false) => Ok(()),
        (None, true) => {
            invalid!("conv3d: the problem has a bias of {} elements, none was given", problem.out_channels)
        }
        (Some((shape, _)), false) => {
            invalid!("conv3d: the problem has no bias, one of shape {shape:?} was given")
        }
        (Some((shape, dtype)), true) if shape == [problem.out_channels] && dtype == problem.dtype => Ok(()),
        (Some((shape, dtype)), true) => invalid!(
            "conv3d: the bias is {} of shape {shape:?}, the problem needs {} of shape [{}]",
            dtype.name(),
            problem.dtype.name(),
            problem.out_channels
        ),
    }
}

/// Refuses a bias or a residual that does not fit the problem.
pub(super) fn check_added(problem: &Conv3dProblem, Added { bias, residual }: Added) -> Result<(), ConvError> {
    check_bias(problem, bias.map(|bias| (&bias.shape[..], bias.dtype)))?;
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

/// Refuses operands of a pass that do not fit the problem: x, w, y (forward), dy, w, dx (input gradient) or
/// x, dy, dw.
pub(super) fn check_pass(
    problem: &Conv3dProblem,
    pass: Pass,
    [first, second, result]: [&Operand; 3],
) -> Result<(), ConvError> {
    let [x, w, y] = [problem.x_shape(), problem.weight_shape(), problem.y_shape()];
    let operands = match pass {
        Pass::Forward => [("x", first, x), ("w", second, w), ("y", result, y)],
        Pass::InputGradient => [("dy", first, y), ("w", second, w), ("dx", result, x)],
        Pass::WeightGradient => [("x", first, x), ("dy", second, y), ("dw", result, w)],
    };
    check_operands(problem, &operands)
}

/// Refuses operands whose shape is not this one, or whose type is not the problem's.
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
    if !problem.streaming {
        invalid!(
            "conv3d: a cache of shape {:?} was given for {:?}, which is no problem of a stream",
            cache.shape,
            problem.x_shape()
        );
    }
    if held == 0 || held >= frames {
        invalid!(
            "conv3d: the cache has shape {:?}, it must hold at least 1 and at most {} of the {frames} frames \
             of {:?}",
            cache.shape,
            frames.saturating_sub(1),
            problem.x_shape()
        );
    }
    let joined = [("cache", cache, [n, c, held, h, w]), ("x", x, [n, c, frames - held, h, w])];
    check_operands(problem, &joined)?;
    check_operands(problem, &others)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv3d::problem::Window;

    #[test]
    fn biases_of_another_problem_are_refused() {
        let (f32, f16) = (FloatType::F32, FloatType::F16);
        let of = |bias| {
            Conv3dProblem::new([1, 2, 3, 3, 3], [5, 2, 1, 1, 1], bias, Window::default(), f32).expect("valid")
        };
        let refusal = |bias: Option<(&[usize], FloatType)>, wanted| {
            check_bias(&of(wanted), bias).err().map(|error| error.to_string())
        };
        assert_eq!(refusal(None, None), None);
        assert_eq!(refusal(Some((&[5], f32)), Some(5)), None);
        for (bias, wanted, message) in [
            (None, Some(5), "conv3d: the problem has a bias of 5 elements, none was given"),
            (Some((&[5usize][..], f32)), None, "conv3d: the problem has no bias, one of shape [5] was given"),
            (
                Some((&[4], f32)),
                Some(5),
                "conv3d: the bias is f32 of shape [4], the problem needs f32 of shape [5]",
            ),
            (
                Some((&[5], f16)),
                Some(5),
                "conv3d: the bias is f16 of shape [5], the problem needs f32 of shape [5]",
            ),
        ] {
            assert_eq!(refusal(bias, wanted).as_deref(), Some(message));
        }
        assert_eq!(check_bias_gradient(&of(None), &[5]), Ok(()));
        for shape in [&[4][..], &[5, 1], &[]] {
            assert_eq!(
                check_bias_gradient(&of(None), shape).expect_err("another shape").to_string(),
                format!("conv3d: db has shape {shape:?}, the problem has 5 output channels")
            );
        }
    }
}
