//! `ConvOps` on every CubeCL runtime: Burn's tensors are handed to the kernels as they are, strides and all.
//! The CPU runtime's threadgroups are too small for them: its tensors take bodies composed from Burn's ops.
//!
//! The functions at the crate's root validate the call. So a [`ConvError`] here means that a caller of the
//! trait did not, or a limit that only the launch knows; it becomes a panic with its sentence.

use super::{
    CausalConv1dGradients, CausalConv1dInputs, CausalConv1dSteps, Conv3dCall, ConvOps, OptionalIntTensor,
    OptionalTensor, RopePositions,
};
use crate::causal_conv1d::cube as causal_conv1d;
use crate::causal_conv1d::decoding::cube as decoding;
use crate::conv3d::cube as conv3d;
use crate::or_panic;
use crate::rope::cube as rope;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use conv_kernels::causal_conv1d::{CausalConv1dProblem, Conv1dLayout, UpdateProblem};
use conv_kernels::conv3d::{Activation, WinogradTile};
use conv_kernels::rope::RopeProblem;
use conv_kernels::{ConvError, IndexOperand, Operand};

/// Returns what is composed from Burn's own ops where the tensor is on CubeCL's CPU runtime: a threadgroup
/// there has as many threads as the CPU has cores, the kernels need 64 to 256.
macro_rules! composed_on_cpu {
    ($tensor:expr, $composed:expr) => {
        #[cfg(feature = "cpu")]
        if crate::check::composes(&$tensor.device) {
            return $composed;
        }
    };
}

