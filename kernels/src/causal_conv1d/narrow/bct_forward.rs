//! Forward pass in `[B, C, T]` layout: threads along the time axis.
//!
//! ```text
//! y[b,c,t] = activation( bias[c] + sum over k < W of weight[c,k] * X(b,c,t-(W-1)+k) ) + residual[b,c,t]
//!
//!             tile of a threadgroup: slices x lanes x slice steps of each of its channels
//!   row       | history | slice | slice | slice | ..     slice: 4 contiguous steps (16-bit words: 8)
//!   lane                    0       1       2            a thread has `slices` of them, `lanes` apart
//!   loads                [------- own -------]           its slice and the 1 or 2 before it (cache hits)
//! ```
//!
//! Threadgroup: `lanes` threads along a row x `threads / lanes` channels, one tile. HBM traffic: x, y and the
//! residual once. Work per element: W FMA and the activation. No shared memory. Any strides; declined:
//! widths above 8. Rows are assigned to threadgroups by
//! [`super::bct`].
//!
//! Not unrolled, slices are loaded and computed one after the other.

use super::access::{CallParams, Strides, quad_of_slice, read_slice, read_taps, write_slice};
use super::bct::{BctWork, NarrowConfig, ids_from, pre_activation, read_slices, slice_columns};
use crate::activation::activate_all;
use crate::causal_conv1d::args::Present;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

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
    params: CallParams,
    x_strides: Strides,
    residual_strides: Strides,
    y_strides: Strides,
    work: BctWork,
    span: Span,
    #[comptime] config: NarrowConfig,
    #[define(X)] _dtype: ElemType,
    #[define(S)] _memory: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    let (rest, tile) = work.blocks_per_row.div_mod(span.index() as u32);
    let (b, group) = work.channel_groups.div_mod(rest);
    let (_, lane, c) = work.position(group);
    if span.is_idle() || c >= params.channels {
        terminate!();
    }
    let first = tile * work.lane_count * config.slices as u32 + lane;
    let mut raw = Sequence::<Vector<S, N>>::new();
    if comptime!(config.unroll) {
        #[unroll]
        for u in 0..config.slices {
            let index = first + u as u32 * work.lane_count;
            read_slices(x, &x_strides, &params, b, c, index, &mut raw, config);
        }
    }
    let weights = read_taps(weight, &params, c, config.taps);
    let bias_value = params.bias_of(bias, c);
    if comptime!(config.unroll) {
        #[unroll]
        for u in 0..config.slices {
            let index = first + u as u32 * work.lane_count;
            write_results::<X, H, S, I, N>(
                &raw,
                initial,
                seq_idx,
                residual,
                y,
                &params,
                &residual_strides,
                &y_strides,
                &weights,
                bias_value,
                b,
                c,
                index,
                u,
                config,
            );
        }
    } else {
        for u in 0..comptime!(config.slices as u32) {
            let index = first + u * work.lane_count;
            let mut raw = Sequence::<Vector<S, N>>::new();
            read_slices(x, &x_strides, &params, b, c, index, &mut raw, config);
            write_results::<X, H, S, I, N>(
                &raw,
                initial,
                seq_idx,
                residual,
                y,
                &params,
                &residual_strides,
                &y_strides,
                &weights,
                bias_value,
                b,
                c,
                index,
                0usize,
                config,
            );
        }
    }
}

/// Stores the results of slice `index` of a row, the thread's slice `u` in `raw`.
#[cube]
#[allow(clippy::too_many_arguments)]
fn write_results<X: Float, H: Float, S: Numeric, I: Int, N: Size>(
    raw: &Sequence<Vector<S, N>>,
    initial: ComptimeOption<&Tensor<H>>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    residual: ComptimeOption<&[Vector<S, N>]>,
    y: &mut [Vector<S, N>],
    params: &CallParams,
    residual_strides: &Strides,
    y_strides: &Strides,
    weights: &Registers<f32>,
    bias: f32,
    b: u32,
    c: u32,
    index: u32,
    #[comptime] u: usize,
    #[comptime] config: NarrowConfig,
) {
    let slice_len = comptime!(config.slice_len());
    let step = index * slice_len as u32;
    let columns = slice_columns::<X, H, S, N>(raw, initial, params, b, c, index, u, config);
    let history = comptime!(4 * config.history_quads());
    let ids = ids_from(seq_idx, params, b, step - history as u32, comptime!(history + slice_len));
    let results = pre_activation(&columns, weights, &ids, bias, params, config);
    activate_all(&results, slice_len, params.activation, config.branch_free);
    if comptime!(config.extras) && params.has(Present::RESIDUAL) {
        let mut added = Sequence::<Vector<S, N>>::new();
        let (from, row) = (residual.unwrap(), residual_strides.row(b, c));
        read_slice(from, row, residual_strides.t, step, params.length, &mut added, config.words);
        #[unroll]
        for q in 0..comptime!(slice_len / 4) {
            let quad = quad_of_slice::<X, S, N>(&added, 0usize, q, config.words);
            #[unroll]
            for i in 0..4usize {
                let j = comptime!(4 * q + i);
                results.set(j, results.get(j) + quad.extract(i));
            }
        }
    }
    if comptime!(config.has_ids) {
        #[unroll]
        for i in 0..slice_len {
            let padding = *ids.index(comptime!(history + i)) < I::from_int(0);
            results.set(i, select(padding, 0.0f32, results.get(i)));
        }
    }
    let row = y_strides.row(b, c);
    write_slice::<X, S, N>(y, row, y_strides.t, step, params.length, &results, config.words);
}
