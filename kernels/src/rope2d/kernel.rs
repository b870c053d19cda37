//! The rotation: a thread rotates four consecutive frequencies (packed 16-bit numbers: eight) of [`HEADS`]
//! heads of a token.
//!
//! ```text
//!   u' = u cos(theta) - v sin(theta)        v' = v cos(theta) + u sin(theta)
//!   a head   [ uy | vy | ux | vx | rest ]   a thread: one vector of u and the matching vector of v
//!   lanes    along u of y, then u of x, then half of the rest, which is copied
//! ```
//!
//! Tokens in either layout are read as `[B, N, H, D]` with any strides. cos and sin depend on the token only
//! and are loaded once for all heads of a thread. Eight 16-bit numbers move as four 32-bit words; if Q, a
//! stride or the buffer's offset is not a multiple of eight, four elements move as a vector; if not of four,
//! single elements.
//!
//! Queries and keys share a launch: the first threadgroups rotate q, the others k. A thread loads its
//! elements before it stores them and no other thread touches them, so the result may overwrite the tokens.
//!
//! Bytes: tokens once, the result once; per thread a position and one table row per digit of it (one below
//! 2048; two or three with fp32 positions). 3 FLOP per element. A threadgroup is [`THREADS`] threads.

use crate::half_words::{pack_quads, unpack_quad};
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// Heads per thread.
pub(super) const HEADS: usize = 4;

/// Threads of a threadgroup.
pub(super) const THREADS: usize = 256;

/// The source of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum PositionSource {
    /// An integer tensor.
    Index,
    /// An fp32 tensor.
    Float,
    /// Rows and columns of a grid.
    Grid,
}

/// One tensor of tokens and its positions: extents, and strides in elements in `[B, N, H, D]` order.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct RotationArgs {
    /// Vectors of a head with a thread: those of u, and half of the rest.
    pub(super) lanes: FastDivmod<u32>,
    /// The faster and the slower index of (token, group of heads).
    pub(super) fast: FastDivmod<u32>,
    pub(super) slow: FastDivmod<u32>,
    /// 1 if the group of heads is the faster one.
    pub(super) heads_first: u32,
    pub(super) batch: u32,
    pub(super) heads: u32,
    pub(super) groups: u32,
    /// Leading tokens that are copied.
    pub(super) prefix: u32,
    pub(super) in_b: usize,
    pub(super) in_n: usize,
    pub(super) in_h: usize,
    pub(super) in_d: usize,
    pub(super) out_b: usize,
    pub(super) out_n: usize,
    pub(super) out_h: usize,
    pub(super) out_d: usize,
    /// Strides of the positions; columns of the grid and the position of its first row and column.
    pub(super) position_b: usize,
    pub(super) position_n: usize,
    pub(super) position_axis: usize,
    pub(super) columns: FastDivmod<u32>,
    pub(super) first: i32,
    /// Rotated elements of a head, and all elements.
    pub(super) rotated: u32,
    pub(super) head_dim: u32,
}

/// Layout of the table: rows of Q cosines and Q sines; see `table.rs`.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct TableLayout {
    pub(super) frequencies: u32,
    pub(super) bits: u32,
    pub(super) levels: u32,
    pub(super) nan_row: u32,
    /// Digits of a fractional part.
    pub(super) fraction_levels: u32,
    /// 1, or -1 for the inverse rotation.
    pub(super) sign: f32,
}

/// What a thread rotates: lane (vector pair), batch, token and group of heads.
#[derive(CubeType, Clone, Copy)]
struct ThreadWork {
    lane: u32,
    b: u32,
    n: u32,
    group: u32,
}

