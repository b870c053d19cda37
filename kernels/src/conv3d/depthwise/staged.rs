//! Depthwise conv3d, forward and input gradient, stride and dilation 1, through shared memory. Tile:
//! [`crate::conv3d::frames`].
//!
//! ```text
//! y[n, c, d, h, w] = activation( bias[c] + sum over kd, kh, kw of
//!                                x[n, c, d + kd, h + kh, w + kw] * weight[c, kd, kh, kw] )
//!
//! frame in shared memory    f       f + 1   f + 2     the next frame is in flight to registers
//! pending results, KD = 3   f       f + 1   f + 2     newest, starts at zero
//!                           f - 1   f       f + 1
//!                           f - 2   f - 1   f         oldest, complete with this frame: stored
//! ```
//!
//! Layouts: any strides. A threadgroup marches along depth; the KD pending results of each position stay in
//! registers. Per frame, thread and tap there is one multiply-add for each of the thread's `rows` positions.
//! Bytes: each frame once (with the tile's halo), each result once. FLOP of a frame:
//! `2 * threads * rows * taps`. Declined: stride, dilation and windows of more than 80 taps ([`super::march`]
//! serves strides and dilation).

use super::march::age;
use crate::activation::activate_by_code;
use crate::conv3d::cache::{CacheArgs, ChannelAt, JoinedFrames};
use crate::conv3d::epilogue::channel_bias;
use crate::conv3d::frames::{
    FrameTile, FrameTiling, LoadOffsets, ThreadWork, load_offsets, read_column, read_frame, write_frame,
};
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// A vector of weights, read from shared memory at once.
type Weights = Vector<f32, Const<4>>;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn staged_kernel<E: Float, O: Float>(
    source: &[E],
    cache: ComptimeOption<&[E]>,
    weight: &[E],
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    gather: GatherArgs,
    cache_args: ComptimeOption<CacheArgs>,
    tiling: FrameTiling,
    span: Span,
    #[comptime] pass: Pass,
    // Along depth, and along H and W.
    #[comptime] padding: [PaddingMode; 2],
    #[comptime] tile: FrameTile,
    // For the kernel's key, in which optional arguments do not count.
    #[comptime] _has_cache: bool,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole threadgroup exits: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let work = tiling.thread_work(span.index() as u32, tile);
    let weights = stage_weights(weight, &gather, work.c, pass, tile);
    let offsets = load_offsets(&gather, &work, comptime!(padding[1]), tile);
    let frames = JoinedFrames::new(source, cache, &cache_args, &gather, comptime!(padding[0]));
    let channel = frames.channel_at(work.n, work.c);
    let start = channel_bias(bias, work.c);
    let out_column = gather.out_at(work.n, work.c) + gather.width.out_offset(work.w);

    let mut stage = Shared::<[f32]>::new_slice(comptime!(tile.loads() * tile.threads));
    // sums[age * rows + row]: the result that this frame contributes to with depth tap `age`.
    let sums = Registers::<f32>::new(comptime!(tile.taps[0] * tile.rows), 0.0f32);
    let halo = comptime!(tile.taps[0] as u32 - 1);
    let mut frame = work.first;
    stage_frame(&frames, &channel, frame, &offsets, &mut stage, tile);
    sync_cube();
    while frame < work.end + halo {
        // The next frame is prefetched while this one is multiplied; past the last there is nothing to load.
        let exists = frame + 1u32 < work.end + halo;
        let at = frames.at(gather.depth.coordinate(frame + 1u32));
        let inside = at.inside && exists;
        // A frame is in one of the two tensors. The end of a branch waits for loads: each has the whole step.
        if at.in_cache {
            let next = read_frame(frames.cache.unwrap(), channel.cache, at.offset, inside, &offsets, tile);
            step(
                &next, &mut stage, &weights, &sums, out, &gather, &tiling, &work, start, out_column, frame,
                tile,
            );
        } else {
            let next = read_frame(source, channel.source, at.offset, inside, &offsets, tile);
            step(
                &next, &mut stage, &weights, &sums, out, &gather, &tiling, &work, start, out_column, frame,
                tile,
            );
        }
        frame += 1u32;
        sync_cube();
    }
}

