//! The gathered product with fp32 multiply-adds: forward pass and input gradient, any device, any storage
//! type.
//!
//! ```text
//! out[site, n] = activation( bias[n] + sum over k = (c, taps) of source(site, k) * weight(k, n) )
//! ```
//!
//! A stage is gathered while the one before it is multiplied: its values wait in registers, so that one stage
//! of shared memory is enough. Coordinates of terms are divided out once, by one unit each, and shared; those
//! of sites once per cube. Tile, bytes and operations: [`super::config`]. A sum that is split leaves fp32
//! partials for `reduce.rs`. Declined: more than 2^31 - 1 sites or terms.

use super::config::{RegisterTile, VECTOR, shared_terms};
use super::index::{Site, Walk};
use super::stage::{
    Extents, Neighbours, clear, column_of, multiply, row_of, write_along_rows, write_along_terms,
};
use super::table::{Table, fill_half, fill_other_half};
use crate::activation::activate_by_code;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn fma_kernel<E: Float, O: Float, R: Size>(
    source: &[Vector<E, R>],
    weight: &[E],
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    walk: Walk,
    extents: Extents,
    span: Span,
    #[comptime] padding: PaddingMode,
    #[comptime] tile: RegisterTile,
    #[comptime] unroll: bool,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let share = extents.share(span.index(), tile.tile_m, tile.tile_n);
    let group = share.group;
    let part = share.part;
    let first_m = share.first_m;
    let first_n = share.first_n;
    let first_k = share.first_k;
    let end_k = share.end_k;

    let mut source_stage = Shared::<[Neighbours]>::new_slice(comptime!(tile.stage_vectors(tile.tile_m)));
    let mut weight_stage = Shared::<[Neighbours]>::new_slice(comptime!(tile.stage_vectors(tile.tile_n)));
    let terms = comptime!(shared_terms(tile.tile_k, padding));
    let mut table = Table::new(terms, true, comptime!(padding == PaddingMode::Replicate));
    let mut sums = Array::<f32>::new(comptime!(tile.rows * tile.columns));
    #[unroll]
    for i in 0..comptime!(tile.rows * tile.columns) {
        sums[i] = 0.0f32;
    }

    let source_channel = walk.source_channel(group * extents.source_channels);
    let weight_group = walk.weight_group(group);
    // Neighbouring sites that are read as one vector.
    let beside = R::value();
    let mut sites = Sequence::<Site>::new();
    #[unroll]
    for i in 0..comptime!(VECTOR / beside) {
        let in_tile = UNIT_POS % comptime!((tile.tile_m / VECTOR) as u32) * VECTOR as u32 + i as u32;
        // Sites past the last repeat it: their results are not written.
        let mut site = walk.site(min(first_m + in_tile, extents.m - beside as u32));
        site.source += source_channel;
        sites.push(site);
    }

    clear(&mut source_stage, tile.units());
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
        let sources = gather_source(source, &walk, &sites, &table, at, padding, tile);
        let weights = gather_weight(weight, &walk, &table, at, weight_group, first_n, extents.n, tile);
        multiply(&source_stage, &weight_stage, &mut sums, tile, unroll);
        sync_cube();
        write_along_rows(&sources, &mut source_stage, tile);
        write_along_terms(&weights, &mut weight_stage, tile.tile_n, tile);
        stage_k += stage;
        at = (at + tile.tile_k) % terms;
        sync_cube();
    }

    // Where the unit's columns go and what is added to them, once for all of its rows: the text of what
    // follows is there for each of its results.
    let mut places = Sequence::<usize>::new();
    let mut biases = Sequence::<f32>::new();
    #[unroll]
    for j in 0..comptime!(tile.columns) {
        let channel = group * extents.n + min(first_n + column_of(j, tile), extents.n - 1u32);
        places.push(walk.out_column(channel));
        let bias: ComptimeOption<f32> =
            bias.map(|bias| f32::cast_from(bias[channel as usize * bias.stride(0)]));
        biases.push(bias.unwrap_or_else(|| 0.0f32.runtime()));
    }
    #[unroll]
    for i in 0..comptime!(tile.rows) {
        let m = first_m + row_of(i, tile);
        if m < extents.m {
            let at = walk.site_out(m) + part * extents.part_stride;
            #[unroll]
            for j in 0..comptime!(tile.columns) {
                if first_n + column_of(j, tile) < extents.n {
                    let value = sums[comptime!(i * tile.columns + j)] + *biases.index(j);
                    out[at + *places.index(j)] = O::cast_from(activate_by_code(value, extents.activation));
                }
            }
        }
    }
}

/// Reads this unit's part of the next gathered stage into registers: at a term that its whole plane shares,
/// four neighbouring sites, whose memory the next lane's neighbours continue.
#[cube]
fn gather_source<E: Float, R: Size>(
    source: &[Vector<E, R>],
    walk: &Walk,
    sites: &Sequence<Site>,
    table: &Table,
    at: usize,
    #[comptime] padding: PaddingMode,
    #[comptime] tile: RegisterTile,
) -> Sequence<Vector<E, R>> {
    let mut values = Sequence::<Vector<E, R>>::new();
    let beside = R::value();
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_m)) {
        let k = (UNIT_POS as usize + comptime!(load * tile.units())) / comptime!(tile.tile_m / VECTOR);
        let tap = table.get(at + k, comptime!(padding == PaddingMode::Replicate));
        #[unroll]
        for i in 0..comptime!(VECTOR / beside) {
            let (at, inside) = walk.place(sites.index(i), &tap, padding);
            let mut value = Vector::<E, R>::new(E::from_int(0));
            if inside {
                value = source[at / beside];
            }
            values.push(value);
        }
    }
    values
}

/// Reads this unit's part of the next weights' stage into registers. Lanes run along terms, which a weight
/// holds in runs.
#[cube]
#[allow(clippy::too_many_arguments)]
fn gather_weight<E: Float>(
    weight: &[E],
    walk: &Walk,
    table: &Table,
    at: usize,
    weight_group: usize,
    first_n: u32,
    columns: u32,
    #[comptime] tile: RegisterTile,
) -> Sequence<E> {
    let mut values = Sequence::<E>::new();
    let k = at + UNIT_POS as usize % tile.tile_k;
    let at = weight_group + table.weight[k];
    let exists = table.exists(k, Pass::Forward);
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_n)) {
        let vector = UNIT_POS as usize / tile.tile_k + comptime!(load * (tile.units() / tile.tile_k));
        #[unroll]
        for i in 0..VECTOR {
            // Columns past the last repeat it: their results are not written.
            let column = min(first_n + (vector * VECTOR + i) as u32, columns - 1u32);
            let mut value = E::from_int(0);
            if exists {
                value = weight[at + walk.weight_column(column)];
            }
            values.push(value);
        }
    }
    values
}
