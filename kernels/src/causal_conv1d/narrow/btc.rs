//! Forward pass in `[B, T, C]` layout: a thread goes along time with one or four contiguous channels.
//!
//! ```text
//! y[b,t,c] = activation( bias[c] + sum over k < W of weight[c,k] * X(b,c,t-(W-1)+k) ) + residual[b,t,c]
//!
//!             channels ->                  thread: 1 or 4 channels x a segment of `steps_per_segment` steps
//!           | lane | lane | lane | ..      threadgroup: `lanes` threads along the channels x `rows` segments
//!   time    | -- segment 0 ----- |
//!     |     | -- segment 1 ----- |         the last `taps` steps are a register ring: step t is in slot
//!     v       ..                           t mod taps; an iteration covers a multiple of `taps` steps, so
//!                                          that slots are compile-time constants and nothing is moved
//! ```
//!
//! HBM traffic: x, y and the residual once; the W-1 steps before a segment are cache hits. Work per element:
//! W FMA and the activation. No shared memory. Any strides; declined: widths above 8.
//! [`super::btc_backward`] assigns segments to threads by the same [`BtcWork`].
//!
//! The channels of a thread (`C`, [`NarrowConfig::channels`]) multiply its
//! registers: four where the device wants long straight-line code, else one, for occupancy. A subgroup's
//! loads are contiguous either way.

use super::access::{CallParams, Strides};
use super::bct::{NarrowConfig, id_at, state_at};
use crate::activation::activate_vector;
use crate::causal_conv1d::args::Present;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// The channels of a thread at one step, in fp32.
pub(super) type Lanes<C> = Vector<f32, C>;

/// Work assignment: which channels and which segments a threadgroup has.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct BtcWork {
    /// Threads along the channels.
    pub(super) lanes: FastDivmod<u32>,
    pub(super) lane_count: u32,
    /// Segments of a threadgroup.
    pub(super) rows: u32,
    /// Threadgroups that cover the channels.
    pub(super) channel_groups: FastDivmod<u32>,
    /// Segments of a row of the batch, and of the whole batch.
    pub(super) segments_per_row: FastDivmod<u32>,
    pub(super) segments: u32,
    /// Loop iterations of a segment, and its steps but for the row's last.
    pub(super) iterations: u32,
    pub(super) steps_per_segment: u32,
}

/// A thread's segment and channels.
#[derive(CubeType, Clone, Copy)]
pub(super) struct TimeSegment {
    /// Number of the partial sum: the threadgroup's index among those with its channels.
    pub(super) partial: u32,
    /// Row of the thread in its threadgroup.
    pub(super) row: u32,
    /// First channel.
    pub(super) c: u32,
    pub(super) b: u32,
    /// First step.
    pub(super) t: u32,
    /// Whether segment and channel are in range.
    pub(super) exists: bool,
}

#[cube]
impl BtcWork {
    pub(super) fn segment<C: Size>(&self, threadgroup: usize, params: &CallParams) -> TimeSegment {
        let (partial, group) = self.channel_groups.div_mod(threadgroup as u32);
        let (row, lane) = self.lanes.div_mod(UNIT_POS);
        let channels = C::value();
        let c = (group * self.lane_count + lane) * channels as u32;
        let number = partial * self.rows + row;
        let exists = number < self.segments && c < params.channels;
        let (b, index) = self.segments_per_row.div_mod(min(number, self.segments - 1u32));
        TimeSegment { partial, row, c: select(exists, c, 0u32), b, t: index * self.steps_per_segment, exists }
    }
}

/// Loads the thread's channels at step `t`, as one vector or one by one through the strides; a `t` from `end`
/// on loads step 0 as a stand-in. No use of the values here, so that loads of several steps are in flight at
/// once.
#[cube]
pub(super) fn read_step<X: Float, N: Size, C: Size>(
    source: &[Vector<X, N>],
    strides: &Strides,
    params: &CallParams,
    segment: &TimeSegment,
    t: u32,
    end: u32,
    raw: &mut Sequence<Vector<X, N>>,
) {
    let step = select(t < end, t, 0u32);
    let base = strides.row(segment.b, 0u32) + step as usize * strides.t;
    let (width, channels) = (N::value(), C::value());
    #[unroll]
    for i in 0..comptime!(channels / width) {
        let c = segment.c + i as u32;
        let mut offset = c as usize;
        if comptime!(width == 1) {
            offset *= strides.c;
        }
        let mut at = base + offset;
        // The first channel always exists.
        if comptime!(i > 0) {
            at = select(c < params.channels, at, 0usize);
        }
        raw.push(source[at / width]);
    }
}

