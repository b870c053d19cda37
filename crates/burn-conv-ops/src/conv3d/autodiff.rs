//! conv3d as a graph node.
//!
//! With an activation the node also keeps what its derivative needs: the output for ReLU, for SiLU, and for
//! ReLU with a residual, the value before the activation in fp32, so that nothing is rounded before it. The
//! residual's gradient is dy. y has the same bits tracked and untracked.

use crate::backend::{Conv3dCall, ConvOps, OptionalTensor};
use burn::backend::Backend;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::FloatTensor;
use conv_kernels::conv3d::Activation;

type Tracked<B, C> = FloatTensor<Autodiff<B, C>>;

/// y; `added` are the bias and the residual.
pub(crate) fn forward<B: Backend + ConvOps, C: CheckpointStrategy>(
    [x, weight]: [Tracked<B, C>; 2],
    added: [Option<Tracked<B, C>>; 2],
    call: Conv3dCall,
) -> Tracked<B, C> {
    let [nx, nw] = [&x, &weight].map(|operand| operand.node());
    match added.each_ref().map(|operand| operand.as_ref().map(|operand| operand.node())) {
        [None, None] => record::<B, C, 2>([nx, nw], [x, weight], added, call),
        [Some(one), None] | [None, Some(one)] => record::<B, C, 3>([nx, nw, one], [x, weight], added, call),
        [Some(bias), Some(residual)] => record::<B, C, 4>([nx, nw, bias, residual], [x, weight], added, call),
    }
}

fn record<B: Backend + ConvOps, C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    [x, weight]: [Tracked<B, C>; 2],
    added: [Option<Tracked<B, C>>; 2],
    call: Conv3dCall,
) -> Tracked<B, C> {
    let differentiated =
        x.is_tracked() || weight.is_tracked() || added[0].as_ref().is_some_and(|bias| bias.is_tracked());
    let inner = |added: [Option<Tracked<B, C>>; 2]| {
        added.map(|operand| OptionalTensor::from(operand.map(|operand| operand.into_primitive())))
    };
    match Convolution.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::UnTracked(prep) => {
            let [bias, residual] = inner(added);
            prep.finish(B::conv3d_forward(x.into_primitive(), weight.into_primitive(), bias, residual, call))
        }
        OpsKind::Tracked(mut prep) => {
            let kept_x = weight.is_tracked().then(|| prep.checkpoint(&x));
            let kept_weight = x.is_tracked().then(|| prep.checkpoint(&weight));
            let [bias, residual] = inner(added);
            let (x, weight) = (x.into_primitive(), weight.into_primitive());
            let (saved, y) = match Saved::of(&call, differentiated) {
                Saved::Nothing => (None, B::conv3d_forward(x, weight, bias, residual, call)),
                Saved::Output => {
                    let y = B::conv3d_forward(x, weight, bias, residual, call);
                    (Some(y.clone()), y)
                }
                Saved::Pre => {
                    let (y, pre) = B::conv3d_forward_with_pre(x, weight, bias, residual, call);
                    (Some(pre), y)
                }
            };
            prep.finish((kept_x, kept_weight, saved, call), y)
        }
    }
}

/// What a tracked call keeps for its activation's derivative.
pub(super) enum Saved {
    Nothing,
    /// y, for ReLU alone.
    Output,
    /// The value before the activation in fp32.
    Pre,
}

impl Saved {
    /// `differentiated`: whether x, the weight, the bias or a cache is tracked.
    pub(super) fn of(call: &Conv3dCall, differentiated: bool) -> Self {
        match call.problem.window.activation {
            Activation::None => Self::Nothing,
            _ if !differentiated => Self::Nothing,
            // With a residual y does not tell where the value was positive.
            Activation::Relu if !call.problem.residual => Self::Output,
            Activation::Relu | Activation::Silu => Self::Pre,
        }
    }
}

/// Parents: x, the weight, then the bias and the residual, those that there are.
#[derive(Debug)]
struct Convolution;

impl<B: Backend + ConvOps, const N: usize> Backward<B, N> for Convolution {
    /// x where the weight is tracked, the weight where x is, what the activation's derivative needs, and the
    /// call.
    type State = (Option<NodeId>, Option<NodeId>, Option<FloatTensor<B>>, Conv3dCall);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (x, weight, saved, call) = ops.state;
        let x = x.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let weight = weight.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let mut dy = grads.consume::<B>(&ops.node);
        let mut parents = ops.parents.into_iter();
        let mut next = |exists: bool| if exists { parents.next().flatten() } else { None };
        let (x_node, weight_node) = (next(true), next(true));
        let (bias_node, residual_node) = (next(call.problem.bias), next(call.problem.residual));
        if let Some(node) = residual_node {
            grads.register::<B>(node.id, dy.clone());
        }
        if let Some(saved) = saved {
            dy = B::conv3d_activation_gradient(saved, dy, call.problem.window.activation);
        }
        if let (Some(node), Some(weight)) = (x_node, weight) {
            grads.register::<B>(node.id, B::conv3d_input_gradient(dy.clone(), weight, call));
        }
        match (weight_node.zip(x), bias_node) {
            (Some((weight, x)), Some(bias)) => {
                let (dw, db) = B::conv3d_weight_and_bias_gradient(x, dy, call);
                grads.register::<B>(weight.id, dw);
                grads.register::<B>(bias.id, db);
            }
            (Some((weight, x)), None) => {
                grads.register::<B>(weight.id, B::conv3d_weight_gradient(x, dy, call));
            }
            (None, Some(bias)) => grads.register::<B>(bias.id, B::conv3d_bias_gradient(dy, call)),
            (None, None) => {}
        }
    }
}
