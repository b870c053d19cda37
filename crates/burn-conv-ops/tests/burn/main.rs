//! The ops through Burn's tensors: on the CPU backend and on a GPU device, with and without gradients.

mod causal_conv1d;
mod conv3d;
mod errors;
mod gradients;
mod modules;
mod rope2d;
#[cfg(feature = "wgpu")]
mod shapes;
mod state_dict;
mod support;
mod views;
