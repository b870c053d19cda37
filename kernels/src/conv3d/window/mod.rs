//! conv3d on matrix units with every element of the source in shared memory once for all taps of a plane:
//! [`kernel`], for one tap in planes that are runs of sites [`runs`]. The weights are packed first
//! ([`pack`]), into as many bytes as they have, filled up to tiles. Sums of few tiles are split into parts.
//! The weight gradient: [`weight`].

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
pub(crate) use extents::{cubes, extent, is_run, loop_iterations, packed_bytes, serves, taps_of_window};
pub(crate) use pack::SHARED_BYTES as PACK_BYTES;
pub use weight::WindowWeightTile;

use super::gemm::config::SUBGROUP;
use super::gemm::gather::{divisor, gather_args};
use super::gemm::{out_vector_width, source_vector_width, stage_type, stage_vector, weight_vector_width};
use super::plan::Pass;
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
use epilogue::TOGETHER;
use extents::{Extents, parts};
use kernel::window_kernel;
use pack::{PackedLaunch, ROWS, TAPS, UNITS, pack_kernel};

/// Packs the weights, in vectors of as many elements as travel together.
fn pack(call: &Call, [weight, packed]: [&Operand; 2], width: usize) -> Result<(), ConvError> {
    let Call { client, problem, pass, limits, extents, .. } = *call;
    let all_taps = problem.taps();
    let chunks = all_taps.div_ceil(TAPS);
    let chunk = all_taps.div_ceil(chunks.max(1));
    let rows = extents.packed_n / ROWS;
    let cubes = rows * extents.blocks * chunks * problem.window.groups;
    // Of a residue class some taps of each row are packed.
    let together = if all_taps == problem.taps() { rows_together(problem, pass, weight, width) } else { 1 };
    let largest = weight.len().max(packed.len());
    let address = address_type("conv3d", &[weight, packed], largest, limits)?;
    for dispatch in dispatches(cubes, (chunk * ROWS * CHANNELS * 20) as f64, limits) {
        // SAFETY: weights past the last are not read; a cube's rows, block and taps are the packed weights'.
        unsafe {
            pack_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS as u32),
                address,
                width,
                together,
                weight.buffer_arg(together),
                packed.buffer_arg(width),
                gather_args(problem, pass, &extents.packed_walks(problem), [weight, weight, weight]),
                PackedLaunch::new(
                    rows as u32,
                    extents.packed_n as u32,
                    divisor(extents.blocks),
                    extents.depth_taps as u32,
                    extents.n as u32,
                    extents.channels as u32,
                    extents.blocks as u32,
                    chunks as u32,
                    chunk as u32,
                    chunk as u32,
                    extents.taps as u32,
                    extents.taps as u32,
                    all_taps as u32,
                ),
                dispatch.span(),
                pass,
                weight.dtype.elem(),
                packed.dtype.elem(),
            );
        }
    }
    Ok(())
}

/// How many neighbouring weights a unit reads at once: `width` where those of a tap's channels lie in as many
/// aligned elements.
fn rows_together(problem: &Conv3dProblem, pass: Pass, weight: &Operand, width: usize) -> usize {
    let (channels, n) = problem.channels_of(pass);
    let fastest = if pass == Pass::Forward { channels } else { n };
    if problem.taps() <= TAPS { weight_vector_width(weight, fastest * problem.taps(), width) } else { 1 }
}

/// Launches the forward pass (operands x, w, y) or the input gradient (dy, w, dx). Where the tiles are too
/// few to fill the device, the sum is split: fp32 partials of the result, with the packed weights at most
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
    let extents = Extents::of(problem, pass, &tile).expect("`serves` has looked at the windows");
    let parts = parts(problem, pass, &extents, &tile, limits);
    let epilogue = (bias, problem.activation_of(pass));
    let call = Call { client, problem, pass, tile, limits, extents: &extents, parts };
    if parts == 1 {
        return product(&call, [source, weight, out], epilogue);
    }
    let (partials, part) = reduce::split_result(client, parts, out);
    product(&call, [source, weight, &part], (None, Activation::None))?;
    reduce::finish_partials(client, limits, &partials, out, epilogue)
}

/// What a launch is made of, beside its operands.
struct Call<'a> {
    client: &'a Client,
    problem: &'a Conv3dProblem,
    pass: Pass,
    tile: WindowTile,
    limits: &'a Limits,
    extents: &'a Extents,
    parts: usize,
}

/// Packs the weights and multiplies; of a split sum every part into its own partials.
fn product(
    call: &Call,
    [source, weight, out]: [&Operand; 3],
    (bias, activation): (Option<&Operand>, Activation),
) -> Result<(), ConvError> {
    let Call { client, problem, pass, tile, limits, extents, parts } = *call;
    let (stage, width) = stage_vector(tile.fragment, problem.dtype, limits);
    let elements = extents.packed(problem.window.groups);
    let packed = Operand::empty(client, &[elements], stage);
    let cubes = extents.tiles(problem, &tile) * parts;
    let part_stride = if parts == 1 { 0 } else { out.len() };
    let largest = cubes.max(elements).max(extents.channels * problem.taps()).max(part_stride * parts);
    let address = address_type("conv3d", &[source, weight, out, &packed], largest, limits)?;
    pack(call, [weight, &packed], width)?;
    let operations = 2.0 * (tile.tile_m * tile.tile_n * extents.terms().div_ceil(parts)) as f64;
    // One tap in the plane, and contiguous H x W slices of the source and of the result: nothing is shifted.
    let runs = source_vector_width(&extents.walks, source, width) == width
        && out_vector_width(&extents.walks, out, TOGETHER) == TOGETHER;
    for dispatch in dispatches(cubes, operations, limits) {
        let count = dispatch.count();
        let dim = CubeDim::new_2d(SUBGROUP as u32, tile.planes() as u32);
        let weight_arg = packed.buffer_arg(width);
        let out_arg = out.buffer_arg(if runs { TOGETHER } else { 1 });
        let bias = bias.map(|bias| bias.tensor_arg());
        let walk = gather_args(problem, pass, &extents.walks, [source, weight, out]);
        let tiling = extents.tiling(problem, &tile, (parts, part_stride), activation);
        let phases = extents.phases(problem);
        let (padding, size) = (problem.window.padding_mode, stage.size());
        let [elem, stage_elem, out_elem] = [source.dtype, stage, out.dtype].map(|dtype| dtype.elem());
        if runs {
            // SAFETY: channels past the last and sites past the plane's are neither read nor written; vectors
            // of both lie in one plane each.
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
            // SAFETY: elements outside the source and channels past the last are not read; sites of a strip's
            // rim, rows past the last and channels past the last are not written; a window holds all that a
            // tile's taps reach.
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

/// Whether the device has matrix units for the problem's type, and the tiles for them.
pub(crate) fn tiles(problem: &Conv3dProblem, limits: &Limits) -> &'static [WindowTile] {
    WindowTile::all(stage_type(problem.dtype, limits).map_or(0, |(_, fragment)| fragment))
}