/// The thread's channels at step number `step` of those that [`read_step`] loaded into `raw`.
#[cube]
pub(super) fn channels_of<X: Float, N: Size, C: Size>(
    raw: &Sequence<Vector<X, N>>,
    #[comptime] step: usize,
) -> Lanes<C> {
    let mut values = Lanes::<C>::new(0.0f32);
    let (width, channels) = (N::value(), C::value());
    if comptime!(width == channels) {
        values = Vector::cast_from(*raw.index(step));
    } else {
        #[unroll]
        for i in 0..channels {
            values.insert(i, f32::cast_from(raw.index(comptime!(channels * step + i)).extract(0usize)));
        }
    }
    values
}

/// Stores the thread's channels at step `t`.
#[cube]
pub(super) fn write_step<X: Float, N: Size, C: Size>(
    target: &mut [Vector<X, N>],
    strides: &Strides,
    params: &CallParams,
    segment: &TimeSegment,
    t: u32,
    values: Lanes<C>,
) {
    if segment.exists && t < params.length {
        let base = strides.row(segment.b, 0u32) + t as usize * strides.t;
        let (width, channels) = (N::value(), C::value());
        if comptime!(width > 1) {
            target[(base + segment.c as usize) / width] = Vector::cast_from(values);
        } else if comptime!(channels == 1) {
            target[base + segment.c as usize * strides.c] = Vector::cast_from(values);
        } else {
            #[unroll]
            for i in 0..channels {
                let c = segment.c + i as u32;
                if c < params.channels {
                    let value = X::cast_from(values.extract(i));
                    target[base + c as usize * strides.c] = Vector::<X, N>::new(value);
                }
            }
        }
    }
}

/// Tap registers of the thread's channels, the filter in the last W.
#[cube]
pub(super) fn channel_taps<W: Float, C: Size>(
    weight: &[W],
    params: &CallParams,
    c: u32,
    #[comptime] config: NarrowConfig,
) -> Registers<Lanes<C>> {
    let weights = Registers::<Lanes<C>>::new(config.taps, Lanes::<C>::new(0.0f32));
    #[unroll]
    for k in 0..config.taps {
        let mut values = Lanes::<C>::new(0.0f32);
        #[unroll]
        for i in 0..C::value() {
            let channel = min(c + i as u32, params.channels - 1u32);
            values.insert(i, params.tap(weight, channel, k as u32, config.taps));
        }
        weights.set(k, values);
    }
    weights
}

/// The bias of the thread's channels; 0 without a bias.
#[cube]
pub(super) fn channel_bias<W: Float, C: Size>(bias: &[W], params: &CallParams, c: u32) -> Lanes<C> {
    let mut values = Lanes::<C>::new(0.0f32);
    #[unroll]
    for i in 0..C::value() {
        let channel = min(c + i as u32, params.channels - 1u32);
        values.insert(i, params.bias_of(bias, channel));
    }
    values
}

/// Fills the ring with the `taps - 1` steps before the segment, or the initial state, in slots 1 on: the
/// segment's first step goes to slot 0.
#[cube]
pub(super) fn read_history<X: Float, H: Float, N: Size, C: Size>(
    x: &[Vector<X, N>],
    strides: &Strides,
    initial: ComptimeOption<&Tensor<H>>,
    params: &CallParams,
    segment: &TimeSegment,
    columns: &Registers<Lanes<C>>,
    #[comptime] config: NarrowConfig,
) {
    if segment.t > 0u32 {
        let mut raw = Sequence::<Vector<X, N>>::new();
        #[unroll]
        for j in 0..comptime!(config.taps - 1) {
            // Segments have at least `taps` steps.
            let t = segment.t + j as u32 - comptime!(config.taps as u32 - 1);
            read_step::<X, N, C>(x, strides, params, segment, t, params.length, &mut raw);
        }
        #[unroll]
        for j in 0..comptime!(config.taps - 1) {
            columns.set(comptime!(j + 1), channels_of::<X, N, C>(&raw, j));
        }
    } else {
        #[unroll]
        for j in 0..comptime!(config.taps - 1) {
            let mut values = Lanes::<C>::new(0.0f32);
            if comptime!(config.extras)
                && params.has(Present::INITIAL)
                && j as u32 + params.width >= config.taps as u32
            {
                #[unroll]
                for i in 0..C::value() {
                    let channel = min(segment.c + i as u32, params.channels - 1u32);
                    let e = j as u32 + params.width - config.taps as u32;
                    values.insert(i, state_at(initial.unwrap(), params, segment.b, channel, e));
                }
            }
            columns.set(comptime!(j + 1), values);
        }
    }
}

