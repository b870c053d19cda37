//! The gathered product with matrix units (cooperative matrices, simdgroup matrices): forward pass and input gradient,
//! fp32 accumulation.
//!
//! ```text
//!                     tile_m sites              a stage: tile_k terms of tile_n channels and of tile_m sites, terms
//!               +---+---+---+---+                 fastest, rows 16 bytes longer than their terms
//!     tile_n    | plane | plane |               a plane: plane_n x plane_m results as fragments of the device's shape
//!    channels   +-------+-------+               a cube:  (tile_n / plane_n) * (tile_m / plane_m) planes of 32 units
//!               | plane | plane |
//!               +-------+-------+
//! ```
//!
//! Channels are the product's rows here: a fragment's rows are then runs of the result's memory, and accumulators are stored
//! row-major only. Terms travel in vectors; four neighbouring lanes' sites lie beside each other in memory. As in
//! [`super::registers`], a stage is gathered while the one before is multiplied. Each fragment passes through the plane's own
//! patch of shared memory, where bias, activation, rounding and the tails are applied. Bytes and operations per stage are
//! those of [`super::config`]. Declined: types for which the device has no matrices with fp32 accumulators.

use super::config::{MatrixTile, PLANE};
use super::place::{Site, Table, Walk};
use super::registers::fill_table;
use super::stage::Extents;
use crate::activation::activate_by_code;
use crate::conv3d::plan::Pass;
use crate::conv3d::problem::PaddingMode;
use crate::grid::Span;
use cubecl::cmma::{self, MatrixIdent, MatrixLayout};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn matrix_kernel<E: Float, S: Float, O: Float, V: Size, W: Size>(
    source: &[E],
    weight: &[Vector<E, W>],
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    walk: Walk,
    extents: Extents,
    span: Span,
    #[comptime] pass: Pass,
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
    let share = extents.share(span.cube(), tile.tile_m, tile.tile_n);
    let group = share.group;
    let part = share.part;
    let first_m = share.first_m;
    let first_n = share.first_n;
    let first_k = share.first_k;
    let end_k = share.end_k;

    let width = V::value();
    let row = comptime!(tile.row(width, size));
    let mut site_stage = Shared::<[Vector<S, V>]>::new_slice(comptime!(tile.tile_m * row));
    let mut weight_stage = Shared::<[Vector<S, V>]>::new_slice(comptime!(tile.tile_n * row));
    let mut patches = Shared::<[f32]>::new_slice(comptime!(tile.planes() * tile.fragment * tile.fragment));
    let mut table = Table::new(comptime!(2 * tile.tile_k), comptime!(padding == PaddingMode::Replicate));
    let unit = UNIT_POS as usize;
    // A unit keeps its sites through all stages.
    let lanes = comptime!(tile.tile_m / tile.sites(width));
    let mut sites = Sequence::<Site>::new();
    #[unroll]
    for i in 0..comptime!(tile.sites(width)) {
        let in_tile = unit % lanes + comptime!(i * lanes);
        let mut site = walk.site(min(first_m + in_tile as u32, extents.m - 1u32));
        site.source += walk.source_channel(group * extents.source_channels);
        sites.push(site);
    }
    let weight_group = walk.weight_group(group);

    let sums = accumulators(tile);
    // The terms of two stages: those to be read next are divided out while the ones before them are read.
    let stage = comptime!(tile.tile_k as u32).runtime();
    fill_table(&mut table, &walk, first_k, 0u32, end_k, pass, padding, tile.tile_k);
    fill_table(&mut table, &walk, first_k + stage, stage, end_k, pass, padding, tile.tile_k);
    sync_cube();
    let sources = gather_site(source, &walk, &sites, &table, 0u32, padding, width, tile);
    let weights = gather_weight(weight, &walk, &table, 0u32, weight_group, first_n, extents.n, width, tile);
    write_sites(&sources, &mut site_stage, row, tile);
    write_weights(&weights, &mut weight_stage, row, tile);
    sync_cube();
    // The stage at `stage_k` is read while the one before is multiplied; past the end there is nothing to read.
    let mut stage_k = first_k + stage;
    let mut half = comptime!(tile.tile_k as u32).runtime();
    while stage_k < end_k + stage {
        let sources = gather_site(source, &walk, &sites, &table, half, padding, width, tile);
        let weights =
            gather_weight(weight, &walk, &table, half, weight_group, first_n, extents.n, width, tile);
        half = stage - half;
        stage_k += stage;
        fill_table(&mut table, &walk, stage_k, half, end_k, pass, padding, tile.tile_k);
        multiply(&site_stage, &weight_stage, &sums, size, tile);
        sync_cube();
        write_sites(&sources, &mut site_stage, row, tile);
        write_weights(&weights, &mut weight_stage, row, tile);
        sync_cube();
    }

    let plane = (unit / PLANE) as u32;
    let lane = (unit % PLANE) as u32;
    let plane_m = plane % comptime!((tile.tile_m / tile.plane_m) as u32) * tile.plane_m as u32;
    let plane_n = plane / comptime!((tile.tile_m / tile.plane_m) as u32) * tile.plane_n as u32;
    let patch = plane as usize * comptime!(tile.fragment * tile.fragment);
    let patches_end = patches.len();
    #[unroll]
    for column in 0..comptime!(tile.plane_m / tile.fragment) {
        // A lane writes one site of the fragments of a column.
        let in_fragment = lane % tile.fragment as u32;
        let m = first_m + plane_m + comptime!((column * tile.fragment) as u32) + in_fragment;
        let at = walk.site_out(min(m, extents.m - 1u32)) + part * extents.part_stride;
        #[unroll]
        for fragment_row in 0..comptime!(tile.plane_n / tile.fragment) {
            sync_cube();
            cmma::store(
                &mut patches[patch..patches_end],
                sums.index(comptime!(fragment_row * (tile.plane_m / tile.fragment) + column)),
                tile.fragment as u32,
                MatrixLayout::RowMajor,
            );
            sync_cube();
            #[unroll]
            for step in 0..comptime!(tile.fragment * tile.fragment / PLANE) {
                let in_patch =
                    comptime!((step * (PLANE / tile.fragment)) as u32) + lane / tile.fragment as u32;
                let n = first_n + plane_n + comptime!((fragment_row * tile.fragment) as u32) + in_patch;
                if m < extents.m && n < extents.n {
                    let channel = group * extents.n + n;
                    let bias: ComptimeOption<f32> =
                        bias.map(|bias| f32::cast_from(bias[channel as usize * bias.stride(0)]));
                    let sum = patches[patch + (in_patch * tile.fragment as u32 + in_fragment) as usize];
                    let value =
                        activate_by_code(sum + bias.unwrap_or_else(|| 0.0f32.runtime()), extents.activation);
                    out[at + walk.out_channel(channel)] = O::cast_from(value);
                }
            }
        }
    }
}

