//! The input gradient of stems, layers of at most four input channels per group: [`kernel`], or [`matrices`].
//! The weights are packed first ([`pack`]), with zeros for the phases that a tap does not reach.

mod blocks;
mod config;
mod kernel;
mod mma;
mod pack;
mod tiling;

pub use config::SubpixelTile;

use super::gemm::config::SUBGROUP;
use super::gemm::gather::divisor;
use super::gemm::{self, RegisterTile, stage_type, stage_vector};
use super::needs::nest;
use super::plan::{Pass, Plan, Tiles};
use super::problem::Conv3dProblem;
use super::{reduce, split};
use crate::activation::Activation;
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::launch::dispatches;
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use blocks::{AxisBlocks, Plane, common, plane};
use config::Strips;
use cubecl::prelude::*;
use kernel::subpixel_kernel;
use mma::subpixel_mma_kernel;
use pack::{PackedAxisLaunch, PackedLaunch, UNITS, pack_kernel};
use tiling::{DepthAxisLaunch, PlaneAxisLaunch, TilingLaunch};

/// Channels of dx per group that are served.
const MOST_CHANNELS: usize = 4;

/// Tiles of columns that are served: more are large strides, whose windows seldom overlap.
const MOST_COLUMN_TILES: usize = 8;

/// Columns of one group: channels of dx and positions of a block.
fn columns(problem: &Conv3dProblem, [height, width]: &Plane) -> usize {
    problem.group_channels() * height.phases * width.phases
}

/// What the products of a problem are made of.
struct Extents {
    plane: Plane,
    strips: Strips,
    /// Columns of one group, and tiles of them.
    columns: usize,
    column_tiles: usize,
    /// Blocks of dy's channels.
    chunks: usize,
}

impl Extents {
    fn of(problem: &Conv3dProblem, tile: &SubpixelTile) -> Option<Self> {
        let plane = plane(problem);
        let columns = columns(problem, &plane);
        let chunks = problem.group_out_channels().div_ceil(tile.channels);
        let strips = Strips::of(&plane, tile)?;
        Some(Self { plane, strips, columns, column_tiles: columns.div_ceil(tile.columns), chunks })
    }

    /// Taps of the plane.
    fn taps(&self) -> usize {
        self.plane[0].taps * self.plane[1].taps
    }

    /// Elements of the packed weights.
    fn packed(&self, problem: &Conv3dProblem, tile: &SubpixelTile) -> usize {
        let of_depth_tap = self.chunks * tile.channels * self.taps() * tile.columns;
        problem.window.groups * self.column_tiles * problem.kernel[0] * of_depth_tap
    }

    fn cubes(&self, problem: &Conv3dProblem, tile: &SubpixelTile) -> usize {
        let of_frame = self.strips.tiles(&self.plane, tile) * self.strips.count * self.column_tiles;
        of_frame * problem.input[0] * problem.batch * problem.window.groups
    }

    /// Blocks of channels of one part: sums are split where the cubes are too few, to fill the device twice.
    fn part_chunks(&self, problem: &Conv3dProblem, tile: &SubpixelTile, limits: &Limits) -> usize {
        let cubes = self.cubes(problem, tile).max(1);
        if cubes > limits.cubes_in_flight {
            return self.chunks.max(1);
        }
        let affordable = split::affordable_parts(problem.x_shape().iter().product(), limits);
        // A part of fewer than two stages would spend its time on its ends.
        let worthwhile =
            (self.chunks * problem.kernel[0].div_ceil(problem.window.stride[0]) / 2).min(self.chunks);
        let parts = (2 * limits.cubes_in_flight / cubes).min(worthwhile).min(affordable).max(1);
        self.chunks.div_ceil(parts).max(1)
    }
}

