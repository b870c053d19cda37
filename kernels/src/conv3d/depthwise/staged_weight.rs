//! Depthwise weight gradient, stride and dilation 1, through shared memory. Tile: [`crate::conv3d::frames`].
//!
//! ```text
//! partial[slice, c, tap] = sum over the slice's positions q of x(q + tap) * dy(q)
//! partial[slice, c]      = sum over them of dy(q), if the bias gradient is asked for
//!
//!     one threadgroup = one tile of an image's H x W slice, marching along a chunk of its depth:
//!     x frame -> shared memory    dy of the last KD frames -> registers    accumulators [kw, kh, kd]
//! ```
//!
//! Layouts: x and dy with any strides; the partials are fp32, in the weight's order, and `reduce.rs` adds
//! them.
//!
//! A thread holds an accumulator for every tap, and dy of its positions for the last KD frames; per frame,
//! position and tap there is one multiply-add. At the end the threads' accumulators are added in shared
//! memory, some taps at a time, in a fixed order. The bias gradient costs far less here than a pass of its
//! own over dy. Bytes: x once (with the tile's halo), dy once. FLOP of a frame: `2 * threads * rows * taps`.
//!
//! Declined: stride, dilation and windows of more than 80 taps ([`super::weight`] serves strides and
//! dilation).

use super::staged::stage_frame;
use crate::conv3d::cache::{CacheArgs, JoinedFrames};
use crate::conv3d::frames::{
    FrameTile, FrameTiling, ReductionLayout, ThreadWork, load_offsets, read_column, read_frame,
    reduce_threads, write_frame,
};
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn staged_weight_kernel<E: Float, O: Float>(
    source: &[E],
    cache: ComptimeOption<&[E]>,
    dy: &[E],
    out: &mut [O],
    gather: GatherArgs,
    cache_args: ComptimeOption<CacheArgs>,
    tiling: FrameTiling,
    slice_stride: usize,
    span: Span,
    #[comptime] bias: bool,
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
    let offsets = load_offsets(&gather, &work, comptime!(padding[1]), tile);
    let frames = JoinedFrames::new(source, cache, &cache_args, &gather, comptime!(padding[0]));
    let channel = frames.channel_at(work.n, work.c);
    let dy_column = gather.out_at(work.n, work.c) + gather.width.out_offset(work.w);

    let mut stage = Shared::<[f32]>::new_slice(comptime!(tile.loads() * tile.threads));
    // sums[(column * KH + row) * KD + depth], then the sum of dy.
    let sums = Registers::<f32>::new(comptime!(tile.tap_count() + usize::from(bias)), 0.0f32);
    // recent[age * rows + row]: dy of the position for which this frame is depth tap `age`.
    let recent = Registers::<f32>::new(comptime!(tile.taps[0] * tile.rows), 0.0f32);
    let halo = comptime!(tile.taps[0] as u32 - 1);
    let mut frame = work.first;
    stage_frame(&frames, &channel, frame, &offsets, &mut stage, tile);
    read_gradients(dy, &gather, &tiling, &work, dy_column, frame, &recent, tile);
    add_bias(&recent, &sums, bias, tile);
    sync_cube();
    while frame < work.end + halo {
        // As in the forward pass.
        let exists = frame + 1u32 < work.end + halo;
        let at = frames.at(gather.depth.coordinate(frame + 1u32));
        let inside = at.inside && exists;
        if at.in_cache {
            let next = read_frame(frames.cache.unwrap(), channel.cache, at.offset, inside, &offsets, tile);
            step(
                &next, &mut stage, dy, &recent, &sums, &gather, &tiling, &work, dy_column, frame, bias, tile,
            );
        } else {
            let next = read_frame(source, channel.source, at.offset, inside, &offsets, tile);
            step(
                &next, &mut stage, dy, &recent, &sums, &gather, &tiling, &work, dy_column, frame, bias, tile,
            );
        }
        frame += 1u32;
        sync_cube();
    }
    let slice = (work.n * tiling.threadgroups + work.threadgroup) as usize * slice_stride;
    let out_base = slice + work.c as usize * tile.tap_count();
    let bias_out = slice + tiling.channel_count as usize * tile.tap_count() + work.c as usize;
    let of = comptime!(ReductionLayout::of(&tile, 1, bias));
    reduce_threads(&sums, &mut stage, out, out_base, 0usize.runtime(), bias_out, of);
}

/// Accumulates the frame in shared memory, and puts the next one, which is in flight, in its place.
#[cube]
fn step<E: Float>(
    next: &Sequence<E>,
    stage: &mut Shared<[f32]>,
    dy: &[E],
    recent: &Registers<f32>,
    sums: &Registers<f32>,
    gather: &GatherArgs,
    tiling: &FrameTiling,
    work: &ThreadWork,
    dy_column: usize,
    frame: u32,
    #[comptime] bias: bool,
    #[comptime] tile: FrameTile,
) {
    add_frame(&*stage, work.corner, recent, sums, tile);
    recent.shift(tile.rows);
    read_gradients(dy, gather, tiling, work, dy_column, frame + 1u32, recent, tile);
    sync_cube();
    write_frame(next, stage, tile);
    add_bias(recent, sums, bias, tile);
}

/// Adds a frame's dy, as [`read_gradients`] has loaded it, to the sum behind those of the taps.
#[cube]
fn add_bias(
    recent: &Registers<f32>,
    sums: &Registers<f32>,
    #[comptime] bias: bool,
    #[comptime] tile: FrameTile,
) {
    if comptime!(bias) {
        #[unroll]
        for row_of_thread in 0..tile.rows {
            sums.set(tile.tap_count(), sums.get(tile.tap_count()) + recent.get(row_of_thread));
        }
    }
}

/// Loads dy of a thread's positions of a frame: zero past the chunk's last frame and outside the H x W slice.
#[cube]
fn read_gradients<E: Float>(
    dy: &[E],
    gather: &GatherArgs,
    tiling: &FrameTiling,
    work: &ThreadWork,
    dy_column: usize,
    frame: u32,
    recent: &Registers<f32>,
    #[comptime] tile: FrameTile,
) {
    #[unroll]
    for i in 0..tile.rows {
        let row = work.h + i as u32;
        let mut value = 0.0f32;
        if frame < work.end && row < tiling.height && work.w < tiling.width {
            let at = dy_column + gather.depth.out_offset(frame) + gather.height.out_offset(row);
            value = f32::cast_from(dy[at]);
        }
        recent.set(i, value);
    }
}

/// Accumulates one frame.
#[cube]
fn add_frame(
    stage: &Shared<[f32]>,
    corner: usize,
    recent: &Registers<f32>,
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
                #[unroll]
                for row_of_thread in 0..tile.rows {
                    let gradient = recent.get(comptime!(age * tile.rows + row_of_thread));
                    sums.set(
                        tap,
                        fma(*values.index(comptime!(row + row_of_thread)), gradient, sums.get(tap)),
                    );
                }
            }
        }
    }
}
