//! conv3d as a graph node, of x or of a cache and x joined along depth: dx and the cache's gradient are then
//! the two parts of the joined input's.
//!
//! With an activation the node also keeps what its derivative needs: for ReLU the output, for SiLU and for
//! ReLU with a residual the value before the activation, in fp32, so that nothing is rounded before it. The
//! residual's gradient is dy. y has the same bits tracked and untracked.

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

/// y; `added` are the bias and the residual.
pub(crate) fn forward<B: Backend + ConvOps, C: CheckpointStrategy>(
    [x, weight]: [Tracked<B, C>; 2],
    cache: Option<Tracked<B, C>>,
    added: [Option<Tracked<B, C>>; 2],
    call: Conv3dCall,
) -> Tracked<B, C> {
    let [bias, residual] = added.each_ref().map(|operand| operand.as_ref());
    let operands = [Some(&x), cache.as_ref(), Some(&weight), bias, residual];
    let nodes: Vec<_> = operands.into_iter().flatten().map(|operand| operand.node()).collect();
    match nodes.len() {
        2 => record::<B, C, 2>(nodes, [x, weight], cache, added, call),
        3 => record::<B, C, 3>(nodes, [x, weight], cache, added, call),
        4 => record::<B, C, 4>(nodes, [x, weight], cache, added, call),
        _ => record::<B, C, 5>(nodes, [x, weight], cache, added, call),
    }
}

fn record<B: Backend + ConvOps, C: CheckpointStrategy, const N: usize>(
    nodes: Vec<NodeGuard>,
    [x, weight]: [Tracked<B, C>; 2],
    cache: Option<Tracked<B, C>>,
    added: [Option<Tracked<B, C>>; 2],
    call: Conv3dCall,
) -> Tracked<B, C> {
    let Ok(nodes) = <[NodeGuard; N]>::try_from(nodes) else { unreachable!("N is their number") };
    let is_tracked = |operand: &Option<Tracked<B, C>>| operand.as_ref().is_some_and(|it| it.is_tracked());
    let input_is_tracked = x.is_tracked() || is_tracked(&cache);
    let differentiated = input_is_tracked || weight.is_tracked() || is_tracked(&added[0]);
    let run = |[x, weight]: [Tracked<B, C>; 2], cache: Option<Tracked<B, C>>, with_pre| {
        let inner = |operand: Tracked<B, C>| operand.into_primitive();
        let [x, weight] = [x, weight].map(inner);
        let [bias, residual] = added.map(|operand| OptionalTensor::from(operand.map(inner)));
        match (cache.map(inner), with_pre) {
            (None, false) => (B::conv3d_forward(x, weight, bias, residual, call), None),
            (None, true) => with_some(B::conv3d_forward_with_pre(x, weight, bias, residual, call)),
            (Some(cache), false) => (B::conv3d_forward_cached(x, cache, weight, bias, residual, call), None),
            (Some(cache), true) => {
                with_some(B::conv3d_forward_cached_with_pre(x, cache, weight, bias, residual, call))
            }
        }
    };
    match Convolution.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::UnTracked(prep) => prep.finish(run([x, weight], cache, false).0),
        OpsKind::Tracked(mut prep) => {
            let frames = cache.as_ref().map(|cache| cache.shape()[2]);
            let kept_input = weight
                .is_tracked()
                .then(|| (prep.checkpoint(&x), cache.as_ref().map(|cache| prep.checkpoint(cache))));
            let kept_weight = input_is_tracked.then(|| prep.checkpoint(&weight));
            let keeps = Saved::of(&call, differentiated);
            let (y, saved) = keeps.run(|with_pre| run([x, weight], cache, with_pre));
            prep.finish((kept_input, kept_weight, saved, (frames, call)), y)
        }
    }
}

/// What a tracked call keeps for its activation's derivative.
pub(crate) enum Saved {
    Nothing,
    /// y, for ReLU alone.
    Output,
    /// The value before the activation in fp32.
    Pre,
}

