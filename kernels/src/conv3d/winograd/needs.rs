//! What a Winograd plan asks of a device.

use super::product::part_stages;
use super::region::Correlation;
use super::weight_product::{PART_STAGES, parts};
use super::{PRODUCT, WinogradConfig};
use crate::conv3d::needs::nest;
use crate::conv3d::plan::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::limits::Limits;

/// Bytes of threadgroup memory, threads and loop iterations of a configuration for a launched problem.
pub(crate) fn needs(
    problem: &Conv3dProblem,
    pass: Pass,
    config: &WinogradConfig,
    limits: &Limits,
) -> (usize, usize, usize) {
    if pass == Pass::WeightGradient {
        let turns = weight_turns(&Correlation::of(problem, pass), config, limits);
        return (PRODUCT.shared_bytes(), PRODUCT.threads(), turns);
    }
    let turns = product_turns(config, problem.kernel[0], limits);
    match config.matrices {
        Some(tile) => (tile.shared_bytes(4), tile.threads(), turns),
        None => (PRODUCT.shared_bytes(), PRODUCT.threads(), turns),
    }
}

/// Iterations of the loops of a thread: stages, their terms, and the depth taps left out at either end.
fn product_turns(config: &WinogradConfig, kernel_depth: usize, limits: &Limits) -> usize {
    let tile_k = config.matrices.map_or(PRODUCT.tile_k, |tile| tile.tile_k);
    let inner = if config.matrices.is_some() || limits.unroll { 0 } else { nest(tile_k, 0) };
    nest(part_stages(config.tile, tile_k) as usize, inner) + 2 * nest(kernel_depth, 0)
}

/// Iterations of the loops of a thread: stages and their terms, or the slices of the last step.
fn weight_turns(correlation: &Correlation, config: &WinogradConfig, limits: &Limits) -> usize {
    let inner = if limits.unroll { 0 } else { nest(PRODUCT.tile_k, 0) };
    nest(PART_STAGES + 1, inner).max(nest(parts(correlation, config.tile, limits), 0))
}
