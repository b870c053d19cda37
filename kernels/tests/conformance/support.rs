//! Helpers of all device tests.

use crate::device::EXECUTED;
pub(crate) use crate::device::client;
use conv_kernels::{FloatType, Limits};
pub(crate) use conv_testing::buffer::*;
use conv_testing::is_full;

/// The dtypes that a test runs.
///
/// In the quick tier a software device, which compiles a kernel for a second, runs f32 only: half types
/// differ by conversions, conv3d's tables run them under every plan, and so does the Metal executor.
pub(crate) fn dtypes() -> Vec<FloatType> {
    let limits = Limits::of(&client());
    // Only software devices limit loop iterations.
    let software = limits.loop_iterations.is_some() && !EXECUTED;
    if software && !is_full() { vec![FloatType::F32] } else { limits.dtypes }
}
