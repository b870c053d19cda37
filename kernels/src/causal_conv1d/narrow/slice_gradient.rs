//! `[B, C, T]` backward pass of one slice: dw and db, dx, and the gradients of the states. dpre is the
//! gradient of the sums before the activation.
//!
//! ```text
//! dw[k] += sum over i of dpre[i] * X[i + k - (W-1)]        db += sum over i of dpre[i]
//! dx[i]  = sum over k of w[k] * dpre[i + (W-1) - k]        (+ dfinal where the final state holds step i)
//! ```
//!
//! With sequence ids only pairs of steps with equal ids count; negative ids (padding) give and get nothing.

use super::access::CallParams;
use super::bct::{NarrowConfig, state_index};
use crate::causal_conv1d::args::Present;
use crate::registers::Registers;
use cubecl::prelude::*;

/// Adds the slice's products to the sums of dw and db.
#[cube]
pub(super) fn add_weight_gradient<I: Int>(
    columns: &Registers<f32>,
    gradient: &Registers<f32>,
    ids: &Sequence<I>,
    totals: &Registers<f32>,
    #[comptime] config: NarrowConfig,
) {
    let history = comptime!(4 * config.history_quads());
    let slice_len = comptime!(config.slice_len());
    #[unroll]
    for k in 0..config.taps {
        #[unroll]
        for i in 0..slice_len {
            let column = comptime!(history + i + 1 + k - config.taps);
            let total = fma(gradient.get(i), columns.get(column), totals.get(k));
            if comptime!(config.has_ids) {
                // Neighbouring steps of padding have equal ids too.
                let id = *ids.index(comptime!(history + i));
                let same = *ids.index(column) == id && id >= I::from_int(0);
                totals.set(k, select(same, total, totals.get(k)));
            } else {
                totals.set(k, total);
            }
        }
    }
    #[unroll]
    for i in 0..slice_len {
        totals.set(config.taps, totals.get(config.taps) + gradient.get(i));
    }
}

/// dx of a slice. `dpre[offset..]` and `ids` begin at its first step.
#[cube]
pub(super) fn input_gradient<I: Int>(
    dpre: &Registers<f32>,
    weights: &Registers<f32>,
    ids: &Sequence<I>,
    params: &CallParams,
    #[comptime] offset: usize,
    #[comptime] config: NarrowConfig,
) -> Registers<f32> {
    let slice_len = comptime!(config.slice_len());
    let results = Registers::<f32>::new(slice_len, 0.0f32);
    #[unroll]
    for i in 0..slice_len {
        results.set(i, 0.0f32);
    }
    // Readers forward in time, the order in which `[B, T, C]` adds them: both layouts give the same bits.
    #[unroll]
    for d in 0..config.taps {
        let k = comptime!(config.taps - 1 - d);
        if comptime!(config.branch_free) || k as u32 + params.width >= config.taps as u32 {
            #[unroll]
            for i in 0..slice_len {
                let reader = comptime!(i + d);
                let sum = fma(weights.get(k), dpre.get(comptime!(offset + reader)), results.get(i));
                if comptime!(config.has_ids) {
                    let same = *ids.index(i) == *ids.index(reader);
                    results.set(i, select(same, sum, results.get(i)));
                } else {
                    results.set(i, sum);
                }
            }
        }
    }
    if comptime!(config.has_ids) {
        // dpre is 0 at padding, but an infinite weight makes its product NaN.
        #[unroll]
        for i in 0..slice_len {
            let padding = *ids.index(i) < I::from_int(0);
            results.set(i, select(padding, 0.0f32, results.get(i)));
        }
    }
    results
}

/// Adds the gradient of the final state to the steps that the state holds: those of the last W-1 before `end`
/// whose id is `final_id`. The slice begins at step `first`, and so do `ids`.
#[cube]
pub(super) fn add_final_gradient<H: Float, I: Int>(
    results: &Registers<f32>,
    ids: &Sequence<I>,
    end: u32,
    final_id: I,
    dfinal: &Tensor<H>,
    params: &CallParams,
    b: u32,
    c: u32,
    first: u32,
    #[comptime] config: NarrowConfig,
) {
    #[unroll]
    for i in 0..comptime!(config.slice_len()) {
        let column = first + i as u32 + params.history();
        let mut held = column >= end && column - end < params.history();
        if comptime!(config.has_ids) {
            held = held && *ids.index(i) == final_id;
        }
        if held {
            let gradient = f32::cast_from(dfinal[state_index(dfinal, b, c, column - end)]);
            results.set(i, results.get(i) + gradient);
        }
    }
}

/// Stores the gradient of the initial state: from dpre of the row's first steps, and from the gradient of the
/// final state where that still holds columns of the initial one.
#[cube]
pub(super) fn write_initial_gradient<H: Float, I: Int>(
    dpre: &Registers<f32>,
    weights: &Registers<f32>,
    ids: &Sequence<I>,
    end: u32,
    final_id: I,
    dfinal: &Tensor<H>,
    dinitial: &mut Tensor<H>,
    params: &CallParams,
    b: u32,
    c: u32,
    #[comptime] offset: usize,
    #[comptime] config: NarrowConfig,
) {
    // Column m of `taps - 1`, the last W-1 of which are the state.
    #[unroll]
    for m in 0..comptime!(config.taps - 1) {
        if m as u32 + params.width >= config.taps as u32 {
            let column = m as u32 + params.width - config.taps as u32;
            let mut sum = 0.0f32;
            #[unroll]
            for reader in 0..comptime!(m + 1) {
                let k = comptime!(m - reader);
                if k as u32 + params.width >= config.taps as u32 {
                    let next = fma(weights.get(k), dpre.get(comptime!(offset + reader)), sum);
                    if comptime!(config.has_ids) {
                        // The initial state belongs to the first step's sequence.
                        let first = *ids.index(0);
                        let same = first == *ids.index(reader) && first >= I::from_int(0);
                        sum = select(same, next, sum);
                    } else {
                        sum = next;
                    }
                }
            }
            let mut held = params.has(Present::DFINAL) && column >= end;
            if comptime!(config.has_ids) {
                held = held && (end == 0u32 || *ids.index(0) == final_id);
            }
            if held {
                sum += f32::cast_from(dfinal[state_index(dfinal, b, c, column - end)]);
            }
            let at = state_index(&*dinitial, b, c, column);
            dinitial[at] = H::cast_from(sum);
        }
    }
}
