//! What every test of a device uses.

use crate::device::EXECUTED;
pub(crate) use crate::device::client;
use conv_kernels::{FloatType, Limits};
pub(crate) use conv_testing::buffer::*;
use conv_testing::is_full;

/// The half and full types that a test runs.
///
/// In the quick tier f32 alone on a software device, which compiles a kernel for a second: half types differ
/// by conversions, are shown every plan by conv3d's tables, and are executed on the Metal executor.
pub(crate) fn dtypes() -> Vec<FloatType> {
    let limits = Limits::of(&client());
    // Only software devices count the turns of loops.
    let software = limits.loop_iterations.is_some() && !EXECUTED;
    if software && !is_full() { vec![FloatType::F32] } else { limits.dtypes }
}