impl ConvOps for CubeBackend {
    fn conv3d_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: OptionalTensor<Self>,
        residual: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        composed_on_cpu!(x, composed::conv3d::forward::<Self>(x, weight, [bias, residual], &call.problem));
        or_panic(conv3d::forward(&x, &weight, [bias.as_option(), residual.as_option()], &call, false)).0
    }

    fn conv3d_forward_with_pre(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: OptionalTensor<Self>,
        residual: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed_on_cpu!(
            x,
            composed::conv3d::forward_with_pre::<Self>(x, weight, [bias, residual], &call.problem)
        );
        with_pre(conv3d::forward(&x, &weight, [bias.as_option(), residual.as_option()], &call, true))
    }

    fn conv3d_forward_cached(
        x: FloatTensor<Self>,
        cache: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: OptionalTensor<Self>,
        residual: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        composed_on_cpu!(
            x,
            composed::conv3d::forward::<Self>(
                composed::join::<Self>(cache, x),
                weight,
                [bias, residual],
                &call.problem
            )
        );
        let added = [bias.as_option(), residual.as_option()];
        or_panic(conv3d::forward_cached([x, cache], &weight, added, &call, false)).0
    }

    fn conv3d_forward_cached_with_pre(
        x: FloatTensor<Self>,
        cache: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: OptionalTensor<Self>,
        residual: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed_on_cpu!(
            x,
            composed::conv3d::forward_with_pre::<Self>(
                composed::join::<Self>(cache, x),
                weight,
                [bias, residual],
                &call.problem
            )
        );
        let added = [bias.as_option(), residual.as_option()];
        with_pre(conv3d::forward_cached([x, cache], &weight, added, &call, true))
    }

    fn conv3d_weight_gradient_cached(
        x: FloatTensor<Self>,
        cache: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        composed_on_cpu!(
            x,
            composed::conv3d::weight_gradient::<Self>(composed::join::<Self>(cache, x), dy, &call.problem)
        );
        or_panic(conv3d::weight_gradient_cached([x, cache], &dy, &call))
    }

    fn conv3d_prepare(weight: FloatTensor<Self>, call: Conv3dCall, tile: WinogradTile) -> FloatTensor<Self> {
        or_panic(conv3d::prepare(&weight, &call, tile))
    }

    fn conv3d_forward_prepared(
        x: FloatTensor<Self>,
        filters: FloatTensor<Self>,
        bias: OptionalTensor<Self>,
        residual: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        or_panic(conv3d::forward_prepared(&x, &filters, [bias.as_option(), residual.as_option()], &call))
    }

    fn conv3d_input_gradient(
        dy: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        composed_on_cpu!(dy, composed::conv3d::input_gradient::<Self>(dy, weight, &call.problem));
        or_panic(conv3d::input_gradient(&dy, &weight, &call))
    }

    fn conv3d_transposed(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        composed_on_cpu!(
            x,
            composed::conv3d::transposed::<Self>(x, weight, bias.into_option(), &call.problem)
        );
        or_panic(conv3d::transposed(&x, &weight, bias.as_option(), &call, false)).0
    }

    fn conv3d_transposed_with_pre(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed_on_cpu!(
            x,
            composed::conv3d::transposed_with_pre::<Self>(x, weight, bias.into_option(), &call.problem)
        );
        with_pre(conv3d::transposed(&x, &weight, bias.as_option(), &call, true))
    }

    fn conv3d_weight_gradient(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        composed_on_cpu!(x, composed::conv3d::weight_gradient::<Self>(x, dy, &call.problem));
        or_panic(conv3d::weight_gradient(&x, &dy, &call))
    }

    fn conv3d_weight_and_bias_gradient(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        call: Conv3dCall,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed_on_cpu!(
            x,
            (Self::conv3d_weight_gradient(x, dy.clone(), call), Self::conv3d_bias_gradient(dy, call))
        );
        or_panic(conv3d::weight_and_bias_gradient(&x, &dy, &call))
    }

    fn conv3d_bias_gradient(dy: FloatTensor<Self>, call: Conv3dCall) -> FloatTensor<Self> {
        composed_on_cpu!(dy, composed::conv3d::bias_gradient::<Self>(dy, &call.problem));
        or_panic(conv3d::bias_gradient(&dy, &call))
    }

    fn conv3d_activation_gradient(
        saved: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        composed_on_cpu!(dy, composed::activation_gradient::<Self>(saved, dy, activation));
        or_panic(conv3d::activation_gradient(&saved, &dy, activation))
    }

    fn causal_conv1d(inputs: CausalConv1dInputs<Self>, problem: CausalConv1dProblem) -> FloatTensor<Self> {
        composed_on_cpu!(inputs.x, composed::causal_conv1d::forward::<Self>(inputs, &problem));
        or_panic(causal_conv1d::forward(&inputs, &problem))
    }

    fn causal_conv1d_backward(
        inputs: CausalConv1dInputs<Self>,
        dy: FloatTensor<Self>,
        problem: CausalConv1dProblem,
    ) -> CausalConv1dGradients<Self> {
        composed_on_cpu!(dy, composed::causal_conv1d::backward::<Self>(inputs, dy, &problem));
        or_panic(causal_conv1d::backward(&inputs, &dy, &problem))
    }

    fn causal_conv1d_final_state(
        x: FloatTensor<Self>,
        initial: OptionalTensor<Self>,
        ids: OptionalIntTensor<Self>,
        problem: CausalConv1dProblem,
    ) -> FloatTensor<Self> {
        composed_on_cpu!(
            x,
            composed::causal_conv1d::final_state::<Self>(
                x,
                initial.into_option(),
                ids.into_option(),
                &problem
            )
        );
        or_panic(causal_conv1d::final_state(&x, initial.as_option(), ids.as_option(), &problem))
    }

    fn causal_conv1d_update(
        x: FloatTensor<Self>,
        state: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: OptionalTensor<Self>,
        problem: UpdateProblem,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed_on_cpu!(
            x,
            composed::decoding::update::<Self>(x, state, weight, bias.into_option(), &problem)
        );
        or_panic(decoding::update(&x, state, &weight, bias.as_option(), &problem))
    }

    fn causal_conv1d_update_steps(
        inputs: CausalConv1dSteps<Self>,
        problem: UpdateProblem,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed_on_cpu!(inputs.x, composed::decoding::update_steps::<Self>(inputs, &problem));
        or_panic(decoding::update_steps(inputs, &problem))
    }

    fn causal_conv1d_last_states(
        x: FloatTensor<Self>,
        bounds: IntTensor<Self>,
        length: usize,
        layout: Conv1dLayout,
    ) -> FloatTensor<Self> {
        composed_on_cpu!(x, composed::decoding::last_states::<Self>(x, bounds, length, layout));
        or_panic(decoding::last_states(&x, &bounds, length, layout))
    }

    fn causal_conv1d_seq_idx(bounds: IntTensor<Self>, length: usize) -> IntTensor<Self> {
        composed_on_cpu!(bounds, composed::decoding::seq_idx::<Self>(bounds, length));
        or_panic(decoding::seq_idx(&bounds, length))
    }

    fn rope(
        tokens: FloatTensor<Self>,
        positions: RopePositions<Self>,
        problem: RopeProblem,
        inverse: bool,
    ) -> FloatTensor<Self> {
        composed_on_cpu!(tokens, composed::rope::rotate::<Self>(tokens, positions, &problem, inverse));
        or_panic(rope::rotate(tokens, &positions, problem, inverse))
    }

    fn rope_qk(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        q_positions: RopePositions<Self>,
        k_positions: RopePositions<Self>,
        q_problem: RopeProblem,
        k_problem: RopeProblem,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed_on_cpu!(
            q,
            (Self::rope(q, q_positions, q_problem, false), Self::rope(k, k_positions, k_problem, false))
        );
        or_panic(rope::rotate_qk([q, k], [&q_positions, &k_positions], [q_problem, k_problem]))
    }
}

