//! Winograd in H and W, with the depth taps summed in the transform domain.
//!
//! ```text
//! Y[n,o,od] = A^T [ sum over kd, c of (G g[o,c,kd] G^T) . (B^T d[n,c,f] B) ] A
//! f         = od*stride + kd*dilation - begin                          the input frame of (od, kd)
//!
//! filter.rs    U[point, kd, c, o]                = G g G^T
//! input.rs     V[point, c, (image, frame, tile)] = B^T d B
//! product.rs   M[point, o, (image, frame, tile)] = sum over (kd, c) of V * U    one GEMM per point
//! output.rs    y                                 = activation(A^T M A + bias) + residual, edges masked
//! ```
//!
//! Each input frame is transformed once, whatever KD; each output frame is transformed back once. Frames are
//! addressed by index, so any batch, depth padding, stride and dilation is served: a frame outside the input
//! is skipped, or clamped under replicate padding. A stream's first frames are transformed from their cache.
//!
//! The input gradient is the same correlation with the filter mirrored on all three axes and its channels
//! swapped; the weight gradient is in `weight_gradient.rs`. Everything between load and store is fp32. Frames
//! are processed in regions whose V and M fit the workspace; for y and dx the regions change no sum and
//! therefore no bit. The transforms are separate kernels: a fused kernel would have to hold all t * t points
//! of a tile in one threadgroup, and the product dominates. Depth is summed, not transformed, because
//! transforming it doubles V and M (measurements: docs/decisions/winograd.md).
//!
//! Declined: kernels other than 3x3 in H and W, stride or dilation in H or W, groups, dx with a depth stride,
//! dw by F(6x6).
//!
//! A non-finite input reaches every output of its tiles (up to t * t inputs make m * m outputs non-finite),
//! unlike in a direct sum; [`Algorithm::NoWinograd`](super::Algorithm::NoWinograd) keeps it in its receptive
//! field.
//!
//! Range: an input transform enlarges values up to 49 times (F(4x4); 225 times for F(6x6)), and outputs are
//! small differences of sums up to 876 times (4579 times) the direct ones. The products U * V are therefore
//! scaled by 2^-7, 2^-10, 2^-13 (F(2x2), F(4x4), F(6x6)), and y is multiplied back in its last fma
//! (`constants::scale_exponent`): exact and free. With the largest |d| of a tile and the largest |g| of a
//! filter, every number is finite if
//!
//! ```text
//! sum over c, kd            of max|d| * max|g|  < 2^128
//! sum over n, frames, tiles of max|d| * max|dy| < 2^128      (the weight gradient)
//! ```
//!
//! however large x and w are by themselves. Intermediates below 2^-126 are lost: products |d * g| below
//! 2^-113, about 1e-34.
//!
//! # Safety of the launches
//!
//! Every launch of this folder is unchecked. The public entry points compare operands, dtypes and shapes with
//! the problem (`conv3d::call`, `check_operands`), `address_type` reaches every offset, U, V, M, D and S are
//! sized by `Correlation::workspace` for the largest region, and no launch writes a buffer that it also
//! reads through another binding. Kernels drop idle threads and mask the padding. The comment at a launch
//! says only what that kernel masks in addition.

mod constants;
mod cost;
mod depth;
mod family;
mod filter;
mod input;
mod output;
mod product;
mod product_mma;
pub mod reference;
mod region;
mod transform;
mod weight_gradient;
mod weight_product;
mod weight_product_mma;
mod weight_work;

pub use constants::WinogradTile;
pub use cost::Cost;
pub(super) use product_mma::tile as mma_tile;
pub use region::RegionExtent;

use super::call::{Added, Conv3dCall};
use super::check::{check_added, check_operands};
use super::epilogue::Epilogue;
use super::gemm::{MatrixTile, RegisterTile};
use super::pass::Pass;
use super::problem::Conv3dProblem;
use crate::dtype::FloatType;
use crate::error::{ConvError, DeviceLimit, invalid, unsupported};
use crate::limits::Limits;
use crate::operand::{Operand, address_type, row_major};
use cubecl::prelude::*;
use region::Correlation;

/// A Winograd plan: the tile, and the extent of a workspace region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WinogradConfig {
    /// Outputs per tile.
    pub tile: WinogradTile,
    /// Extent of a region.
    pub region: RegionExtent,
    /// The product's MMA tile, if the device has fp32 MMA.
    pub mma_tile: Option<MatrixTile>,
    /// Bytes of U, V and M together (weight gradient: of S, V and D).
    pub workspace_bytes: u64,
}

/// Tile of the transform-domain product. 128x64 is as fast, 128x128 slower.
pub(crate) const PRODUCT: RegisterTile = RegisterTile::M64N64;

