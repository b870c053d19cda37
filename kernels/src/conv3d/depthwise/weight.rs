//! Depthwise weight gradient for any stride and dilation: one threadgroup per channel and split-K slice.
//!
//! ```text
//! partial[slice, c, tap] = sum over the slice's positions q of x(q * stride + tap * dilation - pad) * dy(q)
//!
//!     marches of the channel (all images)   | slice 0        | slice 1        | ..      one threadgroup each
//!     of a slice                            | thread 0, 1, 2, .., threads - 1, 0, 1, .. one march at a time
//! ```
//!
//! Layouts: x and dy with any strides; the partials are fp32, in the weight's order, and `reduce.rs` adds
//! them.
//!
//! A thread marches along depth with one accumulator per tap in registers: per frame it loads KH * KW
//! elements of x and one of dy for KD * KH * KW multiply-adds; the last KD values of dy stay in registers. If
//! the window has more taps than registers hold, a threadgroup computes one depth tap. At the end the
//! threads' accumulators are added in shared memory, in a fixed order. Bytes: x and dy once from device
//! memory (KD times from the cache), and `threads * (taps + 1) * 4` bytes of shared memory. FLOP:
//! `2 * positions * taps` per channel. Declined: as [`super::march`].

use super::march::{MarchWindow, MarchWork, WindowOffsets, read_frame, window_offsets};
use crate::conv3d::cache::{CacheArgs, ChannelAt, JoinedFrames};
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Accumulators of a thread at most.
pub(super) const MAX_SUMS: usize = 32;

