//! Depthwise weight gradient of dense windows: stride and dilation 1. Tile: [`crate::conv3d::frames`].
//!
//! ```text
//! partial[part, c, tap] = sum over the part's windows q of x(q + tap) * dy(q)
//! partial[part, c]      = sum over them of dy(q), where the bias' gradient is asked for as well
//! ```
//!
//! A part is a tile of an image's plane, marching along a chunk of its depth. A unit holds a sum for every
//! tap, and dy of its sites for the last KD frames; per frame, site and tap one multiply-add. At the end the
//! units' sums meet in shared memory, some taps at a time, in a fixed order. Bytes: x once (with the tile's
//! rim a little more), dy once. Declined: strides, dilation and windows of more than 80 taps
//! ([`super::weight`] takes them).
//!
//! The bias' gradient costs 1 % of the sweep for 75 taps and 7 % for 27 (H200, f32: 0.725 to 0.734 and 0.119
//! to 0.128 ms; a sweep of its own takes 0.130 and 0.050).

use crate::conv3d::frames::{
    Sums, Tile, Tiling, Unit, places, read_column, read_frame, sum_units, write_frame,
};
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn staged_weight_kernel<E: Float, O: Float>(
    source: &[E],
    dy: &[E],
    out: &mut [O],
    walk: GatherArgs,
    tiling: Tiling,
    part_stride: usize,
    span: Span,
    #[comptime] bias: bool,
    #[comptime] padding: PaddingMode,
    #[comptime] tile: Tile,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let unit = tiling.unit(span.cube() as u32, tile);
    let places = places(&walk, &unit, padding, tile);
    let base = walk.source_at(unit.n, unit.c);
    let dy_column = walk.out_at(unit.n, unit.c) + walk.width.out_offset(unit.w);

    let mut stage = Shared::<[f32]>::new_slice(comptime!(tile.loads() * tile.units));
    // sums[(column * KH + row) * KD + depth], and that of dy.
    let sums = Registers::<f32>::new(comptime!(tile.count() + usize::from(bias)), 0.0f32);
    // recent[age * rows + site]: dy of the window that this frame is depth tap `age` of.
    let recent = Registers::<f32>::new(comptime!(tile.taps[0] * tile.rows), 0.0f32);
    let ahead = comptime!(tile.taps[0] as u32 - 1);
    let mut frame = unit.first;
    let values = read_frame(source, base, &walk, frame, true.runtime(), &places, padding, tile);
    write_frame(&values, &mut stage, tile);
    read_sites(dy, &walk, &tiling, &unit, dy_column, frame, &recent, tile);
    add_sites(&recent, &sums, bias, tile);
    sync_cube();
    while frame < unit.end + ahead {
        // The next frame is read while this one is multiplied; past the last there is nothing to read.
        let exists = frame + 1u32 < unit.end + ahead;
        let next = read_frame(source, base, &walk, frame + 1u32, exists, &places, padding, tile);
        add_frame(&stage, unit.corner, &recent, &sums, tile);
        recent.shift(tile.rows);
        read_sites(dy, &walk, &tiling, &unit, dy_column, frame + 1u32, &recent, tile);
        sync_cube();
        write_frame(&next, &mut stage, tile);
        add_sites(&recent, &sums, bias, tile);
        frame += 1u32;
        sync_cube();
    }
    let part = (unit.n * tiling.cubes + unit.cube) as usize * part_stride;
    let first_out = part + unit.c as usize * tile.count();
    let bias_out = part + tiling.channel_count as usize * tile.count() + unit.c as usize;
    let of = comptime!(Sums::of(&tile, 1, bias));
    sum_units(&sums, &mut stage, out, first_out, 0usize.runtime(), bias_out, of);
}

/// Adds dy of a frame, as [`read_sites`] has read it, to the sum behind those of the taps.
#[cube]
fn add_sites(recent: &Registers<f32>, sums: &Registers<f32>, #[comptime] bias: bool, #[comptime] tile: Tile) {
    if comptime!(bias) {
        #[unroll]
        for site in 0..tile.rows {
            sums.set(tile.count(), sums.get(tile.count()) + recent.get(site));
        }
    }
}

/// Reads dy of a unit's windows of a frame: zero past the chunk's last and outside the plane.
#[cube]
#[allow(clippy::too_many_arguments)]
fn read_sites<E: Float>(
    dy: &[E],
    walk: &GatherArgs,
    tiling: &Tiling,
    unit: &Unit,
    dy_column: usize,
    frame: u32,
    recent: &Registers<f32>,
    #[comptime] tile: Tile,
) {
    #[unroll]
    for i in 0..tile.rows {
        let row = unit.h + i as u32;
        let mut value = 0.0f32;
        if frame < unit.end && row < tiling.height && unit.w < tiling.width {
            let at = dy_column + walk.depth.out_offset(frame) + walk.height.out_offset(row);
            value = f32::cast_from(dy[at]);
        }
        recent.set(i, value);
    }
}

/// Adds a frame's products.
#[cube]
fn add_frame(
    stage: &Shared<[f32]>,
    corner: usize,
    recent: &Registers<f32>,
    sums: &Registers<f32>,
    #[comptime] tile: Tile,
) {
    #[unroll]
    for column in 0..tile.taps[2] {
        let values = read_column(stage, corner, column, tile);
        #[unroll]
        for row in 0..tile.taps[1] {
            #[unroll]
            for age in 0..tile.taps[0] {
                let tap = comptime!((column * tile.taps[1] + row) * tile.taps[0] + age);
                #[unroll]
                for site in 0..tile.rows {
                    let gradient = recent.get(comptime!(age * tile.rows + site));
                    sums.set(tap, fma(*values.index(comptime!(row + site)), gradient, sums.get(tap)));
                }
            }
        }
    }
}
