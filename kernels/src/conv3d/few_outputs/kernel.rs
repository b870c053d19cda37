//! Heads, layers of few result channels per group, of dense windows: stride and dilation 1. Forward pass, and
//! input gradient with dy for the source and the channels of dx for the results.
//!
//! ```text
//! y[n, o, d, h, w] = activation( bias[o] + sum over c, kd, kh, kw of
//!                                x[n, c, d + kd, h + kh, w + kw] * weight[o, c, kd, kh, kw] )
//!
//!          columns + KW - 1         a cube:  a tile of the plane (`crate::conv3d::frames`) in `frames`
//!      +----------------------+              frames, all results of a group; for each of the group's
//!      |  unit | unit | unit  |              channels the window of the tile lies in shared memory,
//!      |  unit | unit | unit  |              frames + KD - 1 frames of it, beside the channel's weights
//!      +----------------------+              [kw, kh, kd, o]
//!                                   a unit:  frames * rows * results sums in registers, rows along H,
//!                                            lanes along W
//! ```
//!
//! Per channel and column of the window a unit takes the column's `KH * KD * results` weights from shared
//! memory into registers, and keeps them for all frames and rows: `frames * rows` multiply-adds for each. A
//! frame's `rows + KH - 1` elements meet all depth taps whose result lies in the cube; those that would reach
//! past it are not computed. 3x3x3, three results, four frames of four rows: 1296 multiply-adds for 108
//! elements and 21 vectors of weights, 30 elements from memory and two barriers. Bytes of a cube:
//! `(frames + KD - 1) * (rim of the tile)` elements of every channel, its weights, and its results once. A
//! sum that is split leaves fp32 partials for `reduce.rs`. Declined: strides, dilation, more than four
//! results per group, windows whose column of weights does not fit the registers ([`super::config`]).

use super::config::Shape;
use crate::activation::activate_by_code;
use crate::conv3d::frames::{Places, Tiling, Unit, places};
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::plan::Pass;
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// Weights that are read from shared memory at once.
type Weights = Vector<f32, Const<4>>;

/// How channels are shared out, beside the tiling of sites: parts of the sum are slowest in a cube's index,
/// images come next.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Share {
    pub(super) batch: FastDivmod<u32>,
    /// Channels of the source in a group, and in a part of the sum.
    pub(super) channels: u32,
    pub(super) part_channels: u32,
    /// Elements of the result's partials.
    pub(super) part_stride: usize,
}

