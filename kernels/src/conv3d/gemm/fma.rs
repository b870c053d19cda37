//! Gathered implicit GEMM with fp32 multiply-adds: forward pass and input gradient, any device, any storage
//! type.
//!
//! ```text
//! out[position, n] = activation( bias[n] + sum over k = (c, tap) of source(position, k) * weight(k, n) )
//!                    + residual[position, n]
//!
//!                    tile_n channels
//!                  +-----------------+
//!                  | weight          | tile_k      a stage, in fp32
//!         tile_k   +-----------------+
//!       +--------+ |                 |
//!       | source | | sums            | tile_m output positions, in registers
//!       +--------+ +-----------------+
//!
//! source, out  [N, C, D, H, W], any strides; the residual has out's shape and strides of its own
//! weight       [N / groups, K] of each group, any strides; packed ([`super::pack`]) for input gradients
//! ```
//!
//! K loop with `prefetch`: load the next stage into registers, multiply the current one, store the next one
//! to the same shared memory. Without: load a stage to shared memory, multiply it; the loads are a loop,
//! which takes few registers and a third of the code. K indices are divided out once per threadgroup
//! ([`super::table`]), positions once per thread. Split-K leaves fp32 partial results for `reduce.rs`. Bytes
//! and FLOP per threadgroup: [`super::config`]. Declined: M or K of 2^31 - 1 and above, more than
//! 512 phases of a stride.

use super::config::{RegisterTile, VECTOR, table_entries};
use super::index::{GatherArgs, OutputPosition};
use super::read::{JoinedArgs, Source};
use super::stage::{
    F32x4, GemmShape, column_of, multiply, row_of, store_lanes_along_k, store_lanes_along_m,
    store_vector_along_k, store_vector_along_m, vector_along_k, zero_stage,
};
use super::table::{IndexTable, TableLayout};
use super::tap_check::TapCheck;
use crate::activation::activate_by_code;
use crate::conv3d::epilogue::{add_residual, channel_bias, residual_of_channel, residual_row};
use crate::conv3d::pass::Pass;
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn fma_kernel<E: Float, O: Float, R: Size>(
    source: &[Vector<E, R>],
    weight: &[E],
    cache: ComptimeOption<&[Vector<E, R>]>,
    bias: ComptimeOption<&Tensor<E>>,
    residual: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    gather: GatherArgs,
    joined: ComptimeOption<JoinedArgs>,
    shape: GemmShape,
    span: Span,
    #[comptime] check: TapCheck,
    #[comptime] patches: bool,
    #[comptime] tile: RegisterTile,
    #[comptime] prefetch: bool,
    // For the kernel's key, in which optional arguments do not count.
    #[comptime] has_residual: bool,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // Uniform for the threadgroup: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let work = shape.work_tile(span.index(), tile.tile_m, tile.tile_n);
    let group = work.group;
    let slice = work.slice;
    let first_m = work.first_m;
    let first_n = work.first_n;
    let first_k = work.first_k;
    let end_k = work.end_k;

    let mut source_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.stage_vectors(tile.tile_m)));
    let mut weight_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.stage_vectors(tile.tile_n)));
    let entries = comptime!(table_entries(tile.tile_k, check));
    let mut table = IndexTable::new(comptime!(TableLayout {
        entries,
        offsets: true,
        pass: Pass::Forward,
        check,
        threads: tile.threads(),
    }));
    let mut sums = Array::<f32>::new(comptime!(tile.rows * tile.columns));
    #[unroll]
    for i in 0..comptime!(tile.rows * tile.columns) {
        sums[i] = 0.0f32;
    }

    let source_channel = gather.source_channel(group * shape.source_channels);
    let weight_group = gather.weight_group(group);
    // Adjacent positions in one load.
    let source_width = R::value();
    let mut positions = Sequence::<OutputPosition>::new();
    #[unroll]
    for i in 0..comptime!(VECTOR / source_width) {
        let in_tile = UNIT_POS % comptime!((tile.tile_m / VECTOR) as u32) * VECTOR as u32 + i as u32;
        // Clamped: results past M are not stored.
        let mut position = gather.position(min(first_m + in_tile, shape.m - source_width as u32), check);
        position.source += source_channel;
        positions.push(position);
    }

    let source = Source::new(source, cache, joined, &gather, check);
    let columns = (first_n, shape.n);

    // With `prefetch` each iteration loads the stage at `stage_k` and multiplies the one before; the last
    // loads nothing.
    let stage = comptime!(tile.tile_k as u32).runtime();
    let mut past_k = end_k;
    if prefetch {
        zero_stage(&mut source_stage, tile.threads());
        zero_stage(&mut weight_stage, tile.threads());
        past_k += stage;
    }
    let mut stage_k = first_k;
    let mut at = 0usize.runtime();
    table.fill_half(&gather, 0usize, stage_k, end_k);
    sync_cube();
    while stage_k < past_k {
        // Before the loads: a divergent branch after them may stall on loads in flight.
        table.fill_other_half(&gather, at, stage_k, end_k);
        if prefetch {
            let mut sources = Sequence::<Vector<E, R>>::new();
            #[unroll]
            for load in 0..comptime!(tile.loads(tile.tile_m)) {
                push_source(&mut sources, &source, &positions, &table, at, load, tile);
            }
            let mut weights = Sequence::<E>::new();
            #[unroll]
            for load in 0..comptime!(tile.loads(tile.tile_n)) {
                push_weight(&mut weights, weight, &gather, &table, at, weight_group, columns, load, tile);
            }
            multiply(&source_stage, &weight_stage, &mut sums, tile, true);
            sync_cube();
            store_lanes_along_m(&sources, &mut source_stage, tile);
            store_lanes_along_k(&weights, &mut weight_stage, tile.tile_n, tile);
        } else {
            for load in 0..tile.loads(tile.tile_m) {
                let mut next = Sequence::<Vector<E, R>>::new();
                push_source(&mut next, &source, &positions, &table, at, load, tile);
                store_vector_along_m(&next, 0usize, load, &mut source_stage, tile);
            }
            for load in 0..tile.loads(tile.tile_n) {
                let mut next = Sequence::<E>::new();
                push_weight(&mut next, weight, &gather, &table, at, weight_group, columns, load, tile);
                store_vector_along_k(&next, 0usize, load, &mut weight_stage, tile.tile_n, tile);
            }
            sync_cube();
            multiply(&source_stage, &weight_stage, &mut sums, tile, false);
        }
        stage_k += stage;
        at = (at + tile.tile_k) % entries;
        sync_cube();
    }

    let first_channel = group * shape.n;
    if prefetch {
        // Offsets and biases of the thread's columns, once for all rows.
        let mut offsets = Sequence::<usize>::new();
        let mut biases = Sequence::<f32>::new();
        #[unroll]
        for j in 0..comptime!(tile.columns) {
            let channel = first_channel + min(first_n + column_of(j, tile), shape.n - 1u32);
            offsets.push(gather.out_column(channel));
            biases.push(channel_bias(bias, gather.column_channel(channel, patches)));
        }
        #[unroll]
        for i in 0..comptime!(tile.rows) {
            let m = first_m + row_of(i, tile);
            if m < shape.m {
                let at = gather.position_out(m) + slice * shape.slice_stride;
                let added = residual_row(residual, &gather, m);
                #[unroll]
                for j in 0..comptime!(tile.columns) {
                    if first_n + column_of(j, tile) < shape.n {
                        let value = sums[comptime!(i * tile.columns + j)] + *biases.index(j);
                        let mut value = activate_by_code(value, shape.activation);
                        if comptime!(has_residual) {
                            let channel = first_channel + first_n + column_of(j, tile);
                            let added = residual_of_channel(residual, added, channel);
                            value = add_residual(value, added, shape.activation);
                        }
                        out[at + *offsets.index(j)] = O::cast_from(value);
                    }
                }
            }
        }
    } else {
        // Four results at a time through shared memory, so that the stores are a loop. Unrolled they were
        // most of the code. A thread reads what it has written itself.
        let threads = tile.threads();
        let mut results = Shared::<[f32]>::new_slice(comptime!(VECTOR * threads));
        #[unroll]
        for i in 0..comptime!(tile.rows) {
            let m = first_m + row_of(i, tile);
            if m < shape.m {
                let at = gather.position_out(m) + slice * shape.slice_stride;
                let added = residual_row(residual, &gather, m);
                #[unroll]
                for vector in 0..comptime!(tile.columns / VECTOR) {
                    #[unroll]
                    for j in 0..VECTOR {
                        results[UNIT_POS as usize + comptime!(j * threads)] =
                            sums[comptime!(i * tile.columns + vector * VECTOR + j)];
                    }
                    for j in 0..VECTOR {
                        let column = first_n + column_of(j + comptime!(vector * VECTOR), tile);
                        if column < shape.n {
                            let channel = first_channel + column;
                            let sum = results[UNIT_POS as usize + j * threads];
                            let bias = channel_bias(bias, gather.column_channel(channel, patches));
                            let value = activate_by_code(sum + bias, shape.activation);
                            let added = residual_of_channel(residual, added, channel);
                            let value = add_residual(value, added, shape.activation);
                            out[at + gather.out_column(channel)] = O::cast_from(value);
                        }
                    }
                }
            }
        }
    }
}

