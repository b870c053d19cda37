//! What [`crate::conv3d::Plan::Winograd`] serves, needs and launches: the steps of a pass, region by region;
//! and the forward pass with a weight that was transformed before.

use super::config::{PRODUCT, WinogradConfig, check, config, padding, product_iterations, weight_iterations};
use super::constants::WinogradTile;
use super::input::{InputTiling, Source};
use super::region::{Correlation, Region};
use super::{
    filter, input, output, product, product_mma, weight_gradient, weight_product, weight_product_mma,
};
use crate::conv3d::call::{Added, Conv3dCall};
use crate::conv3d::check::{check_added, check_operands};
use crate::conv3d::epilogue::Epilogue;
use crate::conv3d::family::Family;
use crate::conv3d::needs::kernel_needs;
use crate::conv3d::notes::{NonFinite, Notes};
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::dtype::FloatType;
use crate::error::{ConvError, invalid};
use crate::limits::Limits;
use crate::needs::Needs;
use crate::operand::{Operand, address_type, row_major};
use cubecl::prelude::*;

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
        // The filters (dw: the taps), then both transforms and the products of each region.
        let correlation = Correlation::of(problem, pass);
        let regions = correlation.regions(self.tile, self.region);
        let products: usize = if pass == Pass::WeightGradient {
            let slices = weight_product::slices(&correlation, self.tile, limits);
            regions.iter().map(|region| weight_product::slice_launches(region, slices).count()).sum()
        } else {
            let tile_k = self.mma_tile.map_or(PRODUCT.tile_k, |tile| tile.tile_k);
            let stages = correlation.kernel_depth * correlation.in_channels.div_ceil(tile_k).max(1);
            regions.len() * stages.div_ceil(product::chunk_elements(self.tile, problem.dtype) / tile_k)
        };
        1 + 2 * regions.len() + products
    }

    fn waves(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Option<f64> {
        if self.mma_tile.is_some() || problem.streaming {
            return None;
        }
        // Those of the first region.
        let correlation = Correlation::of(problem, pass);
        let threadgroups = if pass == Pass::WeightGradient {
            let slices = weight_product::slices(&correlation, self.tile, limits);
            slices * weight_product::threadgroups(&correlation, self.tile)
        } else {
            let rows = correlation.regions(self.tile, self.region).first().map_or(0, Region::m_rows);
            let points = self.tile.inputs() * self.tile.inputs();
            rows.div_ceil(PRODUCT.tile_m) * correlation.out_channels.div_ceil(PRODUCT.tile_n) * points
        };
        Some(threadgroups as f64 / limits.cubes_in_flight as f64)
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

/// What all steps of one call share.
pub(crate) struct WinogradCall<'a> {
    pub(crate) client: &'a Client,
    pub(crate) correlation: &'a Correlation,
    pub(crate) config: WinogradConfig,
    /// Storage type of the result.
    pub(crate) result: FloatType,
    pub(crate) limits: &'a Limits,
}

/// Launches the forward pass (operands x, w, y) or the input gradient under zero padding (dy, w, dx). The
/// result may be fp32 whatever the problem's dtype.
fn forward_or_input_gradient(
    call: &Conv3dCall,
    config: WinogradConfig,
    [source, w, out]: [&Operand; 3],
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, pass, cache, .. } = *call;
    let correlation = &Correlation::of(problem, pass);
    let winograd = WinogradCall { client, correlation, config, result: out.dtype, limits };
    run(&winograd, (Source { cache, tensor: source }, Filters::Weight(w), out), call.epilogue())
}

