//! Winograd in the plane with the depth taps summed in the transform domain.
//!
//! ```text
//! Y[n,o,od] = A^T [ sum over kd, c of (G g[o,c,kd] G^T) . (B^T d[n,c,f] B) ] A        f = od*stride + kd*dilation - begin
//! ```
//!
//! Each input frame is transformed once, whatever KD; the sum over (kd, c) is one matrix product per point of the
//! transform domain with K = KD * C; each output frame is transformed back once. Frames are addressed by index, so
//! any batch, depth padding, stride and dilation is served: a frame outside the input is skipped, clamped under
//! replicate padding.
//!
//! ```text
//! filter.rs   U[point, (kd, c), o]     = G g G^T
//! input.rs    V[point, c, (frame, tile)] = B^T d B
//! gemm.rs     M[point, o, (frame, tile)] = sum over (kd, c) of V * U
//! output.rs   y                        = activation(A^T M A + bias), edges masked
//! ```
//!
//! The input gradient is the same correlation with the filter mirrored on all three axes and its channels swapped.
//! Everything between load and store is fp32. Planes and frames are worked off in regions whose V and M fit the
//! workspace; the regions do not change any sum, so they do not change any bit.
//!
//! A non-finite input reaches every output of its tiles (up to t x t inputs make m x m outputs non-finite), unlike in
//! the direct sum: force another algorithm where NaN must stay in its receptive field.

mod filter;
mod gemm;
mod input;
mod matrices;
mod output;
pub mod reference;
mod transform;

pub use matrices::WinogradTile;

use super::args::clamp_to_i32;
use super::plan::Pass;
use super::problem::{Conv3dProblem, PaddingMode};
use crate::activation::Activation;
use crate::dtype::FloatType;
use crate::error::{ConvError, unsupported};
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::prelude::*;

/// A Winograd plan: the tile and the extent of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WinogradConfig {
    /// Outputs per tile.
    pub tile: WinogradTile,
    /// Output frames of a region, counted over depth.
    pub region_frames: usize,
    /// Rows of tiles of a region.
    pub region_rows: usize,
    /// Bytes of U, V and M together.
    pub workspace_bytes: u64,
}

/// A stride-1 3x3-in-plane correlation: the forward pass, or the input gradient seen as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Correlation {
    pub(crate) batch: usize,
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    pub(crate) input: [usize; 3],
    pub(crate) output: [usize; 3],
    pub(crate) kernel_depth: usize,
    pub(crate) stride_depth: usize,
    pub(crate) dilation_depth: usize,
    /// Padding before each axis; negative where the input gradient crops.
    pub(crate) begin: [i32; 3],
    pub(crate) replicate: bool,
    /// Read the filter `w[in, out, mirrored taps]` instead of `w[out, in, taps]`.
    pub(crate) mirror: bool,
}

/// The part of the output that one round of V, M and y covers: frames of one image, rows of tiles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) image: usize,
    /// Output frames.
    pub(crate) frames: (usize, usize),
    /// Input frames that they read.
    pub(crate) sources: (usize, usize),
    /// Rows of tiles.
    pub(crate) rows: (usize, usize),
}

impl Correlation {
    /// The correlation that `pass` of `problem` is.
    pub(crate) fn of(problem: &Conv3dProblem, pass: Pass) -> Self {
        let window = &problem.window;
        let forward = Self {
            batch: problem.batch,
            in_channels: problem.channels,
            out_channels: problem.out_channels,
            input: problem.input,
            output: problem.output(),
            kernel_depth: problem.kernel[0],
            stride_depth: window.stride[0],
            dilation_depth: window.dilation[0],
            begin: [0, 1, 2].map(|axis| clamp_to_i32(window.padding[axis].0)),
            replicate: window.padding_mode == PaddingMode::Replicate,
            mirror: false,
        };
        if pass == Pass::Forward {
            return forward;
        }
        Self {
            in_channels: forward.out_channels,
            out_channels: forward.in_channels,
            input: forward.output,
            output: forward.input,
            begin: [0, 1, 2].map(|axis| clamp_to_i32(problem.axis(axis).span() - 1) - forward.begin[axis]),
            replicate: false,
            mirror: true,
            ..forward
        }
    }

