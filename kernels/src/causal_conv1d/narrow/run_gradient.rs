//! `[B, C, T]` backward, what a unit does with one run: its terms of dw and db, what the steps that read it
//! hand back to it, the gradients of the states.

use super::access::Sizes;
use super::bct::{Tile, state_index};
use crate::causal_conv1d::args::Present;
use crate::registers::Registers;
use cubecl::prelude::*;

/// Adds the terms of a run to the sums of dw and db.
#[cube]
pub(super) fn add_terms<I: Int>(
    columns: &Registers<f32>,
    gradient: &Registers<f32>,
    ids: &Sequence<I>,
    totals: &Registers<f32>,
    #[comptime] tile: Tile,
) {
    let own = comptime!(4 * tile.before());
    let run = comptime!(tile.run());
    #[unroll]
    for k in 0..tile.taps {
        #[unroll]
        for i in 0..run {
            let column = comptime!(own + i + 1 + k - tile.taps);
            let total = fma(gradient.get(i), columns.get(column), totals.get(k));
            if comptime!(tile.packed) {
                // Padding has the ids of padding beside it.
                let own = *ids.index(comptime!(own + i));
                let same = *ids.index(column) == own && own >= I::from_int(0);
                totals.set(k, select(same, total, totals.get(k)));
            } else {
                totals.set(k, total);
            }
        }
    }
    #[unroll]
    for i in 0..run {
        totals.set(tile.taps, totals.get(tile.taps) + gradient.get(i));
    }
}

/// What the steps from a run on hand back to it: `ahead[offset..]` and `ids` begin with the run's own.
#[cube]
pub(super) fn handed_back<I: Int>(
    ahead: &Registers<f32>,
    weights: &Registers<f32>,
    ids: &Sequence<I>,
    sizes: &Sizes,
    #[comptime] offset: usize,
    #[comptime] tile: Tile,
) -> Registers<f32> {
    let run = comptime!(tile.run());
    let results = Registers::<f32>::new(run, 0.0f32);
    #[unroll]
    for i in 0..run {
        results.set(i, 0.0f32);
    }
    #[unroll]
    for k in 0..tile.taps {
        if comptime!(tile.straight) || k as u32 + sizes.width >= tile.taps as u32 {
            #[unroll]
            for i in 0..run {
                let reader = comptime!(i + tile.taps - 1 - k);
                let sum = fma(weights.get(k), ahead.get(comptime!(offset + reader)), results.get(i));
                if comptime!(tile.packed) {
                    let same = *ids.index(i) == *ids.index(reader);
                    results.set(i, select(same, sum, results.get(i)));
                } else {
                    results.set(i, sum);
                }
            }
        }
    }
    if comptime!(tile.packed) {
        // Padding reads padding: what it is handed back is 0, unless the weight is infinite.
        #[unroll]
        for i in 0..run {
            let padding = *ids.index(i) < I::from_int(0);
            results.set(i, select(padding, 0.0f32, results.get(i)));
        }
    }
    results
}

/// Adds the gradient of the final state to those steps of the run from `first` on that it holds: of the steps
/// before `end` those with the id `own`. `ids` begin with the run's own.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn add_final<H: Float, I: Int>(
    results: &Registers<f32>,
    ids: &Sequence<I>,
    end: u32,
    own: I,
    dfinal: &Tensor<H>,
    sizes: &Sizes,
    b: u32,
    c: u32,
    first: u32,
    #[comptime] tile: Tile,
) {
    #[unroll]
    for i in 0..comptime!(tile.run()) {
        let column = first + i as u32 + sizes.history();
        let mut held = column >= end && column - end < sizes.history();
        if comptime!(tile.packed) {
            held = held && *ids.index(i) == own;
        }
        if held {
            let gradient = f32::cast_from(dfinal[state_index(dfinal, b, c, column - end)]);
            results.set(i, results.get(i) + gradient);
        }
    }
}

/// The gradient of the initial state from that of the row's first steps, and from that of the final state
/// where that holds it.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn write_initial<H: Float, I: Int>(
    ahead: &Registers<f32>,
    weights: &Registers<f32>,
    ids: &Sequence<I>,
    end: u32,
    own: I,
    dfinal: &Tensor<H>,
    dinitial: &mut Tensor<H>,
    sizes: &Sizes,
    b: u32,
    c: u32,
    #[comptime] offset: usize,
    #[comptime] tile: Tile,
) {
    // Column m of `taps - 1`, the last W-1 of which are the state.
    #[unroll]
    for m in 0..comptime!(tile.taps - 1) {
        if m as u32 + sizes.width >= tile.taps as u32 {
            let column = m as u32 + sizes.width - tile.taps as u32;
            let mut sum = 0.0f32;
            #[unroll]
            for k in 0..comptime!(m + 1) {
                if k as u32 + sizes.width >= tile.taps as u32 {
                    let next = fma(weights.get(k), ahead.get(comptime!(offset + m - k)), sum);
                    if comptime!(tile.packed) {
                        // The state belongs to the first step's sequence.
                        let first = *ids.index(0);
                        let same = first == *ids.index(comptime!(m - k)) && first >= I::from_int(0);
                        sum = select(same, next, sum);
                    } else {
                        sum = next;
                    }
                }
            }
            let mut held = sizes.has(Present::DFINAL) && column >= end;
            if comptime!(tile.packed) {
                held = held && (end == 0u32 || *ids.index(0) == own);
            }
            if held {
                sum += f32::cast_from(dfinal[state_index(dfinal, b, c, column - end)]);
            }
            let at = state_index(&*dinitial, b, c, column);
            dinitial[at] = H::cast_from(sum);
        }
    }
}
