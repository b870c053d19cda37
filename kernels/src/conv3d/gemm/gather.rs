//! Which source elements a gathered GEMM reads: the host's side. Serves the forward pass and the input
//! gradient, both as gathers (no atomics).
//!
//! ```text
//! output position i of an axis   result element  first_out + i * out_step
//! tap j of position i            source element  i * scale + origin + j * step    0 <= j < taps, step >= 0
//!                                weight tap      first_tap + j * tap_step         forward
//!                                                first_tap - j * tap_step         input gradient
//! ```
//!
//! Forward: `scale = stride, origin = -padding, step = dilation`, all taps. Input gradient: element p
//! receives tap k from window `(p + padding - k * dilation) / stride` where that divides. The positions of
//! one residue class `p = phase mod stride` receive the same taps, an arithmetic progression, from
//! consecutive windows: one dense gather per phase. Where the windows tile the input ([`is_patches`]) one
//! gather over the windows covers it, with the taps among the GEMM's columns.

use super::depth::depth_slices;
use super::index::{AxisGatherArgsLaunch, GatherArgsLaunch};
use super::tap_check::{TapCheck, mask_bit, padding_of};
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::{Conv3dProblem, PaddingMode};
use crate::geometry::AxisGeometry;
use crate::operand::Operand;

/// One axis of a gather, on the host. The file's header has the formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AxisGather {
    pub(crate) positions: usize,
    /// Elements of the source along the axis.
    pub(crate) extent: usize,
    pub(crate) scale: usize,
    pub(crate) origin: i64,
    pub(crate) taps: usize,
    pub(crate) step: usize,
    pub(crate) first_tap: usize,
    pub(crate) tap_step: usize,
    pub(crate) first_out: usize,
    pub(crate) out_step: usize,
    /// Elements of the result's axis that one position's columns hold: 1, or all taps where windows do not
    /// overlap.
    pub(crate) columns: usize,
}

impl AxisGather {
    /// The windows of an axis.
    pub(crate) fn forward(axis: AxisGeometry) -> Self {
        Self {
            positions: axis.output(),
            extent: axis.input,
            scale: axis.stride,
            origin: -(axis.padding.0 as i64),
            taps: axis.kernel,
            step: axis.dilation,
            first_tap: 0,
            tap_step: 1,
            first_out: 0,
            out_step: 1,
            columns: 1,
        }
    }

    /// The input positions `phase, phase + stride, ..` of an axis.
    pub(crate) fn input_gradient(axis: AxisGeometry, phase: usize) -> Self {
        let AxisGeometry { input, kernel, stride, dilation, padding: (begin, _) } = axis;
        let divides = |tap: &usize| (phase + begin) % stride == tap * dilation % stride;
        let taps: Vec<usize> = (0..kernel).filter(divides).collect();
        let tap_step = if let [first, second, ..] = taps[..] { second - first } else { 1 };
        // The last tap reads the earliest window.
        let last = taps.last().copied().unwrap_or(0);
        let origin = ((phase + begin) as i64 - (last * dilation) as i64).div_euclid(stride as i64);
        Self {
            positions: input.saturating_sub(phase).div_ceil(stride),
            extent: axis.output(),
            scale: 1,
            origin,
            taps: taps.len(),
            step: tap_step * dilation / stride,
            first_tap: last,
            tap_step,
            first_out: phase,
            out_step: stride,
            columns: 1,
        }
    }

    /// The common description of an input gradient's residue classes, for one launch that covers them all:
    /// the largest position and tap counts of any class, taps in the order of an unstrided gather. None where
    /// some class might have no taps, or where there are too many classes.
    pub(crate) fn all_phases(axis: AxisGeometry) -> Option<Self> {
        let AxisGeometry { input, kernel, stride, .. } = axis;
        let step = axis.tap_step();
        (stride <= MAX_PHASES && inverse_step(axis).is_some()).then(|| Self {
            positions: input.div_ceil(stride),
            extent: axis.output(),
            scale: 1,
            origin: 0,
            taps: kernel.div_ceil(stride),
            step,
            first_tap: kernel.saturating_sub(1),
            tap_step: 1,
            first_out: 0,
            out_step: stride,
            columns: 1,
        })
    }

    /// The windows of an axis where they do not overlap, with one column for each element that a window
    /// covers.
    fn patches(axis: AxisGeometry) -> Self {
        let windows = axis.output();
        Self {
            positions: windows,
            extent: windows,
            scale: 1,
            origin: 0,
            taps: 1,
            step: 0,
            first_tap: 0,
            tap_step: 0,
            first_out: 0,
            out_step: axis.stride,
            columns: axis.kernel,
        }
    }
}

/// The inverse of the distance between taps modulo the stride; none where the two have a common divisor.
pub(crate) fn inverse_step(axis: AxisGeometry) -> Option<usize> {
    let stride = axis.stride;
    (0..stride).find(|factor| factor * axis.tap_step() % stride == 1 % stride)
}

