//! Layers with few output channels per group, stride and dilation 1: the forward pass, and the input gradient
//! with dy as the source and the channels of dx as the outputs.
//!
//! ```text
//! y[n, o, d, h, w] = activation( bias[o] + sum over c, kd, kh, kw of
//!                                x[n, c, d + kd, h + kh, w + kw] * weight[o, c, kd, kh, kw] )
//!
//!          columns + KW - 1             a threadgroup: a tile of the H x W slice (`conv3d::frames`) in
//!      +--------------------------+                    `frames` frames, all outputs of a group; per channel
//!      | thread | thread | thread |                    shared memory holds frames + KD - 1 source frames and
//!      | thread | thread | thread |                    the channel's weights [kw, kh, kd, o]
//!      +--------------------------+     a thread:      frames * rows * outputs accumulators, rows along H,
//!                                                      lanes along W
//! ```
//!
//! A stream's first frames are read from its cache (`conv3d::cache`).
//!
//! Layouts: any strides, of x and a cache the same within a frame; `out` may be the fp32 partials of a
//! split-K slice, which `reduce.rs` adds.
//!
//! Per channel and window column a thread loads the column's `KH * KD * outputs` weights from shared memory
//! into registers and uses each for `frames * rows` multiply-adds. A frame's `rows + KH - 1` elements are
//! used for all depth taps whose output frame is in the threadgroup. Example, 3x3x3, three outputs, four
//! frames of four rows: 1296 multiply-adds per 108 elements and 21 weight vectors from shared memory, 30
//! elements from device memory and two barriers.
//!
//! Bytes of a threadgroup: `(frames + KD - 1) * (tile with its halo)` elements of every channel, the weights,
//! and its outputs once. FLOP: `2 * frames * rows * threads * outputs * taps` per channel.
//!
//! Declined: stride, dilation, more than four outputs per group, windows whose column of weights does not fit
//! the registers ([`super::config`]).

use super::config::FewOutputsShape;
use super::load::{
    Channels, Offsets, channel_at, frame_offsets, is_overlap_cached, is_uncached, load_channel, read_channel,
    read_weights, weight_offsets, write_channel, write_weights,
};
use crate::activation::activate_by_code;
use crate::conv3d::cache::{CacheArgs, JoinedFrames};
use crate::conv3d::epilogue::channel_bias;
use crate::conv3d::frames::{FrameTiling, LoadOffsets, ThreadWork, load_offsets};
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// A vector of weights, read from shared memory at once.
pub(super) type Weights = Vector<f32, Const<4>>;

/// How channels are split over threadgroups, outside the tiling of positions: split-K slices are slowest in a
/// threadgroup's index, images are next.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct ChannelSplit {
    pub(super) batch: FastDivmod<u32>,
    /// Source channels per group, and per split-K slice.
    pub(super) channels: u32,
    pub(super) slice_channels: u32,
    /// Elements of a slice's partial result.
    pub(super) slice_stride: usize,
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn few_outputs_kernel<E: Float, O: Float>(
    source: &[E],
    cache: ComptimeOption<&[E]>,
    weight: &[E],
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    gather: GatherArgs,
    cache_args: ComptimeOption<CacheArgs>,
    tiling: FrameTiling,
    split: ChannelSplit,
    span: Span,
    #[comptime] pass: Pass,
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
    let work = tiling.thread_work(span.index() as u32, shape.tile);
    let (slice, n) = split.batch.div_mod(work.n);
    let c = slice * split.slice_channels;
    let end = min(c + split.slice_channels, split.channels);
    let offsets = load_offsets(&gather, &work, comptime!(padding[1]), shape.tile);
    let weight_offsets = weight_offsets(&gather, work.c, pass, shape);
    let group = work.c * split.channels;
    let channels = Channels { first: c, end, base: gather.source_at(n, group), image: n, group };
    let mut window = Shared::<[f32]>::new_slice(comptime!(shape.source_frames() * shape.frame_elements()));
    let mut weights = Shared::<[Weights]>::new_slice(comptime!(shape.weight_vectors()));
    // sums[(frame * outputs + output) * rows + row]
    let sums = Registers::<f32>::new(comptime!(shape.sums()), 0.0f32);

    let source = JoinedFrames::new(source, cache, &cache_args, &gather, comptime!(padding[0]));
    if comptime!(shape.prefetch) {
        let frames = frame_offsets(&source, work.first, shape);
        if is_uncached(&source, work.first) {
            sum_ahead(
                &source,
                weight,
                &channels,
                &frames,
                &offsets,
                &weight_offsets,
                work.corner,
                &mut window,
                &mut weights,
                &sums,
                0usize,
                shape,
                unroll,
            );
        } else if is_overlap_cached(&source, work.first, shape) {
            sum_ahead(
                &source,
                weight,
                &channels,
                &frames,
                &offsets,
                &weight_offsets,
                work.corner,
                &mut window,
                &mut weights,
                &sums,
                comptime!(shape.overlap()),
                shape,
                unroll,
            );
        } else {
            sum_in_turn(
                &source,
                weight,
                &channels,
                &work,
                &offsets,
                &weight_offsets,
                &mut window,
                &mut weights,
                &sums,
                shape,
                unroll,
            );
        }
    } else {
        sum_in_turn(
            &source,
            weight,
            &channels,
            &work,
            &offsets,
            &weight_offsets,
            &mut window,
            &mut weights,
            &sums,
            shape,
            unroll,
        );
    }
    // The window is no longer needed. The sums go through it, so that the epilogue is a loop and not unrolled
    // code for each sum.
    sync_cube();
    let first_output = work.c * comptime!(shape.outputs as u32);
    let out_base = gather.out_at(n, first_output)
        + gather.width.out_offset(work.w)
        + slice as usize * split.slice_stride;
    #[unroll]
    for output in 0..shape.outputs {
        let start = channel_bias(bias, first_output + output as u32);
        stage_output(&sums, &mut window, output, shape);
        let out_base = out_base + gather.out_channel(output as u32);
        write_output(out, &gather, &tiling, &work, &window, start, out_base, shape);
    }
}

