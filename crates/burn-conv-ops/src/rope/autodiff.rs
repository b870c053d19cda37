//! RoPE as a graph node: the gradient is the rotation by the opposite angles. The op is memory-bound, so
//! gradient checkpointing computes it again instead of keeping the result.

use crate::backend::{ConvOps, RopePositions};
use burn::backend::Backend;
use burn::backend::autodiff::checkpoint::{
    base::Checkpointer, retro_forward::RetroForward, state::BackwardStates, strategy::CheckpointStrategy,
};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::FloatTensor;
use conv_kernels::rope::RopeProblem;

pub(crate) fn forward<B: Backend + ConvOps, C: CheckpointStrategy>(
    tokens: FloatTensor<Autodiff<B, C>>,
    positions: RopePositions<Autodiff<B, C>>,
    problem: RopeProblem,
    inverse: bool,
) -> FloatTensor<Autodiff<B, C>> {
    let positions = inner(positions);
    let again = Again::<B> { tokens: tokens.id(), positions: positions.clone(), problem, inverse };
    let prep = Rotation.prepare::<C>([tokens.node()]).memory_bound().retro_forward(again).parents([&tokens]);
    match prep.stateful() {
        OpsKind::Tracked(prep) => {
            let out = B::rope(tokens.into_primitive(), positions.clone(), problem, inverse);
            prep.finish((positions, problem, inverse), out)
        }
        OpsKind::UnTracked(prep) => {
            prep.finish(B::rope(tokens.into_primitive(), positions, problem, inverse))
        }
    }
}

/// Queries and keys in one launch, a node each: their gradients come separately.
pub(crate) fn forward_qk<B: Backend + ConvOps, C: CheckpointStrategy>(
    tokens: [FloatTensor<Autodiff<B, C>>; 2],
    positions: [RopePositions<Autodiff<B, C>>; 2],
    problems: [RopeProblem; 2],
) -> [FloatTensor<Autodiff<B, C>>; 2] {
    let positions = positions.map(inner);
    let prepare = |place: usize| {
        let (tokens, positions, problem) = (&tokens[place], positions[place].clone(), problems[place]);
        let again = Again::<B> { tokens: tokens.id(), positions, problem, inverse: false };
        Rotation
            .prepare::<C>([tokens.node()])
            .memory_bound()
            .retro_forward(again)
            .parents([tokens])
            .stateful()
    };
    let (of_q, of_k) = (prepare(0), prepare(1));
    let [q, k] = tokens.map(|tokens| tokens.into_primitive());
    let [q_positions, k_positions] = positions.clone();
    let (q, k) = B::rope_qk(q, k, q_positions, k_positions, problems[0], problems[1]);
    let [q_positions, k_positions] = positions;
    let finish = |kind, out, positions, problem| match kind {
        OpsKind::Tracked(prep) => prep.finish((positions, problem, false), out),
        OpsKind::UnTracked(prep) => prep.finish(out),
    };
    let q = finish(of_q, q, q_positions, problems[0]);
    [q, finish(of_k, k, k_positions, problems[1])]
}

/// The positions without their node: no gradient flows to them.
fn inner<B: Backend, C: CheckpointStrategy>(positions: RopePositions<Autodiff<B, C>>) -> RopePositions<B> {
    match positions {
        RopePositions::Index(positions) => RopePositions::Index(positions),
        RopePositions::Float(positions) => RopePositions::Float(positions.into_primitive()),
        RopePositions::Grid(grid) => RopePositions::Grid(grid),
        RopePositions::Volume(volume) => RopePositions::Volume(volume),
        RopePositions::Offset(offset) => RopePositions::Offset(offset),
    }
}

#[derive(Debug)]
struct Rotation;

impl<B: Backend + ConvOps> Backward<B, 1> for Rotation {
    type State = (RopePositions<B>, RopeProblem, bool);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let (positions, problem, inverse) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let [tokens] = ops.parents;
        if let Some(node) = tokens {
            grads.register::<B>(node.id, B::rope(dy, positions, problem, !inverse));
        }
    }
}

/// The forward pass once more, from the tokens' checkpoint.
#[derive(Debug)]
struct Again<B: Backend> {
    tokens: NodeId,
    positions: RopePositions<B>,
    problem: RopeProblem,
    inverse: bool,
}

impl<B: Backend + ConvOps> RetroForward for Again<B> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let tokens = states.get_state::<FloatTensor<B>>(&self.tokens);
        states.save(out_node, B::rope(tokens, self.positions.clone(), self.problem, self.inverse));
    }
}
