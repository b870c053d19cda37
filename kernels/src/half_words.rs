//! Eight 16-bit numbers as four 32-bit words: a unit moves 16 bytes at once, whatever the storage type.
//!
//! No device promises vectors of eight elements (Apple's and WGSL's end at four), every one has vectors of
//! four words. The numbers of a word are neighbours in memory, the first in the lower half, as on every
//! device there is.

use cubecl::ir::{ElemType, UIntKind};
use cubecl::prelude::*;

/// What memory is then read as.
pub(crate) const WORD: ElemType = ElemType::UInt(UIntKind::U32);

/// Four neighbours in fp32.
type Quad = Vector<f32, Const<4>>;

/// The elements `4 * half..4 * half + 4` of eight in four words.
#[cube]
pub(crate) fn quad_of_words<X: Float, S: Numeric, N: Size>(
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

/// Eight elements as four words, each rounded once.
#[cube]
pub(crate) fn words_of<X: Float, S: Numeric, N: Size>(first: Quad, second: Quad) -> Vector<S, N> {
    let mut words = Vector::<u32, Const<4>>::new(0u32);
    #[unroll]
    for w in 0..2usize {
        words.insert(w, word_of::<X>(first, w));
        words.insert(comptime!(2 + w), word_of::<X>(second, w));
    }
    Vector::cast_from(words)
}

/// The elements `2 * w` and `2 * w + 1` of a quad as a word.
#[cube]
fn word_of<X: Float>(quad: Quad, #[comptime] w: usize) -> u32 {
    let mut pair = Vector::<f32, Const<2>>::new(0.0f32);
    pair.insert(0usize, quad.extract(comptime!(2 * w)));
    pair.insert(1usize, quad.extract(comptime!(2 * w + 1)));
    u32::reinterpret(Vector::<X, Const<2>>::cast_from(pair))
}
