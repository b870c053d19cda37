//! The rotation: a thread rotates four consecutive pairs (packed 16-bit numbers: eight) of two or four
//! heads of a token, and then, in rounds, of further heads by the same angles, as `launch.rs` says for the
//! device.
//!
//! ```text
//!   u' = u cos(theta) - v sin(theta)        v' = v cos(theta) + u sin(theta)
//!
//!   halves      [ u of block 0 | v of block 0 | u of block 1 | v of block 1 | .. | rest ]
//!               a thread: one vector of u and the matching vector of v
//!   neighbours  [ u v u v u v .. | rest ]
//!               a thread: two vectors in a row, whose u and v it gathers in registers
//!   lanes       along the pairs, then along half of the rest, which is copied
//! ```
//!
//! A block of the halves is an axis' part of the head, or all that is rotated. Tokens in either layout are
//! read as `[B, N, H, D]` with any strides. cos and sin (`angle.rs`) depend on the token only and are
//! computed once for all heads of a thread. Eight 16-bit numbers move as four 32-bit words; if the blocks,
//! a stride or the buffer's offset are not multiples of eight, four elements move as a vector; if not of
//! four, single elements.
//!
//! Queries and keys share a launch: the first threadgroups rotate q, the others k. A thread loads its
//! elements before it stores them and no other thread touches them, so the result may overwrite the tokens.
//!
//! Bytes: tokens once, the result once; per thread up to three positions and 16 bytes per pair of the table,
//! which fits a cache. An angle: 51 integer and fp32 operations, 72 where positions are fp32 fractions. With
//! the token's three positions, which a thread computes once for its four or eight angles, and with what
//! takes several issue slots (upper halves of products, conversions), the times on an H200 are those of about
//! 120 slots. Two operations for each rotated element of a head. A threadgroup is [`THREADS`] threads.

use super::angle::{AngleArgs, Place, cos_and_sin, place_of};
use super::turn::{turn, turn_packed};
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// Threads of a threadgroup.
pub(super) const THREADS: usize = 256;

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RotationConfig {
    /// Elements are eight 16-bit numbers in four words.
    pub(super) packed: bool,
    /// A pair is two neighbours, not an element of either half.
    pub(super) neighbours: bool,
    /// Heads that a thread has in flight.
    pub(super) heads: usize,
    /// The first heads are read before the angles are computed.
    pub(super) prefetch: bool,
}

/// One tensor of tokens and its positions: extents, and strides in `[B, N, H, D]` order.
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
    /// Times that a thread loads, rotates and stores heads, `groups` apart from each other.
    pub(super) rounds: u32,
    /// Leading tokens that are copied.
    pub(super) prefix: u32,
    /// Strides in elements.
    pub(super) in_b: usize,
    pub(super) in_n: usize,
    pub(super) in_h: usize,
    pub(super) in_d: usize,
    pub(super) out_b: usize,
    pub(super) out_n: usize,
    pub(super) out_h: usize,
    pub(super) out_d: usize,
    /// What positions are: a code of `angle.rs`.
    pub(super) source: u32,
    /// Strides of the positions in words of 32 bits, and the last axis of theirs.
    pub(super) position_b: usize,
    pub(super) position_n: usize,
    pub(super) position_axis: usize,
    pub(super) last_axis: u32,
    /// Positions without a tensor: columns and rows, and where each axis begins.
    pub(super) columns: FastDivmod<u32>,
    pub(super) rows: FastDivmod<u32>,
    pub(super) first_0: i32,
    pub(super) first_1: i32,
    pub(super) first_2: i32,
}

/// The pairs of a head.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct HeadArgs {
    /// Rotated pairs.
    pub(super) pairs: u32,
    /// The first pair of the second and of the third block; `pairs` where there is none.
    pub(super) second: u32,
    pub(super) third: u32,
    pub(super) head_dim: u32,
}

/// What a thread rotates: lane (vector of pairs), batch, token and group of heads.
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

