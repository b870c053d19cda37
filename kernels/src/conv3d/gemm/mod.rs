//! conv3d as a gathered implicit GEMM: one operand is gathered from the tensor (an im2col matrix that is
//! never stored). Behind [`super::Plan::Gemm`] and [`super::Plan::MatrixGemm`].
//!
//! ```text
//! pass               M                   N                K                    kernels
//! forward            output positions    O / groups       C / groups * taps    fma, mma
//! input gradient     input positions     C / groups       O / groups * taps    the same with packed weights,
//!                                                                              one launch per stride phase
//!   of patches       output positions    C / groups*taps  O / groups           the same
//! weight gradient    C / groups * taps   O / groups       output positions     weight, mma_weight,
//!                                                                              contiguous_weight
//! ```
//!
//! # Safety
//!
//! All launches of this module are unchecked. They are sound because:
//! - `check` has verified the operands' shapes and that [`serves`] holds for the launched problem;
//! - every index fits the address type, which `address_type` derives from the operands and the largest index;
//! - row, column and K indices past the end are clamped for loads or not loaded at all, and never stored;
//! - source offsets outside the tensor are not read (zero padding) or clamped (replicate padding);
//! - vector widths come from [`vectors`]: vectors are aligned, contiguous and within one row of the operand;
//! - no operand overlaps the result, and each element of the result is written by one thread.

pub(crate) mod choice;
pub(super) mod config;
mod contiguous_weight;
mod depth;
mod fma;
pub(crate) mod fragments;
pub(super) mod gather;
pub(super) mod index;
mod mma;
mod mma_weight;
mod pack;
pub(super) mod stage;
mod table;
mod vectors;
mod weight;

pub use config::{MatrixTile, RegisterTile};

use super::pass::Pass;
use super::problem::Conv3dProblem;
use super::reduce;
use super::split;
use crate::activation::Activation;
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::launch::dispatches;
use crate::limits::Limits;
use crate::operand::{Operand, address_type, row_major};
use config::{SUBGROUP, VECTOR};
use cubecl::prelude::*;
use fma::fma_kernel;
use gather::{
    Gather, columns, gather_args, launched_gathers, packed_gather_args, packed_shape, patches, positions,
    taps,
};
pub(crate) use gather::{is_patches, serves};
use mma::mma_kernel;
use pack::{THREADS, pack_terms_kernel};
use stage::GemmShapeLaunch;
pub(super) use vectors::{out_vector_width, source_vector_width, weight_vector_width};
pub(crate) use weight::weight_gradient;

/// The tile of a GEMM, and what multiplies.
#[derive(Clone, Copy)]
pub(crate) enum GemmTile {
    /// fp32 multiply-adds.
    Fma(RegisterTile),
    /// Matrix units.
    Mma(MatrixTile),
}

impl GemmTile {
    /// M, N and K of a threadgroup's stage.
    fn shape(&self) -> [usize; 3] {
        match self {
            Self::Fma(tile) => [tile.tile_m, tile.tile_n, tile.tile_k],
            Self::Mma(tile) => [tile.tile_m, tile.tile_n, tile.tile_k],
        }
    }
}

/// The type that matrix units multiply for tensors of `dtype`, and the fragment's size. The type itself, or
/// fp32 where the device accumulates only that in fp32 (bf16 on Apple).
pub(crate) fn stage_type(dtype: FloatType, limits: &Limits) -> Option<(FloatType, usize)> {
    let offered = |dtype| limits.matrices.iter().copied().find(|(each, _)| *each == dtype);
    offered(dtype).or_else(|| offered(FloatType::F32).filter(|_| dtype == FloatType::Bf16))
}

/// The element type of a stage for matrix units and its vector width: 16 bytes, but four elements on Apple.
pub(super) fn stage_vector(fragment: usize, dtype: FloatType, limits: &Limits) -> (FloatType, usize) {
    let Some((stage, _)) = stage_type(dtype, limits) else {
        unreachable!("`check` has looked for matrix units")
    };
    (stage, if fragment == 8 { 4 } else { 16 / stage.size() })
}

