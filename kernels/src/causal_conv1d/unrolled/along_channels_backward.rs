//! `[B, T, C]` backward in one sweep: steps and channels are shared out as in [`super::along_channels`].
//!
//! ```text
//!   a unit, per block of 4 steps   the sums again -> gradient before the activation (dpre) -> terms of dw and db
//!                                  dpre waits in registers until that of the W-1 steps that follow is known -> dx
//! ```
//!
//! A unit marches one block (two for widths above 4) past its run, for the dpre that its last steps need, without adding
//! their terms. At the end the runs of a cube are added in shared memory: partial sums of dw and db, or the whole ones where
//! the cube was alone with its channels.
//!
//! Bytes: x, dy and dx once; per cube W + 1 sums for each of its channels. Operations per element: 3 W + 1 multiply-adds and
//! the activation's derivative, a block's more per run. Shared memory: 16 bytes per unit.

use super::access::{Quad, Sizes, Strides, quad_of};
use super::along_channels::{
    ChannelShare, Run, channel_bias, channel_taps, read_history, read_history_ids, read_step, step_sums,
    write_step,
};
use super::along_time::{Tile, id_at, state_index};
use super::along_time_backward::store_total;
use crate::activation::activate_gradient_quads;
use crate::causal_conv1d::args::Present;
use crate::cells::Cells;
use crate::grid::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn channels_backward_kernel<X: Float, W: Float, I: Int, N: Size>(
    x: &[Vector<X, N>],
    dy: &[Vector<X, N>],
    weight: &[W],
    bias: &[W],
    initial: &Tensor<X>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    dfinal: &Tensor<X>,
    dx: &mut [Vector<X, N>],
    dinitial: &mut Tensor<X>,
    dw: &mut Tensor<W>,
    db: &mut Tensor<W>,
    partials: &mut Tensor<f32>,
    sizes: Sizes,
    x_strides: Strides,
    dy_strides: Strides,
    dx_strides: Strides,
    share: ChannelShare,
    span: Span,
    #[comptime] tile: Tile,
    #[define(X)] _dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let run = share.run(span.cube(), &sizes);
    let totals = Cells::<Quad>::new(comptime!(tile.taps + 1), Quad::new(0.0f32));
    #[unroll]
    for k in 0..comptime!(tile.taps + 1) {
        totals.set(k, Quad::new(0.0f32));
    }
    if run.exists {
        let weights = channel_taps(weight, &sizes, run.c, tile);
        let bias = channel_bias(bias, &sizes, run.c);
        let columns = Cells::<Quad>::new(comptime!(tile.taps + 3), Quad::new(0.0f32));
        // dpre of the block that is handed back and of those that follow it.
        let ahead = Cells::<Quad>::new(comptime!(tile.taps + 4), Quad::new(0.0f32));
        #[unroll]
        for j in 0..comptime!(tile.taps + 4) {
            ahead.set(j, Quad::new(0.0f32));
        }
        let ids = Cells::<I>::new(comptime!(if tile.packed { tile.taps + 3 } else { 1 }), I::from_int(0));
        let ids_ahead =
            Cells::<I>::new(comptime!(if tile.packed { tile.taps + 4 } else { 1 }), I::from_int(0));
        read_history(x, &x_strides, initial, &sizes, &run, &columns, tile);
        read_history_ids(seq_idx, &sizes, &run, &ids, tile);
        let behind = comptime!(tile.taps as u32 / 4);
        for block in 0..share.blocks + behind {
            let first = run.t + block * 4u32;
            let mut raw = Sequence::<Vector<X, N>>::new();
            let mut raw_dy = Sequence::<Vector<X, N>>::new();
            #[unroll]
            for i in 0..4u32 {
                read_step(x, &x_strides, &sizes, &run, first + i, &mut raw);
                read_step(dy, &dy_strides, &sizes, &run, first + i, &mut raw_dy);
            }
            let gradients = Cells::<Quad>::new(4usize, Quad::new(0.0f32));
            #[unroll]
            for i in 0..4usize {
                columns.set(comptime!(tile.taps - 1 + i), quad_of(&raw, i));
                gradients.set(i, quad_of(&raw_dy, i));
                if comptime!(tile.packed) {
                    let id = id_at(seq_idx.unwrap(), &sizes, run.b, first + i as u32);
                    ids.set(comptime!(tile.taps - 1 + i), id);
                    ids_ahead.set(comptime!(tile.taps + i), id);
                }
            }
            let pre = step_sums(&columns, &weights, &ids, bias, &sizes, tile);
            activate_gradient_quads(&pre, &gradients, 4usize, sizes.activation);
            #[unroll]
            for i in 0..4usize {
                // Not even a NaN beyond the row or at padding gets through.
                let mut counts = first + (i as u32) < sizes.length;
                let column = columns.get(comptime!(tile.taps - 1 + i));
                columns.set(comptime!(tile.taps - 1 + i), select(counts, column, Quad::new(0.0f32)));
                if comptime!(tile.packed) {
                    counts = counts && ids.get(comptime!(tile.taps - 1 + i)) >= I::from_int(0);
                }
                gradients.set(i, select(counts, gradients.get(i), Quad::new(0.0f32)));
                ahead.set(comptime!(tile.taps + i), gradients.get(i));
            }
            if block < share.blocks {
                add_terms(&columns, &gradients, &ids, &totals, tile);
            }
            if block >= behind {
                let first = first - behind * 4u32;
                let results = handed_back(&ahead, &weights, &ids_ahead, &sizes, tile);
                #[unroll]
                for i in 0..4usize {
                    let mut result = results.get(i);
                    if comptime!(tile.states)
                        && sizes.has(Present::DFINAL)
                        && first + i as u32 + sizes.history() >= sizes.length
                    {
                        result += state_quad(dfinal, &sizes, &run, first + i as u32 + sizes.history());
                    }
                    write_step(dx, &dx_strides, &sizes, &run, first + i as u32, result);
                }
                if comptime!(tile.states) && first == 0u32 && sizes.has(Present::DINITIAL) {
                    write_initial(&ahead, &weights, &ids_ahead, dfinal, dinitial, &sizes, &run, tile);
                }
            }
            #[unroll]
            for j in 0..tile.taps {
                ahead.set(j, ahead.get(j + 4));
                if comptime!(tile.packed) {
                    ids_ahead.set(j, ids_ahead.get(j + 4));
                }
            }
            #[unroll]
            for j in 0..comptime!(tile.taps - 1) {
                columns.set(j, columns.get(j + 4));
                if comptime!(tile.packed) {
                    ids.set(j, ids.get(j + 4));
                }
            }
        }
    }
    write_totals(&totals, dw, db, partials, &sizes, &share, &run, tile);
}

