//! `[B, C, T]`: units run along the steps of a row.
//!
//! ```text
//!   row of steps    | history | quad | quad | quad | ..      a quad: 4 neighbouring steps, one unit's
//!   a unit reads      its own quad and the one or two before it, which its neighbours have brought to the cache
//!   a cube            `lanes` units along a row x as many channels as fit; each unit has `together` quads, `lanes` apart
//! ```
//!
//! The backward pass ([`super::along_time_backward`]) shares rows out in the same way. Bytes, forward: x and y once.
//! Operations per element: W multiply-adds and the activation. Any strides; declined: widths above 8.

use super::access::{Sizes, Strides, quad_of, read_quad, read_taps, write_quad};
use crate::activation::activate_all;
use crate::causal_conv1d::args::Present;
use crate::cells::Cells;
use crate::grid::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// What of a kernel is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// Places for taps, 4 or 8: the width is at most that.
    pub(super) taps: usize,
    /// Quads of a unit per turn.
    pub(super) together: usize,
    /// Units of a cube.
    pub(super) units: usize,
    /// Whether there are ids.
    pub(super) packed: bool,
    /// Whether there is an initial state or a gradient of a state: their branches cost registers.
    pub(super) states: bool,
}

impl Tile {
    /// Quads before its own that a unit reads.
    pub(super) fn before(&self) -> usize {
        self.taps / 4
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

/// The columns of a quad and of the quads before it, those before the first step replaced by the initial state.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn columns<X: Float, N: Size>(
    raw: &Sequence<Vector<X, N>>,
    initial: &Tensor<X>,
    sizes: &Sizes,
    b: u32,
    c: u32,
    quad: u32,
    #[comptime] u: usize,
    #[comptime] tile: Tile,
) -> Cells<f32> {
    let quads = comptime!(tile.before() + 1);
    let columns = Cells::<f32>::new(comptime!(4 * quads), 0.0f32);
    #[unroll]
    for q in 0..quads {
        let values = quad_of(raw, comptime!(u * quads + q));
        #[unroll]
        for i in 0..4usize {
            columns.set(comptime!(4 * q + i), values.extract(i));
        }
    }
    let together = N::value();
    if comptime!(together != 4) {
        // A quad may end beyond the row; not even a NaN that lies there may get into a sum.
        #[unroll]
        for i in 0..4usize {
            let j = comptime!(4 * tile.before() + i);
            columns.set(j, select(quad * 4u32 + (i as u32) < sizes.length, columns.get(j), 0.0f32));
        }
    }
    if quad < comptime!(tile.before() as u32) {
        #[unroll]
        for j in 0..comptime!(4 * tile.before()) {
            if quad * 4u32 + (j as u32) < comptime!(4 * tile.before() as u32) {
                if comptime!(tile.states) {
                    // Counted from the first step of the state.
                    let e = quad * 4u32 + j as u32 + sizes.history() - comptime!(4 * tile.before() as u32);
                    columns.set(j, state_at(initial, sizes, b, c, e));
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

/// The sums before the activation of the last quad of `columns`.
#[cube]
pub(super) fn sums<I: Int>(
    columns: &Cells<f32>,
    weights: &Cells<f32>,
    ids: &Sequence<I>,
    bias: f32,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) -> Cells<f32> {
    let own = comptime!(4 * tile.before());
    let sums = Cells::<f32>::new(4usize, 0.0f32);
    #[unroll]
    for i in 0..4usize {
        sums.set(i, bias);
    }
    #[unroll]
    for k in 0..tile.taps {
        if k as u32 + sizes.width >= tile.taps as u32 {
            #[unroll]
            for i in 0..4usize {
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
pub(super) fn forward_kernel<X: Float, W: Float, I: Int, N: Size>(
    x: &[Vector<X, N>],
    weight: &[W],
    bias: &[W],
    initial: &Tensor<X>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    y: &mut [Vector<X, N>],
    sizes: Sizes,
    x_strides: Strides,
    y_strides: Strides,
    share: TimeShare,
    span: Span,
    #[comptime] tile: Tile,
    #[define(X)] _dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    let (rest, turn) = share.cuts.div_mod(span.cube() as u32);
    let (b, group) = share.groups.div_mod(rest);
    let (_, lane, c) = share.place(group);
    if span.is_idle() || c >= sizes.channels {
        terminate!();
    }
    let first = turn * share.lane_count * tile.together as u32 + lane;
    let row = x_strides.row(b, c);
    let mut raw = Sequence::<Vector<X, N>>::new();
    #[unroll]
    for u in 0..tile.together {
        let quad = first + u as u32 * share.lane_count;
        #[unroll]
        for p in 0..comptime!(tile.before() + 1) {
            let step = (quad + p as u32) * 4u32 - comptime!(4 * tile.before() as u32);
            read_quad(x, row, x_strides.t, step, sizes.length, &mut raw);
        }
    }
    let weights = read_taps(weight, &sizes, c, tile.taps);
    let offset = sizes.bias_of(bias, c);
    #[unroll]
    for u in 0..tile.together {
        let quad = first + u as u32 * share.lane_count;
        let columns = columns(&raw, initial, &sizes, b, c, quad, u, tile);
        let before = comptime!(4 * tile.before());
        let ids = ids_from(seq_idx, &sizes, b, quad * 4u32 - before as u32, comptime!(before + 4));
        let results = sums(&columns, &weights, &ids, offset, &sizes, tile);
        activate_all(&results, 4usize, sizes.activation);
        if comptime!(tile.packed) {
            #[unroll]
            for i in 0..4usize {
                let padding = *ids.index(comptime!(before + i)) < I::from_int(0);
                results.set(i, select(padding, 0.0f32, results.get(i)));
            }
        }
        write_quad(y, y_strides.row(b, c), y_strides.t, quad * 4u32, sizes.length, &results, 0usize);
    }
}
