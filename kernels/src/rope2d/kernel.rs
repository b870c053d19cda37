//! The rotation: a unit turns four neighbouring frequencies of several heads of a token, of 16-bit numbers
//! eight.
//!
//! ```text
//!   a head   [ uy | vy | ux | vx | rest ]     a unit: a vector of u and the vector of v that it turns with,
//!                                             in HEADS heads
//!   lanes    along u of y, then u of x, then halves of the rest, which is copied
//! ```
//!
//! Cosines and sines depend on the token only: they are read once for all heads of a unit. Both layouts are
//! read as `[B, N, H, D]`, any strides. Eight 16-bit numbers are read as four words; where Q or a stride is
//! no multiple of eight, or memory is not aligned to that, four are read as a vector, and where it is no
//! multiple of four, vectors are single elements. Queries and keys share a launch: the first cubes turn the
//! one, the others the other. A unit reads what it writes before it writes it, and no other unit touches it,
//! so the result may be the tokens' own memory.
//!
//! Bytes: tokens once, the result once, a position and one table row per digit of it (one below 2048, two or
//! three of fp32 numbers) per unit. Operations: 3 per element.

use crate::half_words::{quad_of_words, words_of};
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// Heads of a unit.
pub(super) const HEADS: usize = 4;

/// Units of a cube.
pub(super) const UNITS: usize = 256;

/// Where positions come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// A tensor of integers.
    Index,
    /// A tensor of fp32.
    Float,
    /// Rows and columns of a grid.
    Grid,
}

/// One tensor of tokens: extents and strides in `[B, N, H, D]` order, in elements.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Side {
    /// Vectors of a head that have a unit: those of u, and half of the rest.
    lanes: FastDivmod<u32>,
    /// The faster and the slower of tokens and groups of heads.
    fast: FastDivmod<u32>,
    slow: FastDivmod<u32>,
    /// Whether groups of heads are the faster.
    heads_first: u32,
    batch: u32,
    heads: u32,
    groups: u32,
    /// Tokens at the beginning that are not rotated.
    prefix: u32,
    in_b: usize,
    in_n: usize,
    in_h: usize,
    in_d: usize,
    out_b: usize,
    out_n: usize,
    out_h: usize,
    out_d: usize,
    /// Of the positions, or rows of the grid, columns, and the first number of either.
    position_b: usize,
    position_n: usize,
    position_axis: usize,
    columns: FastDivmod<u32>,
    first: i32,
    /// Rotated elements of a head, all elements.
    rotated: u32,
    head_dim: u32,
}

/// The table: rows of Q cosines and Q sines; see `table.rs`.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Split {
    frequencies: u32,
    bits: u32,
    levels: u32,
    nan_row: u32,
    /// Digits of a fraction.
    fraction_levels: u32,
    /// 1, or -1 for the opposite angles.
    sign: f32,
}

/// A place in a tensor: its lane, token and group of heads.
#[derive(CubeType, Clone, Copy)]
struct Place {
    lane: u32,
    b: u32,
    n: u32,
    group: u32,
}

