//! conv3d of a cache and x joined along depth, as a graph node. dx and the cache's gradient are the two parts
//! of the joined input's.

use super::autodiff::Saved;
use crate::backend::portable::narrow;
use crate::backend::{Conv3dCall, ConvOps, OptionalTensor};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};

type Tracked<B, C> = FloatTensor<Autodiff<B, C>>;

/// y; `added` are the bias and the residual.
pub(crate) fn forward<B: Backend + ConvOps, C: CheckpointStrategy>(
    inputs: [Tracked<B, C>; 3],
    added: [Option<Tracked<B, C>>; 2],
    call: Conv3dCall,
) -> Tracked<B, C> {
    let [x, cache, weight] = inputs.each_ref().map(|operand| operand.node());
    match added.each_ref().map(|operand| operand.as_ref().map(|operand| operand.node())) {
        [None, None] => record::<B, C, 3>([x, cache, weight], inputs, added, call),
        [Some(one), None] | [None, Some(one)] => {
            record::<B, C, 4>([x, cache, weight, one], inputs, added, call)
        }
        [Some(bias), Some(residual)] => {
            record::<B, C, 5>([x, cache, weight, bias, residual], inputs, added, call)
        }
    }
}

fn record<B: Backend + ConvOps, C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    [x, cache, weight]: [Tracked<B, C>; 3],
    added: [Option<Tracked<B, C>>; 2],
    call: Conv3dCall,
) -> Tracked<B, C> {
    let inputs_are_tracked = x.is_tracked() || cache.is_tracked();
    let bias_is_tracked = added[0].as_ref().is_some_and(|bias| bias.is_tracked());
    let differentiated = inputs_are_tracked || weight.is_tracked() || bias_is_tracked;
    let inner = |added: [Option<Tracked<B, C>>; 2]| {
        added.map(|operand| OptionalTensor::from(operand.map(|operand| operand.into_primitive())))
    };
    match CachedConvolution.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::UnTracked(prep) => {
            let [x, cache, weight] = [x, cache, weight].map(|operand| operand.into_primitive());
            let [bias, residual] = inner(added);
            prep.finish(B::conv3d_forward_cached(x, cache, weight, bias, residual, call))
        }
        OpsKind::Tracked(mut prep) => {
            let frames = cache.shape()[2];
            let kept = weight.is_tracked().then(|| [prep.checkpoint(&x), prep.checkpoint(&cache)]);
            let kept_weight = inputs_are_tracked.then(|| prep.checkpoint(&weight));
            let [x, cache, weight] = [x, cache, weight].map(|operand| operand.into_primitive());
            let [bias, residual] = inner(added);
            let (saved, y) = match Saved::of(&call, differentiated) {
                Saved::Nothing => (None, B::conv3d_forward_cached(x, cache, weight, bias, residual, call)),
                Saved::Output => {
                    let y = B::conv3d_forward_cached(x, cache, weight, bias, residual, call);
                    (Some(y.clone()), y)
                }
                Saved::Pre => {
                    let (y, pre) = B::conv3d_forward_cached_with_pre(x, cache, weight, bias, residual, call);
                    (Some(pre), y)
                }
            };
            prep.finish((kept, kept_weight, saved, (frames, call)), y)
        }
    }
}

/// Parents: x, the cache, the weight, then the bias and the residual, those that there are.
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
        let mut parents = ops.parents.into_iter();
        let mut next = |exists: bool| if exists { parents.next().flatten() } else { None };
        let [x_node, cache_node, weight_node] = [(); 3].map(|()| next(true));
        let (bias_node, residual_node) = (next(call.problem.bias), next(call.problem.residual));
        if let Some(node) = residual_node {
            grads.register::<B>(node.id, dy.clone());
        }
        if let Some(saved) = saved {
            dy = B::conv3d_activation_gradient(saved, dy, call.problem.window.activation);
        }
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
