//! Weight gradient of layers with few output channels per group, stride and dilation 1.
//!
//! ```text
//! partial[slice, o, c, tap] = sum over the slice's positions q of x[c, q + tap] * dy[o, q]
//!
//!     one threadgroup = one channel of x, all outputs of its group or one of them, one split-K slice:
//!
//!     tile, tile, tile, ..     each tile: window of x -> shared memory, dy -> registers,
//!     (those of the forward               multiply-add into taps * outputs accumulators per thread
//!      kernel, in order)       at the end: the threads' accumulators are added in shared memory
//! ```
//!
//! Layouts: any strides; the partials are fp32, in the weight's order, and `reduce.rs` adds them.
//!
//! A thread holds dy of its `frames * rows` positions for all outputs, and an accumulator per tap and output.
//! The elements of a window column are used for all depth taps at once. Example, 3x3x3, three outputs, four
//! frames of two rows: 81 accumulators, and per tile 648 multiply-adds per 72 elements from shared memory, 16
//! of x and 24 of dy from device memory. The final reduction has a fixed order, so the result is
//! deterministic.
//!
//! Where registers are few (an Apple GPU) a threadgroup sums one output: 27 accumulators, and eight frames of
//! two rows for 16 values of dy. Its window is loaded and read again for each output.
//!
//! Bytes: x once with the tiles' halos (per output where these are split), dy once per channel of x (from the
//! cache). FLOP of a tile:
//! `2 * frames * rows * threads * outputs * taps`.
//!
//! Declined: stride, dilation, more than four output channels per group, windows whose accumulators do not
//! fit the registers.

use super::config::FewOutputsShape;
use super::kernel::read_values;
use super::load::{frame_offsets, is_overlap_cached, is_uncached, load_channel, read_channel, write_channel};
use crate::conv3d::cache::{CacheArgs, ChannelAt, JoinedFrames};
use crate::conv3d::frames::{
    FrameTiling, LoadOffsets, ReductionLayout, ThreadWork, load_offsets, reduce_threads,
};
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// How the tiles of all images are split: outputs that are summed one by one are fastest in a threadgroup's
/// index, then channels of x, then slices.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct TileSplit {
    pub(super) channels: FastDivmod<u32>,
    pub(super) group_channels: FastDivmod<u32>,
    /// Tiles of all images, and of a slice.
    pub(super) tiles: u32,
    pub(super) slice_tiles: u32,
    /// Elements of the weights of one output, and of all.
    pub(super) output_stride: usize,
    pub(super) slice_stride: usize,
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn few_outputs_weight_kernel<E: Float, O: Float>(
    source: &[E],
    cache: ComptimeOption<&[E]>,
    dy: &[E],
    out: &mut [O],
    gather: GatherArgs,
    cache_args: ComptimeOption<CacheArgs>,
    tiling: FrameTiling,
    split: TileSplit,
    span: Span,
    // Along depth, and along H and W.
    #[comptime] padding: [PaddingMode; 2],
    #[comptime] shape: FewOutputsShape,
    #[comptime] unroll: bool,
    // For the kernel's key, in which optional arguments do not count.
    #[comptime] _has_cache: bool,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole threadgroup exits: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let mut index = span.index() as u32;
    let mut part = 0u32;
    if comptime!(shape.parts > 1) {
        part = index % comptime!(shape.parts as u32);
        index /= comptime!(shape.parts as u32);
    }
    let (slice, c) = split.channels.div_mod(index);
    let (group, in_group) = split.group_channels.div_mod(c);
    let first_output = group * comptime!((shape.outputs * shape.parts) as u32) + part;
    let mut tile = slice * split.slice_tiles;
    let end = min(tile + split.slice_tiles, split.tiles);
    let mut window = Shared::<[f32]>::new_slice(comptime!(shape.source_frames() * shape.frame_elements()));
    // sums[((column * KH + row) * KD + depth) * outputs + output]
    let sums = Registers::<f32>::new(comptime!(shape.tile.tap_count() * shape.outputs), 0.0f32);
    let frames = JoinedFrames::new(source, cache, &cache_args, &gather, comptime!(padding[0]));
    while tile < end {
        let work = tiling.thread_work(tile, shape.tile);
        let offsets = load_offsets(&gather, &work, comptime!(padding[1]), shape.tile);
        let channel = frames.channel_at(work.n, c);
        let first_dy = gather.out_at(work.n, first_output) + gather.width.out_offset(work.w);
        let gradients =
            load_tile(&frames, dy, &tiling, &work, &channel, &offsets, first_dy, &mut window, shape, unroll);
        sync_cube();
        #[unroll]
        for column in 0..shape.tile.taps[2] {
            add_column(&window, work.corner, column, &gradients, &sums, shape);
        }
        tile += 1u32;
    }
    // The window is no longer needed: the reduction reuses it.
    sync_cube();
    let out_base = slice as usize * split.slice_stride
        + first_output as usize * split.output_stride
        + (in_group * comptime!(shape.tile.tap_count() as u32)) as usize;
    reduce_threads(
        &sums,
        &mut window,
        out,
        out_base,
        split.output_stride,
        0usize.runtime(),
        comptime!(ReductionLayout::of(&shape.tile, shape.outputs, false)),
    );
}

