//! Shared by the tests of conv-kernels on every device: tensors between guard zones ([`buffer`]), and for
//! each op the launches of its passes, f64 references, and the error bounds of each plan.

pub mod buffer;
pub mod causal_conv1d;
pub mod conv3d;

/// Whether everything runs (`cargo xtask test --full`) or the quick tier of it (docs/testing.md).
#[must_use]
pub fn is_full() -> bool {
    std::env::var_os("CONV_TESTS").is_some_and(|tier| tier == "full")
}
