//! conv3d as implicit GEMM with a shared input window (halo tile), on MMA units: shared memory holds every
//! source element of a tile once for all KH x KW taps ([`kernel`]). For 1x1 windows over contiguous frames:
//! [`contiguous`]. The weights are packed first ([`pack`]), padded to whole tiles. With few tiles the GEMM is
//! split along K. The weight gradient: [`weight`].
//!
//! # Safety
//!
//! The contract of every launch here and in [`weight`]; a launch states only what it adds.
//!
//! - Operands have the problem's shapes and dtype, and the plan serves the launched problem: both were
//!   checked before.
//! - The address type reaches every offset of every operand, and every linear index of the launch.
//! - Threadgroups past the end of a dispatch's span exit before they load or store anything.
//! - No buffer that a kernel writes is one that it reads, and no two threads write one element.

mod config;
mod contiguous;
mod epilogue;
mod extents;
mod kernel;
mod pack;
mod phases;
mod tiling;
pub(crate) mod weight;

pub use config::WindowTile;
pub(crate) use extents::{
    extent, is_pointwise_in_frame, loop_iterations, packed_bytes, serves, taps_of_window, threadgroups,
};
pub(crate) use pack::SHARED_BYTES as PACK_BYTES;
pub use weight::WindowWeightTile;

use super::gemm::config::SUBGROUP;
use super::gemm::gather::{divisor, gather_args};
use super::gemm::{out_vector_width, source_vector_width, stage_type, stage_vector, weight_vector_width};
use super::pass::Pass;
use super::problem::Conv3dProblem;
use super::reduce;
use crate::activation::Activation;
use crate::error::ConvError;
use crate::launch::dispatches;
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use config::CHANNELS;
use contiguous::contiguous_kernel;
use cubecl::prelude::*;
use epilogue::OUT_VECTOR;
use extents::{WindowExtents, k_slices};
use kernel::window_kernel;
use pack::{OUT_CHANNELS, PackTilingLaunch, TAPS, THREADS, pack_kernel};

/// Packs the weights, in vectors of `width` elements.
fn launch_pack(call: &WindowCall, [weight, packed]: [&Operand; 2], width: usize) -> Result<(), ConvError> {
    let WindowCall { client, problem, pass, limits, extents, .. } = *call;
    let all_taps = problem.taps();
    let chunks = all_taps.div_ceil(TAPS);
    let chunk_taps = all_taps.div_ceil(chunks.max(1));
    let channel_tiles = extents.packed_n / OUT_CHANNELS;
    let threadgroups = channel_tiles * extents.blocks * chunks * problem.window.groups;
    let read_width = read_width(problem, pass, weight, width);
    let largest = weight.len().max(packed.len());
    let address = address_type("conv3d", &[weight, packed], largest, limits)?;
    for dispatch in dispatches(threadgroups, (chunk_taps * OUT_CHANNELS * CHANNELS * 20) as f64, limits) {
        // SAFETY: the module's contract. Reads past the last weight are masked; the index of a threadgroup
        // names channels, a block and taps that the packed weights have.
        unsafe {
            pack_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS as u32),
                address,
                width,
                read_width,
                weight.buffer_arg(read_width),
                packed.buffer_arg(width),
                gather_args(problem, pass, &extents.packed_walks(problem), [weight, weight, weight]),
                PackTilingLaunch {
                    channel_tiles: channel_tiles as u32,
                    packed_n: extents.packed_n as u32,
                    blocks: divisor(extents.blocks),
                    depth_taps: extents.depth_taps as u32,
                    n: extents.n as u32,
                    channels: extents.channels as u32,
                    block_count: extents.blocks as u32,
                    chunks: chunks as u32,
                    chunk_divmod: chunk_taps as u32,
                    chunk_taps: chunk_taps as u32,
                    frame_divmod: extents.taps as u32,
                    frame_taps: extents.taps as u32,
                    all_taps: all_taps as u32,
                },
                dispatch.span(),
                pass,
                weight.dtype.elem(),
                packed.dtype.elem(),
            );
        }
    }
    Ok(())
}

/// The vector width of the weight loads: `width` where the weight's rows are whole aligned vectors, else one.
fn read_width(problem: &Conv3dProblem, pass: Pass, weight: &Operand, width: usize) -> usize {
    let (channels, n) = problem.channels_of(pass);
    let fastest = if pass == Pass::Forward { channels } else { n };
    if problem.taps() <= TAPS { weight_vector_width(weight, fastest * problem.taps(), width) } else { 1 }
}

