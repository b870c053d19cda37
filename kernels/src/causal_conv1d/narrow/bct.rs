//! `[B, C, T]`: units run along the steps of a row.
//!
//! ```text
//!   row of steps    | history | run | run | run | ..      a run: one unit's 4 neighbouring steps (16-bit: 8)
//!   a unit reads    its own run and the one or two before it, which its neighbours have brought to the cache
//!   a cube          `lanes` units along a row x as many channels as fit; each unit has `together` runs,
//!                   `lanes` apart
//! ```
//!
//! The backward pass ([`super::along_time_backward`]) shares rows out in the same way. Bytes, forward: x and
//! y once, a residual once. Operations per element: W multiply-adds and the activation. Any strides;
//! declined: widths above 8.

use super::access::{Sizes, Strides, quad_of, read_run, read_taps, write_run};
use crate::activation::activate_all;
use crate::causal_conv1d::args::Present;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// What of a kernel is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// Places for taps, 4 or 8: the width is at most that.
    pub(super) taps: usize,
    /// Runs of a unit per turn.
    pub(super) together: usize,
    /// Along channels: steps that a unit reads at once.
    pub(super) batch: usize,
    /// Whether runs are of 8 steps, read as words; of 4 otherwise.
    pub(super) wide: bool,
    /// Units of a cube.
    pub(super) units: usize,
    /// Whether every place has a tap and SiLU follows, as in Mamba: branches on either keep NVIDIA's compiler
    /// from mixing the work of neighbours, a fifth of the time in 16 bits. Elsewhere both are looked at when
    /// the kernel runs.
    pub(super) straight: bool,
    /// Whether there are ids.
    pub(super) packed: bool,
    /// Whether there is an initial state, a gradient of a state or a residual: their branches cost registers,
    /// and the tensors time on the host, where none is there.
    pub(super) extras: bool,
    /// Backward: whether what a turn reads is under way while the one before it computes.
    pub(super) early: bool,
}

impl Tile {
    /// Steps of a run.
    pub(super) fn run(&self) -> usize {
        if self.wide { 8 } else { 4 }
    }

    /// Quads before its own run that a unit needs.
    pub(super) fn before(&self) -> usize {
        self.taps / 4
    }

    /// Runs that hold them.
    pub(super) fn runs_before(&self) -> usize {
        if self.wide { 1 } else { self.before() }
    }

    /// Along channels: steps of a turn, after which the window of `taps` steps is where it began.
    pub(super) fn steps(&self) -> usize {
        self.batch.max(self.taps)
    }
}

/// How rows are shared out among cubes.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct TimeShare {
    /// Units along a row.
    pub(super) lanes: FastDivmod<u32>,
    pub(super) lane_count: u32,
    /// Channels of a cube.
    pub(super) rows: u32,
    /// Cubes that cover the channels.
    pub(super) groups: FastDivmod<u32>,
    /// Forward: turns of a row, one per cube. Backward: segments of a row.
    pub(super) cuts: FastDivmod<u32>,
    /// Turns of a row, and of a whole segment.
    pub(super) turns_of_row: u32,
    pub(super) turns: u32,
    /// Backward: segments of all rows of a channel, and how many of them a cube works through.
    pub(super) items: u32,
    pub(super) items_per_cube: u32,
}

#[cube]
impl TimeShare {
    /// Row of the cube, lane and channel of this unit in a group of channels.
    pub(super) fn place(&self, group: u32) -> (u32, u32, u32) {
        let (row, lane) = self.lanes.div_mod(UNIT_POS);
        (row, lane, group * self.rows + row)
    }
}

/// Reads run `index` of a row and those before it.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn read_runs<S: Numeric, N: Size>(
    x: &[Vector<S, N>],
    strides: &Strides,
    sizes: &Sizes,
    b: u32,
    c: u32,
    index: u32,
    raw: &mut Sequence<Vector<S, N>>,
    #[comptime] tile: Tile,
) {
    #[unroll]
    for p in 0..comptime!(tile.runs_before() + 1) {
        // Before the first step this wraps to places beside the row.
        let step = (index + p as u32) * comptime!(tile.run() as u32)
            - comptime!((tile.run() * tile.runs_before()) as u32);
        read_run(x, strides.row(b, c), strides.t, step, sizes.length, raw, tile.wide);
    }
}

