//! What [`reach`] says of one non-finite element, worked out by hand.

use super::*;
use crate::conv3d::problem::Window;
use crate::dtype::FloatType;
use Reach::{May, Must, Never};

/// Four channels in two groups, two taps along W, one column of padding behind the input's three.
fn problem() -> Conv3dProblem {
    let window = Window { padding: [(0, 0), (0, 0), (0, 1)], groups: 2, ..Window::default() };
    Conv3dProblem::new([1, 4, 1, 1, 3], [4, 2, 1, 1, 2], None, window, FloatType::F32).expect("valid")
}

fn with_nan(length: usize, at: usize) -> Vec<f64> {
    (0..length).map(|index| if index == at { f64::NAN } else { 1.0 }).collect()
}

#[test]
fn a_weight_reaches_its_channels_of_y_and_dx() {
    let (problem, ones) = (problem(), vec![1.0; 12]);
    // Output channel 3, second channel of its group, second tap.
    let w = with_nan(16, 15);
    let mut expected = vec![Never; 12];
    expected[9..].copy_from_slice(&[Must, Must, May]);
    assert_eq!(reach(&problem, Pass::Forward, [&ones, &w]), expected);
    // Input channel 3. No window's second tap reads the first column.
    expected[9..].copy_from_slice(&[May, Must, Must]);
    assert_eq!(reach(&problem, Pass::InputGradient, [&w, &ones]), expected);
}

#[test]
fn an_element_reaches_the_weights_of_its_channel() {
    let (problem, ones) = (problem(), vec![1.0; 12]);
    // x: the first column of channel 1, which the first tap of output channels 0 and 1 reads.
    let mut expected = vec![Never; 16];
    for o in [0, 1] {
        expected[4 * o + 2..4 * o + 4].copy_from_slice(&[Must, May]);
    }
    assert_eq!(reach(&problem, Pass::WeightGradient, [&with_nan(12, 3), &ones]), expected);
    // dy: the last position of channel 2, whose second tap reads the padding.
    let mut expected = vec![Never; 16];
    expected[8..12].copy_from_slice(&[Must, May, Must, May]);
    assert_eq!(reach(&problem, Pass::WeightGradient, [&ones, &with_nan(12, 8)]), expected);
}

/// The most products of a result of y, dx and dw: windows of a clamped position, copies of a mirrored one.
#[test]
fn the_longest_sums_count_what_an_element_is_read_by() {
    let sums = |padding_mode| {
        let window = Window { padding: [(1, 1); 3], padding_mode: [padding_mode; 3], ..Window::default() };
        let problem = Conv3dProblem::new([2, 3, 4, 5, 6], [7, 3, 1, 3, 2], None, window, FloatType::F32);
        longest_sums(&problem.expect("valid"))
    };
    assert_eq!(sums(PaddingMode::Zeros), [3 * 6, 7 * 6, 2 * 6 * 5 * 7]);
    assert_eq!(sums(PaddingMode::Replicate)[1], 7 * (6 * (3 * 5) * (2 * 7)));
    for mode in [PaddingMode::Reflect, PaddingMode::Circular] {
        assert_eq!(sums(mode), [3 * 6, 7 * 27 * 6, 2 * 6 * 5 * 7], "{mode:?}");
    }
}
