//! Gathered implicit GEMM on matrix units (cooperative matrices, simdgroup matrices), fp32 accumulation:
//! forward pass and input gradient.
//!
//! ```text
//! out[position, n] = activation( bias[n] + sum over k = (c, tap) of source(position, k) * weight(k, n) )
//!                    + residual[position, n]
//!
//!                  tile_m output positions
//!               +----------+----------+    a stage:        tile_k of tile_m positions and tile_n channels
//!     tile_n    | subgroup | subgroup |    a subgroup:     subgroup_n x subgroup_m results, in fragments
//!    channels   +----------+----------+    a threadgroup:  (tile_n / subgroup_n) * (tile_m / subgroup_m)
//!               | subgroup | subgroup |                    subgroups of 32
//!               +----------+----------+
//!
//! source, out  [N, C, D, H, W], any strides; the residual has out's shape and strides of its own
//! weight       [N / groups, K] of each group, any strides; packed ([`super::pack`]) for input gradients
//! ```
//!
//! Lanes load along positions, which are adjacent in memory. The source's stage is K-major, but M-major where
//! whole vectors of positions are loaded (pointwise-in-frame windows, [`super::vectors`]). The weight's stage
//! is K-major where vectors along K are loaded, else N-major. K loop as in [`super::fma`], fragments and
//! epilogue: [`super::fragments`], bytes and FLOP: [`super::config`]. Declined: what [`super::fma`] declines,
//! and types for which the device has no matrices with fp32 accumulators.

use super::config::{MatrixTile, table_entries};
use super::fragments::{
    channel_rows, epilogue, load_channels_via_table, load_rows, multiply, or_zero, store_rows,
};
use super::index::{GatherArgs, OutputPosition};
use super::read::{JoinedArgs, inside_or_zero, read_anything, read_source};
use super::stage::{GemmShape, zero_stage};
use super::table::{IndexTable, fill_half, fill_next_half, fill_other_half};
use super::tap_check::TapCheck;
use crate::conv3d::mma::accumulators;
use crate::conv3d::pass::Pass;
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn mma_kernel<E: Float, S: Float, O: Float, V: Size, W: Size, R: Size>(
    source: &[Vector<E, R>],
    weight: &[Vector<E, W>],
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
    #[comptime] tile: MatrixTile,
    #[comptime] prefetch: bool,
    #[comptime] branches: bool,
    #[comptime] size: usize,
    // For the kernel's key, in which optional arguments do not count.
    #[comptime] _has_residual: bool,
    #[define(E)] _dtype: ElemType,
    #[define(S)] _stage_dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // Uniform for the threadgroup: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let work = shape.work_tile(span.index(), tile.tile_m, tile.tile_n);
    let group = work.group;
    let first_m = work.first_m;
    let first_n = work.first_n;
    let first_k = work.first_k;
    let end_k = work.end_k;

    let width = V::value();
    // Adjacent positions in one load.
    let source_width = R::value();
    let source_k_major = comptime!(source_width == 1);
    let (source_rows, source_row) = comptime!(tile.source_stage(source_k_major, width, size));
    let mut source_stage = Shared::<[Vector<S, V>]>::new_slice(comptime!(source_rows * source_row));
    // Adjacent K indices in one load.
    let weight_width = W::value();
    let weight_k_major = comptime!(weight_width > 1);
    let (weight_rows, weight_row) = comptime!(tile.channel_stage(weight_k_major, width, size));
    let mut weight_stage = Shared::<[Vector<S, V>]>::new_slice(comptime!(weight_rows * weight_row));
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(tile.subgroups() * tile.fragment * tile.fragment));
    let entries =
        comptime!(if branches { table_entries(tile.tile_k, check) } else { tile.table_entries(check) });
    // Without branches vectors of the weight need no offsets: their rows are K itself.
    let offsets = comptime!(branches || weight_width == 1);
    let mut table = IndexTable::new(entries, offsets, comptime!(check.needs_coordinates()));
    let thread = UNIT_POS as usize;
    // A thread loads the same positions in all stages.
    let count = comptime!(tile.positions_per_thread(width, source_width));
    let lanes = comptime!(tile.tile_m / (count * source_width));
    let mut positions = Sequence::<OutputPosition>::new();
    #[unroll]
    for i in 0..count {
        let in_tile = thread % lanes * source_width + comptime!(i * lanes);
        let mut position =
            gather.position(min(first_m + in_tile as u32, shape.m - source_width as u32), check);
        position.source += gather.source_channel(group * shape.source_channels);
        positions.push(position);
    }
    let weight_group = gather.weight_group(group);
    let channels = (first_n, shape.n - 1u32, gather.weight_column(1u32));

    let sums = accumulators(comptime!(tile.subgroup_m * tile.subgroup_n), tile.fragment);
    if comptime!(prefetch) {
        zero_stage(&mut source_stage, tile.threads());
        zero_stage(&mut weight_stage, tile.threads());
    }
    let stage = comptime!(tile.tile_k as u32).runtime();
    let mut stage_k = first_k;
    let mut at = 0usize.runtime();
    fill_half(&mut table, &gather, 0usize, stage_k, end_k, Pass::Forward, check, entries, tile.threads());
    sync_cube();
    let k_major = comptime!((source_k_major, weight_k_major));
    if comptime!(branches) {
        // With prefetch each iteration loads the stage at `stage_k` and multiplies the one before; the last
        // loads nothing. Without, the loads' registers are free during the product.
        let ahead = comptime!(if prefetch { tile.tile_k as u32 } else { 0 });
        while stage_k < end_k + ahead {
            // Before the loads: a divergent branch after them may stall on loads in flight.
            fill_other_half(
                &mut table,
                &gather,
                at,
                stage_k,
                end_k,
                Pass::Forward,
                check,
                entries,
                tile.threads(),
            );
            let (sources, _) = load_source(
                source, cache, &joined, &gather, &positions, &table, at, check, width, branches, tile,
            );
            let weights = load_channels_via_table(
                weight,
                &table,
                at,
                weight_group,
                channels,
                Pass::Forward,
                width,
                tile,
            );
            if comptime!(prefetch) {
                multiply(&source_stage, &weight_stage, &sums, k_major, size, tile);
            }
            sync_cube();
            store_source(&sources, &mut source_stage, source_row, tile);
            store_rows(&weights, &mut weight_stage, weight_row, tile.tile_n, tile);
            stage_k += stage;
            at = (at + tile.tile_k) % entries;
            sync_cube();
            if comptime!(!prefetch) {
                multiply(&source_stage, &weight_stage, &sums, k_major, size, tile);
            }
        }
    } else {
        // All loads of a stage are in flight together; their registers are free during the product.
        let rows = channel_rows(weight_group, channels, weight_width, width, tile);
        let lane = UNIT_POS as usize % comptime!(tile.tile_k / weight_width);
        while stage_k < end_k {
            // Entries of half the table, while the other half is filled.
            let last_k = fill_next_half(
                &mut table,
                &gather,
                at,
                stage_k,
                end_k,
                Pass::Forward,
                check,
                entries,
                tile.threads(),
            );
            let mut entry = at;
            while stage_k < last_k {
                let (sources, inside) = load_source(
                    source, cache, &joined, &gather, &positions, &table, entry, check, width, branches, tile,
                );
                let mut offset = stage_k as usize / weight_width + lane;
                let mut exists = stage_k + ((lane * weight_width) as u32) < end_k;
                if comptime!(weight_width == 1) {
                    offset = table.weight[entry + lane];
                    exists = table.exists(entry + lane, Pass::Forward);
                }
                let weights = load_rows(weight, &rows, offset, exists, tile);
                let sources = inside_or_zero(&sources, &inside);
                let weights = or_zero(&weights, exists);
                sync_cube();
                store_source(&sources, &mut source_stage, source_row, tile);
                store_rows(&weights, &mut weight_stage, weight_row, tile.tile_n, tile);
                sync_cube();
                multiply(&source_stage, &weight_stage, &sums, k_major, size, tile);
                stage_k += stage;
                entry += tile.tile_k;
            }
            at = comptime!(entries / 2) - at;
        }
    }
    epilogue(&sums, &mut scratch, bias, residual, out, &gather, &shape, &work, Pass::Forward, patches, tile);
}

