//! `[B, T, C]`: a unit marches along time with four neighbouring channels.
//!
//! ```text
//!             channels ->                  a unit: 4 channels, a run of `steps` steps
//!           | lane | lane | lane | ..      a cube: `lanes` units along the channels x runs below each other
//!   time    | ---- | run 0 ----- |
//!     |     | ---- | run 1 ----- |         the last `taps` steps are a ring of registers: step t stands at
//!     v       ..                           t mod taps, and a turn of the loop is a multiple of that, so that
//!                                          nothing is moved
//! ```
//!
//! The backward pass ([`super::along_channels_backward`]) shares steps out in the same way. Bytes, forward: x
//! and y once, a residual once; the W-1 steps before a run come from the cache. Operations per element: W
//! multiply-adds and the activation. Any strides; declined: widths above 8.

use super::access::{Quad, Sizes, Strides, quad_of, read_run};
use super::bct::{Tile, id_at, state_at};
use crate::activation::activate_quad;
use crate::causal_conv1d::args::Present;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// How steps and channels are shared out among cubes.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct ChannelShare {
    /// Units along the channels.
    pub(super) lanes: FastDivmod<u32>,
    pub(super) lane_count: u32,
    /// Runs of a cube.
    pub(super) rows: u32,
    /// Cubes that cover the channels.
    pub(super) groups: FastDivmod<u32>,
    /// Runs of a row of the batch, and of all.
    pub(super) runs: FastDivmod<u32>,
    pub(super) all_runs: u32,
    /// Turns of a run, and steps of a whole one.
    pub(super) turns: u32,
    pub(super) steps: u32,
}

/// A unit's run and its channels.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Run {
    /// Cube's place among those of its channels.
    pub(super) part: u32,
    /// Unit's place among those of its channels.
    pub(super) row: u32,
    /// First channel.
    pub(super) c: u32,
    pub(super) b: u32,
    /// First step.
    pub(super) t: u32,
    /// Whether there is such a run and such a channel.
    pub(super) exists: bool,
}

#[cube]
impl ChannelShare {
    pub(super) fn run(&self, cube: usize, sizes: &Sizes) -> Run {
        let (part, group) = self.groups.div_mod(cube as u32);
        let (row, lane) = self.lanes.div_mod(UNIT_POS);
        let c = (group * self.lane_count + lane) * 4u32;
        let place = part * self.rows + row;
        let exists = place < self.all_runs && c < sizes.channels;
        let (b, run) = self.runs.div_mod(min(place, self.all_runs - 1u32));
        Run { part, row, c: select(exists, c, 0u32), b, t: run * self.steps, exists }
    }
}

/// Reads the run's channels at step `t`, or the first step's where `t` is not below `end`.
#[cube]
pub(super) fn read_step<X: Float, N: Size>(
    source: &[Vector<X, N>],
    strides: &Strides,
    sizes: &Sizes,
    run: &Run,
    t: u32,
    end: u32,
    raw: &mut Sequence<Vector<X, N>>,
) {
    let step = select(t < end, t, 0u32);
    let base = strides.row(run.b, 0u32) + step as usize * strides.t;
    read_run(source, base, strides.c, run.c, sizes.channels, raw, false);
}

/// Writes the run's channels at step `t`.
#[cube]
pub(super) fn write_step<X: Float, N: Size>(
    target: &mut [Vector<X, N>],
    strides: &Strides,
    sizes: &Sizes,
    run: &Run,
    t: u32,
    values: Quad,
) {
    if run.exists && t < sizes.length {
        let base = strides.row(run.b, 0u32) + t as usize * strides.t;
        let together = N::value();
        if comptime!(together == 4) {
            target[(base + run.c as usize) / 4] = Vector::cast_from(values);
        } else {
            #[unroll]
            for i in 0..4usize {
                let c = run.c + i as u32;
                if c < sizes.channels {
                    let value = X::cast_from(values.extract(i));
                    target[base + c as usize * strides.c] = Vector::<X, N>::new(value);
                }
            }
        }
    }
}

/// The channels' taps at the end of `taps` places; those before them are not used.
#[cube]
pub(super) fn channel_taps<W: Float>(
    weight: &[W],
    sizes: &Sizes,
    c: u32,
    #[comptime] tile: Tile,
) -> Registers<Quad> {
    let weights = Registers::<Quad>::new(tile.taps, Quad::new(0.0f32));
    #[unroll]
    for k in 0..tile.taps {
        let mut quad = Quad::new(0.0f32);
        #[unroll]
        for i in 0..4usize {
            let channel = min(c + i as u32, sizes.channels - 1u32);
            quad.insert(i, sizes.tap(weight, channel, k as u32, tile.taps));
        }
        weights.set(k, quad);
    }
    weights
}

/// The channels' bias; 0 where there is none.
#[cube]
pub(super) fn channel_bias<W: Float>(bias: &[W], sizes: &Sizes, c: u32) -> Quad {
    let mut quad = Quad::new(0.0f32);
    #[unroll]
    for i in 0..4usize {
        let channel = min(c + i as u32, sizes.channels - 1u32);
        quad.insert(i, sizes.bias_of(bias, channel));
    }
    quad
}

