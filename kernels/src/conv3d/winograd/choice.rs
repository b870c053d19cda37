//! What a Winograd plan executes and moves, and when that is worth it.
//!
//! ```text
//! operations   of the products, tiles' padding included
//! bytes        x and w once, U, V and M written and read once, y once
//!              (dw: its sums once more for every 2048 tiles)
//! taken where  operations + bytes * Limits::operations_per_byte
//!              <= 0.9 (0.75) * operations of the engine's plan
//! ```
//!
//! with 16 channels at least on both sides (the product works 16 terms at a time), for fp32, for types that
//! the device has no matrix units for, and for half types where matrix units take fp32 as well and are no
//! faster for halves (Apple's, on paper); an engine on matrix units counts half its operations, because the
//! product may run on plain multiply-adds, one with tiles of few channels a quarter more (26 TFLOP/s of what
//! it computes where others reach 35). The tile is F(4x4), on an H200 the faster one wherever it beats the
//! engine; where it does not, or its workspace is too large, F(2x2) that costs three quarters of the engine
//! at most, because its tiles are few then. What the rule decides there, and what was measured (f32, through
//! Vulkan, ms; engine, F(2x2), F(4x4)):
//!
//! | layer, pass                     | engine | F(2x2) | F(4x4) | taken     |
//! |---------------------------------|--------|--------|--------|-----------|
//! | 256 -> 256, 41x60x104           | 22.3   | 10.3   | 6.28   | F(4x4)    |
//! | its input gradient              | 24.4   | 11.0   | 7.45   | F(4x4)    |
//! | 64 -> 128, 16x56x56             | 0.598  | 0.323  | 0.204  | F(4x4)    |
//! | 256 -> 256, 8x28x28             | 0.618  | 0.335  | 0.236  | F(4x4)    |
//! | 32 -> 32, 2 x 128x128x128       | 7.19   | 7.09   | 4.27   | F(4x4)    |
//! | 64 -> 64, 8x56x56, one depth tap| 0.103  | 0.081  | 0.075  | F(4x4)    |
//! | 16 -> 512, 3x60x90              | 0.256  | 0.193  | 0.182  | F(4x4)    |
//! | 16 <- 512, 5x60x90 (dx)         | 0.542  |        | 0.461  | F(4x4)    |
//! | 1024 <- 1024, 4x10x10 (dx)      | 1.00   | 0.50   |        | F(2x2)    |
//! | 192 -> 384, 8x7x7               | 0.140  | 0.135  | 0.152  | engine    |
//! | 512 -> 512, 2x7x7               | 0.089  | 0.194  | 0.246  | engine    |
//! | 3 -> 64, 16x112x112             | 0.133  | 0.236  | 0.176  | engine    |
//!
//! The weight gradient's product takes 64 channels on both sides at a time, so the rule wants more of them:
//!
//! | layer, weight gradient          | engine | F(2x2) | F(4x4) | taken     |
//! |---------------------------------|--------|--------|--------|-----------|
//! | 256 -> 256, 41x60x104           | 23.2   | 12.5   | 7.17   | F(4x4)    |
//! | 384 -> 384, 2x120x208           | 10.4   | 5.33   | 3.13   | F(4x4)    |
//! | 64 -> 128, 16x56x56             | 0.774  | 0.403  | 0.253  | F(4x4)    |
//! | 256 -> 256, 8x28x28             | 0.651  | 0.374  | 0.258  | F(4x4)    |
//! | 64 -> 64, 8x56x56, one depth tap| 0.102  | 0.108  | 0.066  | F(4x4)    |
//! | 16 -> 512, 3x60x90              | 0.362  | 0.457  | 0.271  | engine    |
//! | 32 -> 32, 2 x 128x128x128       | 9.03   | 13.4   | 7.70   | engine    |
//! | 192 -> 384, 8x7x7               | 0.099  | 0.095  | 0.084  | engine    |
//! | 16 -> 32, 32x28x28              | 0.073  | 0.119  | 0.082  | engine    |
//! | 512 -> 512, 2x7x7               | 0.078  | 0.226  | 0.280  | engine    |
//!
//! f16 stays on the engine's matrix units: 6.16 ms where F(4x4) with its fp32 domain takes 6.40 (the first
//! layer), 0.218 and 0.241 (the third), although the input gradient would gain (8.66 and 7.34; 0.364 and
//! 0.263); its weight gradient is as fast either way (7.11 and 7.13; 0.261 and 0.301). A domain in f16
//! itself, with F(2x2) on matrix units, is outside the error bound before it is built: rounding U and V alone
//! gives 5e-4 to 6e-4 of the results' RMS (64 and 256 channels, computed on the host), the guard of f16 is
//! 3e-4, and rounding the results takes 2e-4 of it.

