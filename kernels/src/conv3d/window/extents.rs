//! What the product of a pass is made of; of a strided input gradient those of all its residue classes
//! ([`super::phases`]).

use super::config::{CHANNELS, Strips, WindowTile};
use super::phases::{AxisPhasesLaunch, PhasesLaunch};
use super::tiling::TilingLaunch;
use crate::activation::Activation;
use crate::conv3d::gemm::gather::{AxisGather, Gather, MASK_BITS, divisor, gathers, inverse_step};
use crate::conv3d::gemm::stage_type;
use crate::conv3d::needs::nest;
use crate::conv3d::plan::{Pass, Tiles};
use crate::conv3d::problem::{Conv3dProblem, PaddingMode};
use crate::conv3d::split;
use crate::geometry::AxisGeometry;
use crate::limits::Limits;

/// What the product of a pass is made of.
pub(crate) struct Extents {
    /// The walk; of an axis with phases one with the most sites and taps that any of them has.
    pub(super) walks: Gather,
    pub(super) strips: Strips,
    /// Channels of one group's result, filled up to tiles.
    pub(super) packed_n: usize,
    pub(super) n: usize,
    pub(super) channels: usize,
    /// Blocks of the source's channels, and how many of them are read at a time.
    pub(super) blocks: usize,
    together: usize,
    pub(super) depth_taps: usize,
    /// Taps of a plane.
    pub(super) taps: usize,
    /// Phases of each axis of a strided input gradient, which an axis of few elements has less of than its
    /// stride.
    phases: Option<[usize; 3]>,
}

impl Extents {
    /// None where windows do not move by one element in the plane or do not fit shared memory.
    pub(crate) fn of(problem: &Conv3dProblem, pass: Pass, tile: &WindowTile) -> Option<Self> {
        let (walks, phases) = walk(problem, pass)?;
        let (channels, n) = problem.channels_of(pass);
        let [depth_taps, height, width] = problem.kernel;
        let taps = height * width;
        // Of windows with one tap in the plane those of a stage; what no channels fill is zero in the source
        // and in the weights.
        let together = if taps == 1 { tile.run_blocks() } else { 1 };
        Some(Self {
            walks,
            strips: Strips::of(&walks, tile)?,
            packed_n: n.next_multiple_of(tile.tile_n),
            n,
            channels,
            blocks: channels.div_ceil(CHANNELS).next_multiple_of(together),
            together,
            depth_taps,
            taps,
            phases,
        })
    }

    /// Terms of the packed weights, filled up to blocks: of the sums of all phases.
    fn packed_terms(&self) -> usize {
        self.depth_taps * self.blocks * CHANNELS * self.taps
    }

    /// Terms of a sum, of one phase on average.
    pub(super) fn terms(&self) -> usize {
        self.packed_terms().div_ceil(self.phase_count())
    }

    fn phase_count(&self) -> usize {
        self.phases.map_or(1, |phases| phases.iter().product())
    }

    /// Elements of the packed weights.
    pub(super) fn packed(&self, groups: usize) -> usize {
        groups * self.packed_terms() * self.packed_n
    }

    /// Their bytes.
    fn packed_bytes(&self, problem: &Conv3dProblem, limits: &Limits) -> u64 {
        let size = stage_type(problem.dtype, limits).map_or(4, |(stage, _)| stage.size());
        (self.packed(problem.window.groups) * size) as u64
    }

    /// How the work is shared out, as a kernel argument.
    pub(super) fn tiling(
        &self,
        problem: &Conv3dProblem,
        tile: &WindowTile,
        (parts, part_stride): (usize, usize),
        activation: Activation,
    ) -> TilingLaunch {
        let [depth, height, width] = &self.walks;
        TilingLaunch::new(
            (self.packed_n / tile.tile_n) as u32,
            self.strips.tiles(&self.walks, tile) as u32,
            self.strips.count as u32,
            depth.positions as u32,
            problem.batch as u32,
            problem.window.groups as u32,
            parts as u32,
            part_stride,
            self.strips.sites as u32,
            self.strips.pitch as u32,
            self.strips.pitch as u32,
            height.positions as u32,
            width.positions as u32,
            self.n as u32,
            self.packed_n as u32,
            self.channels as u32,
            divisor(self.blocks),
            self.blocks as u32,
            self.together as u32,
            self.depth_taps as u32,
            self.taps as u32,
            width.taps as u32,
            activation.code(),
        )
    }

