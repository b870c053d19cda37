//! A Winograd plan: its tile, the region of its workspace, what it declines, and the loops of its products.

use super::constants::WinogradTile;
use super::product::chunk_elements;
use super::product_mma;
use super::region::{Correlation, RegionExtent};
use super::weight_product::{MAX_STAGES, slices};
use crate::conv3d::gemm::{MatrixTile, RegisterTile};
use crate::conv3d::loops::nest;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::dtype::FloatType;
use crate::error::{ConvError, DeviceLimit, unsupported};
use crate::limits::Limits;

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
    let slice_count = match pass {
        Pass::WeightGradient => slices(&correlation, tile, limits) as u64,
        _ => 1,
    };
    let mma_tile = product_mma::tile(limits);
    let buffers = |region: RegionExtent| {
        let elements = match pass {
            Pass::WeightGradient => {
                let [_, v, d] = correlation.workspace(tile, region, 1);
                [slice_count * correlation.sums(tile, padding(mma_tile)), v, d]
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
pub(super) fn padding(mma_tile: Option<MatrixTile>) -> usize {
    if mma_tile.is_some() { product_mma::PADDING } else { 1 }
}

/// Refuses a configuration that was made for another problem.
pub(super) fn check(
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

/// Loop iterations of a thread: stages, their K elements, and the depth taps skipped at either end.
pub(super) fn product_iterations(config: &WinogradConfig, kernel_depth: usize, limits: &Limits) -> usize {
    let tile_k = config.mma_tile.map_or(PRODUCT.tile_k, |tile| tile.tile_k);
    let inner = if config.mma_tile.is_some() || limits.unroll { 0 } else { nest(tile_k, 0) };
    // Of the results with the longest sums.
    let stages = chunk_elements(config.tile, FloatType::F16) / tile_k;
    nest(stages, inner) + 2 * nest(kernel_depth, 0)
}

/// Loop iterations of a thread: stages and their K elements, or the slices of the last step.
pub(super) fn weight_iterations(
    correlation: &Correlation,
    config: &WinogradConfig,
    limits: &Limits,
) -> usize {
    let unrolled = config.mma_tile.is_some() || limits.unroll;
    let inner = if unrolled { 0 } else { nest(PRODUCT.tile_k, 0) };
    let slices = nest(slices(correlation, config.tile, limits), 0);
    // Rows of a transform that loops: those of S, then those of the taps.
    let rows = if limits.unroll { slices } else { nest(config.tile.inputs(), slices) + nest(3, 0) };
    nest(MAX_STAGES + 1, inner).max(rows)
}
