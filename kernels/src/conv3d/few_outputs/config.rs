//! The tile of a layer with few output channels, and what it costs.

use crate::conv3d::frames::FrameTile;
use crate::conv3d::gemm::gather::{AxisGather, Gather};
use crate::conv3d::pass::Pass;
use crate::limits::Limits;

/// Output channels per group that are served.
pub(super) const MAX_OUTPUTS: usize = 4;

/// Bytes of shared memory of a threadgroup.
const MAX_SHARED_BYTES: usize = 24 * 1024;

/// Registers of a weight gradient for accumulators, dy and the elements that it is multiplied with, on
/// devices that prefetch (NVIDIA).
const MAX_WEIGHT_REGISTERS: usize = 112;

/// Threads of a weight gradient's threadgroup. 256 would fill an NVIDIA multiprocessor's registers with one
/// threadgroup, and nothing would hide its load latency.
const MAX_WEIGHT_THREADS: usize = 128;

/// Registers for accumulators, one column of weights and the elements it is multiplied with. An Apple GPU has
/// 128 per thread; addresses and loads in flight need the rest.
const MAX_REGISTERS: usize = 96;

/// The same for 512 threads and more on an Apple core: taken where any tile fits.
const SMALL_REGISTERS: usize = 64;

/// The output positions of a threadgroup; each thread computes all output channels of the group for its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct FewOutputsTile {
    /// Frames of a threadgroup; every thread computes all of them.
    pub frames: usize,
    /// Output positions of a thread along H, in each of its frames.
    pub rows: usize,
    /// Output positions of a threadgroup along W.
    pub columns: usize,
    /// Threads of a threadgroup.
    pub threads: usize,
    /// Whether a threadgroup of a weight gradient sums one output channel, not all of a group: fewer
    /// accumulators, for which the source is loaded once per output.
    pub split: bool,
    /// Whether the next channel is prefetched into registers while this one is multiplied. Without it, other
    /// threadgroups on the multiprocessor hide the load latency.
    pub prefetch: bool,
}

impl FewOutputsTile {
    /// The name used in tables and reports.
    pub fn name(&self) -> String {
        let height = self.rows * self.threads / self.columns;
        let split = if self.split { "_split" } else { "" };
        let ahead = if self.prefetch { "_ahead" } else { "" };
        format!("{}x{height}x{}_{}{split}{ahead}", self.frames, self.columns, self.threads)
    }
}

/// The kernels' compile-time constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FewOutputsShape {
    /// The tile in each frame.
    pub(super) tile: FrameTile,
    pub(super) frames: usize,
    /// Output channels of a threadgroup, and the threadgroups that share those of a group.
    pub(super) outputs: usize,
    pub(super) parts: usize,
    pub(super) prefetch: bool,
}

impl FewOutputsShape {
    pub(super) fn of(gather: &Gather, outputs: usize, tile: &FewOutputsTile) -> Self {
        let FewOutputsTile { frames, rows, columns, threads, split, prefetch } = *tile;
        let tile = FrameTile { taps: gather.map(|axis| axis.taps), rows, columns, threads };
        let (outputs, parts) = if split { (1, outputs) } else { (outputs, 1) };
        Self { tile, frames, outputs, parts, prefetch }
    }

    /// Source frames in shared memory.
    pub(super) fn source_frames(&self) -> usize {
        self.frames + self.overlap()
    }

    /// Source frames that the windows of two consecutive output frames share.
    pub(super) fn overlap(&self) -> usize {
        self.tile.taps[0] - 1
    }

    /// Elements of such a frame, row padding included.
    pub(super) fn frame_elements(&self) -> usize {
        self.tile.loads() * self.tile.threads
    }

    /// Elements of a channel that each thread loads.
    pub(super) fn loads(&self) -> usize {
        self.source_frames() * self.tile.loads()
    }

    /// Weights of one window column.
    pub(super) fn column_weights(&self) -> usize {
        self.tile.taps[0] * self.tile.taps[1] * self.outputs
    }

    /// Vectors of four weights per window column.
    pub(super) fn column_vectors(&self) -> usize {
        self.column_weights().div_ceil(4)
    }

    /// Vectors of a channel's weights.
    pub(super) fn weight_vectors(&self) -> usize {
        self.tile.taps[2] * self.column_vectors()
    }

    /// Accumulators of a thread.
    pub(super) fn sums(&self) -> usize {
        self.frames * self.tile.rows * self.outputs
    }

    /// Bytes of threadgroup memory.
    pub(super) fn shared_bytes(&self) -> usize {
        4 * self.source_frames() * self.frame_elements() + 16 * self.weight_vectors()
    }

    fn fits(&self, pass: Pass, registers: usize) -> bool {
        let column = self.tile.rows + self.tile.taps[1] - 1;
        if pass == Pass::WeightGradient {
            let sums = self.tile.tap_count() * self.outputs;
            return sums + self.sums() + column <= registers
                && self.tile.loads() <= self.tile.threads
                && self.tile.threads <= MAX_WEIGHT_THREADS
                && self.shared_bytes() <= MAX_SHARED_BYTES;
        }
        self.sums() + 4 * self.column_vectors() + column <= registers
            && self.weight_vectors() <= self.tile.threads
            && self.shared_bytes() <= MAX_SHARED_BYTES
    }