use super::region::Correlation;
use super::{PRODUCT, WinogradConfig, WinogradTile, config, product_mma, weight_product};
use crate::conv3d::fold;
use crate::conv3d::gemm::stage_type;
use crate::conv3d::pass::Pass;
use crate::conv3d::plan::Plan;
use crate::conv3d::problem::Conv3dProblem;
use crate::dtype::FloatType;
use crate::limits::Limits;

/// Channels on either side below which the product is mostly padding.
const LEAST_CHANNELS: usize = 16;

/// What a plan executes and moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Arithmetic operations of the products, padding included.
    pub operations: f64,
    /// Bytes read and written.
    pub bytes: f64,
    /// Cubes of the products.
    pub cubes: f64,
    /// Bytes that these cubes ask for, were there no cache.
    pub cube_bytes: f64,
}

impl WinogradConfig {
    /// The cost of a pass.
    pub fn cost(&self, problem: &Conv3dProblem, pass: Pass) -> Cost {
        let correlation = Correlation::of(&fold::launched(problem, pass), pass);
        let tile = PRODUCT;
        let points = (self.tile.inputs() * self.tile.inputs()) as f64;
        let (c, o) = (correlation.in_channels, correlation.out_channels);
        let filters: f64 = correlation.filter_shape(self.tile).iter().map(|&size| size as f64).product();
        // A row is a tile of the output; where it is a term, regions fill it up to whole stages.
        let (mut rows, mut transformed, mut cubes, mut sums) = (0.0, 0.0, 0.0, filters);
        for region in correlation.regions(self.tile, self.region) {
            transformed += (c * region.v_rows() + o * region.m_rows()) as f64 * points;
            if pass == Pass::WeightGradient {
                let launches = weight_product::sweeps(&region, 1).count() as f64;
                rows += region.m_rows().next_multiple_of(tile.tile_k) as f64;
                cubes += launches * weight_product::cubes(&correlation, self.tile) as f64;
                sums += launches * filters;
            } else {
                rows += region.m_rows().next_multiple_of(tile.tile_m) as f64;
                cubes += (region.m_rows().div_ceil(tile.tile_m) * o.div_ceil(tile.tile_n)) as f64 * points;
            }
        }
        let depth = correlation.kernel_depth;
        // Rows and columns of the product, and its terms.
        let (extents, terms) = if pass == Pass::WeightGradient {
            let channels = o.next_multiple_of(tile.tile_m) * c.next_multiple_of(tile.tile_n);
            ((depth * channels) as f64, rows)
        } else {
            (rows * o.next_multiple_of(tile.tile_n) as f64, (depth * c.next_multiple_of(tile.tile_k)) as f64)
        };
        let elements = |shape: [usize; 5]| shape.iter().map(|&size| size as f64).product::<f64>();
        let tensors = [problem.x_shape(), problem.weight_shape(), problem.y_shape()].map(elements);
        let operations = 2.0 * points * extents * terms;
        Cost {
            operations,
            bytes: 8.0 * (sums + transformed) + tensors.iter().sum::<f64>() * problem.dtype.size() as f64,
            cubes,
            // A tile of rows and columns is read for each term of a tile of results.
            cube_bytes: 4.0 * operations / (2 * tile.tile_m * tile.tile_n) as f64
                * (tile.tile_m + tile.tile_n) as f64,
        }
    }
}

/// The plan that beats `engine`, if there is one.
pub(crate) fn winner(
    problem: &Conv3dProblem,
    pass: Pass,
    engine: &Plan,
    limits: &Limits,
) -> Option<WinogradConfig> {
    let channels = problem.channels.min(problem.out_channels);
    // Matrix units that take fp32 take half types no faster.
    let as_fast = stage_type(problem.dtype, limits).is_none() || product_mma::tile(limits).is_some();
    let served = problem.dtype == FloatType::F32 || as_fast;
    if channels < LEAST_CHANNELS || !served {
        return None;
    }
    let tiles = engine.tiles(problem, pass)?;
    let counted = match engine {
        Plan::MatrixGemm(_) | Plan::WindowGemm(_) => 1.0,
        _ if pass != Pass::WeightGradient && tiles.columns <= 32 => 2.5,
        _ => 2.0,
    };
    let engine = counted * tiles.products();
    let winner = |tile, most: f64| {
        let config = config(problem, pass, tile, limits).ok()?;
        let cost = config.cost(problem, pass);
        let cost = cost.operations + cost.bytes * limits.operations_per_byte;
        (cost <= most * engine).then_some(config)
    };
    winner(WinogradTile::F4x4, 0.9).or_else(|| winner(WinogradTile::F2x2, 0.75))
}
