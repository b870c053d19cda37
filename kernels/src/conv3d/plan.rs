//! Which algorithm serves a problem: a pure function of problem, pass and limits, so the same problem on the
//! same kind of device always rounds the same way.
//!
//! | plan         | passes      | serves                                            | workspace                            |
//! |--------------|-------------|---------------------------------------------------|--------------------------------------|
//! | Depthwise    | all         | groups = C = O, at most 80 taps                   | dw: fp32 partials                    |
//! | Gemm         | all         | at most 10 taps along an axis with padding        | fp32 partials where the sum is split |
//! | MatrixGemm   | all         | the same, where the device has matrix units       | the same                             |
//! | WindowGemm  | forward, dx | the same, stride 1 in the plane, where a window fits shared memory | packed weights, fp32 partials where the sum is split |
//! | Head         | all         | at most 4 result channels per group, stride and dilation 1, where a window fits shared memory | fp32 partials where the sum is split |
//! | Stem         | dx          | at most 4 input channels per group, where a window fits shared memory | packed weights, fp32 partials where the sum is split |
//! | Winograd     | all         | 3x3 in plane, stride and dilation 1 there, groups 1; dx: depth stride 1; dw: not F(6x6) | stated by the plan |
//! | ImplicitGemm | all         | everything: the first, simple tiling              | dw: fp32 partials                    |
//! | Direct       | all         | everything: one result per unit                   | dw: fp32 partials                    |
//!
//! Under replicate padding the input gradient of all but `Direct` is computed in fp32 on the padded input and
//! folded: its plan is chosen for that problem, checked for it and launched on it.
//!
//! A plan that needs more than the device has ([`super::Needs`]) makes room for the next: smaller tiles of
//! the same product, at last `Direct`.
//!
//! [`Algorithm::Auto`] takes Winograd where the rule and the table of `winograd/choice.rs` say that it is
//! faster, else, as [`Algorithm::NoWinograd`] does always, the first of Depthwise, Head (where at most half of
//! its tiles is empty), Stem (where it computes at most twice as much as the engine), the engine (MatrixGemm
//! or Gemm) and ImplicitGemm that serves. Head's tile is the cheapest by a count of instructions and sectors
//! (`head/config.rs`): 96 to 3 channels, 4x480x832, f32, forward 0.70 ms where the engine takes 4.7, dw 1.2
//! and 6.1; dx of 3 channels at stride 1 0.11, Stem 0.155. Stem's follows the channels times the positions of
//! a stride by a stride: up to 4 of them 1024x4, more 512x12 (7x7x7, stride 2: 2.0 ms, the engine 9.7), on
//! matrix units 128x16 (f16: 1.3 ms, the engine 7.9). The engine's tiles: `gemm/choice.rs`.

use super::few_outputs::{self, FewOutputsTile};
use super::gemm::{self, MatrixTile, RegisterTile, stage_type};
use super::problem::Conv3dProblem;
use super::subpixel::{self, SubpixelTile};
use super::tile::TileConfig;
use super::window::{self, WindowTile, WindowWeightTile};
use super::winograd::{self, WinogradConfig, WinogradTile};
use super::{depthwise, fold};
use crate::error::ConvError;
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

/// What the caller asks for. A forced algorithm that cannot serve the forward pass is an error; a gradient it
/// cannot serve is computed by the automatic choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// The plan of this module's table.
    #[default]
    Auto,
    /// As `Auto`, without Winograd: the error of an fp32 sum, and a NaN in x reaches no result but those
    /// whose windows hold it.
    NoWinograd,
    /// One output per unit. What is not there is not multiplied: an infinite weight reaches only the results
    /// of windows that hold an element there.
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
    /// See `depthwise/`.
    Depthwise,
    /// See `gemm/`.
    Gemm(RegisterTile),
    /// See `gemm/matrices.rs`.
    MatrixGemm(MatrixTile),
    /// See `shifted/`.
    WindowGemm(WindowTile),
    /// See `shifted/weight.rs`.
    WindowWeight(WindowWeightTile),
    /// See `head/`.
    FewOutputs(FewOutputsTile),
    /// See `stem/`.
    Subpixel(SubpixelTile),
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
            Self::Depthwise => "depthwise".into(),
            Self::Gemm(tile) => format!("gemm_{}", tile.name()),
            Self::MatrixGemm(tile) => format!("matrix_gemm_{}", tile.name()),
            Self::WindowGemm(tile) => format!("window_gemm_{}", tile.name()),
            Self::WindowWeight(tile) => format!("window_weight_{}", tile.name()),
            Self::FewOutputs(tile) => format!("few_outputs_{}", tile.name()),
            Self::Subpixel(tile) => format!("subpixel_{}", tile.name()),
            Self::Winograd(config) if config.mma_tile.is_some() => format!("{}_matrices", config.tile.name()),
            Self::Winograd(config) => config.tile.name().into(),
        }
    }
}

