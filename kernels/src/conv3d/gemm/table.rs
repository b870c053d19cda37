//! Index tables in shared memory: each K index (or, in the weight gradient, each M index) is divided out by
//! one thread for the whole threadgroup.
//!
//! ```text
//! pass                      table       entry                 length
//! forward, input gradient   K           channel tap           table_entries, in two halves
//! weight gradient           K           output position       the same
//!                           M           channel tap           tile_m, filled once
//!
//!   +-----------+-----------+
//!   | half 0    | half 1    |     a ring: one half is read while the other is filled
//!   +-----------+-----------+
//! ```
//!
//! Bytes: `table_bytes` in [`super::config`].

use super::index::{ChannelTap, GatherArgs, OutputPosition, RANGE_BIT};
use super::stage::{GemmShape, WorkTile};
use super::tap_check::TapCheck;
use crate::conv3d::pass::Pass;
use cubecl::prelude::*;

/// What a table holds and who fills it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TableLayout {
    pub(super) entries: usize,
    /// Whether it keeps weight offsets (result offsets of output positions).
    pub(super) offsets: bool,
    pub(super) pass: Pass,
    pub(super) check: TapCheck,
    /// Threads of the threadgroup.
    pub(super) threads: usize,
}

/// Channel taps or output positions in shared memory, as a struct of arrays.
#[derive(CubeType)]
pub(super) struct IndexTable {
    source: Shared<[usize]>,
    bits: Shared<[u32]>,
    /// One element where the table keeps no offsets.
    weight: Shared<[usize]>,
    /// Coordinates along D, H, W; one element where masks check the taps.
    steps: Shared<[u32]>,
    #[cube(comptime)]
    pub(super) layout: TableLayout,
}

#[cube]
impl IndexTable {
    pub(super) fn new(#[comptime] layout: TableLayout) -> IndexTable {
        let length = comptime!(layout.entries);
        let steps = comptime!(layout.check.needs_coordinates());
        IndexTable {
            source: Shared::<[usize]>::new_slice(length),
            bits: Shared::<[u32]>::new_slice(length),
            weight: Shared::<[usize]>::new_slice(comptime!(if layout.offsets { length } else { 1 })),
            steps: Shared::<[u32]>::new_slice(comptime!(if steps { 3 * length } else { 1 })),
            layout,
        }
    }

    fn set(&mut self, at: usize, tap: &ChannelTap) {
        self.source[at] = tap.source;
        if comptime!(self.layout.offsets) {
            self.weight[at] = tap.weight;
        }
        self.bits[at] = tap.bits;
        if comptime!(self.layout.check.needs_coordinates()) {
            self.steps[3 * at] = tap.d;
            self.steps[3 * at + 1] = tap.h;
            self.steps[3 * at + 2] = tap.w;
        }
    }

    /// A channel tap without its weight offset.
    pub(super) fn tap(&self, at: usize) -> ChannelTap {
        let mut d = 0u32;
        let mut h = 0u32;
        let mut w = 0u32;
        if comptime!(self.layout.check.needs_coordinates()) {
            d = self.steps[3 * at];
            h = self.steps[3 * at + 1];
            w = self.steps[3 * at + 2];
        }
        ChannelTap { source: self.source[at], weight: 0usize.runtime(), bits: self.bits[at], d, h, w }
    }

    /// The weight offset of an entry's channel tap, the result offset of its position.
    pub(super) fn offset(&self, at: usize) -> usize {
        self.weight[at]
    }

    /// Whether the K index of an entry is within K.
    pub(super) fn exists(&self, at: usize) -> bool {
        let mut exists = self.bits[at] < RANGE_BIT;
        if comptime!(self.layout.pass == Pass::WeightGradient) {
            exists = self.bits[at] >= RANGE_BIT;
        }
        exists
    }

    /// Stores an output position, with its result offset in place of the weight offset.
    fn set_position(&mut self, at: usize, position: &OutputPosition, exists: bool) {
        let entry = ChannelTap {
            source: position.source,
            weight: position.out,
            bits: position.mask | select(exists, RANGE_BIT, 0u32),
            d: position.d as u32,
            h: position.h as u32,
            w: position.w as u32,
        };
        self.set(at, &entry);
    }

    /// The output position of an entry.
    pub(super) fn position(&self, at: usize) -> OutputPosition {
        let entry = self.tap(at);
        OutputPosition {
            source: entry.source,
            out: self.weight[at],
            mask: entry.bits,
            d: entry.d as i32,
            h: entry.h as i32,
            w: entry.w as i32,
        }
    }

    /// Fills the half of the table that starts at entry `to` with the K indices from `first` on, one per
    /// thread.
    pub(super) fn fill_half(&mut self, gather: &GatherArgs, to: usize, first: u32, end_k: u32) {
        let TableLayout { entries, pass, check, threads, .. } = comptime!(self.layout);
        // Unrolled: drivers wait for loads in flight at the end of a loop.
        #[unroll]
        for iteration in 0..comptime!((entries / 2).div_ceil(threads)) {
            let at = UNIT_POS as usize + comptime!(iteration * threads);
            if comptime!((entries / 2).is_multiple_of(threads)) || at < comptime!(entries / 2) {
                let k = first + at as u32;
                if comptime!(pass == Pass::WeightGradient) {
                    self.set_position(to + at, &gather.position(min(k, end_k - 1u32), check), k < end_k);
                } else {
                    self.set(to + at, &gather.channel_tap(k, k < end_k, pass, check));
                }
            }
        }
    }

    /// Fills the other half of the table when the stage at entry `at` is the first to read its half: all
    /// threads are done with the old entries of the other half, and none needs its new ones yet.
    pub(super) fn fill_other_half(&mut self, gather: &GatherArgs, at: usize, stage_k: u32, end_k: u32) {
        let entries = comptime!(self.layout.entries);
        let in_half = at % comptime!(entries / 2);
        if in_half == 0usize {
            let to = (at + comptime!(entries / 2)) % entries;
            self.fill_half(gather, to, stage_k + comptime!(entries as u32 / 2), end_k);
        }
    }

    /// Fills the other half of the table while an inner loop reads the stages of the half that begins at
    /// entry `at` with K index `stage_k`. Returns where that loop ends: behind the half, or at `end_k`.
    pub(super) fn fill_next_half(&mut self, gather: &GatherArgs, at: usize, stage_k: u32, end_k: u32) -> u32 {
        let entries = comptime!(self.layout.entries);
        let next_k = stage_k + comptime!(entries as u32 / 2);
        if next_k < end_k {
            self.fill_half(gather, comptime!(entries / 2) - at, next_k, end_k);
        }
        min(next_k, end_k)
    }

    /// Fills the table of a tile's channel taps, one per thread. Clamped: results past M are not stored.
    pub(super) fn fill_taps(&mut self, gather: &GatherArgs, work: &WorkTile, shape: &GemmShape) {
        let TableLayout { entries, check, threads, .. } = comptime!(self.layout);
        let first_channel = gather.source_channel(work.group * shape.source_channels);
        let mut in_tile = UNIT_POS as usize;
        while in_tile < entries {
            let m = min(work.first_m + in_tile as u32, shape.m - 1u32);
            let mut tap = gather.weight_gradient_tap(m, check);
            tap.source += first_channel;
            self.set(in_tile, &tap);
            in_tile += threads;
        }
    }
}
