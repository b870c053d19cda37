//! Host decisions of [`weight`](super::weight): the tile, how taps and K elements are split, the workspace.

use super::products::{OUTPUTS, SECTIONS, THREADS, section_pitch};
use crate::causal_conv1d::problem::{CausalConv1dProblem, Conv1dLayout};
use crate::dtype::FloatType;
use crate::limits::Limits;
use crate::operand::Operand;
use cubecl::prelude::*;

/// The most taps per threadgroup.
const MAX_TAPS: usize = 128;

/// The most tiles per threadgroup: a thread adds up to 128 K elements of each.
const MAX_TILES: usize = 8;

/// Comptime configuration of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct WideWeightTile {
    pub(super) layout: Conv1dLayout,
    /// Steps from the start of a vector to the first column.
    pub(super) shift: usize,
    /// Whether a tile's loads are all in flight at once, for devices that prefer that to occupancy.
    pub(super) unroll: bool,
}

impl WideWeightTile {
    /// Channels per tile: in `[B, T, C]` those of a 32-byte sector in fp32.
    pub(super) const fn rows(self) -> usize {
        match self.layout {
            Conv1dLayout::Bct => 1,
            Conv1dLayout::Btc => 8,
        }
    }

    /// Threads per channel.
    pub(super) const fn row_threads(self) -> usize {
        THREADS / self.rows()
    }

    /// Steps per tile.
    pub(super) fn steps(self) -> usize {
        self.row_threads() * OUTPUTS
    }

    /// Whether the next tile is prefetched during the products. `[B, T, C]` loads single elements, too many
    /// to hold in registers.
    pub(super) fn prefetches(self) -> bool {
        self.unroll && self.layout == Conv1dLayout::Bct
    }

    /// Vectors of a channel in a section of the columns: the tile's, the taps' and one for the shift.
    pub(super) const fn column_row(self) -> usize {
        self.row_threads() + MAX_TAPS / OUTPUTS + 1
    }

    /// Vectors of a channel in a section of the gradients; one of them pads the row.
    pub(super) const fn gradient_row(self) -> usize {
        self.row_threads() + 1
    }

    pub(super) const fn column_pitch(self) -> usize {
        section_pitch(self.rows() * self.column_row())
    }

    pub(super) const fn gradient_pitch(self) -> usize {
        section_pitch(self.rows() * self.gradient_row())
    }

    /// Bytes of shared memory.
    pub(super) const fn shared_bytes(self) -> usize {
        16 * SECTIONS * (self.column_pitch() + self.gradient_pitch())
    }

    /// Vectors of a tile's columns that a thread loads.
    pub(super) fn staged_vectors(self) -> usize {
        SECTIONS + (MAX_TAPS / 4 + usize::from(self.shift > 0)).div_ceil(self.row_threads())
    }
}

/// How taps and K elements are split over threads and threadgroups. An item is one tile of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WeightSplit {
    /// Threads along the taps.
    pub(super) lanes: usize,
    /// Threadgroups along the taps.
    pub(super) tap_blocks: usize,
    /// Tiles per row.
    pub(super) tiles: usize,
    pub(super) items_per_threadgroup: usize,
    /// Split-K slices.
    pub(super) slices: usize,
}

impl WeightSplit {
    pub(crate) fn of(problem: &CausalConv1dProblem, limits: &Limits) -> Self {
        let tile = WideWeightTile { layout: problem.layout, shift: 0, unroll: limits.unroll };
        let lanes = problem.width.div_ceil(OUTPUTS).next_power_of_two().min(MAX_TAPS / OUTPUTS);
        let tap_blocks = problem.width.div_ceil(lanes * OUTPUTS);
        let tiles = problem.length.div_ceil(tile.steps());
        let items = (problem.batch * tiles).max(1);
        let bytes = 4 * (problem.channels * (problem.width + 1)) as u64;
        let affordable = limits.workspace_bytes.min(limits.buffer_bytes) / bytes.max(1);
        let affordable = usize::try_from(affordable).unwrap_or(usize::MAX);
        let wanted =
            (4 * limits.cubes_in_flight).div_ceil(problem.channels.div_ceil(tile.rows()) * tap_blocks);
        // A few tiles per thread, unless the workspace is too small: this bounds the rounding error.
        let few = items.div_ceil(wanted.clamp(1, items)).min(MAX_TILES);
        let items_per_threadgroup = few.max(items.div_ceil(affordable.max(1)));
        Self {
            lanes,
            tap_blocks,
            tiles,
            items_per_threadgroup,
            slices: items.div_ceil(items_per_threadgroup),
        }
    }

    /// Number of split-K slices.
    pub(crate) fn slices(&self) -> usize {
        self.slices
    }

    /// An upper bound of the loop iterations of a thread.
    pub(crate) fn iterations(&self) -> usize {
        self.items_per_threadgroup * 40
    }
}

/// The workspace `[slices, C, W + 1]` of a split.
pub(crate) fn workspace(client: &Client, problem: &CausalConv1dProblem, split: WeightSplit) -> Operand {
    Operand::empty(client, &[split.slices, problem.channels, problem.width + 1], FloatType::F32)
}