/// Launches the forward pass (operands x, w, y) or the input gradient (dy, w, dx). Where the tiles are too
/// few to fill the device the sum is split (split-K): fp32 partial results of at most
/// `Limits::workspace_bytes`.
pub(crate) fn forward_or_input_gradient(
    client: &Client,
    problem: &Conv3dProblem,
    pass: Pass,
    tile: GemmTile,
    limits: &Limits,
    [source, weight, out]: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    let contiguous = weight.strides == row_major(&weight.shape);
    let patched = contiguous && is_patches(problem, pass);
    let gathers = if patched { vec![patches(problem)] } else { launched_gathers(problem, pass) };
    let gathers: Vec<_> = gathers.iter().filter(|gather| positions(gather) > 0).collect();
    let slices = most_slices(problem, pass, tile, gathers.iter().copied(), limits);
    let activation = problem.activation_of(pass);
    let call = PassLaunch { client, problem, pass, tile, limits, slices, activation };
    if slices == 1 {
        return gathers.iter().try_for_each(|gather| launch(&call, gather, [source, weight, out], bias));
    }
    let (partials, part) = reduce::split_result(client, slices, out);
    let call = PassLaunch { activation: Activation::None, ..call };
    gathers.iter().try_for_each(|gather| launch(&call, gather, [source, weight, &part], None))?;
    reduce::finish_partials(client, limits, &partials, out, (bias, activation))
}

/// Iterations of the longest K loop.
pub(crate) fn k_iterations(problem: &Conv3dProblem, pass: Pass, tile: GemmTile, limits: &Limits) -> usize {
    let [_, _, tile_k] = tile.shape();
    // One more than the stages: the first iteration multiplies zeros while it loads the first stage.
    if pass == Pass::WeightGradient {
        return weight::split(problem, tile, limits).length.div_ceil(tile_k) + 1;
    }
    let iterations = |gathers: &[Gather]| {
        let slices = most_slices(problem, pass, tile, gathers.iter(), limits);
        let k = gathers.iter().map(|gather| gemm_shape(problem, pass, gather)[2]).max().unwrap_or(0);
        k.div_ceil(slices).div_ceil(tile_k) + 1
    };
    // The strides of the weight decide between the two.
    let patched = if is_patches(problem, pass) { iterations(&[patches(problem)]) } else { 0 };
    patched.max(iterations(&launched_gathers(problem, pass)))
}

/// What all launches of a pass have in common.
struct PassLaunch<'a> {
    client: &'a Client,
    problem: &'a Conv3dProblem,
    pass: Pass,
    tile: GemmTile,
    limits: &'a Limits,
    /// Split-K slices.
    slices: usize,
    activation: Activation,
}

/// Launches one gather of a pass, without splitting K: for depthwise plans, the phases that no tap reaches (K
/// = 0).
pub(super) fn launch_gather(
    client: &Client,
    problem: &Conv3dProblem,
    pass: Pass,
    gather: &Gather,
    limits: &Limits,
    operands: [&Operand; 3],
) -> Result<(), ConvError> {
    let tile = GemmTile::Fma(RegisterTile::M128N8);
    let call = PassLaunch { client, problem, pass, tile, limits, slices: 1, activation: Activation::None };
    launch(&call, gather, operands, None)
}

/// M, N and K of one group's GEMM.
fn gemm_shape(problem: &Conv3dProblem, pass: Pass, gather: &Gather) -> [usize; 3] {
    let (source_channels, n) = problem.channels_of(pass);
    [problem.batch * positions(gather), n * columns(gather), source_channels * taps(gather)]
}

/// The most split-K slices that any of a pass's gathers needs.
fn most_slices<'a>(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: GemmTile,
    gathers: impl Iterator<Item = &'a Gather>,
    limits: &Limits,
) -> usize {
    gathers.map(|gather| slices_of(problem, pass, tile, gather, limits)).max().unwrap_or(1)
}

