//! Device resources that a Winograd plan needs.

use super::product::chunk_stages;
use super::region::Correlation;
use super::weight_product::{MAX_STAGES, slices};
use super::{PRODUCT, WinogradConfig};
use crate::conv3d::loops::nest;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::limits::Limits;

/// Bytes of threadgroup memory, threads and loop iterations per thread, for a launched problem.
pub(crate) fn needs(
    problem: &Conv3dProblem,
    pass: Pass,
    config: &WinogradConfig,
    limits: &Limits,
) -> (usize, usize, usize) {
    if pass == Pass::WeightGradient {
        let iterations = weight_iterations(&Correlation::of(problem, pass), config, limits);
        return (PRODUCT.shared_bytes(), PRODUCT.threads(), iterations);
    }
    let iterations = product_iterations(config, problem.kernel[0], limits);
    match config.mma_tile {
        Some(tile) => (tile.shared_bytes(4), tile.threads(), iterations),
        None => (PRODUCT.shared_bytes(), PRODUCT.threads(), iterations),
    }
}

/// Loop iterations of a thread: stages, their K elements, and the depth taps skipped at either end.
fn product_iterations(config: &WinogradConfig, kernel_depth: usize, limits: &Limits) -> usize {
    let tile_k = config.mma_tile.map_or(PRODUCT.tile_k, |tile| tile.tile_k);
    let inner = if config.mma_tile.is_some() || limits.unroll { 0 } else { nest(tile_k, 0) };
    nest(chunk_stages(config.tile, tile_k) as usize, inner) + 2 * nest(kernel_depth, 0)
}

/// Loop iterations of a thread: stages and their K elements, or the slices of the last step.
fn weight_iterations(correlation: &Correlation, config: &WinogradConfig, limits: &Limits) -> usize {
    let inner = if limits.unroll { 0 } else { nest(PRODUCT.tile_k, 0) };
    nest(MAX_STAGES + 1, inner).max(nest(slices(correlation, config.tile, limits), 0))
}
