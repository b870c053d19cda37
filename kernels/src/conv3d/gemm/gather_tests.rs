//! Gathers against every pair of position, window and tap of a convolution found by enumeration, and the
//! limits of masks.

use super::*;
use crate::conv3d::gemm::tap_check::{MASK_BITS, has_few_taps};
use crate::conv3d::plan::PassProblem;
use crate::conv3d::problem::Window;
use crate::dtype::FloatType;

/// Every (input position, window, tap) of an axis that contributes to the convolution, by enumeration.
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
fn phases_of_an_input_gradient_cover_the_convolution() {
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
                let gather = AxisGather::input_gradient(axis, phase);
                for i in 0..gather.positions {
                    let position = gather.first_out + i * gather.out_step;
                    written.push(position);
                    for j in 0..gather.taps {
                        let window = (i * gather.scale + j * gather.step) as i64 + gather.origin;
                        if (0..gather.extent as i64).contains(&window) {
                            found.push((position, window as usize, gather.first_tap - j * gather.tap_step));
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
fn depth_slices_cover_the_convolution_without_padding() {
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
                let Some(slices) = depth_slices(&problem, pass) else { continue };
                let (mut found, mut written) = (Vec::new(), Vec::new());
                for slice in &slices {
                    assert!(!slice.reads_padding(), "{problem:?} {slice:?}");
                    for i in 0..slice.positions {
                        let position = slice.first_out + i * slice.out_step;
                        written.push(position);
                        for j in 0..slice.taps {
                            let source =
                                usize::try_from((i * slice.scale + j * slice.step) as i64 + slice.origin)
                                    .unwrap();
                            assert!(source < slice.extent, "{problem:?} {slice:?}");
                            found.push(match pass {
                                Pass::Forward => (source, position, slice.first_tap + j * slice.tap_step),
                                _ => (position, source, slice.first_tap - j * slice.tap_step),
                            });
                        }
                    }
                }
                found.sort_unstable();
                assert_eq!(found, pairs(problem.axis(0)), "{problem:?} {pass:?}");
                let positions = if pass == Pass::Forward { problem.output()[0] } else { input };
                assert_eq!(written, (0..positions).collect::<Vec<_>>(), "{problem:?} {pass:?}");
                split += 1;
            }
        }
    }
    assert!(split > 50, "{split} problems were split");
}

#[test]
fn columns_of_patches_cover_the_convolution() {
    for (windows, kernel) in (1..7usize).flat_map(|windows| (1..5usize).map(move |kernel| (windows, kernel)))
    {
        let axis =
            AxisGeometry { input: windows * kernel, kernel, stride: kernel, dilation: 1, padding: (0, 0) };
        let gather = AxisGather::patches(axis);
        let mut found = Vec::new();
        for position in 0..gather.positions {
            let window = (position * gather.scale) as i64 + gather.origin;
            assert!((0..gather.extent as i64).contains(&window) && gather.taps == 1, "{axis:?}");
            let first = gather.first_out + position * gather.out_step;
            found.extend((0..gather.columns).map(|tap| (first + tap, window as usize, tap)));
        }
        found.sort_unstable();
        assert_eq!(found, pairs(axis), "{axis:?}");
    }
}

/// A mask has ten bits per axis: where taps are checked by masks, every axis that needs one has at most ten.
/// Other modes than zeros clamp or map coordinates, and without padding any number of taps needs none.
#[test]
fn masks_hold_all_taps_that_they_check() {
    use PaddingMode::{Circular, Reflect, Replicate, Zeros};
    let modes = [Zeros, Replicate, Reflect, Circular].map(|mode| [mode; 3]).into_iter().chain([
        [Zeros, Reflect, Circular],
        [Replicate, Zeros, Zeros],
        [Circular, Replicate, Reflect],
        [Reflect, Circular, Zeros],
    ]);
    let modes: Vec<_> = modes.collect();
    let mut by_coordinates = 0;
    let mut by_check = [0; 4];
    for taps in 1..=70 {
        for axis in 0..3 {
            for padding_mode in modes.iter().copied() {
                for padding in [0, 1, taps / 2, taps - 1, taps + 3] {
                    let along_axis = |value: usize, other: usize| {
                        let mut shape = [other; 3];
                        shape[axis] = value;
                        shape
                    };
                    let window = Window {
                        padding: along_axis(padding, 0).map(|size| (size, size)),
                        padding_mode,
                        ..Window::default()
                    };
                    // Reflect and circular padding read inside the source alone.
                    let extent = match padding_mode[axis] {
                        Reflect => taps.max(padding + 1),
                        Circular => taps.max(padding),
                        _ => taps,
                    };
                    let [d, h, w] = along_axis(extent, 3);
                    let [kd, kh, kw] = along_axis(taps, 1);
                    let problem =
                        Conv3dProblem::new([1, 2, d, h, w], [2, 2, kd, kh, kw], None, window, FloatType::F32)
                            .unwrap();
                    for pass in [Pass::Forward, Pass::InputGradient, Pass::WeightGradient] {
                        let launched = PassProblem::of(&problem, pass).launched;
                        let gathered = if pass == Pass::InputGradient { pass } else { Pass::Forward };
                        let padding_mode = padding_of(&launched, pass);
                        let what = format!("{taps} taps of axis {axis}, {problem:?}, {pass:?}");
                        assert!(serves(&launched, pass), "{what}");
                        let zeros = padding_mode == [Zeros; 3];
                        let mapped = !zeros && padding_mode != [Replicate; 3];
                        let mut few = !mapped;
                        for gather in gathers(&launched, gathered) {
                            let check = TapCheck::of(&gather, padding_mode);
                            let bits = [0, 1, 2].map(|axis| mask_bit(&gather[axis], axis, check));
                            let masked = (0..3).all(|axis| bits[axis] == 0 || gather[axis].taps <= MASK_BITS);
                            assert!(masked, "{what}");
                            assert!(check == TapCheck::Masks || bits == [0; 3], "{what}");
                            let number = match check {
                                TapCheck::Masks => 0,
                                TapCheck::Coordinates => 1,
                                TapCheck::Clamp => 2,
                                TapCheck::Map(modes) if modes == padding_mode => 3,
                                other => panic!("{other:?}: {what}"),
                            };
                            by_check[number] += 1;
                            assert_eq!([number < 2, number == 3], [zeros, mapped], "{what}");
                            few &= check != TapCheck::Coordinates;
                            let any = padding == 0 && pass != Pass::InputGradient || taps <= MASK_BITS;
                            assert!(!any || check != TapCheck::Coordinates, "{what}");
                        }
                        assert_eq!(has_few_taps(&launched, pass), few, "{what}");
                        by_coordinates += usize::from(!few && !mapped);
                    }
                }
            }
        }
    }
    assert!(by_coordinates > 100, "{by_coordinates}");
    assert!(by_check.iter().all(|count| *count > 1000), "{by_check:?}");
}
