//! conv3d: functions, options, module, and what each kind of backend runs.

#[cfg(feature = "autodiff")]
pub(crate) mod autodiff;
mod check;
#[cfg(feature = "cubecl")]
pub(crate) mod cube;
mod filters;
mod from_burn;
pub(crate) mod nn;
mod options;
pub(crate) mod portable;

pub use filters::FilterCache;
pub use options::{Conv3dOptions, Conv3dPadding, ConvOptions, ConvPadding, PerAxis};

use crate::backend::ConvOps;
use crate::{ConvError, or_panic};
use burn::backend::Dispatch;
use burn::tensor::Tensor;
use check::Frames;

/// conv3d: y `[N, O, OD, OH, OW]` of x `[N, C, D, H, W]`, weight `[O, C/groups, KD, KH, KW]` and bias `[O]`,
/// with PyTorch's semantics.
///
/// # Rounding
/// y is an fp32 sum through the activation, rounded once, with the same bits whether gradients are tracked or
/// not. A tracked SiLU keeps the value before it in fp32, next to y; ReLU keeps y, and its slope is that of y
/// as stored (0 where a positive value is so small that y is 0: in f16 up to 2^-25). The gradient before an
/// activation is a tensor of the storage type; the gradients of x, weight and bias are fp32 sums of it, each
/// rounded once.
///
/// On the CPU backend the sums are Burn's own. The weight gradient of few channels there is one serial fp32
/// sum over the windows of a frame: for a 1x1x1 filter and equal terms its relative error is 1.2e-5 at 64x64
/// windows, 1.9e-4 at 256x256, 2.9e-3 at 1024x1024 and 8.2e-3 at 2048x2048, and a sum of ones stays at 2^24.
/// Other frames and images are sums of their own (64 frames of 1024x1024: 1.9e-4), and so are those of 3x3x3
/// and depthwise filters (2e-6 at most). The bias' gradient is right to 1.2e-5, and to 4e-4 along one row of
/// 16.8 million.
///
/// # NaN, infinities, range
/// On every device a result is not finite where a product of its sum holds NaN or an infinity. Besides these,
/// a non-finite weight may make any result of its channel (y: its output channel, dx: its input channel)
/// non-finite, an element of x or dy any weight's gradient of its channel, since the padding's zeros are
/// multiplied; all other results keep their values. Where [`Algorithm::Auto`](crate::Algorithm::Auto) takes
/// Winograd, an element of x reaches its tile of 2 x 2 to 6 x 6 results as well;
/// [`Algorithm::NoWinograd`](crate::Algorithm::NoWinograd) never takes it. Finite tensors give finite, right
/// results as long as `C/groups * taps * max|x| * max|weight|` is below the largest fp32 number.
///
/// # Panics
/// Where [`try_conv3d`] returns an error.
pub fn conv3d(
    x: Tensor<5>,
    weight: Tensor<5>,
    bias: Option<Tensor<1>>,
    options: impl Into<Conv3dOptions>,
) -> Tensor<5> {
    or_panic(try_conv3d(x, weight, bias, options))
}

/// [`conv3d`] with errors as values.
///
/// # Errors
/// When shapes, dtypes or devices do not fit together, the device cannot hold the dtype or the result, or a
/// forced algorithm cannot serve the problem. Nothing is launched then.
pub fn try_conv3d(
    x: Tensor<5>,
    weight: Tensor<5>,
    bias: Option<Tensor<1>>,
    options: impl Into<Conv3dOptions>,
) -> Result<Tensor<5>, ConvError> {
    try_whole(x, weight, bias, None, &options.into())
}

/// [`conv3d`] with a residual of y's shape and x's dtype, added after the activation and before y is rounded:
/// `y = activation(conv(x, weight) + bias) + residual`. Its gradient is that of y. (It is no option, unlike
/// causal conv1d's: [`Conv3dOptions`] hold no tensors.)
///
/// The gathered GEMM, the window kernels, Winograd and the direct kernel read the residual where it is, with
/// any strides; the others (depthwise, few output channels) leave y in fp32 to a pass of its own. A tracked
/// ReLU keeps the value before it in fp32, as SiLU does.
///
/// # Panics
/// Where [`try_conv3d_with_residual`] returns an error.
pub fn conv3d_with_residual(
    x: Tensor<5>,
    weight: Tensor<5>,
    bias: Option<Tensor<1>>,
    residual: Tensor<5>,
    options: impl Into<Conv3dOptions>,
) -> Tensor<5> {
    or_panic(try_conv3d_with_residual(x, weight, bias, residual, options))
}

/// [`conv3d_with_residual`] with errors as values.
///
/// # Errors
/// As [`try_conv3d`], and when the residual does not have y's shape.
pub fn try_conv3d_with_residual(
    x: Tensor<5>,
    weight: Tensor<5>,
    bias: Option<Tensor<1>>,
    residual: Tensor<5>,
    options: impl Into<Conv3dOptions>,
) -> Result<Tensor<5>, ConvError> {
    try_whole(x, weight, bias, Some(residual), &options.into())
}

/// conv3d of a whole input, with or without a residual.
pub(crate) fn try_whole(
    x: Tensor<5>,
    weight: Tensor<5>,
    bias: Option<Tensor<1>>,
    residual: Option<Tensor<5>>,
    options: &Conv3dOptions,
) -> Result<Tensor<5>, ConvError> {
    let call = check::check(&x, &weight, (bias.as_ref(), residual.as_ref()), options, Frames::Whole)?;
    let bias = bias.map(Tensor::into_dispatch).into();
    let residual = residual.map(Tensor::into_dispatch).into();
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Ok(Tensor::from_dispatch(Dispatch::conv3d_forward(x, weight, bias, residual, call)))
}

/// conv3d of the next frames of a clip, whose bits do not depend on how many there are: of the cache, if any,
/// and x joined along depth.
pub(crate) fn try_stream(
    x: Tensor<5>,
    cache: Option<Tensor<5>>,
    weight: Tensor<5>,
    (bias, residual): (Option<Tensor<1>>, Option<Tensor<5>>),
    options: &Conv3dOptions,
) -> Result<Tensor<5>, ConvError> {
    let added = (bias.as_ref(), residual.as_ref());
    let call = check::check(&x, &weight, added, options, Frames::Stream(cache.as_ref()))?;
    let bias = bias.map(Tensor::into_dispatch).into();
    let residual = residual.map(Tensor::into_dispatch).into();
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Ok(Tensor::from_dispatch(match cache {
        Some(cache) => {
            Dispatch::conv3d_forward_cached(x, cache.into_dispatch(), weight, bias, residual, call)
        }
        None => Dispatch::conv3d_forward(x, weight, bias, residual, call),
    }))
}
