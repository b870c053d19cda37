//! The gathered product with matrix units (cooperative matrices, simdgroup matrices): forward pass and input
//! gradient, fp32 accumulation.
//!
//! ```text
//!                     tile_m sites     a stage: tile_k terms of tile_n channels and of tile_m sites, terms
//!               +---+---+---+---+        fastest, rows 16 bytes longer than their terms
//!     tile_n    | plane | plane |      a plane: plane_n x plane_m results as fragments of the device's shape
//!    channels   +-------+-------+      a cube:  (tile_n / plane_n) * (tile_m / plane_m) planes of 32 units
//!               | plane | plane |
//!               +-------+-------+
//! ```
//!
//! Channels are the product's rows here: a fragment's rows are then runs of the result's memory, and
//! accumulators are stored row-major only. Terms travel in vectors; neighbouring lanes' sites lie beside each
//! other in memory. Where a plane of the source is a run of sites (1x1x1, 3x1x1) its vectors are read whole
//! and lie in their stage with sites fastest. Weights whose terms are no aligned runs are read along terms
//! and lie in their stage with channels fastest. As in [`super::registers`], a stage is gathered while the
//! one before is multiplied. Each fragment passes through the plane's own patch of shared memory, where bias,
//! activation, rounding and the tails are applied. Bytes and operations per stage are those of
//! [`super::config`]. Declined: types for which the device has no matrices with fp32 accumulators.

use super::config::{MatrixTile, shared_terms};
use super::fragments::{accumulators, gather_channels, multiply, write_result, write_rows};
use super::index::{Site, Walk};
use super::stage::{Extents, clear};
use super::table::{Table, fill_half, fill_other_half};
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn mma_kernel<E: Float, S: Float, O: Float, V: Size, W: Size, R: Size>(
    source: &[Vector<E, R>],
    weight: &[Vector<E, W>],
    bias: ComptimeOption<&Tensor<E>>,
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
    let first_m = share.first_m;
    let first_n = share.first_n;
    let first_k = share.first_k;
    let end_k = share.end_k;

    let width = V::value();
    // Neighbouring sites that are read as one vector.
    let beside = R::value();
    let along_terms = comptime!(beside == 1);
    let (site_rows, row) = comptime!(tile.site_stage(along_terms, width, size));
    let mut site_stage = Shared::<[Vector<S, V>]>::new_slice(comptime!(site_rows * row));
    // Whether neighbouring terms of a channel's weights are read as one vector.
    let together = W::value();
    let runs = comptime!(together > 1);
    let (weight_rows, weight_row) = comptime!(tile.channel_stage(runs, width, size));
    let mut weight_stage = Shared::<[Vector<S, V>]>::new_slice(comptime!(weight_rows * weight_row));
    let mut patches = Shared::<[f32]>::new_slice(comptime!(tile.planes() * tile.fragment * tile.fragment));
    let terms = comptime!(shared_terms(tile.tile_k, padding));
    let mut table = Table::new(terms, true, comptime!(padding == PaddingMode::Replicate));
    let unit = UNIT_POS as usize;
    // A unit keeps its sites through all stages.
    let count = comptime!(tile.sites(width, beside));
    let lanes = comptime!(tile.tile_m / (count * beside));
    let mut sites = Sequence::<Site>::new();
    #[unroll]
    for i in 0..count {
        let in_tile = unit % lanes * beside + comptime!(i * lanes);
        let mut site = walk.site(min(first_m + in_tile as u32, extents.m - beside as u32));
        site.source += walk.source_channel(group * extents.source_channels);
        sites.push(site);
    }
    let weight_group = walk.weight_group(group);
    let channels = (first_n, extents.n - 1u32, walk.weight_column(1u32));

    let sums = accumulators(comptime!(tile.plane_m * tile.plane_n), tile.fragment);
    clear(&mut site_stage, tile.units());
    clear(&mut weight_stage, tile.units());
    // The terms at `stage_k` are read while those before are multiplied; past the end there is nothing to
    // read.
    let stage = comptime!(tile.tile_k as u32).runtime();
    let mut stage_k = first_k;
    let mut at = 0usize.runtime();
    fill_half(&mut table, &walk, 0usize, stage_k, end_k, Pass::Forward, padding, terms, tile.units());
    sync_cube();
    while stage_k < end_k + stage {
        // Before anything is read: a driver may wait for what is under way where control flow parts.
        fill_other_half(&mut table, &walk, at, stage_k, end_k, Pass::Forward, padding, terms, tile.units());
        let sources = gather_site(source, &walk, &sites, &table, at, padding, width, tile);
        let weights = gather_channels(weight, &table, at, weight_group, channels, Pass::Forward, width, tile);
        multiply(&site_stage, &weight_stage, &sums, comptime!((along_terms, runs)), size, tile);
        sync_cube();
        write_sites(&sources, &mut site_stage, row, tile);
        write_rows(&weights, &mut weight_stage, weight_row, tile.tile_n, tile);
        stage_k += stage;
        at = (at + tile.tile_k) % terms;
        sync_cube();
    }
    write_result(&sums, &mut patches, bias, out, &walk, &extents, &share, Pass::Forward, tile);
}

