//! What [`crate::conv3d::Plan::Gemm`] serves, needs and launches: for the forward pass and the input gradient
//! packing ([`super::pack`]), the product of each gather and the sum over split-K slices; the weight gradient
//! in [`super::weight`].

use super::config::{GemmTile, RegisterTile, SUBGROUP, VECTOR};
use super::fma::fma_kernel;
use super::gather::{
    Gather, columns, is_patches, joined_gather_args, launched_gathers, packed_gather_args, patches,
    positions, serves,
};
use super::mma::mma_kernel;
use super::pack::packed_weight;
use super::read::{branches, joined_args};
use super::slices::{gemm_shape, kernels, loop_iterations, most_slices, prefetches, waves};
use super::stage::GemmShapeLaunch;
use super::tap_check::TapCheck;
use super::vectors::{joined_vector_width, row_length, weight_vector_width};
use super::weight::weight_gradient;
use super::{launches, mma_tiles, stage_type, stage_vector};
use crate::conv3d::call::Conv3dCall;
use crate::conv3d::epilogue::Epilogue;
use crate::conv3d::family::Family;
use crate::conv3d::needs::{kernel_needs, stage_size};
use crate::conv3d::notes::Notes;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::conv3d::reduce;
use crate::conv3d::tiles::Tiles;
use crate::dtype::FloatType;
use crate::error::{ConvError, unsupported};
use crate::launch::dispatches;
use crate::limits::Limits;
use crate::needs::Needs;
use crate::operand::{Operand, address_type};
use cubecl::prelude::*;

impl Family for GemmTile {
    fn plan_name(&self) -> String {
        match self {
            Self::Fma(tile) => format!("gemm_{}", tile.name()),
            Self::Mma(tile) => format!("matrix_gemm_{}", tile.name()),
        }
    }

    fn serves(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Result<(), ConvError> {
        if !serves(problem, pass) {
            unsupported!(
                "conv3d: {} serves positions and K elements that 31 bits count and few phases of a stride, not \
                 the kernel {:?} with stride {:?} on {:?}",
                self.plan_name(),
                problem.kernel,
                problem.window.stride,
                problem.x_shape()
            );
        }
        if let Self::Mma(tile) = self
            && !mma_tiles(problem, pass, limits).any(|each| each == *tile)
        {
            unsupported!(
                "conv3d: the device has no matrix units for the {} of {} in tiles of {}",
                pass.name(),
                problem.dtype.name(),
                tile.name()
            );
        }
        Ok(())
    }

    fn needs(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Needs {
        let iterations = loop_iterations(problem, pass, *self, limits);
        match self {
            Self::Fma(tile) => kernel_needs(tile.shared_bytes(), tile.threads(), iterations),
            Self::Mma(tile) => {
                kernel_needs(tile.shared_bytes(stage_size(problem, limits)), tile.threads(), iterations)
            }
        }
    }

    fn tiles(&self, problem: &Conv3dProblem, pass: Pass) -> Option<Tiles> {
        let [tile_m, tile_n, tile_k] = self.shape();
        // The weight gradient swaps rows and columns.
        let [rows, columns] = if pass == Pass::WeightGradient { [tile_n, tile_m] } else { [tile_m, tile_n] };
        let tile = [rows, columns, tile_k];
        Some(Tiles::of_gemm(problem, pass, is_patches(problem, pass), launches(problem, pass), tile))
    }

    fn notes(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Notes {
        let notes = Notes::of_sum(pass);
        // The weights that are packed per stride phase.
        let packs = pass == Pass::InputGradient && !is_patches(problem, pass);
        let weights = problem.weight_shape().iter().product::<usize>() * problem.dtype.size();
        Notes {
            domain: match self {
                Self::Fma(_) => FloatType::F32,
                Self::Mma(_) => stage_type(problem.dtype, limits).map_or(FloatType::F32, |(dtype, _)| dtype),
            },
            workspace_bytes: if packs { weights as u64 } else { 0 },
            ..notes
        }
    }

    fn launches(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> usize {
        kernels(problem, pass, *self, limits)
    }

    fn waves(&self, problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Option<f64> {
        let counted = matches!(self, Self::Fma(_)) && !problem.streaming;
        counted.then(|| waves(problem, pass, *self, limits))
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

/// Launches the forward pass (operands x, w, y) or the input gradient (dy, w, dx). Where the tiles are too
/// few to fill the device the sum is split (split-K): fp32 partial results of at most
/// `Limits::workspace_bytes`.
fn forward_or_input_gradient(
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
