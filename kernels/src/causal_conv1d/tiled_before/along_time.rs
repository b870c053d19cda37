//! y, the gradient before the activation, dx and the gradient of the initial state: one kernel, since each is
//!
//! ```text
//! out[b,c,o] = bias[c] + sum over k < W of factor[c,k] * column(b, c, start + o + k)
//! ```
//!
//! over columns `[initial state | source]`: the source is x with the taps in order and `start` 0 for the first two, the gradient
//! before the activation with the taps reversed for the others, `start` W-1 for dx and 0 for the initial state. A gradient's
//! columns before the first step and beyond the last are 0.
//!
//! ```text
//!   a cube    `rows` channels x `16 lanes` steps; 128 taps at a time: their columns and the taps come to shared memory
//!   a unit    16 neighbouring steps of a channel (see products.rs); results leave through shared memory, neighbours together
//! ```
//!
//! Bytes per cube and 128 taps: its steps and 128 more of every row once, y once at the end. Operations per element: W
//! multiply-adds. Shared memory: 12.8 KiB for columns, 4.1 KiB for taps. Any strides, any width; declined: sequence ids.

use super::products::{Line, OUTPUTS, Quad, UNITS, add_products, lane_of, place_of, put_sums, stage};
use crate::activation::{activate_all, activate_gradient_all};
use crate::causal_conv1d::args::{Present, Rows, RowsLaunch, at2, at3};
use crate::causal_conv1d::call::Call;
use crate::causal_conv1d::plan::check_turns;
use crate::causal_conv1d::problem::Conv1dLayout;
use crate::cells::Cells;
use crate::error::ConvError;
use crate::grid::{Span, dispatches};
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Taps that are in shared memory at a time.
const BLOCK: usize = 128;

/// Channels of a cube at most.
const ROWS: usize = 8;

/// Vectors of shared memory for columns, and for taps: a vector more per row or quarter keeps neighbours off the same banks.
const COLUMNS: usize = (UNITS * OUTPUTS + ROWS * (BLOCK + OUTPUTS)) / 4;
const TAPS: usize = ROWS * TAP_ROW;
const TAP_ROW: usize = BLOCK / 4 + 4;

/// What a launch computes, of channels `first..first + channels`.
pub(crate) struct Sums<'a> {
    /// `[B, C, T]`, or of those channels only.
    pub(crate) source: &'a Operand,
    /// Its channel that belongs to `first`.
    pub(crate) source_first: usize,
    pub(crate) reversed: bool,
    pub(crate) start: usize,
    pub(crate) dy: Option<&'a Operand>,
    pub(crate) residual: Option<&'a Operand>,
    pub(crate) dfinal: Option<&'a Operand>,
    pub(crate) channels: (usize, usize),
    /// `[B, C, ..]`, of which those channels are written, or `[B, channels, ..]` where that is y before its activation.
    pub(crate) target: &'a Operand,
}

/// How steps and channels are shared out.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct TiledShare {
    /// The units of a row are so many bits.
    lane_bits: u32,
    /// Cubes along the steps, and along the channels.
    tiles: usize,
    groups: usize,
    source_first: usize,
    target_first: usize,
    start: usize,
    reversed: u32,
}