#[cube]
fn accumulators(#[comptime] tile: MatrixTile) -> Sequence<cmma::Matrix<f32>> {
    let mut sums = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..comptime!(tile.plane_m * tile.plane_n / tile.fragment / tile.fragment) {
        sums.push(cmma::Matrix::<f32>::from_value(
            MatrixIdent::Accumulator,
            tile.fragment,
            tile.fragment,
            tile.fragment,
            MatrixLayout::Undefined,
            0.0,
        ));
    }
    sums
}

/// Reads this unit's vectors of the next sites' stage into registers: lanes run along sites.
#[cube]
fn gather_site<E: Float>(
    source: &[E],
    walk: &Walk,
    sites: &Sequence<Site>,
    table: &Table,
    half: u32,
    #[comptime] padding: PaddingMode,
    #[comptime] width: usize,
    #[comptime] tile: MatrixTile,
) -> Sequence<E> {
    let mut values = Sequence::<E>::new();
    let lanes = comptime!(tile.tile_m / tile.sites(width));
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_m, width) / tile.sites(width)) {
        let vector = UNIT_POS as usize / lanes + comptime!(load * (tile.units() / lanes));
        #[unroll]
        for i in 0..width {
            let tap =
                table.get(half as usize + vector * width + i, comptime!(padding == PaddingMode::Replicate));
            #[unroll]
            for j in 0..comptime!(tile.sites(width)) {
                let (at, inside) = walk.place(sites.index(j), &tap, padding);
                let mut value = E::from_int(0);
                if inside {
                    value = source[at];
                }
                values.push(value);
            }
        }
    }
    values
}

/// Reads this unit's vectors of the next weights' stage into registers: lanes run along terms.
#[cube]
#[allow(clippy::too_many_arguments)]
fn gather_weight<E: Float, W: Size>(
    weight: &[Vector<E, W>],
    walk: &Walk,
    table: &Table,
    half: u32,
    weight_group: usize,
    first_n: u32,
    columns: u32,
    #[comptime] width: usize,
    #[comptime] tile: MatrixTile,
) -> Sequence<Vector<E, W>> {
    let mut values = Sequence::<Vector<E, W>>::new();
    let together = W::value();
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_n, width)) {
        let element = UNIT_POS as usize + comptime!(load * tile.units());
        let vectors = comptime!(tile.tile_k / width);
        let first = half as usize + element % vectors * width;
        // Channels past the last repeat it: their results are not written.
        let column =
            weight_group + walk.weight_column(min(first_n + (element / vectors) as u32, columns - 1u32));
        #[unroll]
        for i in 0..comptime!(width / together) {
            let k = first + comptime!(i * together);
            let mut value = Vector::<E, W>::new(E::from_int(0));
            if table.exists(k) {
                value = weight[(column + table.weight[k]) / together];
            }
            values.push(value);
        }
    }
    values
}

