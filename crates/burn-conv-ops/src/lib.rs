//! conv3d, causal conv1d and RoPE2D for Burn.
//!
//! ```no_run
//! use burn::tensor::{Device, Distribution, Tensor};
//! use burn_conv_ops::{Conv3dOptions, conv3d};
//!
//! let device = Device::default().autodiff();
//! let clip = Tensor::<5>::random([1, 3, 8, 64, 64], Distribution::Default, &device);
//! let weight = Tensor::<5>::random([16, 3, 3, 3, 3], Distribution::Default, &device).require_grad();
//! let y = conv3d(clip, weight.clone(), None, Conv3dOptions::new().with_padding([1; 3]));
//! assert_eq!(y.dims(), [1, 16, 8, 64, 64]);
//! let gradients = y.mean().backward();
//! let dw = weight.grad(&gradients);
//! ```
//!
//! Every function takes tensors of any strides on any device this crate is compiled for, computes in fp32 and rounds
//! once, and gives gradients that are equal bit for bit from run to run. Each panics with the sentence of its
//! [`ConvError`]; its `try_` twin returns the error. [`nn`] holds the modules.
//!
//! # Features
//!
//! `wgpu` (Metal on macOS, Vulkan or another API through WGSL elsewhere), `vulkan` (SPIR-V), `metal`, `cuda`, `flex`
//! (CPU), `autodiff` and `fusion`. The default is `autodiff`, `fusion`, `wgpu` and `flex`. `fusion` has to agree with
//! Burn: leave it on with Burn's default features, turn it off together with Burn's.

#[cfg(feature = "autodiff")]
mod autodiff;
mod check;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod cube;
pub mod nn;
mod ops;
mod options;
mod portable;

pub use conv_kernels::ConvError;
pub use conv_kernels::conv3d::{Activation, Algorithm, Conv3dProblem, PaddingMode, WinogradTile};
pub use ops::{Conv3dCall, ConvOps, OptionalTensor};
pub use options::Conv3dOptions;

use burn::backend::Dispatch;
use burn::tensor::Tensor;

/// conv3d: y `[N, O, OD, OH, OW]` of x `[N, C, D, H, W]`, weight `[O, C/groups, KD, KH, KW]` and bias `[O]`, with
/// PyTorch's semantics.
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
/// When shapes, dtypes or devices do not fit together, the device cannot hold the dtype or the result, or a forced
/// algorithm cannot serve the problem. Nothing is launched then.
pub fn try_conv3d(
    x: Tensor<5>,
    weight: Tensor<5>,
    bias: Option<Tensor<1>>,
    options: impl Into<Conv3dOptions>,
) -> Result<Tensor<5>, ConvError> {
    let call = check::conv3d(&x, &weight, bias.as_ref(), &options.into())?;
    let bias = bias.map(Tensor::into_dispatch).into();
    Ok(Tensor::from_dispatch(Dispatch::conv3d_forward(x.into_dispatch(), weight.into_dispatch(), bias, call)))
}

fn or_panic<T>(result: Result<T, ConvError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}
