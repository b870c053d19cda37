//! Which algorithm serves a problem: a pure function of problem, pass and limits, so the same problem on the
//! same kind of device always rounds the same way.
//!
//! | plan         | passes      | serves                                            | workspace          |
//! |--------------|-------------|---------------------------------------------------|--------------------|
//! | Depthwise    | all         | groups = C = O, at most 80 taps                   | dw: partials       |
//! | Gemm         | all         | at most 10 taps along a padded axis               | partials           |
//! | MatrixGemm   | all         | the same, on matrix units                         | partials           |
//! | WindowGemm   | forward, dx | the same, stride 1 along H and W (dx: any) [1]    | weights, partials  |
//! | WindowWeight | dw          | matrix units, stride 1 along H and W [1]          | partials           |
//! | FewOutputs   | all         | <= 4 results per group, stride and dilation 1 [1] | partials           |
//! | Subpixel     | dx          | <= 4 input channels per group [1]                 | weights, partials  |
//! | Winograd     | all         | 3x3 in H x W, stride and dilation 1, groups 1 [2] | stated by the plan |
//! | ImplicitGemm | all         | everything, by a simple tile                      | dw: partials       |
//! | Direct       | all         | everything: one result per thread                 | dw: partials       |
//!
//! Workspace: packed weights and the fp32 partials of split-K. [1] Where the input window of a tile fits
//! shared memory. [2] Depth: any stride (dx: 1) and dilation; dw: not F(6x6).
//!
//! Under replicate padding the input gradient of all plans but `Direct` is computed in fp32 on the padded
//! input and folded: the plan is chosen for that problem, checked for it and launched on it.
//!
//! Where a plan needs more than the device has ([`crate::Needs`]) the next one is taken: smaller tiles of the
//! same GEMM, at last `Direct`.
//!
//! [`Algorithm::Auto`] takes Winograd where the rule and the table of `winograd/choice.rs` say that it is
//! faster. Else, and always under [`Algorithm::NoWinograd`], it takes the first that serves of
//!
//! 1. Depthwise;
//! 2. FewOutputs, where at most half of its tiles is empty: the tile with the least instructions and sectors
//!    (`few_outputs/config.rs`);
//! 3. Subpixel, where it computes at most twice as much as the gathered GEMM. The tile follows the channels
//!    times the positions of a stride x stride block: up to 4 take 1024x4, more 512x12, on matrix units
//!    128x16;
//! 4. the gathered implicit GEMM (MatrixGemm or Gemm), or the window kernels: `gemm/choice.rs`;
//! 5. ImplicitGemm.

use super::few_outputs::{self, FewOutputsTile};
use super::gemm::{self, MatrixTile, RegisterTile, stage_type};
use super::implicit_gemm_tile::TileConfig;
use super::pass::Pass;
use super::problem::Conv3dProblem;
use super::subpixel::{self, SubpixelTile};
use super::window::{self, WindowTile, WindowWeightTile};
use super::winograd::{self, WinogradConfig, WinogradTile};
use super::{depthwise, fold};
use crate::error::ConvError;
use crate::limits::Limits;
use std::fmt::{self, Display, Formatter};

/// What the caller asks for. A forced algorithm that cannot serve the forward pass is an error; a gradient it
/// cannot serve is computed by the automatic choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// The fastest plan by this module's rules.
    #[default]
    Auto,
    /// As `Auto`, without Winograd: the error is that of an fp32 sum, and a NaN in x reaches only the results
    /// whose windows hold it.
    NoWinograd,
    /// One output per thread. Taps in the padding are skipped: an infinite weight reaches only the results
    /// whose windows hold an element there.
    Direct,
    /// Matrix product with operands gathered from x, w and dy.
    ImplicitGemm,
    /// Winograd along H and W, depth taps summed in the transform domain.
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
    /// See `depthwise/`.
    Depthwise,
    /// See `gemm/`.
    Gemm(RegisterTile),
    /// See `gemm/mma.rs`.
    MatrixGemm(MatrixTile),
    /// See `window/`.
    WindowGemm(WindowTile),
    /// See `window/weight/`.
    WindowWeight(WindowWeightTile),
    /// See `few_outputs/`.
    FewOutputs(FewOutputsTile),
    /// See `subpixel/`.
    Subpixel(SubpixelTile),
    /// See `winograd/`.
    Winograd(WinogradConfig),
}

