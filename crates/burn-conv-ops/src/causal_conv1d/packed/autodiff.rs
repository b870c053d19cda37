//! Columns in another order as a graph node: the gradient goes back by the order back. Burn's own gradient of
//! a selection adds up one column after the other, since columns may be chosen twice; here each is chosen
//! once.

use crate::backend::ConvOps;
use burn::backend::Backend;
use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};

pub(crate) fn move_columns<B: Backend + ConvOps, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    from: IntTensor<B>,
    to: IntTensor<B>,
    axis: usize,
) -> FloatTensor<Autodiff<B, C>> {
    match Moved.prepare::<C>([x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let moved = B::causal_conv1d_move_columns(x.into_primitive(), from.clone(), to.clone(), axis);
            prep.finish((from, to, axis), moved)
        }
        OpsKind::UnTracked(prep) => {
            prep.finish(B::causal_conv1d_move_columns(x.into_primitive(), from, to, axis))
        }
    }
}

#[derive(Debug)]
struct Moved;

impl<B: Backend + ConvOps> Backward<B, 1> for Moved {
    type State = (IntTensor<B>, IntTensor<B>, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let (from, to, axis) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let [x] = ops.parents;
        if let Some(node) = x {
            grads.register::<B>(node.id, B::causal_conv1d_move_columns(dy, to, from, axis));
        }
    }
}
