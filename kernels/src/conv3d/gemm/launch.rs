//! Launches of the gathered GEMM for the forward pass and the input gradient: packing, the product of each
//! gather, and the sum over split-K slices.

use super::config::{RegisterTile, SUBGROUP, VECTOR};
use super::family::{GemmTile, prefetches};
use super::fma::fma_kernel;
use super::gather::{
    Gather, columns, gather_args, is_patches, joined_gather_args, launched_gathers, packed_gather_args,
    packed_shape, patches, positions,
};
use super::mma::mma_kernel;
use super::pack::{THREADS, pack_terms_kernel};
use super::read::{branches, joined_args};
use super::slices::{gemm_shape, most_slices};
use super::stage::GemmShapeLaunch;
use super::stage_vector;
use super::tap_check::TapCheck;
use super::vectors::{joined_vector_width, row_length, weight_vector_width};
use crate::conv3d::call::Conv3dCall;
use crate::conv3d::epilogue::Epilogue;
use crate::conv3d::pass::Pass;
use crate::conv3d::reduce;
use crate::error::ConvError;
use crate::launch::dispatches;
use crate::operand::{Operand, address_type};
use cubecl::prelude::*;

/// Launches the forward pass (operands x, w, y) or the input gradient (dy, w, dx). Where the tiles are too
/// few to fill the device the sum is split (split-K): fp32 partial results of at most
/// `Limits::workspace_bytes`.
pub(super) fn forward_or_input_gradient(
    call: &Conv3dCall,
    tile: GemmTile,
    [source, weight, out]: [&Operand; 3],
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, pass, .. } = *call;
    let patched = weight.is_row_major() && is_patches(problem, pass);
    let gathers = if patched { vec![patches(problem)] } else { launched_gathers(problem, pass) };
    let gathers: Vec<_> = gathers.iter().filter(|gather| positions(gather) > 0).collect();
    let slices = most_slices(problem, pass, tile, gathers.iter().copied(), limits);
    let epilogue = call.epilogue();
    let gemm = GemmLaunch { call, tile, slices, prefetch: prefetches(problem, pass, tile, limits) };
    if slices == 1 {
        return gathers.iter().try_for_each(|gather| launch(&gemm, gather, [source, weight, out], epilogue));
    }
    let (partials, part) = reduce::split_result(client, slices, out);
    let plain = Epilogue::default();
    gathers.iter().try_for_each(|gather| launch(&gemm, gather, [source, weight, &part], plain))?;
    reduce::finish_partials(client, limits, &partials, out, epilogue)
}

/// What all launches of a pass have in common.
struct GemmLaunch<'a> {
    call: &'a Conv3dCall<'a>,
    tile: GemmTile,
    /// Split-K slices.
    slices: usize,
    /// Of the kernel with multiply-adds.
    prefetch: bool,
}

/// Launches one gather of a pass, without splitting K: for depthwise plans, the phases that no tap reaches (K
/// = 0).
pub(in crate::conv3d) fn launch_gather(
    call: &Conv3dCall,
    gather: &Gather,
    operands: [&Operand; 3],
) -> Result<(), ConvError> {
    let tile = GemmTile::Fma(RegisterTile::M128N8);
    let gemm = GemmLaunch { call, tile, slices: 1, prefetch: call.limits.unroll };
    launch(&gemm, gather, operands, call.epilogue())
}

/// An input gradient's weights, packed for one gather. None where the pass reads the weight itself: the
/// forward pass, and patches.
fn packed_weight(
    call: &Conv3dCall,
    gather: &Gather,
    weight: &Operand,
    k: usize,
) -> Result<Option<Operand>, ConvError> {
    let Conv3dCall { client, limits, ref problem, pass, .. } = *call;
    if pass != Pass::InputGradient || columns(gather) > 1 || k == 0 {
        return Ok(None);
    }
    let packed = Operand::empty(client, &packed_shape(problem, gather), weight.dtype);
    let elements = packed.len();
    let address = address_type("conv3d", &[weight, &packed], elements, limits)?;
    for dispatch in dispatches(elements.div_ceil(THREADS), THREADS as f64, limits) {
        // SAFETY: the module's contract; each thread copies one element, at taps and channels of the gather.
        unsafe {
            pack_terms_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS as u32),
                address,
                weight.buffer_arg(1),
                packed.buffer_arg(1),
                gather_args(problem, pass, gather, [weight, weight, weight]),
                k,
                problem.group_channels(),
                elements,
                dispatch.span(),
                weight.dtype.elem(),
            );
        }
    }
    Ok(Some(packed))
}

