//! A tile of one channel's H x W slice whose frames pass through shared memory. Used by depthwise
//! convolutions, which march along depth (`depthwise/staged.rs`, `depthwise/staged_weight.rs`), and by layers
//! with few output channels, which keep a few frames (`few_outputs/`). Dense windows: stride and dilation 1.
//!
//! ```text
//!          columns + KW - 1                   a thread: `rows` output positions of one column of the tile;
//!      +--------------------------+                     neighbouring lanes are neighbours along W
//!      | thread | thread | thread | blocks    a frame:  loaded once, `loads` elements per thread, while the
//!      | thread | thread | thread |  * rows             previous frame is multiplied; then each thread reads
//!      +--------------------------+  + KH - 1           (rows + KH - 1) * KW elements of it from shared
//!                                                       memory for rows * taps multiply-adds
//! ```
//!
//! Each element is loaded from device memory once per tile: reloading the overlap of the windows costs more
//! than the arithmetic. Shared memory: `4 * loads * threads` bytes.

use super::gemm::gather::Gather;
use super::gemm::index::GatherArgs;
use super::loops::nest;
use super::problem::PaddingMode;
use crate::activation::Activation;
use crate::registers::Registers;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// Banks of shared memory, one 32-bit word wide each.
const BANKS: usize = 32;

/// Most padding elements at the end of a frame's row; they are loaded along with the row.
const MAX_PAD: usize = 7;

/// The tile as a compile-time constant of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FrameTile {
    pub(super) taps: [usize; 3],
    /// Output positions of a thread along H.
    pub(super) rows: usize,
    /// Output positions of the tile along W.
    pub(super) columns: usize,
    pub(super) threads: usize,
}

impl FrameTile {
    pub(super) fn tap_count(&self) -> usize {
        self.taps.iter().product()
    }

    /// Threads along H in one column of the tile.
    fn row_blocks(&self) -> usize {
        self.threads / self.columns
    }

    /// Output positions of the tile along H.
    pub(super) fn height(&self) -> usize {
        self.rows * self.row_blocks()
    }

    /// Row pitch of a frame in shared memory, padded so that consecutive row blocks start in consecutive
    /// banks: a subgroup that spans two row blocks reads without bank conflicts.
    pub(super) fn row_pitch(&self) -> usize {
        let window = self.columns + self.taps[2] - 1;
        let conflict_free = |pad: &usize| self.rows * (window + pad) % BANKS == self.columns % BANKS;
        let pad = if self.columns.is_multiple_of(BANKS) { None } else { (0..=MAX_PAD).find(conflict_free) };
        window + pad.unwrap_or(0)
    }

    /// Shared-memory passes of a subgroup that reads one element per thread: 2 with bank conflicts.
    pub(super) fn bank_passes(&self) -> usize {
        let conflict_free = self.rows * self.row_pitch() % BANKS == self.columns % BANKS;
        if self.columns.is_multiple_of(BANKS) || conflict_free { 1 } else { 2 }
    }

    /// Elements of a frame in shared memory.
    fn frame_elements(&self) -> usize {
        (self.height() + self.taps[1] - 1) * self.row_pitch()
    }

    /// Elements of a frame that each thread loads.
    pub(super) fn loads(&self) -> usize {
        self.frame_elements().div_ceil(self.threads)
    }

    /// Loop iterations of [`reduce_threads`] for so many sums per thread.
    pub(super) fn reduction_iterations(&self, sums: usize) -> usize {
        let per_round = self.loads().max(1);
        let segments = (self.threads / per_round).clamp(1, 16);
        sums.div_ceil(per_round) * (nest(self.threads.div_ceil(segments), 0) + nest(segments, 0))
    }

    /// Tiles of an H x W slice along H and W.
    pub(super) fn tiles(&self, height: usize, width: usize) -> [usize; 2] {
        [height.div_ceil(self.height()), width.div_ceil(self.columns)]
    }
}

impl FrameTile {
    /// Threadgroups of one channel of one image, whose frames are cut into chunks.
    pub(super) fn threadgroups(&self, gather: &Gather, chunk: usize) -> usize {
        let [depth, height, width] = gather.map(|axis| axis.positions);
        depth.div_ceil(chunk) * self.tiles(height, width).iter().product::<usize>()
    }

    /// The grid for so many channels as a kernel argument.
    pub(super) fn tiling(
        &self,
        gather: &Gather,
        chunk: usize,
        channels: usize,
        activation: Activation,
    ) -> FrameTilingLaunch {
        let [depth, height, width] = gather.map(|axis| axis.positions);
        let [tiles_h, tiles_w] = self.tiles(height, width);
        FrameTilingLaunch {
            tiles_w: tiles_w as u32,
            tiles_h: tiles_h as u32,
            chunks: depth.div_ceil(chunk) as u32,
            channels: channels as u32,
            channel_count: channels as u32,
            threadgroups: self.threadgroups(gather, chunk) as u32,
            height: height as u32,
            width: width as u32,
            depth: depth as u32,
            chunk: chunk as u32,
            activation: activation.code(),
        }
    }
}

