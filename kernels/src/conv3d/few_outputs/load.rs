//! How a threadgroup of the kernels for few outputs loads one channel: its window of source frames, and its
//! weights. With prefetch all loads of a channel are in flight while the one before is multiplied; else the
//! frames are loaded one after the other, in a loop.

use super::config::FewOutputsShape;
use super::kernel::Weights;
use crate::conv3d::frames::{LoadOffsets, read_frame};
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::PaddingMode;
use cubecl::prelude::*;

/// Offsets in a tensor, and whether each element exists.
#[derive(CubeType)]
pub(super) struct Offsets {
    at: Sequence<usize>,
    exists: Sequence<bool>,
}

/// Offsets of the window's frames within a channel, and whether each is inside.
#[cube]
pub(super) fn frame_offsets(
    walk: &GatherArgs,
    first: u32,
    #[comptime] padding: PaddingMode,
    #[comptime] shape: FewOutputsShape,
) -> Offsets {
    let mut at = Sequence::<usize>::new();
    let mut exists = Sequence::<bool>::new();
    #[unroll]
    for frame in 0..comptime!(shape.source_frames()) {
        let (offset, inside) = walk.depth.load_offset(walk.depth.coordinate(first + frame as u32), padding);
        at.push(offset);
        exists.push(inside);
    }
    Offsets { at, exists }
}

/// Offsets of the four weights of this thread's vector, in the order of use: column, row, depth, output.
#[cube]
pub(super) fn weight_offsets(
    walk: &GatherArgs,
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
            walk.weight_group(group)
                + walk.weight_column(output)
                + walk.depth.weight_offset(depth, pass)
                + walk.height.weight_offset(row, pass)
                + walk.width.weight_offset(column, pass),
        );
        exists.push(
            factor < comptime!(shape.column_weights() as u32)
                && column < comptime!(shape.tile.taps[2] as u32),
        );
    }
    Offsets { at, exists }
}

/// Loads this thread's elements of a channel's window into registers; elements outside the source are zero.
#[cube]
pub(super) fn read_channel<E: Float>(
    source: &[E],
    channel: usize,
    frames: &Offsets,
    offsets: &LoadOffsets,
    exists: bool,
    #[comptime] shape: FewOutputsShape,
) -> Sequence<E> {
    let mut values = Sequence::<E>::new();
    #[unroll]
    for load in 0..comptime!(shape.loads()) {
        let frame = comptime!(load / shape.tile.loads());
        let offset = comptime!(load % shape.tile.loads());
        let mut value = E::from_int(0);
        if exists && *frames.exists.index(frame) && *offsets.inside.index(offset) {
            value = source[channel + *frames.at.index(frame) + *offsets.at.index(offset)];
        }
        values.push(value);
    }
    values
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
    source: &[E],
    channel: usize,
    walk: &GatherArgs,
    first: u32,
    offsets: &LoadOffsets,
    window: &mut Shared<[f32]>,
    #[comptime] padding: PaddingMode,
    #[comptime] shape: FewOutputsShape,
) {
    let mut frame = 0u32.runtime();
    while frame < comptime!(shape.source_frames() as u32) {
        let exists = true.runtime();
        let values = read_frame(source, channel, walk, first + frame, exists, offsets, padding, shape.tile);
        let at = UNIT_POS as usize + frame as usize * shape.frame_elements();
        #[unroll]
        for load in 0..comptime!(shape.tile.loads()) {
            window[at + comptime!(load * shape.tile.threads)] = f32::cast_from(*values.index(load));
        }
        frame += 1u32;
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
