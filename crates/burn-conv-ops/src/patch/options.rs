//! What the caller of `patch` may choose, and why it may fail.

use crate::nn::setters;
use burn::tensor::Device;
use conv_kernels::Limits;
use conv_kernels::conv3d::{Algorithm, Conv3dProblem, Pass};
use std::fmt;

/// Seconds that Burn's own op takes, contiguous operands; none where that is not known, and the call is
/// taken. conv1d and conv2d are problems with axes of one element.
pub type BurnSeconds = fn(&Conv3dProblem, Pass, &Limits) -> Option<f64>;

/// Options of [`patch`](super::patch()). `PatchOptions::new()` takes conv3d and conv_transpose3d with their
/// gradients.
///
/// Each of the three switches selects the convolution, its gradients with respect to the input, the weight
/// and the bias, and, with [`transposed`](Self::transposed), the transposed convolution of that rank.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PatchOptions {
    /// Takes conv3d.
    pub conv3d: bool,
    /// Takes conv2d, as a conv3d of one frame. Its speed next to Burn's is not measured yet.
    pub conv2d: bool,
    /// Takes conv1d, as a conv3d of one row. Its speed next to Burn's is not measured yet.
    pub conv1d: bool,
    /// Takes transposed convolutions of these ranks.
    pub transposed: bool,
    /// The kernel family. A forward call that a forced algorithm cannot serve is left to Burn; a gradient
    /// takes `Auto`.
    pub algorithm: Algorithm,
    /// Leaves a call to Burn where its op is predicted to be faster than these kernels. Results of Burn's
    /// conv2d and conv1d may store channels last. Calls with a forced algorithm are taken.
    pub leave_slower: bool,
    /// Predicts Burn's op. None: [`burn_seconds`](conv_kernels::conv3d::burn_seconds), where the build has
    /// Burn's tuner (its feature `autotune`); without it no call is left.
    pub burn_seconds: Option<BurnSeconds>,
    /// The device that the model will run on, to be checked; where there is none, `Device::default()` is.
    /// Convolutions of every CubeCL device are taken, whatever is named here.
    pub device: Option<Device>,
}

impl Default for PatchOptions {
    fn default() -> Self {
        Self {
            conv3d: true,
            conv2d: false,
            conv1d: false,
            transposed: true,
            algorithm: Algorithm::Auto,
            leave_slower: true,
            burn_seconds: None,
            device: None,
        }
    }
}

impl PatchOptions {
    /// conv3d and conv_transpose3d with their gradients.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The convolutions of all three ranks, with their gradients and transposes.
    #[must_use]
    pub fn all() -> Self {
        Self { conv2d: true, conv1d: true, ..Self::default() }
    }
}

setters!(PatchOptions {
    /// Sets whether conv3d is taken.
    with_conv3d(conv3d: bool);
    /// Sets whether conv2d is taken.
    with_conv2d(conv2d: bool);
    /// Sets whether conv1d is taken.
    with_conv1d(conv1d: bool);
    /// Sets whether transposed convolutions are taken.
    with_transposed(transposed: bool);
    /// Forces a kernel family.
    with_algorithm(algorithm: Algorithm);
    /// Sets whether calls are left to Burn where its op is predicted to be faster.
    with_leave_slower(leave_slower: bool);
    /// Sets what predicts Burn's op, such as a table of measured times.
    with_burn_seconds(burn_seconds: BurnSeconds);
    /// Names the device that the model will run on.
    with_device(device: Device);
});

/// Why [`patch`](super::patch()) could not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PatchError {
    /// This build has no fusion layer, or no GPU backend.
    NoFusion,
    /// The device, as it prints itself, is not a CubeCL device.
    NotCube(String),
    /// Burn has already read its list of optimizations; the operations that were asked for too late.
    TooLate(String),
    /// Another optimization of this name is registered with Burn: a second version of this crate in the
    /// program.
    NameTaken(String),
    /// The options name no operation.
    Nothing,
}

impl fmt::Display for PatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFusion => f.write_str(
                "patch: this build cannot replace Burn's convolutions, it needs the features `fusion` and `wgpu`, \
                 `cuda` or `rocm` of burn-conv-ops",
            ),
            Self::NotCube(device) => write!(
                f,
                "patch: {device} is not a CubeCL device, Burn's convolutions can be replaced on wgpu, Vulkan, Metal, \
                 CUDA and ROCm; name another device with PatchOptions::with_device"
            ),
            Self::TooLate(operations) => write!(
                f,
                "patch: a tensor operation ran before {operations} was asked for; call patch at the start of the \
                 program, before the first tensor is made"
            ),
            Self::NameTaken(name) => write!(
                f,
                "patch: an optimization named `{name}` is registered with Burn already; this program holds two \
                 versions of burn-conv-ops, call patch of one of them"
            ),
            Self::Nothing => {
                f.write_str("patch: the options name no operation, set one of conv1d, conv2d and conv3d")
            }
        }
    }
}

impl std::error::Error for PatchError {}
