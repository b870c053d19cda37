//! The weight gradient with fp32 multiply-adds, any device, any storage type.
//!
//! ```text
//! partial[part, o, m] = sum over the part's windows q of source(q, m) * dy(q, o)        m = (c, tap)
//! ```
//!
//! Both operands hold windows in runs, so lanes run along windows (the sum). Tile, bytes, operations and shared memory per cube: [`super::config`]; the partials are written and read once more, 8 bytes
//! each. Parts are summed in order by `reduce.rs`. Where there is one part it is the result. Declined: more than 2^31 - 1
//! windows or columns.

use super::config::{RegisterTile, VECTOR};
use super::place::{Table, Walk};
use super::stage::{Extents, Neighbours, column_of, multiply, row_of, write_along_terms};
use crate::conv3d::plan::Pass;
use crate::conv3d::problem::PaddingMode;
use crate::grid::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn weight_kernel<E: Float, O: Float>(
    source: &[E],
    dy: &[E],
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
    let share = extents.share(span.cube(), tile.tile_m, tile.tile_n);
    let group = share.group;
    let part = share.part;
    let first_m = share.first_m;
    let first_n = share.first_n;
    let first_k = share.first_k;
    let end_k = share.end_k;

    let mut source_stage = Shared::<[Neighbours]>::new_slice(comptime!(tile.stage_vectors(tile.tile_m)));
    let mut dy_stage = Shared::<[Neighbours]>::new_slice(comptime!(tile.stage_vectors(tile.tile_n)));
    let mut columns = Table::new(tile.tile_m, true);
    fill_columns(&mut columns, &walk, first_m, extents.m, group * extents.source_channels, tile);

    let mut sums = Array::<f32>::new(comptime!(tile.rows * tile.columns));
    #[unroll]
    for i in 0..comptime!(tile.rows * tile.columns) {
        sums[i] = 0.0f32;
    }
    // A unit reads one window of every stage.
    let window = (UNIT_POS as usize % tile.tile_k) as u32;
    let first_o = group * extents.n + first_n;
    let last_o = group * extents.n + extents.n - 1u32;
    sync_cube();
    let (sources, gradients) =
        gather(source, dy, &walk, &columns, first_k + window, end_k, first_o, last_o, padding, tile);
    write_along_terms(&sources, &mut source_stage, tile.tile_m, tile);
    write_along_terms(&gradients, &mut dy_stage, tile.tile_n, tile);
    sync_cube();
    let mut stage_k = first_k;
    while stage_k < end_k {
        stage_k += tile.tile_k as u32;
        let (sources, gradients) =
            gather(source, dy, &walk, &columns, stage_k + window, end_k, first_o, last_o, padding, tile);
        multiply(&source_stage, &dy_stage, &mut sums, tile, unroll);
        sync_cube();
        write_along_terms(&sources, &mut source_stage, tile.tile_m, tile);
        write_along_terms(&gradients, &mut dy_stage, tile.tile_n, tile);
        sync_cube();
    }

    #[unroll]
    for j in 0..tile.columns {
        let n = first_n + column_of(j, tile);
        if n < extents.n {
            let row = part * extents.part_stride + (group * extents.n + n) as usize * extents.m as usize;
            #[unroll]
            for i in 0..tile.rows {
                let m = first_m + row_of(i, tile);
                if m < extents.m {
                    out[row + m as usize] = O::cast_from(sums[comptime!(i * tile.columns + j)]);
                }
            }
        }
    }
}

#[cube]
fn fill_columns(
    columns: &mut Table,
    walk: &Walk,
    first_m: u32,
    end_m: u32,
    first_channel: u32,
    #[comptime] tile: RegisterTile,
) {
    let mut column = UNIT_POS as usize;
    while column < tile.tile_m {
        // Columns past the last repeat it: their results are not written.
        let mut tap = walk.tap(min(first_m + column as u32, end_m - 1u32), true.runtime(), Pass::Forward);
        tap.source += walk.source_channel(first_channel);
        columns.set(column, &tap, true);
        column += comptime!(tile.units());
    }
}

/// Reads this unit's window of the next stages into registers.
#[cube]
#[allow(clippy::too_many_arguments)]
fn gather<E: Float>(
    source: &[E],
    dy: &[E],
    walk: &Walk,
    columns: &Table,
    k: u32,
    end_k: u32,
    first_o: u32,
    last_o: u32,
    #[comptime] padding: PaddingMode,
    #[comptime] tile: RegisterTile,
) -> (Sequence<E>, Sequence<E>) {
    let mut sources = Sequence::<E>::new();
    let mut gradients = Sequence::<E>::new();
    let exists = k < end_k;
    let site = walk.site(min(k, end_k - 1u32));
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_m)) {
        let vector = UNIT_POS as usize / tile.tile_k + comptime!(load * (tile.units() / tile.tile_k));
        #[unroll]
        for i in 0..VECTOR {
            let tap = columns.get(vector * VECTOR + i, true);
            let (at, inside) = walk.place_by_steps(&site, &tap, padding);
            let mut value = E::from_int(0);
            if inside && exists {
                value = source[at];
            }
            sources.push(value);
        }
    }
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_n)) {
        let vector = UNIT_POS as usize / tile.tile_k + comptime!(load * (tile.units() / tile.tile_k));
        #[unroll]
        for i in 0..VECTOR {
            let o = min(first_o + (vector * VECTOR + i) as u32, last_o);
            let mut value = E::from_int(0);
            if exists {
                value = dy[site.out + walk.out_channel(o)];
            }
            gradients.push(value);
        }
    }
    (sources, gradients)
}
