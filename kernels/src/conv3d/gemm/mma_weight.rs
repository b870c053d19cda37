//! The weight gradient as a gathered implicit GEMM on matrix units (cooperative matrices, simdgroup
//! matrices), fp32 accumulation.
//!
//! ```text
//! partial[slice, n, m] = sum over the slice's positions k of dy(k, n) * source(k, m)        m = (c, tap)
//!
//!                  tile_m channel taps
//!               +----------+----------+      a stage:        tile_k positions of tile_m channel taps and of
//!     tile_n    | subgroup | subgroup |                      tile_n channels of dy
//!    channels   +----------+----------+      a subgroup:     subgroup_n x subgroup_m results, in fragments
//!               | subgroup | subgroup |      a threadgroup:  (tile_n / subgroup_n) * (tile_m / subgroup_m)
//!               +----------+----------+                      subgroups of 32
//!
//! source, dy  [N, C, D, H, W], any strides;  partial  [slices, O, C / groups, taps], contiguous, fp32
//! ```
//!
//! Positions are adjacent in memory, so lanes load along K: 32 adjacent positions of one channel tap. The
//! stages are M-major and N-major, but K-major where whole vectors of positions are loaded (the source of
//! pointwise-in-frame windows; dy, [`super::vectors`]). Positions and channel taps are divided out once per
//! threadgroup ([`super::table`]). Fragments and epilogue: [`super::fragments`]. `reduce.rs` adds the slices
//! in order. Bytes and FLOP per stage: [`super::config`]; partial results are written and read once, 8 bytes
//! each. Declined: what [`super::fma`] declines, and types for which the device has no matrices with fp32
//! accumulators.

use super::config::{MatrixTile, table_entries};
use super::fragments::{
    channel_rows, epilogue, load_channels_via_table, load_rows, multiply, or_zero, store_rows,
};
use super::index::{GatherArgs, RANGE_BIT};
use super::read::{JoinedArgs, inside_or_zero, read_anything, read_source};
use super::stage::{GemmShape, zero_stage};
use super::table::{IndexTable, fill_half, fill_next_half, fill_other_half, fill_taps};
use super::tap_check::TapCheck;
use crate::conv3d::mma::accumulators;
use crate::conv3d::pass::Pass;
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn mma_weight_kernel<E: Float, S: Float, O: Float, V: Size, W: Size, R: Size>(
    source: &[Vector<E, R>],
    cache: ComptimeOption<&[Vector<E, R>]>,
    dy: &[Vector<E, W>],
    out: &mut [O],
    gather: GatherArgs,
    joined: ComptimeOption<JoinedArgs>,
    shape: GemmShape,
    span: Span,
    #[comptime] check: TapCheck,
    #[comptime] tile: MatrixTile,
    #[comptime] prefetch: bool,
    #[comptime] branches: bool,
    #[comptime] size: usize,
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
    let end_k = work.end_k;

    let width = V::value();
    // Adjacent positions of the source in one load.
    let source_width = R::value();
    let source_k_major = comptime!(source_width > 1);
    let (source_rows, source_row) = comptime!(tile.source_stage(source_k_major, width, size));
    // Adjacent positions of dy in one load.
    let dy_width = W::value();
    let dy_k_major = comptime!(dy_width > 1);
    let (dy_rows, dy_row) = comptime!(tile.channel_stage(dy_k_major, width, size));
    let mut source_stage = Shared::<[Vector<S, V>]>::new_slice(comptime!(source_rows * source_row));
    let mut dy_stage = Shared::<[Vector<S, V>]>::new_slice(comptime!(dy_rows * dy_row));
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(tile.subgroups() * tile.fragment * tile.fragment));
    let steps = comptime!(check.needs_coordinates());
    let entries =
        comptime!(if branches { table_entries(tile.tile_k, check) } else { tile.table_entries(check) });
    let mut positions = IndexTable::new(entries, true, steps);
    // In shared memory, not in registers: register pressure limits occupancy.
    let mut taps = IndexTable::new(tile.tile_m, false, steps);
    fill_taps(&mut taps, &gather, &work, &shape, check, tile.tile_m, tile.threads());

    let sums = accumulators(comptime!(tile.subgroup_m * tile.subgroup_n), tile.fragment);
    let first_o = group * shape.n + work.first_n;
    let last_o = group * shape.n + shape.n - 1u32;
    let o_stride = gather.out_channel(1u32);
    if comptime!(prefetch) {
        zero_stage(&mut source_stage, tile.threads());
        zero_stage(&mut dy_stage, tile.threads());
    }
    let stage = comptime!(tile.tile_k as u32).runtime();
    let mut stage_k = work.first_k;
    let mut at = 0usize.runtime();
    fill_half(
        &mut positions,
        &gather,
        0usize,
        stage_k,
        end_k,
        Pass::WeightGradient,
        check,
        entries,
        tile.threads(),
    );
    sync_cube();
    let channels = (first_o, last_o, o_stride);
    let k_major = comptime!((source_k_major, dy_k_major));
    if comptime!(branches) {
        // With prefetch each iteration loads the stage at `stage_k` and multiplies the one before; the last
        // loads nothing. Without, the loads' registers are free during the product.
        let ahead = comptime!(if prefetch { tile.tile_k as u32 } else { 0 });
        while stage_k < end_k + ahead {
            // Before the loads: a divergent branch after them may stall on loads in flight.
            fill_other_half(
                &mut positions,
                &gather,
                at,
                stage_k,
                end_k,
                Pass::WeightGradient,
                check,
                entries,
                tile.threads(),
            );
            let (sources, _) = load_source(
                source, cache, &joined, &gather, &taps, &positions, at, check, width, branches, tile,
            );
            let gradients = load_channels_via_table(
                dy,
                &positions,
                at,
                0usize,
                channels,
                Pass::WeightGradient,
                width,
                tile,
            );
            if comptime!(prefetch) {
                multiply(&source_stage, &dy_stage, &sums, k_major, size, tile);
            }
            sync_cube();
            store_rows(&sources, &mut source_stage, source_row, tile.tile_m, tile);
            store_rows(&gradients, &mut dy_stage, dy_row, tile.tile_n, tile);
            stage_k += stage;
            at = (at + tile.tile_k) % entries;
            sync_cube();
            if comptime!(!prefetch) {
                multiply(&source_stage, &dy_stage, &sums, k_major, size, tile);
            }
        }
    } else {
        // All loads of a stage are in flight together; their registers are free during the product.
        let rows = channel_rows(0usize, channels, dy_width, width, tile);
        let lane = UNIT_POS as usize % comptime!(tile.tile_k / dy_width) * dy_width;
        while stage_k < end_k {
            // Entries of half the table, while the other half is filled.
            let last_k = fill_next_half(
                &mut positions,
                &gather,
                at,
                stage_k,
                end_k,
                Pass::WeightGradient,
                check,
                entries,
                tile.threads(),
            );
            let mut entry = at;
            while stage_k < last_k {
                let (sources, inside) = load_source(
                    source, cache, &joined, &gather, &taps, &positions, entry, check, width, branches, tile,
                );
                let offset = positions.weight[entry + lane] / dy_width;
                let exists = positions.exists(entry + lane, Pass::WeightGradient);
                let gradients = load_rows(dy, &rows, offset, exists, tile);
                let sources = inside_or_zero(&sources, &inside);
                let gradients = or_zero(&gradients, exists);
                sync_cube();
                store_rows(&sources, &mut source_stage, source_row, tile.tile_m, tile);
                store_rows(&gradients, &mut dy_stage, dy_row, tile.tile_n, tile);
                sync_cube();
                multiply(&source_stage, &dy_stage, &sums, k_major, size, tile);
                stage_k += stage;
                entry += tile.tile_k;
            }
            at = comptime!(entries / 2) - at;
        }
    }
    let none = ComptimeOption::<&Tensor<E>>::new_None();
    epilogue(&sums, &mut scratch, none, none, out, &gather, &shape, &work, Pass::WeightGradient, false, tile);
}

