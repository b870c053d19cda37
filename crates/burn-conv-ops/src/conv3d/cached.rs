//! conv3d of a cache and x joined along depth, as a graph node. dx and the cache's gradient are the two parts
//! of the joined input's.

use crate::backend::portable::narrow;
use crate::backend::{Conv3dCall, ConvOps, OptionalTensor};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use conv_kernels::conv3d::Activation;

type Tracked<B, C> = FloatTensor<Autodiff<B, C>>;

pub(crate) fn forward<B: Backend + ConvOps, C: CheckpointStrategy>(
    [x, cache, weight]: [Tracked<B, C>; 3],
    bias: Option<Tracked<B, C>>,
    call: Conv3dCall,
) -> Tracked<B, C> {
    let [nx, nc, nw] = [&x, &cache, &weight].map(|operand| operand.node());
    match bias {
        Some(bias) => {
            let nodes = [nx, nc, nw, bias.node()];
            record::<B, C, 4>(nodes, [x, cache, weight], OptionalTensor::Some(bias.into_primitive()), call)
        }
        None => record::<B, C, 3>([nx, nc, nw], [x, cache, weight], OptionalTensor::None, call),
    }
}

fn record<B: Backend + ConvOps, C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    [x, cache, weight]: [Tracked<B, C>; 3],
    bias: OptionalTensor<B>,
    call: Conv3dCall,
) -> Tracked<B, C> {
    match CachedConvolution.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::UnTracked(prep) => {
            let [x, cache, weight] = [x, cache, weight].map(|operand| operand.into_primitive());
            prep.finish(B::conv3d_forward_cached(x, cache, weight, bias, call))
        }
        OpsKind::Tracked(mut prep) => {
            let frames = cache.shape()[2];
            let kept = weight.is_tracked().then(|| [prep.checkpoint(&x), prep.checkpoint(&cache)]);
            let kept_weight = (x.is_tracked() || cache.is_tracked()).then(|| prep.checkpoint(&weight));
            let [x, cache, weight] = [x, cache, weight].map(|operand| operand.into_primitive());
            let (saved, y) = match call.problem.window.activation {
                Activation::None => (None, B::conv3d_forward_cached(x, cache, weight, bias, call)),
                Activation::Relu => {
                    let y = B::conv3d_forward_cached(x, cache, weight, bias, call);
                    (Some(y.clone()), y)
                }
                Activation::Silu => {
                    let (y, pre) = B::conv3d_forward_cached_with_pre(x, cache, weight, bias, call);
                    (Some(pre), y)
                }
            };
            prep.finish((kept, kept_weight, saved, (frames, call)), y)
        }
    }
}

/// Parents: x, the cache, the weight and, for N = 4, the bias.
#[derive(Debug)]
struct CachedConvolution;

impl<B: Backend + ConvOps, const N: usize> Backward<B, N> for CachedConvolution {
    /// x and the cache where the weight is tracked, the weight where one of them is, what the activation's
    /// derivative needs, the cache's frames and the call.
    type State = (Option<[NodeId; 2]>, Option<NodeId>, Option<FloatTensor<B>>, (usize, Conv3dCall));

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (inputs, weight, saved, (frames, call)) = ops.state;
        let inputs = inputs.map(|ids| ids.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id)));
        let weight = weight.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let mut dy = grads.consume::<B>(&ops.node);
        if let Some(saved) = saved {
            dy = B::conv3d_activation_gradient(saved, dy, call.problem.window.activation);
        }
        let mut parents = ops.parents.into_iter();
        let mut next = || parents.next().flatten();
        let (x_node, cache_node, weight_node, bias_node) = (next(), next(), next(), next());
        if let Some(weight) = weight {
            let joined = B::conv3d_input_gradient(dy.clone(), weight, call);
            let own = call.problem.input[0] - frames;
            if let Some(node) = x_node {
                grads.register::<B>(node.id, narrow::<B>(joined.clone(), 2, frames, own));
            }
            if let Some(node) = cache_node {
                grads.register::<B>(node.id, narrow::<B>(joined, 2, 0, frames));
            }
        }
        if let (Some(node), Some([x, cache])) = (weight_node, inputs) {
            grads.register::<B>(node.id, B::conv3d_weight_gradient_cached(x, cache, dy.clone(), call));
        }
        if let Some(node) = bias_node {
            grads.register::<B>(node.id, B::conv3d_bias_gradient(dy, call));
        }
    }
}
