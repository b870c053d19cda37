//! The weight gradient of heads, layers of few output channels per group, of dense windows: stride and
//! dilation 1.
//!
//! ```text
//! partial[part, o, c, tap] = sum over the part's windows q of x[c, q + tap] * dy[o, q]
//! ```
//!
//! A cube belongs to one channel of x and one part: tiles (those of [`super::kernel`]), one after the other.
//! A tile's window of x lies in shared memory; a unit holds dy of its `frames * rows` sites for all results
//! in registers, and a sum for every tap and result. A column's elements of a frame meet all depth taps at
//! once. 3x3x3, three results, four frames of two rows: 81 sums, and per tile 648 multiply-adds for 72
//! elements from shared memory, 16 of x and 24 of dy from memory. At the end the units' sums meet in shared
//! memory in a fixed order. Bytes: x once with the tiles' rims, dy once for each channel of x (from the
//! cache). Declined: strides, dilation, more than four output channels per group, windows whose sums do not
//! fit the registers.

use super::config::Shape;
use super::kernel::{frames, read_channel, read_values, write_channel};
use crate::conv3d::frames::{Sums, Tiling, Unit, places, sum_units};
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// How the tiles of all images are shared out: channels of x are fastest in a cube's index, parts come next.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct WeightShare {
    pub(super) channels: FastDivmod<u32>,
    pub(super) group_channels: FastDivmod<u32>,
    /// Tiles of all images, and of a part.
    pub(super) tiles: u32,
    pub(super) part_tiles: u32,
    /// Elements of the weights of one result, and of all.
    pub(super) result_stride: usize,
    pub(super) part_stride: usize,
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn few_outputs_weight_kernel<E: Float, O: Float>(
    source: &[E],
    dy: &[E],
    out: &mut [O],
    walk: GatherArgs,
    tiling: Tiling,
    share: WeightShare,
    span: Span,
    #[comptime] padding: PaddingMode,
    #[comptime] shape: Shape,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let (part, c) = share.channels.div_mod(span.cube() as u32);
    let (group, in_group) = share.group_channels.div_mod(c);
    let first_result = group * comptime!(shape.results as u32);
    let mut tile = part * share.part_tiles;
    let end = min(tile + share.part_tiles, share.tiles);
    let mut window = Shared::<[f32]>::new_slice(comptime!(shape.source_frames() * shape.frame_elements()));
    // sums[((column * KH + row) * KD + depth) * results + result]
    let sums = Registers::<f32>::new(comptime!(shape.plane.count() * shape.results), 0.0f32);
    while tile < end {
        let unit = tiling.unit(tile, shape.plane);
        let frames = frames(&walk, unit.first, padding, shape);
        let places = places(&walk, &unit, padding, shape.plane);
        let channel = walk.source_at(unit.n, c);
        let values = read_channel(source, channel, &frames, &places, true.runtime(), shape);
        let first_dy = walk.out_at(unit.n, first_result) + walk.width.out_offset(unit.w);
        let gradients = read_gradients(dy, &walk, &tiling, &unit, first_dy, shape);
        // Every unit is done with the tile before.
        sync_cube();
        write_channel(&values, &mut window, shape);
        sync_cube();
        #[unroll]
        for column in 0..shape.plane.taps[2] {
            add_column(&window, unit.corner, column, &gradients, &sums, shape);
        }
        tile += 1u32;
    }
    // The window is read no more.
    sync_cube();
    let first_out = part as usize * share.part_stride
        + first_result as usize * share.result_stride
        + (in_group * comptime!(shape.plane.count() as u32)) as usize;
    sum_units(
        &sums,
        &mut window,
        out,
        first_out,
        share.result_stride,
        0usize.runtime(),
        comptime!(Sums::of(&shape.plane, shape.results, false)),
    );
}

/// Reads dy of a unit's sites, as they lie in [`super::kernel`]'s sums: zero past the last frame and outside
/// the plane.
#[cube]
fn read_gradients<E: Float>(
    dy: &[E],
    walk: &GatherArgs,
    tiling: &Tiling,
    unit: &Unit,
    first: usize,
    #[comptime] shape: Shape,
) -> Sequence<f32> {
    let mut gradients = Sequence::<f32>::new();
    #[unroll]
    for i in 0..comptime!(shape.sums()) {
        let h = unit.h + comptime!((i % shape.plane.rows) as u32);
        let result = comptime!((i / shape.plane.rows % shape.results) as u32);
        let d = unit.first + comptime!((i / shape.plane.rows / shape.results) as u32);
        let mut value = E::from_int(0);
        if d < unit.end && h < tiling.height && unit.w < tiling.width {
            value = dy[first
                + walk.out_channel(result.runtime())
                + walk.depth.out_offset(d)
                + walk.height.out_offset(h)];
        }
        gradients.push(f32::cast_from(value));
    }
    gradients
}

/// Adds the products of a column of the window.
#[cube]
fn add_column(
    window: &Shared<[f32]>,
    corner: usize,
    #[comptime] column: usize,
    gradients: &Sequence<f32>,
    sums: &Registers<f32>,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for frame in 0..comptime!(shape.source_frames()) {
        let values = read_values(window, corner + column, frame, shape);
        add_frame(&values, column, frame, gradients, sums, shape);
    }
}

/// Adds the products of a frame's elements with dy of the frames whose windows reach it.
#[cube]
fn add_frame(
    values: &Sequence<f32>,
    #[comptime] column: usize,
    #[comptime] frame: usize,
    gradients: &Sequence<f32>,
    sums: &Registers<f32>,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for product in 0..comptime!(shape.factors() * shape.plane.rows) {
        // Factors are fastest, so that neighbouring products go to different sums.
        let factor = comptime!(product % shape.factors());
        let site = comptime!(product / shape.factors());
        let result = comptime!(factor % shape.results);
        let depth = comptime!(factor / shape.results % shape.plane.taps[0]);
        let row = comptime!(factor / shape.results / shape.plane.taps[0]);
        if comptime!(frame >= depth && frame - depth < shape.frames) {
            let sum = comptime!(column * shape.factors() + factor);
            let gradient = comptime!(((frame - depth) * shape.results + result) * shape.plane.rows + site);
            let value = *values.index(comptime!(row + site));
            sums.set(sum, fma(value, *gradients.index(gradient), sums.get(sum)));
        }
    }
}
