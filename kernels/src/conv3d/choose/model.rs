//! The time of a plan by its count of operations and bytes: one function for all families.
//!
//! ```text
//! GEMM tiles     max(2 * multiply-adds, padding of tiles included / rate, bytes / bandwidth)
//! Winograd       operations / rate + bytes / bandwidth             its kernels alternate between the two
//! Depthwise      bytes / bandwidth
//! Direct, others 2 * multiply-adds / (rate / 4)                          four times a GEMM's operand loads
//!
//! bytes          x, w and y (or their gradients) once; Winograd: `winograd/cost.rs`
//! rate           [`Chip::matrices`](crate::Chip) or [`Chip::fma`](crate::Chip), whichever the plan runs on;
//!                0.8 of the latter for tiles of at most 32 columns
//! ```
//!
//! Caches, launch overhead and low occupancy are ignored: a lower bound for layers of less than about 5 ms.

use crate::conv3d::gemm::GemmTile;
use crate::conv3d::pass::Pass;
use crate::conv3d::plan::Plan;
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::tiles::gemm_extents;
use crate::limits::Limits;

/// Columns of a tile of fp32 multiply-adds up to which it is slower than a wide one, and its rate relative to
/// that one's.
const NARROW_COLUMNS: usize = 32;
const NARROW_RATE: f64 = 0.8;

/// The rate of kernels without tiles.
const DIRECT_RATE: f64 = 0.25;

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

/// Seconds of a plan on a problem as it is launched.
pub(in crate::conv3d) fn seconds(plan: &Plan, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> f64 {
    let chip = &limits.chip;
    let rate = if is_on_matrices(plan) { chip.matrices } else { chip.fma };
    if let Plan::Winograd(config) = plan {
        let cost = config.cost(problem, pass);
        return cost.operations / rate + cost.bytes / chip.bandwidth;
    }
    let bytes = bytes(plan, problem, pass);
    let operations = match (plan, plan.family().tiles(problem, pass)) {
        (Plan::Empty | Plan::Depthwise(_), _) => 0.0,
        (_, Some(tiles)) => {
            let narrow = pass != Pass::WeightGradient && tiles.columns <= NARROW_COLUMNS;
            let share = if narrow && !is_on_matrices(plan) { NARROW_RATE } else { 1.0 };
            2.0 * tiles.products() / share
        }
        (_, None) => {
            let products: f64 = gemm_extents(problem, pass, false).iter().map(|&size| size as f64).product();
            2.0 * problem.window.groups as f64 * products / DIRECT_RATE
        }
    };
    (operations / rate).max(bytes / chip.bandwidth)
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