/// Loads this thread's elements of the next source stage into registers, lanes along positions (coalesced).
/// `branches`: whether what is outside is not loaded; else the second result says what is inside.
#[cube]
fn load_source<E: Float, R: Size>(
    source: &[Vector<E, R>],
    cache: ComptimeOption<&[Vector<E, R>]>,
    joined: &ComptimeOption<JoinedArgs>,
    gather: &GatherArgs,
    positions: &Sequence<OutputPosition>,
    table: &IndexTable,
    at: usize,
    #[comptime] check: TapCheck,
    #[comptime] width: usize,
    #[comptime] branches: bool,
    #[comptime] tile: MatrixTile,
) -> (Sequence<Vector<E, R>>, Sequence<bool>) {
    let mut values = Sequence::<Vector<E, R>>::new();
    let mut insides = Sequence::<bool>::new();
    let source_width = R::value();
    let count = comptime!(tile.positions_per_thread(width, source_width));
    let lanes = comptime!(tile.tile_m / (count * source_width));
    // Consecutive K indices of a thread: a vector of a K-major stage, else one.
    let k_count = comptime!(if source_width == 1 { width } else { 1 });
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_m, width) / count) {
        let first = (UNIT_POS as usize / lanes + comptime!(load * (tile.threads() / lanes))) * k_count;
        #[unroll]
        for i in 0..k_count {
            let tap = table.get(at + first + i, comptime!(check.needs_coordinates()));
            #[unroll]
            for j in 0..count {
                let position = positions.index(j);
                if comptime!(branches) {
                    values.push(read_source(source, cache, joined, gather, position, &tap, check));
                } else {
                    let (value, inside) = read_anything(source, gather, position, &tap, check);
                    values.push(value);
                    insides.push(inside);
                }
            }
        }
    }
    (values, insides)
}

/// Stores the source's stage. Vectors are built here, not at the load: the first use of a value waits for its
/// load.
#[cube]
fn store_source<E: Float, S: Float, V: Size, R: Size>(
    from: &Sequence<Vector<E, R>>,
    stage: &mut Shared<[Vector<S, V>]>,
    #[comptime] row: usize,
    #[comptime] tile: MatrixTile,
) {
    let width = V::value();
    let source_width = R::value();
    let count = comptime!(tile.positions_per_thread(width, source_width));
    let lanes = comptime!(tile.tile_m / (count * source_width));
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_m, width)) {
        let next = UNIT_POS as usize / lanes + comptime!(load / count * (tile.threads() / lanes));
        if comptime!(source_width == width) {
            stage[next * row + UNIT_POS as usize % lanes] = Vector::cast_from(*from.index(load));
        } else {
            let position = comptime!(load % count);
            let mut values = Vector::<S, V>::empty();
            #[unroll]
            for i in 0..width {
                // In the order of the loads: vectors, K indices, positions.
                let value = from.index(comptime!((load / count * width + i) * count + position));
                values.insert(i, S::cast_from(value.extract(0usize)));
            }
            let in_tile = UNIT_POS as usize % lanes + comptime!(position * lanes);
            stage[in_tile * row + next] = values;
        }
    }
}
