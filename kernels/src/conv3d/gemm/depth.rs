//! Depth taps that whole frames miss: frames with the same taps are launched together, the others' taps left
//! out.

use super::walk::{AxisWalk, axis_walks};
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::{Conv3dProblem, PaddingMode};

/// Frames that are looked at for [`depth_runs`].
const MOST_FRAMES: usize = 64;
/// Launches that they may take.
const MOST_RUNS: usize = 8;
/// Sites of a frame that are worth a launch.
const RUN_SITES: usize = 1024;

/// The depth axis of a pass as runs of frames that have the same taps inside the source: where the pass is
/// one walk, padding is zero, frames are large and few, and a quarter of all taps lie outside, as in the
/// input gradient of few unpadded frames.
pub(crate) fn depth_runs(problem: &Conv3dProblem, pass: Pass) -> Option<Vec<AxisWalk>> {
    let [depth] = axis_walks(problem, pass, 0)[..] else { return None };
    let (frame, stride) = match pass {
        Pass::InputGradient => (problem.input, problem.window.stride),
        _ => (problem.output(), [1; 3]),
    };
    let large = problem.batch * frame[1] * frame[2] >= RUN_SITES && depth.sites <= MOST_FRAMES;
    if !large || stride != [1; 3] || problem.window.padding_mode != PaddingMode::Zeros {
        return None;
    }
    let mut runs: Vec<AxisWalk> = Vec::new();
    let (mut first, mut inside) = (0, 0);
    for site in 0..depth.sites {
        let taps = depth.inside(site);
        inside += taps.1 - taps.0;
        if site + 1 == depth.sites || depth.inside(site + 1) != taps {
            runs.push(depth.run(first, site + 1 - first, taps, pass));
            first = site + 1;
        }
    }
    let pays = runs.len() > 1 && runs.len() <= MOST_RUNS && 4 * inside <= 3 * depth.sites * depth.taps;
    pays.then_some(runs)
}

/// The share of depth taps that lie inside the source.
pub(crate) fn depth_share(problem: &Conv3dProblem, pass: Pass) -> f64 {
    let axes = axis_walks(problem, pass, 0);
    let all: usize = axes.iter().map(|axis| axis.sites * axis.taps).sum();
    if problem.window.padding_mode != PaddingMode::Zeros || all == 0 {
        return 1.0;
    }
    let inside = |axis: &AxisWalk| {
        let taps = (0..axis.sites).map(|site| axis.inside(site));
        taps.map(|(first, end)| end - first).sum::<usize>()
    };
    axes.iter().map(inside).sum::<usize>() as f64 / all as f64
}