/// Accumulates the channels, each loaded while the one before is multiplied. The first `cached` frames of the
/// window are in the cache.
#[cube]
fn sum_ahead<E: Float>(
    source: &JoinedFrames<E>,
    weight: &[E],
    channels: &Channels,
    frames: &Offsets,
    offsets: &LoadOffsets,
    weight_offsets: &Offsets,
    corner: usize,
    window: &mut Shared<[f32]>,
    weights: &mut Shared<[Weights]>,
    sums: &Registers<f32>,
    #[comptime] cached: usize,
    #[comptime] shape: FewOutputsShape,
    #[comptime] unroll: bool,
) {
    let gather = source.gather;
    let end = channels.end;
    let mut c = channels.first;
    let at = channel_at(source, channels, c);
    let values = read_channel(source, &at, frames, offsets, c < end, cached, shape);
    let factors = read_weights(weight, gather.weight_channel(c), weight_offsets, c < end);
    write_channel(&values, window, shape);
    write_weights(factors, weights, shape);
    sync_cube();
    while c < end {
        c += 1u32;
        // Past the last channel nothing is loaded.
        let at = channel_at(source, channels, c);
        let values = read_channel(source, &at, frames, offsets, c < end, cached, shape);
        let factors = read_weights(weight, gather.weight_channel(c), weight_offsets, c < end);
        multiply(&*window, corner, &*weights, sums, shape, unroll);
        sync_cube();
        write_channel(&values, window, shape);
        write_weights(factors, weights, shape);
        sync_cube();
    }
}

/// Accumulates the channels, each loaded and then multiplied.
#[cube]
fn sum_in_turn<E: Float>(
    source: &JoinedFrames<E>,
    weight: &[E],
    channels: &Channels,
    work: &ThreadWork,
    offsets: &LoadOffsets,
    weight_offsets: &Offsets,
    window: &mut Shared<[f32]>,
    weights: &mut Shared<[Weights]>,
    sums: &Registers<f32>,
    #[comptime] shape: FewOutputsShape,
    #[comptime] unroll: bool,
) {
    let mut c = channels.first;
    while c < channels.end {
        let weight_channel = source.gather.weight_channel(c);
        let factors = read_weights(weight, weight_channel, weight_offsets, true.runtime());
        // Every thread has finished with the previous channel.
        sync_cube();
        let at = channel_at(source, channels, c);
        load_channel(source, &at, work.first, offsets, window, shape);
        write_weights(factors, weights, shape);
        sync_cube();
        multiply(&*window, work.corner, &*weights, sums, shape, unroll);
        c += 1u32;
    }
}

