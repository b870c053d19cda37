//! How a gathered GEMM tells whether a tap reads inside the source.
//!
//! | check       | padding                                  | a position and a tap carry | per load                     |
//! |-------------|------------------------------------------|----------------------------|------------------------------|
//! | Masks       | zero, at most [`MASK_BITS`] taps along   | a mask with a bit per tap  | one comparison               |
//! |             | every axis that reads it                 | and axis                   |                              |
//! | Coordinates | zero, any number of taps                 | three coordinates          | three comparisons            |
//! | Clamp       | replicate, any number of taps            | three coordinates          | three clamps, always inside  |
//! | Map         | a mode per axis, any number of taps      | three coordinates          | maps of `padding.rs`         |
//! | Joined      | the same, first frames in a cache        | three coordinates          | the same, selected strides   |

use super::gather::{AxisGather, Gather, axis_gathers};
use crate::conv3d::call::Conv3dCall;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::{Conv3dProblem, PaddingMode};

/// Bits of a position's mask per axis: the most taps along an axis that may need one.
pub(crate) const MASK_BITS: usize = 10;

const ZEROS: [PaddingMode; 3] = [PaddingMode::Zeros; 3];
const REPLICATE: [PaddingMode; 3] = [PaddingMode::Replicate; 3];

/// The check of a kernel. The file's header has the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TapCheck {
    /// By a bit of the position's mask.
    Masks,
    /// By coordinates.
    Coordinates,
    /// None: coordinates are clamped.
    Clamp,
    /// By the coordinates of axes with zeros; those of other axes are mapped into the source.
    Map([PaddingMode; 3]),
    /// As `Map`, and the first frames are in a second tensor (`read.rs`).
    Joined([PaddingMode; 3]),
}

impl TapCheck {
    /// The check of one launch.
    pub(super) fn of(gather: &Gather, padding: [PaddingMode; 3]) -> Self {
        match padding {
            ZEROS if gather.iter().all(fits_a_mask) => Self::Masks,
            ZEROS => Self::Coordinates,
            REPLICATE => Self::Clamp,
            modes => Self::Map(modes),
        }
    }

    /// The check of one launch of a forward pass or weight gradient, with a cache or without.
    pub(super) fn of_call(gather: &Gather, call: &Conv3dCall) -> Self {
        let padding = padding_of(&call.problem, call.pass);
        if call.cache.is_some() { Self::Joined(padding) } else { Self::of(gather, padding) }
    }

    /// The modes by which coordinates are mapped into the source; none where source offsets are sums.
    pub(super) fn maps(self) -> Option<[PaddingMode; 3]> {
        match self {
            Self::Masks | Self::Coordinates => None,
            Self::Clamp => Some(REPLICATE),
            Self::Map(modes) | Self::Joined(modes) => Some(modes),
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

/// Whether no gather of a pass checks its taps by coordinates, nor may have frames in a cache.
pub(crate) fn has_few_taps(problem: &Conv3dProblem, pass: Pass) -> bool {
    let gathered = if pass == Pass::InputGradient { pass } else { Pass::Forward };
    match padding_of(problem, pass) {
        ZEROS if problem.streaming => false,
        ZEROS => (0..3).flat_map(|axis| axis_gathers(problem, gathered, axis)).all(|axis| fits_a_mask(&axis)),
        modes => modes == REPLICATE && !problem.streaming,
    }
}

/// What a pass reads outside its source. Input gradients are launched with zeros alone (`fold.rs`).
pub(super) fn padding_of(problem: &Conv3dProblem, pass: Pass) -> [PaddingMode; 3] {
    if pass == Pass::InputGradient { ZEROS } else { problem.window.padding_mode }
}

/// The bit of an axis' tap 0 in a mask. Zero where no tap reads outside the source or coordinates decide:
/// taps then require no bits, and only then may there be more than [`MASK_BITS`].
pub(super) fn mask_bit(gather: &AxisGather, axis: usize, check: TapCheck) -> u32 {
    if check.needs_coordinates() || !gather.reads_padding() { 0 } else { 1 << (MASK_BITS * axis) }
}