impl AxisGather {
    /// Whether adjacent positions read adjacent elements.
    pub(crate) fn is_dense(&self) -> bool {
        self.scale == 1 && (self.step == 1 || self.taps == 1)
    }

    /// The range of taps `first..end` that read inside the source at a position.
    pub(super) fn valid_taps(&self, position: usize) -> (usize, usize) {
        let at = |tap: usize| (position * self.scale + tap * self.step) as i64 + self.origin;
        let first = (0..self.taps).find(|tap| at(*tap) >= 0).unwrap_or(self.taps);
        let end = (first..self.taps).find(|tap| at(*tap) >= self.extent as i64).unwrap_or(self.taps);
        (first, end)
    }

    /// The gather of positions `position..position + positions`, all of which have the valid taps
    /// `first..end`.
    pub(super) fn slice(
        &self,
        position: usize,
        positions: usize,
        (first, end): (usize, usize),
        pass: Pass,
    ) -> Self {
        let skipped = first * self.tap_step;
        Self {
            positions,
            origin: self.origin + (position * self.scale + first * self.step) as i64,
            taps: end - first,
            first_tap: if pass == Pass::InputGradient {
                self.first_tap.saturating_sub(skipped)
            } else {
                self.first_tap + skipped
            },
            first_out: self.first_out + position * self.out_step,
            ..*self
        }
    }

    /// Whether some tap of some position reads outside the source.
    pub(crate) fn reads_padding(&self) -> bool {
        let last = (self.positions.max(1) - 1) * self.scale + (self.taps.max(1) - 1) * self.step;
        self.taps > 0 && (self.origin < 0 || last as i64 + self.origin >= self.extent as i64)
    }
}

/// The most launches of a strided input gradient.
const MAX_PHASES: usize = 512;

/// Whether the residue classes of a strided input gradient are few enough to launch one by one.
pub(crate) fn few_phases(problem: &Conv3dProblem, pass: Pass) -> bool {
    let phases = (0..3).map(|axis| problem.window.stride[axis].min(problem.input[axis]));
    pass != Pass::InputGradient || phases.product::<usize>() <= MAX_PHASES
}

/// Whether the gathered GEMM serves a pass: M and K below 2^31 - 1, and few strided phases.
pub(crate) fn serves(problem: &Conv3dProblem, pass: Pass) -> bool {
    let rows = problem.batch * problem.input.iter().product::<usize>().max(problem.output().iter().product());
    let k = problem.channels.max(problem.out_channels) * problem.taps();
    rows.max(k) < i32::MAX as usize && few_phases(problem, pass)
}

/// The depth, height and width axes of a gather.
pub(crate) type Gather = [AxisGather; 3];

/// The gathers that together cover one axis of a pass's result: an input gradient has one per residue class
/// of the stride.
pub(super) fn axis_gathers(problem: &Conv3dProblem, pass: Pass, axis: usize) -> Vec<AxisGather> {
    let geometry = problem.axis(axis);
    if pass == Pass::Forward {
        return vec![AxisGather::forward(geometry)];
    }
    // Phases beyond the extent have no elements.
    let phases = 0..geometry.stride.min(geometry.input);
    phases.map(|phase| AxisGather::input_gradient(geometry, phase)).collect()
}

/// The gathers that together cover every element of a pass's result.
pub(crate) fn gathers(problem: &Conv3dProblem, pass: Pass) -> Vec<Gather> {
    let [depths, heights, widths] = [0, 1, 2].map(|axis| axis_gathers(problem, pass, axis));
    let mut gathers = Vec::new();
    for depth in depths {
        for height in &heights {
            gathers.extend(widths.iter().map(|width| [depth, *height, *width]));
        }
    }
    gathers
}

/// The gathers that a pass launches: those of [`gathers`], or slices of depth ([`depth_slices`]).
pub(super) fn launched_gathers(problem: &Conv3dProblem, pass: Pass) -> Vec<Gather> {
    let gathers = gathers(problem, pass);
    match (&gathers[..], depth_slices(problem, pass)) {
        ([[_, height, width]], Some(slices)) => {
            slices.iter().map(|depth| [*depth, *height, *width]).collect()
        }
        _ => gathers,
    }
}

/// Whether the windows tile the input (patch embedding): every element belongs to exactly one window. The
/// input gradient is then one GEMM with a column per (channel, tap), for which the weight is used as it is,
/// instead of one GEMM of few columns per phase.
pub(crate) fn is_patches(problem: &Conv3dProblem, pass: Pass) -> bool {
    let tiles = |axis: AxisGeometry| {
        axis.kernel == axis.stride
            && (axis.dilation == 1 || axis.kernel == 1)
            && axis.padding == (0, 0)
            && axis.input.is_multiple_of(axis.stride)
    };
    pass == Pass::InputGradient && problem.taps() > 1 && (0..3).all(|axis| tiles(problem.axis(axis)))
}

/// The gather of an input gradient whose windows tile the input.
pub(crate) fn patches(problem: &Conv3dProblem) -> Gather {
    [0, 1, 2].map(|axis| AxisGather::patches(problem.axis(axis)))
}