/// Writes the sites' stage. Vectors are put together here, not where their terms are read: whatever touches a value waits
/// for it.
#[cube]
fn write_sites<E: Float, S: Float, V: Size>(
    from: &Sequence<E>,
    stage: &mut Shared<[Vector<S, V>]>,
    #[comptime] row: usize,
    #[comptime] tile: MatrixTile,
) {
    let width = V::value();
    let sites = comptime!(tile.sites(width));
    let lanes = comptime!(tile.tile_m / sites);
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_m, width)) {
        let site = comptime!(load % sites);
        let mut terms = Vector::<S, V>::empty();
        #[unroll]
        for i in 0..width {
            // As they were read: loads, terms, sites.
            terms.insert(i, S::cast_from(*from.index(comptime!((load / sites * width + i) * sites + site))));
        }
        let in_tile = UNIT_POS as usize % lanes + comptime!(site * lanes);
        let vector = UNIT_POS as usize / lanes + comptime!(load / sites * (tile.units() / lanes));
        stage[in_tile * row + vector] = terms;
    }
}

#[cube]
fn write_weights<E: Float, S: Float, V: Size, W: Size>(
    from: &Sequence<Vector<E, W>>,
    stage: &mut Shared<[Vector<S, V>]>,
    #[comptime] row: usize,
    #[comptime] tile: MatrixTile,
) {
    let width = V::value();
    let together = W::value();
    let vectors = comptime!(tile.tile_k / width);
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_n, width)) {
        let mut terms = Vector::<S, V>::empty();
        if comptime!(together == width) {
            terms = Vector::cast_from(*from.index(load));
        } else {
            #[unroll]
            for i in 0..width {
                terms.insert(i, S::cast_from(from.index(comptime!(load * width + i)).extract(0usize)));
            }
        }
        let element = UNIT_POS as usize + comptime!(load * tile.units());
        if comptime!((load + 1) * tile.units() <= tile.tile_n * vectors)
            || element < comptime!(tile.tile_n * vectors)
        {
            stage[element / vectors * row + element % vectors] = terms;
        }
    }
}

/// Adds the products of a stage to this plane's accumulators.
#[cube]
fn multiply<S: Float, V: Size>(
    site_stage: &Shared<[Vector<S, V>]>,
    weight_stage: &Shared<[Vector<S, V>]>,
    sums: &Sequence<cmma::Matrix<f32>>,
    #[comptime] size: usize,
    #[comptime] tile: MatrixTile,
) {
    let width = V::value();
    let row = comptime!(tile.row(width, size));
    let stride = comptime!((row * width) as u32);
    let plane = UNIT_POS as usize / PLANE;
    let first_site = plane % comptime!(tile.tile_m / tile.plane_m) * tile.plane_m;
    let first_channel = plane / comptime!(tile.tile_m / tile.plane_m) * tile.plane_n;
    let (sites_end, weights_end) = (site_stage.len(), weight_stage.len());
    #[unroll]
    for k in 0..comptime!(tile.tile_k / tile.fragment) {
        let mut channels = Sequence::<cmma::Matrix<Vector<S, V>>>::new();
        #[unroll]
        for i in 0..comptime!(tile.plane_n / tile.fragment) {
            let at =
                (first_channel + comptime!(i * tile.fragment)) * row + comptime!(k * tile.fragment / width);
            channels.push(cmma::Matrix::<Vector<S, V>>::from_slice(
                MatrixIdent::A,
                tile.fragment,
                tile.fragment,
                tile.fragment,
                MatrixLayout::RowMajor,
                &weight_stage[at..weights_end],
                stride,
            ));
        }
        #[unroll]
        for j in 0..comptime!(tile.plane_m / tile.fragment) {
            let at = (first_site + comptime!(j * tile.fragment)) * row + comptime!(k * tile.fragment / width);
            let sites = cmma::Matrix::<Vector<S, V>>::from_slice(
                MatrixIdent::B,
                tile.fragment,
                tile.fragment,
                tile.fragment,
                MatrixLayout::ColMajor,
                &site_stage[at..sites_end],
                stride,
            );
            #[unroll]
            for i in 0..comptime!(tile.plane_n / tile.fragment) {
                let sum = sums.index(comptime!(i * (tile.plane_m / tile.fragment) + j));
                cmma::execute(channels.index(i), &sites, sum, sum);
            }
        }
    }
}
