//! The weight gradient on matrix units where a plane of the source is a run of windows (1x1x1, 3x1x1), fp32
//! accumulation.
//!
//! ```text
//! partial[part, o, m] = sum over the part's windows q of dy(q, o) * source(q, m)        m = (c, depth tap)
//!
//! a stage: tile_k windows of tile_m sources and of tile_n output channels, rows of windows,
//!          16 bytes longer than those
//! ```
//!
//! [`super::matrix_weight`] without its tables: both operands lie in vectors of windows, of which a unit
//! divides one out per stage, and the sources that a unit reads are the same in all stages. Per stage a cube
//! reads `tile_k * (tile_m + tile_n)` elements for `2 * tile_m * tile_n * tile_k` operations; the partials
//! are written and read once more, 8 bytes each. Declined: planes that do not lie so, replicate padding.

use super::config::MatrixTile;
use super::fragments::{accumulators, multiply, read_channels, write_result, write_rows};
use super::index::{Site, Tap, Walk};
use super::stage::{Extents, clear};
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn contiguous_weight_kernel<E: Float, S: Float, O: Float, V: Size>(
    source: &[Vector<E, V>],
    dy: &[Vector<E, V>],
    out: &mut [O],
    walk: Walk,
    extents: Extents,
    span: Span,
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
    let width = V::value();
    let row = comptime!(tile.row(tile.tile_k, width, size));
    let mut source_stage = Shared::<[Vector<S, V>]>::new_slice(comptime!(tile.tile_m * row));
    let mut dy_stage = Shared::<[Vector<S, V>]>::new_slice(comptime!(tile.tile_n * row));
    let mut patches = Shared::<[f32]>::new_slice(comptime!(tile.planes() * tile.fragment * tile.fragment));
    let sums = accumulators(comptime!(tile.plane_m * tile.plane_n), tile.fragment);
    clear(&mut source_stage, tile.units());
    clear(&mut dy_stage, tile.units());

    // This unit's window in a stage, and its sources, those past the last as the last, whose results are not
    // written.
    let runs = comptime!(tile.tile_k / width);
    let in_stage = (UNIT_POS as usize % runs * width) as u32;
    let first_row = (UNIT_POS as usize / runs) as u32;
    let first_channel = walk.source_channel(share.group * extents.source_channels);
    let mut columns = Sequence::<Tap>::new();
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_m, width)) {
        let in_tile = first_row + comptime!((load * (tile.units() / runs)) as u32);
        let term = min(share.first_m + in_tile, extents.m - 1u32);
        columns.push(walk.tap(term, true.runtime(), Pass::Forward));
    }
    let first_o = share.group * extents.n + share.first_n;
    let last_o = share.group * extents.n + extents.n - 1u32;
    let o_stride = walk.out_channel(1u32);
    sync_cube();
    // The windows at `stage_k` are read while those before are multiplied; past the end there is nothing to
    // read.
    let stage = comptime!(tile.tile_k as u32).runtime();
    let mut stage_k = share.first_k;
    while stage_k < share.end_k + stage {
        let window = stage_k + in_stage;
        let exists = window < share.end_k;
        let site = walk.site(min(window, extents.k - 1u32));
        let sources = read_sources(source, &walk, &columns, &site, first_channel, exists, tile);
        let gradients = read_channels(dy, site.out, exists, (first_o, last_o, o_stride), width, tile);
        multiply(&source_stage, &dy_stage, &sums, (true, true), size, tile);
        sync_cube();
        write_rows(&sources, &mut source_stage, row, tile.tile_m, tile);
        write_rows(&gradients, &mut dy_stage, row, tile.tile_n, tile);
        stage_k += stage;
        sync_cube();
    }
    let no_bias = ComptimeOption::<&Tensor<E>>::new_None();
    write_result(&sums, &mut patches, no_bias, out, &walk, &extents, &share, Pass::WeightGradient, tile);
}

/// Reads this unit's vectors of the next stage's sources into registers.
#[cube]
fn read_sources<E: Float, V: Size>(
    source: &[Vector<E, V>],
    walk: &Walk,
    columns: &Sequence<Tap>,
    site: &Site,
    first_channel: usize,
    exists: bool,
    #[comptime] tile: MatrixTile,
) -> Sequence<Vector<E, V>> {
    let mut values = Sequence::<Vector<E, V>>::new();
    let width = V::value();
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_m, width)) {
        let mut value = Vector::<E, V>::new(E::from_int(0));
        let (place, inside) = walk.place(site, columns.index(load), PaddingMode::Zeros);
        if inside && exists {
            value = source[(place + first_channel) / width];
        }
        values.push(value);
    }
    values
}
