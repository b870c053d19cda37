//! Which algorithm serves a problem: a pure function of problem, pass and limits, so the same problem on the same
//! kind of device always rounds the same way.
//!
//! | plan         | passes        | serves                                                       | workspace            |
//! |--------------|---------------|--------------------------------------------------------------|----------------------|
//! | Direct       | all           | everything                                                   | dw: fp32 partials    |
//! | ImplicitGemm | all           | everything                                                   | dw: fp32 partials; dx under replicate padding: the padded dx in fp32 |
//! | Winograd     | forward, dx   | 3x3 in plane, stride and dilation 1 there, groups 1; dx: depth stride 1 | stated by the plan |
//!
//! Choice under [`Algorithm::Auto`]: nothing to compute, `Empty`; depthwise, or so few rows and columns that a tile
//! would be nearly empty, `Direct`; else `ImplicitGemm` with the tile that wastes less.

use super::problem::Conv3dProblem;
use super::tile::TileConfig;
use super::winograd::{self, WinogradConfig, WinogradTile};
use crate::error::{ConvError, unsupported};
use crate::limits::Limits;

/// What is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// y from x, w and bias.
    Forward,
    /// dx from dy and w.
    InputGradient,
    /// dw from x and dy.
    WeightGradient,
}

impl Pass {
    /// The name used in messages and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::InputGradient => "input gradient",
            Self::WeightGradient => "weight gradient",
        }
    }
}

/// What the caller asks for. A forced algorithm that cannot serve the forward pass is an error; a gradient it cannot
/// serve is computed by the automatic choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// The plan of this module's table.
    #[default]
    Auto,
    /// One output per unit.
    Direct,
    /// Matrix product with gathered operands.
    ImplicitGemm,
    /// Winograd in the plane, depth taps summed in the transform domain.
    Winograd(WinogradTile),
}

/// A chosen algorithm with its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Plan {
    /// The result has no elements: nothing is launched.
    Empty,
    /// See `direct.rs`.
    Direct,
    /// See `implicit_gemm.rs`.
    ImplicitGemm(TileConfig),
    /// See `winograd/`.
    Winograd(WinogradConfig),
}

impl Plan {
    /// The name used in tables and reports.
    pub fn name(&self) -> String {
        match self {
            Self::Empty => "empty".into(),
            Self::Direct => "direct".into(),
            Self::ImplicitGemm(tile) => {
                format!("implicit_gemm_{}x{}x{}", tile.tile_m, tile.tile_n, tile.tile_k)
            }
            Self::Winograd(config) => config.tile.name().into(),
        }
    }
}

/// The plan for one pass.
///
/// # Errors
/// [`ConvError::Unsupported`] with the reason when a forced algorithm cannot serve the pass.
pub fn plan(
    problem: &Conv3dProblem,
    pass: Pass,
    algorithm: Algorithm,
    limits: &Limits,
) -> Result<Plan, ConvError> {
    crate::operand::check_dtype("conv3d", problem.dtype, limits)?;
    if result_is_empty(problem, pass) {
        return Ok(Plan::Empty);
    }
    match algorithm {
        Algorithm::Auto => Ok(automatic(problem, pass)),
        Algorithm::Direct => Ok(Plan::Direct),
        Algorithm::ImplicitGemm => Ok(Plan::ImplicitGemm(tile_for(problem, pass))),
        Algorithm::Winograd(tile) => Ok(Plan::Winograd(winograd::config(problem, pass, tile, limits)?)),
    }
}