    /// Rows and columns of tiles of a plane.
    pub(crate) fn tiles(&self, tile: WinogradTile) -> (usize, usize) {
        (self.output[1].div_ceil(tile.outputs()), self.output[2].div_ceil(tile.outputs()))
    }

    /// The input frames that output frames `first..end` read; empty when all of them are padding.
    fn sources(&self, first: usize, end: usize) -> (usize, usize) {
        let begin = i64::from(self.begin[0]);
        let depth = self.input[0] as i64;
        let reach = (self.kernel_depth - 1) * self.dilation_depth;
        let low = (first * self.stride_depth) as i64 - begin;
        let high = ((end - 1) * self.stride_depth + reach) as i64 - begin;
        if self.replicate {
            (low.clamp(0, depth - 1) as usize, high.clamp(0, depth - 1) as usize + 1)
        } else {
            let low = low.clamp(0, depth);
            (low as usize, (high + 1).clamp(low, depth) as usize)
        }
    }

    /// The regions of a plan, in order.
    fn regions(&self, config: &WinogradConfig) -> Vec<Region> {
        let rows = self.tiles(config.tile).0;
        let mut regions = Vec::new();
        for image in 0..self.batch {
            for first in (0..self.output[0]).step_by(config.region_frames) {
                let end = self.output[0].min(first + config.region_frames);
                for row in (0..rows).step_by(config.region_rows) {
                    regions.push(Region {
                        image,
                        frames: (first, end),
                        sources: self.sources(first, end),
                        rows: (row, rows.min(row + config.region_rows)),
                    });
                }
            }
        }
        regions
    }

    /// Elements of U, V and M for regions of `frames` frames and `rows` rows of tiles.
    fn workspace(&self, tile: WinogradTile, frames: usize, rows: usize) -> [u64; 3] {
        let points = (tile.inputs() * tile.inputs()) as u64;
        let row_tiles = (rows * self.tiles(tile).1) as u64;
        let reach = (self.kernel_depth - 1) * self.dilation_depth;
        let sources = ((frames - 1) * self.stride_depth + reach + 1).min(self.input[0]).max(1) as u64;
        let filter = (self.kernel_depth * self.in_channels * self.out_channels) as u64;
        [
            points * filter,
            points * self.in_channels as u64 * sources * row_tiles,
            points * self.out_channels as u64 * frames as u64 * row_tiles,
        ]
    }
}

