//! conv3d as one matrix product with gathered operands, at the machine's speed: the engine behind
//! [`super::Plan::Gemm`].
//!
//! ```text
//! pass             sites (M)         channels (N)   terms (K)             kernels
//! forward          windows           O / groups     C / groups * taps     registers, matrices
//! input gradient   input positions   C / groups     O / groups * taps     the same by packed weights,
//!                                                                         one launch per stride phase
//!  of patches      windows           C / groups*taps O / groups           the same
//! weight gradient  C / groups * taps O / groups     windows, split        weight, matrix_weight
//! ```

pub(crate) mod choice;
pub(super) mod config;
mod contiguous_weight;
mod depth;
mod fma;
pub(crate) mod fragments;
pub(super) mod index;
mod mma;
mod mma_weight;
mod pack;
pub(super) mod stage;
mod table;
mod vectors;
pub(super) mod walk;
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
use config::{PLANE, VECTOR};
use cubecl::prelude::*;
use fma::fma_kernel;
use mma::mma_kernel;
use pack::{UNITS, pack_terms_kernel};
use stage::ExtentsLaunch;
pub(super) use vectors::{results_together, sites_together, weights_together};
pub(crate) use walk::is_patches;
pub(crate) use walk::serves;
use walk::{Walks, columns, launched_walks, packed_shape, packed_walk_args, patches, sites, taps, walk_args};
pub(crate) use weight::weight_gradient;

/// How a product is tiled, and by what it is multiplied.
#[derive(Clone, Copy)]
pub(crate) enum Tile {
    /// fp32 multiply-adds.
    Registers(RegisterTile),
    /// Matrix units.
    Matrices(MatrixTile),
}

impl Tile {
    /// Sites, channels and terms.
    fn extents(&self) -> [usize; 3] {
        match self {
            Self::Registers(tile) => [tile.tile_m, tile.tile_n, tile.tile_k],
            Self::Matrices(tile) => [tile.tile_m, tile.tile_n, tile.tile_k],
        }
    }
}

/// What matrix units multiply for tensors of `dtype`, and the fragment's shape: the type itself, or fp32
/// where only that is accumulated in fp32 (bf16 on Apple).
pub(crate) fn stage_type(dtype: FloatType, limits: &Limits) -> Option<(FloatType, usize)> {
    let offered = |dtype| limits.matrices.iter().copied().find(|(each, _)| *each == dtype);
    offered(dtype).or_else(|| offered(FloatType::F32).filter(|_| dtype == FloatType::Bf16))
}

/// The type that a stage for matrix units holds, and how many of it travel together: 16 bytes, but Apple's
/// four elements at most.
pub(super) fn stage_vector(fragment: usize, dtype: FloatType, limits: &Limits) -> (FloatType, usize) {
    let Some((stage, _)) = stage_type(dtype, limits) else {
        unreachable!("`check` has looked for matrix units")
    };
    (stage, if fragment == 8 { 4 } else { 16 / stage.size() })
}

/// Launches the forward pass (operands x, w, y) or the input gradient (dy, w, dx). Where the tiles are too
/// few to fill the device, the sum is split: fp32 partials of the result, at most `Limits::workspace_bytes`.
pub(crate) fn gather(
    client: &Client,
    problem: &Conv3dProblem,
    pass: Pass,
    tile: Tile,
    limits: &Limits,
    [source, weight, out]: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    let runs = weight.strides == row_major(&weight.shape);
    let patched = runs && is_patches(problem, pass);
    let walks = if patched { vec![patches(problem)] } else { launched_walks(problem, pass) };
    let walks: Vec<_> = walks.iter().filter(|walks| sites(walks) > 0).collect();
    let parts = walks.iter().map(|walks| parts(problem, pass, tile, walks, limits)).max().unwrap_or(1);
    let activation = problem.activation_of(pass);
    let call = Call { client, problem, pass, tile, limits, parts, activation };
    if parts == 1 {
        return walks.iter().try_for_each(|walks| launch(&call, walks, [source, weight, out], bias));
    }
    let (partials, part) = reduce::split_result(client, parts, out);
    let call = Call { activation: Activation::None, ..call };
    walks.iter().try_for_each(|walks| launch(&call, walks, [source, weight, &part], None))?;
    reduce::finish_partials(client, limits, &partials, out, (bias, activation))
}

/// Stages of the longest sum that one thread computes.
pub(crate) fn stages(problem: &Conv3dProblem, pass: Pass, tile: Tile, limits: &Limits) -> usize {
    let [_, _, tile_k] = tile.extents();
    // The first iteration multiplies zeros while the first stage is read.
    if pass == Pass::WeightGradient {
        let weights = problem.weight_shape().iter().product();
        let split = split::ReductionSplit::of(problem.positions(), weights, limits);
        return split.length.div_ceil(tile_k) + 1;
    }
    let walks = launched_walks(problem, pass);
    let parts = walks.iter().map(|walks| parts(problem, pass, tile, walks, limits)).max().unwrap_or(1);
    let terms = walks.iter().map(|walks| extents(problem, pass, walks)[2]).max().unwrap_or(0);
    terms.div_ceil(parts).div_ceil(tile_k) + 1
}

/// What all phases of a pass share.
struct Call<'a> {
    client: &'a Client,
    problem: &'a Conv3dProblem,
    pass: Pass,
    tile: Tile,
    limits: &'a Limits,
    parts: usize,
    activation: Activation,
}

