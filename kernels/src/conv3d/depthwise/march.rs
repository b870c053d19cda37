//! Depthwise conv3d (groups = C = O), forward and input gradient, for any stride and dilation. Memory-bound.
//!
//! ```text
//! y[n, c, d, h, w] = activation( bias[c] + sum over kd, kh, kw of
//!                    x[n, c, d * sd + kd * dd - pd, h * sh + kh * dh - ph, ..] * weight[c, kd, kh, kw] )
//!
//!           w ->                a thread:  `rows` output positions of one column, marching along depth
//!      +---------------+        per frame: (rows + KH - 1) * KW elements loaded, each used for up to
//!    h |     lanes     | d/                `rows * KD` multiply-adds; the KD pending results of a position
//!      |    along w    |/                  stay in registers
//!      +---------------+
//! ```
//!
//! Layouts: any strides. A threadgroup works on one channel of one image and keeps its weights in shared
//! memory: 75 of them do not fit the registers next to the accumulators. Bytes: every element once from
//! device memory, the overlap of the windows from the cache; each result once. FLOP of a threadgroup:
//! `2 * threads * rows * frames * taps`.
//!
//! With a depth stride or dilation no frame serves neighbouring results, and each result reads its own
//! window. The window's size is a compile-time constant, so loops over it are unrolled. Declined: channel
//! multipliers, windows of more than [`MAX_TAPS`] taps.

use crate::activation::activate_by_code;
use crate::conv3d::cache::{CacheArgs, ChannelAt, JoinedFrames};
use crate::conv3d::epilogue::channel_bias;
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// Taps of the largest window.
pub(super) const MAX_TAPS: usize = 80;

/// The kernel's compile-time constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct MarchWindow {
    pub(super) taps: [usize; 3],
    /// Output positions of a thread along H; above 1 only where adjacent positions read adjacent rows.
    pub(super) rows: usize,
    /// Whether consecutive results read consecutive frames, so that a loaded frame serves KD results.
    pub(super) reuses_frames: bool,
    /// Threads of a threadgroup.
    pub(super) threads: usize,
}

/// A vector of weights, read from shared memory at once.
type Weights = Vector<f32, Const<4>>;

impl MarchWindow {
    pub(super) fn tap_count(&self) -> usize {
        self.taps.iter().product()
    }

    /// Source rows that a thread reads.
    fn source_rows(&self) -> usize {
        self.taps[1] + self.rows - 1
    }

    /// Results of a position that one frame contributes to.
    fn pending(&self) -> usize {
        if self.reuses_frames { self.taps[0] } else { 1 }
    }
}

/// The grid of marches. A thread's index within a channel is, fastest first: w, block of rows, chunk of
/// frames.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct MarchWork {
    pub(super) width: FastDivmod<u32>,
    pub(super) blocks: FastDivmod<u32>,
    /// Chunks of frames.
    pub(super) chunks: FastDivmod<u32>,
    pub(super) channels: FastDivmod<u32>,
    pub(super) channel_count: u32,
    /// Output frames, and those of one chunk.
    pub(super) depth: u32,
    pub(super) chunk: u32,
    pub(super) height: u32,
    /// Marches of one channel (weight gradient: in all images).
    pub(super) marches: u32,
    /// Threadgroups of one channel (weight gradient: cuts of the window).
    pub(super) threadgroups: FastDivmod<u32>,
    /// Taps of the whole window.
    pub(super) taps: u32,
    /// [`Activation::code`](crate::activation::Activation::code) of the activation of the result.
    pub(super) activation: u32,
}

