//! Convolutions in one to three dimensions, causal conv1d, causal conv3d and RoPE for Burn.
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
//! Every function takes tensors of any strides on any device this crate is compiled for, computes in fp32 and
//! rounds once, and gives gradients that are equal bit for bit from run to run. Each panics with the sentence
//! of its [`ConvError`]; its `try_` twin returns the error. [`nn`] holds the modules.
//! [`patch_conv3d`] runs conv3d's kernels under models that do not name this crate (module [`mod@patch`]).
//!
//! # Features
//!
//! Backends as Burn names them: `wgpu` (Metal on macOS, Vulkan or another API through WGSL elsewhere),
//! `vulkan` (SPIR-V), `metal`, `webgpu` (WGSL), `cuda`, `rocm`, `flex` (CPU) and `cpu` (CubeCL's CPU
//! runtime; the ops are composed from Burn's own there, as on `flex`). Further `autodiff`, `fusion`,
//! `tracing` (Burn's), `std` and `autotune` (conv3d's plans are timed once). The default is `std`,
//! `autodiff`, `fusion`, `wgpu` and `flex`. `fusion` has to agree with Burn: leave it on with Burn's default
//! features, turn it off together with Burn's. `std` cannot be left out yet. `cubecl` is what CubeCL's
//! backends share.
//! Backend authors find the trait and its types in [`backend`].

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(feature = "std"))]
compile_error!(
    "burn-conv-ops needs the standard library: turn on its feature `std`, which is a default feature"
);

pub mod backend;
mod causal_conv1d;
mod causal_conv3d;
mod check;
mod conv;
mod conv3d;
mod conv_transpose;
mod forms;
pub mod nn;
pub mod patch;
mod rope;
mod warm_up;

pub use causal_conv1d::{
    CausalConv1dOptions, CausalConv1dUpdateOptions, causal_conv1d, causal_conv1d_last_seq_idx,
    causal_conv1d_last_states, causal_conv1d_packed, causal_conv1d_seq_idx, causal_conv1d_update,
    causal_conv1d_update_steps, causal_conv1d_with_state, try_causal_conv1d, try_causal_conv1d_last_seq_idx,
    try_causal_conv1d_last_states, try_causal_conv1d_packed, try_causal_conv1d_seq_idx,
    try_causal_conv1d_update, try_causal_conv1d_update_steps, try_causal_conv1d_with_state,
};
pub use causal_conv3d::{
    CausalConv3dOptions, FirstFrames, PaddingPairs, causal_conv3d, causal_conv3d_with_residual,
    try_causal_conv3d, try_causal_conv3d_with_residual,
};
pub use conv::{
    Conv1dOptions, Conv1dPadding, Conv2dOptions, Conv2dPadding, conv1d, conv1d_with_residual, conv2d,
    conv2d_with_residual, try_conv1d, try_conv1d_with_residual, try_conv2d, try_conv2d_with_residual,
};
pub use conv_kernels::causal_conv1d::Conv1dLayout;
pub use conv_kernels::conv3d::{Activation, Algorithm, PaddingMode, WinogradTile};
pub use conv_kernels::rope::{RopeAxes, RopeGrid, RopeLayout, RopePairs, RopeScaling, RopeVolume};
pub use conv_kernels::{ConvError, DeviceLimit, FloatType};
pub use conv_transpose::{
    ConvTranspose1dOptions, ConvTranspose2dOptions, ConvTranspose3dOptions, ConvTransposeOptions,
    conv_transpose1d, conv_transpose2d, conv_transpose3d, try_conv_transpose1d, try_conv_transpose2d,
    try_conv_transpose3d,
};
pub use conv3d::{
    Conv3dOptions, Conv3dPadding, ConvOptions, ConvPadding, PerAxis, conv3d, conv3d_with_residual,
    try_conv3d, try_conv3d_with_residual,
};
pub use patch::{PatchError, PatchOptions, is_patched, patch, patch_conv3d, unpatch};
pub use rope::{
    Rope2dOptions, RopeBase, RopeOptions, RopePositions, rope, rope_qk, rope2d, rope2d_qk, try_rope,
    try_rope_qk, try_rope2d, try_rope2d_qk,
};
pub use warm_up::{WarmUpLayer, WarmUpStep, warm_up};

/// The positions of [`rope2d()`].
pub type Rope2dPositions = RopePositions;

fn or_panic<T>(result: Result<T, ConvError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// The README's examples, compiled with the documentation tests.
#[cfg(all(doctest, feature = "autodiff"))]
#[doc = include_str!("../../../README.md")]
struct ReadmeExamples;

/// The guide's.
#[cfg(all(doctest, feature = "autodiff"))]
#[doc = include_str!("../../../docs/guide.md")]
struct GuideExamples;
