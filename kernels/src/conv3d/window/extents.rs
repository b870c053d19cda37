//! Extents of the GEMM of a pass: M, N, K, tiles and split-K slices. A strided input gradient is one launch
//! for all its residue classes ([`super::phases`]).

use super::config::{CHANNELS, WindowTile};
use super::phases::{AxisPhasesLaunch, PhasesLaunch};
use super::tiling::WindowTilingLaunch;
use crate::activation::Activation;
use crate::conv3d::gemm::gather::{AxisGather, Gather, divisor, gathers, inverse_step};
use crate::conv3d::gemm::tap_check::MASK_BITS;
use crate::conv3d::gemm::{self, stage_type};
use crate::conv3d::loops::nest;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::{Conv3dProblem, PaddingMode, Window};
use crate::conv3d::row_segments::RowSegments;
use crate::conv3d::split::{self, LastWave, TiledProduct};
use crate::conv3d::tiles::Tiles;
use crate::geometry::AxisGeometry;
use crate::limits::Limits;

/// Extents of the GEMM of a pass.
pub(crate) struct WindowExtents {
    /// The traversal; along an axis with phases, one with the most positions and taps of any phase.
    pub(super) gather: Gather,
    pub(super) segments: RowSegments,
    /// Result channels of one group, padded to whole tiles.
    pub(super) packed_n: usize,
    /// Result channels of one group.
    pub(super) n: usize,
    /// Source channels of one group.
    pub(super) channels: usize,
    /// Blocks of source channels, padded to whole stages.
    pub(super) blocks: usize,
    /// Blocks of a stage.
    stage_blocks: usize,
    pub(super) depth_taps: usize,
    /// Taps of a frame: KH x KW.
    pub(super) taps: usize,
    /// Phases along each axis of a strided input gradient: the stride, or the axis' length where that is
    /// less.
    phases: Option<[usize; 3]>,
}

impl WindowExtents {
    /// None where windows have a stride within the frame or do not fit shared memory.
    pub(crate) fn of(problem: &Conv3dProblem, pass: Pass, tile: &WindowTile) -> Option<Self> {
        let (gather, phases) = window_gather(problem, pass)?;
        let (channels, n) = problem.channels_of(pass);
        let [depth_taps, height, width] = problem.kernel;
        let taps = height * width;
        // The kernel of 1x1 windows takes several blocks per stage; padding channels are zero on both sides.
        let stage_blocks = if taps == 1 { tile.stage_blocks() } else { 1 };
        Some(Self {
            gather,
            segments: RowSegments::of(gather[2].positions, halo(&gather), tile.tile_m, tile.window)?,
            packed_n: n.next_multiple_of(tile.tile_n),
            n,
            channels,
            blocks: channels.div_ceil(CHANNELS).next_multiple_of(stage_blocks),
            stage_blocks,
            depth_taps,
            taps,
            phases,
        })
    }

    /// K of the packed weights, padded to whole blocks: of all phases.
    fn packed_k(&self) -> usize {
        self.depth_taps * self.blocks * CHANNELS * self.taps
    }

    /// K of one phase, on average.
    pub(super) fn mean_k(&self) -> usize {
        self.packed_k().div_ceil(self.phase_count())
    }

    /// The product of a pass.
    fn product(
        &self,
        problem: &Conv3dProblem,
        pass: Pass,
        tile: &WindowTile,
        limits: &Limits,
    ) -> TiledProduct {
        TiledProduct {
            tiles: self.tiles(problem, tile),
            products: (tile.tile_m * tile.tile_n) as f64 * self.mean_k() as f64,
            // Register pressure halves occupancy.
            wave: (limits.cubes_in_flight / 2).max(1),
            last: LastWave::Whole(HALF_WAVE_COST),
            elements: problem.result_elements(pass),
        }
    }

    fn phase_count(&self) -> usize {
        self.phases.map_or(1, |phases| phases.iter().product())
    }

    /// Elements of the packed weights.
    pub(super) fn packed(&self, groups: usize) -> usize {
        groups * self.packed_k() * self.packed_n
    }

    /// Bytes of the packed weights.
    fn packed_bytes(&self, problem: &Conv3dProblem, limits: &Limits) -> u64 {
        let size = stage_type(problem.dtype, limits).map_or(4, |(stage, _)| stage.size());
        (self.packed(problem.window.groups) * size) as u64
    }

    /// The tiling as a kernel argument.
    pub(super) fn tiling(
        &self,
        problem: &Conv3dProblem,
        tile: &WindowTile,
        (k_slices, slice_stride): (usize, usize),
        activation: Activation,
    ) -> WindowTilingLaunch {
        let [depth, height, width] = &self.gather;
        WindowTilingLaunch {
            tiles_n: (self.packed_n / tile.tile_n) as u32,
            tiles_m: self.segments.tiles(height.positions, tile.tile_m) as u32,
            segments: self.segments.count as u32,
            depth: depth.positions as u32,
            batch: problem.batch as u32,
            groups: problem.window.groups as u32,
            k_slices: k_slices as u32,
            slice_stride,
            segment_width: self.segments.width as u32,
            pitch_divmod: self.segments.pitch as u32,
            pitch: self.segments.pitch as u32,
            height: height.positions as u32,
            width: width.positions as u32,
            n: self.n as u32,
            packed_n: self.packed_n as u32,
            channels: self.channels as u32,
            blocks: divisor(self.blocks),
            block_count: self.blocks as u32,
            stage_blocks: self.stage_blocks as u32,
            depth_taps: self.depth_taps as u32,
            taps: self.taps as u32,
            row_taps: width.taps as u32,
            activation: activation.code(),
        }
    }

