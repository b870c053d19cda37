//! Output transform, one thread per (out channel, image, frame, tile), tiles fastest:
//!
//! ```text
//! y = activation(A^T M A + bias) + residual     m x m outputs of a tile, those past the frame's edges masked
//! ```
//!
//! Bytes per thread: t * t fp32 values read (coalesced), m * m outputs written: each row of the tile in the
//! widest vectors that the layouts of the output and the residual allow. A threadgroup is 64 threads; about
//! 1500 FLOP per thread. Off NVIDIA rows are transformed and stored in loops ([`super::row_loops`]).
//! Declined: what [`super`] declines.

use super::WinogradCall;
use super::constants::{Matrix, WinogradTile, rescale};
use super::product_mma::padded;
use super::region::{Region, RegionArgs, TileIndex, VECTOR};
use super::row_loops::{add_row, finished_row, no_rows};
use super::transform::transform_square;
use crate::conv3d::epilogue::{Epilogue, channel_bias, finished_with_lane};
use crate::launch::{Span, dispatches};
use crate::operand::Operand;
use cubecl::ir::{AddressType, ElemType};
use cubecl::prelude::*;

/// Threads of a threadgroup.
const THREADS: u32 = 64;

/// Extents and strides (in elements) of y or dx, and the activation.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct OutputLayout {
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
    call: &WinogradCall,
    address: AddressType,
    region: &Region,
    [m, target]: [&Operand; 2],
    Epilogue { bias, residual, activation }: Epilogue,
) {
    let channels = call.correlation.out_channels;
    let transforms = channels * region.m_rows();
    let widths = [target].into_iter().chain(residual).map(|operand| vector_width(operand, call.config.tile));
    let width = widths.min().unwrap_or(1);
    let flop = f64::from(THREADS) * 1500.0;
    // A loop would hold fewer threads of an M1 there.
    let holds_fewer = address == AddressType::U64 && call.config.tile == WinogradTile::F4x4;
    let unroll = call.limits.unroll || holds_fewer;
    for dispatch in dispatches(transforms.div_ceil(THREADS as usize), flop, call.limits) {
        let [image_stride, channel_stride, frame_stride, row_stride, column_stride] = target.strides[..]
        else {
            unreachable!("`check_operands` has compared the shapes")
        };
        // SAFETY: see `mod.rs`; outputs past the output's extents are not written.
        unsafe {
            output_kernel::launch_unchecked(
                call.client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                width,
                m.buffer_arg(1),
                bias.map(|bias| bias.tensor_arg()).into(),
                residual.map(|residual| residual.tensor_arg()).into(),
                target.buffer_arg(width),
                dispatch.span(),
                region.args(),
                OutputLayoutLaunch {
                    channels: channels as u32,
                    height: target.shape[3] as u32,
                    width: target.shape[4] as u32,
                    image_stride,
                    channel_stride,
                    frame_stride,
                    row_stride,
                    column_stride,
                    activation: activation.code(),
                },
                call.config.tile,
                unroll,
                call.config.mma_tile.is_some(),
                residual.is_some(),
                bias.or(residual).map_or(target.dtype, |added| added.dtype).elem(),
                target.dtype.elem(),
            );
        }
    }
}

