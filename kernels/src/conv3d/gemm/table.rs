//! What units share instead of each dividing it out: [`super::place`]'s terms, windows and columns in shared
//! memory.

use super::index::{ABSENT, Site, Tap, Walk};
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::PaddingMode;
use cubecl::prelude::*;

/// What units share instead of each dividing it out: the terms of two stages (forward, input gradient), their
/// windows or a tile's columns (weight gradient).
#[derive(CubeType)]
pub(crate) struct Table {
    pub(crate) source: Shared<[usize]>,
    /// Of one entry only where no one asks for it.
    pub(crate) weight: Shared<[usize]>,
    pub(crate) bits: Shared<[u32]>,
    /// Steps along D, H, W, where they are kept.
    steps: Shared<[u32]>,
}

#[cube]
impl Table {
    pub(crate) fn new(#[comptime] length: usize, #[comptime] weight: bool, #[comptime] steps: bool) -> Table {
        Table {
            source: Shared::<[usize]>::new_slice(length),
            weight: Shared::<[usize]>::new_slice(comptime!(if weight { length } else { 1 })),
            bits: Shared::<[u32]>::new_slice(length),
            steps: Shared::<[u32]>::new_slice(comptime!(if steps { 3 * length } else { 1 })),
        }
    }

    pub(crate) fn set(&mut self, at: usize, tap: &Tap, #[comptime] weight: bool, #[comptime] steps: bool) {
        self.source[at] = tap.source;
        if weight {
            self.weight[at] = tap.weight;
        }
        self.bits[at] = tap.bits;
        if steps {
            self.steps[3 * at] = tap.d;
            self.steps[3 * at + 1] = tap.h;
            self.steps[3 * at + 2] = tap.w;
        }
    }

    /// What places a site's read: all of an entry but the weight's offset.
    pub(crate) fn get(&self, at: usize, #[comptime] steps: bool) -> Tap {
        let mut d = 0u32;
        let mut h = 0u32;
        let mut w = 0u32;
        if steps {
            d = self.steps[3 * at];
            h = self.steps[3 * at + 1];
            w = self.steps[3 * at + 2];
        }
        Tap { source: self.source[at], weight: 0usize.runtime(), bits: self.bits[at], d, h, w }
    }

    /// Whether the entry's term (in the weight gradient, its window) exists.
    pub(crate) fn exists(&self, at: usize, #[comptime] pass: Pass) -> bool {
        let mut exists = self.bits[at] < ABSENT;
        if comptime!(pass == Pass::WeightGradient) {
            exists = self.bits[at] >= ABSENT;
        }
        exists
    }

    /// Keeps a window in place of a term, the offset of its results as the weight's.
    pub(crate) fn set_window(&mut self, at: usize, site: &Site, exists: bool, #[comptime] steps: bool) {
        let entry = Tap {
            source: site.source,
            weight: site.out,
            bits: site.mask | select(exists, ABSENT, 0u32),
            d: site.d as u32,
            h: site.h as u32,
            w: site.w as u32,
        };
        self.set(at, &entry, true, steps);
    }

    /// The window at a place.
    pub(crate) fn site(&self, at: usize, #[comptime] steps: bool) -> Site {
        let entry = self.get(at, steps);
        Site {
            source: entry.source,
            out: self.weight[at],
            mask: entry.bits,
            d: entry.d as i32,
            h: entry.h as i32,
            w: entry.w as i32,
        }
    }
}

/// Divides out half a table from term (in the weight gradient, window) `first` on, each by one unit, to the
/// entries from `to` on.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn fill_half(
    table: &mut Table,
    walk: &Walk,
    to: usize,
    first: u32,
    end_k: u32,
    #[comptime] pass: Pass,
    #[comptime] padding: PaddingMode,
    #[comptime] terms: usize,
    #[comptime] units: usize,
) {
    let steps = comptime!(padding == PaddingMode::Replicate);
    // No loop where a turn is enough: drivers wait for what is under way at a loop's end.
    #[unroll]
    for turn in 0..comptime!((terms / 2).div_ceil(units)) {
        let at = UNIT_POS as usize + comptime!(turn * units);
        if comptime!((terms / 2).is_multiple_of(units)) || at < comptime!(terms / 2) {
            let k = first + at as u32;
            if comptime!(pass == Pass::WeightGradient) {
                table.set_window(to + at, &walk.site(min(k, end_k - 1u32)), k < end_k, steps);
            } else {
                table.set(to + at, &walk.tap(k, k < end_k, pass), true, steps);
            }
        }
    }
}

/// Fills the other half of the table where the stage at `at` is the first to read its half: before it is
/// needed, and after all units have read what it held.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn fill_other_half(
    table: &mut Table,
    walk: &Walk,
    at: usize,
    stage_k: u32,
    end_k: u32,
    #[comptime] pass: Pass,
    #[comptime] padding: PaddingMode,
    #[comptime] terms: usize,
    #[comptime] units: usize,
) {
    let in_half = at % comptime!(terms / 2);
    if in_half == 0usize {
        let (to, first) = ((at + comptime!(terms / 2)) % terms, stage_k + comptime!(terms as u32 / 2));
        fill_half(table, walk, to, first, end_k, pass, padding, terms, units);
    }
}
