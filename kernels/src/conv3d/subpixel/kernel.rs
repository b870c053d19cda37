//! Input gradient of layers with few input channels as a sub-pixel convolution. One GEMM row per input
//! position would leave its columns nearly empty: instead a row is a block of one stride by one stride of
//! positions, all reached by the same windows.
//!
//! ```text
//! dx[c, block * stride + phase] = activation( bias[c] + sum over depth taps, o, window taps j of
//!                                             dy[o, block + origin + j * step] * W[j, o][c, phase] )
//!
//!    a segment of the H x W slice    GEMM rows:  blocks, `tile_m` consecutive ones of a segment; those in
//!    +--------------------------+                the halo are computed and not stored
//!    | blocks            | halo |    columns:    channels of dx times phases: 3 * 2 * 2 for stride 2
//!    | blocks   ..tile.. | halo |    a thread:   blocks t, t + threads, .. and the tile's columns, in
//!    +--------------------------+                registers
//!                                    a tap:      the same window of dy at another offset
//! ```
//!
//! Layouts: dy and dx with any strides, the weights packed by [`super::pack`]; `out` may be the fp32 partials
//! of a split-K slice, which `reduce.rs` adds.
//!
//! A threadgroup computes one frame and skips depth taps that reach it from no window. A stage is two
//! channels of dy: their window and their weights in shared memory, `2 * window` elements and
//! `8 * taps * columns` bytes of weights for `4 * taps * tile_m * columns` FLOP. Per tap and channel a thread
//! makes `rows + columns / 4` shared-memory loads (neighbouring blocks, broadcast weights) for
//! `rows * columns` FMAs. Phases that a tap does not reach multiply zeros: 8 taps in place of 7 along an axis
//! for a kernel of 7, 4 in place of 3 for one of 3.
//!
//! Declined: more than four channels per group, windows that do not fit ([`super::config`]), other passes.

use super::config::SubpixelTile;
use super::tiling::{SubpixelTiling, SubpixelWork, WindowLoads, window_loads};
use crate::activation::Activation;
use crate::conv3d::epilogue::finished;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn subpixel_kernel<E: Float, O: Float>(
    dy: &[E],
    weight: &[Vector<f32, Const<4>>],
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    tiling: SubpixelTiling,
    span: Span,
    #[comptime] tile: SubpixelTile,
    #[comptime] activation: Activation,
    #[comptime] unroll: bool,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole threadgroup exits: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let work = tiling.work(span.index() as u32, tile.tile_m);
    let mut window = Shared::<[f32]>::new_slice(comptime!(tile.channels * tile.window));
    let mut weights = Shared::<[Vector<f32, Const<4>>]>::new_slice(tile.stage_vectors());
    let sums = Registers::<f32>::new(comptime!(tile.rows * tile.columns), 0.0f32.runtime());
    let offsets = window_loads(&tiling, &work, comptime!(tile.loads()), tile);
    let source = work.n as usize * tiling.source_batch_stride
        + (work.group * tiling.channels) as usize * tiling.source_channel_stride;
    let stages = tiling.stages(&work);
    let mut at = stages.first();
    if comptime!(unroll) {
        // The next stage is loaded into registers while this one is multiplied.
        let (frame, _) = tiling.depth.window(work.d, at.tap);
        let more = stages.count > 0u32;
        let sources = read_window(dy, &tiling, &offsets, source, frame, at.chunk, more, tile);
        let factors = read_weights(weight, &tiling, stages.tap_base + at.tap, at.chunk, more, tile);
        write_window(&sources, &mut window, tile);
        write_weights(&factors, &mut weights, tile);
        sync_cube();
        while at.stage < stages.count {
            at.advance(&stages, &tiling);
            let (frame, _) = tiling.depth.window(work.d, at.tap);
            let more = at.stage < stages.count;
            let sources = read_window(dy, &tiling, &offsets, source, frame, at.chunk, more, tile);
            let factors = read_weights(weight, &tiling, stages.tap_base + at.tap, at.chunk, more, tile);
            multiply(&window, &weights, &sums, &tiling, tile, unroll);
            sync_cube();
            write_window(&sources, &mut window, tile);
            write_weights(&factors, &mut weights, tile);
            sync_cube();
        }
    } else {
        // The loads' registers are free during the product: more threads hide the latency.
        while at.stage < stages.count {
            let (frame, _) = tiling.depth.window(work.d, at.tap);
            let more = true.runtime();
            let sources = read_window(dy, &tiling, &offsets, source, frame, at.chunk, more, tile);
            let factors = read_weights(weight, &tiling, stages.tap_base + at.tap, at.chunk, more, tile);
            // Every thread has finished with the previous stage.
            sync_cube();
            write_window(&sources, &mut window, tile);
            write_weights(&factors, &mut weights, tile);
            sync_cube();
            multiply(&window, &weights, &sums, &tiling, tile, unroll);
            at.advance(&stages, &tiling);
        }
    }
    write(&sums, bias, out, &tiling, &work, tile, activation, unroll);
}

