//! A call on the host: client, limits, problem, and the inputs as the kernels read them.

use super::Inputs;
use super::args::{Present, canonical};
use super::problem::CausalConv1dProblem;
use crate::index_operand::{IndexOperand, IndexType};
use crate::limits::Limits;
use crate::operand::Operand;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// What all launches of one call share.
pub(crate) struct Conv1dCall<'a> {
    pub(crate) client: &'a Client,
    pub(crate) limits: &'a Limits,
    pub(crate) problem: &'a CausalConv1dProblem,
    pub(crate) views: InputViews,
}

impl<'a> Conv1dCall<'a> {
    pub(crate) fn new(
        client: &'a Client,
        limits: &'a Limits,
        problem: &'a CausalConv1dProblem,
        inputs: &Inputs,
    ) -> Self {
        Self { client, limits, problem, views: InputViews::of(client, problem, inputs) }
    }

    /// [`Present`] of the inputs and of `others`.
    pub(crate) fn present(&self, others: &[(bool, u32)]) -> u32 {
        let inputs = [
            (self.views.bias.is_some(), Present::BIAS),
            (self.views.initial_state.is_some(), Present::INITIAL),
        ];
        Present::bits(&inputs) | Present::bits(others)
    }
}

/// The inputs of a call as the kernels read them: axes in `[B, C, T]` order, every tensor bindable.
pub(crate) struct InputViews {
    pub(crate) x: Operand,
    pub(crate) weight: Operand,
    pub(crate) bias: Option<Operand>,
    /// Absent if W = 1, which has no state.
    pub(crate) initial_state: Option<Operand>,
    pub(crate) seq_idx: Option<IndexOperand>,
    pub(crate) residual: Option<Operand>,
}

impl InputViews {
    fn of(client: &Client, problem: &CausalConv1dProblem, inputs: &Inputs) -> Self {
        let state = inputs.initial_state.filter(|state| !state.is_empty());
        // Without steps or rows the ids are never read.
        let seq_idx = inputs.seq_idx.filter(|_| problem.batch * problem.length > 0);
        Self {
            x: canonical(inputs.x, problem.layout).bindable(client),
            weight: inputs.weight.clone(),
            bias: inputs.bias.cloned(),
            initial_state: state.cloned(),
            seq_idx: seq_idx.cloned(),
            residual: inputs.residual.map(|residual| canonical(residual, problem.layout)),
        }
    }

    /// The bias, or a placeholder that is bound but not read.
    pub(crate) fn bias_or_weight(&self) -> &Operand {
        self.bias.as_ref().unwrap_or(&self.weight)
    }

    /// The initial state, or a placeholder that is bound but not read.
    pub(crate) fn initial_or_x(&self) -> &Operand {
        self.initial_state.as_ref().unwrap_or(&self.x)
    }

    pub(crate) fn index_elem(&self) -> ElemType {
        self.seq_idx.as_ref().map_or(IndexType::I32, |ids| ids.dtype).elem()
    }

    /// One past the largest offset of the ids.
    pub(crate) fn index_extent(&self) -> usize {
        self.seq_idx.as_ref().map_or(0, IndexOperand::extent)
    }

    pub(crate) fn operands(&self) -> Vec<&Operand> {
        let optional = [self.bias.as_ref(), self.initial_state.as_ref()];
        [&self.x, &self.weight].into_iter().chain(optional.into_iter().flatten()).collect()
    }
}