/// Loads this thread's elements of the next source stage into registers: one position (or one vector of them)
/// of several channel taps, lanes along positions (coalesced). `branches`: whether what is outside is not
/// loaded; else the second result says what is inside.
#[cube]
fn load_source<E: Float, R: Size>(
    source: &[Vector<E, R>],
    cache: ComptimeOption<&[Vector<E, R>]>,
    joined: &ComptimeOption<JoinedArgs>,
    gather: &GatherArgs,
    taps: &IndexTable,
    positions: &IndexTable,
    at: usize,
    #[comptime] check: TapCheck,
    #[comptime] width: usize,
    #[comptime] branches: bool,
    #[comptime] tile: MatrixTile,
) -> (Sequence<Vector<E, R>>, Sequence<bool>) {
    let mut values = Sequence::<Vector<E, R>>::new();
    let mut insides = Sequence::<bool>::new();
    let source_width = R::value();
    let k_vectors = comptime!(tile.tile_k / source_width);
    let entry = at + UNIT_POS as usize % k_vectors * source_width;
    let position = positions.position(entry, comptime!(check.needs_coordinates()));
    // Consecutive channel taps of a thread: a vector of an M-major stage, else one.
    let tap_count = comptime!(if source_width == 1 { width } else { 1 });
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_m, width)) {
        let first =
            (UNIT_POS as usize / k_vectors + comptime!(load * (tile.threads() / k_vectors))) * tap_count;
        #[unroll]
        for i in 0..tap_count {
            let mut tap = taps.get(first + i, comptime!(check.needs_coordinates()));
            if comptime!(branches) {
                values.push(read_source(source, cache, joined, gather, &position, &tap, check));
            } else {
                if comptime!(check.needs_coordinates()) {
                    // Without masks all taps require the same.
                    tap.bits = RANGE_BIT.runtime();
                }
                let (value, inside) = read_anything(source, gather, &position, &tap, check);
                values.push(value);
                insides.push(inside);
            }
        }
    }
    (values, insides)
}