/// Threads of a threadgroup whose accumulators fit shared memory.
pub(super) fn threads(sums: usize) -> usize {
    if sums <= 28 { 256 } else { 64 }
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn weight_kernel<E: Float, O: Float>(
    source: &[E],
    cache: ComptimeOption<&[E]>,
    dy: &[E],
    out: &mut [O],
    gather: GatherArgs,
    cache_args: ComptimeOption<CacheArgs>,
    work: MarchWork,
    slice_length: usize,
    span: Span,
    // Along depth, and along H and W.
    #[comptime] padding: [PaddingMode; 2],
    #[comptime] window: MarchWindow,
    // For the kernel's key, in which optional arguments do not count.
    #[comptime] _has_cache: bool,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole threadgroup exits: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let (rest, depth_tap) = work.threadgroups.div_mod(span.index() as u32);
    let (slice, c) = work.channels.div_mod(rest);
    let first = slice as usize * slice_length;
    let end = min(first + slice_length, work.marches as usize);
    let taps = comptime!(window.tap_count());
    let threads = window.threads;
    let sums = Registers::<f32>::new(taps, 0.0f32);
    let frames = JoinedFrames::new(source, cache, &cache_args, &gather, comptime!(padding[0]));
    let mut index = first + UNIT_POS as usize;
    while index < end {
        march(&frames, dy, &work, index as u32, c, depth_tap, &sums, comptime!(padding[1]), window);
        index += threads;
    }

    let mut shared = Shared::<[f32]>::new_slice(comptime!(threads * (taps + 1)));
    let thread = UNIT_POS as usize;
    #[unroll]
    for tap in 0..taps {
        shared[thread * comptime!(taps + 1) + tap] = sums.get(tap);
    }
    sync_cube();
    let out_base = (slice * work.channel_count + c) as usize * work.taps as usize + depth_tap as usize * taps;
    // Segments of threads first, then the segments of each tap: at most 16 segments.
    let segments = comptime!((threads / taps).clamp(1, 16));
    let mut total = 0.0f32;
    let mut item = thread;
    while item < comptime!(segments * taps) {
        let segment = item / taps;
        let tap = item % taps;
        total = 0.0f32;
        for other in segment * threads / segments..(segment + 1usize) * threads / segments {
            total += shared[other * comptime!(taps + 1) + tap];
        }
        if comptime!(segments == 1) {
            out[out_base + tap] = O::cast_from(total);
        }
        item += threads;
    }
    if comptime!(segments > 1) {
        sync_cube();
        if thread < comptime!(segments * taps) {
            shared[thread] = total;
        }
        sync_cube();
        if thread < taps {
            let mut sum = 0.0f32;
            for segment in 0..segments {
                sum += shared[segment * taps + thread];
            }
            out[out_base + thread] = O::cast_from(sum);
        }
    }
}

/// Accumulates one march: a chunk of frames at one position of one image's H x W slice.
#[cube]
fn march<E: Float>(
    frames: &JoinedFrames<E>,
    dy: &[E],
    work: &MarchWork,
    index: u32,
    c: u32,
    depth_tap: u32,
    sums: &Registers<f32>,
    // Along H and W.
    #[comptime] padding: PaddingMode,
    #[comptime] window: MarchWindow,
) {
    let gather = frames.gather;
    let (rest, w) = work.width.div_mod(index);
    let (rest, h) = work.blocks.div_mod(rest);
    let (n, chunk) = work.chunks.div_mod(rest);
    let first = chunk * work.chunk;
    let end = min(first + work.chunk, work.depth);
    let channel = frames.channel_at(n, c);
    let offsets = window_offsets(gather, h, w, padding, window);
    let dy_column = gather.out_at(n, c) + gather.height.out_offset(h) + gather.width.out_offset(w);
    // recent[age]: dy of the position for which this frame is depth tap `age`.
    let recent = Registers::<f32>::new(window.taps[0], 0.0f32);
    if comptime!(window.reuses_frames) {
        for frame in first..end + comptime!(window.taps[0] as u32 - 1) {
            recent.shift(1usize);
            let mut youngest = 0.0f32;
            if frame < end {
                youngest = f32::cast_from(dy[dy_column + gather.depth.out_offset(frame)]);
            }
            recent.set(0usize, youngest);
            let depth = gather.depth.coordinate(frame);
            let taps = comptime!((0usize, window.taps[0]));
            add_depth(frames, &channel, depth, &offsets, &recent, sums, taps, window);
        }
    } else {
        for d in first..end {
            let gradient = f32::cast_from(dy[dy_column + gather.depth.out_offset(d)]);
            #[unroll]
            for tap in 0..window.taps[0] {
                recent.set(tap, gradient);
                let depth =
                    gather.depth.coordinate(d) + ((depth_tap + tap as u32) * gather.depth.step) as i32;
                let taps = comptime!((tap, tap + 1));
                add_depth(frames, &channel, depth, &offsets, &recent, sums, taps, window);
            }
        }
    }
}

/// Accumulates the frame at `depth`, if there is one, times dy for the depth taps `taps.0..taps.1`.
#[cube]
fn add_depth<E: Float>(
    frames: &JoinedFrames<E>,
    channel: &ChannelAt,
    depth: i32,
    offsets: &WindowOffsets,
    recent: &Registers<f32>,
    sums: &Registers<f32>,
    #[comptime] taps: (usize, usize),
    #[comptime] window: MarchWindow,
) {
    let at = frames.at(depth);
    if at.inside {
        // The end of a branch waits for loads: it has their use, too.
        if at.in_cache {
            let frame = channel.cache + at.offset;
            add_frame(frames.cache.unwrap(), frame, offsets, recent, sums, taps.0, taps.1, window);
        } else {
            let frame = channel.source + at.offset;
            add_frame(frames.source, frame, offsets, recent, sums, taps.0, taps.1, window);
        }
    }
}

/// Accumulates a frame times dy for depth taps `first_tap..end_tap`.
#[cube]
fn add_frame<E: Float>(
    source: &[E],
    frame: usize,
    offsets: &WindowOffsets,
    recent: &Registers<f32>,
    sums: &Registers<f32>,
    #[comptime] first_tap: usize,
    #[comptime] end_tap: usize,
    #[comptime] window: MarchWindow,
) {
    let values = read_frame(source, frame, offsets, window.taps[1], window.taps[2]);
    #[unroll]
    for cell in 0..comptime!(window.taps[1] * window.taps[2]) {
        #[unroll]
        for tap in first_tap..end_tap {
            let sum = comptime!(tap * window.taps[1] * window.taps[2] + cell);
            sums.set(sum, fma(*values.index(cell), recent.get(tap), sums.get(sum)));
        }
    }
}
