//! [`Family`] of Winograd.

use super::product::chunk_elements;
use super::region::Correlation;
use super::weight_product::{MAX_STAGES, slices};
use super::{
    PRODUCT, WinogradConfig, check, forward_or_input_gradient, product_mma, weight_gradient,
    weight_product_mma,
};
use crate::conv3d::call::Conv3dCall;
use crate::conv3d::family::Family;
use crate::conv3d::loops::nest;
use crate::conv3d::needs::kernel_needs;
use crate::conv3d::notes::{NonFinite, Notes};
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::limits::Limits;
use crate::needs::Needs;
use crate::operand::Operand;

impl Family for WinogradConfig {
    fn plan_name(&self) -> String {
        let suffix = if self.mma_tile.is_some() { "_matrices" } else { "" };
        format!("{}{suffix}", self.tile.name())
    }

    fn serves(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Result<(), ConvError> {
        check(self, problem, pass, limits)
    }

    fn needs(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Needs {
        if pass == Pass::WeightGradient {
            let iterations = weight_iterations(&Correlation::of(problem, pass), self, limits);
            return match self.mma_tile {
                Some(tile) => {
                    kernel_needs(weight_product_mma::shared_bytes(&tile), tile.threads(), iterations)
                }
                None => kernel_needs(PRODUCT.shared_bytes(), PRODUCT.threads(), iterations),
            };
        }
        let iterations = product_iterations(self, problem.kernel[0], limits);
        match self.mma_tile {
            Some(tile) => kernel_needs(product_mma::shared_bytes(), tile.threads(), iterations),
            None => kernel_needs(PRODUCT.shared_bytes(), PRODUCT.threads(), iterations),
        }
    }

    fn notes(&self, _: &Conv3dProblem, pass: Pass, _: &Limits) -> Notes {
        let outputs = if pass == Pass::WeightGradient { 3 } else { self.tile.outputs() };
        Notes {
            tile: Some(self.tile),
            error: self.tile.guard(),
            workspace_bytes: self.workspace_bytes,
            non_finite: NonFinite::Tile(outputs),
            ..Notes::of_sum(pass)
        }
    }

    fn launches(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> usize {
        self.kernels(problem, pass, limits)
    }

    fn waves(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Option<f64> {
        let threadgroups = || self.threadgroups(problem, pass, limits) as f64;
        let counted = self.mma_tile.is_none() && !problem.streaming;
        counted.then(|| threadgroups() / limits.cubes_in_flight as f64)
    }

    fn launch(&self, call: &Conv3dCall, operands: [&Operand; 3]) -> Result<(), ConvError> {
        match call.pass {
            Pass::WeightGradient => weight_gradient(call, *self, operands),
            _ => forward_or_input_gradient(call, *self, operands),
        }
    }

    fn fuses_residual(&self) -> bool {
        true
    }
}

/// Loop iterations of a thread: stages, their K elements, and the depth taps skipped at either end.
fn product_iterations(config: &WinogradConfig, kernel_depth: usize, limits: &Limits) -> usize {
    let tile_k = config.mma_tile.map_or(PRODUCT.tile_k, |tile| tile.tile_k);
    let inner = if config.mma_tile.is_some() || limits.unroll { 0 } else { nest(tile_k, 0) };
    // Of the results with the longest sums.
    let stages = chunk_elements(config.tile, FloatType::F16) / tile_k;
    nest(stages, inner) + 2 * nest(kernel_depth, 0)
}

/// Loop iterations of a thread: stages and their K elements, or the slices of the last step.
fn weight_iterations(correlation: &Correlation, config: &WinogradConfig, limits: &Limits) -> usize {
    let unrolled = config.mma_tile.is_some() || limits.unroll;
    let inner = if unrolled { 0 } else { nest(PRODUCT.tile_k, 0) };
    nest(MAX_STAGES + 1, inner).max(nest(slices(correlation, config.tile, limits), 0))
}
