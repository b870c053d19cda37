//! The walks of input gradients against every pair of position, window and tap, and which taps a mask tells
//! apart.

use super::*;
use crate::conv3d::fold;
use crate::conv3d::problem::Window;
use crate::dtype::FloatType;

/// Every pair (input position, window, tap) of an axis that the convolution joins, found by looking at them
/// all.
fn pairs(axis: AxisGeometry) -> Vec<(usize, usize, usize)> {
    let mut pairs = Vec::new();
    for window in 0..axis.output() {
        for tap in 0..axis.kernel {
            let at = (window * axis.stride + tap * axis.dilation).checked_sub(axis.padding.0);
            pairs.extend(at.filter(|at| *at < axis.input).map(|at| (at, window, tap)));
        }
    }
    pairs.sort_unstable();
    pairs
}

#[test]
fn the_phases_of_an_input_gradient_join_what_the_convolution_joins() {
    let mut checked = 0;
    for (input, kernel, stride) in
        (1..12usize).flat_map(|i| (1..6usize).flat_map(move |k| (1..5usize).map(move |s| (i, k, s))))
    {
        for (dilation, begin, end) in [(1, 0, 0), (1, 2, 1), (2, 1, 3), (3, 4, 0), (4, 3, 3), (6, 8, 8)] {
            let axis = AxisGeometry { input, kernel, stride, dilation, padding: (begin, end) };
            if axis.span() > input + begin + end {
                continue;
            }
            let mut found = Vec::new();
            let mut written = Vec::new();
            for phase in 0..stride.min(input) {
                let walk = AxisWalk::input_gradient(axis, phase);
                for site in 0..walk.sites {
                    let position = walk.first_out + site * walk.out_step;
                    written.push(position);
                    for j in 0..walk.taps {
                        let window = (site * walk.scale + j * walk.step) as i64 + walk.origin;
                        if (0..walk.extent as i64).contains(&window) {
                            found.push((position, window as usize, walk.first_tap - j * walk.tap_step));
                        }
                    }
                }
            }
            found.sort_unstable();
            written.sort_unstable();
            assert_eq!(found, pairs(axis), "{axis:?}");
            assert_eq!(written, (0..input).collect::<Vec<_>>(), "{axis:?}");
            checked += found.len();
        }
    }
    assert!(checked > 5_000, "{checked} pairs");
}

#[test]
fn runs_of_frames_join_what_the_convolution_joins_and_nothing_outside() {
    let mut split = 0;
    for (input, kernel, dilation) in
        (1..9usize).flat_map(|i| (1..6usize).flat_map(move |k| (1..4usize).map(move |d| (i, k, d))))
    {
        for padding in [(0, 0), (1, 1), (3, 0), (0, 4), (5, 5)] {
            let window = Window {
                padding: [padding, (0, 0), (0, 0)],
                dilation: [dilation, 1, 1],
                ..Window::default()
            };
            let shapes = ([2, 1, input, 32, 32], [1, 1, kernel, 1, 1]);
            let Ok(problem) = Conv3dProblem::new(shapes.0, shapes.1, None, window, FloatType::F32) else {
                continue;
            };
            for pass in [Pass::Forward, Pass::InputGradient] {
                let Some(runs) = depth_runs(&problem, pass) else { continue };
                let (mut found, mut written) = (Vec::new(), Vec::new());
                for run in &runs {
                    assert!(!run.leaves(), "{problem:?} {run:?}");
                    for site in 0..run.sites {
                        let place = run.first_out + site * run.out_step;
                        written.push(place);
                        for j in 0..run.taps {
                            let from = usize::try_from((site * run.scale + j * run.step) as i64 + run.origin)
                                .unwrap();
                            assert!(from < run.extent, "{problem:?} {run:?}");
                            found.push(match pass {
                                Pass::Forward => (from, place, run.first_tap + j * run.tap_step),
                                _ => (place, from, run.first_tap - j * run.tap_step),
                            });
                        }
                    }
                }
                found.sort_unstable();
                assert_eq!(found, pairs(problem.axis(0)), "{problem:?} {pass:?}");
                let sites = if pass == Pass::Forward { problem.output()[0] } else { input };
                assert_eq!(written, (0..sites).collect::<Vec<_>>(), "{problem:?} {pass:?}");
                split += 1;
            }
        }
    }
    assert!(split > 50, "{split} problems were split");
}

#[test]
fn the_columns_of_patches_join_what_the_convolution_joins() {
    for (windows, kernel) in (1..7usize).flat_map(|windows| (1..5usize).map(move |kernel| (windows, kernel)))
    {
        let axis =
            AxisGeometry { input: windows * kernel, kernel, stride: kernel, dilation: 1, padding: (0, 0) };
        let walk = AxisWalk::patches(axis);
        let mut found = Vec::new();
        for site in 0..walk.sites {
            let window = (site * walk.scale) as i64 + walk.origin;
            assert!((0..walk.extent as i64).contains(&window) && walk.taps == 1, "{axis:?}");
            let first = walk.first_out + site * walk.out_step;
            found.extend((0..walk.columns).map(|tap| (first + tap, window as usize, tap)));
        }
        found.sort_unstable();
        assert_eq!(found, pairs(axis), "{axis:?}");
    }
}

/// Taps share a mask of 31 bits, ten of each axis: what the engine serves has no more where a mask is asked,
/// and none where padding repeats the edge.
#[test]
fn a_mask_tells_all_taps_of_a_served_walk_apart() {
    for taps in 1..=70 {
        for axis in 0..3 {
            for padding_mode in [PaddingMode::Zeros, PaddingMode::Replicate] {
                for padding in [0, 1, taps / 2, taps - 1, taps + 3] {
                    let place = |value: usize, other: usize| {
                        let mut extents = [other; 3];
                        extents[axis] = value;
                        extents
                    };
                    let window = Window {
                        padding: place(padding, 0).map(|size| (size, size)),
                        padding_mode,
                        ..Window::default()
                    };
                    let [d, h, w] = place(taps, 3);
                    let [kd, kh, kw] = place(taps, 1);
                    let problem =
                        Conv3dProblem::new([1, 2, d, h, w], [2, 2, kd, kh, kw], None, window, FloatType::F32)
                            .unwrap();
                    for pass in [Pass::Forward, Pass::InputGradient, Pass::WeightGradient] {
                        let launched = fold::launched(&problem, pass);
                        let gathers = if pass == Pass::InputGradient { pass } else { Pass::Forward };
                        let clamps =
                            if pass == Pass::InputGradient { PaddingMode::Zeros } else { padding_mode };
                        let masked = walks(&launched, gathers)
                            .iter()
                            .flat_map(|walks| {
                                (0..3).map(|axis| (walks[axis], mask_bit(&walks[axis], axis, clamps)))
                            })
                            .all(|(walk, bit)| bit == 0 || walk.taps <= MASK_BITS);
                        assert!(
                            masked || !serves(&launched, pass),
                            "{taps} taps of axis {axis}, {problem:?}, {pass:?}"
                        );
                        // Without padding, or with padding that repeats, any number is served.
                        let any =
                            padding == 0 && pass != Pass::InputGradient || clamps == PaddingMode::Replicate;
                        assert!(
                            !any || serves(&launched, pass),
                            "{taps} taps of axis {axis}, {problem:?}, {pass:?}"
                        );
                    }
                }
            }
        }
    }
}
