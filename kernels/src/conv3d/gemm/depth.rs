//! Depth taps that read only padding for whole frames: frames with the same valid taps are one launch,
//! without the other taps.

use super::gather::{AxisGather, axis_gathers, is_patches};
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::{Conv3dProblem, PaddingMode};

/// The most frames that [`depth_slices`] considers.
const MAX_FRAMES: usize = 64;
/// The most slices, which are as many launches.
const MAX_SLICES: usize = 8;
/// The fewest output positions of a frame (times the batch) that are worth a launch.
const MIN_FRAME_POSITIONS: usize = 1024;

/// The depth axis of a pass cut into slices of frames with the same valid taps. Only where the pass is one
/// gather, padding is zero, frames are large and few, and at least a quarter of all depth taps read padding,
/// as in the input gradient of few unpadded frames.
pub(crate) fn depth_slices(problem: &Conv3dProblem, pass: Pass) -> Option<Vec<AxisGather>> {
    let [depth] = axis_gathers(problem, pass, 0)[..] else { return None };
    let (frame, stride) = match pass {
        Pass::InputGradient => (problem.input, problem.window.stride),
        _ => (problem.output(), [1; 3]),
    };
    let large = problem.batch * frame[1] * frame[2] >= MIN_FRAME_POSITIONS && depth.positions <= MAX_FRAMES;
    if problem.streaming || !large || stride != [1; 3] || problem.window.padding_mode[0] != PaddingMode::Zeros
    {
        return None;
    }
    let mut slices: Vec<AxisGather> = Vec::new();
    let (mut first, mut valid) = (0, 0);
    for position in 0..depth.positions {
        let taps = depth.valid_taps(position);
        valid += taps.1 - taps.0;
        if position + 1 == depth.positions || depth.valid_taps(position + 1) != taps {
            slices.push(depth.slice(first, position + 1 - first, taps, pass));
            first = position + 1;
        }
    }
    let pays =
        slices.len() > 1 && slices.len() <= MAX_SLICES && 4 * valid <= 3 * depth.positions * depth.taps;
    pays.then_some(slices)
}

/// The fraction of a pass's depth taps that read inside the source.
pub(crate) fn depth_tap_fraction(problem: &Conv3dProblem, pass: Pass) -> f64 {
    let axes = axis_gathers(problem, pass, 0);
    let all: usize = axes.iter().map(|axis| axis.positions * axis.taps).sum();
    if problem.window.padding_mode[0] != PaddingMode::Zeros || all == 0 {
        return 1.0;
    }
    let valid = |axis: &AxisGather| {
        let taps = (0..axis.positions).map(|position| axis.valid_taps(position));
        taps.map(|(first, end)| end - first).sum::<usize>()
    };
    axes.iter().map(valid).sum::<usize>() as f64 / all as f64
}

/// Launches of the gathered GEMM for a pass, and the average fraction of all taps in each of them.
pub(crate) fn launches(problem: &Conv3dProblem, pass: Pass) -> (usize, f64) {
    if pass == Pass::WeightGradient || is_patches(problem, pass) {
        return (1, 1.0);
    }
    if let Some(slices) = depth_slices(problem, pass) {
        return (slices.len(), depth_tap_fraction(problem, pass));
    }
    if pass != Pass::InputGradient {
        return (1, 1.0);
    }
    // Phases beyond the extent have no elements.
    let launched = [0, 1, 2].map(|axis| problem.window.stride[axis].min(problem.input[axis]).max(1));
    let fraction = problem.window.stride.iter().map(|stride| 1.0 / *stride as f64).product();
    (launched.iter().product(), fraction)
}
