//! Which plan is taken: every rule that picks among plans or tiles, one table per question.
//!
//! | question                                            | table in        |
//! |-----------------------------------------------------|-----------------|
//! | which family                                        | this file       |
//! | which tile of the gathered GEMM, or window kernels  | `gemm.rs`       |
//! | Winograd instead                                    | `winograd.rs`   |
//! | how long a plan takes, for Winograd and the tuner   | `model.rs`      |
//! | whether Burn's own op is faster, for its `patch`    | `burn.rs`       |
//!
//! [`Algorithm::Auto`] takes Winograd where it is faster. Else, and always under
//! [`Algorithm::NoWinograd`], it takes the first that serves of
//!
//! | family      | where                                                    | tile                               |
//! |-------------|----------------------------------------------------------|------------------------------------|
//! | Depthwise   | always                                                   | `depthwise/config.rs`, by stride,  |
//! |             |                                                          | dilation and how full tiles are    |
//! | FewOutputs  | tiles compute at most [`MOST_COMPUTED`] times the results| the least instructions and sectors |
//! |             |                                                          | (`few_outputs/config.rs`)          |
//! | Subpixel    | at most [`MOST_COMPUTED`] times the products of the      | by the columns (channels times the |
//! |             | gathered GEMM; not patches                               | positions of a stride x stride     |
//! |             |                                                          | block): up to 4 take 1024x4, more  |
//! |             |                                                          | 128x16 on MMA, else 512x12         |
//! | Gemm,Window | the gathered GEMM serves                                 | `gemm.rs`                          |
//! | Direct      | always                                                   |                                    |
//!
//! A strided input gradient follows the same table: Winograd only at stride 1; `Window` computes all
//! residue classes of the stride in one launch, the gathered GEMM launches each class, up to 512 of them.
//! Patches (the kernel equals the stride, nothing is padded, windows fit exactly) are one GEMM.
//!
//! If the device lacks what the choice needs: the smallest tile of the gathered GEMM, then `Direct`.

pub(super) mod burn;
mod gemm;
pub(super) mod model;
mod winograd;

use super::depthwise::{self, DepthwiseKernel};
use super::few_outputs::{self, FewOutputsTile};
use super::gemm::{self as gathered, GemmTile, RegisterTile};
use super::pass::Pass;
use super::plan::{Algorithm, PassProblem, Plan};
use super::problem::Conv3dProblem;
use super::subpixel::{self, SubpixelTile};
use super::tiles::gemm_extents;
use super::window;
use super::winograd::WinogradTile;
use crate::error::ConvError;
use crate::limits::Limits;

/// The results (few outputs) or products (sub-pixel) that a special kernel may compute, padding of its tiles
/// included, relative to what there are (to the gathered GEMM's).
const MOST_COMPUTED: usize = 2;

/// Columns of the sub-pixel product that fill a tile of four, and would waste most of an MMA fragment.
const FEW_COLUMNS: usize = 4;

/// The size of the MMA fragments that sub-pixel tiles and the times of `gemm.rs` were measured with.
const MEASURED_FRAGMENT: usize = 16;

