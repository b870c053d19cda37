//! Launches of the window GEMM: packing, the product, and the sum over split-K slices. Safety: [`super`].

use super::config::{CHANNELS, WindowTile};
use super::contiguous::contiguous_kernel;
use super::epilogue::OUT_VECTOR;
use super::extents::{WindowExtents, k_slices};
use super::kernel::window_kernel;
use super::pack::{OUT_CHANNELS, PackTilingLaunch, TAPS, THREADS, pack_kernel};
use crate::conv3d::cache::cache_args;
use crate::conv3d::call::Conv3dCall;
use crate::conv3d::epilogue::Epilogue;
use crate::conv3d::gemm::config::SUBGROUP;
use crate::conv3d::gemm::gather::{divisor, gather_args};
use crate::conv3d::gemm::{joined_vector_width, out_vector_width, stage_vector, weight_vector_width};
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::reduce;
use crate::error::ConvError;
use crate::launch::dispatches;
use crate::operand::{Operand, address_type};
use cubecl::prelude::*;

/// Packs the weights, in vectors of `width` elements.
fn launch_pack(
    launch: &WindowLaunch,
    [weight, packed]: [&Operand; 2],
    width: usize,
) -> Result<(), ConvError> {
    let WindowLaunch { call, extents, .. } = *launch;
    let Conv3dCall { client, limits, ref problem, pass, .. } = *call;
    let all_taps = problem.taps();
    let chunks = all_taps.div_ceil(TAPS);
    let chunk_taps = all_taps.div_ceil(chunks.max(1));
    let channel_tiles = extents.packed_n / OUT_CHANNELS;
    let threadgroups = channel_tiles * extents.blocks * chunks * problem.window.groups;
    let read_width = read_width(problem, weight, width);
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
fn read_width(problem: &Conv3dProblem, weight: &Operand, width: usize) -> usize {
    if problem.taps() <= TAPS { weight_vector_width(weight, width) } else { 1 }
}

/// Launches the forward pass (operands x, w, y) or the input gradient (dy, w, dx). With too few tiles to fill
/// the device the GEMM is split along K: the fp32 partials and the packed weights take at most
/// `Limits::workspace_bytes`.
pub(super) fn launch(
    call: &Conv3dCall,
    tile: WindowTile,
    [source, weight, out]: [&Operand; 3],
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, pass, .. } = *call;
    let extents = WindowExtents::of(problem, pass, &tile).expect("`serves` has checked the windows");
    let k_slices = k_slices(problem, pass, &extents, &tile, limits);
    let launch = WindowLaunch { call, tile, extents: &extents, k_slices };
    if k_slices == 1 {
        return launch_gemm(&launch, [source, weight, out], call.epilogue());
    }
    let (partials, first) = reduce::split_result(client, k_slices, out);
    launch_gemm(&launch, [source, weight, &first], Epilogue::default())?;
    reduce::finish_partials(client, limits, &partials, out, call.epilogue())
}

/// What the launches of a pass share, apart from their operands.
struct WindowLaunch<'a> {
    call: &'a Conv3dCall<'a>,
    tile: WindowTile,
    extents: &'a WindowExtents,
    k_slices: usize,
}

/// Packs the weights and runs the GEMM; each split-K slice writes its own partials.
fn launch_gemm(
    launch: &WindowLaunch,
    [source, weight, out]: [&Operand; 3],
    Epilogue { bias, residual, activation }: Epilogue,
) -> Result<(), ConvError> {
    let WindowLaunch { call, tile, extents, k_slices } = *launch;
    let Conv3dCall { client, limits, ref problem, pass, cache, .. } = *call;
    let (stage, width) = stage_vector(tile.fragment, problem.dtype, limits);
    let elements = extents.packed(problem.window.groups);
    let packed = Operand::empty(client, &[elements], stage);
    let threadgroups = extents.tiles(problem, &tile) * k_slices;
    let slice_stride = if k_slices == 1 { 0 } else { out.len() };
    let largest =
        threadgroups.max(elements).max(extents.channels * problem.taps()).max(slice_stride * k_slices);
    let sources = || [source].into_iter().chain(cache);
    let reached: Vec<_> = sources().chain([weight, out, &packed]).chain(residual).collect();
    let address = address_type("conv3d", &reached, largest, limits)?;
    launch_pack(launch, [weight, &packed], width)?;
    let operations = 2.0 * (tile.tile_m * tile.tile_n * extents.mean_k().div_ceil(k_slices)) as f64;
    // One tap in the frame, and contiguous frames of the sources, the result and the residual.
    let vectors = |operand: &Operand| out_vector_width(&extents.gather, operand, OUT_VECTOR) == OUT_VECTOR;
    let contiguous = joined_vector_width(&extents.gather, sources(), width) == width
        && vectors(out)
        && residual.is_none_or(vectors);
    for dispatch in dispatches(threadgroups, operations, limits) {
        let count = dispatch.count();
        let dim = CubeDim::new_2d(SUBGROUP as u32, tile.subgroups() as u32);
        let weight_arg = packed.buffer_arg(width);
        let out_arg = out.buffer_arg(if contiguous { OUT_VECTOR } else { 1 });
        let bias = bias.map(|bias| bias.tensor_arg());
        let residual_arg = residual.map(|residual| residual.tensor_arg());
        let gather = gather_args(problem, pass, &extents.gather, [source, weight, out]);
        let tiling = extents.tiling(problem, &tile, (k_slices, slice_stride), activation);
        let phases = extents.phases(problem);
        let padding = problem.window_padding().expect("`serves` has checked the padding");
        let size = stage.size();
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
                    cache.map(|cache| cache.buffer_arg(width)).into(),
                    weight_arg,
                    bias.into(),
                    residual_arg.into(),
                    out_arg,
                    gather,
                    cache.map(cache_args).into(),
                    tiling,
                    phases.into(),
                    dispatch.span(),
                    padding,
                    tile,
                    limits.unroll,
                    size,
                    residual.is_some(),
                    cache.is_some(),
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
                    cache.map(|cache| cache.buffer_arg(1)).into(),
                    weight_arg,
                    bias.into(),
                    residual_arg.into(),
                    out_arg,
                    gather,
                    cache.map(cache_args).into(),
                    tiling,
                    phases.into(),
                    dispatch.span(),
                    padding,
                    tile,
                    limits.unroll,
                    size,
                    residual.is_some(),
                    cache.is_some(),
                    elem,
                    stage_elem,
                    out_elem,
                );
            }
        }
    }
    Ok(())
}
