//! Decoding steps and packed sequences through `conv-kernels`.

use crate::backend::CausalConv1dSteps;
use crate::backend::cube::{allocate, index_operand, operand, owned};
use crate::causal_conv1d::packed::last_states_shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use conv_kernels::causal_conv1d::{self, Conv1dLayout, DecodingSteps, UpdateProblem};
use conv_kernels::{ConvError, Limits};

pub(crate) fn update(
    x: &CubeTensor,
    state: CubeTensor,
    weight: &CubeTensor,
    bias: Option<&CubeTensor>,
    problem: &UpdateProblem,
) -> Result<(CubeTensor, CubeTensor), ConvError> {
    let limits = Limits::shared(&x.client);
    let y = allocate(x, &problem.x_shape(), x.dtype);
    // Asked before `operand` shares the memory.
    let owned = owned(&state);
    let from = operand(&state)?;
    let new_state = if owned { state } else { allocate(x, &problem.state_shape(), state.dtype) };
    let bias = bias.map(operand).transpose()?;
    causal_conv1d::update(
        &x.client,
        &limits,
        problem,
        &operand(x)?,
        &from,
        &operand(weight)?,
        bias.as_ref(),
        &operand(&y)?,
        &operand(&new_state)?,
    )?;
    Ok((y, new_state))
}

pub(crate) fn update_steps(
    inputs: CausalConv1dSteps<CubeBackend>,
    problem: &UpdateProblem,
) -> Result<(CubeTensor, CubeTensor), ConvError> {
    let CausalConv1dSteps { x, state, weight, bias, lengths, slots } = inputs;
    let limits = Limits::shared(&x.client);
    let y = allocate(&x, x.meta.shape(), x.dtype);
    let lengths = lengths.as_option().map(index_operand).transpose()?;
    let slots = slots.as_option().map(index_operand).transpose()?;
    // Asked before `operand` shares the memory.
    let owned = owned(&state);
    // Of rings and slots only some columns are written: the others are copied first where the memory is not
    // ours.
    let partly = lengths.is_some() || slots.is_some();
    let (from, new_state) = match (owned, partly) {
        (true, _) => (operand(&state)?, state),
        (false, true) => {
            let copy = state.copy();
            (operand(&copy)?, copy)
        }
        (false, false) => (operand(&state)?, allocate(&x, state.meta.shape(), state.dtype)),
    };
    let bias = bias.as_option().map(operand).transpose()?;
    let steps = DecodingSteps {
        x: &operand(&x)?,
        state: &from,
        weight: &operand(&weight)?,
        bias: bias.as_ref(),
        lengths: lengths.as_ref(),
        slots: slots.as_ref(),
        y: &operand(&y)?,
        new_state: &operand(&new_state)?,
    };
    causal_conv1d::update_steps(&x.client, &limits, problem, &steps)?;
    Ok((y, new_state))
}

pub(crate) fn last_states(
    x: &CubeTensor,
    bounds: &CubeTensor,
    length: usize,
    layout: Conv1dLayout,
) -> Result<CubeTensor, ConvError> {
    let shape = last_states_shape(x.meta.shape(), bounds.meta.shape(), length, layout);
    let states = allocate(x, &shape, x.dtype);
    let (from, to, bounds) = (operand(x)?, operand(&states)?, index_operand(bounds)?);
    causal_conv1d::last_states(&x.client, &Limits::shared(&x.client), layout, &from, &bounds, &to)?;
    Ok(states)
}

pub(crate) fn seq_idx(bounds: &CubeTensor, length: usize) -> Result<CubeTensor, ConvError> {
    let ids = allocate(bounds, &[1, length], bounds.dtype);
    let (client, limits) = (&bounds.client, Limits::shared(&bounds.client));
    causal_conv1d::sequence_ids(client, &limits, &index_operand(bounds)?, &index_operand(&ids)?)?;
    Ok(ids)
}
