//! The ops through Burn's tensors: on the CPU backend and on a GPU device, with and without gradients.

mod causal_conv1d;
mod conv3d;
mod rope2d;
mod support;