/// A plan's tiles: how many a pass computes, and what each of them multiplies, padding included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// Tiles of all groups and stride phases.
    pub count: usize,
    /// Rows of a tile.
    pub rows: usize,
    /// Columns of a tile.
    pub columns: usize,
    /// Terms of each sum.
    pub terms: usize,
}

impl Tiles {
    /// Products that all tiles compute, which 64 bits may not count.
    pub fn products(&self) -> f64 {
        [self.count, self.rows, self.columns, self.terms].iter().map(|extent| *extent as f64).product()
    }
}

impl Plan {
    /// The plan's tiles; nothing for plans that are not matrix products of one launch.
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
        let engine = matches!(self, Self::Gemm(_) | Self::MatrixGemm(_));
        let patches = engine && gemm::is_patches(problem, pass);
        let (rows, columns) = product_extents(problem, pass, patches);
        let terms = match pass {
            Pass::Forward => problem.group_channels() * problem.taps(),
            Pass::InputGradient if patches => problem.group_out_channels(),
            Pass::InputGradient => problem.group_out_channels() * problem.taps(),
            Pass::WeightGradient => problem.positions(),
        };
        let (phases, share) = if engine { gemm::choice::phases(problem, pass) } else { (1, 1.0) };
        let (tile_rows, tile_columns, tile_terms) = match (self, pass) {
            (Self::ImplicitGemm(tile), _) => (tile.tile_m, tile.tile_n, tile.tile_k),
            // The weight gradient's sites are the product's columns.
            (Self::Gemm(tile), Pass::WeightGradient) => (tile.tile_n, tile.tile_m, tile.tile_k),
            (Self::MatrixGemm(tile), Pass::WeightGradient) => (tile.tile_n, tile.tile_m, tile.tile_k),
            (Self::Gemm(tile), _) => (tile.tile_m, tile.tile_n, tile.tile_k),
            (Self::MatrixGemm(tile), _) => (tile.tile_m, tile.tile_n, tile.tile_k),
            _ => return None,
        };
        let of_phase = rows.div_ceil(phases).div_ceil(tile_rows) * columns.div_ceil(tile_columns);
        let terms = ((terms as f64 * share).ceil() as usize).next_multiple_of(tile_terms);
        Some(Tiles {
            count: problem.window.groups * phases * of_phase,
            rows: tile_rows,
            columns: tile_columns,
            terms,
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
    // Chosen for what is launched.
    let launched = &fold::launched(problem, pass);
    let candidates = match algorithm {
        Algorithm::Auto => {
            let strict = strict(launched, pass, limits);
            let winograd = winograd::winner(launched, pass, &strict, limits).map(Plan::Winograd);
            let preferred = winograd.into_iter().chain([strict]);
            preferred.chain(products(launched, pass)).chain([Plan::Direct]).collect()
        }
        Algorithm::NoWinograd => {
            let preferred = [strict(launched, pass, limits)].into_iter();
            preferred.chain(products(launched, pass)).chain([Plan::Direct]).collect()
        }
        Algorithm::Direct => vec![Plan::Direct],
        Algorithm::ImplicitGemm => {
            let engine = gemm::serves(launched, pass).then(|| gemm::choice::choose(launched, pass, limits));
            engine.into_iter().chain(products(launched, pass)).collect()
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

/// The first plan whose needs the device meets; where there is none, why the first one is refused.
fn first_that_serves(
    plans: &[Plan],
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> Result<Plan, ConvError> {
    let mut refusal = None;
    for plan in plans {
        match plan.needs(problem, pass, limits).check(plan, pass, limits) {
            Ok(()) => return Ok(*plan),
            Err(error) => refusal = refusal.or(Some(error)),
        }
    }
    Err(refusal.expect("there is always a candidate"))
}

/// Matrix products that take the place of a plan whose needs the device does not meet, the fastest first.
fn products(problem: &Conv3dProblem, pass: Pass) -> Vec<Plan> {
    let (_, columns) = product_extents(problem, pass, false);
    let wide = if columns > 8 { RegisterTile::M64N64 } else { RegisterTile::M128N8 };
    let engine = gemm::serves(problem, pass).then_some(Plan::Gemm(wide));
    let first = tile_for(problem, pass);
    engine.into_iter().chain([first, TileConfig::SMALL].map(Plan::ImplicitGemm)).collect()
}

/// Every plan that serves the pass: what the tests run and the benchmarks time.
pub fn eligible(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Vec<Plan> {
    if result_is_empty(problem, pass) {
        return vec![Plan::Empty];
    }
    let (asked, problem) = (problem, &fold::launched(problem, pass));
    let winograd = WinogradTile::ALL
        .into_iter()
        .filter_map(|tile| winograd::config(problem, pass, tile, limits).ok())
        // On matrix units all of them; one without as well.
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
        .filter(|plan| plan.needs(asked, pass, limits).check(plan, pass, limits).is_ok())
        .collect()
}

/// The tiles on matrix units for the problem's type.
pub(super) fn matrix_tiles(
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> impl Iterator<Item = MatrixTile> {
    let fragment = stage_type(problem.dtype, limits).filter(|_| gemm::serves(problem, pass));
    MatrixTile::all(fragment.map_or(0, |(_, fragment)| fragment)).iter().copied()
}

/// The tiles of the shifted product that serve the pass.
pub(super) fn window_tiles(
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> impl Iterator<Item = WindowTile> {
    let tiles = window::tiles(problem, limits).iter().copied();
    tiles.filter(move |tile| window::serves(problem, pass, tile, limits))
}

/// The tiles of the shifted weight gradient that serve the pass.
pub(super) fn window_weight_tiles(
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> impl Iterator<Item = WindowWeightTile> {
    let tiles = window::weight::tiles(problem, limits).iter().copied();
    tiles.filter(move |tile| window::weight::serves(problem, pass, tile))
}

pub(super) fn result_is_empty(problem: &Conv3dProblem, pass: Pass) -> bool {
    let empty = |shape: [usize; 5]| shape.contains(&0);
    match pass {
        Pass::Forward => empty(problem.y_shape()),
        Pass::InputGradient => empty(problem.x_shape()),
        Pass::WeightGradient => empty(problem.weight_shape()),
    }
}

fn strict(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Plan {
    if depthwise::serves(problem, pass) {
        Plan::Depthwise
    } else if let Some(tile) = few_outputs::choice(problem, pass, limits) {
        Plan::FewOutputs(tile)
    } else if let Some(tile) = subpixel::choice(problem, pass, limits) {
        Plan::Subpixel(tile)
    } else if gemm::serves(problem, pass) {
        gemm::choice::choose(problem, pass, limits)
    } else {
        Plan::ImplicitGemm(tile_for(problem, pass))
    }
}

/// Rows and columns of one group's matrix product; `patches` where an input gradient's windows are its rows.
pub(super) fn product_extents(problem: &Conv3dProblem, pass: Pass, patches: bool) -> (usize, usize) {
    let inputs = problem.batch * problem.input.iter().product::<usize>();
    match pass {
        Pass::Forward => (problem.positions(), problem.group_out_channels()),
        Pass::InputGradient if patches => (problem.positions(), problem.group_channels() * problem.taps()),
        Pass::InputGradient => (inputs, problem.group_channels()),
        Pass::WeightGradient => (problem.group_out_channels(), problem.group_channels() * problem.taps()),
    }
}

fn tile_for(problem: &Conv3dProblem, pass: Pass) -> TileConfig {
    let (rows, columns) = product_extents(problem, pass, false);
    if rows > 32 && columns > 32 { TileConfig::LARGE } else { TileConfig::SMALL }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
