//! The time of a plan by its count of operations and bytes: one function for all families.
//!
//! ```text
//! time         launches * launch + work
//!
//! work of      GEMM tiles  max(operations / rate, bytes / bandwidth)  padding of tiles included
//!              Winograd    operations / rate + bytes / bandwidth      its kernels alternate between the two
//!              Depthwise   bytes / bandwidth
//!              Direct      operations / rate
//!
//! operations   2 for each multiply-add
//! launches     kernels, one after the other (`Family::launches`)
//! launch       [`Chip::launch`](crate::Chip)
//! bytes        x, w and y (or their gradients) once; Winograd: `winograd/cost.rs`
//! rate         [`Chip::matrices`](crate::Chip) or [`Chip::fma`](crate::Chip), whichever the plan runs on;
//!              of it what such kernels reach ([`Chip::shares`](crate::Chip)); on multiply-adds times waves /
//!              (whole waves + [`Chip::idle_waves`](crate::Chip)), for part of the device is idle
//! ```
//!
//! Caches, packed weights and the partials of split sums are ignored, and what small grids leave idle on
//! matrix units: counted there, it ranks an H200's plans worse (docs/decisions/launch.md). Where tiles are
//! few, `gemm.rs` chooses among them by whole waves.

use crate::chip::Shares;
use crate::conv3d::gemm::GemmTile;
use crate::conv3d::pass::Pass;
use crate::conv3d::plan::Plan;
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::tiles::gemm_extents;
use crate::limits::Limits;

/// Columns of the tiles of [`Shares::narrow`].
const NARROW_COLUMNS: [usize; 3] = [4, 8, 32];

/// The share of few outputs and of sub-pixel kernels on multiply-adds, forward and dx.
const FEW_COLUMNS_SHARE: f64 = 0.8;

/// Whether a plan multiplies on matrix units.
pub(in crate::conv3d) fn is_on_matrices(plan: &Plan) -> bool {
    match plan {
        Plan::Gemm(GemmTile::Mma(_)) | Plan::Window(_) => true,
        Plan::Subpixel(tile) => tile.fragment > 0,
        Plan::Winograd(config) => config.mma_tile.is_some(),
        _ => false,
    }
}

/// Bytes of a plan on a problem as it is launched.
pub(in crate::conv3d) fn bytes(plan: &Plan, problem: &Conv3dProblem, pass: Pass) -> f64 {
    if let Plan::Winograd(config) = plan {
        return config.cost(problem, pass).bytes;
    }
    let shapes = [problem.x_shape(), problem.weight_shape(), problem.y_shape()];
    let elements = shapes.iter().map(|shape| shape.iter().map(|&size| size as f64).product::<f64>());
    elements.sum::<f64>() * problem.dtype.size() as f64
}

/// What a plan with tiles, or `Direct`, reaches of the rate of the units that it runs on.
fn share(plan: &Plan, pass: Pass, shares: &Shares) -> f64 {
    match plan {
        Plan::Gemm(GemmTile::Mma(_)) => shares.gathered,
        Plan::Window(_) => shares.window,
        Plan::Gemm(GemmTile::Fma(tile)) => {
            let narrow = NARROW_COLUMNS.iter().position(|columns| tile.tile_n <= *columns);
            // A weight gradient's tile has few columns and many rows: 32 are enough.
            let narrow = narrow.filter(|at| pass != Pass::WeightGradient || NARROW_COLUMNS[*at] < 32);
            narrow.map_or(1.0, |at| shares.narrow[at])
        }
        Plan::FewOutputs(_) | Plan::Subpixel(_) if pass != Pass::WeightGradient && !is_on_matrices(plan) => {
            FEW_COLUMNS_SHARE
        }
        Plan::Direct => shares.direct,
        _ => 1.0,
    }
}

/// Seconds of a plan on a problem as it is launched.
pub(in crate::conv3d) fn seconds(plan: &Plan, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> f64 {
    let launches = plan.family().launches(problem, pass, limits) as f64;
    launches * limits.chip.launch + work_seconds(plan, problem, pass, limits)
}

/// [`seconds`] without the launches.
pub(super) fn work_seconds(plan: &Plan, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> f64 {
    let chip = &limits.chip;
    let rate = if is_on_matrices(plan) { chip.matrices } else { chip.fma };
    let waves = plan.family().waves(problem, pass, limits).filter(|waves| *waves > 0.0);
    let rate = rate * waves.map_or(1.0, |waves| waves / (waves.ceil() + chip.idle_waves));
    if let Plan::Winograd(config) = plan {
        let cost = config.cost(problem, pass);
        return cost.operations / rate + cost.bytes / chip.bandwidth;
    }
    let bytes = bytes(plan, problem, pass);
    let operations = match (plan, plan.family().tiles(problem, pass)) {
        (Plan::Empty | Plan::Depthwise(_), _) => 0.0,
        (_, Some(tiles)) => 2.0 * tiles.products(),
        (_, None) => {
            let products: f64 = gemm_extents(problem, pass, false).iter().map(|&size| size as f64).product();
            2.0 * problem.window.groups as f64 * products
        }
    };
    (operations / (share(plan, pass, &chip.shares) * rate)).max(bytes / chip.bandwidth)
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
