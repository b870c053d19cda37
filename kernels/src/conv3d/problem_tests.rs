//! Derived problems: padding held by the input, and which padding every family reads.

use super::PaddingMode::{Circular, Reflect, Replicate, Zeros};
use super::*;

fn with_modes(padding_mode: [PaddingMode; 3]) -> Conv3dProblem {
    let window = Window { padding: [(1, 2), (3, 4), (5, 6)], padding_mode, ..Window::default() };
    Conv3dProblem::new([1, 1, 7, 8, 9], [1, 1, 2, 2, 2], None, window, FloatType::F32).expect("valid")
}

/// Every axis keeps its own zeros and gets its own padding; the output stays what it was.
#[test]
fn padding_other_than_zeros_becomes_part_of_the_input() {
    for (modes, input, zeros) in [
        ([Zeros; 3], [7, 8, 9], [(1, 2), (3, 4), (5, 6)]),
        ([Replicate, Zeros, Circular], [10, 8, 20], [(0, 0), (3, 4), (0, 0)]),
        ([Zeros, Reflect, Zeros], [7, 15, 9], [(1, 2), (0, 0), (5, 6)]),
        ([Replicate; 3], [10, 15, 20], [(0, 0); 3]),
    ] {
        let (problem, padded) = (with_modes(modes), with_modes(modes).explicitly_padded());
        assert_eq!((padded.input, padded.window.padding), (input, zeros), "{modes:?}");
        assert_eq!(padded.window.padding_mode, [Zeros; 3]);
        assert_eq!(padded.output(), problem.output(), "{modes:?}");
    }
}

/// All zeros or all replicate; a stream's depth may have the other one. Axes without padding take the mode of
/// the others.
#[test]
fn windows_have_one_mode_of_zeros_or_replicate_padding() {
    for (modes, whole, stream) in [
        ([Zeros; 3], true, true),
        ([Replicate; 3], true, true),
        ([Reflect; 3], false, false),
        ([Circular; 3], false, false),
        ([Zeros, Replicate, Zeros], false, false),
        ([Replicate, Replicate, Zeros], false, false),
        ([Replicate, Zeros, Zeros], false, true),
        ([Reflect, Zeros, Zeros], false, false),
    ] {
        let problem = with_modes(modes);
        assert_eq!(problem.window_padding().is_some(), whole, "{modes:?}");
        assert_eq!(problem.for_streams().window_padding().is_some(), stream, "{modes:?}");
    }
    let window = Window {
        padding: [(1, 1), (0, 0), (0, 0)],
        padding_mode: [Replicate, Circular, Zeros],
        ..Window::default()
    };
    let one =
        Conv3dProblem::new([1, 1, 4, 4, 4], [1, 1, 2, 2, 2], None, window, FloatType::F32).expect("valid");
    assert_eq!((one.window.padding_mode, one.window_padding()), ([Replicate; 3], Some([Replicate; 2])));
}

/// Of a stream the forward pass is planned for one window along depth, whatever its frames and padding.
#[test]
fn streams_are_planned_for_a_single_window_along_depth() {
    let problem = with_modes([Replicate; 3]);
    let stream = problem.for_streams();
    let planned = stream.planned(Pass::Forward);
    assert_eq!(planned.input, [2, 8, 9]);
    assert_eq!(planned.window.padding, [(0, 0), (3, 4), (5, 6)]);
    assert_eq!(planned.output(), [1, stream.output()[1], stream.output()[2]]);
    assert_eq!(stream.planned(Pass::WeightGradient), stream);
    assert_eq!(problem.planned(Pass::Forward), problem);
    // A plan that cannot read what the piece does.
    let reflected = with_modes([Reflect, Zeros, Zeros]).for_streams().planned(Pass::Forward);
    assert_eq!((reflected.window.padding[0], reflected.window_padding()), ((0, 0), None));
}

/// Depth and the plane may differ, height and width may not; an axis without padding has any mode.
#[test]
fn winograd_and_windows_read_zeros_or_replicate() {
    for (modes, winograd, window) in [
        ([Zeros; 3], Some([Zeros; 2]), Some([Zeros; 2])),
        ([Replicate; 3], Some([Replicate; 2]), Some([Replicate; 2])),
        ([Replicate, Zeros, Zeros], Some([Replicate, Zeros]), None),
        ([Zeros, Replicate, Replicate], Some([Zeros, Replicate]), None),
        ([Zeros, Replicate, Zeros], None, None),
        ([Reflect, Zeros, Zeros], None, None),
        ([Zeros, Circular, Circular], None, None),
    ] {
        let problem = with_modes(modes);
        assert_eq!(problem.winograd_padding(), winograd, "{modes:?}");
        assert_eq!(problem.window_padding(), window, "{modes:?}");
        assert_eq!(problem.for_streams().window_padding(), winograd, "{modes:?}");
        assert_eq!(problem.shared_padding(), modes[0]);
    }
    let mut depth = with_modes([Reflect, Zeros, Replicate]);
    depth.window.padding[0] = (0, 0);
    assert_eq!(depth.winograd_padding(), None);
    depth.window.padding[2] = (0, 0);
    assert_eq!(depth.winograd_padding(), Some([Zeros; 2]));
    depth.window.padding[2] = (0, 1);
    depth.window.padding[1] = (0, 0);
    assert_eq!(depth.winograd_padding(), Some([Zeros, Replicate]));
}

/// Circular padding goes once around the input, reflect padding stays inside it.
#[test]
fn the_most_padding_of_an_axis() {
    let of = |mode, padding| {
        let window =
            Window { padding: [(0, 0), (0, 0), padding], padding_mode: [mode; 3], ..Window::default() };
        Conv3dProblem::new([1, 1, 1, 1, 4], [1, 1, 1, 1, 1], None, window, FloatType::F32)
    };
    for (mode, most) in [(Circular, 4), (Reflect, 3)] {
        assert!(of(mode, (most, most)).is_ok());
        for padding in [(most + 1, 0), (0, most + 1)] {
            let message = of(mode, padding).expect_err("too much").to_string();
            assert!(message.contains("input's width, which is 4"), "{message}");
        }
    }
    assert!(of(Replicate, (9, 9)).is_ok() && of(Zeros, (9, 9)).is_ok());
}

/// 2^40 elements are the most of a tensor.
#[test]
fn the_largest_tensor() {
    let of = |batch| {
        let (window, f32) = (Window::default(), FloatType::F32);
        Conv3dProblem::new([batch, 1, 1 << 10, 1 << 10, 1 << 10], [1, 1, 1, 1, 1], None, window, f32)
    };
    assert!(of(1 << 10).is_ok());
    assert!(matches!(of((1 << 10) + 1), Err(ConvError::TooLarge(_))));
}

/// Two images of 3 * 4 * 5 positions, 6 output channels of 2 channels and 2 * 2 * 2 taps each.
#[test]
fn multiply_adds_are_those_of_the_direct_algorithm() {
    let window = Window { groups: 2, ..Window::default() };
    let problem = Conv3dProblem::new([2, 4, 4, 5, 6], [6, 2, 2, 2, 2], None, window, FloatType::F32);
    assert_eq!(problem.expect("valid").multiply_adds(), (2 * 3 * 4 * 5 * 6 * 2 * 8) as f64);
}
