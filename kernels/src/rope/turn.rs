//! Vectors of pairs turned by their angles, in either order of a pair's elements.

use crate::half_words::{pack_quads, unpack_quad};
use cubecl::prelude::*;

/// Two vectors of elements, rotated.
#[cube]
pub(super) fn turn<N: Size>(
    first: Vector<f32, N>,
    second: Vector<f32, N>,
    cos: Vector<f32, N>,
    sin: Vector<f32, N>,
    #[comptime] neighbours: bool,
) -> (Vector<f32, N>, Vector<f32, N>) {
    let vector = N::value();
    if comptime!(neighbours && vector == 4) {
        let (u, v) = part(Vector::cast_from(first), Vector::cast_from(second));
        let (u, v) = (Vector::<f32, N>::cast_from(u), Vector::<f32, N>::cast_from(v));
        let (first, second) =
            join(Vector::cast_from(u * cos - v * sin), Vector::cast_from(v * cos + u * sin));
        (Vector::cast_from(first), Vector::cast_from(second))
    } else {
        (first * cos - second * sin, second * cos + first * sin)
    }
}

/// Two vectors of eight packed elements, rotated.
#[cube]
pub(super) fn turn_packed<E: Float, S: Numeric, N: Size>(
    first: Vector<S, N>,
    second: Vector<S, N>,
    cosines: &Sequence<Vector<f32, N>>,
    sines: &Sequence<Vector<f32, N>>,
    #[comptime] neighbours: bool,
) -> (Vector<S, N>, Vector<S, N>) {
    let mut firsts = Sequence::<Vector<f32, Const<4>>>::new();
    let mut seconds = Sequence::<Vector<f32, Const<4>>>::new();
    #[unroll]
    for half in 0..2usize {
        // Pairs 4 * half.. of the eight: half of both vectors, or, as neighbours, all of one.
        let mut a = unpack_quad::<E, S, N>(first, half);
        let mut b = unpack_quad::<E, S, N>(second, half);
        if comptime!(neighbours) {
            let from = if comptime!(half == 0) { first } else { second };
            a = unpack_quad::<E, S, N>(from, 0usize);
            b = unpack_quad::<E, S, N>(from, 1usize);
        }
        let (a, b) = turn::<N>(
            Vector::cast_from(a),
            Vector::cast_from(b),
            *cosines.index(half),
            *sines.index(half),
            neighbours,
        );
        firsts.push(Vector::cast_from(a));
        seconds.push(Vector::cast_from(b));
    }
    if comptime!(neighbours) {
        let first = pack_quads::<E, S, N>(*firsts.index(0), *seconds.index(0));
        (first, pack_quads::<E, S, N>(*firsts.index(1), *seconds.index(1)))
    } else {
        let first = pack_quads::<E, S, N>(*firsts.index(0), *firsts.index(1));
        (first, pack_quads::<E, S, N>(*seconds.index(0), *seconds.index(1)))
    }
}

type Quad = Vector<f32, Const<4>>;

/// u v u v, u v u v -> u u u u, v v v v.
#[cube]
fn part(first: Quad, second: Quad) -> (Quad, Quad) {
    let (mut u, mut v) = (Quad::new(0.0f32), Quad::new(0.0f32));
    #[unroll]
    for j in 0..2usize {
        u.insert(j, first.extract(comptime!(2 * j)));
        v.insert(j, first.extract(comptime!(2 * j + 1)));
        u.insert(comptime!(2 + j), second.extract(comptime!(2 * j)));
        v.insert(comptime!(2 + j), second.extract(comptime!(2 * j + 1)));
    }
    (u, v)
}

/// The way back.
#[cube]
fn join(u: Quad, v: Quad) -> (Quad, Quad) {
    let (mut first, mut second) = (Quad::new(0.0f32), Quad::new(0.0f32));
    #[unroll]
    for j in 0..2usize {
        first.insert(comptime!(2 * j), u.extract(j));
        first.insert(comptime!(2 * j + 1), v.extract(j));
        second.insert(comptime!(2 * j), u.extract(comptime!(2 + j)));
        second.insert(comptime!(2 * j + 1), v.extract(comptime!(2 + j)));
    }
    (first, second)
}