/// The name used in tables, reports and errors.
impl Display for Plan {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "empty"),
            Self::Direct => write!(f, "direct"),
            Self::ImplicitGemm(tile) => {
                write!(f, "implicit_gemm_{}x{}x{}", tile.tile_m, tile.tile_n, tile.tile_k)
            }
            Self::Depthwise => write!(f, "depthwise"),
            Self::Gemm(tile) => write!(f, "gemm_{}", tile.name()),
            Self::MatrixGemm(tile) => write!(f, "matrix_gemm_{}", tile.name()),
            Self::WindowGemm(tile) => write!(f, "window_gemm_{}", tile.name()),
            Self::WindowWeight(tile) => write!(f, "window_weight_{}", tile.name()),
            Self::FewOutputs(tile) => write!(f, "few_outputs_{}", tile.name()),
            Self::Subpixel(tile) => write!(f, "subpixel_{}", tile.name()),
            Self::Winograd(config) if config.mma_tile.is_some() => {
                write!(f, "{}_matrices", config.tile.name())
            }
            Self::Winograd(config) => write!(f, "{}", config.tile.name()),
        }
    }
}

impl Plan {
    /// The name used in tables, reports and errors.
    pub fn name(&self) -> String {
        self.to_string()
    }
}

/// A plan's GEMM tiles: how many a pass computes and the extents of each, padding included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

