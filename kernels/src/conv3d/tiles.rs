//! A plan as GEMM tiles: what the choices compare and the benchmarks report.

use super::pass::Pass;
use super::problem::Conv3dProblem;

/// A plan's GEMM tiles: how many a pass computes and the extents of each, padding included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tiles {
    /// Tiles of all groups and stride phases.
    pub count: usize,
    /// Rows of a tile.
    pub rows: usize,
    /// Columns of a tile.
    pub columns: usize,
    /// K elements of a tile.
    pub terms: usize,
}

impl Tiles {
    /// Multiply-adds of all tiles; may exceed 64 bits.
    pub fn products(&self) -> f64 {
        [self.count, self.rows, self.columns, self.terms].iter().map(|extent| *extent as f64).product()
    }

    /// The tiles of the GEMM of [`gemm_extents`], of the given M, N and K each, launched in a number of
    /// phases with a fraction of the K elements.
    pub(super) fn of_gemm(
        problem: &Conv3dProblem,
        pass: Pass,
        patches: bool,
        (phases, k_fraction): (usize, f64),
        [rows, columns, tile_k]: [usize; 3],
    ) -> Self {
        let [m, n, k] = gemm_extents(problem, pass, patches);
        let tiles_per_phase = m.div_ceil(phases).div_ceil(rows) * n.div_ceil(columns);
        let terms = ((k as f64 * k_fraction).ceil() as usize).next_multiple_of(tile_k);
        Self { count: problem.window.groups * phases * tiles_per_phase, rows, columns, terms }
    }
}

/// M, N and K of one group's GEMM; with `patches` the rows of an input gradient are its windows.
pub(super) fn gemm_extents(problem: &Conv3dProblem, pass: Pass, patches: bool) -> [usize; 3] {
    let (channels, out_channels) = (problem.group_channels(), problem.group_out_channels());
    let taps = problem.taps();
    match pass {
        Pass::Forward => [problem.positions(), out_channels, channels * taps],
        Pass::InputGradient if patches => [problem.positions(), channels * taps, out_channels],
        Pass::InputGradient => {
            let inputs = problem.batch * problem.input.iter().product::<usize>();
            [inputs, channels, out_channels * taps]
        }
        Pass::WeightGradient => [out_channels, channels * taps, problem.positions()],
    }
}
