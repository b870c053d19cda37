//! The rotation in f64: the definition of the op and the oracle of its kernel.

use super::{RopeGrid, RopeLayout, RopeProblem, RopeVolume};

/// Rotates row-major `tokens` in the problem's layout by row-major `positions [B, N, axes]`; by the opposite
/// angles if `inverse`.
pub fn rotate(problem: &RopeProblem, tokens: &[f64], positions: &[i64], inverse: bool) -> Vec<f64> {
    let positions: Vec<f64> = positions.iter().map(|position| *position as f64).collect();
    rotate_at(problem, tokens, &positions, inverse)
}

/// [`rotate`] by positions that need not be integers.
pub fn rotate_at(problem: &RopeProblem, tokens: &[f64], positions: &[f64], inverse: bool) -> Vec<f64> {
    let mut out = tokens.to_vec();
    for_each_pair(problem, positions, |u, v, position, radians| {
        let (sin, cos) = sin_cos(position, if inverse { -radians } else { radians });
        out[u] = tokens[u] * cos - tokens[v] * sin;
        out[v] = tokens[v] * cos + tokens[u] * sin;
    });
    out
}

/// Sine and cosine of `position * radians`, of the product as it is: what f64 rounds off of large angles is
/// put back.
pub fn sin_cos(position: f64, radians: f64) -> (f64, f64) {
    let theta = position * radians;
    let (sin, cos) = theta.sin_cos();
    let (sin_rest, cos_rest) = position.mul_add(radians, -theta).sin_cos();
    (sin * cos_rest + cos * sin_rest, cos * cos_rest - sin * sin_rest)
}

/// Positions `[B, N, 2]` of the problem's tokens on a grid; (0, 0) for the prefix.
pub fn grid_positions(problem: &RopeProblem, grid: RopeGrid) -> Vec<i64> {
    let RopeGrid { rows, columns, first } = grid;
    patch_positions(problem, [rows, columns], [first; 2])
}

/// Positions `[B, N, 3]` of the problem's tokens in a volume; zeros for the prefix.
pub fn volume_positions(problem: &RopeProblem, volume: RopeVolume) -> Vec<i64> {
    let RopeVolume { frames, rows, columns, first } = volume;
    patch_positions(problem, [frames, rows, columns], first)
}

/// Positions `[B, N, axes]` of consecutive tokens, the first after the prefix at `offset`.
pub fn line_positions(problem: &RopeProblem, offset: i32) -> Vec<i64> {
    let count = problem.angles.count();
    let mut row = vec![0; count * problem.prefix];
    let places = (0..(problem.tokens - problem.prefix) as i64).map(|place| place + i64::from(offset));
    row.extend(places.flat_map(|place| std::iter::repeat_n(place, count)));
    row.repeat(problem.batch)
}

fn patch_positions<const N: usize>(problem: &RopeProblem, extents: [usize; N], first: [i32; N]) -> Vec<i64> {
    let mut row = vec![0; N * problem.prefix];
    for patch in 0..extents.iter().product() {
        let (mut rest, mut place) = (patch, [0; N]);
        for axis in (0..N).rev() {
            place[axis] = (rest % extents[axis]) as i64 + i64::from(first[axis]);
            rest /= extents[axis];
        }
        row.extend(place);
    }
    row.repeat(problem.batch)
}

/// `|u| + |v|` for both elements of every pair, which bounds the two products for any angle. With it, sums of
/// 2 terms bound the error of [`rotate`] in fp32 (see [`crate::tolerance`]).
pub fn magnitude(problem: &RopeProblem, tokens: &[f64]) -> Vec<f64> {
    let mut out: Vec<f64> = tokens.iter().map(|token| token.abs()).collect();
    let positions = vec![0.0; problem.positions_shape().iter().product()];
    for_each_pair(problem, &positions, |u, v, _, _| {
        out[u] = tokens[u].abs() + tokens[v].abs();
        out[v] = out[u];
    });
    out
}

/// Calls `visit(u index, v index, position, radians)` for every rotated pair.
pub fn for_each_pair(
    problem: &RopeProblem,
    positions: &[f64],
    mut visit: impl FnMut(usize, usize, f64, f64),
) {
    let (frequencies, elements) = (problem.frequencies(), problem.elements());
    let axes = problem.angles.count();
    for b in 0..problem.batch {
        for n in problem.prefix..problem.tokens {
            for h in 0..problem.heads {
                let row = match problem.layout {
                    RopeLayout::Bhnd => (b * problem.heads + h) * problem.tokens + n,
                    RopeLayout::Bnhd => (b * problem.tokens + n) * problem.heads + h,
                };
                let at = row * problem.head_dim;
                for (frequency, [u, v]) in frequencies.iter().zip(&elements) {
                    let position = positions[(b * problem.tokens + n) * axes + frequency.axis];
                    visit(at + u, at + v, position, frequency.radians);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::FloatType;

    /// Both layouts rotate the same token by the same position.
    #[test]
    fn layouts_differ_in_the_order_of_the_axes_alone() {
        let [b, h, n, d] = [2, 3, 5, 8];
        let problem =
            |shape, layout| RopeProblem::rope2d(shape, layout, 100.0, 1.0, FloatType::F32).expect("valid");
        let (heads, tokens) =
            (problem([b, h, n, d], RopeLayout::Bhnd), problem([b, n, h, d], RopeLayout::Bnhd));
        let x: Vec<f64> = (0..b * h * n * d).map(|index| 1.0 + (index % 13) as f64).collect();
        let positions: Vec<i64> = (0..(b * n * 2) as i64).map(|index| 3 * index % 17).collect();
        let transposed = |values: &[f64]| -> Vec<f64> {
            let at = |index: usize| {
                let [b, n, h, d0] = [index / (n * h * d), index / (h * d) % n, index / d % h, index % d];
                ((b * 3 + h) * 5 + n) * d + d0
            };
            (0..values.len()).map(|index| values[at(index)]).collect()
        };
        let want = transposed(&rotate(&heads, &x, &positions, false));
        assert_eq!(rotate(&tokens, &transposed(&x), &positions, false), want);
        assert_ne!(want, transposed(&x));
    }
}
