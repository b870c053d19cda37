//! How a threadgroup of the kernels for few outputs loads one channel: its window of source frames, and its
//! weights. With prefetch all loads of a channel are in flight while the previous channel is multiplied; else
//! a loop loads the frames one after the other.
//!
//! The first frames of a stream's window may be in its cache. A window is prefetched if the source has all of
//! its frames, or the cache exactly the frames that windows overlap by: which loads read the cache is then
//! known at compile time. Other windows are loaded frame by frame.

use super::config::FewOutputsShape;
use super::kernel::Weights;
use crate::conv3d::cache::{ChannelAt, JoinedFrames};
use crate::conv3d::frames::{LoadOffsets, read_frame};
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::pass::Pass;
use cubecl::prelude::*;

/// Offsets in a tensor, and whether each element exists.
#[derive(CubeType)]
pub(super) struct Offsets {
    at: Sequence<usize>,
    exists: Sequence<bool>,
}

/// Offsets of the window's frames within a channel of the tensors that have them, and whether each is inside.
#[cube]
pub(super) fn frame_offsets<E: Float>(
    source: &JoinedFrames<E>,
    first: u32,
    #[comptime] shape: FewOutputsShape,
) -> Offsets {
    let mut at = Sequence::<usize>::new();
    let mut exists = Sequence::<bool>::new();
    #[unroll]
    for frame in 0..comptime!(shape.source_frames()) {
        let frame = source.at(source.gather.depth.coordinate(first + frame as u32));
        at.push(frame.offset);
        exists.push(frame.inside);
    }
    Offsets { at, exists }
}

/// Whether the cache has none of the window's frames from `first` on.
#[cube]
pub(super) fn is_uncached<E: Float>(source: &JoinedFrames<E>, first: u32) -> bool {
    #[comptime]
    match source.cache_args {
        ComptimeOption::Some(cache) => source.gather.depth.coordinate(first) >= cache.frames as i32,
        ComptimeOption::None => true.runtime(),
    }
}

/// Whether the cache has the window's first frames, as many as windows overlap, and no more.
#[cube]
pub(super) fn is_overlap_cached<E: Float>(
    source: &JoinedFrames<E>,
    first: u32,
    #[comptime] shape: FewOutputsShape,
) -> bool {
    #[comptime]
    match source.cache_args {
        ComptimeOption::Some(cache) => {
            let first = source.gather.depth.coordinate(first);
            first + comptime!(shape.overlap() as i32) == cache.frames as i32
        }
        ComptimeOption::None => false.runtime(),
    }
}

/// The channels of a group that a threadgroup sums.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Channels {
    pub(super) first: u32,
    pub(super) end: u32,
    /// The image, the group's first channel, and its offset in the source.
    pub(super) image: u32,
    pub(super) group: u32,
    pub(super) base: usize,
}

/// Channel `c` of a group.
#[cube]
pub(super) fn channel_at<E: Float>(from: &JoinedFrames<E>, channels: &Channels, c: u32) -> ChannelAt {
    let source = channels.base + from.gather.source_channel(c);
    #[comptime]
    match from.cache_args {
        ComptimeOption::Some(cache) => {
            ChannelAt { source, cache: cache.channel_at(channels.image, channels.group + c) }
        }
        ComptimeOption::None => ChannelAt { source, cache: source },
    }
}

/// Offsets of the four weights of this thread's vector, in the order of use: column, row, depth, output.
#[cube]
pub(super) fn weight_offsets(
    gather: &GatherArgs,
    group: u32,
    #[comptime] pass: Pass,
    #[comptime] shape: FewOutputsShape,
) -> Offsets {
    let mut at = Sequence::<usize>::new();
    let mut exists = Sequence::<bool>::new();
    let vector = UNIT_POS % comptime!(shape.column_vectors() as u32);
    let column = UNIT_POS / comptime!(shape.column_vectors() as u32);
    #[unroll]
    for i in 0..4usize {
        let factor = vector * 4u32 + i as u32;
        let output = factor % comptime!(shape.outputs as u32);
        let rest = factor / comptime!(shape.outputs as u32);
        let depth = rest % comptime!(shape.tile.taps[0] as u32);
        let row = rest / comptime!(shape.tile.taps[0] as u32);
        at.push(
            gather.weight_group(group)
                + gather.weight_column(output)
                + gather.depth.weight_offset(depth, pass)
                + gather.height.weight_offset(row, pass)
                + gather.width.weight_offset(column, pass),
        );
        exists.push(
            factor < comptime!(shape.column_weights() as u32)
                && column < comptime!(shape.tile.taps[2] as u32),
        );
    }
    Offsets { at, exists }
}