/// Loads a thread's `load`-th four adjacent positions of a K index, lanes along positions (coalesced).
#[cube]
fn push_source<E: Float, R: Size>(
    values: &mut Sequence<Vector<E, R>>,
    source: &Source<Vector<E, R>>,
    positions: &Sequence<OutputPosition>,
    table: &IndexTable,
    at: usize,
    load: usize,
    #[comptime] tile: RegisterTile,
) {
    let source_width = R::value();
    let k = (UNIT_POS as usize + load * comptime!(tile.threads())) / comptime!(tile.tile_m / VECTOR);
    let tap = table.tap(at + k);
    #[unroll]
    for i in 0..comptime!(VECTOR / source_width) {
        values.push(source.read(positions.index(i), &tap));
    }
}

/// Loads a thread's `load`-th four columns of its K index, lanes along K (coalesced). `columns`: the tile's
/// first, and how many there are.
#[cube]
fn push_weight<E: Float>(
    values: &mut Sequence<E>,
    weight: &[E],
    gather: &GatherArgs,
    table: &IndexTable,
    at: usize,
    weight_group: usize,
    columns: (u32, u32),
    load: usize,
    #[comptime] tile: RegisterTile,
) {
    let k = at + UNIT_POS as usize % tile.tile_k;
    let at = weight_group + table.offset(k);
    let exists = table.exists(k);
    let vector = vector_along_k(load, tile);
    #[unroll]
    for i in 0..VECTOR {
        // Clamped: results past N are not stored.
        let column = min(columns.0 + (vector * VECTOR + i) as u32, columns.1 - 1u32);
        let mut value = E::from_int(0);
        if exists {
            value = weight[at + gather.weight_column(column)];
        }
        values.push(value);
    }
}
