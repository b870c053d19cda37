//! What every test of a device uses.

pub(crate) use crate::device::client;
use conv_kernels::{FloatType, Limits};
pub(crate) use conv_testing::buffer::*;

/// The half and full types that the device serves.
pub(crate) fn dtypes() -> Vec<FloatType> {
    Limits::of(&client()).dtypes
}