#[cube]
impl RotationArgs {
    fn work(&self, index: u32) -> ThreadWork {
        let (rest, lane) = self.lanes.div_mod(index);
        let (rest, fast) = self.fast.div_mod(rest);
        let (b, slow) = self.slow.div_mod(rest);
        let swap = self.heads_first != 0u32;
        ThreadWork { lane, b, n: select(swap, slow, fast), group: select(swap, fast, slow) }
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
    q_args: RotationArgs,
    k_args: RotationArgs,
    layout: TableLayout,
    q_threadgroups: usize,
    span: Span,
    #[comptime] pair: bool,
    #[comptime] packed: bool,
    #[comptime] source: PositionSource,
    #[define(E)] _dtype: ElemType,
    #[define(S)] _memory: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    let index = span.index();
    if span.is_idle() {
        terminate!();
    }
    if comptime!(pair) {
        if index >= q_threadgroups {
            let index = index - q_threadgroups;
            let (k, k_positions, k_out) = (k.unwrap(), k_positions.unwrap(), k_out.unwrap());
            rotate::<E, S, I, N>(k, k_positions, table, k_out, &k_args, &layout, index, packed, source);
        } else {
            rotate::<E, S, I, N>(q, q_positions, table, q_out, &q_args, &layout, index, packed, source);
        }
    } else {
        rotate::<E, S, I, N>(q, q_positions, table, q_out, &q_args, &layout, index, packed, source);
    }
}

/// The work of one threadgroup on a tensor, `index` counted from the tensor's first threadgroup.
#[cube]
fn rotate<E: Float, S: Numeric, I: Numeric, N: Size>(
    tokens: &[Vector<S, N>],
    positions: &[I],
    table: &[Vector<f32, N>],
    out: &mut [Vector<S, N>],
    args: &RotationArgs,
    layout: &TableLayout,
    index: usize,
    #[comptime] packed: bool,
    #[comptime] source: PositionSource,
) {
    let vector = N::value();
    let width = comptime!(if packed { 8usize } else { vector });
    let work = args.work((index * THREADS + UNIT_POS as usize) as u32);
    if work.b < args.batch {
        let frequencies = layout.frequencies;
        let pairs = args.rotated / 2u32;
        // Offsets of u and v in the head.
        let along = work.lane * width as u32;
        let rotates = along < pairs;
        let axis = select(along >= frequencies, 1u32, 0u32);
        let i = select(rotates, along - axis * frequencies, 0u32);
        let copied = (args.head_dim - args.rotated) / 2u32;
        let u = select(rotates, axis * pairs + i, args.rotated + along - pairs);
        let v = u + select(rotates, frequencies, copied);

        // All loads are in flight before the first use.
        let from = work.b as usize * args.in_b + work.n as usize * args.in_n;
        let mut raw = Sequence::<Vector<S, N>>::new();
        #[unroll]
        for j in 0..HEADS {
            let h = min(work.group + j as u32 * args.groups, args.heads - 1u32);
            let head = from + h as usize * args.in_h;
            raw.push(tokens[(head + u as usize * args.in_d) / width]);
            raw.push(tokens[(head + v as usize * args.in_d) / width]);
        }
        let axis = min(axis, 1u32);
        let position = position_of(positions, args, &work, axis, source);
        let mut cosines = Sequence::<Vector<f32, N>>::new();
        let mut sines = Sequence::<Vector<f32, N>>::new();
        #[unroll]
        for chunk in 0..comptime!(width / vector) {
            let (cos, sin) = angles(&position, table, layout, i + comptime!((chunk * vector) as u32), source);
            cosines.push(cos);
            sines.push(sin);
        }
        let to = work.b as usize * args.out_b + work.n as usize * args.out_n;
        #[unroll]
        for j in 0..HEADS {
            let h = work.group + j as u32 * args.groups;
            if h < args.heads {
                let head = to + h as usize * args.out_h;
                let at_u = (head + u as usize * args.out_d) / width;
                let at_v = (head + v as usize * args.out_d) / width;
                let first = *raw.index(comptime!(2 * j));
                let second = *raw.index(comptime!(2 * j + 1));
                if !rotates || work.n < args.prefix {
                    out[at_u] = first;
                    out[at_v] = second;
                } else if comptime!(packed) {
                    let mut us = Sequence::<Vector<f32, Const<4>>>::new();
                    let mut vs = Sequence::<Vector<f32, Const<4>>>::new();
                    #[unroll]
                    for half in 0..2usize {
                        let a = Vector::<f32, N>::cast_from(unpack_quad::<E, S, N>(first, half));
                        let b = Vector::<f32, N>::cast_from(unpack_quad::<E, S, N>(second, half));
                        let (cos, sin) = (*cosines.index(half), *sines.index(half));
                        us.push(Vector::cast_from(a * cos - b * sin));
                        vs.push(Vector::cast_from(b * cos + a * sin));
                    }
                    out[at_u] = pack_quads::<E, S, N>(*us.index(0), *us.index(1));
                    out[at_v] = pack_quads::<E, S, N>(*vs.index(0), *vs.index(1));
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

/// A token's position along an axis: integer and fractional part of its magnitude, and its sign.
#[derive(CubeType, Clone, Copy)]
struct Position {
    negative: bool,
    magnitude: u32,
    /// In [0, 1).
    fraction: f32,
    /// Whether the position is in the range of i32; if not, magnitude and fraction are zero.
    served: bool,
}

#[cube]
fn position_of<I: Numeric>(
    positions: &[I],
    args: &RotationArgs,
    work: &ThreadWork,
    axis: u32,
    #[comptime] source: PositionSource,
) -> Position {
    if comptime!(source == PositionSource::Grid) {
        let (y, x) = args.columns.div_mod(work.n - min(args.prefix, work.n));
        whole_position(args.first + i32::cast_from(select(axis == 0u32, y, x)), true)
    } else {
        let at = work.b as usize * args.position_b
            + work.n as usize * args.position_n
            + axis as usize * args.position_axis;
        let position = positions[at];
        if comptime!(source == PositionSource::Float) {
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
    // Unsigned, because i32 has no magnitude of -2^31.
    let magnitude = select(negative, 0u32 - u32::cast_from(position), u32::cast_from(position));
    Position { negative, magnitude: select(served, magnitude, 0u32), fraction: 0.0f32, served }
}

/// Works on the bits, because compilers may assume that there are no NaNs and infinities. Splits the
/// magnitude: its fraction is exact and below 1, whereas `p - floor(p)` of a small negative p rounds to 1.
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

/// cos and sin of a position's angles at the frequencies from `i` on.
#[cube]
fn angles<N: Size>(
    position: &Position,
    table: &[Vector<f32, N>],
    layout: &TableLayout,
    i: u32,
    #[comptime] source: PositionSource,
) -> (Vector<f32, N>, Vector<f32, N>) {
    let magnitude = position.magnitude;
    let mask = (1u32 << layout.bits) - 1u32;
    let row = select(position.served, magnitude & mask, layout.nan_row);
    let (mut cos, mut sin) = entry(table, layout, row, i);
    if magnitude > mask {
        for level in 1..layout.levels {
            let mut digit = magnitude >> (layout.bits * level);
            if level + 1u32 < layout.levels {
                digit &= mask;
            }
            let (c, s) = entry(table, layout, digit + level * (mask + 1u32), i);
            let sum = cos * c - sin * s;
            sin = sin * c + cos * s;
            cos = sum;
        }
    }
    if comptime!(source == PositionSource::Float) {
        let (c, s) = rotate_by_fraction(cos, sin, position.fraction, table, layout, i);
        cos = c;
        sin = s;
    }
    let sign = select(position.negative, 0.0f32 - layout.sign, layout.sign);
    (cos, sin * Vector::<f32, N>::new(sign))
}

/// Rotates (cos, sin) further by the angle of a fraction: digit by digit, then by the Taylor series of the
/// remainder, at most 2^-7 radians. The remainder after each digit is exact.
#[cube]
fn rotate_by_fraction<N: Size>(
    cos: Vector<f32, N>,
    sin: Vector<f32, N>,
    fraction: f32,
    table: &[Vector<f32, N>],
    layout: &TableLayout,
    i: u32,
) -> (Vector<f32, N>, Vector<f32, N>) {
    let (mut cos, mut sin, mut rest) = (cos, sin, fraction);
    let mask = (1u32 << layout.bits) - 1u32;
    let mut first = layout.nan_row + 1u32;
    for _ in 0..layout.fraction_levels {
        let scaled = rest * f32::cast_from(mask + 1u32);
        let digit = min(u32::cast_from(scaled), mask);
        rest = scaled - f32::cast_from(digit);
        let (c, s) = entry(table, layout, first + digit, i);
        let sum = cos * c - sin * s;
        sin = sin * c + cos * s;
        cos = sum;
        first += mask + 1u32;
    }
    let (_, step) = entry(table, layout, first, i);
    let s = step * Vector::<f32, N>::new(rest);
    let c = Vector::<f32, N>::new(1.0f32) - s * s * Vector::<f32, N>::new(0.5f32);
    (cos * c - sin * s, sin * c + cos * s)
}

/// cos and sin of a table row at the frequencies from `i` on.
#[cube]
fn entry<N: Size>(
    table: &[Vector<f32, N>],
    layout: &TableLayout,
    row: u32,
    i: u32,
) -> (Vector<f32, N>, Vector<f32, N>) {
    let width = N::value();
    let at = (row * 2u32 * layout.frequencies + i) as usize / width;
    (table[at], table[at + layout.frequencies as usize / width])
}
