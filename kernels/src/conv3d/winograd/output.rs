//! `y = activation(A^T M A + bias)`, one unit per (out channel, image, frame, tile), tiles fastest; edges
//! masked.
//!
//! Bytes per unit: t*t fp32 values read, m*m outputs written. A tile's row of outputs is written in as few
//! vectors as the target's layout allows: single elements of 16 neighbouring bytes cost the memory four
//! writes.

use super::Call;
use super::constants::{Matrix, WinogradTile, whole};
use super::region::{Region, RegionArgs, VECTOR};
use super::transform::transform_square;
use crate::activation::{Activation, activate_by_code};
use crate::launch::{Span, dispatches};
use crate::operand::Operand;
use cubecl::ir::{AddressType, ElemType};
use cubecl::prelude::*;

const UNITS: u32 = 64;

/// Extents of a plane, distances in elements between neighbours, and what is applied.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Target {
    channels: u32,
    height: u32,
    width: u32,
    image_stride: usize,
    channel_stride: usize,
    frame_stride: usize,
    row_stride: usize,
    column_stride: usize,
    /// [`Activation::code`].
    activation: u32,
}

pub(crate) fn launch(
    call: &Call,
    address: AddressType,
    region: &Region,
    (m, bias, target): (&Operand, Option<&Operand>, &Operand),
    activation: Activation,
) {
    let channels = call.correlation.out_channels;
    let squares = channels * region.m_rows();
    let together = together(target, call.config.tile);
    let operations = f64::from(UNITS) * 1500.0;
    for dispatch in dispatches(squares.div_ceil(UNITS as usize), operations, call.limits) {
        let [image_stride, channel_stride, frame_stride, row_stride, column_stride] = target.strides[..]
        else {
            unreachable!("`check_operands` has compared the shapes")
        };
        // SAFETY: m holds t*t values for each square of the region; outputs are masked by the target's
        // extents.
        unsafe {
            output_kernel::launch_unchecked(
                call.client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                together,
                m.buffer_arg(1),
                bias.map(|bias| bias.tensor_arg()).into(),
                target.buffer_arg(together),
                dispatch.span(),
                region.args(),
                TargetLaunch::new(
                    channels as u32,
                    target.shape[3] as u32,
                    target.shape[4] as u32,
                    image_stride,
                    channel_stride,
                    frame_stride,
                    row_stride,
                    column_stride,
                    activation.code(),
                ),
                call.config.tile,
                bias.map_or(target.dtype, |bias| bias.dtype).elem(),
                target.dtype.elem(),
            );
        }
    }
}

/// How many neighbouring outputs are written at once: what divides a tile's row, the plane's rows and every
/// place where one starts.
fn together(target: &Operand, tile: WinogradTile) -> usize {
    let offset = target.handle.offset_start.unwrap_or(0) as usize / target.dtype.size();
    let mut starts = target.strides[..4].iter().chain([&target.shape[4], &offset]);
    let widest = if tile.outputs().is_multiple_of(VECTOR) { VECTOR } else { 2 };
    if target.strides[4] == 1 && starts.all(|start| start.is_multiple_of(widest)) { widest } else { 1 }
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn output_kernel<E: Float, O: Float, N: Size>(
    m: &[f32],
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut [Vector<O, N>],
    span: Span,
    region: RegionArgs,
    target: Target,
    #[comptime] tile: WinogradTile,
    #[define(E)] _bias_dtype: ElemType,
    #[define(O)] _dtype: ElemType,
) {
    let size = comptime!(tile.inputs());
    let outputs = comptime!(tile.outputs());
    let together = N::value();
    let index = span.cube() * UNITS as usize + UNIT_POS as usize;
    let squares =
        target.channels as usize * (region.images * region.frames * region.vectors) as usize * VECTOR;
    if span.is_idle() || index >= squares {
        terminate!();
    }
    let place = region.place(index, region.frames);
    if !place.exists {
        terminate!();
    }
    let mut square = Array::<f32>::new(comptime!(size * size));
    #[unroll]
    for point in 0..comptime!(size * size) {
        square[point] = m[point * squares + index];
    }
    let result = transform_square(&square, tile, Matrix::Output);
    let bias: ComptimeOption<f32> =
        bias.map(|bias| f32::cast_from(bias[place.channel as usize * bias.stride(0)]));
    let bias = bias.unwrap_or_else(|| 0.0f32.runtime());
    // Times a power of two: as exact as the sum alone.
    let whole = comptime!(whole(tile, Matrix::Output));
    let top = place.row * outputs as u32;
    let left = place.column * outputs as u32;
    let at = place.image as usize * target.image_stride
        + place.channel as usize * target.channel_stride
        + (region.first_frame + place.frame) as usize * target.frame_stride
        + top as usize * target.row_stride
        + left as usize * target.column_stride;
    #[unroll]
    for i in 0..outputs {
        #[unroll]
        for j in 0..comptime!(outputs / together) {
            if top + (i as u32) < target.height && left + comptime!((j * together) as u32) < target.width {
                let mut values = Vector::<O, N>::empty();
                #[unroll]
                for k in 0..together {
                    let value = fma(result[comptime!(i * outputs + j * together + k)], whole, bias);
                    values.insert(k, O::cast_from(activate_by_code(value, target.activation)));
                }
                let at = at + i * target.row_stride + comptime!(j * together) * target.column_stride;
                out[at / together] = values;
            }
        }
    }
}
