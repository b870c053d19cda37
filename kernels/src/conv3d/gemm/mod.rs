//! conv3d as a gathered implicit GEMM: one operand is gathered from the tensor (an im2col matrix that is
//! never stored). Behind [`super::Plan::Gemm`].
//!
//! ```text
//! pass               M                   N                K                    kernels
//! forward            output positions    O / groups       C / groups * taps    fma, mma
//! input gradient     input positions     C / groups       O / groups * taps    the same with packed weights,
//!                                                                              one launch per stride phase
//!   of patches       output positions    C / groups*taps  O / groups           the same
//! weight gradient    C / groups * taps   O / groups       output positions     weight, mma_weight,
//!                                                                              contiguous_weight
//! ```
//!
//! # Safety
//!
//! All launches of this module are unchecked. They are sound because:
//! - `check` has verified the operands' shapes and that [`serves`] holds for the launched problem;
//! - every index fits the address type, which `address_type` derives from the operands and the largest index;
//! - row, column and K indices past the end are clamped for loads or not loaded at all, and never stored;
//! - source offsets outside the tensor are not read (zeros) or mapped to an element (other padding): see
//!   [`tap_check`];
//! - vector widths come from [`vectors`]: vectors are aligned, contiguous and within one row of the operand;
//! - no operand overlaps the result, and each element of the result is written by one thread.

mod channels;
pub(super) mod config;
mod contiguous_weight;
mod depth;
mod fma;
mod fma_loop;
pub(crate) mod fragments;
pub(super) mod gather;
pub(super) mod index;
#[cfg(test)]
mod index_tests;
mod launch;
mod mma;
mod mma_loop;
mod mma_weight;
mod pack;
mod read;
mod slices;
pub(super) mod stage;
mod table;
pub(super) mod tap_check;
mod vectors;
mod weight;

pub use config::{GemmTile, MatrixTile, RegisterTile};
pub(super) use depth::{depth_tap_fraction, launches};
pub(crate) use gather::{is_patches, serves};
pub(super) use launch::launch_gather;
pub(super) use read::has_even_images;
pub(super) use slices::cost;
#[cfg(test)]
pub(super) use slices::k_iterations;
pub(super) use tap_check::has_few_taps;
pub(super) use vectors::{joined_vector_width, out_vector_width, weight_vector_width};

use super::pass::Pass;
use super::problem::Conv3dProblem;
use crate::dtype::FloatType;
use crate::limits::Limits;

/// The type that matrix units multiply for tensors of `dtype`, and the fragment's size. The type itself, or
/// fp32 where the device accumulates only that in fp32 (bf16 on Apple).
pub(crate) fn stage_type(dtype: FloatType, limits: &Limits) -> Option<(FloatType, usize)> {
    let offered = |dtype| limits.matrices.iter().copied().find(|(each, _)| *each == dtype);
    offered(dtype).or_else(|| offered(FloatType::F32).filter(|_| dtype == FloatType::Bf16))
}

/// The element type of a stage for matrix units and its vector width: 16 bytes, but four elements on Apple.
pub(super) fn stage_vector(fragment: usize, dtype: FloatType, limits: &Limits) -> (FloatType, usize) {
    let Some((stage, _)) = stage_type(dtype, limits) else {
        unreachable!("`check` has looked for matrix units")
    };
    (stage, if fragment == 8 { 4 } else { 16 / stage.size() })
}

/// Size of the device's MMA fragment; 0 if it has none for the problem's type.
pub(crate) fn fragment(problem: &Conv3dProblem, limits: &Limits) -> usize {
    stage_type(problem.dtype, limits).map_or(0, |(_, fragment)| fragment)
}

/// The tiles on matrix units that serve the pass.
pub(super) fn mma_tiles(
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> impl Iterator<Item = MatrixTile> {
    let fragment = if serves(problem, pass) { fragment(problem, limits) } else { 0 };
    MatrixTile::all(fragment).iter().copied()
}
