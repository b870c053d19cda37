//! Causal conv1d as a graph node. The backward pass needs the inputs only: it recomputes what the
//! activation's derivative asks for. One op computes all of its gradients, since they share that
//! recomputation.
//!
//! The final state is a second output and its own node. With tracked operands it is composed from Burn's ops,
//! which Burn differentiates.

use super::portable;
use crate::backend::{CausalConv1dInputs, ConvOps, OptionalTensor};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{AutodiffBackend, Backend};
use conv_kernels::causal_conv1d::CausalConv1dProblem;

type Tracked<B, C> = FloatTensor<Autodiff<B, C>>;

pub(crate) fn forward<B: Backend + ConvOps, C: CheckpointStrategy>(
    inputs: CausalConv1dInputs<Autodiff<B, C>>,
    problem: CausalConv1dProblem,
) -> Tracked<B, C> {
    let (x, weight) = (inputs.x.node(), inputs.weight.node());
    let optional = [&inputs.bias, &inputs.initial_state, &inputs.residual];
    let optional = optional.map(|operand| operand.as_option().map(|operand| operand.node()));
    match optional {
        [None, None, None] => record::<B, C, 2>([x, weight], inputs, problem),
        [Some(one), None, None] | [None, Some(one), None] | [None, None, Some(one)] => {
            record::<B, C, 3>([x, weight, one], inputs, problem)
        }
        [Some(one), Some(two), None] | [Some(one), None, Some(two)] | [None, Some(one), Some(two)] => {
            record::<B, C, 4>([x, weight, one, two], inputs, problem)
        }
        [Some(bias), Some(initial), Some(residual)] => {
            record::<B, C, 5>([x, weight, bias, initial, residual], inputs, problem)
        }
    }
}

fn record<B: Backend + ConvOps, C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    inputs: CausalConv1dInputs<Autodiff<B, C>>,
    problem: CausalConv1dProblem,
) -> Tracked<B, C> {
    match CausalConvolution.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::UnTracked(prep) => prep.finish(B::causal_conv1d(inner(inputs), problem)),
        OpsKind::Tracked(mut prep) => {
            let kept = Kept {
                x: prep.checkpoint(&inputs.x),
                weight: prep.checkpoint(&inputs.weight),
                bias: inputs.bias.as_option().map(|bias| prep.checkpoint(bias)),
                initial_state: inputs.initial_state.as_option().map(|initial| prep.checkpoint(initial)),
                residual: inputs.residual.as_option().is_some(),
            };
            let seq_idx = inputs.seq_idx.as_option().cloned();
            let y = B::causal_conv1d(inner(inputs), problem);
            prep.finish((kept, seq_idx, problem), y)
        }
    }
}

/// The inputs without their nodes.
fn inner<B: Backend, C: CheckpointStrategy>(
    inputs: CausalConv1dInputs<Autodiff<B, C>>,
) -> CausalConv1dInputs<B> {
    let CausalConv1dInputs { x, weight, bias, initial_state, seq_idx, residual } = inputs;
    CausalConv1dInputs {
        x: x.into_primitive(),
        weight: weight.into_primitive(),
        bias: bias.into_option().map(|bias| bias.into_primitive()).into(),
        initial_state: initial_state.into_option().map(|initial| initial.into_primitive()).into(),
        seq_idx: seq_idx.into_option().into(),
        residual: residual.into_option().map(|residual| residual.into_primitive()).into(),
    }
}

/// Nodes whose values the backward pass reads.
#[derive(Clone, Copy, Debug)]
struct Kept {
    x: NodeId,
    weight: NodeId,
    bias: Option<NodeId>,
    initial_state: Option<NodeId>,
    /// Whether there is one: its gradient does not need its value.
    residual: bool,
}

/// Parents: x, weight, then the bias, the initial state and the residual, those that there are.
#[derive(Debug)]
struct CausalConvolution;

impl<B: Backend + ConvOps, const N: usize> Backward<B, N> for CausalConvolution {
    type State = (Kept, Option<IntTensor<B>>, CausalConv1dProblem);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (kept, seq_idx, problem) = ops.state;
        let mut retrieve = |id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        let inputs = CausalConv1dInputs::<B> {
            x: retrieve(kept.x),
            weight: retrieve(kept.weight),
            bias: kept.bias.map(&mut retrieve).into(),
            initial_state: kept.initial_state.map(&mut retrieve).into(),
            seq_idx: seq_idx.clone().into(),
            residual: None.into(),
        };
        // The backward pass does not read the residual, whose gradient is dy.
        let problem = CausalConv1dProblem { residual: false, ..problem };
        let dy = grads.consume::<B>(&ops.node);
        let dresidual = kept.residual.then(|| portable::clear_padding::<B>(dy.clone(), seq_idx, &problem));
        let computed = B::causal_conv1d_backward(inputs, dy, problem);
        let results = [Some(computed.x), Some(computed.weight)]
            .into_iter()
            .chain(kept.bias.map(|_| computed.bias.into_option()))
            .chain(kept.initial_state.map(|_| computed.initial_state.into_option()))
            .chain(dresidual.map(Some));
        for (parent, result) in ops.parents.into_iter().zip(results) {
            if let (Some(node), Some(result)) = (parent, result) {
                grads.register::<B>(node.id, result);
            }
        }
    }
}

pub(crate) fn final_state<B: Backend + ConvOps, C: CheckpointStrategy>(
    x: Tracked<B, C>,
    initial: OptionalTensor<Autodiff<B, C>>,
    ids: Option<IntTensor<B>>,
    problem: CausalConv1dProblem,
) -> Tracked<B, C> {
    let initial = initial.into_option();
    if x.is_tracked() || initial.as_ref().is_some_and(|initial| initial.is_tracked()) {
        return portable::final_state::<Autodiff<B, C>>(x, initial, ids, &problem);
    }
    let initial = initial.map(|initial| initial.into_primitive()).into();
    let state = B::causal_conv1d_final_state(x.into_primitive(), initial, ids.into(), problem);
    Autodiff::<B, C>::from_inner(state)
}
