//! Input gradient of layers with at most four input channels per group, as a sub-pixel convolution:
//! [`kernel`] with FMAs, or [`mma`]. The weights are packed first ([`pack`]), with zeros for the phases that
//! a tap does not reach.

mod blocks;
mod config;
mod kernel;
mod launch;
mod mma;
mod pack;
mod tiling;

pub use config::SubpixelTile;

use super::gemm::{fragment, stage_vector};
use super::loops::nest;
use super::pass::Pass;
use super::problem::Conv3dProblem;
use super::row_segments::RowSegments;
use super::split::{SliceCount, affordable_slices, even_slices};
use crate::dtype::FloatType;
use crate::limits::Limits;
use blocks::{FrameBlocks, frame_blocks};

/// Channels of dx per group that are served.
const MAX_CHANNELS: usize = 4;

/// Column tiles that are served: more mean large strides, whose windows seldom overlap.
const MAX_COLUMN_TILES: usize = 8;

/// Columns of one group: channels of dx times phases of a block.
pub(crate) fn columns(problem: &Conv3dProblem) -> usize {
    let [height, width] = frame_blocks(problem);
    problem.group_channels() * height.phases * width.phases
}

/// The extents of a problem's product.
struct SubpixelExtents {
    frame: FrameBlocks,
    segments: RowSegments,
    /// Columns of one group, and tiles of them.
    columns: usize,
    column_tiles: usize,
    /// Blocks of dy's channels.
    chunks: usize,
}

impl SubpixelExtents {
    fn of(problem: &Conv3dProblem, tile: &SubpixelTile) -> Option<Self> {
        let frame = frame_blocks(problem);
        let columns = columns(problem);
        let chunks = problem.group_out_channels().div_ceil(tile.channels);
        let [height, width] = &frame;
        let halo = [height.span(), width.span()];
        let segments = RowSegments::of(width.blocks, halo, tile.tile_m, tile.window)?;
        Some(Self { frame, segments, columns, column_tiles: columns.div_ceil(tile.columns), chunks })
    }

    /// Window taps.
    fn taps(&self) -> usize {
        self.frame[0].taps * self.frame[1].taps
    }

    /// Elements of the packed weights.
    fn packed_elements(&self, problem: &Conv3dProblem, tile: &SubpixelTile) -> usize {
        let per_depth_tap = self.chunks * tile.channels * self.taps() * tile.columns;
        problem.window.groups * self.column_tiles * problem.kernel[0] * per_depth_tap
    }

    fn threadgroups(&self, problem: &Conv3dProblem, tile: &SubpixelTile) -> usize {
        let segment_tiles = self.segments.tiles(self.frame[0].blocks, tile.tile_m);
        let per_frame = segment_tiles * self.segments.count * self.column_tiles;
        per_frame * problem.input[0] * problem.batch * problem.window.groups
    }

    /// Blocks of channels per split-K slice: K is split when there are too few threadgroups, to fill the
    /// device twice.
    fn slice_chunks(&self, problem: &Conv3dProblem, tile: &SubpixelTile, limits: &Limits) -> usize {
        let threadgroups = self.threadgroups(problem, tile).max(1);
        if threadgroups > limits.cubes_in_flight {
            return self.chunks.max(1);
        }
        let depth_taps = problem.kernel[0].div_ceil(problem.window.stride[0]);
        let count = SliceCount {
            filling: 2 * limits.cubes_in_flight / threadgroups,
            // Below two stages per slice, prologue and epilogue dominate.
            worthwhile: (self.chunks * depth_taps / 2).min(self.chunks),
            accurate: 1,
            affordable: affordable_slices(problem.x_shape().iter().product(), limits),
        };
        let (_, length) = even_slices(self.chunks, count.slices());
        length
    }
}

/// Whether the tile serves a pass: the input gradient of at most four channels per group, windows and weights
/// of a tile that fit shared memory, counts below 2^31, and loops within the device's limit.
pub(crate) fn serves(problem: &Conv3dProblem, pass: Pass, tile: &SubpixelTile, limits: &Limits) -> bool {
    let few = pass == Pass::InputGradient && problem.group_channels() <= MAX_CHANNELS;
    let Some(extents) = SubpixelExtents::of(problem, tile).filter(|_| few) else { return false };
    let counts = extents.threadgroups(problem, tile).max(extents.packed_elements(problem, tile));
    let elements = extents.frame[0].blocks.saturating_mul(extents.segments.pitch);
    // Offsets are computed for blocks past the last one of a frame too, before they are masked.
    let in_range = [1, 2]
        .map(|axis| problem.axis(axis))
        .iter()
        .all(|axis| axis.stride < 1 << 20 && axis.padding.0 + axis.span() < 1 << 30);
    let supported = tile.fragment == 0 || fragment(problem, limits) == tile.fragment;
    in_range
        && supported
        && extents.taps() <= tile.taps
        && extents.column_tiles <= MAX_COLUMN_TILES
        && counts.max(elements) < i32::MAX as usize
        && packed_bytes(problem, tile, limits) <= limits.workspace_bytes
        && limits.loop_iterations.is_none_or(|most| loop_iterations(problem, tile, limits) <= most)
}

/// Bytes of the packed weights.
fn packed_bytes(problem: &Conv3dProblem, tile: &SubpixelTile, limits: &Limits) -> u64 {
    let size = stage(problem, tile, limits).0.size();
    SubpixelExtents::of(problem, tile)
        .map_or(0, |extents| (size * extents.packed_elements(problem, tile)) as u64)
}

/// The tiles of a pass that the choice may take: on matrix units only where stages are prefetched (NVIDIA).
pub(crate) fn tiles(
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> impl Iterator<Item = SubpixelTile> {
    let mma = SubpixelTile::with_fragment(fragment(problem, limits)).filter(|_| limits.unroll);
    let all = SubpixelTile::ALL.into_iter().chain(mma);
    all.filter(move |tile| serves(problem, pass, tile, limits))
}

/// The type of the staged factors, and the length of their vectors.
fn stage(problem: &Conv3dProblem, tile: &SubpixelTile, limits: &Limits) -> (FloatType, usize) {
    let mma = tile.fragment > 0 && fragment(problem, limits) == tile.fragment;
    if mma { stage_vector(tile.fragment, problem.dtype, limits) } else { (FloatType::F32, 4) }
}

/// Loop iterations of a thread: stages, the taps of a stage and their channels, the depth taps that reach a
/// frame, and the columns that are stored.
fn loop_iterations(problem: &Conv3dProblem, tile: &SubpixelTile, limits: &Limits) -> usize {
    let Some(extents) = SubpixelExtents::of(problem, tile) else { return 0 };
    let [height, width] = extents.frame.map(|axis| axis.taps);
    let unrolled = limits.unroll || tile.fragment > 0;
    let [per_tap, epilogue] =
        [tile.channels, tile.columns].map(|count| if unrolled { 0 } else { nest(count, 0) });
    let per_stage = nest(height, nest(width, per_tap));
    let stages = problem.kernel[0] * extents.slice_chunks(problem, tile, limits);
    nest(problem.kernel[0], 0) + nest(stages, per_stage) + epilogue
}
