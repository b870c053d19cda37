//! The ops through Burn's tensors: on the CPU backend and on a GPU device, with and without gradients.

mod conformance;
mod support;