#[cube]
impl HeadArgs {
    /// Offsets in the head of the two vectors of a lane whose first pair is `along`.
    fn offsets(&self, along: u32, #[comptime] width: u32, #[comptime] neighbours: bool) -> (u32, u32) {
        let rotated = 2u32 * self.pairs;
        let copied = (self.head_dim - rotated) / 2u32;
        let mut u = 2u32 * along;
        let mut step = u32::new(comptime!(width as i64));
        if comptime!(!neighbours) {
            let first =
                select(along >= self.third, self.third, select(along >= self.second, self.second, 0u32));
            let end = select(
                along >= self.third,
                self.pairs,
                select(along >= self.second, self.third, self.second),
            );
            u = first + along;
            step = end - first;
        }
        let rotates = along < self.pairs;
        u = select(rotates, u, self.pairs + along);
        (u, u + select(rotates, step, copied))
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn rotate_kernel<E: Float, S: Numeric, N: Size>(
    q: &[Vector<S, N>],
    k: ComptimeOption<&[Vector<S, N>]>,
    q_positions: &[u32],
    k_positions: ComptimeOption<&[u32]>,
    table: &[Vector<u32, Const<4>>],
    q_out: &mut [Vector<S, N>],
    k_out: ComptimeOption<&mut [Vector<S, N>]>,
    q_args: RotationArgs,
    k_args: RotationArgs,
    head: HeadArgs,
    angles: AngleArgs,
    q_threadgroups: usize,
    span: Span,
    #[comptime] pair: bool,
    #[comptime] config: RotationConfig,
    #[define(E)] _dtype: ElemType,
    #[define(S)] _memory: ElemType,
) {
    let index = span.index();
    if span.is_idle() {
        terminate!();
    }
    if comptime!(pair) {
        if index >= q_threadgroups {
            let index = index - q_threadgroups;
            let (k, k_positions, k_out) = (k.unwrap(), k_positions.unwrap(), k_out.unwrap());
            rotate::<E, S, N>(k, k_positions, table, k_out, &k_args, &head, &angles, index, config);
        } else {
            rotate::<E, S, N>(q, q_positions, table, q_out, &q_args, &head, &angles, index, config);
        }
    } else {
        rotate::<E, S, N>(q, q_positions, table, q_out, &q_args, &head, &angles, index, config);
    }
}

/// The work of one threadgroup on a tensor, `index` counted from the tensor's first threadgroup.
#[cube]
#[allow(clippy::too_many_arguments)]
fn rotate<E: Float, S: Numeric, N: Size>(
    tokens: &[Vector<S, N>],
    positions: &[u32],
    table: &[Vector<u32, Const<4>>],
    out: &mut [Vector<S, N>],
    args: &RotationArgs,
    head: &HeadArgs,
    angles: &AngleArgs,
    index: usize,
    #[comptime] config: RotationConfig,
) {
    let vector = N::value();
    let RotationConfig { packed, neighbours, heads, prefetch } = comptime!(config);
    let width = comptime!(if packed { 8usize } else { vector });
    let work = args.work((index * THREADS + UNIT_POS as usize) as u32);
    if work.b < args.batch {
        let along = work.lane * width as u32;
        let rotates = along < head.pairs;
        let (u, v) = head.offsets(along, comptime!(width as u32), neighbours);

        let from = work.b as usize * args.in_b + work.n as usize * args.in_n;
        let (u_from, v_from) = (from + u as usize * args.in_d, from + v as usize * args.in_d);
        let mut early = Sequence::<Vector<S, N>>::new();
        if comptime!(prefetch) {
            load::<S, N>(tokens, args, work.group, u_from, v_from, &mut early, width, heads);
        }
        let mut cosines = Sequence::<Vector<f32, N>>::new();
        let mut sines = Sequence::<Vector<f32, N>>::new();
        let first = place_of(positions, args, angles, work.b, work.n, 0u32);
        let second = place_of(positions, args, angles, work.b, work.n, 1u32);
        let third = place_of(positions, args, angles, work.b, work.n, 2u32);
        let i = select(rotates, along, 0u32);
        #[unroll]
        for chunk in 0..comptime!(width / vector) {
            let at = i + comptime!((chunk * vector) as u32);
            let (cos, sin) = vectors::<N>(&first, &second, &third, table, angles, at);
            cosines.push(cos);
            sines.push(sin);
        }
        let to = work.b as usize * args.out_b + work.n as usize * args.out_n;
        let turned = Turned {
            u: to + u as usize * args.out_d,
            v: to + v as usize * args.out_d,
            turns: rotates && work.n >= args.prefix,
        };
        if comptime!(prefetch) {
            store::<E, S, N>(out, args, &early, &cosines, &sines, &turned, work.group, config);
        }
        for round in u32::new(comptime!(i64::from(prefetch)))..args.rounds {
            let h = work.group + round * comptime!(heads as u32) * args.groups;
            let mut raw = Sequence::<Vector<S, N>>::new();
            load::<S, N>(tokens, args, h, u_from, v_from, &mut raw, width, heads);
            store::<E, S, N>(out, args, &raw, &cosines, &sines, &turned, h, config);
        }
    }
}

/// Appends both vectors of a lane in heads `h`, `h + groups` and so on; beyond the last head, those of the
/// last.
#[cube]
#[allow(clippy::too_many_arguments)]
fn load<S: Numeric, N: Size>(
    tokens: &[Vector<S, N>],
    args: &RotationArgs,
    h: u32,
    u_from: usize,
    v_from: usize,
    raw: &mut Sequence<Vector<S, N>>,
    #[comptime] width: usize,
    #[comptime] heads: usize,
) {
    #[unroll]
    for j in 0..heads {
        let at = min(h + j as u32 * args.groups, args.heads - 1u32) as usize * args.in_h;
        raw.push(tokens[(at + u_from) / width]);
        raw.push(tokens[(at + v_from) / width]);
    }
}

/// Where a lane's results go, and whether they differ from what was read.
#[derive(CubeType, Clone, Copy)]
struct Turned {
    u: usize,
    v: usize,
    turns: bool,
}

/// Rotates what [`load`] read and writes it.
#[cube]
#[allow(clippy::too_many_arguments)]
fn store<E: Float, S: Numeric, N: Size>(
    out: &mut [Vector<S, N>],
    args: &RotationArgs,
    raw: &Sequence<Vector<S, N>>,
    cosines: &Sequence<Vector<f32, N>>,
    sines: &Sequence<Vector<f32, N>>,
    to: &Turned,
    h: u32,
    #[comptime] config: RotationConfig,
) {
    let vector = N::value();
    let RotationConfig { packed, neighbours, heads, .. } = comptime!(config);
    let width = comptime!(if packed { 8usize } else { vector });
    #[unroll]
    for j in 0..heads {
        let h = h + j as u32 * args.groups;
        if h < args.heads {
            let at = h as usize * args.out_h;
            let (at_u, at_v) = ((at + to.u) / width, (at + to.v) / width);
            let first = *raw.index(comptime!(2 * j));
            let second = *raw.index(comptime!(2 * j + 1));
            if !to.turns {
                out[at_u] = first;
                out[at_v] = second;
            } else if comptime!(packed) {
                let (first, second) = turn_packed::<E, S, N>(first, second, cosines, sines, neighbours);
                out[at_u] = first;
                out[at_v] = second;
            } else {
                let (first, second) = turn::<N>(
                    Vector::cast_from(first),
                    Vector::cast_from(second),
                    *cosines.index(0),
                    *sines.index(0),
                    neighbours,
                );
                out[at_u] = Vector::cast_from(first);
                out[at_v] = Vector::cast_from(second);
            }
        }
    }
}

/// cos and sin of the pairs from `i` on.
#[cube]
fn vectors<N: Size>(
    first: &Place,
    second: &Place,
    third: &Place,
    table: &[Vector<u32, Const<4>>],
    angles: &AngleArgs,
    i: u32,
) -> (Vector<f32, N>, Vector<f32, N>) {
    let vector = N::value();
    if comptime!(vector == 1) {
        let (cos, sin) = cos_and_sin(first, second, third, table[i as usize], angles);
        (Vector::cast_from(cos), Vector::cast_from(sin))
    } else {
        let mut cosines = Vector::<f32, Const<4>>::new(0.0f32);
        let mut sines = Vector::<f32, Const<4>>::new(0.0f32);
        #[unroll]
        for j in 0..4usize {
            let words = table[i as usize + j];
            let (cos, sin) = cos_and_sin(first, second, third, words, angles);
            cosines.insert(j, cos);
            sines.insert(j, sin);
        }
        (Vector::cast_from(cosines), Vector::cast_from(sines))
    }
}