/// Loads this thread's elements of a window into registers.
#[cube]
fn read_window<E: Float>(
    dy: &[E],
    tiling: &SubpixelTiling,
    offsets: &WindowLoads,
    source: usize,
    frame: u32,
    chunk: u32,
    exists: bool,
    #[comptime] tile: SubpixelTile,
) -> Sequence<E> {
    let first_channel = chunk * tile.channels as u32;
    let mut at = source
        + first_channel as usize * tiling.source_channel_stride
        + frame as usize * tiling.depth.source_stride;
    let mut values = Sequence::<E>::new();
    #[unroll]
    for c in 0..tile.channels {
        let exists = exists && first_channel + (c as u32) < tiling.channels;
        #[unroll]
        for i in 0..comptime!(tile.loads()) {
            let mut value = E::from_int(0);
            if exists && offsets.mask & comptime!(1u32 << i) != 0u32 {
                value = dy[at + *offsets.at.index(i)];
            }
            values.push(value);
        }
        at += tiling.source_channel_stride;
    }
    values
}

/// Stores what [`read_window`] has loaded to shared memory.
#[cube]
fn write_window<E: Float>(values: &Sequence<E>, window: &mut Shared<[f32]>, #[comptime] tile: SubpixelTile) {
    #[unroll]
    for c in 0..tile.channels {
        #[unroll]
        for i in 0..comptime!(tile.loads()) {
            window[UNIT_POS as usize + comptime!(c * tile.window + i * tile.threads())] =
                f32::cast_from(*values.index(comptime!(c * tile.loads() + i)));
        }
    }
}

/// Loads this thread's vectors of a stage's packed weights into registers.
#[cube]
fn read_weights(
    weight: &[Vector<f32, Const<4>>],
    tiling: &SubpixelTiling,
    tap_base: u32,
    chunk: u32,
    exists: bool,
    #[comptime] tile: SubpixelTile,
) -> Sequence<Vector<f32, Const<4>>> {
    let stage =
        tiling.height.taps * tiling.width.taps * comptime!((tile.channels * tile.column_vectors()) as u32);
    let first = (tap_base * tiling.chunks + chunk) as usize * stage as usize;
    let mut values = Sequence::<Vector<f32, Const<4>>>::new();
    #[unroll]
    for i in 0..comptime!(tile.weight_loads()) {
        let at = UNIT_POS + comptime!((i * tile.threads()) as u32);
        let mut value = Vector::<f32, Const<4>>::new(0.0f32);
        if exists && at < stage {
            value = weight[first + at as usize];
        }
        values.push(value);
    }
    values
}

/// Stores what [`read_weights`] has loaded to shared memory.
#[cube]
fn write_weights(
    values: &Sequence<Vector<f32, Const<4>>>,
    weights: &mut Shared<[Vector<f32, Const<4>>]>,
    #[comptime] tile: SubpixelTile,
) {
    #[unroll]
    for i in 0..comptime!(tile.weight_loads()) {
        weights[UNIT_POS as usize + comptime!(i * tile.threads())] = *values.index(i);
    }
}

