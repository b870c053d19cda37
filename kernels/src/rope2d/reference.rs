//! RoPE2D in f64: the mathematics of the op, and the oracle of its kernel.

use super::{Rope2dProblem, RopeLayout};

/// Rotates row-major `tokens` in the problem's layout by row-major `positions [B, N, 2]`; backwards when `inverse`.
pub fn rotate(problem: &Rope2dProblem, tokens: &[f64], positions: &[i64], inverse: bool) -> Vec<f64> {
    let mut out = vec![0.0; tokens.len()];
    for_each_pair(problem, positions, |u, v, theta| {
        let (sin, cos) = if inverse { -theta } else { theta }.sin_cos();
        out[u] = tokens[u] * cos - tokens[v] * sin;
        out[v] = tokens[v] * cos + tokens[u] * sin;
    });
    out
}

/// `|u| + |v|` for both elements of every pair: no angle makes the two products larger. With it, 2 terms bound the
/// error of [`rotate`] in fp32 (see [`crate::tolerance`]) for positions whose angle f64 still resolves.
pub fn magnitude(problem: &Rope2dProblem, tokens: &[f64]) -> Vec<f64> {
    let mut out = vec![0.0; tokens.len()];
    let positions = vec![0; problem.positions_shape().iter().product()];
    for_each_pair(problem, &positions, |u, v, _| {
        out[u] = tokens[u].abs() + tokens[v].abs();
        out[v] = out[u];
    });
    out
}

/// Calls `visit(u index, v index, theta)` for every rotated pair.
fn for_each_pair(problem: &Rope2dProblem, positions: &[i64], mut visit: impl FnMut(usize, usize, f64)) {
    let q = problem.frequencies();
    for b in 0..problem.batch {
        for n in 0..problem.tokens {
            for h in 0..problem.heads {
                let row = match problem.layout {
                    RopeLayout::Bhnd => (b * problem.heads + h) * problem.tokens + n,
                    RopeLayout::Bnhd => (b * problem.tokens + n) * problem.heads + h,
                };
                for axis in 0..2 {
                    let position = positions[(b * problem.tokens + n) * 2 + axis] as f64;
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