/// Whether the tile serves a pass: the input gradient of at most four channels per group, where the windows
/// and the weights of a tile fit shared memory, counts that 31 bits hold, and loops as long as the device
/// makes them.
pub(crate) fn serves(problem: &Conv3dProblem, pass: Pass, tile: &SubpixelTile, limits: &Limits) -> bool {
    let few = pass == Pass::InputGradient && problem.group_channels() <= MOST_CHANNELS;
    let Some(extents) = Extents::of(problem, tile).filter(|_| few) else { return false };
    let counts = extents.cubes(problem, tile).max(extents.packed(problem, tile));
    let elements = extents.plane[0].blocks.saturating_mul(extents.strips.pitch);
    // Blocks past a plane's last are placed too, before they are left out.
    let near = [1, 2]
        .map(|axis| problem.axis(axis))
        .iter()
        .all(|axis| axis.stride < 1 << 20 && axis.padding.0 + axis.span() < 1 << 30);
    let units = tile.fragment == 0 || fragment(problem, limits) == tile.fragment;
    near && units
        && extents.taps() <= tile.taps
        && extents.column_tiles <= MOST_COLUMN_TILES
        && counts.max(elements) < i32::MAX as usize
        && packed_bytes(problem, tile, limits) <= limits.workspace_bytes
        && limits.loop_iterations.is_none_or(|most| loop_iterations(problem, tile, limits) <= most)
}

/// The tiles of an input gradient, as [`super::Plan::tiles`] says.
pub(crate) fn extent(problem: &Conv3dProblem, tile: &SubpixelTile) -> Option<Tiles> {
    let extents = Extents::of(problem, tile)?;
    let depth_taps = problem.kernel[0].div_ceil(problem.window.stride[0]);
    let channels = depth_taps * extents.chunks * tile.channels;
    let terms = channels * extents.taps();
    // A window for all taps of a plane; on matrix units every plane reads the weights.
    let readers = if tile.fragment > 0 { tile.planes() } else { 1 };
    Some(Tiles {
        count: extents.cubes(problem, tile),
        rows: tile.tile_m,
        columns: tile.columns,
        terms,
        reads: channels * tile.window + terms * tile.columns * readers,
    })
}