pub(crate) fn launch(call: &Call, sums: &Sums) -> Result<(), ConvError> {
    let &Call { client, limits, problem, ref views } = call;
    let (first, channels) = sums.channels;
    let steps = sums.target.shape[2];
    let by_channels = problem.layout == Conv1dLayout::Btc;
    let lanes = if by_channels { UNITS / ROWS } else { steps.div_ceil(OUTPUTS).next_power_of_two() };
    let lanes = lanes.clamp(UNITS / ROWS, UNITS);
    let rows = UNITS / lanes;
    let (tiles, groups) = (steps.div_ceil(lanes * OUTPUTS), channels.div_ceil(rows));
    let forward = !sums.reversed;
    let bias = views.bias.as_ref().filter(|_| forward);
    let initial = views.initial_state.as_ref().filter(|_| forward);
    let present = Present::bits(&[
        (bias.is_some(), Present::BIAS),
        (initial.is_some(), Present::INITIAL),
        (sums.dy.is_some(), Present::DY),
        (sums.residual.is_some(), Present::RESIDUAL),
        (sums.dfinal.is_some(), Present::DFINAL),
    ]);
    let activation = if forward { problem.activation.code() } else { 0 };
    let mut operands = views.operands();
    operands.extend([sums.source, sums.target]);
    // dy, or the residual of y: never both.
    let other = sums.dy.or(sums.residual);
    operands.extend(other);
    operands.extend(sums.dfinal);
    let largest = problem.length + problem.width + 2 * (UNITS + BLOCK) * OUTPUTS;
    let address = address_type("causal_conv1d", &operands, largest, limits)?;
    check_turns("causal_conv1d", problem.width.div_ceil(BLOCK) * 48 + 32, limits)?;
    let operations = 2.0 * (UNITS * OUTPUTS * (problem.width + 16)) as f64;
    for dispatch in dispatches(problem.batch * tiles * groups, operations, limits) {
        let share = TiledShareLaunch::new(
            lanes.ilog2(),
            tiles,
            groups,
            sums.source_first,
            if forward { 0 } else { first },
            sums.start,
            u32::from(sums.reversed),
        );
        let extents = RowsLaunch::new(
            problem.batch,
            first,
            channels,
            problem.length,
            problem.width,
            present,
            activation,
        );
        // SAFETY: rows, steps, taps and columns are checked in the kernel; the conformance run puts guards around every buffer.
        unsafe {
            tiled_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS as u32),
                address,
                sums.source.tensor_arg(),
                initial.unwrap_or(sums.source).tensor_arg(),
                views.weight.tensor_arg(),
                bias.unwrap_or(&views.weight).tensor_arg(),
                other.unwrap_or(&views.x).tensor_arg(),
                sums.dfinal.unwrap_or(&views.x).tensor_arg(),
                sums.target.tensor_arg(),
                extents,
                share,
                dispatch.span(),
                problem.layout,
                sums.source.dtype.elem(),
                problem.weight_dtype.elem(),
                problem.dtype.elem(),
                sums.target.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn tiled_kernel<S: Float, W: Float, X: Float, Y: Float>(
    source: &Tensor<S>,
    initial: &Tensor<S>,
    weight: &Tensor<W>,
    bias: &Tensor<W>,
    other: &Tensor<X>,
    dfinal: &Tensor<X>,
    target: &mut Tensor<Y>,
    extents: Rows,
    share: TiledShare,
    span: Span,
    #[comptime] layout: Conv1dLayout,
    #[define(S)] _source_dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(X)] _dtype: ElemType,
    #[define(Y)] _target_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let rest = span.cube() / share.tiles;
    let tile = span.cube() - rest * share.tiles;
    let b = rest / share.groups;
    let (lanes, rows) = (1u32 << share.lane_bits, comptime!(UNITS as u32) >> share.lane_bits);
    let first_row = (rest - b * share.groups) * rows as usize;
    let first_step = tile * (lanes * comptime!(OUTPUTS as u32)) as usize;

    let mut columns = Shared::<[Quad]>::new_slice(COLUMNS);
    let mut taps = Shared::<[Quad]>::new_slice(TAPS);
    // A quarter of a row's vectors, and one that keeps them apart.
    let stride = lanes + comptime!(BLOCK as u32 / 16 + 1);
    let (row, lane) = (UNIT_POS >> share.lane_bits, UNIT_POS & (lanes - 1u32));
    let place = row * stride * 4u32 + lane;
    // The row and lane for which a unit reads and writes memory: neighbours along the layout's contiguous axis.
    let mut memory_row = row;
    let mut memory_lane = lane;
    if comptime!(layout == Conv1dLayout::Btc) {
        memory_row = UNIT_POS & (rows - 1u32);
        memory_lane = UNIT_POS / rows;
    }
    let c = first_row + memory_row as usize;
    let exists = c < extents.channels;

    let sums = Cells::<f32>::new(OUTPUTS, 0.0f32);
    let own = first_row + row as usize;
    let mut offset = 0.0f32;
    if extents.has(Present::BIAS) && own < extents.channels {
        offset = f32::cast_from(bias[(extents.first + own) * bias.stride(0)]);
    }
    #[unroll]
    for i in 0..OUTPUTS {
        sums.set(i, offset);
    }
    for block in 0..extents.width.div_ceil(BLOCK) {
        let k = block * BLOCK;
        // The columns and taps before have been read.
        sync_cube();
        let line = Line {
            b,
            c: share.source_first + c,
            exists,
            e: share.start + first_step + k,
            base: memory_row * stride * 4u32,
            stride,
            vectors: 4u32 * lanes + comptime!(BLOCK as u32 / 4),
        };
        stage(source, initial, &extents, &line, &mut columns, memory_lane, lanes, 4usize);
        for turn in 0..(comptime!(BLOCK as u32 / 4 - 1) + lanes) >> share.lane_bits {
            let first = memory_lane + (4u32 + turn) * lanes;
            stage(source, initial, &extents, &line, &mut columns, first, lanes, 1usize);
        }
        for turn in 0..(rows + 3u32) / comptime!((UNITS / (BLOCK / 4)) as u32) {
            let index = turn * comptime!(UNITS as u32) + UNIT_POS;
            let row = index / comptime!(BLOCK as u32 / 4);
            let vector = index % comptime!(BLOCK as u32 / 4);
            let c = first_row + row as usize;
            if row < rows {
                let mut quad = Quad::new(0.0f32);
                #[unroll]
                for i in 0..4usize {
                    let tap = k + vector as usize * 4 + i;
                    if c < extents.channels && tap < extents.width {
                        let from = select(share.reversed != 0u32, extents.width - 1 - tap, tap);
                        quad.insert(i, f32::cast_from(weight[at2(weight, extents.first + c, from)]));
                    }
                }
                let at = row * comptime!(TAP_ROW as u32) + place_of(vector, comptime!(TAP_ROW as u32 / 4));
                taps[at as usize] = quad;
            }
        }
        sync_cube();
        let count = min(extents.width - k, BLOCK) as u32;
        let tap_place = row * comptime!(TAP_ROW as u32);
        let tap_stride = comptime!(TAP_ROW as u32 / 4);
        add_products(&columns, place, stride, &taps, tap_place, tap_stride, count, &sums);
    }
    sync_cube();
    put_sums(&mut columns, place, stride, &sums);
    sync_cube();
    if exists {
        // A unit has every `lanes`-th step of its row, the same element of vectors in the same quarter.
        let from = memory_row * stride * 4u32 + place_of(memory_lane / 4u32, stride);
        let (channel, steps) = (extents.first + c, target.shape(2));
        let values = Cells::<f32>::new(OUTPUTS, 0.0f32);
        let first = first_step + memory_lane as usize;
        #[unroll]
        for n in 0..OUTPUTS {
            let quad = columns[(from + n as u32 * (lanes / comptime!(OUTPUTS as u32))) as usize];
            values.set(n, lane_of(quad, memory_lane % 4u32));
        }
        let others = Cells::<f32>::new(OUTPUTS, 0.0f32);
        if extents.present & comptime!(Present::DY + Present::RESIDUAL) != 0u32 {
            let row = b * other.stride(0) + channel * other.stride(1);
            let mut raw = Sequence::<X>::new();
            #[unroll]
            for n in 0..OUTPUTS {
                let o = first + (n as u32 * lanes) as usize;
                raw.push(other[select(o < steps, row + o * other.stride(2), 0usize)]);
            }
            #[unroll]
            for n in 0..OUTPUTS {
                others.set(n, f32::cast_from(*raw.index(n)));
            }
        }
        if extents.has(Present::DY) {
            activate_gradient_all(&values, &others, OUTPUTS, extents.activation, false);
        } else {
            activate_all(&values, OUTPUTS, extents.activation, false);
        }
        #[unroll]
        for n in 0..OUTPUTS {
            if extents.has(Present::DY) {
                values.set(n, others.get(n));
            }
            if extents.has(Present::RESIDUAL) {
                values.set(n, values.get(n) + others.get(n));
            }
        }
        if extents.has(Present::DFINAL) {
            #[unroll]
            for n in 0..OUTPUTS {
                // The column that the result is the gradient of, where the final state has it too.
                let o = first + (n as u32 * lanes) as usize;
                let e = share.start + o;
                if e >= extents.length && o < steps {
                    let held = f32::cast_from(dfinal[at3(dfinal, b, channel, e - extents.length)]);
                    values.set(n, values.get(n) + held);
                }
            }
        }
        let row = b * target.stride(0) + (share.target_first + c) * target.stride(1);
        #[unroll]
        for n in 0..OUTPUTS {
            let o = first + (n as u32 * lanes) as usize;
            if o < steps {
                let at = row + o * target.stride(2);
                target[at] = Y::cast_from(values.get(n));
            }
        }
    }
}