/// Accumulates a stage: taps in order, channels in order.
#[cube]
fn multiply(
    window: &Shared<[f32]>,
    weights: &Shared<[Vector<f32, Const<4>>]>,
    sums: &Registers<f32>,
    tiling: &SubpixelTiling,
    #[comptime] tile: SubpixelTile,
    #[comptime] unroll: bool,
) {
    let mut row = UNIT_POS as usize;
    let mut from = 0usize.runtime();
    let mut h = 0u32.runtime();
    while h < tiling.height.taps {
        let mut at = row;
        let mut w = 0u32.runtime();
        while w < tiling.width.taps {
            #[unroll(unroll)]
            for c in 0..tile.channels {
                let mut factors = Sequence::<Vector<f32, Const<4>>>::new();
                #[unroll]
                for j in 0..comptime!(tile.column_vectors()) {
                    factors.push(weights[from + c * comptime!(tile.column_vectors()) + j]);
                }
                #[unroll]
                for i in 0..comptime!(tile.rows) {
                    let value = window[at + c * tile.window + comptime!(i * tile.threads())];
                    #[unroll]
                    for j in 0..comptime!(tile.columns) {
                        let factor = factors.index(comptime!(j / 4)).extract(comptime!(j % 4));
                        let sum = comptime!(i * tile.columns + j);
                        sums.set(sum, fma(value, factor, sums.get(sum)));
                    }
                }
            }
            from += comptime!(tile.channels * tile.column_vectors());
            at += tiling.width.step as usize;
            w += 1u32;
        }
        row += (tiling.height.step * tiling.pitch_count) as usize;
        h += 1u32;
    }
}

/// Epilogue: bias, activation, rounding, and a store masked to the input's positions and the tile's columns.
/// The same as [`SubpixelTiling::out_position`], but with the offset computed after the test, which is
/// faster. Not unrolled, a column's sums are chosen at run time: 10 kB of text for 42.
#[cube]
fn write<E: Float, O: Float>(
    sums: &Registers<f32>,
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    tiling: &SubpixelTiling,
    work: &SubpixelWork,
    #[comptime] tile: SubpixelTile,
    #[comptime] activation: Activation,
    #[comptime] unroll: bool,
) {
    let first = tiling.out_base(work);
    if comptime!(unroll) {
        #[unroll]
        for j in 0..comptime!(tile.columns) {
            let column = work.column_tile * tile.columns as u32 + j as u32;
            write_column(sums, bias, out, tiling, work, first, column, j, tile.columns, tile, activation);
        }
    } else {
        let chosen = Registers::<f32>::new(tile.rows, 0.0f32);
        for j in 0..comptime!(tile.columns as u32) {
            let column = work.column_tile * tile.columns as u32 + j;
            sums.choose(&chosen, j, 0usize, tile.columns, tile.columns);
            write_column(&chosen, bias, out, tiling, work, first, column, 0usize, 1usize, tile, activation);
        }
    }
}

/// Stores a column's results: the sums `first_sum`, `first_sum + step`, ..
#[cube]
fn write_column<E: Float, O: Float>(
    sums: &Registers<f32>,
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    tiling: &SubpixelTiling,
    work: &SubpixelWork,
    first: usize,
    column: u32,
    #[comptime] first_sum: usize,
    #[comptime] step: usize,
    #[comptime] tile: SubpixelTile,
    #[comptime] activation: Activation,
) {
    let (rest, phase_w) = tiling.width.phases.div_mod(column);
    let (c, phase_h) = tiling.height.phases.div_mod(rest);
    let bias = tiling.column_bias(bias, work, column);
    let of_channel = first + c as usize * tiling.out_channel_stride;
    #[unroll]
    for i in 0..comptime!(tile.rows) {
        let element = work.first + UNIT_POS + comptime!((i * tile.threads()) as u32);
        let (block_h, block_w) = tiling.block(work, element);
        let h = block_h * tiling.height.stride + phase_h;
        let w = block_w * tiling.width.stride + phase_w;
        let exists = block_w - work.first_block < tiling.blocks && column < tiling.columns;
        if exists && h < tiling.height.positions && w < tiling.width.positions {
            let at =
                of_channel + h as usize * tiling.height.out_stride + w as usize * tiling.width.out_stride;
            let sum = sums.get(comptime!(first_sum + i * step));
            out[at] = O::cast_from(finished(sum, bias, activation));
        }
    }
}