impl Plan {
    /// The plan's tiles; none for plans that are not a single GEMM.
    pub fn tiles(&self, problem: &Conv3dProblem, pass: Pass) -> Option<Tiles> {
        let problem = &fold::launched(problem, pass);
        if let Self::WindowGemm(tile) = self {
            return window::extent(problem, pass, tile);
        }
        if let Self::WindowWeight(tile) = self {
            return window::weight::extent(problem, tile);
        }
        if let Self::FewOutputs(tile) = self {
            return few_outputs::extent(problem, pass, tile);
        }
        if let Self::Subpixel(tile) = self {
            return subpixel::extent(problem, tile);
        }
        let gathered = matches!(self, Self::Gemm(_) | Self::MatrixGemm(_));
        let patches = gathered && gemm::is_patches(problem, pass);
        let (rows, columns) = product_extents(problem, pass, patches);
        let k = match pass {
            Pass::Forward => problem.group_channels() * problem.taps(),
            Pass::InputGradient if patches => problem.group_out_channels(),
            Pass::InputGradient => problem.group_out_channels() * problem.taps(),
            Pass::WeightGradient => problem.positions(),
        };
        let (phases, share_of_taps) = if gathered { gemm::choice::phases(problem, pass) } else { (1, 1.0) };
        let (tile_rows, tile_columns, tile_k) = match (self, pass) {
            (Self::ImplicitGemm(tile), _) => (tile.tile_m, tile.tile_n, tile.tile_k),
            // The weight gradient swaps rows and columns.
            (Self::Gemm(tile), Pass::WeightGradient) => (tile.tile_n, tile.tile_m, tile.tile_k),
            (Self::MatrixGemm(tile), Pass::WeightGradient) => (tile.tile_n, tile.tile_m, tile.tile_k),
            (Self::Gemm(tile), _) => (tile.tile_m, tile.tile_n, tile.tile_k),
            (Self::MatrixGemm(tile), _) => (tile.tile_m, tile.tile_n, tile.tile_k),
            _ => return None,
        };
        let tiles_per_phase = rows.div_ceil(phases).div_ceil(tile_rows) * columns.div_ceil(tile_columns);
        let k = ((k as f64 * share_of_taps).ceil() as usize).next_multiple_of(tile_k);
        Some(Tiles {
            count: problem.window.groups * phases * tiles_per_phase,
            rows: tile_rows,
            columns: tile_columns,
            terms: k,
        })
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
    // The plan is chosen for the problem that is launched.
    let launched = &fold::launched(problem, pass);
    let candidates = match algorithm {
        Algorithm::Auto => {
            let other = without_winograd(launched, pass, limits);
            let winograd = winograd::winner(launched, pass, &other, limits).map(Plan::Winograd);
            let preferred = winograd.into_iter().chain([other]);
            preferred.chain(fallback_gemms(launched, pass)).chain([Plan::Direct]).collect()
        }
        Algorithm::NoWinograd => {
            let preferred = [without_winograd(launched, pass, limits)].into_iter();
            preferred.chain(fallback_gemms(launched, pass)).chain([Plan::Direct]).collect()
        }
        Algorithm::Direct => vec![Plan::Direct],
        Algorithm::ImplicitGemm => {
            let gathered = gemm::serves(launched, pass).then(|| gemm::choice::choose(launched, pass, limits));
            gathered.into_iter().chain(fallback_gemms(launched, pass)).collect()
        }
        Algorithm::Winograd(tile) => vec![Plan::Winograd(winograd::config(launched, pass, tile, limits)?)],
    };
    first_that_serves(&candidates, problem, pass, limits)
}

/// The plan for a gradient: a forced algorithm where it serves, else the automatic choice.
///
/// # Errors
/// As [`plan`].
pub fn gradient_plan(
    problem: &Conv3dProblem,
    pass: Pass,
    algorithm: Algorithm,
    limits: &Limits,
) -> Result<Plan, ConvError> {
    plan(problem, pass, algorithm, limits).or_else(|_| plan(problem, pass, Algorithm::Auto, limits))
}

/// The first plan whose needs the device meets; if there is none, why the first one is refused.
fn first_that_serves(
    plans: &[Plan],
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> Result<Plan, ConvError> {
    let mut refusal = None;
    for plan in plans {
        match plan.check_needs(problem, pass, limits) {
            Ok(()) => return Ok(*plan),
            Err(error) => refusal = refusal.or(Some(error)),
        }
    }
    Err(refusal.expect("there is always a candidate"))
}

/// GEMM plans to fall back on where the device does not meet a plan's needs, the fastest first.
fn fallback_gemms(problem: &Conv3dProblem, pass: Pass) -> Vec<Plan> {
    let (_, columns) = product_extents(problem, pass, false);
    let tile = if columns > 8 { RegisterTile::M64N64 } else { RegisterTile::M128N8 };
    let gathered = gemm::serves(problem, pass).then_some(Plan::Gemm(tile));
    let simple = simple_tile(problem, pass);
    gathered.into_iter().chain([simple, TileConfig::SMALL].map(Plan::ImplicitGemm)).collect()
}

/// Every plan that serves the pass: the tests run and the benchmarks time all of them.
pub fn eligible(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Vec<Plan> {
    if result_is_empty(problem, pass) {
        return vec![Plan::Empty];
    }
    let (asked, problem) = (problem, &fold::launched(problem, pass));
    let winograd = WinogradTile::ALL
        .into_iter()
        .filter_map(|tile| winograd::config(problem, pass, tile, limits).ok())
        // F(4x4) without matrix units as well, where it would use them.
        .flat_map(|config| {
            let registers = config.mma_tile.is_some() && config.tile == WinogradTile::F4x4;
            let registers = registers.then_some(WinogradConfig { mma_tile: None, ..config });
            [Some(config), registers].into_iter().flatten()
        })
        .map(Plan::Winograd);
    let served = gemm::serves(problem, pass);
    let gemm = RegisterTile::ALL.into_iter().filter(|_| served).map(Plan::Gemm);
    [Plan::Direct, Plan::ImplicitGemm(TileConfig::LARGE), Plan::ImplicitGemm(TileConfig::SMALL)]
        .into_iter()
        .chain(gemm)
        .chain(matrix_tiles(problem, pass, limits).map(Plan::MatrixGemm))
        .chain(window_tiles(problem, pass, limits).map(Plan::WindowGemm))
        .chain(window_weight_tiles(problem, pass, limits).map(Plan::WindowWeight))
        .chain(few_outputs::tiles(problem, pass, limits).into_iter().map(Plan::FewOutputs))
        .chain(subpixel::tiles(problem, pass, limits).map(Plan::Subpixel))
        .chain(depthwise::serves(problem, pass).then_some(Plan::Depthwise))
        .chain(winograd)
        .filter(|plan| plan.check_needs(asked, pass, limits).is_ok())
        .collect()
}

/// The tiles on matrix units that serve the pass.
pub(super) fn matrix_tiles(
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> impl Iterator<Item = MatrixTile> {
    let fragment = stage_type(problem.dtype, limits).filter(|_| gemm::serves(problem, pass));
    MatrixTile::all(fragment.map_or(0, |(_, fragment)| fragment)).iter().copied()
}

/// The tiles of the window GEMM that serve the pass.
pub(super) fn window_tiles(
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> impl Iterator<Item = WindowTile> {
    let tiles = window::tiles(problem, limits).iter().copied();
    tiles.filter(move |tile| window::serves(problem, pass, tile, limits))
}

/// The tiles of the window weight gradient that serve the pass.
pub(super) fn window_weight_tiles(
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> impl Iterator<Item = WindowWeightTile> {
    let tiles = window::weight::tiles(problem, limits).iter().copied();
    tiles.filter(move |tile| window::weight::serves(problem, pass, tile))
}

/// Whether the pass has no result to compute.
pub(super) fn result_is_empty(problem: &Conv3dProblem, pass: Pass) -> bool {
    let empty = |shape: [usize; 5]| shape.contains(&0);
    match pass {
        Pass::Forward => empty(problem.y_shape()),
        Pass::InputGradient => empty(problem.x_shape()),
        Pass::WeightGradient => empty(problem.weight_shape()),
    }
}

/// The automatic choice without Winograd.
fn without_winograd(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Plan {
    if depthwise::serves(problem, pass) {
        Plan::Depthwise
    } else if let Some(tile) = few_outputs::choice(problem, pass, limits) {
        Plan::FewOutputs(tile)
    } else if let Some(tile) = subpixel::choice(problem, pass, limits) {
        Plan::Subpixel(tile)
    } else if gemm::serves(problem, pass) {
        gemm::choice::choose(problem, pass, limits)
    } else {
        Plan::ImplicitGemm(simple_tile(problem, pass))
    }
}

/// Rows and columns of one group's GEMM; with `patches` the rows of an input gradient are its windows.
pub(super) fn product_extents(problem: &Conv3dProblem, pass: Pass, patches: bool) -> (usize, usize) {
    let inputs = problem.batch * problem.input.iter().product::<usize>();
    match pass {
        Pass::Forward => (problem.positions(), problem.group_out_channels()),
        Pass::InputGradient if patches => (problem.positions(), problem.group_channels() * problem.taps()),
        Pass::InputGradient => (inputs, problem.group_channels()),
        Pass::WeightGradient => (problem.group_out_channels(), problem.group_channels() * problem.taps()),
    }
}

/// The simple implicit GEMM's tile.
fn simple_tile(problem: &Conv3dProblem, pass: Pass) -> TileConfig {
    let (rows, columns) = product_extents(problem, pass, false);
    if rows > 32 && columns > 32 { TileConfig::LARGE } else { TileConfig::SMALL }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