/// Adds the terms of four steps to the sums of dw and db.
#[cube]
fn add_terms<I: Int>(
    columns: &Cells<Quad>,
    gradients: &Cells<Quad>,
    ids: &Cells<I>,
    totals: &Cells<Quad>,
    #[comptime] tile: Tile,
) {
    #[unroll]
    for k in 0..tile.taps {
        #[unroll]
        for i in 0..4usize {
            let total = fma(gradients.get(i), columns.get(comptime!(i + k)), totals.get(k));
            if comptime!(tile.packed) {
                // Padding has the ids of padding beside it.
                let own = ids.get(comptime!(i + tile.taps - 1));
                let same = ids.get(comptime!(i + k)) == own && own >= I::from_int(0);
                totals.set(k, select(same, total, totals.get(k)));
            } else {
                totals.set(k, total);
            }
        }
    }
    #[unroll]
    for i in 0..4usize {
        totals.set(tile.taps, totals.get(tile.taps) + gradients.get(i));
    }
}

/// What the first four steps of `ahead` get back from those and the ones that follow.
#[cube]
fn handed_back<I: Int>(
    ahead: &Cells<Quad>,
    weights: &Cells<Quad>,
    ids: &Cells<I>,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) -> Cells<Quad> {
    let results = Cells::<Quad>::new(4usize, Quad::new(0.0f32));
    #[unroll]
    for i in 0..4usize {
        results.set(i, Quad::new(0.0f32));
    }
    #[unroll]
    for k in 0..tile.taps {
        if k as u32 + sizes.width >= tile.taps as u32 {
            #[unroll]
            for i in 0..4usize {
                let reader = comptime!(i + tile.taps - 1 - k);
                let sum = fma(weights.get(k), ahead.get(reader), results.get(i));
                if comptime!(tile.packed) {
                    results.set(i, select(ids.get(i) == ids.get(reader), sum, results.get(i)));
                } else {
                    results.set(i, sum);
                }
            }
        }
    }
    results
}

