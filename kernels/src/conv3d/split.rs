//! Split-K: how long sums are cut into slices that different threadgroups compute; `reduce.rs` adds the
//! slices.
//!
//! A sum's rounding error grows with the number of serial additions, so that number is bounded however long
//! the sum is, and the serial sums are added as trees (in a threadgroup, over the slices):
//!
//! | kernel                        | serial additions, at most                                     |
//! |-------------------------------|---------------------------------------------------------------|
//! | bias gradient, partials       | 8 trees of 8                                                  |
//! | direct                        | 64, then one per 64 of a thread's products (of 256 threads)   |
//! | depthwise, few outputs        | [`SERIAL_PRODUCTS`]                                           |
//! | matrix products, MMA or fp32  | [`ReductionSplit::LENGTH`]; 1024 where dw has few elements    |
//! | Winograd                      | 2048 tiles, then one per 2048 tiles                           |
//!
//! Slices are fewer and longer where their partials would exceed `Limits::workspace_bytes`: for matrix
//! products where dw has more than `workspace_bytes / 4 * 8192 / positions` elements. The forward pass and
//! the input gradient sum their `C/groups * taps` (`O/groups * taps`) products serially, or in the few slices
//! that fill the device.

use crate::limits::Limits;
use std::ops::RangeInclusive;

/// Products that a thread of a depthwise or few-outputs weight gradient adds serially, in registers, before
/// the threadgroup's tree.
pub(crate) const SERIAL_PRODUCTS: usize = 256;

/// Slices whose fp32 partials of `elements` results fit the workspace and one buffer; at least one.
pub(crate) fn affordable_slices(elements: usize, limits: &Limits) -> usize {
    slices_within(elements, limits.workspace_bytes.min(limits.buffer_bytes))
}

/// [`affordable_slices`] for `bytes` bytes of workspace.
pub(crate) fn slices_within(elements: usize, bytes: u64) -> usize {
    let slices = bytes / (4 * elements.max(1)) as u64;
    usize::try_from(slices).unwrap_or(usize::MAX).max(1)
}

/// The fewest stages of a slice of a matrix product: below, prologue and epilogue dominate.
pub(crate) const MIN_STAGES: usize = 8;

/// What speaks for a number of split-K slices: the one rule of all kernels.
#[derive(Clone, Copy)]
pub(crate) struct SliceCount {
    /// As many as fill the device.
    pub(crate) filling: usize,
    /// More would be too short for their prologue and epilogue.
    pub(crate) worthwhile: usize,
    /// As many as an accurate fp32 sum needs, whether worthwhile or not.
    pub(crate) accurate: usize,
    /// As many as the workspace holds.
    pub(crate) affordable: usize,
}

impl SliceCount {
    /// The number of slices; at least one.
    pub(crate) fn slices(self) -> usize {
        self.filling.min(self.worthwhile).max(self.accurate).min(self.affordable).max(1)
    }
}

/// Bytes that the device's copy moves while a partial of 8 bytes is written and read again: reductions reach
/// some four tenths of a copy's bandwidth (H200).
const PARTIAL_BYTES: f64 = 18.4;

/// What the threadgroups beyond whole waves take.
#[derive(Clone, Copy)]
pub(crate) enum LastWave {
    /// A whole wave, or this fraction of one where they fill less than half of it.
    Whole(f64),
    /// Their fraction of a wave, for threadgroups of different lengths make room for each other; at the end
    /// the device idles for this fraction.
    Idles(f64),
}

/// A product on matrix units, cut into tiles and split-K slices.
#[derive(Clone, Copy)]
pub(crate) struct TiledProduct {
    /// Tiles of one slice.
    pub(crate) tiles: usize,
    /// Multiply-adds of a tile, over all slices.
    pub(crate) products: f64,
    /// Threadgroups that the device runs at once.
    pub(crate) wave: usize,
    pub(crate) last: LastWave,
    /// Results.
    pub(crate) elements: usize,
}

impl TiledProduct {
    /// The time with so many slices, in multiply-adds at full waves' rate: waves, and the partials.
    pub(crate) fn cost(&self, slices: usize, limits: &Limits) -> f64 {
        let threadgroups = self.tiles * slices;
        let (full, rest) = (threadgroups / self.wave, threadgroups % self.wave);
        let last = match self.last {
            LastWave::Whole(_) if rest == 0 => 0.0,
            LastWave::Whole(half) if 2 * rest <= self.wave => half,
            LastWave::Whole(_) => 1.0,
            LastWave::Idles(fraction) => rest as f64 / self.wave as f64 + fraction,
        };
        let partial = PARTIAL_BYTES / limits.chip.bandwidth * (limits.chip.matrices / 2.0);
        let partials = if slices == 1 { 0.0 } else { partial * (self.elements * slices) as f64 };
        (full as f64 + last) * self.wave as f64 * self.products / slices as f64 + partials
    }

