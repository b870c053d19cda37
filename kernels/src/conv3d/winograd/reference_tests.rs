//! Padding that repeats an edge gives the results and magnitudes of an input that holds it: elements beyond
//! the last output's window do not count.

use super::*;
use crate::conv3d::problem::{PaddingMode, Window};
use crate::dtype::FloatType;

/// Two channels of 2x5x6, of which the tiles' last rows and columns are partly empty.
fn problem() -> Conv3dProblem {
    let window = Window {
        padding: [(1, 0), (1, 1), (1, 1)],
        padding_mode: [PaddingMode::Replicate; 3],
        ..Window::default()
    };
    Conv3dProblem::new([1, 2, 2, 5, 6], [2, 2, 2, 3, 3], None, window, FloatType::F32).expect("valid")
}

fn numbers(count: usize) -> Vec<f64> {
    (0..count).map(|at| (at * 7 % 11) as f64 - 4.5).collect()
}

/// x with a copy of its edges.
fn padded(problem: &Conv3dProblem, x: &[f64]) -> Vec<f64> {
    let [n, c, depth, height, width] = problem.explicitly_padded().x_shape();
    let [_, _, d, h, w] = problem.x_shape();
    let at = |p: usize, axis: usize, extent: usize| {
        p.saturating_sub(problem.window.padding[axis].0).min(extent - 1)
    };
    let mut out = Vec::new();
    for image in 0..n * c {
        for z in 0..depth {
            for y in 0..height {
                for column in 0..width {
                    out.push(x[((image * d + at(z, 0, d)) * h + at(y, 1, h)) * w + at(column, 2, w)]);
                }
            }
        }
    }
    out
}

#[test]
fn the_forward_pass_reads_no_further_than_its_last_window() {
    let problem = problem();
    let (x, w) = (numbers(2 * 2 * 5 * 6), numbers(2 * 2 * 2 * 3 * 3));
    let held = padded(&problem, &x);
    for tile in WinogradTile::ALL {
        for absolute in [false, true] {
            let of =
                |problem: &Conv3dProblem, x: &[f64]| evaluate(problem, Pass::Forward, tile, x, &w, absolute);
            assert_eq!(of(&problem, &x), of(&problem.explicitly_padded(), &held), "{tile:?} {absolute}");
        }
    }
}

#[test]
fn the_weight_gradient_reads_no_further_than_its_last_window() {
    let problem = problem();
    let (x, dy) = (numbers(2 * 2 * 5 * 6), numbers(2 * 2 * 5 * 6));
    let held = padded(&problem, &x);
    for tile in [WinogradTile::F2x2, WinogradTile::F4x4] {
        for absolute in [false, true] {
            let of = |problem: &Conv3dProblem, x: &[f64]| weight_gradient(problem, tile, x, &dy, absolute);
            assert_eq!(of(&problem, &x), of(&problem.explicitly_padded(), &held), "{tile:?} {absolute}");
        }
    }
}
