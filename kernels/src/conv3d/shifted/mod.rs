//! conv3d on matrix units with every element of the source in shared memory once for all taps of a plane: [`kernel`], for one tap in
//! planes that are runs of sites [`runs`]. The weights are packed first ([`pack`]), into as many bytes as they have, filled up to
//! tiles. Sums of few tiles are split into parts. The weight gradient: [`weight`].

mod config;
mod kernel;
mod pack;
mod result;
mod runs;
pub(crate) mod weight;

pub use config::ShiftedTile;
pub use weight::ShiftedWeightTile;

use super::gemm::config::PLANE;
use super::gemm::walk::{MASK_BITS, Walks, walk_args, walks};
use super::gemm::{sites_together, stage_type, stage_vector, weights_together};
use super::plan::{Pass, Tiles};
use super::problem::Conv3dProblem;
use super::reduce;
use super::split;
use crate::activation::Activation;
use crate::error::ConvError;
use crate::grid::dispatches;
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use config::{CHANNELS, Strips};
use cubecl::prelude::*;
use kernel::{TilingLaunch, shifted_kernel};
use pack::{PackedLaunch, ROWS, TAPS, UNITS, pack_kernel};
use result::TOGETHER;
use runs::runs_kernel;

/// What the products of a pass are made of.
struct Extents {
    strips: Strips,
    /// Channels of one group's result, filled up to tiles.
    packed_n: usize,
    n: usize,
    channels: usize,
    /// Blocks of the source's channels, and how many of them are read at a time.
    blocks: usize,
    together: usize,
    depth_taps: usize,
    /// Taps of a plane.
    taps: usize,
}

impl Extents {
    fn of(problem: &Conv3dProblem, pass: Pass, walks: &Walks, tile: &ShiftedTile) -> Option<Self> {
        let (channels, n) = problem.channels_of(pass);
        let taps = walks[1].taps * walks[2].taps;
        // Of windows with one tap in the plane those of a stage; what no channels fill is zero in the source and in the weights.
        let together = if taps == 1 { tile.run_blocks() } else { 1 };
        Some(Self {
            strips: Strips::of(walks, tile)?,
            packed_n: n.next_multiple_of(tile.tile_n),
            n,
            channels,
            blocks: channels.div_ceil(CHANNELS).next_multiple_of(together),
            together,
            depth_taps: walks[0].taps,
            taps,
        })
    }

    /// Terms of a sum, filled up to blocks.
    fn terms(&self) -> usize {
        self.depth_taps * self.blocks * CHANNELS * self.taps
    }

    /// Elements of the packed weights.
    fn packed(&self, groups: usize) -> usize {
        groups * self.terms() * self.packed_n
    }

    /// Their bytes.
    fn packed_bytes(&self, problem: &Conv3dProblem, limits: &Limits) -> u64 {
        let size = stage_type(problem.dtype, limits).map_or(4, |(stage, _)| stage.size());
        (self.packed(problem.window.groups) * size) as u64
    }

    /// How the work is shared out, as a kernel argument.
    fn tiling(
        &self,
        problem: &Conv3dProblem,
        walks: &Walks,
        tile: &ShiftedTile,
        (parts, part_stride): (usize, usize),
        activation: Activation,
    ) -> TilingLaunch {
        TilingLaunch::new(
            (self.packed_n / tile.tile_n) as u32,
            self.strips.tiles(walks, tile) as u32,
            self.strips.count as u32,
            walks[0].sites as u32,
            problem.batch as u32,
            problem.window.groups as u32,
            parts as u32,
            part_stride,
            self.strips.sites as u32,
            self.strips.pitch as u32,
            self.strips.pitch as u32,
            walks[1].sites as u32,
            walks[2].sites as u32,
            self.n as u32,
            self.packed_n as u32,
            self.channels as u32,
            self.blocks.max(1) as u32,
            self.blocks as u32,
            self.together as u32,
            self.depth_taps as u32,
            self.taps as u32,
            walks[2].taps as u32,
            activation.code(),
        )
    }

    fn cubes(&self, problem: &Conv3dProblem, walks: &Walks, tile: &ShiftedTile) -> usize {
        let tiles = self.packed_n / tile.tile_n * self.strips.tiles(walks, tile) * self.strips.count;
        tiles * walks[0].sites * problem.batch * problem.window.groups
    }
}