/// Stages a frame from the tensor that has it.
#[cube]
pub(super) fn stage_frame<E: Float>(
    frames: &JoinedFrames<E>,
    channel: &ChannelAt,
    frame: u32,
    offsets: &LoadOffsets,
    stage: &mut Shared<[f32]>,
    #[comptime] tile: FrameTile,
) {
    let at = frames.at(frames.gather.depth.coordinate(frame));
    if at.in_cache {
        let cache = frames.cache.unwrap();
        let values = read_frame(cache, channel.cache, at.offset, at.inside, offsets, tile);
        write_frame(&values, stage, tile);
    } else {
        let values = read_frame(frames.source, channel.source, at.offset, at.inside, offsets, tile);
        write_frame(&values, stage, tile);
    }
}

/// Accumulates the frame in shared memory, stores the results that are complete with it, and puts the next
/// frame, which is in flight, in its place.
#[cube]
fn step<E: Float, O: Float>(
    next: &Sequence<E>,
    stage: &mut Shared<[f32]>,
    weights: &Shared<[Weights]>,
    sums: &Registers<f32>,
    out: &mut [O],
    gather: &GatherArgs,
    tiling: &FrameTiling,
    work: &ThreadWork,
    start: f32,
    out_column: usize,
    frame: u32,
    #[comptime] tile: FrameTile,
) {
    let halo = comptime!(tile.taps[0] as u32 - 1);
    add_frame(&*stage, work.corner, weights, sums, tile);
    if frame >= work.first + halo {
        write_rows(out, gather, tiling, work, sums, start, out_column, frame - halo, tile);
    }
    age(sums, tile.rows);
    sync_cube();
    write_frame(next, stage, tile);
}

/// Stages the channel's weights in shared memory, in the order of use: column, row, depth.
#[cube]
fn stage_weights<E: Float>(
    weight: &[E],
    gather: &GatherArgs,
    c: u32,
    #[comptime] pass: Pass,
    #[comptime] tile: FrameTile,
) -> Shared<[Weights]> {
    let vectors = comptime!(tile.tap_count().div_ceil(4));
    let mut shared = Shared::<[Weights]>::new_slice(vectors);
    if (UNIT_POS as usize) < vectors {
        let mut weights = Weights::new(0.0f32);
        #[unroll]
        for i in 0..4usize {
            let tap = UNIT_POS * 4u32 + i as u32;
            if tap < comptime!(tile.tap_count() as u32) {
                let d = tap % tile.taps[0] as u32;
                let cell = tap / tile.taps[0] as u32;
                let at = gather.weight_group(c)
                    + gather.depth.weight_offset(d, pass)
                    + gather.height.weight_offset(cell % tile.taps[1] as u32, pass)
                    + gather.width.weight_offset(cell / tile.taps[1] as u32, pass);
                weights.insert(i, f32::cast_from(weight[at]));
            }
        }
        shared[UNIT_POS as usize] = weights;
    }
    shared
}

/// Accumulates one frame.
#[cube]
fn add_frame(
    stage: &Shared<[f32]>,
    corner: usize,
    weights: &Shared<[Weights]>,
    sums: &Registers<f32>,
    #[comptime] tile: FrameTile,
) {
    #[unroll]
    for column in 0..tile.taps[2] {
        let values = read_column(stage, corner, column, tile);
        #[unroll]
        for row in 0..tile.taps[1] {
            #[unroll]
            for age in 0..tile.taps[0] {
                let tap = comptime!((column * tile.taps[1] + row) * tile.taps[0] + age);
                let weight = weights[comptime!(tap / 4)].extract(comptime!(tap % 4));
                #[unroll]
                for row_of_thread in 0..tile.rows {
                    let sum = comptime!(age * tile.rows + row_of_thread);
                    sums.set(sum, fma(*values.index(comptime!(row + row_of_thread)), weight, sums.get(sum)));
                }
            }
        }
    }
}

/// Epilogue of the oldest results: bias, activation, rounding, masked store.
#[cube]
fn write_rows<O: Float>(
    out: &mut [O],
    gather: &GatherArgs,
    tiling: &FrameTiling,
    work: &ThreadWork,
    sums: &Registers<f32>,
    bias: f32,
    out_column: usize,
    d: u32,
    #[comptime] tile: FrameTile,
) {
    #[unroll]
    for i in 0..tile.rows {
        let row = work.h + i as u32;
        if row < tiling.height && work.w < tiling.width {
            let sum = sums.get(comptime!((tile.taps[0] - 1) * tile.rows + i));
            let at = out_column + gather.depth.out_offset(d) + gather.height.out_offset(row);
            out[at] = O::cast_from(activate_by_code(sum + bias, tiling.activation));
        }
    }
}