/// Launches the part of a pass that one walk covers.
pub(super) fn one_walk(
    client: &Client,
    problem: &Conv3dProblem,
    pass: Pass,
    walks: &Walks,
    limits: &Limits,
    operands: [&Operand; 3],
) -> Result<(), ConvError> {
    let tile = Tile::Registers(RegisterTile::M128N8);
    let call = Call { client, problem, pass, tile, limits, parts: 1, activation: Activation::None };
    launch(&call, walks, operands, None)
}

/// M, N and K of one group's product.
fn extents(problem: &Conv3dProblem, pass: Pass, walks: &Walks) -> [usize; 3] {
    let (source_channels, n) = problem.channels_of(pass);
    [problem.batch * sites(walks), n * columns(walks), source_channels * taps(walks)]
}

/// Parts of the sum that fill the device; one where the tiles half fill it already.
fn parts(problem: &Conv3dProblem, pass: Pass, tile: Tile, walks: &Walks, limits: &Limits) -> usize {
    let [m, n, k] = extents(problem, pass, walks);
    let [tile_m, tile_n, tile_k] = tile.extents();
    let tiles = m.div_ceil(tile_m) * n.div_ceil(tile_n) * problem.window.groups;
    if 2 * tiles > limits.cubes_in_flight {
        return 1;
    }
    let result = if pass == Pass::Forward { problem.y_shape() } else { problem.x_shape() };
    let affordable = split::affordable_slices(result.iter().product(), limits);
    // A part of fewer than eight stages would spend its time on its ends.
    let worthwhile = k / (8 * tile_k);
    (limits.cubes_in_flight / tiles.max(1)).min(worthwhile).min(affordable).max(1)
}

/// The weights of an input gradient's walk in the order of its terms; none where the pass reads them as they
/// lie, which are the forward pass and windows that tile the input.
fn packed(call: &Call, walks: &Walks, weight: &Operand, k: usize) -> Result<Option<Operand>, ConvError> {
    let Call { client, problem, pass, limits, .. } = *call;
    if pass != Pass::InputGradient || columns(walks) > 1 || k == 0 {
        return Ok(None);
    }
    let packed = Operand::empty(client, &packed_shape(problem, walks), weight.dtype);
    let elements = packed.len();
    let address = address_type("conv3d", &[weight, &packed], elements, limits)?;
    for dispatch in dispatches(elements.div_ceil(UNITS), UNITS as f64, limits) {
        // SAFETY: a unit's index is below the packed weights' number, and its taps and channels are the
        // walk's.
        unsafe {
            pack_terms_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS as u32),
                address,
                weight.buffer_arg(1),
                packed.buffer_arg(1),
                walk_args(problem, pass, walks, [weight, weight, weight]),
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
    call: &Call,
    walks: &Walks,
    [source, weight, out]: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    let Call { client, problem, pass, tile, limits, parts, activation } = *call;
    let [m, n, k] = extents(problem, pass, walks);
    let packed = packed(call, walks, weight, k)?;
    let runs = packed.is_some() || pass == Pass::Forward;
    let weight = packed.as_ref().unwrap_or(weight);
    let (source_channels, _) = problem.channels_of(pass);
    let [tile_m, tile_n, tile_k] = tile.extents();
    let (tiles_m, tiles_n) = (m.div_ceil(tile_m), n.div_ceil(tile_n));
    let groups = problem.window.groups;
    let cubes = tiles_m * tiles_n * groups * parts;
    let part_k = k.div_ceil(parts).next_multiple_of(tile_k);
    let part_stride = if parts == 1 { 0 } else { out.len() };
    let largest = m.max(n).max(k + part_k * parts).max(cubes).max(part_stride * parts);
    let address = address_type("conv3d", &[source, weight, out], largest, limits)?;
    let operations = 2.0 * (tile_m * tile_n * part_k) as f64;
    let padding = problem.window.padding_mode;
    for dispatch in dispatches(cubes, operations, limits) {
        let walk = match packed {
            Some(_) => packed_walk_args(problem, walks, [source, weight, out]),
            None => walk_args(problem, pass, walks, [source, weight, out]),
        };
        let extents = ExtentsLaunch::new(
            m as u32,
            n as u32,
            k as u32,
            part_k as u32,
            source_channels as u32,
            tiles_m,
            tiles_n,
            groups,
            part_stride,
            activation.code(),
        );
        match tile {
            // SAFETY: sites and channels past the last repeat it and are not written; terms past the last are
            // not read; places outside the source are zero or clamped. The conformance run surrounds every
            // buffer with guards.
            Tile::Registers(tile) => unsafe {
                let beside = sites_together(walks, source, VECTOR);
                fma_kernel::launch_unchecked(
                    client,
                    dispatch.count(),
                    CubeDim::new_1d(tile.units() as u32),
                    address,
                    beside,
                    source.buffer_arg(beside),
                    weight.buffer_arg(1),
                    bias.map(|bias| bias.tensor_arg()).into(),
                    out.buffer_arg(1),
                    walk,
                    extents,
                    dispatch.span(),
                    padding,
                    tile,
                    limits.unroll,
                    source.dtype.elem(),
                    out.dtype.elem(),
                );
            },
            Tile::Matrices(tile) => {
                let (stage, width) = stage_vector(tile.fragment, problem.dtype, limits);
                let together = if runs { weights_together(weight, k, width) } else { 1 };
                let beside = sites_together(walks, source, width);
                // SAFETY: as above.
                unsafe {
                    mma_kernel::launch_unchecked(
                        client,
                        dispatch.count(),
                        CubeDim::new_2d(PLANE as u32, tile.planes() as u32),
                        address,
                        width,
                        together,
                        beside,
                        source.buffer_arg(beside),
                        weight.buffer_arg(together),
                        bias.map(|bias| bias.tensor_arg()).into(),
                        out.buffer_arg(1),
                        walk,
                        extents,
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