    /// The phases, as a kernel argument, of a strided input gradient.
    pub(super) fn phases(&self, problem: &Conv3dProblem) -> Option<PhasesLaunch> {
        let axis = |axis: usize| {
            let axis = problem.axis(axis);
            let AxisGeometry { input, kernel, stride, padding, .. } = axis;
            AxisPhasesLaunch::new(
                stride as u32,
                stride as u32,
                inverse_step(axis).expect("`walk` has looked at it") as u32,
                axis.tap_step() as u32,
                padding.0 as u32,
                input as u32,
                kernel as u32,
            )
        };
        self.phases.map(|phases| {
            let [_, heights, widths] = phases.map(|phases| phases as u32);
            let count = self.phase_count() as u32;
            PhasesLaunch::new(axis(0), axis(1), axis(2), count, heights, widths)
        })
    }

    /// The walk over the weights of all phases, as an unstrided pass takes them.
    pub(super) fn packed_walks(&self, problem: &Conv3dProblem) -> Gather {
        [0, 1, 2].map(|axis| AxisGather { taps: problem.kernel[axis], ..self.walks[axis] })
    }

    /// Tiles of the result.
    pub(super) fn tiles(&self, problem: &Conv3dProblem, tile: &WindowTile) -> usize {
        let tiles = self.packed_n / tile.tile_n * self.strips.tiles(&self.walks, tile) * self.strips.count;
        tiles * self.walks[0].positions * problem.batch * problem.window.groups * self.phase_count()
    }
}

/// The walk of a pass whose windows move by one element in the plane, or of all phases of a strided input
/// gradient as one whose tap order is that of an unstrided one, and the phases of each axis.
fn walk(problem: &Conv3dProblem, pass: Pass) -> Option<(Gather, Option<[usize; 3]>)> {
    if pass == Pass::WeightGradient {
        return None;
    }
    let strided = pass == Pass::InputGradient && problem.window.stride != [1; 3];
    let (walks, phases) = if strided {
        let axes = [0, 1, 2].map(|axis| AxisGather::all_phases(problem.axis(axis)));
        let [Some(depth), Some(height), Some(width)] = axes else { return None };
        let phases = [0, 1, 2].map(|axis| problem.window.stride[axis].min(problem.input[axis]));
        ([depth, height, width], Some(phases))
    } else {
        let [walks] = gathers(problem, pass)[..] else { return None };
        (walks, None)
    };
    // Depth taps that lie inside the source are looked up among as many.
    let fits = walks[0].taps <= MASK_BITS && walks[1].scale == 1 && walks[2].scale == 1;
    (fits && walks.iter().all(|axis| axis.taps > 0)).then_some((walks, phases))
}

/// Multiply-adds that the tiles compute while a partial is written and read (f16: 290 TFLOP/s, 8 bytes at 1.3
/// TB/s).
const PARTIAL: f64 = 900.0;
/// What a turn costs in which every core has one cube of two, of a turn of two.
const HALF_TURN: f64 = 0.8;
/// Parts that are tried for the sake of even turns.
const EVEN_PARTS: usize = 8;

/// Parts of the sum: as many as leave all cubes under way at once, or more where whole turns of cubes then
/// leave fewer idle than the partials cost. (H200, f16, ms: 16 tiles, 1024 channels, 2x8x8, in 1, 2, 4, 8, 16
/// parts: 0.79, 0.46, 0.26, 0.17, 0.14; 156 tiles, 384 channels, 60x104, in 1 to 5: 0.307, 0.347, 0.256,
/// 0.291, 0.264; 180 tiles, 512 channels, 5x32x32, in 1 to 5: 0.411, 0.405, 0.431, 0.363, 0.399; 112 tiles,
/// 8x28x28, in 1 to 4: 0.160, 0.132, 0.156, 0.144.)
pub(super) fn parts(
    problem: &Conv3dProblem,
    pass: Pass,
    extents: &Extents,
    tile: &WindowTile,
    limits: &Limits,
) -> usize {
    let result = if pass == Pass::Forward { problem.y_shape() } else { problem.x_shape() };
    let elements: usize = result.iter().product();
    // Beside the packed weights.
    let rest = limits.workspace_bytes.saturating_sub(extents.packed_bytes(problem, limits));
    let rest = rest.min(limits.buffer_bytes);
    // A part of fewer than two blocks would spend its time on its ends.
    let worthwhile = extents.walks[0].taps * extents.blocks / 2 / extents.together;
    let most = worthwhile.min(split::parts_within(elements, rest)).max(1);
    // A unit holds so many sums that half as many cubes as of other kernels are under way.
    let at_once = (limits.cubes_in_flight / 2).max(1);
    let tiles = extents.tiles(problem, tile);
    let filling = (at_once / tiles.max(1)).clamp(1, most);
    // Cubes of frames that miss depth taps, and of phases with few taps, end early and make room for others.
    let misses = problem.window.padding_mode == PaddingMode::Zeros && extents.walks[0].reads_padding();
    if extents.phases.is_some() || misses {
        return filling;
    }
    let cost = |parts: usize| {
        let (turns, last) = (tiles * parts / at_once, tiles * parts % at_once);
        let last = if last == 0 {
            0.0
        } else if 2 * last <= at_once {
            HALF_TURN
        } else {
            1.0
        };
        let turn = (at_once * tile.tile_m * tile.tile_n) as f64 * extents.terms() as f64 / parts as f64;
        let partials = if parts == 1 { 0.0 } else { PARTIAL * elements as f64 * parts as f64 };
        (turns as f64 + last) * turn + partials
    };
    let candidates = filling..=most.min(filling.max(EVEN_PARTS));
    candidates.min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(1)
}