/// The grid of tiles. A threadgroup's index is, fastest first: tile along W, tile along H, chunk of frames,
/// channel, image.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct FrameTiling {
    pub(super) tiles_w: FastDivmod<u32>,
    pub(super) tiles_h: FastDivmod<u32>,
    pub(super) chunks: FastDivmod<u32>,
    pub(super) channels: FastDivmod<u32>,
    pub(super) channel_count: u32,
    /// Threadgroups of one channel of one image.
    pub(super) threadgroups: u32,
    /// Output height, width and depth, and output frames of one chunk.
    pub(super) height: u32,
    pub(super) width: u32,
    pub(super) depth: u32,
    pub(super) chunk: u32,
    /// [`Activation::code`] of the activation of the result.
    pub(super) activation: u32,
}

/// The output positions of one thread.
#[derive(CubeType, Clone, Copy)]
pub(super) struct ThreadWork {
    pub(super) n: u32,
    pub(super) c: u32,
    /// Index of the threadgroup within its channel and image.
    pub(super) threadgroup: u32,
    /// First frame of the chunk, and the one after its last.
    pub(super) first: u32,
    pub(super) end: u32,
    /// First output position of the tile.
    pub(super) tile_h: u32,
    pub(super) tile_w: u32,
    /// First output position of the thread; outside the H x W slice for an idle thread.
    pub(super) h: u32,
    pub(super) w: u32,
    /// Offset of its window within a frame in shared memory.
    pub(super) corner: usize,
}

#[cube]
impl FrameTiling {
    pub(super) fn thread_work(&self, threadgroup: u32, #[comptime] tile: FrameTile) -> ThreadWork {
        let (rest, in_w) = self.tiles_w.div_mod(threadgroup);
        let (rest, in_h) = self.tiles_h.div_mod(rest);
        let (rest, chunk) = self.chunks.div_mod(rest);
        let (n, c) = self.channels.div_mod(rest);
        let column = UNIT_POS % comptime!(tile.columns as u32);
        let block = UNIT_POS / comptime!(tile.columns as u32);
        // Threads past the last row block repeat it and write nothing.
        let row = min(block, comptime!(tile.row_blocks() as u32 - 1)) * comptime!(tile.rows as u32);
        let tile_h = in_h * comptime!(tile.height() as u32);
        let tile_w = in_w * comptime!(tile.columns as u32);
        ThreadWork {
            n,
            c,
            threadgroup: threadgroup % self.threadgroups,
            first: chunk * self.chunk,
            end: min((chunk + 1u32) * self.chunk, self.depth),
            tile_h,
            tile_w,
            h: select(block < comptime!(tile.row_blocks() as u32), tile_h + row, self.height),
            w: tile_w + column,
            corner: (row * comptime!(tile.row_pitch() as u32) + column) as usize,
        }
    }
}

/// Offsets of a thread's elements of a frame within the source's H x W slice, and whether each is inside.
#[derive(CubeType)]
pub(super) struct LoadOffsets {
    pub(super) at: Sequence<usize>,
    pub(super) inside: Sequence<bool>,
}

#[cube]
pub(super) fn load_offsets(
    gather: &GatherArgs,
    work: &ThreadWork,
    #[comptime] padding: PaddingMode,
    #[comptime] tile: FrameTile,
) -> LoadOffsets {
    let mut at = Sequence::<usize>::new();
    let mut inside = Sequence::<bool>::new();
    let h = gather.height.coordinate(work.tile_h);
    let w = gather.width.coordinate(work.tile_w);
    #[unroll]
    for load in 0..comptime!(tile.loads()) {
        let element = UNIT_POS + comptime!((load * tile.threads) as u32);
        let row = element / comptime!(tile.row_pitch() as u32);
        let column = element % comptime!(tile.row_pitch() as u32);
        let (row, row_inside) = gather.height.load_offset(h + row as i32, padding);
        let (column, column_inside) = gather.width.load_offset(w + column as i32, padding);
        at.push(row + column);
        inside.push(row_inside && column_inside);
    }
    LoadOffsets { at, inside }
}

