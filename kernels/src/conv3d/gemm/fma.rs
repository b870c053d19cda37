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
//! K loop: [`super::fma_loop`]. K indices are divided out once per threadgroup ([`super::table`]), positions
//! once per thread. Split-K leaves fp32 partial results for `reduce.rs`. Bytes and FLOP per threadgroup:
//! [`super::config`]. Declined: M or K of 2^31 - 1 and above, more than 512 phases of a stride.

use super::config::{RegisterTile, VECTOR, table_entries};
use super::fma_loop::{Element, Operands, k_loop};
use super::index::{GatherArgs, OutputPosition};
use super::mma_loop::SourceRows;
use super::read::{JoinedArgs, Source};
use super::stage::{F32x4, GemmShape, column_of, row_of};
use super::table::{IndexTable, TableLayout};
use super::tap_check::TapCheck;
use crate::conv3d::epilogue::{channel_bias, finished_with_channel, residual_row};
use crate::conv3d::pass::Pass;
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn fma_kernel<E: Float, O: Float, R: Size>(
    source: &[Vector<E, R>],
    weight: &[Element<E>],
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
    #[comptime] _has_residual: bool,
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

    let mut source_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.stage_vectors(tile.tile_m)));
    let mut weight_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.stage_vectors(tile.tile_n)));
    let entries = comptime!(table_entries(tile.tile_k, check));
    let table = IndexTable::new(comptime!(TableLayout {
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

    let operands = Operands::new(
        Source::new(source, cache, joined, &gather, check),
        SourceRows::new_Positions(positions),
        weight,
        weight_group,
        gather.weight_column_stride,
        (first_n, shape.n),
        tile,
    );
    k_loop(&operands, table, &mut source_stage, &mut weight_stage, &mut sums, &work, prefetch);

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
                        let sum = sums[comptime!(i * tile.columns + j)] + *biases.index(j);
                        let channel = first_channel + first_n + column_of(j, tile);
                        let value = finished_with_channel(sum, residual, added, channel, shape.activation);
                        out[at + *offsets.index(j)] = O::cast_from(value);
                    }
                }
            }
        }
    } else if comptime!(tile.columns == VECTOR) {
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
                for j in 0..VECTOR {
                    results[UNIT_POS as usize + comptime!(j * threads)] =
                        sums[comptime!(i * tile.columns + j)];
                }
                for j in 0..VECTOR {
                    let column = first_n + column_of(j, tile);
                    if column < shape.n {
                        let channel = first_channel + column;
                        let sum = results[UNIT_POS as usize + j * threads];
                        let bias = channel_bias(bias, gather.column_channel(channel, patches));
                        let value =
                            finished_with_channel(sum + bias, residual, added, channel, shape.activation);
                        out[at + gather.out_column(channel)] = O::cast_from(value);
                    }
                }
            }
        }
    } else {
        // The same for up to 16 results, in the source's stage, which nobody reads any more.
        let threads = tile.threads();
        let vectors = comptime!(tile.columns / VECTOR);
        let rows = comptime!(tile.rows_at_once());
        // Unknown to compilers: Mesa unrolls what it can count, and LLVM then took twice as long.
        let columns = min(comptime!(tile.columns as u32).runtime(), shape.n) as usize;
        #[unroll]
        for first in 0..comptime!(tile.rows / rows) {
            #[unroll]
            for at in 0..comptime!(rows * vectors) {
                let mut values = F32x4::empty();
                #[unroll]
                for j in 0..VECTOR {
                    values.insert(j, sums[comptime!((first * rows * vectors + at) * VECTOR + j)]);
                }
                source_stage[UNIT_POS as usize + comptime!(at * threads)] = values;
            }
            for i in 0..rows {
                let m = first_m + row_of(comptime!(first * rows), tile) + i as u32;
                if m < shape.m {
                    let at = gather.position_out(m) + slice * shape.slice_stride;
                    let added = residual_row(residual, &gather, m);
                    for j in 0..columns {
                        let column = first_n + column_of(j, tile);
                        if column < shape.n {
                            let channel = first_channel + column;
                            let sums = source_stage[UNIT_POS as usize + (i * vectors + j / VECTOR) * threads];
                            let sum = lane_of(sums, j % VECTOR);
                            let bias = channel_bias(bias, gather.column_channel(channel, patches));
                            let value =
                                finished_with_channel(sum + bias, residual, added, channel, shape.activation);
                            out[at + gather.out_column(channel)] = O::cast_from(value);
                        }
                    }
                }
            }
        }
    }
}

/// An element of a vector, of which only the device knows which.
#[cube]
fn lane_of(values: F32x4, lane: usize) -> f32 {
    let low = select(lane == 0usize, values.extract(0usize), values.extract(1usize));
    let high = select(lane == 2usize, values.extract(2usize), values.extract(3usize));
    select(lane < 2usize, low, high)
}