/// Reads this unit's part of the next sites' stage into registers: lanes run along sites.
#[cube]
fn gather_site<E: Float, R: Size>(
    source: &[Vector<E, R>],
    walk: &Walk,
    sites: &Sequence<Site>,
    table: &Table,
    at: usize,
    #[comptime] padding: PaddingMode,
    #[comptime] width: usize,
    #[comptime] tile: MatrixTile,
) -> Sequence<Vector<E, R>> {
    let mut values = Sequence::<Vector<E, R>>::new();
    let beside = R::value();
    let count = comptime!(tile.sites(width, beside));
    let lanes = comptime!(tile.tile_m / (count * beside));
    // Terms that a unit reads behind each other: of sites that are read one by one, those of a vector of the
    // stage.
    let run = comptime!(if beside == 1 { width } else { 1 });
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_m, width) / count) {
        let first = (UNIT_POS as usize / lanes + comptime!(load * (tile.units() / lanes))) * run;
        #[unroll]
        for i in 0..run {
            let tap = table.get(at + first + i, comptime!(padding == PaddingMode::Replicate));
            #[unroll]
            for j in 0..count {
                let (place, inside) = walk.place(sites.index(j), &tap, padding);
                let mut value = Vector::<E, R>::new(E::from_int(0));
                if inside {
                    value = source[place / beside];
                }
                values.push(value);
            }
        }
    }
    values
}

/// Writes the sites' stage. Vectors are put together here, not where their terms are read: whatever touches a
/// value waits for it.
#[cube]
fn write_sites<E: Float, S: Float, V: Size, R: Size>(
    from: &Sequence<Vector<E, R>>,
    stage: &mut Shared<[Vector<S, V>]>,
    #[comptime] row: usize,
    #[comptime] tile: MatrixTile,
) {
    let width = V::value();
    let beside = R::value();
    let sites = comptime!(tile.sites(width, beside));
    let lanes = comptime!(tile.tile_m / (sites * beside));
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_m, width)) {
        let next = UNIT_POS as usize / lanes + comptime!(load / sites * (tile.units() / lanes));
        if comptime!(beside == width) {
            stage[next * row + UNIT_POS as usize % lanes] = Vector::cast_from(*from.index(load));
        } else {
            let site = comptime!(load % sites);
            let mut terms = Vector::<S, V>::empty();
            #[unroll]
            for i in 0..width {
                // As they were read: loads, terms, sites.
                let read = from.index(comptime!((load / sites * width + i) * sites + site));
                terms.insert(i, S::cast_from(read.extract(0usize)));
            }
            let in_tile = UNIT_POS as usize % lanes + comptime!(site * lanes);
            stage[in_tile * row + next] = terms;
        }
    }
}
