//! Where a gathered operand reads, for both passes that gather through the window: the forward pass, and the
//! input gradient as a gather (no atomics).
//!
//! ```text
//! site i of an axis      output element  first_out + i * out_step
//! tap j of site i        source element  i * scale + origin + j * step        0 <= j < taps, step >= 0
//!                        weight tap      first_tap + j * tap_step            forward
//!                                        first_tap - j * tap_step            gradient
//! ```
//!
//! Forward: `scale = stride, origin = -begin, step = dilation`, all taps. Input gradient: element p receives
//! tap k from window `(p + begin - k * dilation) / stride` where that divides. Positions of one residue class
//! `p = phase mod stride` receive the same taps, an arithmetic progression, from consecutive windows: one
//! dense walk per phase. Where the windows tile the input ([`is_patches`]) one walk over them covers it, the
//! taps among the product's columns.

use super::depth::depth_runs;
use super::index::{AxisWalkArgsLaunch, WalkLaunch};
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::{Conv3dProblem, PaddingMode};
use crate::geometry::AxisGeometry;
use crate::operand::Operand;

/// One axis of a walk, on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AxisWalk {
    pub(crate) sites: usize,
    pub(crate) extent: usize,
    pub(crate) scale: usize,
    pub(crate) origin: i64,
    pub(crate) taps: usize,
    pub(crate) step: usize,
    pub(crate) first_tap: usize,
    pub(crate) tap_step: usize,
    pub(crate) first_out: usize,
    pub(crate) out_step: usize,
    /// Elements of the result's axis that a site's columns hold: one, or all taps where windows do not
    /// overlap.
    pub(crate) columns: usize,
}

