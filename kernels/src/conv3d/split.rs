//! How long sums are cut into parts that different cubes compute; `reduce.rs` adds the parts.
//!
//! A sum's error grows with the terms that are added one after the other, so these are a bounded number,
//! however long the sum is, and what they give meets in trees (in a cube, over the parts):
//!
//! | kernel                                     | terms one after the other, at most                    |
//! |--------------------------------------------|-------------------------------------------------------|
//! | bias gradient, partials                    | 8 eights                                              |
//! | direct                                     | 64, and as many 64s as a unit has (one of 256)        |
//! | depthwise, heads                           | [`RUN`]                                               |
//! | matrix products, on matrix units as well   | [`ReductionSplit::LENGTH`]; 1024 where dw has few elements |
//! | Winograd                                   | 2048 tiles, then as many 2048s as there are           |
//!
//! Where the partials of so many parts would pass `Limits::workspace_bytes` there are fewer, longer ones: for
//! matrix products, that is dw of more elements than `workspace_bytes / 4 * 8192 / positions`. The forward
//! pass and the input gradient sum their `C/groups * taps` (`O/groups * taps`) terms one after the other, or
//! in the few parts that fill the device.

use crate::limits::Limits;

/// Products that a unit of a depthwise or a head's weight gradient adds one after the other: it marches on
/// while its sums stay in registers, and every part ends with a tree over its units.
pub(crate) const RUN: usize = 256;

/// Parts whose fp32 partials of `elements` results fit the workspace and one buffer; at least one.
pub(crate) fn affordable_parts(elements: usize, limits: &Limits) -> usize {
    parts_within(elements, limits.workspace_bytes.min(limits.buffer_bytes))
}

/// [`affordable_parts`] of what else the workspace leaves.
pub(crate) fn parts_within(elements: usize, bytes: u64) -> usize {
    let parts = bytes / (4 * elements.max(1)) as u64;
    usize::try_from(parts).unwrap_or(usize::MAX).max(1)
}

/// How a long sum is cut into parts that different cubes compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReductionSplit {
    /// Number of parts.
    pub parts: usize,
    /// Terms of every part but the last.
    pub length: usize,
}

impl ReductionSplit {
    /// Terms of one part where the workspace allows it: long enough that the partials are few, short enough
    /// that a fp32 sum of them stays accurate and one cube's work stays brief.
    pub(crate) const LENGTH: usize = 8192;

    /// The split of `terms` terms over `filling` parts, which fill the device, in multiples of `step`.
    pub(crate) fn filling(
        terms: usize,
        elements: usize,
        filling: usize,
        step: usize,
        limits: &Limits,
    ) -> Self {
        let affordable = affordable_parts(elements, limits);
        // Partials of few elements cost next to nothing beside a tile's products: less than a thousandth of
        // their time on an H200.
        let accurate = terms.div_ceil((2 * elements).clamp(1024, Self::LENGTH));
        // A part of fewer than eight stages would spend its time on its ends.
        let wanted = filling.min(terms.div_ceil(8 * step));
        let parts = accurate.max(wanted).min(affordable).max(1);
        let length = terms.div_ceil(parts).max(1).next_multiple_of(step);
        Self { parts: terms.div_ceil(length).max(1), length }
    }

    /// The split of `terms` terms for each of `elements` results, `4 * parts * elements` bytes of workspace.
    pub fn of(terms: usize, elements: usize, limits: &Limits) -> Self {
        let affordable = affordable_parts(elements, limits);
        let parts = terms.div_ceil(Self::LENGTH).clamp(1, affordable);
        let length = terms.div_ceil(parts).max(1);
        Self { parts: terms.div_ceil(length).max(1), length }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_covers_every_term_once_within_the_workspace() {
        let limits = Limits { workspace_bytes: 4096, ..Limits::apple_m1() };
        for terms in [0usize, 1, 8191, 8192, 8193, 100_000, 1 << 20] {
            for elements in [1usize, 7, 512, 1024, 5000] {
                let split = ReductionSplit::of(terms, elements, &limits);
                assert!(
                    split.parts >= 1 && split.parts * split.length >= terms,
                    "{terms} {elements} {split:?}"
                );
                assert!((split.parts - 1) * split.length < terms.max(1), "an empty part: {terms} {split:?}");
                assert!(
                    split.parts == 1 || split.parts * elements * 4 <= 4096,
                    "{terms} {elements} {split:?}"
                );
            }
        }
    }
}