/// The tile of an input gradient, where it beats the engine: it computes at most twice as much, padding
/// included. (On an H200 it multiplies 3 to 5 times as fast as the engine's product of four columns.) Windows
/// that tile the input are the engine's. More than four columns are left to matrix units where they have
/// fragments of 16, as they were measured; of a fragment of 16 columns, four would waste most.
pub(crate) fn choice(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Option<SubpixelTile> {
    if pass != Pass::InputGradient || gemm::is_patches(problem, pass) {
        return None;
    }
    let tiles = if columns(problem, &plane(problem)) <= 4 {
        [Some(SubpixelTile::M1024N4), None]
    } else {
        let matrices =
            SubpixelTile::on_matrices(fragment(problem, limits)).filter(|tile| tile.fragment == 16);
        [matrices, Some(SubpixelTile::M512N12)]
    };
    let computed = |plan: Plan| {
        let tiles = plan.tiles(problem, pass)?;
        Some(tiles.count as f64 * (tiles.rows * tiles.columns) as f64 * tiles.terms as f64)
    };
    let engine = computed(Plan::Gemm(RegisterTile::M256N4))?;
    let beats = |tile: &SubpixelTile| {
        let computed = computed(Plan::Subpixel(*tile)).is_some_and(|computed| computed <= 2.0 * engine);
        computed && serves(problem, pass, tile, limits)
    };
    tiles.into_iter().flatten().find(beats)
}

/// Bytes of the packed weights.
pub(crate) fn packed_bytes(problem: &Conv3dProblem, tile: &SubpixelTile, limits: &Limits) -> u64 {
    let size = stage(problem, tile, limits).0.size();
    Extents::of(problem, tile).map_or(0, |extents| (size * extents.packed(problem, tile)) as u64)
}

/// The tiles that serve a pass.
pub(crate) fn tiles(
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> impl Iterator<Item = SubpixelTile> {
    let all = SubpixelTile::ALL.into_iter().chain(SubpixelTile::on_matrices(fragment(problem, limits)));
    all.filter(move |tile| serves(problem, pass, tile, limits))
}

/// Rows of a fragment of the device's matrix units; 0 where it has none for the type.
fn fragment(problem: &Conv3dProblem, limits: &Limits) -> usize {
    stage_type(problem.dtype, limits).map_or(0, |(_, fragment)| fragment)
}

/// The type that the factors have when they are multiplied, and how many of it lie together.
pub(crate) fn stage(problem: &Conv3dProblem, tile: &SubpixelTile, limits: &Limits) -> (FloatType, usize) {
    let matrices = tile.fragment > 0 && fragment(problem, limits) == tile.fragment;
    if matrices { stage_vector(tile.fragment, problem.dtype, limits) } else { (FloatType::F32, 4) }
}

/// Iterations of the loops of a thread: stages, the taps of a stage and their channels, and the depth taps
/// that reach a frame.
pub(crate) fn loop_iterations(problem: &Conv3dProblem, tile: &SubpixelTile, limits: &Limits) -> usize {
    let Some(extents) = Extents::of(problem, tile) else { return 0 };
    let [height, width] = extents.plane.map(|axis| axis.taps);
    let of_tap = if limits.unroll || tile.fragment > 0 { 0 } else { nest(tile.channels, 0) };
    let of_stage = nest(height, nest(width, of_tap));
    let stages = problem.kernel[0] * extents.part_chunks(problem, tile, limits);
    nest(problem.kernel[0], 0) + nest(stages, of_stage)
}

/// Launches the input gradient: operands dy, w, dx.
pub(crate) fn launch(
    client: &Client,
    problem: &Conv3dProblem,
    tile: SubpixelTile,
    limits: &Limits,
    [dy, w, dx]: [&Operand; 3],
) -> Result<(), ConvError> {
    let extents = Extents::of(problem, &tile).expect("`check` has looked at the window");
    let packed = pack(client, problem, &extents, tile, limits, w)?;
    let part_chunks = extents.part_chunks(problem, &tile, limits);
    let parts = extents.chunks.div_ceil(part_chunks).max(1);
    if parts == 1 {
        return gradient(client, problem, &extents, (tile, part_chunks, 1), limits, [dy, &packed, dx]);
    }
    let (partials, part) = reduce::split_result(client, parts, dx);
    gradient(client, problem, &extents, (tile, part_chunks, parts), limits, [dy, &packed, &part])?;
    reduce::finish_partials(client, limits, &partials, dx, (None, Activation::None))
}

/// The packed weights.
fn pack(
    client: &Client,
    problem: &Conv3dProblem,
    extents: &Extents,
    tile: SubpixelTile,
    limits: &Limits,
    w: &Operand,
) -> Result<Operand, ConvError> {
    let (stage, _) = stage(problem, &tile, limits);
    let packed = Operand::empty(client, &[extents.packed(problem, &tile)], stage);
    let elements = packed.len();
    let address = address_type("conv3d", &[w, &packed], 0, limits)?;
    let axis = |axis: usize| {
        let geometry = problem.axis(axis);
        let AxisBlocks { taps, phases, step, origin, .. } = extents.plane[axis - 1];
        PackedAxisLaunch::new(
            divisor(taps),
            divisor(phases),
            origin as i32,
            step as i32,
            geometry.stride as i32,
            geometry.dilation as i32,
            geometry.padding.0 as i32,
            geometry.kernel as i32,
            w.strides[axis + 2],
        )
    };
    for dispatch in dispatches(elements.div_ceil(UNITS), (UNITS * 100) as f64, limits) {
        // SAFETY: a unit's index is below the packed elements' number; weights that do not exist are not
        // read.
        unsafe {
            pack_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS as u32),
                address,
                w.buffer_arg(1),
                packed.buffer_arg(1),
                PackedLaunch::new(
                    axis(1),
                    axis(2),
                    divisor(extents.taps()),
                    divisor(extents.chunks),
                    divisor(problem.kernel[0]),
                    divisor(extents.column_tiles),
                    extents.columns as u32,
                    problem.group_out_channels() as u32,
                    elements as u32,
                    w.strides[0],
                    w.strides[1],
                    w.strides[2],
                ),
                dispatch.span(),
                tile,
                w.dtype.elem(),
                stage.elem(),
            );
        }
    }
    Ok(packed)
}

