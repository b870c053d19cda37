//! `y = activation(A^T M A + bias)`, one unit per (out channel, frame, tile), tiles fastest; edges masked.
//!
//! Bytes per unit: t*t fp32 values read, m*m outputs written.

use super::matrices::{Matrix, WinogradTile};
use super::transform::transform_square;
use super::{Call, Region, RegionArgs};
use crate::activation::{Activation, activate};
use crate::conv3d::args::offset;
use crate::grid::{Span, dispatches};
use crate::operand::Operand;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

const UNITS: u32 = 64;

pub(crate) fn launch(
    call: &Call,
    region: &Region,
    m: &Operand,
    bias: Option<&Operand>,
    target: &Operand,
    activation: Activation,
) {
    let squares = call.correlation.out_channels * region.frame_count() * region.tiles(call);
    let operations = f64::from(UNITS) * 1500.0;
    for dispatch in dispatches(squares.div_ceil(UNITS as usize), operations, call.limits) {
        // SAFETY: m holds t*t values for each square of the region; outputs are masked by the target's extents.
        unsafe {
            output_kernel::launch_unchecked(
                call.client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                call.address,
                m.tensor_arg(),
                bias.map(|bias| bias.tensor_arg()).into(),
                target.tensor_arg(),
                dispatch.span(),
                region.args(call),
                call.correlation.out_channels as u32,
                activation,
                call.tile,
                bias.map_or(target.dtype, |bias| bias.dtype).elem(),
                target.dtype.elem(),
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn output_kernel<E: Float, O: Float>(
    m: &Tensor<f32>,
    bias: ComptimeOption<&Tensor<E>>,
    target: &mut Tensor<O>,
    span: Span,
    region: RegionArgs,
    channels: u32,
    #[comptime] activation: Activation,
    #[comptime] tile: WinogradTile,
    #[define(E)] _bias_dtype: ElemType,
    #[define(O)] _dtype: ElemType,
) {
    let size = comptime!(tile.inputs());
    let outputs = comptime!(tile.outputs() as u32);
    let index = span.cube() * UNITS as usize + UNIT_POS as usize;
    let tiles = region.rows as usize * region.columns as usize;
    let per_channel = region.frames as usize * tiles;
    let squares = channels as usize * per_channel;
    if span.is_idle() || index >= squares {
        terminate!();
    }
    let o = index / per_channel;
    let row = index - o * per_channel;
    let frame = row / tiles;
    let tile_index = (row - frame * tiles) as u32;
    let tile_row = tile_index / region.columns;
    let top = (region.first_row + tile_row) * outputs;
    let left = (tile_index - tile_row * region.columns) * outputs;
    let mut square = Array::<f32>::new(comptime!(size * size));
    #[unroll]
    for point in 0..comptime!(size * size) {
        square[point] = m[point * squares + index];
    }
    let result = transform_square(&square, tile, Matrix::Output);
    let bias: ComptimeOption<f32> = bias.map(|bias| f32::cast_from(bias[o * bias.stride(0)]));
    let bias = bias.unwrap_or_else(|| 0.0f32.runtime());
    #[unroll]
    for i in 0..outputs {
        #[unroll]
        for j in 0..outputs {
            let (h, w) = (top + i, left + j);
            if (h as usize) < target.shape(3) && (w as usize) < target.shape(4) {
                let at = offset(&*target, region.image, o as u32, region.first_frame + frame as u32, h, w);
                let value = result[comptime!((i * outputs + j) as usize)] + bias;
                target[at] = O::cast_from(activate(value, activation));
            }
        }
    }
}
