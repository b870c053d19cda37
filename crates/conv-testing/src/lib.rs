//! What the tests of conv-kernels share, on every device: tensors between guard zones ([`buffer`]), and for each op the
//! launches of its passes with the f64 results and the bounds that hold for each plan.

pub mod buffer;
pub mod causal_conv1d;
pub mod conv3d;
