//! How long sums are cut into parts that different cubes compute; `reduce.rs` adds the parts.

use crate::limits::Limits;

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
    /// Terms of one part where the workspace allows it: long enough that the partials are few, short enough that a
    /// fp32 sum of them stays accurate and one cube's work stays brief.
    pub(crate) const LENGTH: usize = 8192;

    /// The split of `terms` terms over `filling` parts, which fill the device, in multiples of `step`.
    pub(crate) fn filling(
        terms: usize,
        elements: usize,
        filling: usize,
        step: usize,
        limits: &Limits,
    ) -> Self {
        let accurate = Self::of(terms, elements, limits);
        let affordable = affordable_parts(elements, limits);
        // A part of fewer than eight stages would spend its time on its ends.
        let wanted = filling.min(terms.div_ceil(8 * step));
        let parts = accurate.parts.max(wanted).min(affordable).max(1);
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