/// The columns of run `index` and of the `before` quads that precede it, those before the first step replaced
/// by the initial state. `u` is the run's place in `raw`.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn columns<X: Float, H: Float, S: Numeric, N: Size>(
    raw: &Sequence<Vector<S, N>>,
    initial: ComptimeOption<&Tensor<H>>,
    sizes: &Sizes,
    b: u32,
    c: u32,
    index: u32,
    #[comptime] u: usize,
    #[comptime] tile: Tile,
) -> Registers<f32> {
    let history = comptime!(4 * tile.before());
    let run = comptime!(tile.run());
    let columns = Registers::<f32>::new(comptime!(history + run), 0.0f32);
    #[unroll]
    for q in 0..comptime!((history + run) / 4) {
        // Counted from the first of the runs that were read, of which only the last quads are needed.
        let quad = comptime!(q + (run * tile.runs_before() - history) / 4);
        let at = comptime!(u * (tile.runs_before() + 1) + 4 * quad / run);
        let values = quad_of::<X, S, N>(raw, at, comptime!(quad % (run / 4)), tile.wide);
        #[unroll]
        for i in 0..4usize {
            columns.set(comptime!(4 * q + i), values.extract(i));
        }
    }
    let together = N::value();
    if comptime!(together != 4) {
        // A run may end beyond the row; not even a NaN that lies there may get into a sum.
        #[unroll]
        for i in 0..run {
            let j = comptime!(history + i);
            let inside = index * run as u32 + (i as u32) < sizes.length;
            columns.set(j, select(inside, columns.get(j), 0.0f32));
        }
    }
    if index * (run as u32) < history as u32 {
        #[unroll]
        for j in 0..history {
            if index * (run as u32) + (j as u32) < history as u32 {
                if comptime!(tile.extras) {
                    // Counted from the first step of the state.
                    let e = index * run as u32 + j as u32 + sizes.history() - history as u32;
                    columns.set(j, state_at(initial.unwrap(), sizes, b, c, e));
                } else {
                    columns.set(j, 0.0f32);
                }
            }
        }
    }
    columns
}

/// Step `e` of the initial state, 0 where there is none.
#[cube]
pub(super) fn state_at<X: Float>(initial: &Tensor<X>, sizes: &Sizes, b: u32, c: u32, e: u32) -> f32 {
    let mut value = 0.0f32;
    if sizes.has(Present::INITIAL) && e < sizes.history() {
        value = f32::cast_from(initial[state_index(initial, b, c, e)]);
    }
    value
}

/// Where step `e` of a `[B, C, W-1]` tensor lies.
#[cube]
pub(super) fn state_index<X: Float>(state: &Tensor<X>, b: u32, c: u32, e: u32) -> usize {
    b as usize * state.stride(0) + c as usize * state.stride(1) + e as usize * state.stride(2)
}

/// Id of step `t`; that of the first step before it (`t` has wrapped), that of the last beyond it.
#[cube]
pub(super) fn id_at<I: Int>(seq_idx: &Tensor<I>, sizes: &Sizes, b: u32, t: u32) -> I {
    let step = select(t >= 0x8000_0000u32, 0u32, min(t, sizes.length - 1u32));
    seq_idx[b as usize * seq_idx.stride(0) + step as usize * seq_idx.stride(1)]
}

/// How many steps row `b` has up to its last that is no padding, as the ids have it behind the last step
/// where their final state has a gradient, and the id of that step.
#[cube]
pub(super) fn last_step<I: Int>(seq_idx: ComptimeOption<&Tensor<I>>, sizes: &Sizes, b: u32) -> (u32, I) {
    let mut end = sizes.length;
    let mut own = I::from_int(0);
    if comptime!(seq_idx.is_some()) {
        let ids = seq_idx.unwrap();
        end = u32::cast_from(ids[b as usize * ids.stride(0) + sizes.length as usize * ids.stride(1)]);
        own = id_at(ids, sizes, b, max(end, 1u32) - 1u32);
    }
    (end, own)
}

/// Ids of `count` columns from step `first` on, which may have wrapped.
#[cube]
pub(super) fn ids_from<I: Int>(
    seq_idx: ComptimeOption<&Tensor<I>>,
    sizes: &Sizes,
    b: u32,
    first: u32,
    #[comptime] count: usize,
) -> Sequence<I> {
    let mut ids = Sequence::<I>::new();
    if comptime!(seq_idx.is_some()) {
        #[unroll]
        for j in 0..count {
            ids.push(id_at(seq_idx.unwrap(), sizes, b, first + j as u32));
        }
    }
    ids
}

