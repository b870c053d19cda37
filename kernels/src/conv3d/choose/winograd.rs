//! When [`Algorithm::Auto`](crate::conv3d::Algorithm::Auto) takes Winograd instead of the plan it would take
//! without it (the baseline).
//!
//! ```text
//! taken if     operations + bytes * Limits::operations_per_byte      (`winograd/cost.rs`)
//!              <= 0.9 (F(2x2): 0.75) * weight * multiply-adds of the baseline, padding included
//! weight       1    MMA, at twice the rate of the fp32 multiply-adds that the product may run on
//!              2    fp32 multiply-adds
//!              2.5  the same in tiles of at most 32 channels (forward, dx)
//! ```
//!
//! F(4x4) comes first: it is faster than F(2x2) wherever it beats the baseline. Both sides need at least 16
//! channels, because the product works 16 K elements at a time.
//!
//! Half types qualify only where the device has no MMA for them, or fp32 MMA that is as fast (Apple):
//! elsewhere half-precision MMA wins. A transform domain in f16 is outside the error bound: rounding U and V
//! alone costs 5e-4 to 6e-4 of the results' RMS, and f16's guard is 3e-4. Measurements:
//! docs/decisions/winograd.md.

use crate::conv3d::gemm::{GemmTile, stage_type};
use crate::conv3d::pass::Pass;
use crate::conv3d::plan::Plan;
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::window::WindowKernel;
use crate::conv3d::winograd::{WinogradConfig, WinogradTile, config, mma_tile};
use crate::dtype::FloatType;
use crate::limits::Limits;

/// Fewer channels on either side make the product mostly padding.
const MIN_CHANNELS: usize = 16;

/// Columns of a tile of fp32 multiply-adds up to which it is slower than a wide one.
const NARROW_COLUMNS: usize = 32;

/// The most of the baseline's cost that Winograd may take.
const MOST_F4: f64 = 0.9;
const MOST_F2: f64 = 0.75;

/// The Winograd plan that beats `baseline`, if any.
pub(super) fn winner(
    problem: &Conv3dProblem,
    pass: Pass,
    baseline: &Plan,
    limits: &Limits,
) -> Option<WinogradConfig> {
    let channels = problem.channels.min(problem.out_channels);
    // fp32 MMA, where it exists, is as fast as half-precision MMA.
    let as_fast = stage_type(problem.dtype, limits).is_none() || mma_tile(limits).is_some();
    let served = problem.dtype == FloatType::F32 || as_fast;
    if channels < MIN_CHANNELS || !served {
        return None;
    }
    let tiles = baseline.family().tiles(problem, pass)?;
    let weight = match baseline {
        Plan::Gemm(GemmTile::Mma(_)) | Plan::Window(WindowKernel::Gemm(_)) => 1.0,
        _ if pass != Pass::WeightGradient && tiles.columns <= NARROW_COLUMNS => 2.5,
        _ => 2.0,
    };
    let baseline = weight * tiles.products();
    let winner = |tile, most: f64| {
        let config = config(problem, pass, tile, limits).ok()?;
        let cost = config.cost(problem, pass);
        let cost = cost.operations + cost.bytes * limits.operations_per_byte;
        (cost <= most * baseline).then_some(config)
    };
    winner(WinogradTile::F4x4, MOST_F4).or_else(|| winner(WinogradTile::F2x2, MOST_F2))
}
