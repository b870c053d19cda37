//! Gradients: `ConvOps` for `Autodiff<B, C>`.
//!
//! Each op is one node of the graph (two where an op has two differentiable outputs). A node keeps what its gradients
//! need and nothing else: an operand whose gradient partner is untracked is not kept, and the gradient of an untracked
//! operand is not computed. All gradient ops run on the inner backend, so with Fusion they are registered lazily.

mod conv3d;

use crate::ops::{Conv3dCall, ConvOps, OptionalTensor};
use burn::backend::Backend;
use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use conv_kernels::conv3d::Activation;

impl<B: Backend + ConvOps, C: CheckpointStrategy> ConvOps for Autodiff<B, C> {
    fn conv3d_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        conv3d::forward::<B, C>(x, weight, bias.into_option(), call)
    }

    fn conv3d_input_gradient(
        _dy: FloatTensor<Self>,
        _weight: FloatTensor<Self>,
        _call: Conv3dCall,
    ) -> FloatTensor<Self> {
        first_order("conv3d")
    }

    fn conv3d_weight_gradient(
        _x: FloatTensor<Self>,
        _dy: FloatTensor<Self>,
        _call: Conv3dCall,
    ) -> FloatTensor<Self> {
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
}

/// Burn's autodiff differentiates once; a backward runs on the inner backend and never gets here.
fn first_order(op: &str) -> ! {
    panic!("{op}: gradients of gradients are not available, Burn's autodiff is of first order")
}
