//! How rows, channels and memory are cut: what the unrolled kernels decide on the host.

use super::bct::{Tile, TimeShareLaunch};
use super::btc::ChannelShareLaunch;
use super::{CHANNEL_UNITS, TIME_UNITS};
use crate::causal_conv1d::problem::{CausalConv1dProblem, Conv1dLayout};
use crate::dtype::FloatType;
use crate::half_words::WORD;
use crate::limits::Limits;
use crate::operand::Operand;
use cubecl::ir::ElemType;

/// Turns of a cube at most, but where the sums of more cubes would not fit: a unit adds the terms of a turn,
/// up to 16, in a row, so that the error of dw and db does not grow with their number.
const MOST_TURNS: usize = 64;

/// How the work along time is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimeCut {
    units: usize,
    pub(super) lanes: usize,
    pub(super) groups: usize,
    /// Turns of a row, segments of a row, and turns of a segment.
    pub(super) turns: usize,
    pub(super) segments: usize,
    pub(super) segment_turns: usize,
    pub(super) items_per_cube: usize,
    pub(super) parts: usize,
}

impl TimeCut {
    /// The cut for the runs of a tile.
    pub(super) fn of(problem: &CausalConv1dProblem, tile: Tile, limits: &Limits) -> Self {
        let (run, together) = (tile.run(), tile.together);
        let runs = problem.length.div_ceil(run);
        let lanes = runs.div_ceil(together).next_power_of_two().clamp(4, tile.units);
        let groups = problem.channels.div_ceil(tile.units / lanes);
        let turns = runs.div_ceil(lanes * together);
        // Rows are cut where they are too few for the device; every cut costs a turn.
        let wanted = 16 * limits.cubes_in_flight;
        let segments = (wanted / (problem.batch * groups)).clamp(1, turns.div_ceil(4));
        let segment_turns = turns.div_ceil(segments).min(MOST_TURNS);
        let segments = turns.div_ceil(segment_turns);
        let items = problem.batch * segments;
        // A few turns are done before another launch would have begun; those of a smaller cube are shorter.
        let items_per_cube = if items * segment_turns * tile.units <= 8 * TIME_UNITS {
            items
        } else {
            (items * groups / wanted).min(MOST_TURNS / segment_turns).clamp(1, items)
        };
        let items_per_cube = items_per_cube.max(items.div_ceil(affordable(problem, limits)));
        Self {
            units: tile.units,
            lanes,
            groups,
            turns,
            segments,
            segment_turns,
            items_per_cube,
            parts: items.div_ceil(items_per_cube),
        }
    }

    /// Backward: turns of a cube, those for halos too.
    pub(super) fn turns_of_cube(&self) -> usize {
        self.items_per_cube * (self.segment_turns + 1)
    }

    pub(super) fn launch(&self, problem: &CausalConv1dProblem, cuts: usize) -> TimeShareLaunch {
        TimeShareLaunch::new(
            self.lanes as u32,
            self.lanes as u32,
            (self.units / self.lanes) as u32,
            self.groups as u32,
            cuts as u32,
            self.turns as u32,
            self.segment_turns as u32,
            (problem.batch * self.segments) as u32,
            self.items_per_cube as u32,
        )
    }
}

/// How the work along channels is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChannelCut {
    pub(super) lanes: usize,
    pub(super) groups: usize,
    /// Turns of a run and steps of a turn, runs of a row of the batch.
    pub(super) turns: usize,
    pub(super) steps: usize,
    pub(super) runs: usize,
    pub(super) parts: usize,
}

impl ChannelCut {
    /// The cut for turns of so many steps.
    pub(super) fn of(problem: &CausalConv1dProblem, steps: usize, limits: &Limits) -> Self {
        let quads = problem.channels.div_ceil(4);
        let lanes = quads.next_power_of_two().clamp(1, 32);
        let groups = quads.div_ceil(lanes);
        let rows = CHANNEL_UNITS / lanes;
        let turns_of_row = problem.length.div_ceil(steps);
        let parts = |turns: usize| (problem.batch * turns_of_row.div_ceil(turns)).div_ceil(rows);
        // Long runs read few steps twice; there should be enough of them for the device, and their sums have
        // to fit.
        let wanted = 3 * limits.cubes_in_flight;
        let mut turns = turns_of_row.next_power_of_two().clamp(1, 128 / steps);
        while turns * steps > 16 && parts(turns) * groups < wanted {
            turns /= 2;
        }
        while parts(turns) > affordable(problem, limits) && turns < turns_of_row {
            turns *= 2;
        }
        Self { lanes, groups, turns, steps, runs: turns_of_row.div_ceil(turns), parts: parts(turns) }
    }

    pub(super) fn launch(&self, problem: &CausalConv1dProblem) -> ChannelShareLaunch {
        ChannelShareLaunch::new(
            self.lanes as u32,
            self.lanes as u32,
            (CHANNEL_UNITS / self.lanes) as u32,
            self.groups as u32,
            self.runs as u32,
            (problem.batch * self.runs) as u32,
            self.turns as u32,
            (self.turns * self.steps) as u32,
        )
    }
}

/// Parts of dw and db that the workspace holds, at least 1.
fn affordable(problem: &CausalConv1dProblem, limits: &Limits) -> usize {
    let bytes = 4 * (problem.channels * (problem.width + 1)) as u64;
    usize::try_from(limits.workspace_bytes / bytes.max(1)).unwrap_or(usize::MAX).max(1)
}

/// How memory is read along the layout's last axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// Elements, one by one.
    One,
    /// Vectors of four elements.
    Four,
    /// Eight elements as four words.
    Words,
}

impl Read {
    /// The most that lies aligned in every tensor. Words only along time, where a unit's registers allow for
    /// eight neighbours.
    pub(super) fn of(layout: Conv1dLayout, operands: &[&Operand], limits: &Limits) -> Self {
        let along_time = layout == Conv1dLayout::Bct;
        let [line, across] = if along_time { [2, 1] } else { [1, 2] };
        let aligned = |count: usize| {
            operands.iter().all(|operand| {
                let start = operand.handle.offset_start.unwrap_or(0);
                operand.strides[line] == 1
                    && operand.shape[line].is_multiple_of(count)
                    && [0, across].iter().all(|axis| operand.strides[*axis].is_multiple_of(count))
                    && start.is_multiple_of((count * operand.dtype.size()) as u64)
            })
        };
        match () {
            () if along_time && limits.halves_in_words && operands[0].dtype.size() == 2 && aligned(8) => {
                Self::Words
            }
            () if aligned(4) => Self::Four,
            () => Self::One,
        }
    }

    /// Elements of a vector.
    pub(super) fn elements(self) -> usize {
        match self {
            Self::One => 1,
            Self::Four => 4,
            Self::Words => 8,
        }
    }

    /// Vector size of the kernel's arguments, and the type of what is in them.
    pub(super) fn vector(self, dtype: FloatType) -> (usize, ElemType) {
        match self {
            Self::One | Self::Four => (self.elements(), dtype.elem()),
            Self::Words => (4, WORD),
        }
    }
}
