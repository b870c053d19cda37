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

/// All zeros or all replicate, and no stream. Axes without padding take the mode of the others.
#[test]
fn plain_problems_have_one_mode_of_zeros_or_replicate_padding() {
    for (modes, plain) in [
        ([Zeros; 3], true),
        ([Replicate; 3], true),
        ([Reflect; 3], false),
        ([Circular; 3], false),
        ([Zeros, Replicate, Zeros], false),
        ([Replicate, Replicate, Zeros], false),
        ([Reflect, Zeros, Zeros], false),
    ] {
        let problem = with_modes(modes);
        assert_eq!(problem.is_plain(), plain, "{modes:?}");
        assert!(!problem.for_streams().is_plain(), "{modes:?}");
    }
    let window = Window {
        padding: [(1, 1), (0, 0), (0, 0)],
        padding_mode: [Replicate, Circular, Zeros],
        ..Window::default()
    };
    let one =
        Conv3dProblem::new([1, 1, 4, 4, 4], [1, 1, 2, 2, 2], None, window, FloatType::F32).expect("valid");
    assert_eq!((one.window.padding_mode, one.is_plain()), ([Replicate; 3], true));
}