/// Outputs per store, or elements per load of a residual: a width that divides a tile's row, the frame's
/// width and every offset at which one may start.
fn vector_width(target: &Operand, tile: WinogradTile) -> usize {
    let widest = if tile.outputs().is_multiple_of(VECTOR) { VECTOR } else { 2 };
    if target.has_vectors(4, target.shape[4], widest) { widest } else { 1 }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn output_kernel<E: Float, O: Float, N: Size>(
    m: &[f32],
    bias: ComptimeOption<&Tensor<E>>,
    residual: ComptimeOption<&Tensor<Vector<E, N>>>,
    out: &mut [Vector<O, N>],
    span: Span,
    region: RegionArgs,
    target: OutputLayout,
    #[comptime] tile: WinogradTile,
    #[comptime] unroll: bool,
    #[comptime] m_is_padded: bool,
    // For the kernel's key, in which optional arguments do not count.
    #[comptime] _has_residual: bool,
    #[define(E)] _bias_dtype: ElemType,
    #[define(O)] _dtype: ElemType,
) {
    let size = comptime!(tile.inputs());
    let outputs = comptime!(tile.outputs());
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
    let transforms =
        target.channels as usize * (region.images * region.frames * region.vectors) as usize * VECTOR;
    if span.is_idle() || index >= transforms {
        terminate!();
    }
    let position = region.tile_at(index, region.frames);
    if !position.exists {
        terminate!();
    }
    let mut at = index;
    let mut points = transforms;
    if comptime!(m_is_padded) {
        let rows = (region.images * region.frames * region.vectors) as usize * VECTOR;
        let pitch = padded(rows);
        points = padded(target.channels as usize) * pitch;
        at = position.channel as usize * pitch + index % rows;
    }
    if comptime!(unroll) {
        let mut square = Array::<f32>::new(comptime!(size * size));
        #[unroll]
        for point in 0..comptime!(size * size) {
            square[point] = m[point * points + at];
        }
        let result = transform_square(&square, tile, Matrix::Output);
        let place = place(bias, residual, &position, &region, &target, true, tile);
        #[unroll]
        for i in 0..outputs {
            let first = comptime!(i * outputs);
            write_row(&result, first, i, residual, out, &position, &region, &target, &place, true, tile);
        }
    } else {
        let half = no_rows(tile, Matrix::Output);
        for k in 0..comptime!(size as u32) {
            let first = k as usize * size * points + at;
            let mut row = Sequence::<f32>::new();
            #[unroll]
            for j in 0..size {
                row.push(m[j * points + first]);
            }
            add_row(&half, &row, k, tile, Matrix::Output);
        }
        let place = place(bias, residual, &position, &region, &target, false, tile);
        for i in 0..outputs {
            let row = finished_row(&half, i as u32, tile, Matrix::Output);
            write_row(&row, 0usize, i, residual, out, &position, &region, &target, &place, false, tile);
        }
    }
}

/// Where a tile is in the result, and its channel's bias.
#[derive(CubeType)]
struct Place {
    bias: f32,
    top: u32,
    left: u32,
    /// Offset of its first output.
    at: usize,
    /// Offset of the residual's first element, not unrolled; without a residual 0.
    added: usize,
}

#[cube]
fn place<E: Float, N: Size>(
    bias: ComptimeOption<&Tensor<E>>,
    residual: ComptimeOption<&Tensor<Vector<E, N>>>,
    position: &TileIndex,
    region: &RegionArgs,
    target: &OutputLayout,
    #[comptime] unroll: bool,
    #[comptime] tile: WinogradTile,
) -> Place {
    let outputs = comptime!(tile.outputs());
    let bias = channel_bias(bias, position.channel);
    let top = position.row * outputs as u32;
    let left = position.column * outputs as u32;
    let at = position.image as usize * target.image_stride
        + position.channel as usize * target.channel_stride
        + (region.first_frame + position.frame) as usize * target.frame_stride
        + top as usize * target.row_stride
        + left as usize * target.column_stride;
    let added = if comptime!(unroll) {
        0usize.runtime()
    } else {
        added_at(residual, position, region, top as usize, left as usize)
    };
    Place { bias, top, left, at, added }
}

/// [`residual_offset`]; 0 without a residual.
#[cube]
fn added_at<E: Float, N: Size>(
    residual: ComptimeOption<&Tensor<Vector<E, N>>>,
    position: &TileIndex,
    region: &RegionArgs,
    h: usize,
    w: usize,
) -> usize {
    #[comptime]
    match residual {
        ComptimeOption::Some(residual) => residual_offset(residual, position, region, h, w),
        ComptimeOption::None => 0usize.runtime(),
    }
}

/// Offset of an element of the residual.
#[cube]
fn residual_offset<E: Float, N: Size>(
    residual: &Tensor<Vector<E, N>>,
    position: &TileIndex,
    region: &RegionArgs,
    h: usize,
    w: usize,
) -> usize {
    position.image as usize * residual.stride(0)
        + position.channel as usize * residual.stride(1)
        + (region.first_frame + position.frame) as usize * residual.stride(2)
        + h * residual.stride(3)
        + w * residual.stride(4)
}

/// Stores row `i` of a tile: the sums from `first` on.
#[cube]
fn write_row<E: Float, O: Float, N: Size>(
    sums: &Array<f32>,
    #[comptime] first: usize,
    i: usize,
    residual: ComptimeOption<&Tensor<Vector<E, N>>>,
    out: &mut [Vector<O, N>],
    position: &TileIndex,
    region: &RegionArgs,
    target: &OutputLayout,
    place: &Place,
    #[comptime] unroll: bool,
    #[comptime] tile: WinogradTile,
) {
    let width = N::value();
    // Multiplying by a power of two adds no rounding.
    let rescale = comptime!(rescale(tile, Matrix::Output));
    // Not unrolled, extents are those of the loop's row, which leaves few to be kept in registers.
    let mut columns = 0u32.runtime();
    if comptime!(!unroll) {
        columns = select(place.top + (i as u32) < target.height, target.width - place.left, 0u32);
    }
    #[unroll]
    for j in 0..comptime!(tile.outputs() / width) {
        let column = comptime!((j * width) as u32);
        let exists = if comptime!(unroll) {
            place.top + (i as u32) < target.height && place.left + column < target.width
        } else {
            columns > column
        };
        if exists {
            let added: ComptimeOption<Vector<f32, N>> = residual.map(|residual| {
                let from = if comptime!(unroll) {
                    let (h, w) = (place.top as usize + i, place.left as usize + comptime!(j * width));
                    residual_offset(residual, position, region, h, w)
                } else {
                    place.added + i * residual.stride(3) + comptime!(j * width) * residual.stride(4)
                };
                Vector::cast_from(residual[from / width])
            });
            let mut values = Vector::<O, N>::empty();
            #[unroll]
            for k in 0..width {
                let sum = fma(sums[comptime!(first + j * width + k)], rescale, place.bias);
                values.insert(k, O::cast_from(finished_with_lane(sum, added, k, target.activation)));
            }
            let at = place.at + i * target.row_stride + comptime!(j * width) * target.column_stride;
            out[at / width] = values;
        }
    }
}