impl AxisWalk {
    /// The windows of an axis.
    pub(crate) fn forward(axis: AxisGeometry) -> Self {
        Self {
            sites: axis.output(),
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
            sites: input.saturating_sub(phase).div_ceil(stride),
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

    /// What the residue classes of an input gradient share, where each of them may have taps: the most sites
    /// and taps of any, and the order of an unstrided one.
    pub(crate) fn all_phases(axis: AxisGeometry) -> Option<Self> {
        let AxisGeometry { input, kernel, stride, .. } = axis;
        let step = axis.tap_step();
        (stride <= MOST_PHASES && inverse_step(axis).is_some()).then(|| Self {
            sites: input.div_ceil(stride),
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

    /// The windows of an axis where they do not overlap, each with a column for every element that it covers.
    fn patches(axis: AxisGeometry) -> Self {
        let windows = axis.output();
        Self {
            sites: windows,
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

/// The factor that divides by the distance between taps, modulo the stride; none where the two have a common
/// divisor.
pub(crate) fn inverse_step(axis: AxisGeometry) -> Option<usize> {
    let stride = axis.stride;
    (0..stride).find(|factor| factor * axis.tap_step() % stride == 1 % stride)
}

impl AxisWalk {
    /// Whether neighbouring sites read neighbouring elements.
    pub(crate) fn is_dense(&self) -> bool {
        self.scale == 1 && (self.step == 1 || self.taps == 1)
    }

    /// The first tap of a site that lies inside the source, and the one behind the last.
    pub(super) fn inside(&self, site: usize) -> (usize, usize) {
        let at = |tap: usize| (site * self.scale + tap * self.step) as i64 + self.origin;
        let first = (0..self.taps).find(|tap| at(*tap) >= 0).unwrap_or(self.taps);
        let end = (first..self.taps).find(|tap| at(*tap) >= self.extent as i64).unwrap_or(self.taps);
        (first, end)
    }

    /// The walk of `sites` sites from `site` on, which all have the taps `first..end` inside the source.
    pub(super) fn run(&self, site: usize, sites: usize, (first, end): (usize, usize), pass: Pass) -> Self {
        let skipped = first * self.tap_step;
        Self {
            sites,
            origin: self.origin + (site * self.scale + first * self.step) as i64,
            taps: end - first,
            first_tap: if pass == Pass::InputGradient {
                self.first_tap.saturating_sub(skipped)
            } else {
                self.first_tap + skipped
            },
            first_out: self.first_out + site * self.out_step,
            ..*self
        }
    }

    /// Whether a tap of some site lies outside the source.
    pub(crate) fn leaves(&self) -> bool {
        let last = (self.sites.max(1) - 1) * self.scale + (self.taps.max(1) - 1) * self.step;
        self.taps > 0 && (self.origin < 0 || last as i64 + self.origin >= self.extent as i64)
    }
}

/// Taps of an axis that a mask can tell apart.
pub(crate) const MASK_BITS: usize = 10;

/// Launches that a strided input gradient may take.
const MOST_PHASES: usize = 512;

/// Whether the residue classes of a strided input gradient are few enough to launch each on its own.
pub(crate) fn few_phases(problem: &Conv3dProblem, pass: Pass) -> bool {
    let phases = (0..3).map(|axis| problem.window.stride[axis].min(problem.input[axis]));
    pass != Pass::InputGradient || phases.product::<usize>() <= MOST_PHASES
}

/// Whether the engine serves a pass: at most ten taps along every axis that has padding, which its masks can
/// tell apart, and sites and terms that 31 bits count, and few strided phases.
pub(crate) fn serves(problem: &Conv3dProblem, pass: Pass) -> bool {
    let pass = if pass == Pass::InputGradient { pass } else { Pass::Forward };
    let clamps = problem.window.padding_mode == PaddingMode::Replicate && pass == Pass::Forward;
    let places =
        problem.batch * problem.input.iter().product::<usize>().max(problem.output().iter().product());
    let terms = problem.channels.max(problem.out_channels) * problem.taps();
    let counts = places.max(terms) < i32::MAX as usize;
    counts
        && few_phases(problem, pass)
        && (clamps
            || (0..3)
                .flat_map(|axis| axis_walks(problem, pass, axis))
                .all(|walk| walk.taps <= MASK_BITS || !walk.leaves()))
}

/// The three axes of a walk.
pub(crate) type Walks = [AxisWalk; 3];

/// The walks that together cover one axis of a pass's result: one per residue class of the stride in an input
/// gradient.
pub(super) fn axis_walks(problem: &Conv3dProblem, pass: Pass, axis: usize) -> Vec<AxisWalk> {
    let geometry = problem.axis(axis);
    if pass == Pass::Forward {
        return vec![AxisWalk::forward(geometry)];
    }
    // A stride beyond the extent leaves phases without elements.
    let phases = 0..geometry.stride.min(geometry.input);
    phases.map(|phase| AxisWalk::input_gradient(geometry, phase)).collect()
}

/// The walks that together cover every element of a pass's result.
pub(crate) fn walks(problem: &Conv3dProblem, pass: Pass) -> Vec<Walks> {
    let [depths, heights, widths] = [0, 1, 2].map(|axis| axis_walks(problem, pass, axis));
    let mut walks = Vec::new();
    for depth in depths {
        for height in &heights {
            walks.extend(widths.iter().map(|width| [depth, *height, *width]));
        }
    }
    walks
}

/// The walks that the engine launches for a pass, which together cover every element of its result.
pub(super) fn launched_walks(problem: &Conv3dProblem, pass: Pass) -> Vec<Walks> {
    let walks = walks(problem, pass);
    match (&walks[..], depth_runs(problem, pass)) {
        ([[_, height, width]], Some(runs)) => runs.iter().map(|depth| [*depth, *height, *width]).collect(),
        _ => walks,
    }
}

/// Whether the windows tile the input: every element belongs to one window. The input gradient is then one
/// product with a column for each channel and tap, for which the weight lies ready, instead of a product of
/// few columns per phase.
pub(crate) fn is_patches(problem: &Conv3dProblem, pass: Pass) -> bool {
    let tiles = |axis: AxisGeometry| {
        axis.kernel == axis.stride
            && (axis.dilation == 1 || axis.kernel == 1)
            && axis.padding == (0, 0)
            && axis.input.is_multiple_of(axis.stride)
    };
    pass == Pass::InputGradient && problem.taps() > 1 && (0..3).all(|axis| tiles(problem.axis(axis)))
}

/// The walk of an input gradient whose windows tile the input.
pub(crate) fn patches(problem: &Conv3dProblem) -> Walks {
    [0, 1, 2].map(|axis| AxisWalk::patches(problem.axis(axis)))
}

/// The product's columns for each channel of the result.
pub(crate) fn columns(walks: &Walks) -> usize {
    walks.iter().map(|walk| walk.columns).product()
}

/// Sites of one image.
pub(crate) fn sites(walks: &Walks) -> usize {
    walks.iter().map(|walk| walk.sites).product()
}

/// Taps per channel.
pub(crate) fn taps(walks: &Walks) -> usize {
    walks.iter().map(|walk| walk.taps).product()
}

/// Strides of a weight as a pass walks it: from one channel of the source, of the result and from one group
/// to the next.
fn weight_strides(weight: &Operand, pass: Pass, problem: &Conv3dProblem) -> [usize; 3] {
    let (out, channel) = (weight.strides[0], weight.strides[1]);
    let group = out.wrapping_mul(problem.group_out_channels());
    if pass == Pass::Forward { [channel, out, group] } else { [out, channel, group] }
}

/// The weights that a walk of an input gradient reads, packed:
/// `[channels of dx, channels of a group of dy, taps]`.
pub(super) fn packed_shape(problem: &Conv3dProblem, walks: &Walks) -> [usize; 5] {
    let [depth, height, width] = walks.map(|walk| walk.taps);
    [problem.channels, problem.group_out_channels(), depth, height, width]
}

/// The walk over an input gradient's packed weights ([`packed_shape`]) as a kernel argument.
pub(super) fn packed_walk_args(
    problem: &Conv3dProblem,
    walks: &Walks,
    operands: [&Operand; 3],
) -> WalkLaunch {
    let weight = operands[1];
    let strides = [weight.strides[1], weight.strides[0], weight.strides[0] * problem.group_channels()];
    let walks = walks.map(|walk| AxisWalk { first_tap: 0, tap_step: 1, ..walk });
    args(&walks, operands, strides, PaddingMode::Zeros)
}

/// The walk as a kernel argument.
pub(crate) fn walk_args(
    problem: &Conv3dProblem,
    pass: Pass,
    walks: &Walks,
    operands: [&Operand; 3],
) -> WalkLaunch {
    // An input gradient is launched without padding that repeats.
    let padding = if pass == Pass::InputGradient { PaddingMode::Zeros } else { problem.window.padding_mode };
    args(walks, operands, weight_strides(operands[1], pass, problem), padding)
}

/// The bit of tap 0 of an axis in a mask. None where no tap lies outside the source, or where padding repeats
/// the source's edge, so that no tap asks for one: only then may the taps be more than a mask tells apart.
fn mask_bit(walk: &AxisWalk, axis: usize, padding: PaddingMode) -> u32 {
    if padding == PaddingMode::Replicate || !walk.leaves() { 0 } else { 1 << (MASK_BITS * axis) }
}

fn args(
    walks: &Walks,
    [source, weight, out]: [&Operand; 3],
    [weight_channel, weight_column, weight_group]: [usize; 3],
    padding: PaddingMode,
) -> WalkLaunch {
    let axis = |axis: usize| {
        let walk = walks[axis];
        // `Conv3dProblem::validate` keeps every extent and span below 2^31.
        AxisWalkArgsLaunch::new(
            divisor(walk.sites),
            divisor(walk.taps),
            walk.taps as u32,
            mask_bit(&walk, axis, padding),
            walk.extent as u32,
            walk.scale as u32,
            walk.origin.max(0) as u32,
            (-walk.origin).max(0) as u32,
            walk.step as u32,
            divisor(walk.step),
            walk.first_tap as u32,
            walk.tap_step as u32,
            walk.first_out as u32,
            walk.out_step as u32,
            source.strides[axis + 2],
            weight.strides[axis + 2],
            out.strides[axis + 2],
        )
    };
    let columns_of_channel = columns(walks);
    // `gather` walks patches where a channel's taps lie behind each other, and channels behind those.
    let weight_column = if columns_of_channel > 1 { 1 } else { weight_column };
    WalkLaunch::new(
        axis(0),
        axis(1),
        axis(2),
        divisor(taps(walks)),
        divisor(columns_of_channel),
        divisor(walks[1].columns),
        divisor(walks[2].columns),
        source.strides[0],
        source.strides[1],
        out.strides[0],
        out.strides[1],
        weight_channel,
        weight_column,
        weight_group,
    )
}

/// A divisor: where there is nothing to divide, one.
pub(crate) fn divisor(value: usize) -> u32 {
    value.max(1) as u32
}

#[cfg(test)]
#[path = "walk_tests.rs"]
mod tests;
