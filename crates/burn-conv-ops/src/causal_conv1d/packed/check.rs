//! What packed sequences check before anything is launched.

use super::OP;
use crate::causal_conv1d::decoding::check::{bounds, one_row};
use crate::causal_conv1d::{self, CausalConv1dOptions};
use crate::check::{fits, float_type, limits, same_device};
use burn::tensor::{Int, Tensor};
use conv_kernels::ConvError;

/// What [`check`](causal_conv1d::check::check) does not know of: one row, the bounds, and a state for each
/// sequence.
pub(super) fn check(
    x: &Tensor<3>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    cu_seqlens: &Tensor<1, Int>,
    options: &CausalConv1dOptions,
) -> Result<(), ConvError> {
    one_row(OP, x)?;
    bounds(OP, cu_seqlens)?;
    if let Some(seq_idx) = &options.seq_idx {
        return Err(ConvError::Invalid(format!(
            "{OP}: seq_idx {:?} was given next to cu_seqlens {:?}, which already says what belongs together",
            seq_idx.dims(),
            cu_seqlens.dims()
        )));
    }
    let initial = options.initial_state.as_ref();
    let mut devices = vec![("x", x.device()), ("cu_seqlens", cu_seqlens.device())];
    devices.extend(initial.map(|initial| ("the initial state", initial.device())));
    same_device(OP, &devices)?;
    let whole = CausalConv1dOptions { initial_state: None, ..options.clone() };
    let problem = causal_conv1d::check::check(x, weight, bias, &whole)?;
    let Some(initial) = initial else { return Ok(()) };
    let state_dtype = float_type(OP, "the initial state", initial.dtype())?;
    let problem = problem.with_state_dtype(state_dtype)?;
    let limits = limits(&x.device());
    limits.check_dtype(OP, state_dtype)?;
    let sequences = cu_seqlens.dims()[0] - 1;
    let needed = [sequences, problem.channels, problem.width - 1];
    if initial.dims() != needed {
        let got = initial.dims();
        let message = format!(
            "{OP}: the initial states have shape {got:?}, {sequences} sequences and the weight need {needed:?} \
             (sequences, channels, width - 1)"
        );
        return Err(ConvError::shape("initial_states", &needed, &got, message));
    }
    let length = problem.length + sequences * (problem.width - 1);
    fits(OP, &[1, problem.channels, length], state_dtype, &limits)
}