/// The plan for one pass.
///
/// # Errors
/// [`ConvError::Unsupported`] with the reason when a forced algorithm cannot serve the pass,
/// [`ConvError::DeviceLimit`] when the device lacks what every plan needs, [`ConvError::TooLarge`] when a
/// piece of a stream has more positions than its plan counts.
pub fn plan(
    problem: &Conv3dProblem,
    pass: Pass,
    algorithm: Algorithm,
    limits: &Limits,
) -> Result<Plan, ConvError> {
    choose(&PassProblem::of(problem, pass), algorithm, limits)
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

/// Seconds that the model of `choose/model.rs` predicts for a plan on the device that `limits` describe:
/// operations and bytes at the rates of [`crate::Chip`]. A lower bound for short layers, and never a
/// measurement.
pub fn predicted_seconds(problem: &Conv3dProblem, pass: Pass, plan: &Plan, limits: &Limits) -> f64 {
    model::seconds(plan, plan.launched(&PassProblem::of(problem, pass)), pass, limits)
}

/// Bytes that the model of `choose/model.rs` counts for a plan: x, w and y (or their gradients) once, and
/// Winograd's workspace; not packed weights, nor the partials of split sums.
pub fn predicted_bytes(problem: &Conv3dProblem, pass: Pass, plan: &Plan) -> f64 {
    model::bytes(plan, plan.launched(&PassProblem::of(problem, pass)), pass)
}

/// Every plan that serves the pass and that some choice or its fallback may take on the device: the tests run
/// and the benchmarks time all of them. Only wide tiles of multiply-adds are served beyond these, where
/// matrix units serve the same product (`choose/gemm.rs`).
pub fn eligible(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Vec<Plan> {
    let rewritten = PassProblem::of(problem, pass);
    if rewritten.is_empty() {
        return vec![Plan::Empty];
    }
    let problem = &rewritten.launched;
    let winograd = WinogradTile::ALL
        .into_iter()
        .filter_map(|tile| super::winograd::config(problem, pass, tile, limits).ok());
    let fma = gemm::fma_tiles(&rewritten, limits).into_iter().map(GemmTile::Fma);
    let mma = gathered::mma_tiles(problem, pass, limits).map(GemmTile::Mma);
    let depthwise = depthwise::serves(problem, pass).then(|| DepthwiseKernel::of(problem, pass, limits));
    std::iter::once(Plan::Direct)
        .chain(fma.chain(mma).map(Plan::Gemm))
        .chain(window::kernels(problem, pass, limits).map(Plan::Window))
        .chain(few_outputs::tiles(problem, pass, limits).into_iter().map(Plan::FewOutputs))
        .chain(subpixel::tiles(problem, pass, limits).map(Plan::Subpixel))
        .chain(depthwise.map(Plan::Depthwise))
        .chain(winograd.map(Plan::Winograd))
        .filter(|plan| plan.check_needs(&rewritten, limits).is_ok())
        .filter(|plan| check_piece(plan, &rewritten, limits).is_ok())
        .collect()
}

/// The plan of a pass: the first candidate whose needs the device meets.
///
/// # Errors
/// If the device cannot hold the dtype, if a forced algorithm does not serve, why the device refuses the
/// first candidate where it refuses all, or if a piece of a stream is too large for its plan.
fn choose(problem: &PassProblem, algorithm: Algorithm, limits: &Limits) -> Result<Plan, ConvError> {
    limits.check_dtype("conv3d", problem.asked.dtype)?;
    if problem.is_empty() {
        return Ok(Plan::Empty);
    }
    let mut refusal = None;
    for plan in candidates(&problem.launched, problem.pass, algorithm, limits)? {
        match plan.check_needs(problem, limits) {
            Ok(()) => {
                let plan = for_piece(plan, problem, limits);
                return check_piece(&plan, problem, limits).map(|()| plan);
            }
            Err(error) => refusal = refusal.or(Some(error)),
        }
    }
    Err(refusal.expect("there is always a candidate"))
}

/// The plan of a piece of a stream, made for a single window along depth, with the tile of few outputs for
/// the piece's frames where it serves: a sum does not depend on the tile.
fn for_piece(plan: Plan, problem: &PassProblem, limits: &Limits) -> Plan {
    let piece = plan.launched(problem);
    if !piece.streaming || !matches!(plan, Plan::FewOutputs(_)) {
        return plan;
    }
    let own = few_outputs::cheapest_tile(piece, problem.pass, limits).map(Plan::FewOutputs);
    let serves = |own: &Plan| {
        own.family().serves(piece, problem.pass, limits).is_ok() && own.check_needs(problem, limits).is_ok()
    };
    own.filter(serves).unwrap_or(plan)
}

/// Refuses a piece of a stream that its plan, made for a single window along depth, cannot count. No other
/// plan may take its place: it would give the piece other bits than shorter ones have.
fn check_piece(plan: &Plan, problem: &PassProblem, limits: &Limits) -> Result<(), ConvError> {
    let piece = plan.launched(problem);
    if piece.streaming && plan.family().serves(piece, problem.pass, limits).is_err() {
        return Err(ConvError::TooLarge(format!(
            "conv3d: {plan} cannot count the positions of a piece of a stream {:?}, pass fewer frames at a time",
            piece.x_shape()
        )));
    }
    Ok(())
}

/// The plans for the launched problem of a pass, the preferred one first. At least one.
///
/// # Errors
/// Where Winograd or the implicit GEMM is forced and does not serve.
fn candidates(
    problem: &Conv3dProblem,
    pass: Pass,
    algorithm: Algorithm,
    limits: &Limits,
) -> Result<Vec<Plan>, ConvError> {
    // Of a stream the extent of a region alone depends on the number of frames, and no bit on regions.
    let of_tile = |tile| super::winograd::config(problem, pass, tile, limits).map(Plan::Winograd);
    let problem = &problem.planned(pass);
    Ok(match algorithm {
        Algorithm::Auto => {
            let other = without_winograd(problem, pass, limits);
            let winograd = winograd::winner(problem, pass, &other, limits);
            let winograd = winograd.and_then(|config| of_tile(config.tile).ok());
            winograd.into_iter().chain(with_fallback(other, problem, pass)).collect()
        }
        Algorithm::NoWinograd => with_fallback(without_winograd(problem, pass, limits), problem, pass),
        Algorithm::Direct => vec![Plan::Direct],
        Algorithm::ImplicitGemm => {
            let fallback = fallback_gemm(problem, pass);
            fallback.family().serves(problem, pass, limits)?;
            vec![gemm::choose(problem, pass, limits), fallback]
        }
        Algorithm::Winograd(tile) => vec![of_tile(tile)?],
    })
}

/// The automatic choice without Winograd.
fn without_winograd(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Plan {
    if depthwise::serves(problem, pass) {
        Plan::Depthwise(DepthwiseKernel::of(problem, pass, limits))
    } else if let Some(tile) = few_outputs_tile(problem, pass, limits) {
        Plan::FewOutputs(tile)
    } else if let Some(tile) = subpixel_tile(problem, pass, limits) {
        Plan::Subpixel(tile)
    } else if gathered::serves(problem, pass) {
        gemm::choose(problem, pass, limits)
    } else {
        Plan::Direct
    }
}

/// A plan and what to fall back on where the device does not meet its needs, the fastest first.
fn with_fallback(plan: Plan, problem: &Conv3dProblem, pass: Pass) -> Vec<Plan> {
    let gemm = gathered::serves(problem, pass).then(|| fallback_gemm(problem, pass));
    [Some(plan), gemm, Some(Plan::Direct)].into_iter().flatten().collect()
}

/// The gathered GEMM that needs the least of a device.
fn fallback_gemm(problem: &Conv3dProblem, pass: Pass) -> Plan {
    let [_, columns, _] = gemm_extents(problem, pass, false);
    let tile = if columns > 8 { RegisterTile::M64N64 } else { RegisterTile::M128N8 };
    Plan::Gemm(GemmTile::Fma(tile))
}

/// The tile of few outputs; none where its tiles would be mostly empty.
fn few_outputs_tile(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Option<FewOutputsTile> {
    let tile = few_outputs::cheapest_tile(problem, pass, limits)?;
    let [computed, wanted] = few_outputs::positions(problem, pass, &tile)?;
    let pays = computed <= MOST_COMPUTED * wanted;
    (pays && few_outputs::serves(problem, pass, &tile, limits)).then_some(tile)
}

/// The sub-pixel tile of an input gradient, if it beats the gathered implicit GEMM. Windows that tile the
/// input are left to the GEMM.
fn subpixel_tile(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Option<SubpixelTile> {
    if pass != Pass::InputGradient || gathered::is_patches(problem, pass) {
        return None;
    }
    let tiles = if subpixel::columns(problem) <= FEW_COLUMNS {
        [Some(SubpixelTile::M1024N4), None]
    } else {
        let mma = SubpixelTile::with_fragment(gathered::fragment(problem, limits));
        [mma.filter(|tile| tile.fragment == MEASURED_FRAGMENT), Some(SubpixelTile::M512N12)]
    };
    let computed = |plan: Plan| {
        let tiles = plan.family().tiles(problem, pass)?;
        Some(tiles.count as f64 * (tiles.rows * tiles.columns) as f64 * tiles.terms as f64)
    };
    let most = MOST_COMPUTED as f64 * computed(Plan::Gemm(GemmTile::Fma(RegisterTile::M256N4)))?;
    let beats = |tile: &SubpixelTile| {
        computed(Plan::Subpixel(*tile)).is_some_and(|computed| computed <= most)
            && subpixel::serves(problem, pass, tile, limits)
    };
    tiles.into_iter().flatten().find(beats)
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;

#[cfg(test)]
mod plan_tests;
