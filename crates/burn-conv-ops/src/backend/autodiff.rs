//! Gradients: `ConvOps` for `Autodiff<B, C>`.
//!
//! Each op is one node of the graph (two where an op has two differentiable outputs). A node keeps what its
//! gradients need and nothing else: an operand whose gradient partner is untracked is not kept, and the
//! gradient of an untracked operand is not computed. All gradient ops run on the inner backend, so with
//! Fusion they are registered lazily.

use super::{
    CausalConv1dGradients, CausalConv1dInputs, CausalConv1dSteps, Conv3dCall, ConvOps, OptionalIntTensor,
    OptionalTensor, RopePositions,
};
use crate::causal_conv1d::autodiff as causal_conv1d;
use crate::causal_conv1d::decoding::autodiff as decoding;
use crate::causal_conv1d::packed::autodiff as packed;
use crate::conv_transpose::autodiff as conv_transpose;
use crate::conv3d::autodiff as conv3d;
use crate::rope::autodiff as rope;
use burn::backend::Backend;
use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use conv_kernels::causal_conv1d::{CausalConv1dProblem, Conv1dLayout, UpdateProblem};
use conv_kernels::conv3d::{Activation, WinogradTile};
use conv_kernels::rope::RopeProblem;

impl<B: Backend + ConvOps, C: CheckpointStrategy> ConvOps for Autodiff<B, C> {
    fn conv3d_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: OptionalTensor<Self>,
        residual: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        conv3d::forward::<B, C>([x, weight], None, [bias, residual].map(OptionalTensor::into_option), call)
    }

    fn conv3d_forward_with_pre(
        _x: FloatTensor<Self>,
        _weight: FloatTensor<Self>,
        _bias: OptionalTensor<Self>,
        _residual: OptionalTensor<Self>,
        _call: Conv3dCall,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        first_order("conv3d")
    }

    fn conv3d_forward_cached(
        x: FloatTensor<Self>,
        cache: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: OptionalTensor<Self>,
        residual: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        let added = [bias, residual].map(OptionalTensor::into_option);
        conv3d::forward::<B, C>([x, weight], Some(cache), added, call)
    }

    fn conv3d_forward_cached_with_pre(
        _x: FloatTensor<Self>,
        _cache: FloatTensor<Self>,
        _weight: FloatTensor<Self>,
        _bias: OptionalTensor<Self>,
        _residual: OptionalTensor<Self>,
        _call: Conv3dCall,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        first_order("conv3d")
    }

    fn conv3d_weight_gradient_cached(
        _x: FloatTensor<Self>,
        _cache: FloatTensor<Self>,
        _dy: FloatTensor<Self>,
        _call: Conv3dCall,
    ) -> FloatTensor<Self> {
        first_order("conv3d")
    }

    fn conv3d_prepare(
        _weight: FloatTensor<Self>,
        _call: Conv3dCall,
        _tile: WinogradTile,
    ) -> FloatTensor<Self> {
        no_filters()
    }

    fn conv3d_forward_prepared(
        _x: FloatTensor<Self>,
        _filters: FloatTensor<Self>,
        _bias: OptionalTensor<Self>,
        _residual: OptionalTensor<Self>,
        _call: Conv3dCall,
    ) -> FloatTensor<Self> {
        no_filters()
    }

    fn conv3d_input_gradient(
        dy: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        conv_transpose::forward::<B, C>(dy, weight, None, call.linear())
    }

    fn conv3d_transposed(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        conv_transpose::forward::<B, C>(x, weight, bias.into_option(), call)
    }

    fn conv3d_transposed_with_pre(
        _x: FloatTensor<Self>,
        _weight: FloatTensor<Self>,
        _bias: OptionalTensor<Self>,
        _call: Conv3dCall,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        first_order("conv_transpose3d")
    }

    fn conv3d_weight_gradient(
        _x: FloatTensor<Self>,
        _dy: FloatTensor<Self>,
        _call: Conv3dCall,
    ) -> FloatTensor<Self> {
        first_order("conv3d")
    }

    fn conv3d_weight_and_bias_gradient(
        _x: FloatTensor<Self>,
        _dy: FloatTensor<Self>,
        _call: Conv3dCall,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        first_order("conv3d")
    }

    fn conv3d_bias_gradient(_dy: FloatTensor<Self>, _call: Conv3dCall) -> FloatTensor<Self> {
        first_order("conv3d")
    }

    fn conv3d_activation_gradient(
        _saved: FloatTensor<Self>,
        _dy: FloatTensor<Self>,
        _activation: Activation,
    ) -> FloatTensor<Self> {
        first_order("conv3d")
    }

    fn causal_conv1d(inputs: CausalConv1dInputs<Self>, problem: CausalConv1dProblem) -> FloatTensor<Self> {
        causal_conv1d::forward::<B, C>(inputs, problem)
    }

    fn causal_conv1d_backward(
        _inputs: CausalConv1dInputs<Self>,
        _dy: FloatTensor<Self>,
        _problem: CausalConv1dProblem,
    ) -> CausalConv1dGradients<Self> {
        first_order("causal_conv1d")
    }

    fn causal_conv1d_final_state(
        x: FloatTensor<Self>,
        initial: OptionalTensor<Self>,
        ids: OptionalIntTensor<Self>,
        problem: CausalConv1dProblem,
    ) -> FloatTensor<Self> {
        causal_conv1d::final_state::<B, C>(x, initial, ids.into_option(), problem)
    }

    fn causal_conv1d_update(
        x: FloatTensor<Self>,
        state: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: OptionalTensor<Self>,
        problem: UpdateProblem,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        decoding::update::<B, C>(x, state, weight, bias, problem)
    }

    fn causal_conv1d_update_steps(
        inputs: CausalConv1dSteps<Self>,
        problem: UpdateProblem,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        decoding::update_steps::<B, C>(inputs, problem)
    }

    fn causal_conv1d_last_states(
        x: FloatTensor<Self>,
        bounds: IntTensor<Self>,
        length: usize,
        layout: Conv1dLayout,
    ) -> FloatTensor<Self> {
        decoding::last_states::<B, C>(x, bounds, length, layout)
    }

    fn causal_conv1d_seq_idx(bounds: IntTensor<Self>, length: usize) -> IntTensor<Self> {
        B::causal_conv1d_seq_idx(bounds, length)
    }

    fn causal_conv1d_move_columns(
        x: FloatTensor<Self>,
        from: IntTensor<Self>,
        to: IntTensor<Self>,
        axis: usize,
    ) -> FloatTensor<Self> {
        packed::move_columns::<B, C>(x, from, to, axis)
    }

    fn rope(
        tokens: FloatTensor<Self>,
        positions: RopePositions<Self>,
        problem: RopeProblem,
        inverse: bool,
    ) -> FloatTensor<Self> {
        rope::forward::<B, C>(tokens, positions, problem, inverse)
    }

    fn rope_qk(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        q_positions: RopePositions<Self>,
        k_positions: RopePositions<Self>,
        q_problem: RopeProblem,
        k_problem: RopeProblem,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        rope::forward_qk::<B, C>([q, k], [q_positions, k_positions], [q_problem, k_problem]).into()
    }
}

/// Filters are prepared for calls without gradients.
fn no_filters() -> ! {
    panic!("conv3d: prepared filters serve inference, there is no gradient through them")
}

/// Burn's autodiff differentiates once; a backward runs on the inner backend and never gets here.
fn first_order(op: &str) -> ! {
    panic!("{op}: gradients of gradients are not available, Burn's autodiff is of first order")
}