/// Every plan that serves the pass: what the tests run and the benchmarks time.
pub fn eligible(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Vec<Plan> {
    if result_is_empty(problem, pass) {
        return vec![Plan::Empty];
    }
    let winograd = WinogradTile::ALL
        .into_iter()
        .filter_map(|tile| winograd::config(problem, pass, tile, limits).ok())
        .map(Plan::Winograd);
    [Plan::Direct, Plan::ImplicitGemm(TileConfig::LARGE), Plan::ImplicitGemm(TileConfig::SMALL)]
        .into_iter()
        .chain(winograd)
        .collect()
}

/// Refuses a plan that was made for another problem.
pub(crate) fn check(
    plan: &Plan,
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> Result<(), ConvError> {
    let empty = result_is_empty(problem, pass);
    let turns = loop_turns(plan, problem, pass);
    if let Some(most) = limits.loop_turns
        && turns > most
    {
        return Err(ConvError::TooLarge(format!(
            "conv3d: the {} by {} sums in {turns} loop turns, this software device ends loops after {most}",
            pass.name(),
            plan.name()
        )));
    }
    match plan {
        Plan::Empty if !empty => {
            unsupported!("conv3d: the plan `empty` was given for a {} that has elements", pass.name())
        }
        Plan::ImplicitGemm(tile) => {
            let (bytes, units) = (tile.shared_bytes(), tile.units());
            if bytes > limits.shared_bytes {
                unsupported!(
                    "conv3d: the tile {}x{}x{} needs {bytes} bytes of shared memory, the device has {}",
                    tile.tile_m,
                    tile.tile_n,
                    tile.tile_k,
                    limits.shared_bytes
                );
            }
            if units > limits.units_per_cube {
                unsupported!(
                    "conv3d: the tile {}x{}x{} needs {units} units per cube, the device has {}",
                    tile.tile_m,
                    tile.tile_n,
                    tile.tile_k,
                    limits.units_per_cube
                );
            }
            Ok(())
        }
        Plan::Winograd(config) if !empty => {
            let largest = winograd::config(problem, pass, config.tile, limits)?;
            let (frames, rows) = (config.region_frames, config.region_rows);
            let within =
                (1..=largest.region_frames).contains(&frames) && (1..=largest.region_rows).contains(&rows);
            if !within {
                unsupported!(
                    "conv3d: a region of {frames} frames and {rows} rows of tiles was planned for another problem, this \
                     one has regions of up to {} frames and {} rows",
                    largest.region_frames,
                    largest.region_rows
                );
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Turns that the loops of one unit make together.
fn loop_turns(plan: &Plan, problem: &Conv3dProblem, pass: Pass) -> usize {
    let stages = |terms: usize| terms.div_ceil(TileConfig::LARGE.tile_k);
    match (plan, pass) {
        (Plan::Empty, _) | (Plan::ImplicitGemm(_), Pass::WeightGradient) => 0,
        (Plan::Direct, _) => super::direct::loop_turns(problem, pass),
        (Plan::ImplicitGemm(_), Pass::Forward) => stages(problem.group_channels() * problem.taps()),
        (Plan::ImplicitGemm(_), _) => stages(problem.group_out_channels() * problem.taps()),
        (Plan::Winograd(_), _) => stages(problem.kernel[0] * problem.channels.max(problem.out_channels)),
    }
}

fn result_is_empty(problem: &Conv3dProblem, pass: Pass) -> bool {
    let empty = |shape: [usize; 5]| shape.contains(&0);
    match pass {
        Pass::Forward => empty(problem.y_shape()),
        Pass::InputGradient => empty(problem.x_shape()),
        Pass::WeightGradient => empty(problem.weight_shape()),
    }
}

fn automatic(problem: &Conv3dProblem, pass: Pass) -> Plan {
    let (rows, columns) = product_extents(problem, pass);
    // Below a quarter of the small tile's columns, more than three quarters of the products would be padding.
    let starved = columns.min(rows) < TileConfig::SMALL.tile_n / 4;
    if starved { Plan::Direct } else { Plan::ImplicitGemm(tile_for(problem, pass)) }
}

/// Rows and columns of one group's matrix product.
fn product_extents(problem: &Conv3dProblem, pass: Pass) -> (usize, usize) {
    let inputs = problem.batch * problem.input.iter().product::<usize>();
    match pass {
        Pass::Forward => (problem.positions(), problem.group_out_channels()),
        Pass::InputGradient => (inputs, problem.group_channels()),
        Pass::WeightGradient => (problem.group_out_channels(), problem.group_channels() * problem.taps()),
    }
}

fn tile_for(problem: &Conv3dProblem, pass: Pass) -> TileConfig {
    let (rows, columns) = product_extents(problem, pass);
    if rows > 32 && columns > 32 { TileConfig::LARGE } else { TileConfig::SMALL }
}

/// How a long sum is cut into parts that different cubes compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReductionSplit {
    /// Number of parts.
    pub parts: usize,
    /// Terms of every part but the last.
    pub length: usize,
}

impl ReductionSplit {
    /// Terms of one part where the workspace allows it: long enough that the partials are few, short enough that a
    /// fp32 sum of them stays accurate and one cube's work stays brief.
    const LENGTH: usize = 8192;

    /// The split of `terms` terms for each of `elements` results, `4 * parts * elements` bytes of workspace.
    pub fn of(terms: usize, elements: usize, limits: &Limits) -> Self {
        let affordable = limits.workspace_bytes / (4 * elements.max(1)) as u64;
        let affordable = usize::try_from(affordable).unwrap_or(usize::MAX).max(1);
        let parts = terms.div_ceil(Self::LENGTH).clamp(1, affordable);
        let length = terms.div_ceil(parts).max(1);
        Self { parts: terms.div_ceil(length).max(1), length }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_covers_every_term_once_within_the_workspace() {
        let limits = Limits { workspace_bytes: 4096, ..Limits::apple_m1() };
        for terms in [0usize, 1, 8191, 8192, 8193, 100_000, 1 << 20] {
            for elements in [1usize, 7, 512, 1024, 5000] {
                let split = ReductionSplit::of(terms, elements, &limits);
                assert!(
                    split.parts >= 1 && split.parts * split.length >= terms,
                    "{terms} {elements} {split:?}"
                );
                assert!((split.parts - 1) * split.length < terms.max(1), "an empty part: {terms} {split:?}");
                assert!(
                    split.parts == 1 || split.parts * elements * 4 <= 4096,
                    "{terms} {elements} {split:?}"
                );
            }
        }
    }
}
