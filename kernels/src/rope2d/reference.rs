//! RoPE2D in f64: the definition of the op and the oracle of its kernel.

use super::{Rope2dProblem, RopeGrid, RopeLayout};

/// Rotates row-major `tokens` in the problem's layout by row-major `positions [B, N, 2]`; by the opposite
/// angles if `inverse`.
pub fn rotate(problem: &Rope2dProblem, tokens: &[f64], positions: &[i64], inverse: bool) -> Vec<f64> {
    let positions: Vec<f64> = positions.iter().map(|position| *position as f64).collect();
    rotate_at(problem, tokens, &positions, inverse)
}

/// [`rotate`] by positions that need not be integers.
pub fn rotate_at(problem: &Rope2dProblem, tokens: &[f64], positions: &[f64], inverse: bool) -> Vec<f64> {
    let mut out = tokens.to_vec();
    for_each_pair(problem, positions, |u, v, theta| {
        let (sin, cos) = if inverse { -theta } else { theta }.sin_cos();
        out[u] = tokens[u] * cos - tokens[v] * sin;
        out[v] = tokens[v] * cos + tokens[u] * sin;
    });
    out
}

/// Positions `[B, N, 2]` of the problem's tokens on a grid; (0, 0) for the prefix.
pub fn grid_positions(problem: &Rope2dProblem, grid: RopeGrid) -> Vec<i64> {
    let mut row = vec![0; 2 * problem.prefix];
    let (rows, columns) = (grid.rows as i64, grid.columns as i64);
    let first = i64::from(grid.first);
    row.extend((0..rows).flat_map(|y| (0..columns).flat_map(move |x| [y + first, x + first])));
    row.repeat(problem.batch)
}

/// `|u| + |v|` for both elements of every pair, which bounds the two products for any angle. With it, sums of
/// 2 terms bound the error of [`rotate`] in fp32 (see [`crate::tolerance`]), for positions whose angle f64
/// still resolves.
pub fn magnitude(problem: &Rope2dProblem, tokens: &[f64]) -> Vec<f64> {
    let mut out: Vec<f64> = tokens.iter().map(|token| token.abs()).collect();
    let positions = vec![0.0; problem.positions_shape().iter().product()];
    for_each_pair(problem, &positions, |u, v, _| {
        out[u] = tokens[u].abs() + tokens[v].abs();
        out[v] = out[u];
    });
    out
}

/// Calls `visit(u index, v index, theta)` for every rotated pair.
fn for_each_pair(problem: &Rope2dProblem, positions: &[f64], mut visit: impl FnMut(usize, usize, f64)) {
    let q = problem.frequencies();
    for b in 0..problem.batch {
        for n in problem.prefix..problem.tokens {
            for h in 0..problem.heads {
                let row = match problem.layout {
                    RopeLayout::Bhnd => (b * problem.heads + h) * problem.tokens + n,
                    RopeLayout::Bnhd => (b * problem.tokens + n) * problem.heads + h,
                };
                for axis in 0..2 {
                    let position = positions[(b * problem.tokens + n) * 2 + axis];
                    for i in 0..q {
                        let u = row * problem.head_dim + axis * 2 * q + i;
                        visit(u, u + q, f64::from(problem.f0) * position * frequency(problem, i));
                    }
                }
            }
        }
    }
}

/// `base^(-i/Q)`.
pub fn frequency(problem: &Rope2dProblem, i: usize) -> f64 {
    f64::from(problem.base).powf(-(i as f64) / problem.frequencies() as f64)
}