/// The gradient of the final state at a column of `[initial state | x]` from T on.
#[cube]
fn state_quad<X: Float>(dfinal: &Tensor<X>, sizes: &Sizes, run: &Run, column: u32) -> Quad {
    let mut quad = Quad::new(0.0f32);
    if column - sizes.length < sizes.history() {
        #[unroll]
        for i in 0..4usize {
            let c = min(run.c + i as u32, sizes.channels - 1u32);
            quad.insert(i, f32::cast_from(dfinal[state_index(dfinal, run.b, c, column - sizes.length)]));
        }
    }
    quad
}

/// The gradient of the initial state from that of the row's first steps.
#[cube]
#[allow(clippy::too_many_arguments)]
fn write_initial<X: Float, I: Int>(
    ahead: &Cells<Quad>,
    weights: &Cells<Quad>,
    ids: &Cells<I>,
    dfinal: &Tensor<X>,
    dinitial: &mut Tensor<X>,
    sizes: &Sizes,
    run: &Run,
    #[comptime] tile: Tile,
) {
    // Column m of `taps - 1`, the last W-1 of which are the state.
    #[unroll]
    for m in 0..comptime!(tile.taps - 1) {
        if m as u32 + sizes.width >= tile.taps as u32 {
            let column = m as u32 + sizes.width - tile.taps as u32;
            let mut sum = Quad::new(0.0f32);
            #[unroll]
            for k in 0..comptime!(m + 1) {
                if k as u32 + sizes.width >= tile.taps as u32 {
                    let next = fma(weights.get(k), ahead.get(comptime!(m - k)), sum);
                    if comptime!(tile.packed) {
                        // The state belongs to the first step's sequence.
                        sum = select(ids.get(0usize) == ids.get(comptime!(m - k)), next, sum);
                    } else {
                        sum = next;
                    }
                }
            }
            if sizes.has(Present::DFINAL) && column >= sizes.length {
                sum += state_quad(dfinal, sizes, run, column);
            }
            #[unroll]
            for i in 0..4usize {
                let c = run.c + i as u32;
                if c < sizes.channels {
                    let at = state_index(&*dinitial, run.b, c, column);
                    dinitial[at] = X::cast_from(sum.extract(i));
                }
            }
        }
    }
}

/// Adds the sums of the cube's runs, a tree of fixed shape, and writes them: whole, or as the cube's part.
#[cube]
#[allow(clippy::too_many_arguments)]
fn write_totals<W: Float>(
    totals: &Cells<Quad>,
    dw: &mut Tensor<W>,
    db: &mut Tensor<W>,
    partials: &mut Tensor<f32>,
    sizes: &Sizes,
    share: &ChannelShare,
    run: &Run,
    #[comptime] tile: Tile,
) {
    let mut shared = Shared::<[Quad]>::new_slice(tile.units);
    let unit = UNIT_POS as usize;
    let lanes = share.lane_count as usize;
    #[unroll]
    for k in 0..comptime!(tile.taps + 1) {
        shared[unit] = totals.get(k);
        sync_cube();
        let mut half = share.rows / 2u32;
        while half > 0u32 {
            if run.row < half {
                let other = shared[unit + half as usize * lanes];
                shared[unit] += other;
            }
            sync_cube();
            half /= 2u32;
        }
        if run.exists && run.row == 0u32 && k as u32 + sizes.width >= tile.taps as u32 {
            let slot = k as u32 + sizes.width - tile.taps as u32;
            let total = shared[unit];
            #[unroll]
            for i in 0..4usize {
                let channel = run.c + i as u32;
                if channel < sizes.channels {
                    store_total(total.extract(i), dw, db, partials, sizes, run.part, slot, channel);
                }
            }
        }
        // What has been added up is read before the next sums come.
        sync_cube();
    }
}
