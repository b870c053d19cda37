//! Transposed convolutions: the input gradient of a conv3d as an op of its own, with gradients.
//!
//! ```text
//! y[n,o,p] = activation( b[o] + sum over c, k, q with q*stride - padding + k*dilation = p
//!                               of x[n,c,q] * w[c,o,k] )
//!
//! y     input gradient of the conv3d from y's shape to x's, whose dy is x
//! dx    that conv3d of the gradient before the activation
//! dw    its weight gradient, with that gradient as the input and x as dy
//! ```

#[cfg(feature = "autodiff")]
pub(crate) mod autodiff;
mod check;
pub(crate) mod nn;
mod options;

pub use options::{
    ConvTranspose1dOptions, ConvTranspose2dOptions, ConvTranspose3dOptions, ConvTransposeOptions,
};

use crate::backend::{ConvOps, OptionalTensor};
use crate::conv::{flattened, volume};
use crate::{ConvError, or_panic};
use burn::backend::Dispatch;
use burn::tensor::Tensor;
use burn::tensor::activation::{relu, silu};
use burn::tensor::{DType, Shape};
use conv_kernels::conv3d::Activation;

/// Transposed conv3d: y `[N, O, OD, OH, OW]` of x `[N, C, D, H, W]`, weight `[C, O/groups, KD, KH, KW]` and
/// bias `[O]`, with PyTorch's semantics: `OD = (D - 1) * stride - 2 * padding + dilation * (KD - 1) +
/// padding_out + 1`, where `padding_out` is PyTorch's `output_padding`.
///
/// The sum over channels and taps, the bias and the activation are computed in fp32 and rounded once. The
/// gradients of x and weight are those of [`conv3d`](crate::conv3d()). Non-finite values and range: as the
/// input gradient there, with x in the place of dy.
///
/// # Panics
/// Where [`try_conv_transpose3d`] returns an error.
pub fn conv_transpose3d(
    x: Tensor<5>,
    weight: Tensor<5>,
    bias: Option<Tensor<1>>,
    options: impl Into<ConvTranspose3dOptions>,
) -> Tensor<5> {
    or_panic(try_conv_transpose3d(x, weight, bias, options))
}

/// [`conv_transpose3d`] with errors as values.
///
/// # Errors
/// When shapes, dtypes or devices do not fit together, the result would have no or too many elements, or a
/// forced algorithm cannot serve the problem. Nothing is launched then.
pub fn try_conv_transpose3d(
    x: Tensor<5>,
    weight: Tensor<5>,
    bias: Option<Tensor<1>>,
    options: impl Into<ConvTranspose3dOptions>,
) -> Result<Tensor<5>, ConvError> {
    let (call, behind) = check::check(&x, &weight, bias.as_ref(), &options.into())?;
    let operand = OptionalTensor::from(bias.clone().map(Tensor::into_dispatch));
    let y = Dispatch::conv3d_transposed(x.into_dispatch(), weight.into_dispatch(), operand, call);
    let y = Tensor::<5>::from_dispatch(y);
    if behind == [0; 3] {
        return Ok(y);
    }
    Ok(with_elements_behind(y, bias, behind, call.problem.window.activation))
}

/// y with elements behind the last window's, which have no product: they are the activation of the bias.
fn with_elements_behind(
    mut y: Tensor<5>,
    bias: Option<Tensor<1>>,
    behind: [usize; 3],
    activation: Activation,
) -> Tensor<5> {
    let dtype = y.dtype();
    let element = bias.map(|bias| {
        let channels = bias.dims()[0];
        let value = bias.reshape([1, channels, 1, 1, 1]).cast(DType::F32);
        let value = match activation {
            Activation::None => value,
            Activation::Relu => relu(value),
            Activation::Silu => silu(value),
            other => panic!("no elements behind a transposed convolution with {other:?}"),
        };
        value.cast(dtype)
    });
    for (axis, length) in behind.into_iter().enumerate().filter(|(_, length)| *length > 0) {
        let mut shape = y.dims();
        shape[axis + 2] = length;
        let elements = match &element {
            Some(element) => element.clone().expand(shape),
            None => Tensor::zeros(Shape::from(shape), (&y.device(), dtype)),
        };
        y = Tensor::cat(vec![y, elements], axis + 2);
    }
    y
}

/// Transposed conv2d: y `[N, O, OH, OW]` of x `[N, C, H, W]`, weight `[C, O/groups, KH, KW]` and bias `[O]`;
/// see [`conv_transpose3d`].
///
/// # Panics
/// Where [`try_conv_transpose2d`] returns an error.
pub fn conv_transpose2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    options: impl Into<ConvTranspose2dOptions>,
) -> Tensor<4> {
    or_panic(try_conv_transpose2d(x, weight, bias, options))
}

/// [`conv_transpose2d`] with errors as values.
///
/// # Errors
/// As [`try_conv_transpose3d`]; its shapes have a depth of 1.
pub fn try_conv_transpose2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    options: impl Into<ConvTranspose2dOptions>,
) -> Result<Tensor<4>, ConvError> {
    let options: ConvTranspose2dOptions = options.into();
    let y = try_conv_transpose3d(volume(x), volume(weight), bias, options.volume());
    flattened(y, "conv_transpose2d", "conv_transpose3d")
}

/// Transposed conv1d: y `[N, O, OL]` of x `[N, C, L]`, weight `[C, O/groups, K]` and bias `[O]`; see
/// [`conv_transpose3d`].
///
/// # Panics
/// Where [`try_conv_transpose1d`] returns an error.
pub fn conv_transpose1d(
    x: Tensor<3>,
    weight: Tensor<3>,
    bias: Option<Tensor<1>>,
    options: impl Into<ConvTranspose1dOptions>,
) -> Tensor<3> {
    or_panic(try_conv_transpose1d(x, weight, bias, options))
}

/// [`conv_transpose1d`] with errors as values.
///
/// # Errors
/// As [`try_conv_transpose3d`]; its shapes have a depth and a height of 1.
pub fn try_conv_transpose1d(
    x: Tensor<3>,
    weight: Tensor<3>,
    bias: Option<Tensor<1>>,
    options: impl Into<ConvTranspose1dOptions>,
) -> Result<Tensor<3>, ConvError> {
    let options: ConvTranspose1dOptions = options.into();
    let y = try_conv_transpose3d(volume(x), volume(weight), bias, options.volume());
    flattened(y, "conv_transpose1d", "conv_transpose3d")
}
