//! The transposed convolution as a graph node. What it keeps: as conv3d's node.

use crate::backend::{Conv3dCall, ConvOps, OptionalTensor};
use crate::conv3d::autodiff::{Saved, with_some};
use burn::backend::Backend;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::FloatTensor;

pub(crate) fn forward<B: Backend + ConvOps, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
    bias: Option<FloatTensor<Autodiff<B, C>>>,
    call: Conv3dCall,
) -> FloatTensor<Autodiff<B, C>> {
    match bias {
        Some(bias) => {
            let nodes = [x.node(), weight.node(), bias.node()];
            record::<B, C, 3>(nodes, x, weight, OptionalTensor::Some(bias.into_primitive()), call)
        }
        None => record::<B, C, 2>([x.node(), weight.node()], x, weight, OptionalTensor::None, call),
    }
}

fn record<B: Backend + ConvOps, C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
    bias: OptionalTensor<B>,
    call: Conv3dCall,
) -> FloatTensor<Autodiff<B, C>> {
    match Transposed.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::UnTracked(prep) => {
            prep.finish(B::conv3d_transposed(x.into_primitive(), weight.into_primitive(), bias, call))
        }
        OpsKind::Tracked(mut prep) => {
            let kept_x = weight.is_tracked().then(|| prep.checkpoint(&x));
            let kept_weight = x.is_tracked().then(|| prep.checkpoint(&weight));
            let (x, weight) = (x.into_primitive(), weight.into_primitive());
            let (y, saved) = Saved::of(&call, true).run(|with_pre| {
                if with_pre {
                    with_some(B::conv3d_transposed_with_pre(x, weight, bias, call))
                } else {
                    (B::conv3d_transposed(x, weight, bias, call), None)
                }
            });
            prep.finish((kept_x, kept_weight, saved, call), y)
        }
    }
}

/// Parents: x, the weight and, for N = 3, the bias.
#[derive(Debug)]
struct Transposed;

impl<B: Backend + ConvOps, const N: usize> Backward<B, N> for Transposed {
    /// x where the weight is tracked, the weight where x is, what the activation's derivative needs, and the
    /// call.
    type State = (Option<NodeId>, Option<NodeId>, Option<FloatTensor<B>>, Conv3dCall);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (x, weight, saved, call) = ops.state;
        let x = x.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let weight = weight.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let mut dy = grads.consume::<B>(&ops.node);
        if let Some(saved) = saved {
            dy = B::conv3d_activation_gradient(saved, dy, call.problem.window.activation);
        }
        let mut parents = ops.parents.into_iter();
        let mut next = || parents.next().flatten();
        if let (Some(node), Some(weight)) = (next(), weight) {
            let [bias, residual] = [(); 2].map(|()| OptionalTensor::None);
            let dx = B::conv3d_forward(dy.clone(), weight, bias, residual, call.linear());
            grads.register::<B>(node.id, dx);
        }
        if let (Some(node), Some(x)) = (next(), x) {
            grads.register::<B>(node.id, B::conv3d_weight_gradient(dy.clone(), x, call.linear()));
        }
        if let Some(node) = next() {
            grads.register::<B>(node.id, B::conv3d_bias_gradient(dy, call.of_transposed_bias()));
        }
    }
}
