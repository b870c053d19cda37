//! Two-dimensional transforms of a square in registers, unrolled, with the coefficients as literals:
//!
//! ```text
//! out = T d T^T        half[i][j] = sum over k of T[i][k] * d[k][j]
//!                      out[i][j]  = sum over k of half[i][k] * T[j][k]
//! ```

use super::constants::{Matrix, WinogradTile, coefficient};
use cubecl::prelude::*;

/// Rows of the transform matrix.
pub(crate) fn rows(tile: WinogradTile, matrix: Matrix) -> usize {
    match matrix {
        Matrix::Input | Matrix::Filter | Matrix::Gradient => tile.inputs(),
        Matrix::Output => tile.outputs(),
        Matrix::Taps => 3,
    }
}

/// Columns of the transform matrix.
pub(crate) fn columns(tile: WinogradTile, matrix: Matrix) -> usize {
    match matrix {
        Matrix::Input | Matrix::Output | Matrix::Taps => tile.inputs(),
        Matrix::Gradient => tile.outputs(),
        Matrix::Filter => 3,
    }
}

/// `T d T^T` for the transform matrix T and the row-major square d.
#[cube]
pub(crate) fn transform_square(
    square: &Array<f32>,
    #[comptime] tile: WinogradTile,
    #[comptime] matrix: Matrix,
) -> Array<f32> {
    let from = comptime!(columns(tile, matrix));
    let to = comptime!(rows(tile, matrix));
    // Columns first.
    let mut half = Array::<f32>::new(comptime!(to * from));
    #[unroll]
    for i in 0..to {
        #[unroll]
        for j in 0..from {
            half[i * from + j] = row_times(square, j, from, i, tile, matrix);
        }
    }
    let mut out = Array::<f32>::new(comptime!(to * to));
    #[unroll]
    for i in 0..to {
        #[unroll]
        for j in 0..to {
            out[i * to + j] = row_times(&half, comptime!(i * from), 1usize, j, tile, matrix);
        }
    }
    out
}

/// `value * 2^-exponent` before a transform. Done on the bits: drivers factor a common multiplier out of a
/// sum, and the unscaled sum then overflows fp32. Subnormal results become zero; NaN and infinities stay.
#[cube]
pub(crate) fn scale_down(value: f32, #[comptime] exponent: u32) -> f32 {
    let bits = u32::reinterpret(value);
    let size = bits & 0x7F80_0000u32;
    let smaller = select(size > comptime!(exponent << 23), bits - comptime!(exponent << 23), 0u32);
    f32::reinterpret(select(size == 0x7F80_0000u32, bits, smaller))
}

/// Dot product of a row of the transform with the elements `first`, `first + step`, .., in this order.
#[cube]
fn row_times(
    from: &Array<f32>,
    #[comptime] first: usize,
    #[comptime] step: usize,
    #[comptime] row: usize,
    #[comptime] tile: WinogradTile,
    #[comptime] matrix: Matrix,
) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for k in 0..comptime!(columns(tile, matrix)) {
        let factor = comptime!(coefficient(tile, matrix, row, k));
        let value = from[comptime!(first + k * step)];
        if comptime!(factor == 1.0) {
            sum += value;
        } else if comptime!(factor == -1.0) {
            sum -= value;
        } else if comptime!(factor != 0.0) {
            sum = fma(value, factor, sum);
        }
    }
    sum
}
