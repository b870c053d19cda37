//! One axis of the sub-pixel input gradient: input positions in blocks of one stride, and the windows that
//! reach them.
//!
//! ```text
//! position    p = block * stride + phase                                  0 <= phase < stride
//! tap k       reaches p from window (p + begin - k * dilation) / stride   where that divides
//!                                 = block + origin + j * step             j of `taps` offsets, the same
//!                                                                         for every block
//! ```
//!
//! At most one tap of a phase has offset j; a phase without one gets a weight of zero there.

use crate::conv3d::problem::Conv3dProblem;
use crate::geometry::AxisGeometry;

/// One axis of the input in blocks of `stride` positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AxisBlocks {
    pub(super) blocks: usize,
    /// Positions per block, at most those of the input.
    pub(super) phases: usize,
    /// Offsets from a block to the windows that reach it.
    pub(super) taps: usize,
    pub(super) step: usize,
    pub(super) origin: i64,
}

/// The blocks of an H x W slice: height and width.
pub(super) type FrameBlocks = [AxisBlocks; 2];

impl AxisBlocks {
    pub(super) fn of(axis: AxisGeometry) -> Self {
        let AxisGeometry { input, kernel, stride, dilation, padding: (begin, _) } = axis;
        let phases = stride.min(input);
        // The distance from the positions of phase 0 to the window of tap k, and the phase whose positions it
        // reaches.
        let offsets = (0..kernel).filter_map(|tap| {
            let distance = begin as i64 - (tap * dilation) as i64;
            let phase = (-distance).rem_euclid(stride as i64);
            ((phase as usize) < phases).then_some((distance + phase) / stride as i64)
        });
        let offsets: Vec<_> = offsets.collect();
        let (Some(last), Some(first)) = (offsets.iter().max(), offsets.iter().min()) else {
            return Self { blocks: input.div_ceil(stride), phases, taps: 0, step: 1, origin: 0 };
        };
        let step = offsets.iter().fold(0, |step, offset| gcd(step, (offset - first) as usize)).max(1);
        Self {
            blocks: input.div_ceil(stride),
            phases,
            taps: (last - first) as usize / step + 1,
            step,
            origin: *first,
        }
    }

    /// Elements from the first to the last that a block reads.
    pub(super) fn span(&self) -> usize {
        (self.taps.max(1) - 1) * self.step
    }
}

/// The greatest common divisor.
pub(super) fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The blocks of a problem's input.
pub(super) fn frame_blocks(problem: &Conv3dProblem) -> FrameBlocks {
    [1, 2].map(|axis| AxisBlocks::of(problem.axis(axis)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Every tap of every position is one of its block's offsets.
        #[test]
        fn offsets_are_the_windows_of_every_tap(
            input in 1usize..30, kernel in 1usize..8, stride in 1usize..6, dilation in 1usize..5, begin in 0usize..12,
        ) {
            let axis = AxisGeometry { input, kernel, stride, dilation, padding: (begin, 64) };
            let blocks = AxisBlocks::of(axis);
            let mut reached = vec![false; blocks.taps];
            for position in 0..input {
                let block = (position / stride) as i64;
                for tap in 0..kernel {
                    let distance = (position + begin) as i64 - (tap * dilation) as i64;
                    if distance.rem_euclid(stride as i64) == 0 {
                        let offset = distance.div_euclid(stride as i64) - block - blocks.origin;
                        prop_assert_eq!(offset.rem_euclid(blocks.step as i64), 0);
                        let j = offset / blocks.step as i64;
                        prop_assert!((0..blocks.taps as i64).contains(&j));
                        reached[j as usize] = true;
                    }
                }
            }
            // The first and the last offset are used.
            prop_assert!(blocks.taps == 0 || reached[0] && reached[blocks.taps - 1]);
        }
    }
}
