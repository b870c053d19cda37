//! What [`crate::conv3d::Plan::Subpixel`] serves, needs and launches: packing, the product, and the sum over
//! split-K slices.
//!
//! # Safety of the launches
//!
//! The contract of [`crate::conv3d`]. Loads are masked to the source and stores to the result, and threads
//! write disjoint elements.

use super::blocks::{AxisBlocks, gcd};
use super::config::SubpixelTile;
use super::kernel::subpixel_kernel;
use super::mma::subpixel_mma_kernel;
use super::pack::{PackedAxisLaunch, PackedExtentsLaunch, THREADS, pack_kernel};
use super::tiling::{DepthAxisLaunch, FrameAxisLaunch, SubpixelTilingLaunch};
use super::{SubpixelExtents, loop_iterations, packed_bytes, serves, stage};
use crate::conv3d::call::Conv3dCall;
use crate::conv3d::epilogue::Epilogue;
use crate::conv3d::family::Family;
use crate::conv3d::gemm::config::SUBGROUP;
use crate::conv3d::gemm::gather::divisor;
use crate::conv3d::needs::{kernel_needs, stage_size};
use crate::conv3d::notes::{NonFinite, Notes};
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::reduce;
use crate::conv3d::tiles::Tiles;
use crate::error::{ConvError, unsupported};
use crate::launch::dispatches;
use crate::limits::Limits;
use crate::needs::Needs;
use crate::operand::{Operand, address_type};
use cubecl::prelude::*;

impl Family for SubpixelTile {
    fn plan_name(&self) -> String {
        format!("subpixel_{}", self.name())
    }

    fn serves(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Result<(), ConvError> {
        if serves(problem, pass, self, limits) {
            return Ok(());
        }
        unsupported!(
            "conv3d: {} serves the input gradient of at most 4 input channels per group whose windows \
             and weights fit shared memory and whose sums fit the device's loop iterations, not the {} \
             of {} channels with the kernel {:?}, stride {:?} and dilation {:?}",
            self.plan_name(),
            pass.name(),
            problem.group_channels(),
            problem.kernel,
            problem.window.stride,
            problem.window.dilation
        )
    }

    fn needs(&self, problem: &Conv3dProblem, _: Pass, limits: &Limits) -> Needs {
        let bytes = self.shared_bytes(stage_size(problem, limits));
        Needs {
            buffer_bytes: packed_bytes(problem, self, limits),
            ..kernel_needs(bytes, self.threads(), loop_iterations(problem, self, limits))
        }
    }

    fn tiles(&self, problem: &Conv3dProblem, _: Pass) -> Option<Tiles> {
        let extents = SubpixelExtents::of(problem, self)?;
        let depth_taps = problem.kernel[0].div_ceil(problem.window.stride[0]);
        let terms = depth_taps * extents.chunks * self.channels * extents.taps();
        let count = extents.threadgroups(problem, self);
        Some(Tiles { count, rows: self.tile_m, columns: self.columns, terms })
    }

    fn notes(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Notes {
        // Taps that do not reach a position of a block have zero weights.
        let dense = problem.window.stride[1..] == [1, 1];
        Notes {
            domain: stage(problem, self, limits).0,
            workspace_bytes: packed_bytes(problem, self, limits),
            non_finite: if dense { NonFinite::Window } else { NonFinite::Blocks },
            ..Notes::of_sum(pass)
        }
    }

    fn launches(&self, problem: &Conv3dProblem, _: Pass, limits: &Limits) -> usize {
        let slices = SubpixelExtents::of(problem, self)
            .map_or(1, |extents| extents.chunks.div_ceil(extents.slice_chunks(problem, self, limits)));
        // Packed weights and the product.
        2 + reduce::sum_launches(slices)
    }

    fn launch(&self, call: &Conv3dCall, operands: [&Operand; 3]) -> Result<(), ConvError> {
        launch(call, self, operands)
    }
}

/// Launches the input gradient: operands dy, w, dx.
fn launch(call: &Conv3dCall, tile: &SubpixelTile, [dy, w, dx]: [&Operand; 3]) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, .. } = *call;
    let extents =
        SubpixelExtents::of(problem, tile).expect("`check` has found that the plan serves the pass");
    let packed = pack(call, &extents, tile, w)?;
    let slice_chunks = extents.slice_chunks(problem, tile, limits);
    let slices = extents.chunks.div_ceil(slice_chunks).max(1);
    let epilogue = call.epilogue();
    if slices == 1 {
        return gradient(call, &extents, (tile, slice_chunks, 1), [dy, &packed, dx], epilogue);
    }
    let (partials, slice) = reduce::split_result(client, slices, dx);
    let plain = Epilogue::default();
    gradient(call, &extents, (tile, slice_chunks, slices), [dy, &packed, &slice], plain)?;
    reduce::finish_partials(client, limits, &partials, dx, epilogue)
}

