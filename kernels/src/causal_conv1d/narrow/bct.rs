//! What the forward ([`super::bct_forward`]) and the backward pass ([`super::bct_backward`]) in `[B, C, T]`
//! layout share: the configuration, the work assignment, a slice's columns and its sums.

use super::access::{CallParams, Strides, quad_of_slice, read_slice};
use crate::causal_conv1d::args::Present;
use crate::registers::Registers;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// Compile-time configuration of the four kernels of this plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NarrowConfig {
    /// Tap registers, 4 or 8, at least the width.
    pub(super) taps: usize,
    /// `[B, C, T]`: slices of a thread per tile.
    pub(super) slices: usize,
    /// `[B, T, C]`: channels of a thread.
    pub(super) channels: usize,
    /// `[B, T, C]`: steps that a thread loads back to back.
    pub(super) load_batch: usize,
    /// `[B, C, T]`: slices are 8 16-bit steps, loaded as four 32-bit words, instead of 4 steps.
    pub(super) words: bool,
    /// Threads of a threadgroup.
    pub(super) threads: usize,
    /// W = `taps` and SiLU, as in Mamba: no run-time branches on width and activation, which would keep the
    /// compiler from interleaving neighbouring steps.
    pub(super) branch_free: bool,
    /// Whether the call has sequence ids.
    pub(super) has_ids: bool,
    /// Whether the call may have an initial state, a gradient of a state or a residual: their branches cost
    /// registers, their bindings host time.
    pub(super) extras: bool,
    /// `[B, C, T]` backward: load the next tile while the current one computes.
    pub(super) prefetch: bool,
    /// Unrolled: a thread's slices forward, all loaded before the first is computed, and the taps' reduction
    /// in `[B, T, C]`.
    pub(super) unroll: bool,
}

impl NarrowConfig {
    /// Steps of a slice.
    pub(super) fn slice_len(&self) -> usize {
        if self.words { 8 } else { 4 }
    }

    /// Quads before its slice that a thread needs.
    pub(super) fn history_quads(&self) -> usize {
        self.taps / 4
    }

    /// Slices that hold them.
    pub(super) fn history_slices(&self) -> usize {
        if self.words { 1 } else { self.history_quads() }
    }

    /// `[B, T, C]`: steps of a loop iteration, a multiple of the ring of `taps` steps.
    pub(super) fn steps_per_iteration(&self) -> usize {
        self.load_batch.max(self.taps)
    }
}

/// Work assignment: which rows, channels and tiles a threadgroup has.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct BctWork {
    /// Threads along a row.
    pub(super) lanes: FastDivmod<u32>,
    pub(super) lane_count: u32,
    /// Channels of a threadgroup.
    pub(super) rows: u32,
    /// Threadgroups that cover the channels.
    pub(super) channel_groups: FastDivmod<u32>,
    /// Forward: tiles of a row, one per threadgroup. Backward: segments of a row.
    pub(super) blocks_per_row: FastDivmod<u32>,
    /// Tiles of a row, and of a segment but the row's last.
    pub(super) tiles_per_row: u32,
    pub(super) tiles_per_segment: u32,
    /// Backward: segments of a channel over the whole batch, and how many of them a threadgroup processes.
    pub(super) segments: u32,
    pub(super) segments_per_threadgroup: u32,
}

#[cube]
impl BctWork {
    /// Row in the threadgroup, lane and channel of this thread in a group of channels.
    pub(super) fn position(&self, group: u32) -> (u32, u32, u32) {
        let (row, lane) = self.lanes.div_mod(UNIT_POS);
        (row, lane, group * self.rows + row)
    }
}

/// Loads slice `index` of a row and its history slices.
#[cube]
pub(super) fn read_slices<S: Numeric, N: Size>(
    x: &[Vector<S, N>],
    strides: &Strides,
    params: &CallParams,
    b: u32,
    c: u32,
    index: u32,
    raw: &mut Sequence<Vector<S, N>>,
    #[comptime] config: NarrowConfig,
) {
    #[unroll]
    for p in 0..comptime!(config.history_slices() + 1) {
        // Wraps before the first step: out of the row, so `read_slice` loads a stand-in.
        let step = (index + p as u32) * comptime!(config.slice_len() as u32)
            - comptime!((config.slice_len() * config.history_slices()) as u32);
        read_slice(x, strides.row(b, c), strides.t, step, params.length, raw, config.words);
    }
}