/// The walk of a pass whose windows move by one element in the plane.
fn walk(problem: &Conv3dProblem, pass: Pass) -> Option<Walks> {
    // A strided input gradient is one walk for each residue class, however few an input of one element has.
    let strided = pass == Pass::InputGradient && problem.window.stride != [1; 3];
    if pass == Pass::WeightGradient || strided {
        return None;
    }
    let [walk] = walks(problem, pass)[..] else { return None };
    // Depth taps that lie inside the source are looked up among as many.
    if walk[0].taps > MASK_BITS {
        return None;
    }
    (walk[1].scale == 1 && walk[2].scale == 1 && walk.iter().all(|axis| axis.taps > 0)).then_some(walk)
}

/// Whether the tile serves a pass: what the engine serves, moving by one element in the plane, where the windows of a tile fit
/// shared memory.
pub(crate) fn serves(problem: &Conv3dProblem, pass: Pass, tile: &ShiftedTile, limits: &Limits) -> bool {
    let fits = extent(problem, pass, tile).is_some()
        && packed_bytes(problem, pass, tile, limits) <= limits.workspace_bytes;
    fits && super::gemm::serves(problem, pass)
}

/// The tiles of a pass, as [`super::Plan::tiles`] says.
pub(crate) fn extent(problem: &Conv3dProblem, pass: Pass, tile: &ShiftedTile) -> Option<Tiles> {
    let walks = walk(problem, pass)?;
    let extents = Extents::of(problem, pass, &walks, tile)?;
    Some(Tiles {
        count: extents.cubes(problem, &walks, tile),
        rows: tile.tile_m,
        columns: tile.tile_n,
        terms: extents.terms(),
        // A window for all taps of a plane (of runs the tile's sites), and every plane's own channels.
        reads: extents.terms() / extents.taps * if is_run(problem) { tile.tile_m } else { tile.window }
            + extents.terms() * tile.tile_n * (tile.tile_m / tile.plane_m),
    })
}

/// Cubes of a pass: its tiles, as often as their sums are split.
pub(crate) fn cubes(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: &ShiftedTile,
    limits: &Limits,
) -> Option<usize> {
    let walks = walk(problem, pass)?;
    let extents = Extents::of(problem, pass, &walks, tile)?;
    let tiles = extents.cubes(problem, &walks, tile);
    Some(tiles * parts(problem, pass, &extents, tiles, limits))
}

/// Bytes of the packed weights.
pub(crate) fn packed_bytes(problem: &Conv3dProblem, pass: Pass, tile: &ShiftedTile, limits: &Limits) -> u64 {
    let extents = walk(problem, pass).and_then(|walks| Extents::of(problem, pass, &walks, tile));
    extents.map_or(0, |extents| extents.packed_bytes(problem, limits))
}

/// Whether planes lie in memory as runs of sites, where tensors are contiguous: one tap in the plane that reads each of its elements,
/// vectors of which divide it. (Views that do not lie so are read one by one, which took 1.6 times as long for 384 to 768 channels,
/// 3x1x1; their sums have the same bits.)
pub(crate) fn is_run(problem: &Conv3dProblem) -> bool {
    let [_, height, width] = problem.input;
    let window = &problem.window;
    problem.kernel[1..] == [1, 1]
        && window.stride[1..] == [1, 1]
        && window.padding[1..] == [(0, 0); 2]
        && (height * width).is_multiple_of(8)
}