/// Loads a tile's window of a channel to shared memory, when every thread has finished with the one before,
/// and dy of this thread's positions.
#[cube]
fn load_tile<E: Float>(
    source: &JoinedFrames<E>,
    dy: &[E],
    tiling: &FrameTiling,
    work: &ThreadWork,
    channel: &ChannelAt,
    offsets: &LoadOffsets,
    first_dy: usize,
    window: &mut Shared<[f32]>,
    #[comptime] shape: FewOutputsShape,
    #[comptime] unroll: bool,
) -> Sequence<f32> {
    if comptime!(unroll) {
        #[comptime]
        match source.cache_args {
            ComptimeOption::Some(_) => {
                let gradients = Registers::<f32>::new(comptime!(shape.sums()), 0.0f32);
                // The end of a branch waits for loads: it has the stores, too.
                if is_uncached(source, work.first) {
                    gradients.set_all(&load_together(
                        source, dy, tiling, work, channel, offsets, first_dy, window, 0usize, shape,
                    ));
                } else if is_overlap_cached(source, work.first, shape) {
                    let cached = comptime!(shape.overlap());
                    gradients.set_all(&load_together(
                        source, dy, tiling, work, channel, offsets, first_dy, window, cached, shape,
                    ));
                } else {
                    sync_cube();
                    load_channel(source, channel, work.first, offsets, window, shape);
                    gradients.set_all(&read_gradients(dy, source.gather, tiling, work, first_dy, shape));
                }
                gradients.values()
            }
            ComptimeOption::None => {
                load_together(source, dy, tiling, work, channel, offsets, first_dy, window, 0usize, shape)
            }
        }
    } else {
        sync_cube();
        load_channel(source, channel, work.first, offsets, window, shape);
        read_gradients(dy, source.gather, tiling, work, first_dy, shape)
    }
}

/// [`load_tile`] with all loads in flight together. The first `cached` frames of the window are in the cache.
#[cube]
fn load_together<E: Float>(
    source: &JoinedFrames<E>,
    dy: &[E],
    tiling: &FrameTiling,
    work: &ThreadWork,
    channel: &ChannelAt,
    offsets: &LoadOffsets,
    first_dy: usize,
    window: &mut Shared<[f32]>,
    #[comptime] cached: usize,
    #[comptime] shape: FewOutputsShape,
) -> Sequence<f32> {
    let frames = frame_offsets(source, work.first, shape);
    let values = read_channel(source, channel, &frames, offsets, true.runtime(), cached, shape);
    let gradients = read_gradients(dy, source.gather, tiling, work, first_dy, shape);
    sync_cube();
    write_channel(&values, window, shape);
    gradients
}

/// Loads dy of a thread's positions, in the order of [`super::kernel`]'s sums: zero past the last frame and
/// outside the H x W slice.
#[cube]
fn read_gradients<E: Float>(
    dy: &[E],
    gather: &GatherArgs,
    tiling: &FrameTiling,
    work: &ThreadWork,
    first: usize,
    #[comptime] shape: FewOutputsShape,
) -> Sequence<f32> {
    let mut gradients = Sequence::<f32>::new();
    #[unroll]
    for i in 0..comptime!(shape.sums()) {
        let h = work.h + comptime!((i % shape.tile.rows) as u32);
        let output = comptime!((i / shape.tile.rows % shape.outputs) as u32);
        let d = work.first + comptime!((i / shape.tile.rows / shape.outputs) as u32);
        let mut value = E::from_int(0);
        if d < work.end && h < tiling.height && work.w < tiling.width {
            value = dy[first
                + gather.out_channel(output.runtime())
                + gather.depth.out_offset(d)
                + gather.height.out_offset(h)];
        }
        gradients.push(f32::cast_from(value));
    }
    gradients
}

/// Accumulates one window column.
#[cube]
fn add_column(
    window: &Shared<[f32]>,
    corner: usize,
    #[comptime] column: usize,
    gradients: &Sequence<f32>,
    sums: &Registers<f32>,
    #[comptime] shape: FewOutputsShape,
) {
    #[unroll]
    for frame in 0..comptime!(shape.source_frames()) {
        let values = read_values(window, corner + column, frame, shape);
        add_frame(&values, column, frame, gradients, sums, shape);
    }
}

/// Accumulates a frame's elements times dy of the frames whose windows contain it.
#[cube]
fn add_frame(
    values: &Sequence<f32>,
    #[comptime] column: usize,
    #[comptime] frame: usize,
    gradients: &Sequence<f32>,
    sums: &Registers<f32>,
    #[comptime] shape: FewOutputsShape,
) {
    #[unroll]
    for product in 0..comptime!(shape.column_weights() * shape.tile.rows) {
        // Weights vary fastest: neighbouring multiply-adds go to different accumulators.
        let factor = comptime!(product % shape.column_weights());
        let position = comptime!(product / shape.column_weights());
        let output = comptime!(factor % shape.outputs);
        let depth = comptime!(factor / shape.outputs % shape.tile.taps[0]);
        let row = comptime!(factor / shape.outputs / shape.tile.taps[0]);
        if comptime!(frame >= depth && frame - depth < shape.frames) {
            let sum = comptime!(column * shape.column_weights() + factor);
            let gradient = comptime!(((frame - depth) * shape.outputs + output) * shape.tile.rows + position);
            let value = *values.index(comptime!(row + position));
            sums.set(sum, fma(value, *gradients.index(gradient), sums.get(sum)));
        }
    }
}