/// The columns of slice `index` and of its history quads, those before the first step taken from the initial
/// state. `u` is the slice's number within the thread.
#[cube]
pub(super) fn slice_columns<X: Float, H: Float, S: Numeric, N: Size>(
    raw: &Sequence<Vector<S, N>>,
    initial: ComptimeOption<&Tensor<H>>,
    params: &CallParams,
    b: u32,
    c: u32,
    index: u32,
    #[comptime] u: usize,
    #[comptime] config: NarrowConfig,
) -> Registers<f32> {
    let history = comptime!(4 * config.history_quads());
    let slice_len = comptime!(config.slice_len());
    let columns = Registers::<f32>::new(comptime!(history + slice_len), 0.0f32);
    #[unroll]
    for q in 0..comptime!((history + slice_len) / 4) {
        // Counted from the first slice loaded; only the last quads of the history are needed.
        let quad = comptime!(q + (slice_len * config.history_slices() - history) / 4);
        let at = comptime!(u * (config.history_slices() + 1) + 4 * quad / slice_len);
        let values = quad_of_slice::<X, S, N>(raw, at, comptime!(quad % (slice_len / 4)), config.words);
        #[unroll]
        for i in 0..4usize {
            columns.set(comptime!(4 * q + i), values.extract(i));
        }
    }
    let vector_size = N::value();
    if comptime!(vector_size != 4) {
        // A slice may pass the end of the row; the stand-in loaded there may be NaN.
        #[unroll]
        for i in 0..slice_len {
            let j = comptime!(history + i);
            let inside = index * slice_len as u32 + (i as u32) < params.length;
            columns.set(j, select(inside, columns.get(j), 0.0f32));
        }
    }
    if index * (slice_len as u32) < history as u32 {
        #[unroll]
        for j in 0..history {
            if index * (slice_len as u32) + (j as u32) < history as u32 {
                if comptime!(config.extras) {
                    // Counted from the first step of the state.
                    let e = index * slice_len as u32 + j as u32 + params.history() - history as u32;
                    columns.set(j, state_at(initial.unwrap(), params, b, c, e));
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
pub(super) fn state_at<X: Float>(initial: &Tensor<X>, params: &CallParams, b: u32, c: u32, e: u32) -> f32 {
    let mut value = 0.0f32;
    if params.has(Present::INITIAL) && e < params.history() {
        value = f32::cast_from(initial[state_index(initial, b, c, e)]);
    }
    value
}

/// Offset of step `e` in a `[B, C, W-1]` tensor.
#[cube]
pub(super) fn state_index<X: Float>(state: &Tensor<X>, b: u32, c: u32, e: u32) -> usize {
    b as usize * state.stride(0) + c as usize * state.stride(1) + e as usize * state.stride(2)
}

/// Id of step `t`, clamped to the row: a wrapped `t` is before the first step.
#[cube]
pub(super) fn id_at<I: Int>(seq_idx: &Tensor<I>, params: &CallParams, b: u32, t: u32) -> I {
    let step = select(t >= 0x8000_0000u32, 0u32, min(t, params.length - 1u32));
    seq_idx[b as usize * seq_idx.stride(0) + step as usize * seq_idx.stride(1)]
}

/// Steps of row `b` up to its last that is not padding, and the id of that step. `seq_idx` has the count at
/// step T where the final state has a gradient.
#[cube]
pub(super) fn last_step<I: Int>(
    seq_idx: ComptimeOption<&Tensor<I>>,
    params: &CallParams,
    b: u32,
) -> (u32, I) {
    let mut end = params.length;
    let mut last_id = I::from_int(0);
    if comptime!(seq_idx.is_some()) {
        let ids = seq_idx.unwrap();
        end = u32::cast_from(ids[b as usize * ids.stride(0) + params.length as usize * ids.stride(1)]);
        last_id = id_at(ids, params, b, max(end, 1u32) - 1u32);
    }
    (end, last_id)
}

/// Ids of `count` columns from step `first` on, which may wrap.
#[cube]
pub(super) fn ids_from<I: Int>(
    seq_idx: ComptimeOption<&Tensor<I>>,
    params: &CallParams,
    b: u32,
    first: u32,
    #[comptime] count: usize,
) -> Sequence<I> {
    let mut ids = Sequence::<I>::new();
    if comptime!(seq_idx.is_some()) {
        #[unroll]
        for j in 0..count {
            ids.push(id_at(seq_idx.unwrap(), params, b, first + j as u32));
        }
    }
    ids
}

/// The sums before the activation for the slice at the end of `columns`.
#[cube]
pub(super) fn pre_activation<I: Int>(
    columns: &Registers<f32>,
    weights: &Registers<f32>,
    ids: &Sequence<I>,
    bias: f32,
    params: &CallParams,
    #[comptime] config: NarrowConfig,
) -> Registers<f32> {
    let history = comptime!(4 * config.history_quads());
    let slice_len = comptime!(config.slice_len());
    let sums = Registers::<f32>::new(slice_len, 0.0f32);
    #[unroll]
    for i in 0..slice_len {
        sums.set(i, bias);
    }
    #[unroll]
    for k in 0..config.taps {
        if comptime!(config.branch_free) || k as u32 + params.width >= config.taps as u32 {
            #[unroll]
            for i in 0..slice_len {
                let column = comptime!(history + i + 1 + k - config.taps);
                let sum = fma(weights.get(k), columns.get(column), sums.get(i));
                if comptime!(config.has_ids) {
                    let same = *ids.index(column) == *ids.index(comptime!(history + i));
                    sums.set(i, select(same, sum, sums.get(i)));
                } else {
                    sums.set(i, sum);
                }
            }
        }
    }
    sums
}