/// Accumulates one channel, one window column after the other.
#[cube]
fn multiply(
    window: &Shared<[f32]>,
    corner: usize,
    weights: &Shared<[Weights]>,
    sums: &Registers<f32>,
    #[comptime] shape: FewOutputsShape,
    #[comptime] unroll: bool,
) {
    #[unroll(unroll)]
    for column in 0..shape.tile.taps[2] {
        let factors = read_factors(weights, column * comptime!(shape.column_vectors()), shape);
        let corner = corner + column;
        #[unroll]
        for frame in 0..comptime!(shape.source_frames()) {
            let values = read_values(window, corner, frame, shape);
            add_frame(&values, &factors, frame, sums, shape);
        }
    }
}

/// The weights of one window column.
#[cube]
fn read_factors(
    weights: &Shared<[Weights]>,
    first: usize,
    #[comptime] shape: FewOutputsShape,
) -> Sequence<Weights> {
    let mut factors = Sequence::<Weights>::new();
    #[unroll]
    for vector in 0..comptime!(shape.column_vectors()) {
        factors.push(weights[first + vector]);
    }
    factors
}

/// The elements of one window column that a thread's positions read from a frame, top to bottom.
#[cube]
pub(super) fn read_values(
    window: &Shared<[f32]>,
    corner: usize,
    #[comptime] frame: usize,
    #[comptime] shape: FewOutputsShape,
) -> Sequence<f32> {
    let mut values = Sequence::<f32>::new();
    #[unroll]
    for row in 0..comptime!(shape.tile.rows + shape.tile.taps[1] - 1) {
        values
            .push(window[corner + comptime!(frame * shape.frame_elements() + row * shape.tile.row_pitch())]);
    }
    values
}

/// Accumulates a frame's elements times the weights that lead to output frames of the threadgroup.
#[cube]
fn add_frame(
    values: &Sequence<f32>,
    factors: &Sequence<Weights>,
    #[comptime] frame: usize,
    sums: &Registers<f32>,
    #[comptime] shape: FewOutputsShape,
) {
    #[unroll]
    for product in 0..comptime!(shape.column_weights() * shape.tile.rows) {
        // Positions vary fastest, then the weights in their order: output, depth, row.
        let position = comptime!(product % shape.tile.rows);
        let factor = comptime!(product / shape.tile.rows);
        let output = comptime!(factor % shape.outputs);
        let depth = comptime!(factor / shape.outputs % shape.tile.taps[0]);
        let row = comptime!(factor / shape.outputs / shape.tile.taps[0]);
        if comptime!(frame >= depth && frame - depth < shape.frames) {
            let sum = comptime!(((frame - depth) * shape.outputs + output) * shape.tile.rows + position);
            let weight = factors.index(comptime!(factor / 4)).extract(comptime!(factor % 4));
            sums.set(sum, fma(*values.index(comptime!(row + position)), weight, sums.get(sum)));
        }
    }
}

/// Stores a thread's sums of one output channel to shared memory, rows fastest.
#[cube]
fn stage_output(
    sums: &Registers<f32>,
    window: &mut Shared<[f32]>,
    #[comptime] output: usize,
    #[comptime] shape: FewOutputsShape,
) {
    #[unroll]
    for position in 0..comptime!(shape.frames * shape.tile.rows) {
        let frame = comptime!(position / shape.tile.rows);
        let row = comptime!(position % shape.tile.rows);
        window[UNIT_POS as usize + comptime!(position * shape.tile.threads)] =
            sums.get(comptime!((frame * shape.outputs + output) * shape.tile.rows + row));
    }
}

/// Epilogue: bias, activation, rounding, and a store masked to the H x W slice and the last frame.
#[cube]
fn write_output<O: Float>(
    out: &mut [O],
    gather: &GatherArgs,
    tiling: &FrameTiling,
    work: &ThreadWork,
    window: &Shared<[f32]>,
    start: f32,
    out_base: usize,
    #[comptime] shape: FewOutputsShape,
) {
    let mut position = 0u32.runtime();
    while position < comptime!((shape.frames * shape.tile.rows) as u32) {
        let d = work.first + position / comptime!(shape.tile.rows as u32);
        let h = work.h + position % comptime!(shape.tile.rows as u32);
        if d < work.end && h < tiling.height && work.w < tiling.width {
            let sum = window[UNIT_POS as usize + position as usize * shape.tile.threads];
            let at = out_base + gather.depth.out_offset(d) + gather.height.out_offset(h);
            out[at] = O::cast_from(activate_by_code(sum + start, tiling.activation));
        }
        position += 1u32;
    }
}