/// Packs the weights.
fn pack(
    call: &Conv3dCall,
    extents: &SubpixelExtents,
    tile: &SubpixelTile,
    w: &Operand,
) -> Result<Operand, ConvError> {
    let Conv3dCall { client, limits, ref problem, .. } = *call;
    let (stage, _) = stage(problem, tile, limits);
    let packed = Operand::empty(client, &[extents.packed_elements(problem, tile)], stage);
    let elements = packed.len();
    let address = address_type("conv3d", &[w, &packed], 0, limits)?;
    let axis = |axis: usize| {
        let geometry = problem.axis(axis);
        let AxisBlocks { taps, phases, step, origin, .. } = extents.frame[axis - 1];
        PackedAxisLaunch {
            taps: divisor(taps),
            phases: divisor(phases),
            origin: origin as i32,
            step: step as i32,
            stride: geometry.stride as i32,
            dilation: geometry.dilation as i32,
            begin: geometry.padding.0 as i32,
            kernel: geometry.kernel as i32,
            weight_stride: w.strides[axis + 2],
        }
    };
    for dispatch in dispatches(elements.div_ceil(THREADS), (THREADS * 100) as f64, limits) {
        // SAFETY: a thread's index is below the number of packed elements; weights that do not exist are not
        // read.
        unsafe {
            pack_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS as u32),
                address,
                w.buffer_arg(1),
                packed.buffer_arg(1),
                PackedExtentsLaunch {
                    height: axis(1),
                    width: axis(2),
                    taps: divisor(extents.taps()),
                    chunks: divisor(extents.chunks),
                    depth_taps: divisor(problem.kernel[0]),
                    column_tiles: divisor(extents.column_tiles),
                    columns: extents.columns as u32,
                    channels: problem.group_out_channels() as u32,
                    elements: elements as u32,
                    out_stride: w.strides[0],
                    channel_stride: w.strides[1],
                    depth_stride: w.strides[2],
                },
                dispatch.span(),
                *tile,
                w.dtype.elem(),
                stage.elem(),
            );
        }
    }
    Ok(packed)
}

/// Launches the product: operands dy, the packed weights, dx or its fp32 partials.
fn gradient(
    call: &Conv3dCall,
    extents: &SubpixelExtents,
    (tile, slice_chunks, slices): (&SubpixelTile, usize, usize),
    [dy, packed, out]: [&Operand; 3],
    Epilogue { bias, activation, .. }: Epilogue,
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, .. } = *call;
    let threadgroups = extents.threadgroups(problem, tile) * slices;
    let slice_stride = if slices == 1 { 0 } else { out.len() };
    let largest = threadgroups.max(packed.len()).max(slice_stride * slices);
    let address = address_type("conv3d", &[dy, packed, out], largest, limits)?;
    let depth_taps = problem.kernel[0].div_ceil(problem.window.stride[0]);
    let k = depth_taps * slice_chunks * tile.channels * extents.taps();
    let windows = problem.output();
    let axis = |axis: usize| {
        let AxisBlocks { phases, taps, step, origin, .. } = extents.frame[axis - 1];
        FrameAxisLaunch {
            windows: windows[axis] as u32,
            positions: problem.input[axis] as u32,
            stride: problem.window.stride[axis] as u32,
            phases: divisor(phases),
            taps: taps as u32,
            step: step as u32,
            origin: origin as i32,
            source_stride: dy.strides[axis + 2],
            out_stride: out.strides[axis + 2],
        }
    };
    let depth = || {
        let stride = problem.window.stride[0];
        DepthAxisLaunch {
            windows: windows[0] as u32,
            stride: stride as u32,
            taps: problem.kernel[0] as u32,
            tap_step: (stride / gcd(stride, problem.window.dilation[0])) as u32,
            dilation: problem.window.dilation[0] as u32,
            begin: problem.window.padding[0].0 as u32,
            source_stride: dy.strides[2],
            out_stride: out.strides[2],
        }
    };
    let segments = extents.segments;
    let tiling = || SubpixelTilingLaunch {
        depth: depth(),
        height: axis(1),
        width: axis(2),
        tiles: divisor(segments.tiles(extents.frame[0].blocks, tile.tile_m)),
        segments: divisor(segments.count),
        column_tiles: divisor(extents.column_tiles),
        column_tile_count: extents.column_tiles as u32,
        frames: divisor(problem.input[0]),
        batch: divisor(problem.batch),
        groups: divisor(problem.window.groups),
        blocks: segments.width as u32,
        pitch: divisor(segments.pitch),
        pitch_count: segments.pitch as u32,
        channels: problem.group_out_channels() as u32,
        out_channels: problem.group_channels() as u32,
        columns: extents.columns as u32,
        chunks: extents.chunks as u32,
        slice_chunks: slice_chunks as u32,
        source_batch_stride: dy.strides[0],
        source_channel_stride: dy.strides[1],
        out_batch_stride: out.strides[0],
        out_channel_stride: out.strides[1],
        slice_stride,
    };
    for dispatch in dispatches(threadgroups, 2.0 * (tile.tile_m * tile.columns * k) as f64, limits) {
        if tile.fragment == 0 {
            // SAFETY: windows outside dy and channels past the last are not read; blocks in a segment's halo,
            // positions past the input's end and columns past the last are not written; the window in shared
            // memory holds all that a tile's taps reach.
            unsafe {
                subpixel_kernel::launch_unchecked(
                    client,
                    dispatch.count(),
                    CubeDim::new_1d(tile.threads() as u32),
                    address,
                    dy.buffer_arg(1),
                    packed.buffer_arg(4),
                    bias.map(|bias| bias.tensor_arg()).into(),
                    out.buffer_arg(1),
                    tiling(),
                    dispatch.span(),
                    *tile,
                    activation,
                    limits.unroll,
                    dy.dtype.elem(),
                    out.dtype.elem(),
                );
            }
            continue;
        }
        let (stage, width) = stage(problem, tile, limits);
        // SAFETY: as for `subpixel_kernel`; a fragment's rows are within the packed weights and the window.
        unsafe {
            subpixel_mma_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_2d(SUBGROUP as u32, tile.subgroups() as u32),
                address,
                width,
                dy.buffer_arg(1),
                packed.buffer_arg(width),
                bias.map(|bias| bias.tensor_arg()).into(),
                out.buffer_arg(1),
                tiling(),
                dispatch.span(),
                *tile,
                activation,
                stage.size(),
                dy.dtype.elem(),
                stage.elem(),
                out.dtype.elem(),
            );
        }
    }
    Ok(())
}
