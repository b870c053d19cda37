//! Host-side decisions of these kernels: how rows and channels are divided among threadgroups, and how wide
//! memory is accessed.

use super::bct::{BctWorkLaunch, NarrowConfig};
use super::btc::BtcWorkLaunch;
use super::{BCT_THREADS, BTC_THREADS};
use crate::causal_conv1d::plan::Pass;
use crate::causal_conv1d::problem::{CausalConv1dProblem, Conv1dLayout};
use crate::dtype::FloatType;
use crate::half_words::WORD;
use crate::limits::Limits;
use crate::operand::Operand;
use cubecl::ir::ElemType;

/// The most tiles of a threadgroup, unless the workspace cannot hold that many partial sums. A thread adds up
/// to 16 products per tile in one chain: this bounds the error of dw and db.
const MAX_TILES: usize = 64;

/// Division of `[B, C, T]` work: a row is cut into segments, a segment into tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BctSchedule {
    threads: usize,
    /// Threads along a row.
    pub(super) lanes: usize,
    /// Threadgroups that cover the channels.
    pub(super) channel_groups: usize,
    pub(super) tiles_per_row: usize,
    pub(super) segments_per_row: usize,
    pub(super) tiles_per_segment: usize,
    pub(super) segments_per_threadgroup: usize,
    /// Partial sums of dw and db per channel.
    pub(super) partials: usize,
}

impl BctSchedule {
    pub(super) fn of(problem: &CausalConv1dProblem, config: NarrowConfig, limits: &Limits) -> Self {
        let slices = problem.length.div_ceil(config.slice_len());
        let lanes = slices.div_ceil(config.slices).next_power_of_two().clamp(4, config.threads);
        let channel_groups = problem.channels.div_ceil(config.threads / lanes);
        let tiles_per_row = slices.div_ceil(lanes * config.slices);
        // Rows are cut where there are too few of them to fill the device; every cut costs one more tile.
        let wanted = 16 * limits.cubes_in_flight;
        let segments_per_row =
            (wanted / (problem.batch * channel_groups)).clamp(1, tiles_per_row.div_ceil(4));
        let tiles_per_segment = tiles_per_row.div_ceil(segments_per_row).min(MAX_TILES);
        let segments_per_row = tiles_per_row.div_ceil(tiles_per_segment);
        let segments = problem.batch * segments_per_row;
        // Eight tiles (of 128 threads) take less time than a second launch that adds partial sums.
        let segments_per_threadgroup = if segments * tiles_per_segment * config.threads <= 8 * BCT_THREADS {
            segments
        } else {
            (segments * channel_groups / wanted).min(MAX_TILES / tiles_per_segment).clamp(1, segments)
        };
        let fewest = segments.div_ceil(max_partials(problem, limits));
        let segments_per_threadgroup = segments_per_threadgroup.max(fewest);
        Self {
            threads: config.threads,
            lanes,
            channel_groups,
            tiles_per_row,
            segments_per_row,
            tiles_per_segment,
            segments_per_threadgroup,
            partials: segments.div_ceil(segments_per_threadgroup),
        }
    }

    /// Backward: loop iterations of a threadgroup, one per tile and one per halo.
    pub(super) fn iterations(&self) -> usize {
        self.segments_per_threadgroup * (self.tiles_per_segment + 1)
    }

    pub(super) fn launch(&self, problem: &CausalConv1dProblem, blocks_per_row: usize) -> BctWorkLaunch {
        BctWorkLaunch {
            lanes: self.lanes as u32,
            lane_count: self.lanes as u32,
            rows: (self.threads / self.lanes) as u32,
            channel_groups: self.channel_groups as u32,
            blocks_per_row: blocks_per_row as u32,
            tiles_per_row: self.tiles_per_row as u32,
            tiles_per_segment: self.tiles_per_segment as u32,
            segments: (problem.batch * self.segments_per_row) as u32,
            segments_per_threadgroup: self.segments_per_threadgroup as u32,
        }
    }
}

/// Division of `[B, T, C]` work: a row is cut into segments, each the work of one thread per
/// [`NarrowConfig::channels`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BtcSchedule {
    /// Threads along the channels.
    pub(super) lanes: usize,
    /// Threadgroups that cover the channels.
    pub(super) channel_groups: usize,
    /// Loop iterations of a segment.
    pub(super) iterations: usize,
    pub(super) steps_per_iteration: usize,
    pub(super) segments_per_row: usize,
    /// Partial sums of dw and db per channel.
    pub(super) partials: usize,
}

impl BtcSchedule {
    pub(super) fn of(problem: &CausalConv1dProblem, config: NarrowConfig, limits: &Limits) -> Self {
        let steps_per_iteration = config.steps_per_iteration();
        let threads = problem.channels.div_ceil(config.channels);
        // A row of a threadgroup loads at least 128 bytes, a line of Apple's caches.
        let most_lanes = (128 / (config.channels * problem.dtype.size())).max(32);
        let lanes = threads.next_power_of_two().clamp(1, most_lanes);
        let channel_groups = threads.div_ceil(lanes);
        let rows = BTC_THREADS / lanes;
        let row_iterations = problem.length.div_ceil(steps_per_iteration);
        let partials =
            |iterations: usize| (problem.batch * row_iterations.div_ceil(iterations)).div_ceil(rows);
        // Long segments load fewer history steps twice; short ones fill the device. The workspace has to hold
        // the partial sums.
        let wanted = 3 * limits.cubes_in_flight;
        let mut iterations = row_iterations.next_power_of_two().clamp(1, 128 / steps_per_iteration);
        while iterations * steps_per_iteration > 16 && partials(iterations) * channel_groups < wanted {
            iterations /= 2;
        }
        while partials(iterations) > max_partials(problem, limits) && iterations < row_iterations {
            iterations *= 2;
        }
        Self {
            lanes,
            channel_groups,
            iterations,
            steps_per_iteration,
            segments_per_row: row_iterations.div_ceil(iterations),
            partials: partials(iterations),
        }
    }

