//! `ConvOps` on every CubeCL runtime: Burn's tensors are handed to the kernels as they are, strides and all.
//!
//! The functions at the crate's root have validated the call, so a [`ConvError`] here is a caller of the trait who has
//! not, or a limit that only the launch knows; it becomes a panic with its sentence.

mod conv3d;

use crate::ops::{Conv3dCall, ConvOps, OptionalTensor};
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use conv_kernels::conv3d::Activation;
use conv_kernels::{ConvError, Operand};

impl ConvOps for CubeBackend {
    fn conv3d_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        or_panic(conv3d::forward(&x, &weight, bias.into_option().as_ref(), &call))
    }

    fn conv3d_input_gradient(
        dy: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        or_panic(conv3d::input_gradient(&dy, &weight, &call))
    }

    fn conv3d_weight_gradient(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        or_panic(conv3d::weight_gradient(&x, &dy, &call))
    }

    fn conv3d_bias_gradient(dy: FloatTensor<Self>, call: Conv3dCall) -> FloatTensor<Self> {
        or_panic(conv3d::bias_gradient(&dy, &call))
    }

    fn conv3d_activation_gradient(
        saved: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        or_panic(conv3d::activation_gradient(&saved, &dy, activation))
    }
}

/// The one place where an error of the kernels becomes a panic.
fn or_panic<T>(result: Result<T, ConvError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// The tensor as the kernels see it. The handle starts at the tensor's first element, a slice's too.
fn operand(tensor: &CubeTensor) -> Result<Operand, ConvError> {
    Ok(Operand {
        handle: tensor.handle.clone(),
        shape: tensor.meta.shape().to_vec(),
        strides: tensor.meta.strides().to_vec(),
        dtype: crate::check::float_type("burn-conv-ops", "an operand", tensor.dtype)?,
    })
}

/// A contiguous tensor with undefined elements beside `like`.
fn allocate(like: &CubeTensor, shape: &[usize], dtype: DType) -> CubeTensor {
    let shape = Shape::from(shape.to_vec());
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, dtype)
}