/// The steps before the run, or the initial state: step `t` of the run stands at `t mod taps`, those before
/// it precede that.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn read_history<X: Float, H: Float, N: Size>(
    x: &[Vector<X, N>],
    strides: &Strides,
    initial: ComptimeOption<&Tensor<H>>,
    sizes: &Sizes,
    run: &Run,
    columns: &Registers<Quad>,
    #[comptime] tile: Tile,
) {
    if run.t > 0u32 {
        let mut raw = Sequence::<Vector<X, N>>::new();
        #[unroll]
        for j in 0..comptime!(tile.taps - 1) {
            // Runs are of `taps` steps at least.
            let t = run.t + j as u32 - comptime!(tile.taps as u32 - 1);
            read_step(x, strides, sizes, run, t, sizes.length, &mut raw);
        }
        #[unroll]
        for j in 0..comptime!(tile.taps - 1) {
            columns.set(comptime!(j + 1), quad_of::<X, X, N>(&raw, j, 0usize, false));
        }
    } else {
        #[unroll]
        for j in 0..comptime!(tile.taps - 1) {
            let mut quad = Quad::new(0.0f32);
            if comptime!(tile.extras)
                && sizes.has(Present::INITIAL)
                && j as u32 + sizes.width >= tile.taps as u32
            {
                #[unroll]
                for i in 0..4usize {
                    let channel = min(run.c + i as u32, sizes.channels - 1u32);
                    let e = j as u32 + sizes.width - tile.taps as u32;
                    quad.insert(i, state_at(initial.unwrap(), sizes, run.b, channel, e));
                }
            }
            columns.set(comptime!(j + 1), quad);
        }
    }
}

/// The ids of the steps before a run, at the places of those steps.
#[cube]
pub(super) fn read_history_ids<I: Int>(
    seq_idx: ComptimeOption<&Tensor<I>>,
    sizes: &Sizes,
    run: &Run,
    ids: &Registers<I>,
    #[comptime] tile: Tile,
) {
    if comptime!(seq_idx.is_some()) {
        #[unroll]
        for j in 0..comptime!(tile.taps - 1) {
            let t = run.t + j as u32 - comptime!(tile.taps as u32 - 1);
            ids.set(comptime!(j + 1), id_at(seq_idx.unwrap(), sizes, run.b, t));
        }
    }
}

/// The sum before the activation at the step that stands at `place` of the ring.
#[cube]
pub(super) fn step_sum<I: Int>(
    columns: &Registers<Quad>,
    weights: &Registers<Quad>,
    ids: &Registers<I>,
    bias: Quad,
    sizes: &Sizes,
    #[comptime] place: usize,
    #[comptime] tile: Tile,
) -> Quad {
    let mut sum = bias;
    #[unroll]
    for k in 0..tile.taps {
        if comptime!(tile.straight) || k as u32 + sizes.width >= tile.taps as u32 {
            let column = comptime!((place + 1 + k) % tile.taps);
            let next = fma(weights.get(k), columns.get(column), sum);
            if comptime!(tile.packed) {
                sum = select(ids.get(column) == ids.get(place), next, sum);
            } else {
                sum = next;
            }
        }
    }
    sum
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn channels_forward_kernel<X: Float, W: Float, H: Float, I: Int, N: Size>(
    x: &[Vector<X, N>],
    weight: &[W],
    bias: &[W],
    initial: ComptimeOption<&Tensor<H>>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    residual: ComptimeOption<&[Vector<X, N>]>,
    y: &mut [Vector<X, N>],
    sizes: Sizes,
    x_strides: Strides,
    residual_strides: Strides,
    y_strides: Strides,
    share: ChannelShare,
    span: Span,
    #[comptime] tile: Tile,
    #[define(X)] _dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    let run = share.run(span.index(), &sizes);
    if span.is_idle() || !run.exists {
        terminate!();
    }
    let weights = channel_taps(weight, &sizes, run.c, tile);
    let bias = channel_bias(bias, &sizes, run.c);
    let columns = Registers::<Quad>::new(tile.taps, Quad::new(0.0f32));
    let ids = Registers::<I>::new(comptime!(if tile.packed { tile.taps } else { 1 }), I::from_int(0));
    read_history(x, &x_strides, initial, &sizes, &run, &columns, tile);
    read_history_ids(seq_idx, &sizes, &run, &ids, tile);
    for turn in 0..share.turns {
        let first = run.t + turn * tile.steps() as u32;
        let mut raw = Sequence::<Vector<X, N>>::new();
        #[unroll]
        for i in 0..tile.steps() {
            if comptime!(i % tile.batch == 0) {
                #[unroll]
                for j in 0..tile.batch {
                    let t = first + comptime!((i + j) as u32);
                    read_step(x, &x_strides, &sizes, &run, t, sizes.length, &mut raw);
                }
            }
            let place = comptime!(i % tile.taps);
            columns.set(place, quad_of::<X, X, N>(&raw, i, 0usize, false));
            if comptime!(tile.packed) {
                ids.set(place, id_at(seq_idx.unwrap(), &sizes, run.b, first + i as u32));
            }
            let sum = step_sum(&columns, &weights, &ids, bias, &sizes, place, tile);
            let mut result = activate_quad(sum, sizes.activation, tile.straight);
            if comptime!(tile.extras) && sizes.has(Present::RESIDUAL) {
                let mut added = Sequence::<Vector<X, N>>::new();
                let (from, t) = (residual.unwrap(), first + i as u32);
                read_step(from, &residual_strides, &sizes, &run, t, sizes.length, &mut added);
                result += quad_of::<X, X, N>(&added, 0usize, 0usize, false);
            }
            if comptime!(tile.packed) {
                let padding = ids.get(place) < I::from_int(0);
                result = select(padding, Quad::new(0.0f32), result);
            }
            write_step(y, &y_strides, &sizes, &run, first + i as u32, result);
        }
    }
}
