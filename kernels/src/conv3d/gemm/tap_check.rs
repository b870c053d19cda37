//! How a gathered GEMM tells whether a tap reads inside the source.
//!
//! | check       | padding                                  | a position and a tap carry | per load                     |
//! |-------------|------------------------------------------|----------------------------|------------------------------|
//! | Masks       | zero, at most [`MASK_BITS`] taps along   | a mask with a bit per tap  | one comparison               |
//! |             | every axis that reads it                 | and axis                   |                              |
//! | Coordinates | zero, any number of taps                 | three coordinates          | three comparisons            |
//! | Clamp       | replicate, any number of taps            | three coordinates          | three clamps, always inside  |

use super::gather::{AxisGather, Gather, axis_gathers};
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::{Conv3dProblem, PaddingMode};

/// Bits of a position's mask per axis: the most taps along an axis that may need one.
pub(crate) const MASK_BITS: usize = 10;

/// The check of a kernel. The file's header has the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TapCheck {
    /// By a bit of the position's mask.
    Masks,
    /// By coordinates.
    Coordinates,
    /// None: coordinates are clamped.
    Clamp,
}

impl TapCheck {
    /// The check of one launch.
    pub(super) fn of(gather: &Gather, padding: PaddingMode) -> Self {
        if padding == PaddingMode::Replicate {
            Self::Clamp
        } else if gather.iter().all(fits_a_mask) {
            Self::Masks
        } else {
            Self::Coordinates
        }
    }

    /// Whether positions and taps carry their coordinates.
    pub(super) fn needs_coordinates(self) -> bool {
        self != Self::Masks
    }
}

/// Whether a mask has a bit for every tap that may need one.
fn fits_a_mask(gather: &AxisGather) -> bool {
    gather.taps <= MASK_BITS || !gather.reads_padding()
}

/// Whether no gather of a pass checks its taps by coordinates.
pub(crate) fn has_few_taps(problem: &Conv3dProblem, pass: Pass) -> bool {
    let gathered = if pass == Pass::InputGradient { pass } else { Pass::Forward };
    padding_of(problem, pass) == PaddingMode::Replicate
        || (0..3).flat_map(|axis| axis_gathers(problem, gathered, axis)).all(|gather| fits_a_mask(&gather))
}

/// What a pass reads outside its source. Input gradients are launched without replicate padding (`fold.rs`).
pub(super) fn padding_of(problem: &Conv3dProblem, pass: Pass) -> PaddingMode {
    if pass == Pass::InputGradient { PaddingMode::Zeros } else { problem.window.padding_mode }
}

/// The bit of an axis' tap 0 in a mask. Zero where no tap reads outside the source or coordinates decide:
/// taps then require no bits, and only then may there be more than [`MASK_BITS`].
pub(super) fn mask_bit(gather: &AxisGather, axis: usize, check: TapCheck) -> u32 {
    if check.needs_coordinates() || !gather.reads_padding() { 0 } else { 1 << (MASK_BITS * axis) }
}