fn launch(
    &GemmLaunch { call, tile, slices, prefetch }: &GemmLaunch,
    gather: &Gather,
    [source, weight, out]: [&Operand; 3],
    Epilogue { bias, residual, activation }: Epilogue,
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, pass, cache, .. } = *call;
    let [m, n, k] = gemm_shape(problem, pass, gather);
    let packed = packed_weight(call, gather, weight, k)?;
    let k_along_rows = packed.is_some() || pass == Pass::Forward;
    let weight = packed.as_ref().unwrap_or(weight);
    // A forward pass whose depth taps are sliced skips the others in each of the weight's rows.
    let k_contiguous = k_along_rows && k == row_length(weight);
    let (source_channels, _) = problem.channels_of(pass);
    let [tile_m, tile_n, tile_k] = tile.shape();
    let (tiles_m, tiles_n) = (m.div_ceil(tile_m), n.div_ceil(tile_n));
    let groups = problem.window.groups;
    let threadgroups = tiles_m * tiles_n * groups * slices;
    let slice_k = k.div_ceil(slices).next_multiple_of(tile_k);
    let slice_stride = if slices == 1 { 0 } else { out.len() };
    let largest = m.max(n).max(k + slice_k * slices).max(threadgroups).max(slice_stride * slices);
    let others = [cache, residual].into_iter().flatten();
    let reached: Vec<_> = [source, weight, out].into_iter().chain(others).collect();
    let address = address_type("conv3d", &reached, largest, limits)?;
    let flop = 2.0 * (tile_m * tile_n * slice_k) as f64;
    let check = TapCheck::of_call(gather, call);
    // A bias for each of several columns of a channel; the same kernel without a bias.
    let patches = bias.is_some() && columns(gather) > 1;
    let sources = || [source].into_iter().chain(cache);
    for dispatch in dispatches(threadgroups, flop, limits) {
        let args = match packed {
            Some(_) => packed_gather_args(problem, gather, [source, weight, out]),
            None => joined_gather_args(problem, pass, gather, [source, weight, out], cache),
        };
        let joined = cache.map(|cache| joined_args(source, cache)).into();
        let shape = GemmShapeLaunch {
            m: m as u32,
            n: n as u32,
            k: k as u32,
            slice_k: slice_k as u32,
            source_channels: source_channels as u32,
            tiles_m,
            tiles_n,
            groups,
            slice_stride,
            activation: activation.code(),
        };
        match tile {
            // SAFETY: the module's contract.
            GemmTile::Fma(tile) => unsafe {
                let source_width = joined_vector_width(gather, sources(), VECTOR);
                fma_kernel::launch_unchecked(
                    client,
                    dispatch.count(),
                    CubeDim::new_1d(tile.threads() as u32),
                    address,
                    source_width,
                    source.buffer_arg(source_width),
                    weight.buffer_arg(1),
                    cache.map(|cache| cache.buffer_arg(source_width)).into(),
                    bias.map(|bias| bias.tensor_arg()).into(),
                    residual.map(|residual| residual.tensor_arg()).into(),
                    out.buffer_arg(1),
                    args,
                    joined,
                    shape,
                    dispatch.span(),
                    check,
                    patches,
                    tile,
                    prefetch,
                    residual.is_some(),
                    source.dtype.elem(),
                    out.dtype.elem(),
                );
            },
            GemmTile::Mma(tile) => {
                let (stage, width) = stage_vector(tile.fragment, problem.dtype, limits);
                let weight_width = if k_contiguous { weight_vector_width(weight, width) } else { 1 };
                let source_width = joined_vector_width(gather, sources(), width);
                // SAFETY: the module's contract.
                unsafe {
                    mma_kernel::launch_unchecked(
                        client,
                        dispatch.count(),
                        CubeDim::new_2d(SUBGROUP as u32, tile.subgroups() as u32),
                        address,
                        width,
                        weight_width,
                        source_width,
                        source.buffer_arg(source_width),
                        weight.buffer_arg(weight_width),
                        cache.map(|cache| cache.buffer_arg(source_width)).into(),
                        bias.map(|bias| bias.tensor_arg()).into(),
                        residual.map(|residual| residual.tensor_arg()).into(),
                        out.buffer_arg(1),
                        args,
                        joined,
                        shape,
                        dispatch.span(),
                        check,
                        patches,
                        tile,
                        prefetch,
                        branches(prefetch, cache, address),
                        stage.size(),
                        residual.is_some(),
                        source.dtype.elem(),
                        stage.elem(),
                        out.dtype.elem(),
                    );
                }
            }
        }
    }
    Ok(())
}
