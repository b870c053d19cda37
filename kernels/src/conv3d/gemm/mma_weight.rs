//! The weight gradient on matrix units (cooperative matrices, simdgroup matrices), fp32 accumulation.
//!
//! ```text
//! partial[part, o, m] = sum over the part's windows q of dy(q, o) * source(q, m)        m = (c, tap)
//!
//! a stage: tile_k windows of tile_m sources and of tile_n output channels, windows slowest,
//!          rows 16 bytes longer than what they hold
//! ```
//!
//! Windows are what lies in runs in memory, so a plane's lanes read 32 neighbouring windows of the same
//! source; each packs its values of neighbouring sources into one vector of the stage. A window's place is
//! divided out once, by one unit, and shared; a source's once per cube. Where a plane of the source is a run
//! of windows (1x1x1, 3x1x1) its vectors are read whole, and the stage holds rows of sources. Tiles, planes
//! and the results' way to memory: [`super::matrices`], [`super::fragments`]; parts are summed in order by
//! `reduce.rs`. Bytes and operations per stage are those of [`super::config`], the partials are written and
//! read once more, 8 bytes each. Declined: types for which the device has no matrices with fp32 accumulators.

use super::config::{MatrixTile, shared_terms};
use super::fragments::{accumulators, gather_channels, multiply, write_result, write_rows};
use super::index::Walk;
use super::stage::{Extents, clear};
use super::table::{Table, fill_half, fill_other_half};
use super::weight::fill_columns;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn mma_weight_kernel<E: Float, S: Float, O: Float, V: Size, W: Size, R: Size>(
    source: &[Vector<E, R>],
    dy: &[Vector<E, W>],
    out: &mut [O],
    walk: Walk,
    extents: Extents,
    span: Span,
    #[comptime] padding: PaddingMode,
    #[comptime] tile: MatrixTile,
    #[comptime] size: usize,
    #[define(E)] _dtype: ElemType,
    #[define(S)] _stage_dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let share = extents.share(span.index(), tile.tile_m, tile.tile_n);
    let group = share.group;
    let end_k = share.end_k;

    let width = V::value();
    // Neighbouring windows of the source that are read as one vector.
    let beside = R::value();
    let along_terms = comptime!(beside > 1);
    let (source_rows, source_row) = comptime!(tile.site_stage(along_terms, width, size));
    // Whether neighbouring windows of dy are read as one vector.
    let together = W::value();
    let runs = comptime!(together > 1);
    let (dy_rows, dy_row) = comptime!(tile.channel_stage(runs, width, size));
    let mut source_stage = Shared::<[Vector<S, V>]>::new_slice(comptime!(source_rows * source_row));
    let mut dy_stage = Shared::<[Vector<S, V>]>::new_slice(comptime!(dy_rows * dy_row));
    let mut patches = Shared::<[f32]>::new_slice(comptime!(tile.planes() * tile.fragment * tile.fragment));
    let replicate = comptime!(padding == PaddingMode::Replicate);
    let terms = comptime!(shared_terms(tile.tile_k, padding));
    let mut windows = Table::new(terms, true, replicate);
    // In shared memory, not in each unit's registers: those are what a cube runs out of.
    let mut columns = Table::new(tile.tile_m, false, replicate);
    fill_columns(&mut columns, &walk, &share, &extents, replicate, tile.tile_m, tile.units());

    let sums = accumulators(comptime!(tile.plane_m * tile.plane_n), tile.fragment);
    let first_o = group * extents.n + share.first_n;
    let last_o = group * extents.n + extents.n - 1u32;
    let o_stride = walk.out_channel(1u32);
    clear(&mut source_stage, tile.units());
    clear(&mut dy_stage, tile.units());
    // The windows at `stage_k` are read while those before are multiplied; past the end there is nothing to
    // read.
    let stage = comptime!(tile.tile_k as u32).runtime();
    let mut stage_k = share.first_k;
    let mut at = 0usize.runtime();
    fill_half(
        &mut windows,
        &walk,
        0usize,
        stage_k,
        end_k,
        Pass::WeightGradient,
        padding,
        terms,
        tile.units(),
    );
    sync_cube();
    while stage_k < end_k + stage {
        // Before anything is read: a driver may wait for what is under way where control flow parts.
        fill_other_half(
            &mut windows,
            &walk,
            at,
            stage_k,
            end_k,
            Pass::WeightGradient,
            padding,
            terms,
            tile.units(),
        );
        let sources = gather_source(source, &walk, &columns, &windows, at, padding, width, tile);
        let gradients = gather_channels(
            dy,
            &windows,
            at,
            0usize,
            (first_o, last_o, o_stride),
            Pass::WeightGradient,
            width,
            tile,
        );
        multiply(&source_stage, &dy_stage, &sums, comptime!((along_terms, runs)), size, tile);
        sync_cube();
        write_rows(&sources, &mut source_stage, source_row, tile.tile_m, tile);
        write_rows(&gradients, &mut dy_stage, dy_row, tile.tile_n, tile);
        stage_k += stage;
        at = (at + tile.tile_k) % terms;
        sync_cube();
    }
    let no_bias = ComptimeOption::<&Tensor<E>>::new_None();
    write_result(&sums, &mut patches, no_bias, out, &walk, &extents, &share, Pass::WeightGradient, tile);
}

/// Reads this unit's part of the next stage's sources into registers: one window (or some neighbours) of
/// several sources, planes along sources.
#[cube]
#[allow(clippy::too_many_arguments)]
fn gather_source<E: Float, R: Size>(
    source: &[Vector<E, R>],
    walk: &Walk,
    columns: &Table,
    windows: &Table,
    at: usize,
    #[comptime] padding: PaddingMode,
    #[comptime] width: usize,
    #[comptime] tile: MatrixTile,
) -> Sequence<Vector<E, R>> {
    let mut values = Sequence::<Vector<E, R>>::new();
    let beside = R::value();
    let runs = comptime!(tile.tile_k / beside);
    let window = at + UNIT_POS as usize % runs * beside;
    let site = windows.site(window, comptime!(padding == PaddingMode::Replicate));
    // Sources that a unit reads behind each other: of windows that are read one by one, those of a vector of
    // the stage.
    let run = comptime!(if beside == 1 { width } else { 1 });
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_m, width)) {
        let first = (UNIT_POS as usize / runs + comptime!(load * (tile.units() / runs))) * run;
        #[unroll]
        for i in 0..run {
            let tap = columns.get(first + i, comptime!(padding == PaddingMode::Replicate));
            let (place, inside) = walk.place(&site, &tap, padding);
            let mut value = Vector::<E, R>::new(E::from_int(0));
            if inside {
                value = source[place / beside];
            }
            values.push(value);
        }
    }
    values
}
