//! conv2d and conv1d: conv3d of depth (and height) 1. A reshape adds the axes; nothing is copied.

pub(crate) mod nn;
mod options;

pub(crate) use options::last_axes;
pub use options::{Conv1dOptions, Conv1dPadding, Conv2dOptions, Conv2dPadding};

use crate::conv3d::try_whole;
use crate::{ConvError, ConvOptions, or_panic};
use burn::tensor::Tensor;

/// conv2d: y `[N, O, OH, OW]` of x `[N, C, H, W]`, weight `[O, C/groups, KH, KW]` and bias `[O]`, with
/// PyTorch's semantics. Rounding, non-finite values and range: [`conv3d`](crate::conv3d()).
///
/// # Panics
/// Where [`try_conv2d`] returns an error.
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    options: impl Into<Conv2dOptions>,
) -> Tensor<4> {
    or_panic(try_conv2d(x, weight, bias, options))
}

/// [`conv2d`] with errors as values.
///
/// # Errors
/// As [`try_conv3d`](crate::try_conv3d); its shapes have a depth of 1.
pub fn try_conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    options: impl Into<Conv2dOptions>,
) -> Result<Tensor<4>, ConvError> {
    try_flat([x, weight], bias, None, &options.into())
}

/// [`conv2d`] with a residual of y's shape and x's dtype, added after the activation and before y is rounded:
/// `y = activation(conv(x, weight) + bias) + residual`. See
/// [`conv3d_with_residual`](crate::conv3d_with_residual).
///
/// # Panics
/// Where [`try_conv2d_with_residual`] returns an error.
pub fn conv2d_with_residual(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    residual: Tensor<4>,
    options: impl Into<Conv2dOptions>,
) -> Tensor<4> {
    or_panic(try_conv2d_with_residual(x, weight, bias, residual, options))
}

/// [`conv2d_with_residual`] with errors as values.
///
/// # Errors
/// As [`try_conv2d`], and when the residual does not have y's shape.
pub fn try_conv2d_with_residual(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    residual: Tensor<4>,
    options: impl Into<Conv2dOptions>,
) -> Result<Tensor<4>, ConvError> {
    try_flat([x, weight], bias, Some(residual), &options.into())
}

/// conv1d: y `[N, O, OL]` of x `[N, C, L]`, weight `[O, C/groups, K]` and bias `[O]`, with PyTorch's
/// semantics. Rounding, non-finite values and range: [`conv3d`](crate::conv3d()). For a causal depthwise
/// filter see [`causal_conv1d`](crate::causal_conv1d()).
///
/// # Panics
/// Where [`try_conv1d`] returns an error.
pub fn conv1d(
    x: Tensor<3>,
    weight: Tensor<3>,
    bias: Option<Tensor<1>>,
    options: impl Into<Conv1dOptions>,
) -> Tensor<3> {
    or_panic(try_conv1d(x, weight, bias, options))
}

/// [`conv1d`] with errors as values.
///
/// # Errors
/// As [`try_conv3d`](crate::try_conv3d); its shapes have a depth and a height of 1.
pub fn try_conv1d(
    x: Tensor<3>,
    weight: Tensor<3>,
    bias: Option<Tensor<1>>,
    options: impl Into<Conv1dOptions>,
) -> Result<Tensor<3>, ConvError> {
    try_flat([x, weight], bias, None, &options.into())
}

/// [`conv1d`] with a residual of y's shape and x's dtype, added after the activation and before y is rounded:
/// `y = activation(conv(x, weight) + bias) + residual`. See
/// [`conv3d_with_residual`](crate::conv3d_with_residual).
///
/// # Panics
/// Where [`try_conv1d_with_residual`] returns an error.
pub fn conv1d_with_residual(
    x: Tensor<3>,
    weight: Tensor<3>,
    bias: Option<Tensor<1>>,
    residual: Tensor<3>,
    options: impl Into<Conv1dOptions>,
) -> Tensor<3> {
    or_panic(try_conv1d_with_residual(x, weight, bias, residual, options))
}

/// [`conv1d_with_residual`] with errors as values.
///
/// # Errors
/// As [`try_conv1d`], and when the residual does not have y's shape.
pub fn try_conv1d_with_residual(
    x: Tensor<3>,
    weight: Tensor<3>,
    bias: Option<Tensor<1>>,
    residual: Tensor<3>,
    options: impl Into<Conv1dOptions>,
) -> Result<Tensor<3>, ConvError> {
    try_flat([x, weight], bias, Some(residual), &options.into())
}

/// conv3d of tensors with axes of size 1; errors name conv2d or conv1d.
fn try_flat<const D: usize, const AXES: usize>(
    [x, weight]: [Tensor<D>; 2],
    bias: Option<Tensor<1>>,
    residual: Option<Tensor<D>>,
    options: &ConvOptions<AXES>,
) -> Result<Tensor<D>, ConvError> {
    let y = try_whole(volume(x), volume(weight), bias, residual.map(volume), &options.volume());
    flattened(y, if AXES == 2 { "conv2d" } else { "conv1d" }, "conv3d")
}

/// `tensor` with axes of size 1 between the channels and its last axes.
pub(crate) fn volume<const D: usize>(tensor: Tensor<D>) -> Tensor<5> {
    let dims = tensor.dims();
    let mut shape = [1; 5];
    shape[..2].copy_from_slice(&dims[..2]);
    shape[7 - D..].copy_from_slice(&dims[2..]);
    tensor.reshape(shape)
}

/// What `inner` returned for tensors from [`volume`], as the result of `op`.
pub(crate) fn flattened<const D: usize>(
    y: Result<Tensor<5>, ConvError>,
    op: &str,
    inner: &str,
) -> Result<Tensor<D>, ConvError> {
    let ones = if D == 4 { "depth 1" } else { "depth and height 1" };
    y.map(drop_axes).map_err(|error| renamed(error, op, inner, ones))
}

/// The reverse of [`volume`].
fn drop_axes<const D: usize>(tensor: Tensor<5>) -> Tensor<D> {
    let dims = tensor.dims();
    let mut shape = [1; D];
    shape[..2].copy_from_slice(&dims[..2]);
    shape[2..].copy_from_slice(&dims[7 - D..]);
    tensor.reshape(shape)
}

/// An error of `inner` as one of `op`, which calls it with axes of size 1.
pub(crate) fn renamed(error: ConvError, op: &str, inner: &str, ones: &str) -> ConvError {
    let prefix = format!("{inner}: ");
    error.map_message(|sentence| {
        format!("{op} (as {inner} of {ones}): {}", sentence.strip_prefix(&prefix).unwrap_or(sentence))
    })
}