/// The ids of the steps before a segment, in the same slots.
#[cube]
pub(super) fn read_history_ids<I: Int>(
    seq_idx: ComptimeOption<&Tensor<I>>,
    params: &CallParams,
    segment: &TimeSegment,
    ids: &Registers<I>,
    #[comptime] config: NarrowConfig,
) {
    if comptime!(seq_idx.is_some()) {
        #[unroll]
        for j in 0..comptime!(config.taps - 1) {
            let t = segment.t + j as u32 - comptime!(config.taps as u32 - 1);
            ids.set(comptime!(j + 1), id_at(seq_idx.unwrap(), params, segment.b, t));
        }
    }
}

/// The sum before the activation at the step in `slot` of the ring.
#[cube]
pub(super) fn step_pre_activation<I: Int, C: Size>(
    columns: &Registers<Lanes<C>>,
    weights: &Registers<Lanes<C>>,
    ids: &Registers<I>,
    bias: Lanes<C>,
    params: &CallParams,
    #[comptime] slot: usize,
    #[comptime] config: NarrowConfig,
) -> Lanes<C> {
    let mut sum = bias;
    #[unroll]
    for k in 0..config.taps {
        if comptime!(config.branch_free) || k as u32 + params.width >= config.taps as u32 {
            let column = comptime!((slot + 1 + k) % config.taps);
            let next = fma(weights.get(k), columns.get(column), sum);
            if comptime!(config.has_ids) {
                sum = select(ids.get(column) == ids.get(slot), next, sum);
            } else {
                sum = next;
            }
        }
    }
    sum
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn channels_forward_kernel<X: Float, W: Float, H: Float, I: Int, N: Size, C: Size>(
    x: &[Vector<X, N>],
    weight: &[W],
    bias: &[W],
    initial: ComptimeOption<&Tensor<H>>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    residual: ComptimeOption<&[Vector<X, N>]>,
    y: &mut [Vector<X, N>],
    params: CallParams,
    x_strides: Strides,
    residual_strides: Strides,
    y_strides: Strides,
    work: BtcWork,
    span: Span,
    #[comptime] config: NarrowConfig,
    #[define(X)] _dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    let segment = work.segment::<C>(span.index(), &params);
    if span.is_idle() || !segment.exists {
        terminate!();
    }
    let weights = channel_taps::<W, C>(weight, &params, segment.c, config);
    let bias = channel_bias::<W, C>(bias, &params, segment.c);
    let columns = Registers::<Lanes<C>>::new(config.taps, Lanes::<C>::new(0.0f32));
    let ids = Registers::<I>::new(comptime!(if config.has_ids { config.taps } else { 1 }), I::from_int(0));
    read_history(x, &x_strides, initial, &params, &segment, &columns, config);
    read_history_ids(seq_idx, &params, &segment, &ids, config);
    for iteration in 0..work.iterations {
        let first = segment.t + iteration * config.steps_per_iteration() as u32;
        let mut raw = Sequence::<Vector<X, N>>::new();
        #[unroll]
        for i in 0..config.steps_per_iteration() {
            if comptime!(i % config.load_batch == 0) {
                #[unroll]
                for j in 0..config.load_batch {
                    let t = first + comptime!((i + j) as u32);
                    read_step::<X, N, C>(x, &x_strides, &params, &segment, t, params.length, &mut raw);
                }
            }
            let slot = comptime!(i % config.taps);
            columns.set(slot, channels_of::<X, N, C>(&raw, i));
            if comptime!(config.has_ids) {
                ids.set(slot, id_at(seq_idx.unwrap(), &params, segment.b, first + i as u32));
            }
            let sum = step_pre_activation(&columns, &weights, &ids, bias, &params, slot, config);
            let mut result = activate_vector::<C>(sum, params.activation, config.branch_free);
            if comptime!(config.extras) && params.has(Present::RESIDUAL) {
                let mut added = Sequence::<Vector<X, N>>::new();
                let (from, t) = (residual.unwrap(), first + i as u32);
                read_step::<X, N, C>(
                    from,
                    &residual_strides,
                    &params,
                    &segment,
                    t,
                    params.length,
                    &mut added,
                );
                result += channels_of::<X, N, C>(&added, 0usize);
            }
            if comptime!(config.has_ids) {
                let padding = ids.get(slot) < I::from_int(0);
                result = select(padding, Lanes::<C>::new(0.0f32), result);
            }
            write_step(y, &y_strides, &params, &segment, first + i as u32, result);
        }
    }
}