/// Launches the product: operands dy, the packed weights, dx or its partials.
fn gradient(
    client: &Client,
    problem: &Conv3dProblem,
    extents: &Extents,
    (tile, part_chunks, parts): (SubpixelTile, usize, usize),
    limits: &Limits,
    [dy, packed, out]: [&Operand; 3],
) -> Result<(), ConvError> {
    let cubes = extents.cubes(problem, &tile) * parts;
    let part_stride = if parts == 1 { 0 } else { out.len() };
    let largest = cubes.max(packed.len()).max(part_stride * parts);
    let address = address_type("conv3d", &[dy, packed, out], largest, limits)?;
    let depth_taps = problem.kernel[0].div_ceil(problem.window.stride[0]);
    let terms = depth_taps * part_chunks * tile.channels * extents.taps();
    let windows = problem.output();
    let axis = |axis: usize| {
        let AxisBlocks { phases, taps, step, origin, .. } = extents.plane[axis - 1];
        PlaneAxisLaunch::new(
            windows[axis] as u32,
            problem.input[axis] as u32,
            problem.window.stride[axis] as u32,
            divisor(phases),
            taps as u32,
            step as u32,
            origin as i32,
            dy.strides[axis + 2],
            out.strides[axis + 2],
        )
    };
    let depth = || {
        let stride = problem.window.stride[0];
        DepthAxisLaunch::new(
            windows[0] as u32,
            stride as u32,
            problem.kernel[0] as u32,
            (stride / common(stride, problem.window.dilation[0])) as u32,
            problem.window.dilation[0] as u32,
            problem.window.padding[0].0 as u32,
            dy.strides[2],
            out.strides[2],
        )
    };
    let strips = extents.strips;
    let tiling = || {
        TilingLaunch::new(
            depth(),
            axis(1),
            axis(2),
            divisor(strips.tiles(&extents.plane, &tile)),
            divisor(strips.count),
            divisor(extents.column_tiles),
            extents.column_tiles as u32,
            divisor(problem.input[0]),
            divisor(problem.batch),
            divisor(problem.window.groups),
            strips.blocks as u32,
            divisor(strips.pitch),
            strips.pitch as u32,
            problem.group_out_channels() as u32,
            problem.group_channels() as u32,
            extents.columns as u32,
            extents.chunks as u32,
            part_chunks as u32,
            dy.strides[0],
            dy.strides[1],
            out.strides[0],
            out.strides[1],
            part_stride,
        )
    };
    for dispatch in dispatches(cubes, 2.0 * (tile.tile_m * tile.columns * terms) as f64, limits) {
        if tile.fragment == 0 {
            // SAFETY: windows that dy does not have and channels past the last are not read; blocks of a
            // strip's rim, positions past the input's end and columns past the last are not written; a window
            // holds all that a tile's taps reach.
            unsafe {
                subpixel_kernel::launch_unchecked(
                    client,
                    dispatch.count(),
                    CubeDim::new_1d(tile.units() as u32),
                    address,
                    dy.buffer_arg(1),
                    packed.buffer_arg(4),
                    out.buffer_arg(1),
                    tiling(),
                    dispatch.span(),
                    tile,
                    limits.unroll,
                    dy.dtype.elem(),
                    out.dtype.elem(),
                );
            }
            continue;
        }
        let (stage, width) = stage(problem, &tile, limits);
        // SAFETY: as above.
        unsafe {
            subpixel_mma_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_2d(SUBGROUP as u32, tile.planes() as u32),
                address,
                width,
                dy.buffer_arg(1),
                packed.buffer_arg(width),
                out.buffer_arg(1),
                tiling(),
                dispatch.span(),
                tile,
                stage.size(),
                dy.dtype.elem(),
                stage.elem(),
                out.dtype.elem(),
            );
        }
    }
    Ok(())
}
