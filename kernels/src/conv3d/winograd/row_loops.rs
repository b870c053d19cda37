//! The transforms of [`transform_square`](super::transform::transform_square) in two loops at run time, for
//! compilers that are slow on long text: the same sums in the same order.
//!
//! ```text
//! for k:  half[i][j] += T[i][k] * d[k][j]                     as row k of d arrives
//! for i:  out[i][j]   = sum over k of half[i][k] * T[j][k]    row i leaves
//! ```
//!
//! `half` is in registers, which need constant indices: the factors T[..][k] of a row that arrives are chosen
//! by comparisons, the row of `half` that leaves by a tree of branches. Zeros of T are multiplied as well, so
//! a non-finite element reaches every point of its tile. Text: F(6x6)'s input transform 37 kB for 165.

use super::constants::{Matrix, WinogradTile, coefficient};
use super::transform::{columns, rows};
use crate::registers::Registers;
use cubecl::prelude::*;

/// `T d` before any row of d: element (i, j) is at `j * rows + i`.
#[cube]
pub(crate) fn no_rows(#[comptime] tile: WinogradTile, #[comptime] matrix: Matrix) -> Registers<f32> {
    Registers::<f32>::new(comptime!(rows(tile, matrix) * columns(tile, matrix)), 0.0f32)
}

/// Adds row `k` of d.
#[cube]
pub(crate) fn add_row(
    half: &Registers<f32>,
    row: &Sequence<f32>,
    k: u32,
    #[comptime] tile: WinogradTile,
    #[comptime] matrix: Matrix,
) {
    let to = comptime!(rows(tile, matrix));
    let step = comptime!(per_word(tile, matrix));
    #[unroll]
    for pair in 0..comptime!(to.div_ceil(step)) {
        // Chosen one by one: fewer registers than the whole column.
        let bits = chosen_word(k, 0usize, row.len(), pair, tile, matrix);
        add_products(half, row, bits, comptime!(pair * step), tile, matrix);
    }
}

/// Adds the products of a row of d with the one or two factors in `bits`, those of row `first` of T on.
#[cube]
fn add_products(
    half: &Registers<f32>,
    row: &Sequence<f32>,
    bits: u32,
    #[comptime] first: usize,
    #[comptime] tile: WinogradTile,
    #[comptime] matrix: Matrix,
) {
    let to = comptime!(rows(tile, matrix));
    let step = comptime!(per_word(tile, matrix));
    #[unroll]
    for i in first..comptime!(to.min(first + step)) {
        let mut factor = bits;
        if comptime!(step == 2) {
            factor = if comptime!(i % 2 == 0) { bits << 16u32 } else { bits & 0xFFFF_0000u32 };
        }
        let factor = f32::reinterpret(factor);
        #[unroll]
        for j in 0..row.len() {
            let at = comptime!(j * to + i);
            half.set(at, fma(*row.index(j), factor, half.get(at)));
        }
    }
}

/// [`word`] `index` of column `k` of T, one of the `count` from `first` on.
#[cube]
fn chosen_word(
    k: u32,
    #[comptime] first: usize,
    #[comptime] count: usize,
    #[comptime] index: usize,
    #[comptime] tile: WinogradTile,
    #[comptime] matrix: Matrix,
) -> u32 {
    if comptime!(count == 1) {
        comptime!(word(tile, matrix, index, first)).runtime()
    } else {
        let second = comptime!(first + count / 2);
        let low = chosen_word(k, first, comptime!(count / 2), index, tile, matrix);
        let high = chosen_word(k, second, comptime!(count - count / 2), index, tile, matrix);
        select(k < comptime!(second as u32), low, high)
    }
}

/// Factors that a register holds: two where all of T are exact in the upper half of an fp32 number.
fn per_word(tile: WinogradTile, matrix: Matrix) -> usize {
    let elements = (0..rows(tile, matrix)).flat_map(|i| (0..columns(tile, matrix)).map(move |k| (i, k)));
    let mut bits = elements.map(|(i, k)| coefficient(tile, matrix, i, k).to_bits());
    if bits.all(|bits| bits & 0xFFFF == 0) { 2 } else { 1 }
}

/// The bits of one or two factors of column `k`, the first one in the lower half.
fn word(tile: WinogradTile, matrix: Matrix, index: usize, k: usize) -> u32 {
    let bits = |i: usize| coefficient(tile, matrix, i, k).to_bits();
    match per_word(tile, matrix) {
        1 => bits(index),
        _ if 2 * index + 1 < rows(tile, matrix) => bits(2 * index) >> 16 | bits(2 * index + 1),
        _ => bits(2 * index) >> 16,
    }
}

/// Row `i` of `T d T^T`.
#[cube]
pub(crate) fn finished_row(
    half: &Registers<f32>,
    i: u32,
    #[comptime] tile: WinogradTile,
    #[comptime] matrix: Matrix,
) -> Array<f32> {
    let (from, to) = comptime!((columns(tile, matrix), rows(tile, matrix)));
    let row = Registers::<f32>::new(from, 0.0f32);
    half.choose(&row, i, 0usize, to, to);
    let row = row.values();
    let mut out = Array::<f32>::new(to);
    #[unroll]
    for j in 0..to {
        out[j] = row_times(&row, from, j, tile, matrix);
    }
    out
}

/// Dot product of a row of T with the first `count` values, in their order.
#[cube]
fn row_times(
    values: &Sequence<f32>,
    #[comptime] count: usize,
    #[comptime] row: usize,
    #[comptime] tile: WinogradTile,
    #[comptime] matrix: Matrix,
) -> f32 {
    if comptime!(count == 0) {
        0.0f32.runtime()
    } else {
        let sum = row_times(values, comptime!(count - 1), row, tile, matrix);
        let factor = comptime!(coefficient(tile, matrix, row, count - 1));
        let value = *values.index(comptime!(count - 1));
        if comptime!(factor == 1.0) {
            sum + value
        } else if comptime!(factor == -1.0) {
            sum - value
        } else if comptime!(factor == 0.0) {
            sum
        } else {
            fma(value, factor, sum)
        }
    }
}