/// Offsets of a thread's source rows and columns, and whether each is inside.
#[derive(CubeType)]
pub(super) struct WindowOffsets {
    pub(super) row: Sequence<usize>,
    pub(super) row_inside: Sequence<bool>,
    pub(super) column: Sequence<usize>,
    pub(super) column_inside: Sequence<bool>,
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn march_kernel<E: Float, O: Float>(
    source: &[E],
    cache: ComptimeOption<&[E]>,
    weight: &[E],
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    gather: GatherArgs,
    cache_args: ComptimeOption<CacheArgs>,
    work: MarchWork,
    span: Span,
    #[comptime] pass: Pass,
    // Along depth, and along H and W.
    #[comptime] padding: [PaddingMode; 2],
    #[comptime] window: MarchWindow,
    // For the kernel's key, in which optional arguments do not count.
    #[comptime] _has_cache: bool,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole threadgroup exits: a barrier follows.
    if span.is_idle() {
        terminate!();
    }
    let (rest, threadgroup) = work.threadgroups.div_mod(span.index() as u32);
    let (n, c) = work.channels.div_mod(rest);
    let weights = stage_weights(weight, &gather, c, pass, window);
    sync_cube();
    let index = threadgroup * window.threads as u32 + UNIT_POS;
    if index >= work.marches {
        terminate!();
    }
    let (rest, w) = work.width.div_mod(index);
    let (chunk, block) = work.blocks.div_mod(rest);
    let h = block * window.rows as u32;
    let first = chunk * work.chunk;
    let end = min(first + work.chunk, work.depth);

    let frames = JoinedFrames::new(source, cache, &cache_args, &gather, comptime!(padding[0]));
    let channel = frames.channel_at(n, c);
    let offsets = window_offsets(&gather, h, w, comptime!(padding[1]), window);
    let start = channel_bias(bias, c);
    let out_column = gather.out_at(n, c) + gather.width.out_offset(w);

    // sums[age * rows + row]: the result that this frame contributes to with depth tap `age`.
    let sums = Registers::<f32>::new(comptime!(window.pending() * window.rows), 0.0f32);
    if comptime!(window.reuses_frames) {
        let halo = comptime!(window.taps[0] as u32 - 1);
        for frame in first..end + halo {
            let depth = gather.depth.coordinate(frame);
            add_depth(&frames, &channel, depth, &offsets, &weights, 0usize, &sums, window);
            if frame >= first + halo {
                let d = frame - halo;
                write_rows(out, &gather, &work, &sums, start, out_column, d, h, window);
            }
            age(&sums, window.rows);
        }
    } else {
        for d in first..end {
            #[unroll]
            for tap in 0..window.taps[0] {
                let depth = gather.depth.coordinate(d) + (tap as u32 * gather.depth.step) as i32;
                add_depth(&frames, &channel, depth, &offsets, &weights, tap, &sums, window);
            }
            write_rows(out, &gather, &work, &sums, start, out_column, d, h, window);
            #[unroll]
            for i in 0..window.rows {
                sums.set(i, 0.0f32);
            }
        }
    }
}

#[cube]
pub(super) fn window_offsets(
    gather: &GatherArgs,
    h: u32,
    w: u32,
    #[comptime] padding: PaddingMode,
    #[comptime] window: MarchWindow,
) -> WindowOffsets {
    let mut row = Sequence::<usize>::new();
    let mut row_inside = Sequence::<bool>::new();
    // Rows shared by several positions are adjacent; the rows of a single position are a step apart.
    let mut step = gather.height.step;
    if comptime!(window.rows > 1) {
        step = 1u32;
    }
    #[unroll]
    for i in 0..comptime!(window.source_rows()) {
        let (at, inside) =
            gather.height.load_offset(gather.height.coordinate(h) + (i as u32 * step) as i32, padding);
        row.push(at);
        row_inside.push(inside);
    }
    let mut column = Sequence::<usize>::new();
    let mut column_inside = Sequence::<bool>::new();
    #[unroll]
    for i in 0..window.taps[2] {
        let coordinate = gather.width.coordinate(w) + (i as u32 * gather.width.step) as i32;
        let (at, inside) = gather.width.load_offset(coordinate, padding);
        column.push(at);
        column_inside.push(inside);
    }
    WindowOffsets { row, row_inside, column, column_inside }
}

/// Stages the channel's weights in shared memory, in the order in which a frame's elements use them: row,
/// column, depth.
#[cube]
fn stage_weights<E: Float>(
    weight: &[E],
    gather: &GatherArgs,
    c: u32,
    #[comptime] pass: Pass,
    #[comptime] window: MarchWindow,
) -> Shared<[Weights]> {
    let mut shared = Shared::<[Weights]>::new_slice(comptime!(window.tap_count().div_ceil(4)));
    let mut vector = UNIT_POS;
    while vector < comptime!(window.tap_count().div_ceil(4) as u32) {
        let mut weights = Weights::new(0.0f32);
        #[unroll]
        for i in 0..4usize {
            let tap = vector * 4u32 + i as u32;
            if tap < comptime!(window.tap_count() as u32) {
                let d = tap % window.taps[0] as u32;
                let cell = tap / window.taps[0] as u32;
                let at = gather.weight_group(c)
                    + gather.depth.weight_offset(d, pass)
                    + gather.height.weight_offset(cell / window.taps[2] as u32, pass)
                    + gather.width.weight_offset(cell % window.taps[2] as u32, pass);
                weights.insert(i, f32::cast_from(weight[at]));
            }
        }
        shared[vector as usize] = weights;
        vector += window.threads as u32;
    }
    shared
}

/// Accumulates the frame at `depth`, if there is one.
#[cube]
fn add_depth<E: Float>(
    frames: &JoinedFrames<E>,
    channel: &ChannelAt,
    depth: i32,
    offsets: &WindowOffsets,
    weights: &Shared<[Weights]>,
    #[comptime] first_tap: usize,
    sums: &Registers<f32>,
    #[comptime] window: MarchWindow,
) {
    let at = frames.at(depth);
    if at.inside {
        // The end of a branch waits for loads: it has their use, too.
        if at.in_cache {
            let frame = channel.cache + at.offset;
            add_frame(frames.cache.unwrap(), frame, offsets, weights, first_tap, sums, window);
        } else {
            let frame = channel.source + at.offset;
            add_frame(frames.source, frame, offsets, weights, first_tap, sums, window);
        }
    }
}

/// Accumulates one source frame; `first_tap` is the depth tap of the newest result.
#[cube]
fn add_frame<E: Float>(
    source: &[E],
    frame: usize,
    offsets: &WindowOffsets,
    weights: &Shared<[Weights]>,
    #[comptime] first_tap: usize,
    sums: &Registers<f32>,
    #[comptime] window: MarchWindow,
) {
    let values = read_frame(source, frame, offsets, comptime!(window.source_rows()), window.taps[2]);
    #[unroll]
    for cell in 0..comptime!(window.source_rows() * window.taps[2]) {
        let row = comptime!(cell / window.taps[2]);
        let column = comptime!(cell % window.taps[2]);
        add_cell(*values.index(cell), row, column, weights, first_tap, sums, window);
    }
}

/// Loads the elements of a frame that a thread needs, without branches so that all loads are in flight at
/// once: positions outside the source read element 0 and become zero.
#[cube]
pub(super) fn read_frame<E: Float>(
    source: &[E],
    frame: usize,
    offsets: &WindowOffsets,
    #[comptime] rows: usize,
    #[comptime] columns: usize,
) -> Sequence<f32> {
    let mut values = Sequence::<f32>::new();
    #[unroll]
    for cell in 0..comptime!(rows * columns) {
        let row = comptime!(cell / columns);
        let column = comptime!(cell % columns);
        let inside = *offsets.row_inside.index(row) && *offsets.column_inside.index(column);
        let at = select(inside, frame + *offsets.row.index(row) + *offsets.column.index(column), 0usize);
        values.push(select(inside, f32::cast_from(source[at]), 0.0f32));
    }
    values
}

#[cube]
fn add_cell(
    value: f32,
    #[comptime] row: usize,
    #[comptime] column: usize,
    weights: &Shared<[Weights]>,
    #[comptime] first_tap: usize,
    sums: &Registers<f32>,
    #[comptime] window: MarchWindow,
) {
    #[unroll]
    for i in 0..comptime!(window.pending() * window.rows) {
        let output_row = comptime!(i % window.rows);
        if comptime!(row >= output_row && row - output_row < window.taps[1]) {
            let depth_tap = comptime!(first_tap + i / window.rows);
            let tap = comptime!(((row - output_row) * window.taps[2] + column) * window.taps[0] + depth_tap);
            sums.set(i, fma(value, weights[comptime!(tap / 4)].extract(comptime!(tap % 4)), sums.get(i)));
        }
    }
}

/// Shifts the sums of `rows` positions by one frame; the newest start at zero.
#[cube]
pub(super) fn age(sums: &Registers<f32>, #[comptime] rows: usize) {
    sums.shift(rows);
    #[unroll]
    for i in 0..rows {
        sums.set(i, 0.0f32);
    }
}

/// Epilogue of the oldest results: bias, activation, rounding, masked store.
#[cube]
fn write_rows<O: Float>(
    out: &mut [O],
    gather: &GatherArgs,
    work: &MarchWork,
    sums: &Registers<f32>,
    bias: f32,
    out_column: usize,
    d: u32,
    h: u32,
    #[comptime] window: MarchWindow,
) {
    #[unroll]
    for i in 0..window.rows {
        let row = h + i as u32;
        if row < work.height {
            let sum = sums.get(comptime!((window.pending() - 1) * window.rows + i));
            let at = out_column + gather.depth.out_offset(d) + gather.height.out_offset(row);
            out[at] = O::cast_from(activate_by_code(sum + bias, work.activation));
        }
    }
}
