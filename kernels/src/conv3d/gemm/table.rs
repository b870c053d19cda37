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

/// Channel taps or output positions in shared memory, as a struct of arrays.
#[derive(CubeType)]
pub(crate) struct IndexTable {
    pub(crate) source: Shared<[usize]>,
    pub(crate) bits: Shared<[u32]>,
    /// One element where the table keeps no weight offsets.
    pub(crate) weight: Shared<[usize]>,
    /// Coordinates along D, H, W; one element where masks check the taps.
    steps: Shared<[u32]>,
    /// Whether the table keeps weight offsets.
    #[cube(comptime)]
    keeps_weight: bool,
}

#[cube]
impl IndexTable {
    pub(crate) fn new(
        #[comptime] length: usize,
        #[comptime] weight: bool,
        #[comptime] steps: bool,
    ) -> IndexTable {
        IndexTable {
            source: Shared::<[usize]>::new_slice(length),
            bits: Shared::<[u32]>::new_slice(length),
            weight: Shared::<[usize]>::new_slice(comptime!(if weight { length } else { 1 })),
            steps: Shared::<[u32]>::new_slice(comptime!(if steps { 3 * length } else { 1 })),
            keeps_weight: weight,
        }
    }

    pub(crate) fn set(&mut self, at: usize, tap: &ChannelTap, #[comptime] steps: bool) {
        self.source[at] = tap.source;
        if comptime!(self.keeps_weight) {
            self.weight[at] = tap.weight;
        }
        self.bits[at] = tap.bits;
        if steps {
            self.steps[3 * at] = tap.d;
            self.steps[3 * at + 1] = tap.h;
            self.steps[3 * at + 2] = tap.w;
        }
    }

    /// A channel tap without its weight offset.
    pub(crate) fn get(&self, at: usize, #[comptime] steps: bool) -> ChannelTap {
        let mut d = 0u32;
        let mut h = 0u32;
        let mut w = 0u32;
        if steps {
            d = self.steps[3 * at];
            h = self.steps[3 * at + 1];
            w = self.steps[3 * at + 2];
        }
        ChannelTap { source: self.source[at], weight: 0usize.runtime(), bits: self.bits[at], d, h, w }
    }

    /// Whether the K index of an entry is within K.
    pub(crate) fn exists(&self, at: usize, #[comptime] pass: Pass) -> bool {
        let mut exists = self.bits[at] < RANGE_BIT;
        if comptime!(pass == Pass::WeightGradient) {
            exists = self.bits[at] >= RANGE_BIT;
        }
        exists
    }

    /// Stores an output position, with its result offset in place of the weight offset.
    pub(crate) fn set_position(
        &mut self,
        at: usize,
        position: &OutputPosition,
        exists: bool,
        #[comptime] steps: bool,
    ) {
        let entry = ChannelTap {
            source: position.source,
            weight: position.out,
            bits: position.mask | select(exists, RANGE_BIT, 0u32),
            d: position.d as u32,
            h: position.h as u32,
            w: position.w as u32,
        };
        self.set(at, &entry, steps);
    }

    /// The output position of an entry.
    pub(crate) fn position(&self, at: usize, #[comptime] steps: bool) -> OutputPosition {
        let entry = self.get(at, steps);
        OutputPosition {
            source: entry.source,
            out: self.weight[at],
            mask: entry.bits,
            d: entry.d as i32,
            h: entry.h as i32,
            w: entry.w as i32,
        }
    }
}

/// Fills the half of the table that starts at entry `to` with the K indices from `first` on, one per thread.
#[cube]
pub(super) fn fill_half(
    table: &mut IndexTable,
    gather: &GatherArgs,
    to: usize,
    first: u32,
    end_k: u32,
    #[comptime] pass: Pass,
    #[comptime] check: TapCheck,
    #[comptime] entries: usize,
    #[comptime] threads: usize,
) {
    let steps = comptime!(check.needs_coordinates());
    // Unrolled: drivers wait for loads in flight at the end of a loop.
    #[unroll]
    for iteration in 0..comptime!((entries / 2).div_ceil(threads)) {
        let at = UNIT_POS as usize + comptime!(iteration * threads);
        if comptime!((entries / 2).is_multiple_of(threads)) || at < comptime!(entries / 2) {
            let k = first + at as u32;
            if comptime!(pass == Pass::WeightGradient) {
                table.set_position(to + at, &gather.position(min(k, end_k - 1u32), check), k < end_k, steps);
            } else {
                table.set(to + at, &gather.channel_tap(k, k < end_k, pass, check), steps);
            }
        }
    }
}

/// Fills the other half of the table when the stage at entry `at` is the first to read its half: all threads
/// are done with the old entries of the other half, and none needs its new ones yet.
#[cube]
pub(super) fn fill_other_half(
    table: &mut IndexTable,
    gather: &GatherArgs,
    at: usize,
    stage_k: u32,
    end_k: u32,
    #[comptime] pass: Pass,
    #[comptime] check: TapCheck,
    #[comptime] entries: usize,
    #[comptime] threads: usize,
) {
    let in_half = at % comptime!(entries / 2);
    if in_half == 0usize {
        let (to, first) = ((at + comptime!(entries / 2)) % entries, stage_k + comptime!(entries as u32 / 2));
        fill_half(table, gather, to, first, end_k, pass, check, entries, threads);
    }
}

/// Fills the other half of the table while an inner loop reads the stages of the half that begins at entry
/// `at` with K index `stage_k`. Returns where that loop ends: behind the half, or at `end_k`.
#[cube]
pub(super) fn fill_next_half(
    table: &mut IndexTable,
    gather: &GatherArgs,
    at: usize,
    stage_k: u32,
    end_k: u32,
    #[comptime] pass: Pass,
    #[comptime] check: TapCheck,
    #[comptime] entries: usize,
    #[comptime] threads: usize,
) -> u32 {
    let next_k = stage_k + comptime!(entries as u32 / 2);
    if next_k < end_k {
        let to = comptime!(entries / 2) - at;
        fill_half(table, gather, to, next_k, end_k, pass, check, entries, threads);
    }
    min(next_k, end_k)
}

/// Fills the table of a tile's channel taps, one per thread. Clamped: results past M are not stored.
#[cube]
pub(super) fn fill_taps(
    taps: &mut IndexTable,
    gather: &GatherArgs,
    work: &WorkTile,
    shape: &GemmShape,
    #[comptime] check: TapCheck,
    #[comptime] tile_m: usize,
    #[comptime] threads: usize,
) {
    let first_channel = gather.source_channel(work.group * shape.source_channels);
    let mut in_tile = UNIT_POS as usize;
    while in_tile < tile_m {
        let mut tap = gather.weight_gradient_tap(min(work.first_m + in_tile as u32, shape.m - 1u32), check);
        tap.source += first_channel;
        taps.set(in_tile, &tap, comptime!(check.needs_coordinates()));
        in_tile += threads;
    }
}