    /// The phases of a strided input gradient as a kernel argument.
    pub(super) fn phases(&self, problem: &Conv3dProblem) -> Option<PhasesLaunch> {
        let axis = |axis: usize| {
            let axis = problem.axis(axis);
            let AxisGeometry { input, kernel, stride, padding, .. } = axis;
            AxisPhasesLaunch {
                stride_divmod: stride as u32,
                stride: stride as u32,
                inverse: inverse_step(axis).expect("`window_gather` has checked it") as u32,
                dilation: axis.tap_step() as u32,
                begin: padding.0 as u32,
                input: input as u32,
                kernel: kernel as u32,
            }
        };
        self.phases.map(|[_, heights, widths]| PhasesLaunch {
            depth: axis(0),
            height: axis(1),
            width: axis(2),
            count: self.phase_count() as u32,
            heights: heights as u32,
            widths: widths as u32,
        })
    }

    /// The traversal of the weights of all phases, in the order of an unstrided pass.
    pub(super) fn packed_walks(&self, problem: &Conv3dProblem) -> Gather {
        [0, 1, 2].map(|axis| AxisGather { taps: problem.kernel[axis], ..self.gather[axis] })
    }

    /// Tiles of the result.
    pub(super) fn tiles(&self, problem: &Conv3dProblem, tile: &WindowTile) -> usize {
        let [_, height, _] = &self.gather;
        let per_segment = self.segments.tiles(height.positions, tile.tile_m);
        let tiles = self.packed_n / tile.tile_n * per_segment * self.segments.count;
        tiles * self.gather[0].positions * problem.batch * problem.window.groups * self.phase_count()
    }
}

/// Rows and columns by which the taps of a frame reach beyond a position.
pub(super) fn halo([_, height, width]: &Gather) -> [usize; 2] {
    [height, width].map(|axis| (axis.taps.max(1) - 1) * axis.step)
}

/// The traversal of a pass without a stride within the frame, or of all phases of a strided input gradient as
/// one traversal in the tap order of an unstrided pass, with the phases of each axis.
fn window_gather(problem: &Conv3dProblem, pass: Pass) -> Option<(Gather, Option<[usize; 3]>)> {
    if pass == Pass::WeightGradient {
        return None;
    }
    let strided = pass == Pass::InputGradient && problem.window.stride != [1; 3];
    let (gather, phases) = if strided {
        let axes = [0, 1, 2].map(|axis| AxisGather::all_phases(problem.axis(axis)));
        let [Some(depth), Some(height), Some(width)] = axes else { return None };
        let phases = [0, 1, 2].map(|axis| problem.window.stride[axis].min(problem.input[axis]));
        ([depth, height, width], Some(phases))
    } else {
        let [gather] = gathers(problem, pass)[..] else { return None };
        (gather, None)
    };
    // The kernel's search for the depth taps inside the source is limited to as many.
    let fits = gather[0].taps <= MASK_BITS && gather[1].scale == 1 && gather[2].scale == 1;
    (fits && gather.iter().all(|axis| axis.taps > 0)).then_some((gather, phases))
}

/// Cost of a wave with one threadgroup per core, relative to a full wave of two.
const HALF_WAVE_COST: f64 = 0.8;
/// Split-K slices that are tried in order to even out the last wave.
const MAX_EVENING_SLICES: usize = 8;

/// The number of split-K slices: as many as run in one wave, or more where the time saved in the last wave is
/// worth more than the partials cost.
pub(super) fn k_slices(
    problem: &Conv3dProblem,
    pass: Pass,
    extents: &WindowExtents,
    tile: &WindowTile,
    limits: &Limits,
) -> usize {
    // A stream's bits must not depend on the number of frames.
    if problem.streaming {
        return 1;
    }
    let product = extents.product(problem, pass, tile, limits);
    // What the packed weights leave of the workspace.
    let rest = limits.workspace_bytes.saturating_sub(extents.packed_bytes(problem, limits));
    let rest = rest.min(limits.buffer_bytes);
    // Below two stages, prologue and epilogue dominate.
    let worthwhile = extents.gather[0].taps * extents.blocks / 2 / extents.stage_blocks;
    let most = worthwhile.min(split::slices_within(product.elements, rest)).max(1);
    let filling = (product.wave / product.tiles.max(1)).clamp(1, most);
    // Threadgroups of frames without all depth taps, and of phases with few taps, end early and make room.
    let misses = problem.shared_padding() == PaddingMode::Zeros && extents.gather[0].reads_padding();
    if extents.phases.is_some() || misses {
        return filling;
    }
    product.fastest_slices(filling..=most.min(filling.max(MAX_EVENING_SLICES)), limits)
}