/// Packs the weights, in vectors of as many elements as travel together.
fn pack(call: &Call, [weight, packed]: [&Operand; 2], width: usize) -> Result<(), ConvError> {
    let Call { client, problem, pass, limits, walks, extents, .. } = *call;
    let all_taps = problem.taps();
    let chunks = all_taps.div_ceil(TAPS);
    let chunk = all_taps.div_ceil(chunks.max(1));
    let rows = extents.packed_n / ROWS;
    let cubes = rows * extents.blocks * chunks * problem.window.groups;
    let together = rows_together(problem, pass, weight, width);
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
                walk_args(problem, pass, walks, [weight, weight, weight]),
                PackedLaunch::new(
                    rows as u32,
                    extents.packed_n as u32,
                    extents.blocks as u32,
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

/// How many neighbouring weights a unit reads at once: `width` where those of a tap's channels lie in as many aligned elements.
fn rows_together(problem: &Conv3dProblem, pass: Pass, weight: &Operand, width: usize) -> usize {
    let (channels, n) = problem.channels_of(pass);
    let fastest = if pass == Pass::Forward { channels } else { n };
    if problem.taps() <= TAPS { weights_together(weight, fastest * problem.taps(), width) } else { 1 }
}

/// Parts of the sum that fill the device: as many as leave all cubes under way at once. (f16, ms, in 1, 2, 4, 8 parts: 16 tiles, 1024
/// channels, 2x8x8: 0.79, 0.46, 0.26, 0.17, in 16 0.14; 112 tiles, 8x28x28: 0.172, 0.154, 0.171; 180 tiles: 0.46, 0.49.)
fn parts(problem: &Conv3dProblem, pass: Pass, extents: &Extents, tiles: usize, limits: &Limits) -> usize {
    let result = if pass == Pass::Forward { problem.y_shape() } else { problem.x_shape() };
    // Beside the packed weights.
    let rest = limits.workspace_bytes.saturating_sub(extents.packed_bytes(problem, limits));
    let affordable = split::parts_within(result.iter().product(), rest);
    // A part of fewer than two blocks would spend its time on its ends.
    let worthwhile = extents.depth_taps * extents.blocks / 2 / extents.together;
    // A unit holds so many sums that half as many cubes as of other kernels are under way.
    let filling = limits.cubes_in_flight / 2 / tiles.max(1);
    filling.min(worthwhile).min(affordable).max(1)
}

/// Launches the forward pass (operands x, w, y) or the input gradient (dy, w, dx). Where the tiles are too few to fill the
/// device, the sum is split: fp32 partials of the result, with the packed weights at most `Limits::workspace_bytes`.
pub(crate) fn launch(
    client: &Client,
    problem: &Conv3dProblem,
    pass: Pass,
    tile: ShiftedTile,
    limits: &Limits,
    [source, weight, out]: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    let walks = walk(problem, pass).expect("`check` has looked at the walk");
    let extents = Extents::of(problem, pass, &walks, &tile).expect("`check` has looked at the window");
    let tiles = extents.cubes(problem, &walks, &tile);
    let parts = parts(problem, pass, &extents, tiles, limits);
    let epilogue = (bias, problem.activation_of(pass));
    let call = Call { client, problem, pass, tile, limits, walks: &walks, extents: &extents, parts };
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
    tile: ShiftedTile,
    limits: &'a Limits,
    walks: &'a Walks,
    extents: &'a Extents,
    parts: usize,
}

/// Packs the weights and multiplies; of a split sum every part into its own partials.
fn product(
    call: &Call,
    [source, weight, out]: [&Operand; 3],
    (bias, activation): (Option<&Operand>, Activation),
) -> Result<(), ConvError> {
    let Call { client, problem, pass, tile, limits, walks, extents, parts } = *call;
    let (stage, width) = stage_vector(tile.fragment, problem.dtype, limits);
    let elements = extents.packed(problem.window.groups);
    let packed = Operand::empty(client, &[elements], stage);
    let cubes = extents.cubes(problem, walks, &tile) * parts;
    let part_stride = if parts == 1 { 0 } else { out.len() };
    let largest = cubes.max(elements).max(extents.channels * problem.taps()).max(part_stride * parts);
    let address = address_type("conv3d", &[source, weight, out, &packed], largest, limits)?;
    pack(call, [weight, &packed], width)?;
    let operations = 2.0 * (tile.tile_m * tile.tile_n * extents.terms().div_ceil(parts)) as f64;
    // One tap in a plane that is a run of sites, of the source and of the result: nothing is shifted.
    let runs =
        sites_together(walks, source, width) == width && sites_together(walks, out, TOGETHER) == TOGETHER;
    for dispatch in dispatches(cubes, operations, limits) {
        let count = dispatch.count();
        let dim = CubeDim::new_2d(PLANE as u32, tile.planes() as u32);
        let weight_arg = packed.buffer_arg(width);
        let out_arg = out.buffer_arg(if runs { TOGETHER } else { 1 });
        let bias = bias.map(|bias| bias.tensor_arg());
        let walk = walk_args(problem, pass, walks, [source, weight, out]);
        let tiling = extents.tiling(problem, walks, &tile, (parts, part_stride), activation);
        let (padding, size) = (problem.window.padding_mode, stage.size());
        let [elem, stage_elem, out_elem] = [source.dtype, stage, out.dtype].map(|dtype| dtype.elem());
        if runs {
            // SAFETY: channels past the last and sites past the plane's are neither read nor written; vectors of both lie in
            // one plane each.
            unsafe {
                runs_kernel::launch_unchecked(
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
            // SAFETY: elements outside the source and channels past the last are not read; sites of a strip's rim, rows past the
            // last and channels past the last are not written; a window holds all that a tile's taps reach.
            unsafe {
                shifted_kernel::launch_unchecked(
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
pub(crate) fn tiles(problem: &Conv3dProblem, limits: &Limits) -> &'static [ShiftedTile] {
    ShiftedTile::all(stage_type(problem.dtype, limits).map_or(0, |(_, fragment)| fragment))
}