#[cube]
impl Side {
    fn place(&self, index: u32) -> Place {
        let (rest, lane) = self.lanes.div_mod(index);
        let (rest, fast) = self.fast.div_mod(rest);
        let (b, slow) = self.slow.div_mod(rest);
        let swap = self.heads_first != 0u32;
        Place { lane, b, n: select(swap, slow, fast), group: select(swap, fast, slow) }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn rotate_kernel<E: Float, S: Numeric, I: Numeric, N: Size>(
    q: &[Vector<S, N>],
    k: ComptimeOption<&[Vector<S, N>]>,
    q_positions: &[I],
    k_positions: ComptimeOption<&[I]>,
    table: &[Vector<f32, N>],
    q_out: &mut [Vector<S, N>],
    k_out: ComptimeOption<&mut [Vector<S, N>]>,
    q_side: Side,
    k_side: Side,
    split: Split,
    q_cubes: usize,
    span: Span,
    #[comptime] pair: bool,
    #[comptime] wide: bool,
    #[comptime] source: Source,
    #[define(E)] _dtype: ElemType,
    #[define(S)] _memory: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    let cube = span.cube();
    if span.is_idle() {
        terminate!();
    }
    if comptime!(pair) {
        if cube >= q_cubes {
            let cube = cube - q_cubes;
            let (k, k_positions, k_out) = (k.unwrap(), k_positions.unwrap(), k_out.unwrap());
            rotate_side::<E, S, I, N>(k, k_positions, table, k_out, &k_side, &split, cube, wide, source);
        } else {
            rotate_side::<E, S, I, N>(q, q_positions, table, q_out, &q_side, &split, cube, wide, source);
        }
    } else {
        rotate_side::<E, S, I, N>(q, q_positions, table, q_out, &q_side, &split, cube, wide, source);
    }
}

#[cube]
#[allow(clippy::too_many_arguments)]
fn rotate_side<E: Float, S: Numeric, I: Numeric, N: Size>(
    tokens: &[Vector<S, N>],
    positions: &[I],
    table: &[Vector<f32, N>],
    out: &mut [Vector<S, N>],
    side: &Side,
    split: &Split,
    cube: usize,
    #[comptime] wide: bool,
    #[comptime] source: Source,
) {
    let vector = N::value();
    let width = comptime!(if wide { 8usize } else { vector });
    let place = side.place((cube * UNITS + UNIT_POS as usize) as u32);
    if place.b < side.batch {
        let frequencies = split.frequencies;
        let pairs = side.rotated / 2u32;
        // The place of u in the head and how far v is.
        let along = place.lane * width as u32;
        let turns = along < pairs;
        let axis = select(along >= frequencies, 1u32, 0u32);
        let i = select(turns, along - axis * frequencies, 0u32);
        let copied = (side.head_dim - side.rotated) / 2u32;
        let u = select(turns, axis * pairs + i, side.rotated + along - pairs);
        let v = u + select(turns, frequencies, copied);

        // The reads of all heads are under way before anything waits for one.
        let from = place.b as usize * side.in_b + place.n as usize * side.in_n;
        let mut raw = Sequence::<Vector<S, N>>::new();
        #[unroll]
        for j in 0..HEADS {
            let h = min(place.group + j as u32 * side.groups, side.heads - 1u32);
            let head = from + h as usize * side.in_h;
            raw.push(tokens[(head + u as usize * side.in_d) / width]);
            raw.push(tokens[(head + v as usize * side.in_d) / width]);
        }
        let axis = min(axis, 1u32);
        let position = position_of(positions, side, &place, axis, source);
        let mut cosines = Sequence::<Vector<f32, N>>::new();
        let mut sines = Sequence::<Vector<f32, N>>::new();
        #[unroll]
        for part in 0..comptime!(width / vector) {
            let (cos, sin) = angles(&position, table, split, i + comptime!((part * vector) as u32), source);
            cosines.push(cos);
            sines.push(sin);
        }
        let to = place.b as usize * side.out_b + place.n as usize * side.out_n;
        #[unroll]
        for j in 0..HEADS {
            let h = place.group + j as u32 * side.groups;
            if h < side.heads {
                let head = to + h as usize * side.out_h;
                let at_u = (head + u as usize * side.out_d) / width;
                let at_v = (head + v as usize * side.out_d) / width;
                let first = *raw.index(comptime!(2 * j));
                let second = *raw.index(comptime!(2 * j + 1));
                if !turns || place.n < side.prefix {
                    out[at_u] = first;
                    out[at_v] = second;
                } else if comptime!(wide) {
                    let mut us = Sequence::<Vector<f32, Const<4>>>::new();
                    let mut vs = Sequence::<Vector<f32, Const<4>>>::new();
                    #[unroll]
                    for half in 0..2usize {
                        let a = Vector::<f32, N>::cast_from(quad_of_words::<E, S, N>(first, half));
                        let b = Vector::<f32, N>::cast_from(quad_of_words::<E, S, N>(second, half));
                        let (cos, sin) = (*cosines.index(half), *sines.index(half));
                        us.push(Vector::cast_from(a * cos - b * sin));
                        vs.push(Vector::cast_from(b * cos + a * sin));
                    }
                    out[at_u] = words_of::<E, S, N>(*us.index(0), *us.index(1));
                    out[at_v] = words_of::<E, S, N>(*vs.index(0), *vs.index(1));
                } else {
                    let (cos, sin) = (*cosines.index(0), *sines.index(0));
                    let a = Vector::<f32, N>::cast_from(first);
                    let b = Vector::<f32, N>::cast_from(second);
                    out[at_u] = Vector::cast_from(a * cos - b * sin);
                    out[at_v] = Vector::cast_from(b * cos + a * sin);
                }
            }
        }
    }
}

/// A token's position along an axis: whole and fraction of its magnitude, and its sign.
#[derive(CubeType, Clone, Copy)]
struct Position {
    negative: bool,
    magnitude: u32,
    /// From 0 to below 1.
    fraction: f32,
    /// Whether it is a number in the range of i32; the others are zero beside this.
    served: bool,
}

#[cube]
fn position_of<I: Numeric>(
    positions: &[I],
    side: &Side,
    place: &Place,
    axis: u32,
    #[comptime] source: Source,
) -> Position {
    if comptime!(source == Source::Grid) {
        let (y, x) = side.columns.div_mod(place.n - min(side.prefix, place.n));
        whole_position(side.first + i32::cast_from(select(axis == 0u32, y, x)), true)
    } else {
        let at = place.b as usize * side.position_b
            + place.n as usize * side.position_n
            + axis as usize * side.position_axis;
        let position = positions[at];
        if comptime!(source == Source::Float) {
            position_of_number(f32::cast_from(position))
        } else {
            let narrow = i32::cast_from(position);
            whole_position(narrow, I::cast_from(narrow) == position)
        }
    }
}

#[cube]
fn whole_position(position: i32, served: bool) -> Position {
    let negative = position < 0i32;
    // As an unsigned number, where the magnitude of -2^31 exists.
    let magnitude = select(negative, 0u32 - u32::cast_from(position), u32::cast_from(position));
    Position { negative, magnitude: select(served, magnitude, 0u32), fraction: 0.0f32, served }
}

/// On the bits, because compilers may take for granted that there are neither NaN nor infinities. The
/// magnitude is split, not the number: a fraction of a magnitude is exact and below 1, `p - floor(p)` of a
/// small negative number rounds to 1.
#[cube]
fn position_of_number(position: f32) -> Position {
    let bits = u32::reinterpret(position);
    let negative = bits >= 0x8000_0000u32;
    let size = bits & 0x7FFF_FFFFu32;
    // Below 2^31, or -2^31 itself.
    let served = size < 0x4F00_0000u32 || bits == 0xCF00_0000u32;
    let size = f32::reinterpret(select(served, size, 0u32));
    let whole = f32::floor(size);
    Position { negative, magnitude: u32::cast_from(whole), fraction: size - whole, served }
}

/// cos and sin of the angles of a position at the frequencies from `i` on.
#[cube]
fn angles<N: Size>(
    position: &Position,
    table: &[Vector<f32, N>],
    split: &Split,
    i: u32,
    #[comptime] source: Source,
) -> (Vector<f32, N>, Vector<f32, N>) {
    let magnitude = position.magnitude;
    let mask = (1u32 << split.bits) - 1u32;
    let row = select(position.served, magnitude & mask, split.nan_row);
    let (mut cos, mut sin) = entry(table, split, row, i);
    if magnitude > mask {
        for level in 1..split.levels {
            let mut digit = magnitude >> (split.bits * level);
            if level + 1u32 < split.levels {
                digit &= mask;
            }
            let (c, s) = entry(table, split, digit + level * (mask + 1u32), i);
            let sum = cos * c - sin * s;
            sin = sin * c + cos * s;
            cos = sum;
        }
    }
    if comptime!(source == Source::Float) {
        let (c, s) = turned_on(cos, sin, position.fraction, table, split, i);
        cos = c;
        sin = s;
    }
    let sign = select(position.negative, 0.0f32 - split.sign, split.sign);
    (cos, sin * Vector::<f32, N>::new(sign))
}

/// cos and sin of an angle, turned on by that of a fraction: digit by digit, and by the Taylor series of what
/// the last digit leaves, which turns by at most 2^-7. The fraction that each digit leaves is exact.
#[cube]
fn turned_on<N: Size>(
    cos: Vector<f32, N>,
    sin: Vector<f32, N>,
    fraction: f32,
    table: &[Vector<f32, N>],
    split: &Split,
    i: u32,
) -> (Vector<f32, N>, Vector<f32, N>) {
    let (mut cos, mut sin, mut rest) = (cos, sin, fraction);
    let mask = (1u32 << split.bits) - 1u32;
    let mut first = split.nan_row + 1u32;
    for _ in 0..split.fraction_levels {
        let scaled = rest * f32::cast_from(mask + 1u32);
        let digit = min(u32::cast_from(scaled), mask);
        rest = scaled - f32::cast_from(digit);
        let (c, s) = entry(table, split, first + digit, i);
        let sum = cos * c - sin * s;
        sin = sin * c + cos * s;
        cos = sum;
        first += mask + 1u32;
    }
    let (_, step) = entry(table, split, first, i);
    let s = step * Vector::<f32, N>::new(rest);
    let c = Vector::<f32, N>::new(1.0f32) - s * s * Vector::<f32, N>::new(0.5f32);
    (cos * c - sin * s, sin * c + cos * s)
}

/// cos and sin of a row of the table at the frequencies from `i` on.
#[cube]
fn entry<N: Size>(
    table: &[Vector<f32, N>],
    split: &Split,
    row: u32,
    i: u32,
) -> (Vector<f32, N>, Vector<f32, N>) {
    let width = N::value();
    let at = (row * 2u32 * split.frequencies + i) as usize / width;
    (table[at], table[at + split.frequencies as usize / width])
}