/// The filters of a call, still to be transformed or prepared.
#[derive(Clone, Copy)]
enum Filters<'a> {
    Weight(&'a Operand),
    Prepared(&'a Operand),
}

/// Launches the steps of a forward pass, or of an input gradient as one.
fn run(
    call: &WinogradCall,
    (source, filters, target): (Source, Filters, &Operand),
    epilogue: Epilogue,
) -> Result<(), ConvError> {
    let WinogradCall { client, correlation, config, limits, .. } = *call;
    let [_, v, m] = correlation.workspace(config.tile, config.region, padding(config.mma_tile));
    let [v, m] = [v, m].map(|elements| Operand::empty(client, &[elements as usize], FloatType::F32));
    let (w, u) = match filters {
        Filters::Weight(w) => {
            let shape = correlation.filter_shape(config.tile);
            (Some(w), Operand::empty(client, &shape, FloatType::F32))
        }
        Filters::Prepared(u) => (None, u.clone()),
    };
    let operands = [source.tensor, source.cache_or_tensor(), w.unwrap_or(&u), target, &u, &v, &m];
    let reached: Vec<_> = operands.into_iter().chain(epilogue.residual).collect();
    let address = address_type("conv3d", &reached, 0, limits)?;
    if let Some(w) = w {
        filter::launch(call, address, w, &u);
    }
    for region in correlation.regions(config.tile, config.region) {
        input::launch(call, address, &region, InputTiling::input(correlation), (source, &v));
        product::launch(call, address, &region, [&u, &v, &m]);
        output::launch(call, address, &region, [&m, target], epilogue);
    }
    Ok(())
}

/// Launches the weight gradient: operands x, dy, dw.
fn weight_gradient(
    call: &Conv3dCall,
    config: WinogradConfig,
    [x, dy, dw]: [&Operand; 3],
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, pass, cache, .. } = *call;
    let correlation = &Correlation::of(problem, pass);
    let call = &WinogradCall { client, correlation, config, result: dw.dtype, limits };
    let x = Source { cache, tensor: x };
    let slices = weight_product::slices(correlation, config.tile, limits);
    let [_, v, d] = correlation.workspace(config.tile, config.region, 1);
    let slice_elements = correlation.sums(config.tile, padding(config.mma_tile));
    let [sums, v, d] = [slice_elements * slices as u64, v, d]
        .map(|elements| Operand::empty(client, &[elements as usize], FloatType::F32));
    let operands = [x.tensor, x.cache_or_tensor(), dy, dw, &sums, &v, &d];
    let address = address_type("conv3d", &operands, 0, limits)?;
    for (index, region) in correlation.regions(config.tile, config.region).iter().enumerate() {
        input::launch(call, address, region, InputTiling::input(correlation), (x, &v));
        input::launch(
            call,
            address,
            &region.of_outputs(),
            InputTiling::gradient(correlation),
            (Source::whole(dy), &d),
        );
        weight_product::launch(call, address, (region, slices, index == 0), [&d, &v, &sums]);
    }
    weight_gradient::launch(call, address, slices, [&sums, dw]);
    Ok(())
}

/// Shape of a weight transformed by [`prepare`]: `U[point, kd, c, o]`, `o` rounded up to a multiple of four.
pub fn prepared_shape(problem: &Conv3dProblem, tile: WinogradTile) -> [usize; 4] {
    Correlation::of(problem, Pass::Forward).filter_shape(tile)
}

/// Transforms a weight once for many forward passes ([`forward_prepared`]): operands w and U, contiguous fp32
/// of [`prepared_shape`]. U serves every problem with this weight, whatever its extents and window.
///
/// # Errors
/// If `w` or U do not have the problem's shapes, or Winograd cannot serve the problem.
pub fn prepare(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    tile: WinogradTile,
    [w, u]: [&Operand; 2],
) -> Result<(), ConvError> {
    check_operands(problem, &[("w", w, problem.weight_shape())])?;
    let config = config(problem, Pass::Forward, tile, limits)?;
    check_prepared(problem, tile, u)?;
    let correlation = Correlation::of(problem, Pass::Forward);
    let call = WinogradCall { client, correlation: &correlation, config, result: u.dtype, limits };
    filter::launch(&call, address_type("conv3d", &[w, u], 0, limits)?, &w.bindable(client), u);
    Ok(())
}

/// Refuses a U that is not a transformed weight of this problem.
fn check_prepared(problem: &Conv3dProblem, tile: WinogradTile, u: &Operand) -> Result<(), ConvError> {
    let shape = prepared_shape(problem, tile);
    if u.shape != shape || u.strides != row_major(&shape) || u.dtype != FloatType::F32 {
        invalid!("conv3d: the prepared weight has shape {:?}, {} needs {shape:?} here", u.shape, tile.name());
    }
    Ok(())
}

/// [`crate::conv3d::forward`] with a weight transformed by [`prepare`] for the configuration's tile: operands
/// x, U, y; bitwise the same result.
///
/// # Errors
/// As [`crate::conv3d::forward`], and if U does not have the shape of the problem's weight for that tile.
pub fn forward_prepared<'a>(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    config: WinogradConfig,
    [x, u, y]: [&Operand; 3],
    added: impl Into<Added<'a>>,
) -> Result<(), ConvError> {
    check_operands(problem, &[("x", x, problem.x_shape()), ("y", y, problem.y_shape())])?;
    let added @ Added { bias, residual } = added.into();
    check_added(problem, added)?;
    check(&config, problem, Pass::Forward, limits)?;
    check_prepared(problem, config.tile, u)?;
    let correlation = Correlation::of(problem, Pass::Forward);
    let call = WinogradCall { client, correlation: &correlation, config, result: y.dtype, limits };
    let epilogue = Epilogue { bias, residual, activation: problem.window.activation };
    run(&call, (Source::whole(&x.bindable(client)), Filters::Prepared(u), y), epilogue)
}