/// Loads this thread's elements of a frame into registers; elements outside the source are zero.
#[cube]
pub(super) fn read_frame<E: Float>(
    source: &[E],
    channel: usize,
    frame: usize,
    inside: bool,
    offsets: &LoadOffsets,
    #[comptime] tile: FrameTile,
) -> Sequence<E> {
    let mut values = Sequence::<E>::new();
    #[unroll]
    for load in 0..comptime!(tile.loads()) {
        let mut value = E::from_int(0);
        if inside && *offsets.inside.index(load) {
            value = source[channel + frame + *offsets.at.index(load)];
        }
        values.push(value);
    }
    values
}

/// Stores what [`read_frame`] has loaded to shared memory.
#[cube]
pub(super) fn write_frame<E: Float>(
    values: &Sequence<E>,
    stage: &mut Shared<[f32]>,
    #[comptime] tile: FrameTile,
) {
    #[unroll]
    for load in 0..comptime!(tile.loads()) {
        stage[UNIT_POS as usize + comptime!(load * tile.threads)] = f32::cast_from(*values.index(load));
    }
}

/// The elements of one window column that a thread's output positions read from the frame, top to bottom.
#[cube]
pub(super) fn read_column(
    stage: &Shared<[f32]>,
    corner: usize,
    #[comptime] column: usize,
    #[comptime] tile: FrameTile,
) -> Sequence<f32> {
    let mut values = Sequence::<f32>::new();
    #[unroll]
    for row in 0..comptime!(tile.rows + tile.taps[1] - 1) {
        values.push(stage[corner + comptime!(row * tile.row_pitch() + column)]);
    }
    values
}

/// The per-thread sums of a weight gradient, `[column, row, depth, output]`, and how the threadgroup adds
/// them up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ReductionLayout {
    taps: [usize; 3],
    outputs: usize,
    threads: usize,
    /// Sums that are reduced through shared memory per round.
    per_round: usize,
    /// Whether the sum of dy (the bias gradient) follows the taps' sums.
    bias: bool,
}

impl ReductionLayout {
    pub(super) fn of(tile: &FrameTile, outputs: usize, bias: bool) -> Self {
        Self { taps: tile.taps, outputs, threads: tile.threads, per_round: tile.loads(), bias }
    }

    fn tap_sums(&self) -> usize {
        self.taps.iter().product::<usize>() * self.outputs
    }

    fn sum_count(&self) -> usize {
        self.tap_sums() + usize::from(self.bias)
    }
}

/// Adds up the sums of all threads and writes them, in a fixed order, so the result is deterministic. Each
/// round reduces as many sums as a frame has elements per thread: strided segments of threads first, then the
/// segments of each sum. Outputs are `output_stride` apart with their taps in the weight's order; the sum of
/// dy goes to `bias_out`.
#[cube]
pub(super) fn reduce_threads<O: Float>(
    sums: &Registers<f32>,
    stage: &mut Shared<[f32]>,
    out: &mut [O],
    first_out: usize,
    output_stride: usize,
    bias_out: usize,
    #[comptime] of: ReductionLayout,
) {
    let thread = UNIT_POS as usize;
    let per_round = comptime!(of.per_round);
    // At most 16 segments, so that 256 threads take 16 + 16 additions per sum.
    let segments = comptime!((of.threads / of.per_round).clamp(1, 16));
    #[unroll]
    for round in 0..comptime!(of.sum_count().div_ceil(of.per_round)) {
        #[unroll]
        for i in 0..per_round {
            let tap = comptime!(round * per_round + i);
            if comptime!(tap < of.sum_count()) {
                stage[thread + comptime!(i * of.threads)] = sums.get(tap);
            }
        }
        sync_cube();
        let tap = thread / segments;
        let segment = thread % segments;
        let mut total = 0.0f32;
        if tap < per_round {
            let mut other = segment;
            while other < of.threads {
                total += stage[tap * of.threads + other];
                other += segments;
            }
        }
        sync_cube();
        if tap < per_round {
            stage[thread] = total;
        }
        sync_cube();
        let index = thread + comptime!(round * per_round);
        if thread < per_round && index < comptime!(of.sum_count()) {
            let mut sum = 0.0f32;
            for segment in 0..segments {
                sum += stage[thread * segments + segment];
            }
            // From the order of the sums to the weight's order: depth, row, column.
            let output = index % of.outputs;
            let tap = index / of.outputs;
            let depth = tap % of.taps[0];
            let row = tap / of.taps[0] % of.taps[1];
            let column = tap / comptime!(of.taps[0] * of.taps[1]);
            let tap = (depth * of.taps[1] + row) * of.taps[2] + column;
            let mut at = first_out + output * output_stride + tap;
            if comptime!(of.bias) && index == comptime!(of.tap_sums()) {
                at = bias_out;
            }
            out[at] = O::cast_from(sum);
        }
        sync_cube();
    }
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