    /// Threadgroups of one group of one image.
    pub(super) fn threadgroups(&self, gather: &Gather) -> usize {
        self.tile.threadgroups(gather, self.frames)
    }

    /// Instructions of all threads per channel: multiply-adds, shared-memory loads (a vector of weights
    /// counts twice), the global loads, and the 32-byte sectors of the rows loaded.
    fn cost(&self, gather: &Gather, pass: Pass) -> usize {
        let FrameTile { taps, rows, threads, .. } = self.tile;
        let products = self.sums() * self.tile.tap_count();
        let values = self.source_frames() * taps[2] * (rows + taps[1] - 1) * self.tile.bank_passes();
        let sectors =
            self.source_frames() * (self.tile.height() + taps[1] - 1) * (self.tile.row_pitch() / 8 + 1);
        // A weight gradient recomputes its load offsets for every tile, and loads dy in place of weights.
        let other = match pass {
            Pass::WeightGradient => 5 * self.sums() + 20 * self.tile.loads() + 6 * self.source_frames(),
            _ => 2 * self.weight_vectors(),
        };
        let per_thread = products + values + other + 5 * self.loads() + 60;
        self.threadgroups(gather) * self.parts * (threads * per_thread + 64 * sectors)
    }
}

const FRAMES: [usize; 6] = [1, 2, 3, 4, 6, 8];
const ROWS: [usize; 4] = [1, 2, 4, 8];
const COLUMNS: [usize; 4] = [8, 16, 32, 64];
const THREADS: [usize; 3] = [64, 128, 256];

/// Every tile that fits so many registers; none unless stride and dilation are 1.
fn fitting(
    gather: &Gather,
    pass: Pass,
    outputs: usize,
    registers: usize,
    split: bool,
) -> Vec<FewOutputsShape> {
    let mut shapes = Vec::new();
    if !gather.iter().all(AxisGather::is_dense) {
        return shapes;
    }
    for frames in FRAMES {
        for rows in ROWS {
            for columns in COLUMNS {
                let tile =
                    |threads| FewOutputsTile { frames, rows, columns, threads, split, prefetch: false };
                let shape = |threads| FewOutputsShape::of(gather, outputs, &tile(threads));
                let fits = |shape: &FewOutputsShape| shape.fits(pass, registers);
                shapes.extend(THREADS.map(shape).into_iter().filter(fits));
            }
        }
    }
    shapes
}

/// The registers that tiles are made for, the preferred ones first.
fn budgets(pass: Pass, limits: &Limits) -> &'static [usize] {
    match (limits.unroll, pass) {
        (true, Pass::WeightGradient) => &[MAX_WEIGHT_REGISTERS],
        (true, _) => &[MAX_REGISTERS],
        (false, _) => &[SMALL_REGISTERS, MAX_REGISTERS],
    }
}

/// Whether threadgroups may share the outputs of a group: where registers are few.
fn may_split(pass: Pass, outputs: usize, limits: &Limits) -> bool {
    pass == Pass::WeightGradient && outputs > 1 && !limits.unroll
}

impl From<FewOutputsShape> for FewOutputsTile {
    fn from(shape: FewOutputsShape) -> Self {
        let FrameTile { rows, columns, threads, .. } = shape.tile;
        let split = shape.parts > 1;
        Self { frames: shape.frames, rows, columns, threads, split, prefetch: shape.prefetch }
    }
}

/// Whether the tile is one of those that [`cheapest`] chooses from.
pub(super) fn is_offered(
    gather: &Gather,
    pass: Pass,
    outputs: usize,
    tile: &FewOutputsTile,
    limits: &Limits,
) -> bool {
    let FewOutputsTile { frames, rows, columns, threads, .. } = tile;
    let registers = budgets(pass, limits).iter().max();
    gather.iter().all(AxisGather::is_dense)
        && FRAMES.contains(frames)
        && ROWS.contains(rows)
        && COLUMNS.contains(columns)
        && THREADS.contains(threads)
        && (!tile.split || may_split(pass, outputs, limits))
        && !(tile.prefetch && pass == Pass::WeightGradient)
        && registers.is_some_and(|most| FewOutputsShape::of(gather, outputs, tile).fits(pass, *most))
}

/// The cheapest tile.
pub(super) fn cheapest(
    gather: &Gather,
    pass: Pass,
    outputs: usize,
    limits: &Limits,
) -> Option<FewOutputsTile> {
    budgets(pass, limits).iter().find_map(|&registers| {
        let mut shapes = fitting(gather, pass, outputs, registers, false);
        if may_split(pass, outputs, limits) {
            shapes.extend(fitting(gather, pass, outputs, registers, true));
        }
        shapes.into_iter().min_by_key(|shape| shape.cost(gather, pass)).map(FewOutputsTile::from)
    })
}
