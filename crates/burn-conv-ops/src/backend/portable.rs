//! The ops composed from Burn's own: what the CPU backend runs, and a second oracle for the kernels.
//!
//! Half types are widened to fp32 on entry and rounded once at the end, as in the kernels.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, FloatDType};
use conv_kernels::FloatType;
use conv_kernels::conv3d::Activation;

/// Burn's name for a storage type.
pub(crate) fn dtype_of(dtype: FloatType) -> DType {
    match dtype {
        FloatType::F32 => DType::F32,
        FloatType::F16 => DType::F16,
        FloatType::Bf16 => DType::BF16,
        other => panic!("Burn has no {}", other.name()),
    }
}

/// The tensor in fp32.
pub(crate) fn widen<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    round::<B>(tensor, DType::F32)
}

/// The tensor in `dtype`.
pub(crate) fn round<B: Backend>(tensor: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    if tensor.dtype() == dtype { tensor } else { B::float_cast(tensor, FloatDType::from(dtype)) }
}

/// The activation, in fp32.
pub(crate) fn activate<B: Backend>(value: FloatTensor<B>, activation: Activation) -> FloatTensor<B> {
    let dtype = value.dtype();
    match activation {
        Activation::None => value,
        Activation::Relu => B::relu(value),
        Activation::Silu => {
            let value = widen::<B>(value);
            round::<B>(B::float_mul(value.clone(), B::sigmoid(value)), dtype)
        }
        other => panic!("{other:?} of Burn's own ops"),
    }
}

/// `dy * activation'(saved)`, in fp32. ReLU's derivative at 0 is 0.
pub(crate) fn activation_gradient<B: Backend>(
    saved: FloatTensor<B>,
    dy: FloatTensor<B>,
    activation: Activation,
) -> FloatTensor<B> {
    let dtype = dy.dtype();
    match activation {
        Activation::None => dy,
        Activation::Relu => B::relu_backward(saved, dy),
        Activation::Silu => {
            // sigmoid * (1 + v * (1 - sigmoid))
            let (value, dy) = (widen::<B>(saved), widen::<B>(dy));
            let sigmoid = B::sigmoid(value.clone());
            let rest = B::float_add_scalar(B::float_neg(sigmoid.clone()), 1.0.into());
            let slope = B::float_add_scalar(B::float_mul(value, rest), 1.0.into());
            round::<B>(B::float_mul(dy, B::float_mul(sigmoid, slope)), dtype)
        }
        other => panic!("the gradient of {other:?} of Burn's own ops"),
    }
}

/// The part `start..start + length` of one axis.
pub(crate) fn narrow<B: Backend>(
    tensor: FloatTensor<B>,
    axis: usize,
    start: usize,
    length: usize,
) -> FloatTensor<B> {
    let mut slices: Vec<_> = tensor.shape().iter().map(|&size| (0..size).into()).collect();
    slices[axis] = (start..start + length).into();
    B::float_slice(tensor, &slices)
}
