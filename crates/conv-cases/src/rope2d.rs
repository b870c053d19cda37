//! RoPE2D: the conformance table and token positions.

use crate::{fill, pairwise};

/// One problem: tokens `[B, H, N, D]` (or `[B, N, H, D]`), positions `[B, N, 2]` (row, column).
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// Unique within its table: lower case words joined by `_`.
    pub name: String,
    /// Batch.
    pub b: usize,
    /// Heads.
    pub h: usize,
    /// Tokens.
    pub n: usize,
    /// Head dimension, a multiple of 4.
    pub d: usize,
    /// Layout `[B, N, H, D]` instead of `[B, H, N, D]`.
    pub bnhd: bool,
    /// Base of the frequencies.
    pub base: f32,
    /// Factor of every angle.
    pub f0: f32,
    /// Whether some positions are negative.
    pub negative: bool,
    /// Whether positions are 64-bit integers instead of 32-bit.
    pub int64: bool,
}

const BATCHES: [usize; 3] = [1, 2, 3];
const HEADS: [usize; 5] = [1, 2, 3, 5, 12];
/// One token, primes, the grids of public models, and the boundaries of a threadgroup.
const TOKENS: [usize; 11] = [1, 2, 3, 7, 16, 31, 63, 64, 65, 97, 196];
const DIMS: [usize; 9] = [4, 8, 12, 20, 32, 64, 96, 128, 260];
const BASES: [f32; 3] = [100.0, 10_000.0, 7.5];
const FACTORS: [f32; 3] = [1.0, 0.5, -2.0];
/// Levels of (B, H, N, D, layout, base, factor, negative, 64-bit).
const LEVELS: [usize; 9] =
    [BATCHES.len(), HEADS.len(), TOKENS.len(), DIMS.len(), 2, BASES.len(), FACTORS.len(), 2, 2];

/// The largest number of elements of a case in [`conformance`].
const MAX_ELEMENTS: usize = 120_000;

/// Problems that the kernel must get right: every number of tokens with every head dimension in both layouts,
/// the other options spread over those so that all pairs meet.
#[must_use]
pub fn conformance() -> Vec<Case> {
    let mut seeds = Vec::new();
    for n in 0..TOKENS.len() {
        for (d, layout) in (0..DIMS.len()).flat_map(|d| [0, 1].map(|layout| (d, layout))) {
            let mut seed = vec![None; LEVELS.len()];
            (seed[2], seed[3], seed[4]) = (Some(n), Some(d), Some(layout));
            seeds.push(seed);
        }
    }
    let small = |row: &[Option<usize>]| {
        let at = |axis: usize| row[axis].unwrap_or(0);
        BATCHES[at(0)] * HEADS[at(1)] * TOKENS[at(2)] * DIMS[at(3)] <= MAX_ELEMENTS
    };
    let rows = pairwise::cover(&LEVELS, &seeds, small);
    let mut cases: Vec<Case> = rows.iter().map(|row| case(row)).collect();
    // What DUSt3R and VGGT run, at one head.
    for (n, d) in [(768, 64), (1374, 64)] {
        let name = format!("model_n{n}_d{d}");
        let case = Case { name, b: 1, h: 1, n, d, ..case(&[0; 9]) };
        cases.push(Case { int64: true, ..case });
    }
    cases
}

fn case(row: &[usize]) -> Case {
    let (b, h, n, d) = (BATCHES[row[0]], HEADS[row[1]], TOKENS[row[2]], DIMS[row[3]]);
    let [bnhd, negative, int64] = [row[4], row[7], row[8]].map(|level| level == 1);
    let mut name = format!("b{b}_h{h}_n{n}_d{d}_{}", if bnhd { "bnhd" } else { "bhnd" });
    name += ["", "_base10000", "_base7"][row[5]];
    name += ["", "_half", "_reversed"][row[6]];
    for (word, on) in [("negative", negative), ("int64", int64)] {
        if on {
            name = format!("{name}_{word}");
        }
    }
    Case { name, b, h, n, d, bnhd, base: BASES[row[5]], f0: FACTORS[row[6]], negative, int64 }
}

/// Positions `[B, N, 2]` of a case as (row, column).
///
/// Batch entry 0 is a row-major grid of about square shape; the others are deterministic random positions
/// below 64, with token 0 at (0, 0). Negative cases move everything by half of its range.
#[must_use]
pub fn positions(case: &Case) -> Vec<i64> {
    let mut columns = 1;
    while columns * columns < case.n {
        columns += 1;
    }
    let seed = fill::hash(case.n as u64, case.d as u64);
    let mut positions = Vec::with_capacity(case.b * case.n * 2);
    for batch in 0..case.b {
        for token in 0..case.n {
            let (mut y, mut x) = ((token / columns) as i64, (token % columns) as i64);
            let mut shift = columns as i64 / 2 + 1;
            if batch > 0 {
                let index = ((batch * case.n + token) * 2) as u64;
                let random = |offset| if token == 0 { 0 } else { fill::integer(seed, index + offset, 0, 63) };
                (y, x, shift) = (random(0), random(1), 32);
            }
            let shift = if case.negative { shift } else { 0 };
            positions.extend([y - shift, x - shift]);
        }
    }
    positions
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn conformance_covers_all_pairs() {
        let cases = conformance();
        assert!(cases.len() >= 200, "{} cases", cases.len());
        let names: HashSet<_> = cases.iter().map(|case| &case.name).collect();
        assert_eq!(names.len(), cases.len());
        assert!(
            cases.iter().all(|case| case.d % 4 == 0 && case.b * case.h * case.n * case.d <= MAX_ELEMENTS)
        );
        let shows = |case: &Case, axis: usize, level: usize| match axis {
            0 => case.b == BATCHES[level],
            1 => case.h == HEADS[level],
            2 => case.n == TOKENS[level],
            3 => case.d == DIMS[level],
            4 => usize::from(case.bnhd) == level,
            5 => case.base == BASES[level],
            6 => case.f0 == FACTORS[level],
            7 => usize::from(case.negative) == level,
            _ => usize::from(case.int64) == level,
        };
        for (i, a, j, b) in pairwise::pairs(&LEVELS) {
            assert!(
                cases.iter().any(|case| shows(case, i, a) && shows(case, j, b)),
                "axes {i} {j}, levels {a} {b}"
            );
        }
    }

    #[test]
    fn positions_are_a_grid_then_random() {
        let case = Case { b: 2, n: 6, negative: false, ..case(&[0; 9]) };
        let grid = [0, 0, 0, 1, 0, 2, 1, 0, 1, 1, 1, 2];
        let values = positions(&case);
        assert_eq!(values[..12], grid);
        assert_eq!(values[12..14], [0, 0]);
        assert!(values.len() == 24 && values[14..].iter().all(|v| (0..64).contains(v)));
        for case in conformance() {
            let values = positions(&case);
            assert_eq!(values.len(), case.b * case.n * 2);
            assert_eq!(values.iter().any(|&v| v < 0), case.negative, "{}", case.name);
            assert!(values.iter().all(|v| v.abs() < 64));
        }
    }
}