impl Saved {
    /// `differentiated`: whether x, the weight, the bias or a cache is tracked.
    pub(crate) fn of(call: &Conv3dCall, differentiated: bool) -> Self {
        match call.problem.window.activation {
            Activation::None => Self::Nothing,
            _ if !differentiated => Self::Nothing,
            // With a residual y does not tell where the value was positive.
            Activation::Relu if !call.problem.residual => Self::Output,
            _ => Self::Pre,
        }
    }

    /// y, and what is kept, of a forward pass that also gives the value before the activation, where asked.
    pub(crate) fn run<T: Clone>(self, forward: impl FnOnce(bool) -> (T, Option<T>)) -> (T, Option<T>) {
        let (y, pre) = forward(matches!(self, Self::Pre));
        let saved = if matches!(self, Self::Output) { Some(y.clone()) } else { pre };
        (y, saved)
    }
}

/// y and the value before the activation as [`Saved::run`] takes them.
pub(crate) fn with_some<T>((y, pre): (T, T)) -> (T, Option<T>) {
    (y, Some(pre))
}

/// Parents: x, the cache, the weight, the bias and the residual, those that there are.
#[derive(Debug)]
struct Convolution;

impl<B: Backend + ConvOps, const N: usize> Backward<B, N> for Convolution {
    /// x and the cache where the weight is tracked, the weight where one of them is, what the activation's
    /// derivative needs, the cache's frames and the call.
    type State = (
        Option<(NodeId, Option<NodeId>)>,
        Option<NodeId>,
        Option<FloatTensor<B>>,
        (Option<usize>, Conv3dCall),
    );

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (input, weight, saved, (frames, call)) = ops.state;
        let mut retrieve = |id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        let input = input.map(|(x, cache)| (retrieve(x), cache.map(&mut retrieve)));
        let weight = weight.map(retrieve);
        let mut dy = grads.consume::<B>(&ops.node);
        let mut parents = ops.parents.into_iter();
        let [x_node, cache_node, weight_node, bias_node, residual_node] =
            [true, frames.is_some(), true, call.problem.bias, call.problem.residual]
                .map(|exists| if exists { parents.next().flatten() } else { None });
        if let Some(node) = residual_node {
            grads.register::<B>(node.id, dy.clone());
        }
        if let Some(saved) = saved {
            dy = B::conv3d_activation_gradient(saved, dy, call.problem.window.activation);
        }
        if let Some(weight) = weight {
            let joined = B::conv3d_input_gradient(dy.clone(), weight, call);
            match (frames, x_node) {
                (None, Some(node)) => grads.register::<B>(node.id, joined),
                (None, None) => {}
                (Some(frames), x_node) => {
                    let own = call.problem.input[0] - frames;
                    if let Some(node) = x_node {
                        grads.register::<B>(node.id, narrow::<B>(joined.clone(), 2, frames, own));
                    }
                    if let Some(node) = cache_node {
                        grads.register::<B>(node.id, narrow::<B>(joined, 2, 0, frames));
                    }
                }
            }
        }
        match (weight_node.zip(input), bias_node) {
            (Some((weight, (x, Some(cache)))), bias) => {
                let dw = B::conv3d_weight_gradient_cached(x, cache, dy.clone(), call);
                grads.register::<B>(weight.id, dw);
                if let Some(bias) = bias {
                    grads.register::<B>(bias.id, B::conv3d_bias_gradient(dy, call));
                }
            }
            (Some((weight, (x, None))), Some(bias)) => {
                let (dw, db) = B::conv3d_weight_and_bias_gradient(x, dy, call);
                grads.register::<B>(weight.id, dw);
                grads.register::<B>(bias.id, db);
            }
            (Some((weight, (x, None))), None) => {
                grads.register::<B>(weight.id, B::conv3d_weight_gradient(x, dy, call));
            }
            (None, Some(bias)) => grads.register::<B>(bias.id, B::conv3d_bias_gradient(dy, call)),
            (None, None) => {}
        }
    }
}
