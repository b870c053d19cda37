//! `V[point, c, (image, frame, tile)] = B^T d B`, one unit per (c, image, frame, tile), tiles fastest; for
//! the weight gradient also `D[point, o, (image, frame, tile)] = G dy G^T` of the tiles of dy.
//!
//! Bytes per unit: t*t inputs read (neighbouring tiles overlap by 2 rows and columns; dy: m*m, no overlap),
//! t*t fp32 values written. Tiles that fill a frame up are written as zeros: the weight gradient sums over
//! tiles.

use super::Call;
use super::constants::{Matrix, WinogradTile, exponent};
use super::region::{Correlation, Region, RegionArgs, VECTOR};
use super::transform::{columns, shrunk, transform_square};
use crate::conv3d::args::offset;
use crate::launch::{Span, dispatches};
use crate::operand::Operand;
use cubecl::ir::{AddressType, ElemType};
use cubecl::prelude::*;

const UNITS: u32 = 64;

/// Which tensor is cut into tiles, and how.
#[derive(Clone, Copy)]
pub(crate) struct Tiling {
    channels: usize,
    /// Padding before the plane's two axes.
    begin: [i32; 2],
    /// Rows and columns of the padded plane that any output needs.
    needed: [usize; 2],
    replicate: bool,
    matrix: Matrix,
}

impl Tiling {
    /// The correlation's input, in overlapping tiles.
    pub(crate) fn input(correlation: &Correlation) -> Self {
        Self {
            channels: correlation.in_channels,
            begin: [correlation.begin[1], correlation.begin[2]],
            needed: [correlation.output[1] + 2, correlation.output[2] + 2],
            replicate: correlation.replicate,
            matrix: Matrix::Input,
        }
    }

    /// The gradient of the correlation's output, tile beside tile; of regions [`Region::of_outputs`].
    pub(crate) fn gradient(correlation: &Correlation) -> Self {
        Self {
            channels: correlation.out_channels,
            begin: [0; 2],
            needed: [correlation.output[1], correlation.output[2]],
            replicate: false,
            matrix: Matrix::Gradient,
        }
    }
}

pub(crate) fn launch(
    call: &Call,
    address: AddressType,
    region: &Region,
    tiling: Tiling,
    [source, v]: [&Operand; 2],
) {
    let squares = tiling.channels * region.v_rows();
    let operations = f64::from(UNITS) * 1500.0;
    for dispatch in dispatches(squares.div_ceil(UNITS as usize), operations, call.limits) {
        // SAFETY: inputs are read only inside their extents; v holds t*t values for each square of the
        // region.
        unsafe {
            input_kernel::launch_unchecked(
                call.client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                source.tensor_arg(),
                v.tensor_arg(),
                dispatch.span(),
                region.args(),
                tiling.channels as u32,
                tiling.begin[0],
                tiling.begin[1],
                tiling.needed[0] as u32,
                tiling.needed[1] as u32,
                tiling.replicate,
                tiling.matrix,
                call.config.tile,
                source.dtype.elem(),
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn input_kernel<E: Float>(
    source: &Tensor<E>,
    v: &mut Tensor<f32>,
    span: Span,
    region: RegionArgs,
    channels: u32,
    begin_h: i32,
    begin_w: i32,
    needed_h: u32,
    needed_w: u32,
    #[comptime] replicate: bool,
    #[comptime] matrix: Matrix,
    #[comptime] tile: WinogradTile,
    #[define(E)] _dtype: ElemType,
) {
    let size = comptime!(columns(tile, matrix) as u32);
    let outputs = comptime!(tile.outputs() as u32);
    let index = span.cube() * UNITS as usize + UNIT_POS as usize;
    let squares = channels as usize * (region.images * region.sources * region.vectors) as usize * VECTOR;
    if span.is_idle() || index >= squares {
        terminate!();
    }
    let place = region.place(index, region.sources);
    let top = place.row * outputs;
    let left = place.column * outputs;
    let height = source.shape(3) as u32;
    let width = source.shape(4) as u32;
    let frame = region.first_source + place.frame;
    let plane = offset(source, place.image, place.channel, frame, 0u32, 0u32);
    let mut square = Array::<f32>::new(comptime!((size * size) as usize));
    #[unroll]
    for i in 0..size {
        #[unroll]
        for j in 0..size {
            let mut h = (top + i) as i32 - begin_h;
            let mut w = (left + j) as i32 - begin_w;
            if comptime!(replicate) {
                h = clamp(h, 0i32, height as i32 - 1i32);
                w = clamp(w, 0i32, width as i32 - 1i32);
            }
            let mut value = 0.0f32;
            // Beyond what an output needs, a tile that overhangs the plane reads zero.
            let needed = place.exists && top + i < needed_h && left + j < needed_w;
            if needed && (h as u32) < height && (w as u32) < width {
                let at = plane + h as usize * source.stride(3) + w as usize * source.stride(4);
                value = shrunk(f32::cast_from(source[at]), comptime!(exponent(tile, matrix)));
            }
            square[comptime!((i * size + j) as usize)] = value;
        }
    }
    let transformed = transform_square(&square, tile, matrix);
    #[unroll]
    for point in 0..comptime!(tile.inputs() * tile.inputs()) {
        v[point * squares + index] = transformed[point];
    }
}