/// The time of a pass on the scale of [`TiledProduct::cost`], depth taps in the padding left out.
pub(crate) fn cost(problem: &Conv3dProblem, pass: Pass, tile: &WindowTile, limits: &Limits) -> Option<f64> {
    let extents = WindowExtents::of(problem, pass, tile)?;
    let product = extents.product(problem, pass, tile, limits);
    let products = product.products * gemm::depth_tap_fraction(problem, pass);
    let k_slices = k_slices(problem, pass, &extents, tile, limits);
    Some(TiledProduct { products, ..product }.cost(k_slices, limits))
}

/// Whether the gathered implicit GEMM checks the taps of a pass by masks. A stream's frames are found one by
/// one: of its forward pass only taps along H and W count, as for the single window that it is planned for.
pub(super) fn has_few_taps(problem: &Conv3dProblem, pass: Pass) -> bool {
    if !problem.streaming {
        return gemm::has_few_taps(problem, pass);
    }
    let planned = problem.planned(pass);
    let window = Window { padding_mode: [PaddingMode::Zeros; 3], ..planned.window };
    gemm::has_few_taps(&Conv3dProblem { streaming: false, window, ..planned }, pass)
}

/// Whether the tile serves a pass: one that the gathered implicit GEMM serves by masks, without a stride
/// within the frame, whose windows fit shared memory and whose packed weights fit the workspace.
pub(crate) fn serves(problem: &Conv3dProblem, pass: Pass, tile: &WindowTile, limits: &Limits) -> bool {
    let fits = WindowExtents::of(problem, pass, tile)
        .is_some_and(|extents| extents.packed_bytes(problem, limits) <= limits.workspace_bytes);
    fits && gemm::serves(problem, pass) && problem.window_padding().is_some() && has_few_taps(problem, pass)
}

/// The tiles of a pass for [`crate::conv3d::Plan::tiles`].
pub(crate) fn extent(problem: &Conv3dProblem, pass: Pass, tile: &WindowTile) -> Option<Tiles> {
    let extents = WindowExtents::of(problem, pass, tile)?;
    let terms = extents.mean_k();
    Some(Tiles { count: extents.tiles(problem, tile), rows: tile.tile_m, columns: tile.tile_n, terms })
}

/// Split-K slices of a pass.
pub(super) fn slices(problem: &Conv3dProblem, pass: Pass, tile: &WindowTile, limits: &Limits) -> usize {
    WindowExtents::of(problem, pass, tile)
        .map_or(1, |extents| k_slices(problem, pass, &extents, tile, limits))
}

/// Threadgroups of a pass: one per tile and split-K slice.
pub(crate) fn threadgroups(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: &WindowTile,
    limits: &Limits,
) -> Option<usize> {
    let extents = WindowExtents::of(problem, pass, tile)?;
    Some(extents.tiles(problem, tile) * k_slices(problem, pass, &extents, tile, limits))
}

/// Iterations of the loops of a thread: channel blocks, and taps of a frame.
pub(crate) fn loop_iterations(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: &WindowTile,
    limits: &Limits,
) -> usize {
    let Some(extents) = WindowExtents::of(problem, pass, tile) else { return 0 };
    let blocks = extents.gather[0].taps * extents.blocks;
    let k_slices = k_slices(problem, pass, &extents, tile, limits);
    let loads = nest(tile.window_loads(4), 0);
    nest(blocks.div_ceil(k_slices) + extents.stage_blocks, nest(extents.taps, 0) + loads)
}

/// Taps of a frame that one window serves; the mean over the phases of a strided input gradient.
pub(crate) fn taps_of_window(problem: &Conv3dProblem, pass: Pass) -> f64 {
    let taps = problem.kernel[1] * problem.kernel[2];
    let [_, height, width] = if pass == Pass::InputGradient { problem.window.stride } else { [1; 3] };
    taps as f64 / (height * width) as f64
}

/// Bytes of the packed weights.
pub(crate) fn packed_bytes(problem: &Conv3dProblem, pass: Pass, tile: &WindowTile, limits: &Limits) -> u64 {
    WindowExtents::of(problem, pass, tile).map_or(0, |extents| extents.packed_bytes(problem, limits))
}

/// Whether the window is 1x1 within the frame and reads every element of it, and frames are whole vectors:
/// the frames of contiguous tensors are then contiguous slices. Other views are loaded element by element,
/// with the same results to the bit.
pub(crate) fn is_pointwise_in_frame(problem: &Conv3dProblem) -> bool {
    let [_, height, width] = problem.input;
    let window = &problem.window;
    problem.kernel[1..] == [1, 1]
        && window.stride[1..] == [1, 1]
        && window.padding[1..] == [(0, 0); 2]
        && (height * width).is_multiple_of(8)
}