/// The configuration for one pass of a problem, or why there is none.
pub(crate) fn config(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: WinogradTile,
    limits: &Limits,
) -> Result<WinogradConfig, ConvError> {
    let window = &problem.window;
    let name = tile.name();
    if pass == Pass::WeightGradient && tile == WinogradTile::F6x6 {
        unsupported!("conv3d: {name} has no weight gradient, its error would be too large");
    }
    if problem.kernel[1..] != [3, 3] {
        unsupported!(
            "conv3d: {name} needs a 3x3 kernel in H and W, got {}x{}",
            problem.kernel[1],
            problem.kernel[2]
        );
    }
    if window.stride[1..] != [1, 1] || window.dilation[1..] != [1, 1] {
        unsupported!(
            "conv3d: {name} needs stride 1 and dilation 1 in H and W, got stride {}x{}, dilation {}x{}",
            window.stride[1],
            window.stride[2],
            window.dilation[1],
            window.dilation[2]
        );
    }
    if window.groups != 1 {
        unsupported!("conv3d: {name} needs one group, got {}", window.groups);
    }
    if pass == Pass::InputGradient && window.stride[0] != 1 {
        unsupported!("conv3d: the input gradient by {name} needs depth stride 1, got {}", window.stride[0]);
    }
    if pass == Pass::WeightGradient && problem.positions() == 0 {
        unsupported!(
            "conv3d: the weight gradient by {name} needs at least one window, y has shape {:?}",
            problem.y_shape()
        );
    }
    if problem.channels == 0 {
        unsupported!("conv3d: {name} needs at least one input channel, got 0");
    }
    if problem.winograd_padding().is_none() {
        unsupported!(
            "conv3d: {name} reads zeros or replicate padding along depth and within the frame, got {:?}",
            window.padding_mode
        );
    }
    let correlation = Correlation::of(problem, pass);
    let slices = match pass {
        Pass::WeightGradient => weight_product::slices(&correlation, tile, limits) as u64,
        _ => 1,
    };
    let mma_tile = product_mma::tile(limits);
    let buffers = |region: RegionExtent| {
        let elements = match pass {
            Pass::WeightGradient => {
                let [_, v, d] = correlation.workspace(tile, region, 1);
                [slices * correlation.sums(tile, padding(mma_tile)), v, d]
            }
            _ => correlation.workspace(tile, region, padding(mma_tile)),
        };
        elements.map(|elements| 4 * elements)
    };
    let bytes = |region: RegionExtent| buffers(region).iter().sum::<u64>();
    let fits = |region: RegionExtent| {
        let largest = buffers(region).into_iter().max().unwrap_or(0);
        bytes(region) <= limits.workspace_bytes && largest <= limits.buffer_bytes
    };
    let Some(region) = correlation.largest_region(tile, &fits) else {
        let least = bytes(RegionExtent { images: 1, frames: 1, rows: 1 });
        let most = limits.workspace_bytes;
        let message =
            format!("conv3d: {name} needs at least {least} bytes of workspace here, the limit is {most}");
        return Err(ConvError::device_limit(DeviceLimit::WorkspaceBytes, least, most, message));
    };
    Ok(WinogradConfig { tile, region, mma_tile, workspace_bytes: bytes(region) })
}

/// Channels and rows of M, and both channels of S, are multiples of this.
fn padding(mma_tile: Option<MatrixTile>) -> usize {
    if mma_tile.is_some() { product_mma::PADDING } else { 1 }
}

/// Refuses a configuration that was made for another problem.
pub(crate) fn check(
    config: &WinogradConfig,
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> Result<(), ConvError> {
    let planned = self::config(problem, pass, config.tile, limits)?;
    if config.mma_tile.is_some() && config.mma_tile != planned.mma_tile {
        unsupported!("conv3d: the device has no fp32 MMA for the product of {}", config.tile.name());
    }
    let (largest, region) = (planned.region, config.region);
    let within = |size: usize, most: usize| (1..=most).contains(&size);
    let fits = within(region.images, largest.images)
        && within(region.frames, largest.frames)
        && within(region.rows, largest.rows);
    if !fits {
        unsupported!(
            "conv3d: a region of {} images, {} frames and {} rows of tiles was planned for another problem, \
             this one has regions of up to {} images, {} frames and {} rows",
            region.images,
            region.frames,
            region.rows,
            largest.images,
            largest.frames,
            largest.rows
        );
    }
    Ok(())
}

/// Launches the forward pass (operands x, w, y) or the input gradient under zero padding (dy, w, dx). The
/// result may be fp32 whatever the problem's dtype.
fn forward_or_input_gradient(
    call: &Conv3dCall,
    config: WinogradConfig,
    [source, w, out]: [&Operand; 3],
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, pass, cache, .. } = *call;
    let epilogue = call.epilogue();
    let correlation = Correlation::of(problem, pass);
    let call = WinogradCall { client, correlation: &correlation, config, result: out.dtype, limits };
    let source = input::Source { cache, tensor: source };
    run(&call, (source, Filters::Weight(w), out), epilogue)
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

/// [`super::forward`] with a weight transformed by [`prepare`] for the configuration's tile: operands x, U,
/// y; bitwise the same result.
///
/// # Errors
/// As [`super::forward`], and if U does not have the shape of the problem's weight for that tile.
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
    let x = &x.bindable(client);
    let x = input::Source::whole(x);
    let epilogue = Epilogue { bias, residual, activation: problem.window.activation };
    run(&call, (x, Filters::Prepared(u), y), epilogue)
}

/// Launches the weight gradient: operands x, dy, dw.
fn weight_gradient(
    call: &Conv3dCall,
    config: WinogradConfig,
    operands: [&Operand; 3],
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, pass, cache, .. } = *call;
    let correlation = Correlation::of(problem, pass);
    let [x, dy, dw] = operands;
    let call = WinogradCall { client, correlation: &correlation, config, result: dw.dtype, limits };
    weight_gradient::run(&call, input::Source { cache, tensor: x }, [dy, dw])
}

/// The filters of a call, still to be transformed or prepared.
#[derive(Clone, Copy)]
enum Filters<'a> {
    Weight(&'a Operand),
    Prepared(&'a Operand),
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

/// Launches the steps of a forward pass, or of an input gradient as one.
fn run(
    call: &WinogradCall,
    (source, filters, target): (input::Source, Filters, &Operand),
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
        input::launch(call, address, &region, input::InputTiling::input(correlation), (source, &v));
        product::launch(call, address, &region, [&u, &v, &m]);
        output::launch(call, address, &region, [&m, target], epilogue);
    }
    Ok(())
}