/// Split-K slices that fill the device; one where the tiles fill half of it.
fn slices_of(problem: &Conv3dProblem, pass: Pass, tile: GemmTile, gather: &Gather, limits: &Limits) -> usize {
    let [m, n, k] = gemm_shape(problem, pass, gather);
    let [tile_m, tile_n, tile_k] = tile.shape();
    let tiles = m.div_ceil(tile_m) * n.div_ceil(tile_n) * problem.window.groups;
    if 2 * tiles > limits.cubes_in_flight {
        return 1;
    }
    let result = if pass == Pass::Forward { problem.y_shape() } else { problem.x_shape() };
    let affordable = split::affordable_slices(result.iter().product(), limits);
    // Below eight K iterations the prologue and epilogue dominate.
    let worthwhile = k / (8 * tile_k);
    (limits.cubes_in_flight / tiles.max(1)).min(worthwhile).min(affordable).max(1)
}

/// An input gradient's weights, packed for one gather. None where the pass reads the weight itself: the
/// forward pass, and patches.
fn packed_weight(
    call: &PassLaunch,
    gather: &Gather,
    weight: &Operand,
    k: usize,
) -> Result<Option<Operand>, ConvError> {
    let PassLaunch { client, problem, pass, limits, .. } = *call;
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
    call: &PassLaunch,
    gather: &Gather,
    [source, weight, out]: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    let PassLaunch { client, problem, pass, tile, limits, slices, activation } = *call;
    let [m, n, k] = gemm_shape(problem, pass, gather);
    let packed = packed_weight(call, gather, weight, k)?;
    let k_contiguous = packed.is_some() || pass == Pass::Forward;
    let weight = packed.as_ref().unwrap_or(weight);
    let (source_channels, _) = problem.channels_of(pass);
    let [tile_m, tile_n, tile_k] = tile.shape();
    let (tiles_m, tiles_n) = (m.div_ceil(tile_m), n.div_ceil(tile_n));
    let groups = problem.window.groups;
    let threadgroups = tiles_m * tiles_n * groups * slices;
    let slice_k = k.div_ceil(slices).next_multiple_of(tile_k);
    let slice_stride = if slices == 1 { 0 } else { out.len() };
    let largest = m.max(n).max(k + slice_k * slices).max(threadgroups).max(slice_stride * slices);
    let address = address_type("conv3d", &[source, weight, out], largest, limits)?;
    let flop = 2.0 * (tile_m * tile_n * slice_k) as f64;
    let padding = problem.window.padding_mode;
    for dispatch in dispatches(threadgroups, flop, limits) {
        let args = match packed {
            Some(_) => packed_gather_args(problem, gather, [source, weight, out]),
            None => gather_args(problem, pass, gather, [source, weight, out]),
        };
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
                let source_width = source_vector_width(gather, source, VECTOR);
                fma_kernel::launch_unchecked(
                    client,
                    dispatch.count(),
                    CubeDim::new_1d(tile.threads() as u32),
                    address,
                    source_width,
                    source.buffer_arg(source_width),
                    weight.buffer_arg(1),
                    bias.map(|bias| bias.tensor_arg()).into(),
                    out.buffer_arg(1),
                    args,
                    shape,
                    dispatch.span(),
                    padding,
                    tile,
                    limits.unroll,
                    source.dtype.elem(),
                    out.dtype.elem(),
                );
            },
            GemmTile::Mma(tile) => {
                let (stage, width) = stage_vector(tile.fragment, problem.dtype, limits);
                let weight_width = if k_contiguous { weight_vector_width(weight, k, width) } else { 1 };
                let source_width = source_vector_width(gather, source, width);
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
                        bias.map(|bias| bias.tensor_arg()).into(),
                        out.buffer_arg(1),
                        args,
                        shape,
                        dispatch.span(),
                        padding,
                        tile,
                        stage.size(),
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