/// Whether the tile serves a pass: what the engine serves, moving by one element in the plane, where the
/// windows of a tile fit shared memory and the packed weights the workspace.
pub(crate) fn serves(problem: &Conv3dProblem, pass: Pass, tile: &WindowTile, limits: &Limits) -> bool {
    let fits = Extents::of(problem, pass, tile)
        .is_some_and(|extents| extents.packed_bytes(problem, limits) <= limits.workspace_bytes);
    fits && crate::conv3d::gemm::serves(problem, pass)
}

/// The tiles of a pass, as [`crate::conv3d::Plan::tiles`] says.
pub(crate) fn extent(problem: &Conv3dProblem, pass: Pass, tile: &WindowTile) -> Option<Tiles> {
    let extents = Extents::of(problem, pass, tile)?;
    let terms = extents.terms();
    // A window for all taps of a plane (of runs the tile's sites), and every plane's own channels.
    let window = if is_run(problem) { tile.tile_m } else { tile.window };
    let windows = (terms as f64 / taps_of_window(problem, pass)).ceil() as usize;
    Some(Tiles {
        count: extents.tiles(problem, tile),
        rows: tile.tile_m,
        columns: tile.tile_n,
        terms,
        reads: windows * window + terms * tile.tile_n * (tile.tile_m / tile.plane_m),
    })
}

/// Cubes of a pass: its tiles, as often as their sums are split.
pub(crate) fn cubes(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: &WindowTile,
    limits: &Limits,
) -> Option<usize> {
    let extents = Extents::of(problem, pass, tile)?;
    Some(extents.tiles(problem, tile) * parts(problem, pass, &extents, tile, limits))
}

/// Iterations of the loops of a thread: blocks of channels and taps.
pub(crate) fn loop_iterations(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: &WindowTile,
    limits: &Limits,
) -> usize {
    let Some(extents) = Extents::of(problem, pass, tile) else { return 0 };
    let blocks = extents.walks[0].taps * extents.blocks;
    let part = blocks.div_ceil(parts(problem, pass, &extents, tile, limits)) + extents.together;
    nest(part, nest(extents.taps, 0))
}

/// Taps of a plane that one window serves, of the phases of a strided input gradient on average.
pub(crate) fn taps_of_window(problem: &Conv3dProblem, pass: Pass) -> f64 {
    let taps = problem.kernel[1] * problem.kernel[2];
    let [_, height, width] = if pass == Pass::InputGradient { problem.window.stride } else { [1; 3] };
    taps as f64 / (height * width) as f64
}

/// Bytes of the packed weights.
pub(crate) fn packed_bytes(problem: &Conv3dProblem, pass: Pass, tile: &WindowTile, limits: &Limits) -> u64 {
    Extents::of(problem, pass, tile).map_or(0, |extents| extents.packed_bytes(problem, limits))
}

/// Whether planes lie in memory as runs of sites, where tensors are contiguous: one tap in the plane that
/// reads each of its elements, vectors of which divide it. (Views that do not lie so are read one by one,
/// which took 1.6 times as long for 384 to 768 channels, 3x1x1; their sums have the same bits.)
pub(crate) fn is_run(problem: &Conv3dProblem) -> bool {
    let [_, height, width] = problem.input;
    let window = &problem.window;
    problem.kernel[1..] == [1, 1]
        && window.stride[1..] == [1, 1]
        && window.padding[1..] == [(0, 0); 2]
        && (height * width).is_multiple_of(8)
}