/// The configuration for one pass, or why there is none.
pub(crate) fn config(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: WinogradTile,
    limits: &Limits,
) -> Result<WinogradConfig, ConvError> {
    let window = &problem.window;
    let name = tile.name();
    if pass == Pass::WeightGradient {
        unsupported!("conv3d: {name} has no weight gradient");
    }
    if problem.kernel[1..] != [3, 3] {
        unsupported!(
            "conv3d: {name} needs a 3x3 kernel in the plane, got {}x{}",
            problem.kernel[1],
            problem.kernel[2]
        );
    }
    if window.stride[1..] != [1, 1] || window.dilation[1..] != [1, 1] {
        unsupported!(
            "conv3d: {name} needs stride 1 and dilation 1 in the plane, got stride {}x{}, dilation {}x{}",
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
    if problem.channels == 0 {
        unsupported!("conv3d: {name} needs at least one channel");
    }
    // Replicate padding's input gradient runs on the padded input (see `fold`).
    let replicate = window.padding_mode == PaddingMode::Replicate;
    let correlation = if pass == Pass::InputGradient && replicate {
        Correlation::of(&super::fold::extended_problem(problem), pass)
    } else {
        Correlation::of(problem, pass)
    };
    let fits = |frames: usize, rows: usize| {
        let elements = correlation.workspace(tile, frames, rows);
        let bytes = 4 * elements.iter().sum::<u64>();
        let largest = 4 * elements.iter().max().copied().unwrap_or(0);
        (bytes <= limits.workspace_bytes && largest <= limits.buffer_bytes).then_some(bytes)
    };
    // Whole frames while they fit, as many as fit; else rows of tiles of one frame.
    let (depth, rows) = (correlation.output[0].max(1), correlation.tiles(tile).0.max(1));
    let largest =
        |limit: usize, fits: &dyn Fn(usize) -> bool| (1..=limit).take_while(|size| fits(*size)).last();
    let region = match largest(depth, &|frames| fits(frames, rows).is_some()) {
        Some(frames) => Some((frames, rows)),
        None => largest(rows, &|rows| fits(1, rows).is_some()).map(|rows| (1, rows)),
    };
    let Some((region_frames, region_rows)) = region else {
        let bytes = 4 * correlation.workspace(tile, 1, 1).iter().sum::<u64>();
        unsupported!(
            "conv3d: {name} needs at least {bytes} bytes of workspace here, the limit is {}",
            limits.workspace_bytes
        );
    };
    let workspace_bytes = fits(region_frames, region_rows).unwrap_or_default();
    Ok(WinogradConfig { tile, region_frames, region_rows, workspace_bytes })
}

/// Launches the forward pass: operands x, w, y.
pub(crate) fn forward(
    client: &Client,
    problem: &Conv3dProblem,
    config: WinogradConfig,
    limits: &Limits,
    operands: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    let correlation = Correlation::of(problem, Pass::Forward);
    run(client, &correlation, config, limits, operands, bias, problem.window.activation)
}

/// Launches the input gradient under zero padding: operands dy, w, dx. dx may be fp32 whatever the problem's dtype.
pub(crate) fn input_gradient(
    client: &Client,
    problem: &Conv3dProblem,
    config: WinogradConfig,
    limits: &Limits,
    operands: [&Operand; 3],
) -> Result<(), ConvError> {
    let correlation = Correlation::of(problem, Pass::InputGradient);
    run(client, &correlation, config, limits, operands, None, Activation::None)
}

fn run(
    client: &Client,
    correlation: &Correlation,
    config: WinogradConfig,
    limits: &Limits,
    [source, w, target]: [&Operand; 3],
    bias: Option<&Operand>,
    activation: Activation,
) -> Result<(), ConvError> {
    let sizes = correlation.workspace(config.tile, config.region_frames, config.region_rows);
    let [u, v, m] = sizes.map(|elements| Operand::empty(client, &[elements as usize], FloatType::F32));
    let address = address_type("conv3d", &[source, w, target, &u, &v, &m], 0, limits)?;
    let call = Call { client, correlation, tile: config.tile, limits, address };
    filter::launch(&call, w, &u);
    for region in correlation.regions(&config) {
        input::launch(&call, &region, source, &v);
        gemm::launch(&call, &region, [&u, &v, &m]);
        output::launch(&call, &region, &m, bias, target, activation);
    }
    Ok(())
}

/// What every pass of one call shares.
pub(crate) struct Call<'a> {
    pub(crate) client: &'a Client,
    pub(crate) correlation: &'a Correlation,
    pub(crate) tile: WinogradTile,
    pub(crate) limits: &'a Limits,
    pub(crate) address: cubecl::ir::AddressType,
}

/// A region as kernel arguments.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct RegionArgs {
    pub(crate) image: u32,
    pub(crate) first_frame: u32,
    pub(crate) frames: u32,
    pub(crate) first_source: u32,
    pub(crate) sources: u32,
    pub(crate) first_row: u32,
    pub(crate) rows: u32,
    /// Columns of tiles of the plane.
    pub(crate) columns: u32,
}

impl Region {
    fn args(&self, call: &Call) -> RegionArgsLaunch {
        RegionArgsLaunch::new(
            self.image as u32,
            self.frames.0 as u32,
            (self.frames.1 - self.frames.0) as u32,
            self.sources.0 as u32,
            (self.sources.1 - self.sources.0) as u32,
            self.rows.0 as u32,
            (self.rows.1 - self.rows.0) as u32,
            call.correlation.tiles(call.tile).1 as u32,
        )
    }

    /// Tiles of one frame.
    fn tiles(&self, call: &Call) -> usize {
        (self.rows.1 - self.rows.0) * call.correlation.tiles(call.tile).1
    }

    fn source_count(&self) -> usize {
        self.sources.1 - self.sources.0
    }

    fn frame_count(&self) -> usize {
        self.frames.1 - self.frames.0
    }
}
