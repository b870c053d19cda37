//! The ops through Burn's tensors: on the CPU backend and on a GPU device, with and without gradients. Needs
//! the features `wgpu`, `flex` and `autodiff`; with and without `fusion`.

#[cfg(feature = "autotune")]
mod autotune;
mod causal_conv1d;
mod causal_conv3d;
mod conv3d;
mod convolutions;
#[cfg(all(feature = "cpu", feature = "flex", feature = "autodiff"))]
mod cpu;
mod decoding;
mod errors;
mod faults;
mod from_burn;
mod golden;
mod gradients;
mod limits;
mod modules;
mod non_finite;
mod packed;
mod padding;
#[cfg(not(feature = "fusion"))]
mod patched;
mod pieces;
mod prepared;
mod residual;
mod rope;
mod rope2d;
mod shapes;
mod silu;
mod state_dict;
mod states;
mod support;
mod tracked;
mod transposed;
mod views;
