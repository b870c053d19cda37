//! What causal conv1d checks before anything is launched.

use super::CausalConv1dOptions;
use crate::check::{fits, float_type, index, limits, same_device, same_dtype};
use burn::tensor::{Int, Tensor};
use conv_kernels::ConvError;
use conv_kernels::causal_conv1d::{self, CausalConv1dProblem, OptionalShapes};

pub(super) fn check(
    x: &Tensor<3>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    options: &CausalConv1dOptions,
) -> Result<CausalConv1dProblem, ConvError> {
    const OP: &str = "causal_conv1d";
    let CausalConv1dOptions { initial_state, initial_seq_idx, seq_idx, residual, layout, activation } =
        options;
    let (initial, seq_idx, residual) = (initial_state.as_ref(), seq_idx.as_ref(), residual.as_ref());
    check_initial_seq_idx(OP, initial_seq_idx.as_ref(), seq_idx)?;
    let mut devices = vec![("x", x.device()), ("the weight", weight.device())];
    devices.extend(bias.map(|bias| ("the bias", bias.device())));
    devices.extend(initial.map(|initial| ("the initial state", initial.device())));
    devices.extend(seq_idx.map(|seq_idx| ("seq_idx", seq_idx.device())));
    devices.extend(residual.map(|residual| ("the residual", residual.device())));
    same_device(OP, &devices)?;
    let residual_dtype = residual.map(|residual| ("the residual", residual.dtype()));
    let dtypes = [("x", x.dtype())].into_iter().chain(residual_dtype);
    let dtype = same_dtype(OP, dtypes)?;
    let bias_dtype = bias.map(|bias| ("the bias", bias.dtype()));
    let weight_dtype = same_dtype(OP, [("the weight", weight.dtype())].into_iter().chain(bias_dtype))?;
    if let Some(seq_idx) = seq_idx {
        index(OP, "seq_idx", seq_idx.dtype(), &seq_idx.device())?;
    }
    let optional = OptionalShapes {
        bias: bias.map(|bias| bias.dims()[0]),
        initial_state: initial.map(|initial| initial.dims()),
        seq_idx: seq_idx.map(|seq_idx| seq_idx.dims()),
        residual: residual.map(|residual| residual.dims()),
    };
    let mut problem = CausalConv1dProblem::new(
        x.dims(),
        weight.dims(),
        optional,
        *layout,
        *activation,
        dtype,
        weight_dtype,
    )?;
    if let Some(initial) = initial {
        problem = problem.with_state_dtype(float_type(OP, "the initial state", initial.dtype())?)?;
    }
    let limits = limits(&x.device());
    limits.check_dtype(OP, problem.state_dtype)?;
    causal_conv1d::plan(&problem, causal_conv1d::Pass::Forward, &limits)?;
    // A backward pass that the device cannot run is refused here, not when it is asked for.
    #[cfg(feature = "autodiff")]
    if x.device().gradient_checkpointing_strategy().is_some() {
        causal_conv1d::plan(&problem, causal_conv1d::Pass::Backward, &limits)?;
    }
    fits(OP, &problem.x_shape(), dtype, &limits)?;
    Ok(problem)
}

/// Refuses ids of initial states without ids of steps, or not one for each of their rows.
fn check_initial_seq_idx(
    op: &str,
    initial_seq_idx: Option<&Tensor<1, Int>>,
    seq_idx: Option<&Tensor<2, Int>>,
) -> Result<(), ConvError> {
    let Some(of_state) = initial_seq_idx else { return Ok(()) };
    let Some(seq_idx) = seq_idx else {
        let dims = of_state.dims();
        return Err(ConvError::Invalid(format!("{op}: initial_seq_idx {dims:?} was given without seq_idx")));
    };
    one_for_each_row(op, "initial_seq_idx", of_state, seq_idx)
}

/// Refuses ids of states that are not one for each row of the ids of steps.
pub(super) fn one_for_each_row(
    op: &str,
    name: &str,
    of_state: &Tensor<1, Int>,
    seq_idx: &Tensor<2, Int>,
) -> Result<(), ConvError> {
    same_device(op, &[("seq_idx", seq_idx.device()), (name, of_state.device())])?;
    if of_state.dims() != [seq_idx.dims()[0]] || of_state.dtype() != seq_idx.dtype() {
        return Err(ConvError::Invalid(format!(
            "{op}: {name} is {} of shape {:?}, seq_idx {} of shape {:?} needs one of its kind for each row",
            of_state.dtype().name(),
            of_state.dims(),
            seq_idx.dtype().name(),
            seq_idx.dims()
        )));
    }
    Ok(())
}
