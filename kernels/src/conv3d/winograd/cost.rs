//! The cost of a Winograd plan: what `choose/winograd.rs` compares with the other plans.
//!
//! ```text
//! operations   FLOP of the products, padding of tiles included
//! bytes        x, w and y once; U, V and M written and read once, M once more for every further chunk of
//!              the sum (`product.rs`); dw: S once more for every 2048 tiles
//! ```
//!
//! The product of dw works 64 channels of both sides at a time, so padding makes dw with fewer channels
//! costly.

use super::product::chunk_elements;
use super::region::Correlation;
use super::{PRODUCT, WinogradConfig, weight_product};
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;

/// FLOP and bytes of a plan.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Cost {
    /// FLOP of the products, padding included.
    pub operations: f64,
    /// Bytes read and written.
    pub bytes: f64,
}

impl WinogradConfig {
    /// The cost of a pass.
    pub fn cost(&self, problem: &Conv3dProblem, pass: Pass) -> Cost {
        // As it is launched: an input gradient on the padded input.
        let padded = problem.explicitly_padded();
        let correlation = Correlation::of(if pass == Pass::InputGradient { &padded } else { problem }, pass);
        let tile = PRODUCT;
        let points = (self.tile.inputs() * self.tile.inputs()) as f64;
        let (c, o) = (correlation.in_channels, correlation.out_channels);
        let filters: f64 = correlation.filter_shape(self.tile).iter().map(|&size| size as f64).product();
        // A row is an output tile. In dw, rows are K elements, padded per region to whole stages.
        let (mut rows, mut transformed, mut sums) = (0.0, 0.0, filters);
        // The storage type of dx that is folded is fp32; it is not counted apart.
        let k_per_tap = c.next_multiple_of(tile.tile_k);
        let chunks =
            (correlation.kernel_depth * k_per_tap).div_ceil(chunk_elements(self.tile, problem.dtype));
        let chunks = if pass == Pass::WeightGradient { 1 } else { chunks.max(1) };
        for region in correlation.regions(self.tile, self.region) {
            transformed += (c * region.v_rows() + chunks * o * region.m_rows()) as f64 * points;
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
