//! conv3d as implicit GEMM with a shared input window (halo tile), on MMA units: shared memory holds every
//! source element of a tile once for all KH x KW taps ([`kernel`]). For 1x1 windows over contiguous frames:
//! [`contiguous`]. The weights are packed first ([`pack`]), padded to whole tiles. With few tiles the GEMM is
//! split along K ([`launch`]). The weight gradient: [`weight`].
//!
//! Declined:
//!
//! - dtypes without MMA;
//! - a forward pass or weight gradient with a stride in H or W;
//! - an input gradient one of whose residue classes has no tap;
//! - more than 10 depth taps (forward, dx), more than 10 taps along an axis that reads zero padding;
//! - reflect and circular padding, and modes that differ between axes (of a stream: between H and W);
//! - windows that do not fit shared memory, packed weights above `Limits::workspace_bytes`;
//! - what the gathered GEMM declines ([`super::gemm`]).
//!
//! # Safety
//!
//! The contract of every launch in [`launch`] and [`weight`]; a launch states only what it adds.
//!
//! - Operands have the problem's shapes and dtype, and the plan serves the launched problem: both were
//!   checked before.
//! - The address type reaches every offset of every operand, and every linear index of the launch.
//! - Threadgroups past the end of a dispatch's span exit before they load or store anything.
//! - No buffer that a kernel writes is one that it reads, and no two threads write one element.

mod config;
mod contiguous;
mod epilogue;
mod extents;
mod kernel;
mod launch;
mod pack;
mod phases;
mod tiling;
pub(crate) mod weight;

pub use config::WindowTile;
#[cfg(test)]
pub(crate) use extents::packed_bytes;
pub(crate) use extents::{cost, extent, is_pointwise_in_frame, serves, taps_of_window, threadgroups};
pub use launch::WindowKernel;
pub use weight::WindowWeightTile;

use super::gemm::fragment;
use super::pass::Pass;
use super::problem::Conv3dProblem;
use crate::limits::Limits;

/// The tiles of the forward pass and the input gradient that serve the pass.
pub(crate) fn tiles(
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> impl Iterator<Item = WindowTile> {
    let tiles = WindowTile::all(fragment(problem, limits)).iter().copied();
    tiles.filter(move |tile| serves(problem, pass, tile, limits))
}

/// The kernels that serve the pass.
pub(crate) fn kernels(
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> impl Iterator<Item = WindowKernel> {
    let weights = weight::tiles(problem, pass, limits).map(WindowKernel::Weight);
    tiles(problem, pass, limits).map(WindowKernel::Gemm).chain(weights)
}