/// The bodies of [`ConvOps`], composed from Burn's own ops.
#[cfg(feature = "cpu")]
mod composed {
    pub(super) use crate::backend::portable::activation_gradient;
    pub(super) use crate::causal_conv1d::decoding::portable as decoding;
    pub(super) use crate::causal_conv1d::portable as causal_conv1d;
    pub(super) use crate::conv3d::portable as conv3d;
    pub(super) use crate::rope::portable as rope;
    use burn::backend::Backend;
    use burn::backend::tensor::FloatTensor;

    /// A stream's cache and x.
    pub(super) fn join<B: Backend>(cache: FloatTensor<B>, x: FloatTensor<B>) -> FloatTensor<B> {
        B::float_cat(vec![cache, x], 2)
    }
}

/// A result and the value before its activation, which was asked for.
fn with_pre(result: Result<(CubeTensor, Option<CubeTensor>), ConvError>) -> (CubeTensor, CubeTensor) {
    let (y, pre) = or_panic(result);
    (y, pre.expect("it was asked for"))
}

/// The tensor as the kernels see it. The handle starts at the tensor's first element, a slice's too.
pub(crate) fn operand(tensor: &CubeTensor) -> Result<Operand, ConvError> {
    Ok(Operand {
        handle: tensor.handle.clone(),
        shape: tensor.meta.shape().to_vec(),
        strides: tensor.meta.strides().to_vec(),
        dtype: crate::check::float_type("burn-conv-ops", "an operand", tensor.dtype)?,
    })
}

/// [`operand`] for sequence ids and positions.
pub(crate) fn index_operand(tensor: &CubeTensor) -> Result<IndexOperand, ConvError> {
    Ok(IndexOperand {
        handle: tensor.handle.clone(),
        shape: tensor.meta.shape().to_vec(),
        strides: tensor.meta.strides().to_vec(),
        dtype: crate::check::index_type("burn-conv-ops", "an operand", tensor.dtype)?,
    })
}

/// Whether a kernel may write its result to the tensor's memory: nobody else has it, and no two elements
/// share a place.
pub(crate) fn owned(tensor: &CubeTensor) -> bool {
    tensor.can_mut() && tensor.is_contiguous()
}

/// A contiguous tensor with undefined elements on the device of `like`.
pub(crate) fn allocate(like: &CubeTensor, shape: &[usize], dtype: DType) -> CubeTensor {
    let shape = Shape::from(shape.to_vec());
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, dtype)
}
