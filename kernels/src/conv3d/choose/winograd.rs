//! When [`Algorithm::Auto`](crate::conv3d::Algorithm::Auto) takes Winograd instead of the plan it would take
//! without it (the baseline).
//!
//! ```text
//! taken if     its seconds <= most * the seconds of the baseline          (`model.rs`)
//!
//! most         0.9; F(2x2) 0.75
//! ```
//!
//! F(4x4) comes before F(2x2): it is faster wherever it beats the baseline. F(6x6) is taken for results of
//! 16 bits, whose rounding hides its error, where it takes less than F(4x4); never for fp32. Both sides need
//! at least 16 channels, because the product works 16 K elements at a time.
//!
//! Half types qualify only where the device has no MMA for them, or fp32 MMA that is as fast (Apple):
//! elsewhere half-precision MMA wins. A transform domain in f16 is outside the error bound: rounding U and V
//! alone costs 5e-4 to 6e-4 of the results' RMS, and f16's guard is 3e-4. Measurements:
//! docs/decisions/winograd.md.

use super::model::seconds;
use crate::conv3d::gemm::stage_type;
use crate::conv3d::pass::Pass;
use crate::conv3d::plan::Plan;
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::winograd::{WinogradConfig, WinogradTile, config, mma_tile};
use crate::dtype::FloatType;
use crate::limits::Limits;
use std::cell::LazyCell;

/// Fewer channels on either side make the product mostly padding.
const MIN_CHANNELS: usize = 16;

/// The most of the baseline's time that Winograd may take.
const MOST: f64 = 0.9;
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
    // Not counted where no tile serves.
    let allowed = LazyCell::new(|| seconds(baseline, problem, pass, limits));
    let timed = |tile| {
        let config = config(problem, pass, tile, limits).ok()?;
        Some((seconds(&Plan::Winograd(config), problem, pass, limits), config))
    };
    let pays = |most: f64, (seconds, _): &(f64, WinogradConfig)| *seconds <= most * *allowed;
    let rounded = problem.dtype != FloatType::F32;
    let large = timed(WinogradTile::F6x6).filter(|_| rounded && pass != Pass::WeightGradient);
    let first = [timed(WinogradTile::F4x4), large].into_iter().flatten().min_by(|a, b| a.0.total_cmp(&b.0));
    let first = first.filter(|timed| pays(MOST, timed));
    // F(4x4) is faster than F(2x2) wherever it beats the baseline.
    first.or_else(|| timed(WinogradTile::F2x2).filter(|timed| pays(MOST_F2, timed))).map(|(_, config)| config)
}
