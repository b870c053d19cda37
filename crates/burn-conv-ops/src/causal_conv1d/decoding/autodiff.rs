//! Decoding steps and the last states of packed sequences as graph nodes: with tracked operands they are
//! composed from Burn's ops, which Burn differentiates; nobody trains through them for speed.

use super::portable;
use crate::backend::{CausalConv1dSteps, ConvOps, OptionalTensor};
use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{AutodiffBackend, Backend};
use conv_kernels::causal_conv1d::{Conv1dLayout, UpdateProblem};

type Tracked<B, C> = FloatTensor<Autodiff<B, C>>;

pub(crate) fn update<B: Backend + ConvOps, C: CheckpointStrategy>(
    x: Tracked<B, C>,
    state: Tracked<B, C>,
    weight: Tracked<B, C>,
    bias: OptionalTensor<Autodiff<B, C>>,
    problem: UpdateProblem,
) -> (Tracked<B, C>, Tracked<B, C>) {
    let bias = bias.into_option();
    if [&x, &state, &weight].into_iter().chain(&bias).any(|operand| operand.is_tracked()) {
        return portable::update::<Autodiff<B, C>>(x, state, weight, bias, &problem);
    }
    let bias = bias.map(|bias| bias.into_primitive()).into();
    let (x, state, weight) = (x.into_primitive(), state.into_primitive(), weight.into_primitive());
    let (y, new_state) = B::causal_conv1d_update(x, state, weight, bias, problem);
    (Autodiff::<B, C>::from_inner(y), Autodiff::<B, C>::from_inner(new_state))
}

pub(crate) fn update_steps<B: Backend + ConvOps, C: CheckpointStrategy>(
    inputs: CausalConv1dSteps<Autodiff<B, C>>,
    problem: UpdateProblem,
) -> (Tracked<B, C>, Tracked<B, C>) {
    let operands = [&inputs.x, &inputs.state, &inputs.weight];
    if operands.into_iter().chain(inputs.bias.as_option()).any(|operand| operand.is_tracked()) {
        return portable::update_steps::<Autodiff<B, C>>(inputs, &problem);
    }
    let CausalConv1dSteps { x, state, weight, bias, lengths, slots } = inputs;
    let inputs = CausalConv1dSteps::<B> {
        x: x.into_primitive(),
        state: state.into_primitive(),
        weight: weight.into_primitive(),
        bias: bias.into_option().map(|bias| bias.into_primitive()).into(),
        lengths: lengths.into_option().into(),
        slots: slots.into_option().into(),
    };
    let (y, new_state) = B::causal_conv1d_update_steps(inputs, problem);
    (Autodiff::<B, C>::from_inner(y), Autodiff::<B, C>::from_inner(new_state))
}

pub(crate) fn last_states<B: Backend + ConvOps, C: CheckpointStrategy>(
    x: Tracked<B, C>,
    bounds: IntTensor<B>,
    length: usize,
    layout: Conv1dLayout,
) -> Tracked<B, C> {
    if x.is_tracked() {
        return portable::last_states::<Autodiff<B, C>>(x, bounds, length, layout);
    }
    Autodiff::<B, C>::from_inner(B::causal_conv1d_last_states(x.into_primitive(), bounds, length, layout))
}
