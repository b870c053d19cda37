//! The rotation. A cell is four consecutive pairs of a token (packed 16-bit numbers: eight), in all heads. A
//! threadgroup computes cos and sin of its cells once, then each of its threads rotates one cell in two heads
//! and, in rounds, in further ones, as `launch.rs` says.
//!
//! ```text
//!   u' = u cos(theta) - v sin(theta)        v' = v cos(theta) + u sin(theta)
//!
//!   halves      [ u of block 0 | v of block 0 | u of block 1 | v of block 1 | .. | rest ]
//!               a cell: one vector of u and the matching vector of v
//!   neighbours  [ u v u v u v .. | rest ]
//!               a cell: a vector of the first half and its match in the second half, so that the threads
//!               of a load read whole lines; u and v are gathered in registers
//!   lanes       a token's cells: along the pairs, then along half of the rest, which is copied
//!
//!   threadgroup     cells (256 / groups, consecutive)
//!            groups  [ t t t t t t t t .. ]    1. a cell's threads divide its angles among them: cos and
//!              of    [ t t t t t t t t .. ]       sin to shared memory, barrier
//!             heads  [ t t t t t t t t .. ]    2. a thread: its cell's cos and sin, in its heads
//! ```
//!
//! A block of the halves is an axis' part of the head, or all that is rotated. Tokens in either layout are
//! read as `[B, N, H, D]` with any strides. Eight 16-bit numbers move as four 32-bit words; if the blocks,
//! a stride or the buffer's offset are not multiples of eight, four elements move as a vector; if not of
//! four, single elements (neighbours: u and the v after it). Cells without an angle (of the rest, of a
//! prefix) are copied.
//!
//! Queries and keys share a launch: the first threadgroups rotate q, the others k. A thread loads its
//! elements before it stores them and no other thread stores them, so the result may overwrite the tokens.
//!
//! Bytes: tokens once, the result once; per angle 16 bytes of the table, which fits a cache, and a position.
//! Shared memory: 8 bytes per angle, [`ANGLES`] at most, pair by pair, so that neighbouring threads access
//! neighbouring cells. An angle: 51 integer and fp32 operations, 72 where positions are fp32 fractions, and
//! the position along its axis. A rotated element: two operations in each head. A threadgroup of 256 threads
//! with packed numbers and 8 groups computes 256 angles for 8,192 elements a round.

use super::angle::{AngleArgs, axis_of, cos_and_sin, place_of};
use super::args::{HeadArgs, RotationArgs};
use super::turn::{turn, turn_packed};
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Threads of a threadgroup.
pub(super) const THREADS: usize = 256;

/// Heads that a thread has in flight.
pub(super) const HEADS: usize = 2;

/// Angles of a threadgroup at most.
pub(super) const ANGLES: usize = 1024;

/// Bytes of shared memory: cos and sin of as many angles in fp32.
pub(super) const SHARED_BYTES: usize = 8 * ANGLES;

