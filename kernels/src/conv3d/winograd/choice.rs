//! The cost of a Winograd plan, and when [`Algorithm::Auto`](super::super::Algorithm::Auto) takes it instead
//! of the plan it would take without Winograd (the baseline).
//!
//! ```text
//! operations   FLOP of the products, padding of tiles included
//! bytes        x and w once; U, V and M written and read once; y once
//!              (dw: S once more for every 2048 tiles)
//! taken if     operations + bytes * Limits::operations_per_byte
//!              <= 0.9 (F(2x2): 0.75) * weight * multiply-adds of the baseline, padding included
//! weight       1    MMA, at twice the rate of the fp32 multiply-adds that the product may run on
//!              2    fp32 multiply-adds
//!              2.5  the same in tiles of at most 32 channels (forward, dx)
//! ```
//!
//! F(4x4) comes first: it is faster than F(2x2) wherever it beats the baseline. Both sides need at least 16
//! channels, because the product works 16 K elements at a time. The product of dw works 64 channels of both
//! sides at a time, so padding makes dw with fewer channels costly.
//!
//! Half types qualify only where the device has no MMA for them, or fp32 MMA that is as fast (Apple):
//! elsewhere half-precision MMA wins. A transform domain in f16 is outside the error bound: rounding U and V
//! alone costs 5e-4 to 6e-4 of the results' RMS, and f16's guard is 3e-4. Measurements:
//! docs/decisions/winograd.md.

use super::region::Correlation;
use super::{PRODUCT, WinogradConfig, WinogradTile, config, product_mma, weight_product};
use crate::conv3d::fold;
use crate::conv3d::gemm::stage_type;
use crate::conv3d::pass::Pass;
use crate::conv3d::plan::Plan;
use crate::conv3d::problem::Conv3dProblem;
use crate::dtype::FloatType;
use crate::limits::Limits;

/// Fewer channels on either side make the product mostly padding.
const MIN_CHANNELS: usize = 16;

/// FLOP and bytes of a plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// FLOP of the products, padding included.
    pub operations: f64,
    /// Bytes read and written.
    pub bytes: f64,
}

impl WinogradConfig {
    /// The cost of a pass.
    pub fn cost(&self, problem: &Conv3dProblem, pass: Pass) -> Cost {
        let correlation = Correlation::of(&fold::launched(problem, pass), pass);
        let tile = PRODUCT;
        let points = (self.tile.inputs() * self.tile.inputs()) as f64;
        let (c, o) = (correlation.in_channels, correlation.out_channels);
        let filters: f64 = correlation.filter_shape(self.tile).iter().map(|&size| size as f64).product();
        // A row is an output tile. In dw, rows are K elements, padded per region to whole stages.
        let (mut rows, mut transformed, mut sums) = (0.0, 0.0, filters);
        for region in correlation.regions(self.tile, self.region) {
            transformed += (c * region.v_rows() + o * region.m_rows()) as f64 * points;
            if pass == Pass::WeightGradient {
                let launches = weight_product::slice_launches(&region, 1).count() as f64;
                rows += region.m_rows().next_multiple_of(tile.tile_k) as f64;
                sums += launches * filters;
            } else {
                rows += region.m_rows().next_multiple_of(tile.tile_m) as f64;
            }
        }
        let depth = correlation.kernel_depth;
        // M x N of the product, and K.
        let (extents, k_elements) = if pass == Pass::WeightGradient {
            let channels = o.next_multiple_of(tile.tile_m) * c.next_multiple_of(tile.tile_n);
            ((depth * channels) as f64, rows)
        } else {
            (rows * o.next_multiple_of(tile.tile_n) as f64, (depth * c.next_multiple_of(tile.tile_k)) as f64)
        };
        let elements = |shape: [usize; 5]| shape.iter().map(|&size| size as f64).product::<f64>();
        let tensors = [problem.x_shape(), problem.weight_shape(), problem.y_shape()].map(elements);
        let operations = 2.0 * points * extents * k_elements;
        Cost {
            operations,
            bytes: 8.0 * (sums + transformed) + tensors.iter().sum::<f64>() * problem.dtype.size() as f64,
        }
    }
}

/// The Winograd plan that beats `baseline`, if any.
pub(crate) fn winner(
    problem: &Conv3dProblem,
    pass: Pass,
    baseline: &Plan,
    limits: &Limits,
) -> Option<WinogradConfig> {
    let channels = problem.channels.min(problem.out_channels);
    // fp32 MMA, where it exists, is as fast as half-precision MMA.
    let as_fast = stage_type(problem.dtype, limits).is_none() || product_mma::tile(limits).is_some();
    let served = problem.dtype == FloatType::F32 || as_fast;
    if channels < MIN_CHANNELS || !served {
        return None;
    }
    let tiles = baseline.tiles(problem, pass)?;
    let weight = match baseline {
        Plan::MatrixGemm(_) | Plan::WindowGemm(_) => 1.0,
        _ if pass != Pass::WeightGradient && tiles.columns <= 32 => 2.5,
        _ => 2.0,
    };
    let baseline = weight * tiles.products();
    let winner = |tile, most: f64| {
        let config = config(problem, pass, tile, limits).ok()?;
        let cost = config.cost(problem, pass);
        let cost = cost.operations + cost.bytes * limits.operations_per_byte;
        (cost <= most * baseline).then_some(config)
    };
    winner(WinogradTile::F4x4, 0.9).or_else(|| winner(WinogradTile::F2x2, 0.75))
}
