//! Depthwise conv3d, forward and input gradient, of dense windows: stride and dilation 1. Tile:
//! [`crate::conv3d::frames`].
//!
//! ```text
//! y[n, c, d, h, w] = activation( bias[c] + sum over kd, kh, kw of
//!                                x[n, c, d + kd, h + kh, w + kw] * weight[c, kd, kh, kw] )
//! ```
//!
//! A cube marches along depth; the KD unfinished results of each site wait in registers. Per frame, unit and
//! tap one multiply-add for each of its `rows` sites; a frame is in memory's way once (`1 + overlap` times
//! with the tile's rim), a result once. Declined: strides, dilation and windows of more than 80 taps
//! ([`super::march`] takes them).

use super::march::age;
use crate::activation::activate_by_code;
use crate::conv3d::frames::{Tile, Tiling, Unit, places, read_column, read_frame, write_frame};
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::plan::Pass;
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Weights that are read from shared memory at once.
type Weights = Vector<f32, Const<4>>;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn staged_kernel<E: Float, O: Float>(
    source: &[E],
    weight: &[E],
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    walk: GatherArgs,
    tiling: Tiling,
    span: Span,
    #[comptime] pass: Pass,
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
    let weights = share_weights(weight, &walk, unit.c, pass, tile);
    let places = places(&walk, &unit, padding, tile);
    let base = walk.source_at(unit.n, unit.c);
    let bias: ComptimeOption<f32> = bias.map(|bias| f32::cast_from(bias[unit.c as usize * bias.stride(0)]));
    let start = bias.unwrap_or_else(|| 0.0f32.runtime());
    let out_column = walk.out_at(unit.n, unit.c) + walk.width.out_offset(unit.w);

    let mut stage = Shared::<[f32]>::new_slice(comptime!(tile.loads() * tile.units));
    // sums[age * rows + row]: the result that this frame reaches with depth tap `age`.
    let sums = Registers::<f32>::new(comptime!(tile.taps[0] * tile.rows), 0.0f32);
    let ahead = comptime!(tile.taps[0] as u32 - 1);
    let mut frame = unit.first;
    let values = read_frame(source, base, &walk, frame, true.runtime(), &places, padding, tile);
    write_frame(&values, &mut stage, tile);
    sync_cube();
    while frame < unit.end + ahead {
        // The next frame is read while this one is multiplied; past the last there is nothing to read.
        let exists = frame + 1u32 < unit.end + ahead;
        let next = read_frame(source, base, &walk, frame + 1u32, exists, &places, padding, tile);
        add_frame(&stage, unit.corner, &weights, &sums, tile);
        if frame >= unit.first + ahead {
            write_rows(out, &walk, &tiling, &unit, &sums, start, out_column, frame - ahead, tile);
        }
        age(&sums, tile.rows);
        sync_cube();
        write_frame(&next, &mut stage, tile);
        frame += 1u32;
        sync_cube();
    }
}

/// Brings the channel's weights into shared memory, in the order in which they are used: column, row, depth.
#[cube]
fn share_weights<E: Float>(
    weight: &[E],
    walk: &GatherArgs,
    c: u32,
    #[comptime] pass: Pass,
    #[comptime] tile: Tile,
) -> Shared<[Weights]> {
    let vectors = comptime!(tile.count().div_ceil(4));
    let mut shared = Shared::<[Weights]>::new_slice(vectors);
    if (UNIT_POS as usize) < vectors {
        let mut weights = Weights::new(0.0f32);
        #[unroll]
        for i in 0..4usize {
            let tap = UNIT_POS * 4u32 + i as u32;
            if tap < comptime!(tile.count() as u32) {
                let d = tap % tile.taps[0] as u32;
                let cell = tap / tile.taps[0] as u32;
                let at = walk.weight_group(c)
                    + walk.depth.weight_offset(d, pass)
                    + walk.height.weight_offset(cell % tile.taps[1] as u32, pass)
                    + walk.width.weight_offset(cell / tile.taps[1] as u32, pass);
                weights.insert(i, f32::cast_from(weight[at]));
            }
        }
        shared[UNIT_POS as usize] = weights;
    }
    shared
}

/// Adds a frame's products.
#[cube]
fn add_frame(
    stage: &Shared<[f32]>,
    corner: usize,
    weights: &Shared<[Weights]>,
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
                let weight = weights[comptime!(tap / 4)].extract(comptime!(tap % 4));
                #[unroll]
                for site in 0..tile.rows {
                    let sum = comptime!(age * tile.rows + site);
                    sums.set(sum, fma(*values.index(comptime!(row + site)), weight, sums.get(sum)));
                }
            }
        }
    }
}

/// Writes the oldest results.
#[cube]
#[allow(clippy::too_many_arguments)]
fn write_rows<O: Float>(
    out: &mut [O],
    walk: &GatherArgs,
    tiling: &Tiling,
    unit: &Unit,
    sums: &Registers<f32>,
    bias: f32,
    out_column: usize,
    d: u32,
    #[comptime] tile: Tile,
) {
    #[unroll]
    for i in 0..tile.rows {
        let row = unit.h + i as u32;
        if row < tiling.height && unit.w < tiling.width {
            let sum = sums.get(comptime!((tile.taps[0] - 1) * tile.rows + i));
            let at = out_column + walk.depth.out_offset(d) + walk.height.out_offset(row);
            out[at] = O::cast_from(activate_by_code(sum + bias, tiling.activation));
        }
    }
}
