//! Eight 16-bit numbers as four 32-bit words: a thread moves 16 bytes at once, whatever the storage type.
//!
//! No device promises vectors of eight elements (Metal and WGSL stop at four); all have vectors of four
//! words. The two numbers of a word are consecutive in memory, the first in the lower half: every supported
//! device is little-endian.

use cubecl::ir::{ElemType, UIntKind};
use cubecl::prelude::*;

/// The element type of such buffers.
pub(crate) const WORD: ElemType = ElemType::UInt(UIntKind::U32);

/// Four consecutive elements in fp32.
type Quad = Vector<f32, Const<4>>;

/// Unpacks the elements `4 * half..4 * half + 4` of the eight in four words.
#[cube]
pub(crate) fn unpack_quad<X: Float, S: Numeric, N: Size>(
    words: Vector<S, N>,
    #[comptime] half: usize,
) -> Quad {
    let mut quad = Quad::new(0.0f32);
    #[unroll]
    for w in 0..2usize {
        let word = words.extract(comptime!(2 * half + w));
        let pair = Vector::<f32, Const<2>>::cast_from(Vector::<X, Const<2>>::reinterpret(word));
        quad.insert(comptime!(2 * w), pair.extract(0usize));
        quad.insert(comptime!(2 * w + 1), pair.extract(1usize));
    }
    quad
}

/// Packs eight elements into four words, each element rounded once.
#[cube]
pub(crate) fn pack_quads<X: Float, S: Numeric, N: Size>(first: Quad, second: Quad) -> Vector<S, N> {
    let mut words = Vector::<u32, Const<4>>::new(0u32);
    #[unroll]
    for w in 0..2usize {
        words.insert(w, pack_word::<X>(first, w));
        words.insert(comptime!(2 + w), pack_word::<X>(second, w));
    }
    Vector::cast_from(words)
}

/// Packs the elements `2 * w` and `2 * w + 1` of a quad into a word.
#[cube]
fn pack_word<X: Float>(quad: Quad, #[comptime] w: usize) -> u32 {
    let mut pair = Vector::<f32, Const<2>>::new(0.0f32);
    pair.insert(0usize, quad.extract(comptime!(2 * w)));
    pair.insert(1usize, quad.extract(comptime!(2 * w + 1)));
    u32::reinterpret(Vector::<X, Const<2>>::cast_from(pair))
}