/// Loads this thread's elements of a channel's window into registers; elements outside the source are zero.
/// The first `cached` frames are in the cache.
#[cube]
pub(super) fn read_channel<E: Float>(
    source: &JoinedFrames<E>,
    channel: &ChannelAt,
    frames: &Offsets,
    offsets: &LoadOffsets,
    exists: bool,
    #[comptime] cached: usize,
    #[comptime] shape: FewOutputsShape,
) -> Sequence<E> {
    let mut values = Sequence::<E>::new();
    if comptime!(cached > 0) {
        let cache = source.cache.unwrap();
        read_frames(&mut values, cache, channel.cache, frames, offsets, exists, 0usize, cached, shape);
    }
    let end = comptime!(shape.source_frames());
    read_frames(&mut values, source.source, channel.source, frames, offsets, exists, cached, end, shape);
    values
}

/// Loads this thread's elements of the frames `first..end` of a channel's window.
#[cube]
fn read_frames<E: Float>(
    values: &mut Sequence<E>,
    source: &[E],
    channel: usize,
    frames: &Offsets,
    offsets: &LoadOffsets,
    exists: bool,
    #[comptime] first: usize,
    #[comptime] end: usize,
    #[comptime] shape: FewOutputsShape,
) {
    #[unroll]
    for load in comptime!(first * shape.tile.loads())..comptime!(end * shape.tile.loads()) {
        let frame = comptime!(load / shape.tile.loads());
        let offset = comptime!(load % shape.tile.loads());
        let mut value = E::from_int(0);
        if exists && *frames.exists.index(frame) && *offsets.inside.index(offset) {
            value = source[channel + *frames.at.index(frame) + *offsets.at.index(offset)];
        }
        values.push(value);
    }
}

/// Stores what [`read_channel`] has loaded to shared memory.
#[cube]
pub(super) fn write_channel<E: Float>(
    values: &Sequence<E>,
    window: &mut Shared<[f32]>,
    #[comptime] shape: FewOutputsShape,
) {
    #[unroll]
    for load in 0..comptime!(shape.loads()) {
        window[UNIT_POS as usize + comptime!(load * shape.tile.threads)] =
            f32::cast_from(*values.index(load));
    }
}

/// Loads a channel's window, one frame after the other: few loads in flight leave registers for more threads,
/// which hide their latency.
#[cube]
pub(super) fn load_channel<E: Float>(
    source: &JoinedFrames<E>,
    channel: &ChannelAt,
    first: u32,
    offsets: &LoadOffsets,
    window: &mut Shared<[f32]>,
    #[comptime] shape: FewOutputsShape,
) {
    let mut frame = 0u32.runtime();
    while frame < comptime!(shape.source_frames() as u32) {
        let at = source.at(source.gather.depth.coordinate(first + frame));
        // The end of a branch waits for loads: it has the stores, too.
        if at.in_cache {
            let cache = source.cache.unwrap();
            let values = read_frame(cache, channel.cache, at.offset, at.inside, offsets, shape.tile);
            write_frame(&values, window, frame, shape);
        } else {
            let from = source.source;
            let values = read_frame(from, channel.source, at.offset, at.inside, offsets, shape.tile);
            write_frame(&values, window, frame, shape);
        }
        frame += 1u32;
    }
}

/// Stores a frame of a channel's window.
#[cube]
fn write_frame<E: Float>(
    values: &Sequence<E>,
    window: &mut Shared<[f32]>,
    frame: u32,
    #[comptime] shape: FewOutputsShape,
) {
    let at = UNIT_POS as usize + frame as usize * shape.frame_elements();
    #[unroll]
    for load in 0..comptime!(shape.tile.loads()) {
        window[at + comptime!(load * shape.tile.threads)] = f32::cast_from(*values.index(load));
    }
}

/// Loads this thread's vector of a channel's weights.
#[cube]
pub(super) fn read_weights<E: Float>(
    weight: &[E],
    channel: usize,
    offsets: &Offsets,
    exists: bool,
) -> Weights {
    let mut weights = Weights::new(0.0f32);
    #[unroll]
    for i in 0..4usize {
        if exists && *offsets.exists.index(i) {
            weights.insert(i, f32::cast_from(weight[channel + *offsets.at.index(i)]));
        }
    }
    weights
}

/// Stores what [`read_weights`] has loaded to shared memory.
#[cube]
pub(super) fn write_weights(
    factors: Weights,
    weights: &mut Shared<[Weights]>,
    #[comptime] shape: FewOutputsShape,
) {
    if UNIT_POS < comptime!(shape.weight_vectors() as u32) {
        weights[UNIT_POS as usize] = factors;
    }
}