/// GEMM columns (N) per channel of the result.
pub(crate) fn columns(gather: &Gather) -> usize {
    gather.iter().map(|axis| axis.columns).product()
}

/// Output positions of one image.
pub(crate) fn positions(gather: &Gather) -> usize {
    gather.iter().map(|axis| axis.positions).product()
}

/// Taps per channel.
pub(crate) fn taps(gather: &Gather) -> usize {
    gather.iter().map(|axis| axis.taps).product()
}

/// Strides of the weight along the source's channels, the result's channels and the groups of a pass.
fn weight_strides(weight: &Operand, pass: Pass, problem: &Conv3dProblem) -> [usize; 3] {
    let (out, channel) = (weight.strides[0], weight.strides[1]);
    let group = out.wrapping_mul(problem.group_out_channels());
    if pass == Pass::Forward { [channel, out, group] } else { [out, channel, group] }
}

/// Shape of the packed weights of one gather of an input gradient: `[C, O / groups, taps of D, H, W]`.
pub(super) fn packed_shape(problem: &Conv3dProblem, gather: &Gather) -> [usize; 5] {
    let [depth, height, width] = gather.map(|axis| axis.taps);
    [problem.channels, problem.group_out_channels(), depth, height, width]
}

/// The kernel argument of a gather that reads an input gradient's packed weights ([`packed_shape`]).
pub(super) fn packed_gather_args(
    problem: &Conv3dProblem,
    gather: &Gather,
    operands: [&Operand; 3],
) -> GatherArgsLaunch {
    let weight = operands[1];
    let strides = [weight.strides[1], weight.strides[0], weight.strides[0] * problem.group_channels()];
    let gather = gather.map(|axis| AxisGather { first_tap: 0, tap_step: 1, ..axis });
    args(&gather, operands, strides, TapCheck::of(&gather, [PaddingMode::Zeros; 3]))
}

/// A gather as a kernel argument.
pub(crate) fn gather_args(
    problem: &Conv3dProblem,
    pass: Pass,
    gather: &Gather,
    operands: [&Operand; 3],
) -> GatherArgsLaunch {
    let check = TapCheck::of(gather, padding_of(problem, pass));
    args(gather, operands, weight_strides(operands[1], pass, problem), check)
}

/// [`gather_args`], in image channels in place of source offsets where the first frames are in a cache
/// (`read.rs`).
pub(super) fn joined_gather_args(
    problem: &Conv3dProblem,
    pass: Pass,
    gather: &Gather,
    operands: [&Operand; 3],
    cache: Option<&Operand>,
) -> GatherArgsLaunch {
    let args = gather_args(problem, pass, gather, operands);
    match cache {
        Some(_) => {
            GatherArgsLaunch { source_batch_stride: problem.channels, source_channel_stride: 1, ..args }
        }
        None => args,
    }
}

fn args(
    gather: &Gather,
    [source, weight, out]: [&Operand; 3],
    [weight_channel, weight_column, weight_group]: [usize; 3],
    check: TapCheck,
) -> GatherArgsLaunch {
    let axis = |index: usize| {
        let axis = gather[index];
        // `Conv3dProblem::validate` keeps every extent and span below 2^31.
        AxisGatherArgsLaunch {
            positions: divisor(axis.positions),
            taps: divisor(axis.taps),
            tap_count: axis.taps as u32,
            bit: mask_bit(&axis, index, check),
            extent: axis.extent as u32,
            scale: axis.scale as u32,
            origin_positive: axis.origin.max(0) as u32,
            origin_negative: (-axis.origin).max(0) as u32,
            step: axis.step as u32,
            step_divisor: divisor(axis.step),
            first_tap: axis.first_tap as u32,
            tap_step: axis.tap_step as u32,
            first_out: axis.first_out as u32,
            out_step: axis.out_step as u32,
            source_stride: source.strides[index + 2],
            weight_stride: weight.strides[index + 2],
            out_stride: out.strides[index + 2],
        }
    };
    let columns_of_channel = columns(gather);
    GatherArgsLaunch {
        depth: axis(0),
        height: axis(1),
        width: axis(2),
        taps: divisor(taps(gather)),
        columns: divisor(columns_of_channel),
        column_heights: divisor(gather[1].columns),
        column_widths: divisor(gather[2].columns),
        source_batch_stride: source.strides[0],
        source_channel_stride: source.strides[1],
        out_batch_stride: out.strides[0],
        out_channel_stride: out.strides[1],
        weight_channel_stride: weight_channel,
        // Patches are gathered only where the weight is row-major: columns are then contiguous.
        weight_column_stride: if columns_of_channel > 1 { 1 } else { weight_column },
        weight_group_stride: weight_group,
    }
}

/// A divisor for `FastDivmod`: at least 1.
pub(crate) fn divisor(value: usize) -> u32 {
    value.max(1) as u32
}

#[cfg(test)]
#[path = "gather_tests.rs"]
mod tests;