    pub(super) fn launch(&self, problem: &CausalConv1dProblem) -> BtcWorkLaunch {
        BtcWorkLaunch {
            lanes: self.lanes as u32,
            lane_count: self.lanes as u32,
            rows: (BTC_THREADS / self.lanes) as u32,
            channel_groups: self.channel_groups as u32,
            segments_per_row: self.segments_per_row as u32,
            segments: (problem.batch * self.segments_per_row) as u32,
            iterations: self.iterations as u32,
            steps_per_segment: (self.iterations * self.steps_per_iteration) as u32,
        }
    }
}

/// Channels of a thread in `[B, T, C]`: they multiply its registers. Four where the device is kept busy by
/// much independent work per thread, one where it is by many threads.
pub(super) fn channels_per_thread(limits: &Limits) -> usize {
    if limits.unroll { 4 } else { 1 }
}

/// How many partial sums of dw and db the workspace holds per channel, at least 1.
fn max_partials(problem: &CausalConv1dProblem, limits: &Limits) -> usize {
    let bytes = 4 * (problem.channels * (problem.width + 1)) as u64;
    let partials = limits.workspace_bytes.min(limits.buffer_bytes) / bytes.max(1);
    usize::try_from(partials).unwrap_or(usize::MAX).max(1)
}

/// Width of the loads and stores along the layout's last axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VectorAccess {
    /// One element.
    Scalar,
    /// A vector of four elements.
    Vector4,
    /// Eight 16-bit elements as four words.
    Words,
}

impl VectorAccess {
    /// The widest access that is aligned in every tensor. Words only in `[B, C, T]`: in `[B, T, C]` eight
    /// channels per thread would need twice the registers. Where occupancy hides latency, the backward pass
    /// in `[B, C, T]` has no words for the same reason, and a thread has one channel in `[B, T, C]`.
    pub(super) fn of(layout: Conv1dLayout, pass: Pass, operands: &[&Operand], limits: &Limits) -> Self {
        let along_time = layout == Conv1dLayout::Bct;
        let line = if along_time { 2 } else { 1 };
        let aligned = |count: usize| {
            operands.iter().all(|operand| operand.has_vectors(line, operand.shape[line], count))
        };
        let halves = limits.halves_in_words && operands[0].dtype.size() == 2;
        let words = along_time && halves && (pass == Pass::Forward || limits.unroll);
        match () {
            () if words && aligned(8) => Self::Words,
            () if (along_time || channels_per_thread(limits) == 4) && aligned(4) => Self::Vector4,
            () => Self::Scalar,
        }
    }

    /// Elements of a vector.
    pub(super) fn elements(self) -> usize {
        match self {
            Self::Scalar => 1,
            Self::Vector4 => 4,
            Self::Words => 8,
        }
    }

    /// Vector size and element type of the kernel's arguments.
    pub(super) fn vector(self, dtype: FloatType) -> (usize, ElemType) {
        match self {
            Self::Scalar | Self::Vector4 => (self.elements(), dtype.elem()),
            Self::Words => (4, WORD),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{config, serves};
    use super::*;
    use crate::activation::Activation;
    use crate::causal_conv1d::problem::OptionalShapes;

    /// The kernels count segments, tiles, lanes and groups with 32 bits: at the largest extents that the plan
    /// serves none is cut.
    #[test]
    fn counts_of_the_largest_problems_fit_32_bits() {
        let most = (1 << 30) - 1;
        for [b, c, t] in
            [[most, 1, 64], [1, most, 64], [64, 1, most], [1, 64, most], [63, most, 1], [1 << 18, 1, 1 << 17]]
        {
            for (layout, x) in [(Conv1dLayout::Bct, [b, c, t]), (Conv1dLayout::Btc, [b, t, c])] {
                for dtype in [FloatType::F32, FloatType::F16] {
                    for limits in [Limits::apple_m1(), Limits::h200()] {
                        let optional = OptionalShapes::default();
                        let problem = CausalConv1dProblem::new(
                            x,
                            [c, 4],
                            optional,
                            layout,
                            Activation::Silu,
                            dtype,
                            dtype,
                        )
                        .expect("valid");
                        assert!(serves(&problem), "{x:?}");
                        for access in [VectorAccess::Scalar, VectorAccess::Vector4, VectorAccess::Words] {
                            for pass in [Pass::Forward, Pass::Backward] {
                                fits(&problem, access, pass, &limits);
                            }
                        }
                    }
                }
            }
        }
    }

    fn fits(problem: &CausalConv1dProblem, access: VectorAccess, pass: Pass, limits: &Limits) {
        let config = config(problem, limits, access, pass, true);
        let counts = if problem.layout == Conv1dLayout::Bct {
            let of = BctSchedule::of(problem, config, limits);
            vec![
                problem.batch * of.segments_per_row,
                of.segments_per_threadgroup,
                of.tiles_per_row,
                of.tiles_per_segment,
                of.channel_groups,
            ]
        } else {
            let of = BtcSchedule::of(problem, config, limits);
            vec![
                problem.batch * of.segments_per_row,
                of.iterations * of.steps_per_iteration,
                of.channel_groups,
            ]
        };
        let cut = counts.iter().any(|count| u32::try_from(*count).is_err());
        assert!(!cut, "{problem:?} {access:?} {pass:?}: {counts:?}");
    }
}
