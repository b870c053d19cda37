//! What the decoding steps of causal conv1d check before anything is launched.

use crate::causal_conv1d::CausalConv1dUpdateOptions;
use crate::causal_conv1d::check::one_for_each_row;
use crate::causal_conv1d::packed::last_states_shape;
use crate::check::{fits, float_type, index, limits, same_device, same_dtype};
use burn::tensor::{Int, Tensor};
use conv_kernels::ConvError;
use conv_kernels::causal_conv1d::{Conv1dLayout, UpdateProblem, check_device, check_update_steps};

pub(super) fn one_step(
    x: &Tensor<2>,
    state: &Tensor<3>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    options: &CausalConv1dUpdateOptions,
) -> Result<UpdateProblem, ConvError> {
    update(x, state, false, weight, bias, options)
}

pub(super) fn steps(
    x: &Tensor<3>,
    state: &Tensor<3>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    options: &CausalConv1dUpdateOptions,
) -> Result<UpdateProblem, ConvError> {
    let [batch, channels, steps] = x.dims();
    let mut devices = vec![("x", x.device())];
    let mut dtypes = Vec::new();
    for (name, indices) in
        [("cache_seqlens", &options.cache_seqlens), ("state_indices", &options.state_indices)]
    {
        let Some(indices) = indices else { continue };
        devices.push((name, indices.device()));
        index(UPDATE, name, indices.dtype(), &indices.device())?;
        dtypes.push(indices.dtype());
        if indices.dims() != [batch] {
            let dims = indices.dims();
            let message = format!("{UPDATE}: {name} has shape {dims:?}, the input needs [{batch}] (batch)");
            return Err(ConvError::shape(name, &[batch], &dims, message));
        }
    }
    same_device(UPDATE, &devices)?;
    if let [lengths, slots] = dtypes[..]
        && lengths != slots
    {
        return Err(ConvError::Invalid(format!(
            "{UPDATE}: cache_seqlens is {} and state_indices is {}, their dtypes must match",
            lengths.name(),
            slots.name()
        )));
    }
    let slots = options.state_indices.is_some();
    let problem = update(x, state, slots, weight, bias, options)?;
    if options.cache_seqlens.is_some() && problem.state_length == 0 {
        return Err(ConvError::Invalid(format!(
            "{UPDATE}: a ring of 0 steps holds no state, it must have at least 1"
        )));
    }
    let limits = limits(&x.device());
    fits(UPDATE, &[batch, channels, steps], problem.dtype, &limits)?;
    check_update_steps(&problem, steps, indices(options), &limits)?;
    Ok(problem)
}

const UPDATE: &str = "causal_conv1d_update";

/// How many of lengths and slots are given.
fn indices(options: &CausalConv1dUpdateOptions) -> usize {
    usize::from(options.cache_seqlens.is_some()) + usize::from(options.state_indices.is_some())
}

/// The problem of one step or several; with `slots` the rows of the state are those.
fn update<const D: usize>(
    x: &Tensor<D>,
    state: &Tensor<3>,
    slots: bool,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    options: &CausalConv1dUpdateOptions,
) -> Result<UpdateProblem, ConvError> {
    let mut devices = vec![("x", x.device()), ("the state", state.device()), ("the weight", weight.device())];
    devices.extend(bias.map(|bias| ("the bias", bias.device())));
    same_device(UPDATE, &devices)?;
    let dtype = float_type(UPDATE, "x", x.dtype())?;
    let state_dtype = float_type(UPDATE, "the state", state.dtype())?;
    let bias_dtype = bias.map(|bias| ("the bias", bias.dtype()));
    let weight_dtype = same_dtype(UPDATE, [("the weight", weight.dtype())].into_iter().chain(bias_dtype))?;
    let bias = bias.map(|bias| bias.dims()[0]);
    let (activation, step) = (options.activation, [0, 1].map(|axis| x.dims()[axis]));
    let new = if slots { UpdateProblem::with_slots } else { UpdateProblem::new };
    let problem = new(step, state.dims(), weight.dims(), bias, activation, dtype, weight_dtype)?
        .with_state_dtype(state_dtype)?;
    let limits = limits(&x.device());
    limits.check_dtype(UPDATE, dtype)?;
    limits.check_dtype(UPDATE, state_dtype)?;
    check_update_steps(&problem, 1, indices(options), &limits)?;
    limits.check_dtype(UPDATE, weight_dtype)?;
    Ok(problem)
}

pub(super) fn last_states(
    x: &Tensor<3>,
    cu_seqlens: &Tensor<1, Int>,
    length: usize,
    layout: Conv1dLayout,
) -> Result<(), ConvError> {
    const OP: &str = "causal_conv1d_last_states";
    let devices = [("x", x.device()), ("cu_seqlens", cu_seqlens.device())];
    same_device(OP, &devices)?;
    let dtype = float_type(OP, "x", x.dtype())?;
    bounds(OP, cu_seqlens)?;
    one_row(OP, x)?;
    let limits = limits(&x.device());
    limits.check_dtype(OP, dtype)?;
    check_device(OP, &limits)?;
    let shape = last_states_shape(&x.dims(), &cu_seqlens.dims(), length, layout);
    if shape.iter().try_fold(4usize, |bytes, size| bytes.checked_mul(*size)).is_none() {
        return Err(ConvError::TooLarge(format!("{OP}: {shape:?} has more elements than can be addressed")));
    }
    fits(OP, &shape, dtype, &limits)
}

pub(super) fn seq_idx(cu_seqlens: &Tensor<1, Int>, steps: usize) -> Result<(), ConvError> {
    const OP: &str = "causal_conv1d_seq_idx";
    bounds(OP, cu_seqlens)?;
    check_device(OP, &limits(&cu_seqlens.device()))?;
    counted(OP, steps)
}

pub(super) fn last_seq_idx(
    seq_idx: &Tensor<2, Int>,
    before: Option<&Tensor<1, Int>>,
) -> Result<(), ConvError> {
    const OP: &str = "causal_conv1d_last_seq_idx";
    index(OP, "seq_idx", seq_idx.dtype(), &seq_idx.device())?;
    counted(OP, seq_idx.dims()[1])?;
    before.map_or(Ok(()), |before| one_for_each_row(OP, "before", before, seq_idx))
}

/// Refuses more steps than an index counts.
fn counted(op: &str, steps: usize) -> Result<(), ConvError> {
    if steps > i32::MAX as usize {
        return Err(ConvError::TooLarge(format!(
            "{op}: x has {steps} steps, at most {} are counted",
            i32::MAX
        )));
    }
    Ok(())
}

/// Refuses bounds of packed sequences that the device cannot read, and none.
pub(crate) fn bounds(op: &str, cu_seqlens: &Tensor<1, Int>) -> Result<(), ConvError> {
    index(op, "cu_seqlens", cu_seqlens.dtype(), &cu_seqlens.device())?;
    if cu_seqlens.dims() == [0] {
        return Err(ConvError::Invalid(format!(
            "{op}: cu_seqlens has shape [0], it must be [sequences + 1]"
        )));
    }
    Ok(())
}

/// Refuses more or less than one row.
pub(crate) fn one_row(op: &str, x: &Tensor<3>) -> Result<(), ConvError> {
    if x.dims()[0] != 1 {
        return Err(ConvError::Invalid(format!(
            "{op}: x has shape {:?}, sequences are packed into one row [1, C, T] or [1, T, C]",
            x.dims()
        )));
    }
    Ok(())
}