    /// The number of slices, of `candidates`, that takes the least time.
    pub(crate) fn fastest_slices(&self, candidates: RangeInclusive<usize>, limits: &Limits) -> usize {
        let cost = |slices: &usize| self.cost(*slices, limits);
        candidates.min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap_or(1)
    }
}

/// `count` parts in at most so many slices of the same length: the slices, and parts of each but the last.
pub(crate) fn even_slices(count: usize, slices: usize) -> (usize, usize) {
    let length = count.div_ceil(slices).max(1);
    (count.div_ceil(length).max(1), length)
}

/// How a long sum is cut into slices that different threadgroups compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ReductionSplit {
    /// Number of slices.
    pub(crate) slices: usize,
    /// K elements of every slice but the last.
    pub(crate) length: usize,
}

impl ReductionSplit {
    /// K elements of one slice where the workspace allows it: long enough for few partials, short enough for
    /// an accurate fp32 sum and a short-lived threadgroup.
    pub(crate) const LENGTH: usize = 8192;

    /// The split of `k` elements into `filling` slices, which fill the device, in multiples of `step`.
    pub(crate) fn filling(k: usize, elements: usize, filling: usize, step: usize, limits: &Limits) -> Self {
        let count = SliceCount {
            filling,
            worthwhile: k.div_ceil(MIN_STAGES * step),
            // Partials of few elements cost next to nothing compared with a tile's products.
            accurate: k.div_ceil((2 * elements).clamp(1024, Self::LENGTH)),
            affordable: affordable_slices(elements, limits),
        };
        let slices = count.slices();
        let length = k.div_ceil(slices).max(1).next_multiple_of(step);
        Self { slices: k.div_ceil(length).max(1), length }
    }

    /// The split of `k` elements for each of `elements` results: `4 * slices * elements` bytes of workspace.
    pub(crate) fn of(k: usize, elements: usize, limits: &Limits) -> Self {
        let affordable = affordable_slices(elements, limits);
        let (slices, length) = even_slices(k, k.div_ceil(Self::LENGTH).clamp(1, affordable));
        Self { slices, length }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_covers_every_k_element_once_within_the_workspace() {
        let limits = Limits { workspace_bytes: 4096, ..Limits::apple_m1() };
        for k in [0usize, 1, 8191, 8192, 8193, 100_000, 1 << 20] {
            for elements in [1usize, 7, 512, 1024, 5000] {
                let split = ReductionSplit::of(k, elements, &limits);
                assert!(split.slices >= 1 && split.slices * split.length >= k, "{k} {elements} {split:?}");
                assert!((split.slices - 1) * split.length < k.max(1), "an empty slice: {k} {split:?}");
                assert!(split.slices == 1 || split.slices * elements * 4 <= 4096, "{k} {elements} {split:?}");
            }
        }
    }

    /// Fewer than half a wave takes its own time, more a whole wave; nothing is left of whole waves.
    #[test]
    fn the_last_wave_counts_by_how_full_it_is() {
        let limits = Limits::apple_m1();
        let waves = |tiles, last| {
            let product = TiledProduct { tiles, products: 10.0, wave: 4, last, elements: 1 };
            product.cost(1, &limits) / (4.0 * 10.0)
        };
        for (tiles, whole, idles) in [(8, 2.0, 2.125), (9, 2.25, 2.375), (10, 2.25, 2.625), (11, 3.0, 2.875)]
        {
            assert_eq!(waves(tiles, LastWave::Whole(0.25)), whole, "{tiles}");
            assert_eq!(waves(tiles, LastWave::Idles(0.125)), idles, "{tiles}");
        }
    }

    /// Slices of at least eight stages, and at most 1024 elements, or twice as many as there are results.
    #[test]
    fn slices_are_neither_short_nor_inaccurate() {
        let limits = Limits::apple_m1();
        for (k, elements, filling, slices, length) in [
            (1024, 512, 1000, 8, 128),
            (1024, 512, 3, 3, 352),
            (8192, 512, 1, 8, 1024),
            (8192, 2048, 1, 2, 4096),
            (16384, 1 << 20, 1, 2, 8192),
        ] {
            let split = ReductionSplit::filling(k, elements, filling, 16, &limits);
            assert_eq!(split, ReductionSplit { slices, length }, "{k} {elements} {filling}");
        }
    }
}
