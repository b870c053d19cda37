//! This crate's kernels under unmodified Burn models.
//!
//! ```no_run
//! fn main() -> Result<(), burn_conv_ops::PatchError> {
//!     burn_conv_ops::patch_conv3d()?; // before the first tensor operation
//!     // Any model: written with `burn::nn`, imported from ONNX, of another crate.
//!     Ok(())
//! }
//! ```
//!
//! [`patch`] registers an optimization with Burn's fusion layer. Wherever a model calls Burn's convolutions
//! or their gradients, the optimization runs this crate's kernels instead; the operations between them are
//! fused by Burn's own fusers as before. Where the kernels cannot serve a call (its dtype, its shape, a limit
//! of the device) or are predicted to be slower, Burn's operation runs.
//!
//! Nothing in a result says who computed it, so [`report`] counts: how many convolutions Burn ran, how many
//! of them ran here. `report().recorded() == report().served()` belongs in a test of your own. For each kind
//! of operation one line at level info, target `burn_conv_ops`, says that it was taken, and one why it was
//! left.
//!
//! # Limits
//!
//! - Burn's feature `fusion` and a CubeCL device (wgpu, Vulkan, Metal, CUDA, ROCm) are required.
//! - Burn's scheduler may run a block unfused, in the order of the program. Convolutions of such a block are
//!   Burn's; [`Report::missed`] counts them.
//! - Optimizations registered by others, and the removal of one of Burn's, do not reach operations that share
//!   a block with a convolution.
//! - Results are contiguous, where Burn's conv2d and conv1d may store channels last.

#[cfg(not(all(feature = "fusion", feature = "cubecl")))]
mod absent;
#[cfg(all(feature = "fusion", feature = "cubecl"))]
mod fusion;
mod options;
mod report;

#[cfg(not(all(feature = "fusion", feature = "cubecl")))]
use absent as layer;
#[cfg(all(feature = "fusion", feature = "cubecl"))]
use fusion as layer;

pub use conv_kernels::Limits;
pub use conv_kernels::conv3d::{Conv3dProblem, Pass};
pub use options::{BurnSeconds, PatchError, PatchOptions};
pub use report::{OpCount, Report};

/// Runs this crate's kernels wherever a model calls the convolutions that `options` names.
///
/// To be called before the first tensor operation of the process: Burn reads its list of optimizations then,
/// once. Afterwards [`unpatch`] and `patch` switch at any time. A second call replaces the options of the
/// first.
///
/// # Errors
/// [`PatchError::TooLate`] after the first tensor operation, [`PatchError::NoFusion`] in a build without
/// Burn's fusion layer or without a GPU backend, [`PatchError::NotCube`] for a device that is not CubeCL's,
/// [`PatchError::NameTaken`] where another version of this crate has registered, and [`PatchError::Nothing`]
/// for options that name no operation. After an error nothing has changed.
pub fn patch(options: PatchOptions) -> Result<(), PatchError> {
    if !(options.conv1d || options.conv2d || options.conv3d) {
        return Err(PatchError::Nothing);
    }
    layer::patch(options)
}

/// [`patch`] with the default options: conv3d, its gradients and conv_transpose3d, on the default device.
///
/// # Errors
/// As [`patch`].
pub fn patch_conv3d() -> Result<(), PatchError> {
    patch(PatchOptions::new())
}

/// Leaves all convolutions to Burn, from the next block of operations that runs. Burn runs operations later
/// than the program calls them; `Device::sync` before the call makes the switch sharp.
pub fn unpatch() {
    layer::unpatch();
}

/// Whether convolutions run on this crate's kernels, as far as they can.
pub fn is_patched() -> bool {
    layer::is_patched()
}

/// What ran while the process was patched. Operations that Burn has recorded and not yet run are not in it;
/// `Device::sync` before the call runs them.
pub fn report() -> Report {
    layer::report()
}