/// cos and sin of an angle.
type CosSin = Vector<f32, Const<2>>;

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RotationConfig {
    /// Elements are eight 16-bit numbers in four words.
    pub(super) packed: bool,
    /// A pair is two neighbours, not an element of either half.
    pub(super) neighbours: bool,
    /// The first heads are read before the angles are computed.
    pub(super) prefetch: bool,
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
    let mut shared = Shared::<[CosSin]>::new_slice(ANGLES);
    if comptime!(pair) {
        if index >= q_threadgroups {
            let index = index - q_threadgroups;
            let (k, k_positions, k_out) = (k.unwrap(), k_positions.unwrap(), k_out.unwrap());
            rotate::<E, S, N>(
                k,
                k_positions,
                table,
                k_out,
                &k_args,
                &head,
                &angles,
                &mut shared,
                index,
                config,
            );
        } else {
            rotate::<E, S, N>(
                q,
                q_positions,
                table,
                q_out,
                &q_args,
                &head,
                &angles,
                &mut shared,
                index,
                config,
            );
        }
    } else {
        rotate::<E, S, N>(q, q_positions, table, q_out, &q_args, &head, &angles, &mut shared, index, config);
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
    shared: &mut Shared<[CosSin]>,
    index: usize,
    #[comptime] config: RotationConfig,
) {
    let vector = N::value();
    let RotationConfig { packed, neighbours, prefetch } = comptime!(config);
    let width = comptime!(if packed { 8usize } else { vector });
    let work = args.work(index as u32);
    let along = work.lane * width as u32;
    let (u, v) = head.offsets(along, comptime!(neighbours && width == 1));
    let to = work.b as usize * args.out_b + work.n as usize * args.out_n;
    let turned = Turned {
        u: to + u as usize * args.out_d,
        v: to + v as usize * args.out_d,
        turns: along < head.pairs && work.n >= args.prefix,
    };
    let from = work.b as usize * args.in_b + work.n as usize * args.in_n;
    let (u_from, v_from) = (from + u as usize * args.in_d, from + v as usize * args.in_d);
    let mut early = Sequence::<Vector<S, N>>::new();
    if comptime!(prefetch) {
        load::<S, N>(tokens, args, work.group, u_from, v_from, &mut early, width);
    }
    // A cell's threads share its angles.
    if work.exists && turned.turns {
        let mut i = work.own_group;
        while i < comptime!(width as u32) {
            let words = table[head.pair(along, i, comptime!(width as u32), neighbours) as usize];
            let place = place_of(positions, args, angles, work.b, work.n, axis_of(words));
            let (cos, sin) = cos_and_sin(&place, words, angles);
            let mut pair = CosSin::new(0.0f32);
            pair.insert(0usize, cos);
            pair.insert(1usize, sin);
            shared[(i * args.cells + work.cell) as usize] = pair;
            i += args.own_groups;
        }
    }
    sync_cube();
    if work.exists {
        let mut cosines = Sequence::<Vector<f32, N>>::new();
        let mut sines = Sequence::<Vector<f32, N>>::new();
        #[unroll]
        for chunk in 0..comptime!(width / vector) {
            let first = comptime!((chunk * vector) as u32);
            let (cos, sin) = vectors::<N>(shared, first * args.cells + work.cell, args.cells);
            cosines.push(cos);
            sines.push(sin);
        }
        if comptime!(prefetch) {
            store::<E, S, N>(out, args, &early, &cosines, &sines, &turned, work.group, config);
        }
        for round in u32::new(comptime!(i64::from(prefetch)))..args.rounds {
            let h = work.group + round * comptime!(HEADS as u32) * args.groups;
            let mut raw = Sequence::<Vector<S, N>>::new();
            load::<S, N>(tokens, args, h, u_from, v_from, &mut raw, width);
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
) {
    #[unroll]
    for j in 0..HEADS {
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
    let RotationConfig { packed, neighbours, .. } = comptime!(config);
    let width = comptime!(if packed { 8usize } else { vector });
    #[unroll]
    for j in 0..HEADS {
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

/// cos and sin of consecutive pairs of a cell, the first at `at`.
#[cube]
fn vectors<N: Size>(shared: &mut Shared<[CosSin]>, at: u32, pitch: u32) -> (Vector<f32, N>, Vector<f32, N>) {
    let vector = N::value();
    if comptime!(vector == 1) {
        let pair = shared[at as usize];
        (Vector::cast_from(pair.extract(0usize)), Vector::cast_from(pair.extract(1usize)))
    } else {
        let mut cosines = Vector::<f32, Const<4>>::new(0.0f32);
        let mut sines = Vector::<f32, Const<4>>::new(0.0f32);
        #[unroll]
        for j in 0..4usize {
            let pair = shared[(at + comptime!(j as u32) * pitch) as usize];
            cosines.insert(j, pair.extract(0usize));
            sines.insert(j, pair.extract(1usize));
        }
        (Vector::cast_from(cosines), Vector::cast_from(sines))
    }
}