/// The sums before the activation of the run at the end of `columns`.
#[cube]
pub(super) fn sums<I: Int>(
    columns: &Registers<f32>,
    weights: &Registers<f32>,
    ids: &Sequence<I>,
    bias: f32,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) -> Registers<f32> {
    let own = comptime!(4 * tile.before());
    let run = comptime!(tile.run());
    let sums = Registers::<f32>::new(run, 0.0f32);
    #[unroll]
    for i in 0..run {
        sums.set(i, bias);
    }
    #[unroll]
    for k in 0..tile.taps {
        if comptime!(tile.straight) || k as u32 + sizes.width >= tile.taps as u32 {
            #[unroll]
            for i in 0..run {
                let column = comptime!(own + i + 1 + k - tile.taps);
                let sum = fma(weights.get(k), columns.get(column), sums.get(i));
                if comptime!(tile.packed) {
                    let same = *ids.index(column) == *ids.index(comptime!(own + i));
                    sums.set(i, select(same, sum, sums.get(i)));
                } else {
                    sums.set(i, sum);
                }
            }
        }
    }
    sums
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn forward_kernel<X: Float, S: Numeric, W: Float, H: Float, I: Int, N: Size>(
    x: &[Vector<S, N>],
    weight: &[W],
    bias: &[W],
    initial: ComptimeOption<&Tensor<H>>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    residual: ComptimeOption<&[Vector<S, N>]>,
    y: &mut [Vector<S, N>],
    sizes: Sizes,
    x_strides: Strides,
    residual_strides: Strides,
    y_strides: Strides,
    share: TimeShare,
    span: Span,
    #[comptime] tile: Tile,
    #[define(X)] _dtype: ElemType,
    #[define(S)] _memory: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    let (rest, turn) = share.cuts.div_mod(span.index() as u32);
    let (b, group) = share.groups.div_mod(rest);
    let (_, lane, c) = share.place(group);
    if span.is_idle() || c >= sizes.channels {
        terminate!();
    }
    let first = turn * share.lane_count * tile.together as u32 + lane;
    let mut raw = Sequence::<Vector<S, N>>::new();
    #[unroll]
    for u in 0..tile.together {
        let index = first + u as u32 * share.lane_count;
        read_runs(x, &x_strides, &sizes, b, c, index, &mut raw, tile);
    }
    let weights = read_taps(weight, &sizes, c, tile.taps);
    let offset = sizes.bias_of(bias, c);
    let run = comptime!(tile.run());
    #[unroll]
    for u in 0..tile.together {
        let index = first + u as u32 * share.lane_count;
        let step = index * run as u32;
        let columns = columns::<X, H, S, N>(&raw, initial, &sizes, b, c, index, u, tile);
        let before = comptime!(4 * tile.before());
        let ids = ids_from(seq_idx, &sizes, b, step - before as u32, comptime!(before + run));
        let results = sums(&columns, &weights, &ids, offset, &sizes, tile);
        activate_all(&results, run, sizes.activation, tile.straight);
        if comptime!(tile.extras) && sizes.has(Present::RESIDUAL) {
            let mut added = Sequence::<Vector<S, N>>::new();
            let (from, row) = (residual.unwrap(), residual_strides.row(b, c));
            read_run(from, row, residual_strides.t, step, sizes.length, &mut added, tile.wide);
            #[unroll]
            for q in 0..comptime!(run / 4) {
                let quad = quad_of::<X, S, N>(&added, 0usize, q, tile.wide);
                #[unroll]
                for i in 0..4usize {
                    let j = comptime!(4 * q + i);
                    results.set(j, results.get(j) + quad.extract(i));
                }
            }
        }
        if comptime!(tile.packed) {
            #[unroll]
            for i in 0..run {
                let padding = *ids.index(comptime!(before + i)) < I::from_int(0);
                results.set(i, select(padding, 0.0f32, results.get(i)));
            }
        }
        write_run::<X, S, N>(y, y_strides.row(b, c), y_strides.t, step, sizes.length, &results, tile.wide);
    }
}
