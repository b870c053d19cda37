//! Depthwise weight gradient: one cube per channel and part of the windows.
//!
//! ```text
//! partial[part, c, tap] = sum over the part's windows q of x(q + tap) * dy(q)
//! ```
//!
//! A unit marches along depth with one sum per tap in registers: per frame KH * KW values of x and one of dy
//! are read for KD * KH * KW products; the last KD values of dy wait in registers. Of a window with more taps
//! than registers hold, a cube takes one depth tap. At the end the units' sums meet in shared memory, in a
//! fixed order. Bytes: x and dy once from memory (KD times from the cache). `units * (taps + 1) * 4` bytes of
//! shared memory.

use super::march::{Plane, Share, Window, plane, read_frame};
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Sums that a unit holds at most.
pub(super) const MOST_SUMS: usize = 32;

/// Units of a cube whose sums fit shared memory.
pub(super) fn units(sums: usize) -> usize {
    if sums <= 28 { 256 } else { 64 }
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn weight_kernel<E: Float, O: Float>(
    source: &[E],
    dy: &[E],
    out: &mut [O],
    walk: GatherArgs,
    share: Share,
    part_length: usize,
    span: Span,
    #[comptime] padding: PaddingMode,
    #[comptime] window: Window,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let (rest, depth_tap) = share.cubes.div_mod(span.cube() as u32);
    let (part, c) = share.channels.div_mod(rest);
    let first = part as usize * part_length;
    let end = min(first + part_length, share.marches as usize);
    let taps = comptime!(window.count());
    let units = window.units;
    let sums = Registers::<f32>::new(taps, 0.0f32);
    let mut index = first + UNIT_POS as usize;
    while index < end {
        march(source, dy, &walk, &share, index as u32, c, depth_tap, &sums, padding, window);
        index += units;
    }

    let mut shared = Shared::<[f32]>::new_slice(comptime!(units * (taps + 1)));
    let unit = UNIT_POS as usize;
    #[unroll]
    for tap in 0..taps {
        shared[unit * comptime!(taps + 1) + tap] = sums.get(tap);
    }
    sync_cube();
    let first_out =
        (part * share.channel_count + c) as usize * share.taps as usize + depth_tap as usize * taps;
    // Segments of units first, then the segments of each tap: sixteen sixteens at most.
    let segments = comptime!((units / taps).clamp(1, 16));
    let mut total = 0.0f32;
    let mut item = unit;
    while item < comptime!(segments * taps) {
        let segment = item / taps;
        let tap = item % taps;
        total = 0.0f32;
        for other in segment * units / segments..(segment + 1usize) * units / segments {
            total += shared[other * comptime!(taps + 1) + tap];
        }
        if comptime!(segments == 1) {
            out[first_out + tap] = O::cast_from(total);
        }
        item += units;
    }
    if comptime!(segments > 1) {
        sync_cube();
        if unit < comptime!(segments * taps) {
            shared[unit] = total;
        }
        sync_cube();
        if unit < taps {
            let mut sum = 0.0f32;
            for segment in 0..segments {
                sum += shared[segment * taps + unit];
            }
            out[first_out + unit] = O::cast_from(sum);
        }
    }
}

/// Adds one march: a chunk of frames at one place of one image's plane.
#[cube]
#[allow(clippy::too_many_arguments)]
fn march<E: Float>(
    source: &[E],
    dy: &[E],
    walk: &GatherArgs,
    share: &Share,
    index: u32,
    c: u32,
    depth_tap: u32,
    sums: &Registers<f32>,
    #[comptime] padding: PaddingMode,
    #[comptime] window: Window,
) {
    let (rest, w) = share.width.div_mod(index);
    let (rest, h) = share.blocks.div_mod(rest);
    let (n, chunk) = share.chunks.div_mod(rest);
    let first = chunk * share.chunk;
    let end = min(first + share.chunk, share.depth);
    let base = walk.source_at(n, c);
    let plane = plane(walk, h, w, padding, window);
    let dy_column = walk.out_at(n, c) + walk.height.out_offset(h) + walk.width.out_offset(w);
    // recent[age]: dy of the window that this frame is depth tap `age` of.
    let recent = Registers::<f32>::new(window.taps[0], 0.0f32);
    if comptime!(window.marches) {
        for frame in first..end + comptime!(window.taps[0] as u32 - 1) {
            recent.shift(1usize);
            let mut youngest = 0.0f32;
            if frame < end {
                youngest = f32::cast_from(dy[dy_column + walk.depth.out_offset(frame)]);
            }
            recent.set(0usize, youngest);
            let (at, inside) = walk.depth.load_offset(walk.depth.coordinate(frame), padding);
            if inside {
                add_frame(source, base + at, &plane, &recent, sums, 0usize, window.taps[0], window);
            }
        }
    } else {
        for d in first..end {
            let gradient = f32::cast_from(dy[dy_column + walk.depth.out_offset(d)]);
            #[unroll]
            for tap in 0..window.taps[0] {
                recent.set(tap, gradient);
                let coordinate =
                    walk.depth.coordinate(d) + ((depth_tap + tap as u32) * walk.depth.step) as i32;
                let (at, inside) = walk.depth.load_offset(coordinate, padding);
                if inside {
                    add_frame(source, base + at, &plane, &recent, sums, tap, comptime!(tap + 1), window);
                }
            }
        }
    }
}

/// Adds a frame's products with dy for depth taps `first_tap..end_tap`.
#[cube]
#[allow(clippy::too_many_arguments)]
fn add_frame<E: Float>(
    source: &[E],
    frame: usize,
    plane: &Plane,
    recent: &Registers<f32>,
    sums: &Registers<f32>,
    #[comptime] first_tap: usize,
    #[comptime] end_tap: usize,
    #[comptime] window: Window,
) {
    let values = read_frame(source, frame, plane, window.taps[1], window.taps[2]);
    #[unroll]
    for cell in 0..comptime!(window.taps[1] * window.taps[2]) {
        #[unroll]
        for tap in first_tap..end_tap {
            let sum = comptime!(tap * window.taps[1] * window.taps[2] + cell);
            sums.set(sum, fma(*values.index(cell), recent.get(tap), sums.get(sum)));
        }
    }
}