/// Offsets in a tensor, and whether an element lies there.
#[derive(CubeType)]
pub(super) struct Offsets {
    at: Sequence<usize>,
    exists: Sequence<bool>,
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn few_outputs_kernel<E: Float, O: Float>(
    source: &[E],
    weight: &[E],
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    walk: GatherArgs,
    tiling: Tiling,
    share: Share,
    span: Span,
    #[comptime] pass: Pass,
    #[comptime] padding: PaddingMode,
    #[comptime] shape: Shape,
    #[comptime] unroll: bool,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let unit = tiling.unit(span.cube() as u32, shape.plane);
    let (part, n) = share.batch.div_mod(unit.n);
    let mut c = part * share.part_channels;
    let end = min(c + share.part_channels, share.channels);
    let frames = frames(&walk, unit.first, padding, shape);
    let places = places(&walk, &unit, padding, shape.plane);
    let taps = taps(&walk, unit.c, pass, shape);
    let base = walk.source_at(n, unit.c * share.channels);
    let mut window = Shared::<[f32]>::new_slice(comptime!(shape.source_frames() * shape.frame_elements()));
    let mut weights = Shared::<[Weights]>::new_slice(comptime!(shape.weight_vectors()));
    // sums[(frame * results + result) * rows + row]
    let sums = Registers::<f32>::new(comptime!(shape.sums()), 0.0f32);

    if comptime!(shape.ahead) {
        let values = read_channel(source, base + walk.source_channel(c), &frames, &places, c < end, shape);
        let factors = read_weights(weight, walk.weight_channel(c), &taps, c < end);
        write_channel(&values, &mut window, shape);
        write_weights(factors, &mut weights, shape);
        sync_cube();
        while c < end {
            c += 1u32;
            // Past the last channel there is nothing to read.
            let values =
                read_channel(source, base + walk.source_channel(c), &frames, &places, c < end, shape);
            let factors = read_weights(weight, walk.weight_channel(c), &taps, c < end);
            multiply(&window, unit.corner, &weights, &sums, shape, unroll);
            sync_cube();
            write_channel(&values, &mut window, shape);
            write_weights(factors, &mut weights, shape);
            sync_cube();
        }
    } else {
        while c < end {
            let values =
                read_channel(source, base + walk.source_channel(c), &frames, &places, true.runtime(), shape);
            let factors = read_weights(weight, walk.weight_channel(c), &taps, true.runtime());
            // Every unit is done with the channel before.
            sync_cube();
            write_channel(&values, &mut window, shape);
            write_weights(factors, &mut weights, shape);
            sync_cube();
            multiply(&window, unit.corner, &weights, &sums, shape, unroll);
            c += 1u32;
        }
    }
    // The window is read no more: the sums pass through it, so that what follows them is written once and not
    // for each.
    sync_cube();
    let first_result = unit.c * comptime!(shape.results as u32);
    let first_out =
        walk.out_at(n, first_result) + walk.width.out_offset(unit.w) + part as usize * share.part_stride;
    #[unroll]
    for result in 0..shape.results {
        let at = (first_result + result as u32) as usize;
        let bias: ComptimeOption<f32> = bias.as_ref().map(|bias| f32::cast_from(bias[at * bias.stride(0)]));
        let start = bias.unwrap_or_else(|| 0.0f32.runtime());
        set_aside(&sums, &mut window, result, shape);
        let first_out = first_out + walk.out_channel(result as u32);
        write_result(out, &walk, &tiling, &unit, &window, start, first_out, shape);
    }
}

/// Where the frames of the window lie in a channel, and whether they do.
#[cube]
pub(super) fn frames(
    walk: &GatherArgs,
    first: u32,
    #[comptime] padding: PaddingMode,
    #[comptime] shape: Shape,
) -> Offsets {
    let mut at = Sequence::<usize>::new();
    let mut exists = Sequence::<bool>::new();
    #[unroll]
    for frame in 0..comptime!(shape.source_frames()) {
        let (place, inside) = walk.depth.load_offset(walk.depth.coordinate(first + frame as u32), padding);
        at.push(place);
        exists.push(inside);
    }
    Offsets { at, exists }
}

/// Where the four weights of this unit's vector lie, in the order in which they are used: column, row, depth,
/// result.
#[cube]
fn taps(walk: &GatherArgs, group: u32, #[comptime] pass: Pass, #[comptime] shape: Shape) -> Offsets {
    let mut at = Sequence::<usize>::new();
    let mut exists = Sequence::<bool>::new();
    let vector = UNIT_POS % comptime!(shape.vectors() as u32);
    let column = UNIT_POS / comptime!(shape.vectors() as u32);
    #[unroll]
    for i in 0..4usize {
        let factor = vector * 4u32 + i as u32;
        let result = factor % comptime!(shape.results as u32);
        let rest = factor / comptime!(shape.results as u32);
        let depth = rest % comptime!(shape.plane.taps[0] as u32);
        let row = rest / comptime!(shape.plane.taps[0] as u32);
        at.push(
            walk.weight_group(group)
                + walk.weight_column(result)
                + walk.depth.weight_offset(depth, pass)
                + walk.height.weight_offset(row, pass)
                + walk.width.weight_offset(column, pass),
        );
        exists.push(
            factor < comptime!(shape.factors() as u32) && column < comptime!(shape.plane.taps[2] as u32),
        );
    }
    Offsets { at, exists }
}

/// Reads this unit's elements of a channel's window into registers; those outside the source are zero.
#[cube]
pub(super) fn read_channel<E: Float>(
    source: &[E],
    channel: usize,
    frames: &Offsets,
    places: &Places,
    exists: bool,
    #[comptime] shape: Shape,
) -> Sequence<E> {
    let mut values = Sequence::<E>::new();
    #[unroll]
    for load in 0..comptime!(shape.loads()) {
        let frame = comptime!(load / shape.plane.loads());
        let place = comptime!(load % shape.plane.loads());
        let mut value = E::from_int(0);
        if exists && *frames.exists.index(frame) && *places.inside.index(place) {
            value = source[channel + *frames.at.index(frame) + *places.at.index(place)];
        }
        values.push(value);
    }
    values
}

/// Writes what [`read_channel`] has read.
#[cube]
pub(super) fn write_channel<E: Float>(
    values: &Sequence<E>,
    window: &mut Shared<[f32]>,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for load in 0..comptime!(shape.loads()) {
        window[UNIT_POS as usize + comptime!(load * shape.plane.units)] = f32::cast_from(*values.index(load));
    }
}

/// Reads this unit's vector of a channel's weights.
#[cube]
fn read_weights<E: Float>(weight: &[E], channel: usize, taps: &Offsets, exists: bool) -> Weights {
    let mut weights = Weights::new(0.0f32);
    #[unroll]
    for i in 0..4usize {
        if exists && *taps.exists.index(i) {
            weights.insert(i, f32::cast_from(weight[channel + *taps.at.index(i)]));
        }
    }
    weights
}

/// Writes what [`read_weights`] has read.
#[cube]
fn write_weights(factors: Weights, weights: &mut Shared<[Weights]>, #[comptime] shape: Shape) {
    if UNIT_POS < comptime!(shape.weight_vectors() as u32) {
        weights[UNIT_POS as usize] = factors;
    }
}

/// Adds a channel's products, one column of the window after the other.
#[cube]
fn multiply(
    window: &Shared<[f32]>,
    corner: usize,
    weights: &Shared<[Weights]>,
    sums: &Registers<f32>,
    #[comptime] shape: Shape,
    #[comptime] unroll: bool,
) {
    #[unroll(unroll)]
    for column in 0..shape.plane.taps[2] {
        let factors = read_factors(weights, column * comptime!(shape.vectors()), shape);
        let corner = corner + column;
        #[unroll]
        for frame in 0..comptime!(shape.source_frames()) {
            let values = read_values(window, corner, frame, shape);
            add_frame(&values, &factors, frame, sums, shape);
        }
    }
}

/// The weights of a column of the window.
#[cube]
fn read_factors(weights: &Shared<[Weights]>, first: usize, #[comptime] shape: Shape) -> Sequence<Weights> {
    let mut factors = Sequence::<Weights>::new();
    #[unroll]
    for vector in 0..comptime!(shape.vectors()) {
        factors.push(weights[first + vector]);
    }
    factors
}

/// The elements of a frame that a unit's sites meet in a column of the window, downwards.
#[cube]
pub(super) fn read_values(
    window: &Shared<[f32]>,
    corner: usize,
    #[comptime] frame: usize,
    #[comptime] shape: Shape,
) -> Sequence<f32> {
    let mut values = Sequence::<f32>::new();
    #[unroll]
    for row in 0..comptime!(shape.plane.rows + shape.plane.taps[1] - 1) {
        values.push(window[corner + comptime!(frame * shape.frame_elements() + row * shape.plane.stride())]);
    }
    values
}

/// Adds the products of a frame's elements with the weights that lead to frames of the cube.
#[cube]
fn add_frame(
    values: &Sequence<f32>,
    factors: &Sequence<Weights>,
    #[comptime] frame: usize,
    sums: &Registers<f32>,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for product in 0..comptime!(shape.factors() * shape.plane.rows) {
        // Sites are fastest, then the factors in their order: result, depth, row.
        let site = comptime!(product % shape.plane.rows);
        let factor = comptime!(product / shape.plane.rows);
        let result = comptime!(factor % shape.results);
        let depth = comptime!(factor / shape.results % shape.plane.taps[0]);
        let row = comptime!(factor / shape.results / shape.plane.taps[0]);
        if comptime!(frame >= depth && frame - depth < shape.frames) {
            let sum = comptime!(((frame - depth) * shape.results + result) * shape.plane.rows + site);
            let weight = factors.index(comptime!(factor / 4)).extract(comptime!(factor % 4));
            sums.set(sum, fma(*values.index(comptime!(row + site)), weight, sums.get(sum)));
        }
    }
}

/// Writes a unit's sums of a result to shared memory, rows fastest.
#[cube]
fn set_aside(
    sums: &Registers<f32>,
    window: &mut Shared<[f32]>,
    #[comptime] result: usize,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for site in 0..comptime!(shape.frames * shape.plane.rows) {
        let frame = comptime!(site / shape.plane.rows);
        let row = comptime!(site % shape.plane.rows);
        window[UNIT_POS as usize + comptime!(site * shape.plane.units)] =
            sums.get(comptime!((frame * shape.results + result) * shape.plane.rows + row));
    }
}

/// Writes what a unit has set aside, but for sites past the plane and past the last frame.
#[cube]
#[allow(clippy::too_many_arguments)]
fn write_result<O: Float>(
    out: &mut [O],
    walk: &GatherArgs,
    tiling: &Tiling,
    unit: &Unit,
    window: &Shared<[f32]>,
    start: f32,
    first_out: usize,
    #[comptime] shape: Shape,
) {
    let mut site = 0u32.runtime();
    while site < comptime!((shape.frames * shape.plane.rows) as u32) {
        let d = unit.first + site / comptime!(shape.plane.rows as u32);
        let h = unit.h + site % comptime!(shape.plane.rows as u32);
        if d < unit.end && h < tiling.height && unit.w < tiling.width {
            let sum = window[UNIT_POS as usize + site as usize * shape.plane.units];
            let at = first_out + walk.depth.out_offset(d) + walk.height.out_offset(h);
            out[at] = O::cast_from(activate_by_code(sum + start, tiling.activation));
        }
        site += 1u32;
    }
}