/// Launches the forward pass (operands x, w, y) or the input gradient (dy, w, dx). With too few tiles to fill
/// the device the GEMM is split along K: the fp32 partials and the packed weights take at most
/// `Limits::workspace_bytes`.
pub(crate) fn launch(
    client: &Client,
    problem: &Conv3dProblem,
    pass: Pass,
    tile: WindowTile,
    limits: &Limits,
    [source, weight, out]: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    let extents = WindowExtents::of(problem, pass, &tile).expect("`serves` has checked the windows");
    let k_slices = k_slices(problem, pass, &extents, &tile, limits);
    let epilogue = (bias, problem.activation_of(pass));
    let call = WindowCall { client, problem, pass, tile, limits, extents: &extents, k_slices };
    if k_slices == 1 {
        return launch_gemm(&call, [source, weight, out], epilogue);
    }
    let (partials, first) = reduce::split_result(client, k_slices, out);
    launch_gemm(&call, [source, weight, &first], (None, Activation::None))?;
    reduce::finish_partials(client, limits, &partials, out, epilogue)
}

/// What the launches of a pass share, apart from their operands.
struct WindowCall<'a> {
    client: &'a Client,
    problem: &'a Conv3dProblem,
    pass: Pass,
    tile: WindowTile,
    limits: &'a Limits,
    extents: &'a WindowExtents,
    k_slices: usize,
}

/// Packs the weights and runs the GEMM; each split-K slice writes its own partials.
fn launch_gemm(
    call: &WindowCall,
    [source, weight, out]: [&Operand; 3],
    (bias, activation): (Option<&Operand>, Activation),
) -> Result<(), ConvError> {
    let WindowCall { client, problem, pass, tile, limits, extents, k_slices } = *call;
    let (stage, width) = stage_vector(tile.fragment, problem.dtype, limits);
    let elements = extents.packed(problem.window.groups);
    let packed = Operand::empty(client, &[elements], stage);
    let threadgroups = extents.tiles(problem, &tile) * k_slices;
    let slice_stride = if k_slices == 1 { 0 } else { out.len() };
    let largest =
        threadgroups.max(elements).max(extents.channels * problem.taps()).max(slice_stride * k_slices);
    let address = address_type("conv3d", &[source, weight, out, &packed], largest, limits)?;
    launch_pack(call, [weight, &packed], width)?;
    let operations = 2.0 * (tile.tile_m * tile.tile_n * extents.mean_k().div_ceil(k_slices)) as f64;
    // One tap in the frame, and contiguous frames of the source and of the result.
    let contiguous = source_vector_width(&extents.walks, source, width) == width
        && out_vector_width(&extents.walks, out, OUT_VECTOR) == OUT_VECTOR;
    for dispatch in dispatches(threadgroups, operations, limits) {
        let count = dispatch.count();
        let dim = CubeDim::new_2d(SUBGROUP as u32, tile.subgroups() as u32);
        let weight_arg = packed.buffer_arg(width);
        let out_arg = out.buffer_arg(if contiguous { OUT_VECTOR } else { 1 });
        let bias = bias.map(|bias| bias.tensor_arg());
        let walk = gather_args(problem, pass, &extents.walks, [source, weight, out]);
        let tiling = extents.tiling(problem, &tile, (k_slices, slice_stride), activation);
        let phases = extents.phases(problem);
        let (padding, size) = (problem.window.padding_mode, stage.size());
        let [elem, stage_elem, out_elem] = [source.dtype, stage, out.dtype].map(|dtype| dtype.elem());
        if contiguous {
            // SAFETY: the module's contract. Channels past the last and positions past the frame's end are
            // neither read nor written; a vector never crosses the end of a frame.
            unsafe {
                contiguous_kernel::launch_unchecked(
                    client,
                    count,
                    dim,
                    address,
                    width,
                    source.buffer_arg(width),
                    weight_arg,
                    bias.into(),
                    out_arg,
                    walk,
                    tiling,
                    phases.into(),
                    dispatch.span(),
                    padding,
                    tile,
                    size,
                    elem,
                    stage_elem,
                    out_elem,
                );
            }
        } else {
            // SAFETY: the module's contract. Elements outside the source and channels past the last are not
            // read; the halo, rows past the last and channels past the last are not written; the window
            // holds every element that the taps of a tile reach.
            unsafe {
                window_kernel::launch_unchecked(
                    client,
                    count,
                    dim,
                    address,
                    width,
                    source.buffer_arg(1),
                    weight_arg,
                    bias.into(),
                    out_arg,
                    walk,
                    tiling,
                    phases.into(),
                    dispatch.span(),
                    padding,
                    tile,
                    size,
                    elem,
                    stage_elem,
                    out_elem,
                );
            }
        }
    }
    Ok(())
}

/// The tiles for the problem's type; none where the device has no MMA units for it.
pub(crate) fn tiles(problem: &Conv3dProblem, limits: &Limits) -> &'static [WindowTile] {
    WindowTile::all(stage_type(problem.dtype, limits).map_or(0, |(_, fragment)| fragment))
}
