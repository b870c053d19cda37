//! How rows come to shared memory: four neighbouring steps as one vector where every run of four lies aligned
//! in memory, else one by one through the strides.
//!
//! Reading and putting are two functions, so that a unit's reads are all under way before anything waits for
//! one. Where rows are read as vectors, a row in shared memory begins with a whole one: up to three steps
//! (the *shift*) before the first that is needed.

use super::products::{Quad, place_of};
use crate::causal_conv1d::args::{Present, Rows, at3};
use cubecl::prelude::*;

/// A row of columns: where they come from, and where they go.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Line {
    pub(super) b: usize,
    /// Channel of the source, and whether there is one.
    pub(super) c: usize,
    pub(super) exists: bool,
    /// Where the row begins in memory, in elements, and the distance between its steps.
    pub(super) row: usize,
    pub(super) stride: usize,
    /// The first step. Steps before step 0 have wrapped to beyond the last.
    pub(super) t: usize,
    /// Where the row begins in a part of shared memory, how many vectors it has, and the vectors of a part.
    pub(super) place: u32,
    pub(super) vectors: u32,
    #[cube(comptime)]
    pub(super) part: usize,
}

/// Reads the vectors `first`, `first + step`, .. of a row, `count` of them; the memory's first element in
/// place of what is beside the row, in memory or in the tile.
#[cube]
pub(super) fn read<S: Float, N: Size>(
    source: &[Vector<S, N>],
    extents: &Rows,
    line: &Line,
    raw: &mut Sequence<Vector<S, N>>,
    first: u32,
    step: u32,
    #[comptime] count: usize,
) {
    let together = N::value();
    #[unroll]
    for n in 0..count {
        let index = first + n as u32 * step;
        let t = line.t + index as usize * 4;
        let wanted = line.exists && index < line.vectors;
        if comptime!(together == 4) {
            let inside = wanted && t < extents.length;
            raw.push(source[select(inside, line.row + t, 0usize) / 4]);
        } else {
            #[unroll]
            for i in 0..4usize {
                let inside = wanted && t + i < extents.length;
                raw.push(source[select(inside, line.row + (t + i) * line.stride, 0usize)]);
            }
        }
    }
}

/// Puts what [`read`] has read into shared memory: columns of `[initial state | source]`, 0 beside it.
/// Returns their sum.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn put<S: Float, I: Float, N: Size>(
    raw: &Sequence<Vector<S, N>>,
    initial: &Tensor<I>,
    extents: &Rows,
    line: &Line,
    columns: &mut Shared<[Quad]>,
    first: u32,
    step: u32,
    #[comptime] count: usize,
    #[comptime] states: bool,
) -> f32 {
    let together = N::value();
    let history = extents.history();
    let mut total = 0.0f32;
    #[unroll]
    for n in 0..count {
        let index = first + n as u32 * step;
        let t = line.t + index as usize * 4;
        let mut quad = Quad::new(0.0f32);
        if comptime!(together == 4) {
            // Vectors end where rows end.
            let inside = line.exists && t < extents.length;
            let whole = Quad::cast_from(*raw.index(n));
            #[unroll]
            for i in 0..4usize {
                quad.insert(i, select(inside, whole.extract(i), 0.0f32));
            }
        } else {
            #[unroll]
            for i in 0..4usize {
                let inside = line.exists && t + i < extents.length;
                let value = f32::cast_from(raw.index(comptime!(4 * n + i)).extract(0usize));
                quad.insert(i, select(inside, value, 0.0f32));
            }
        }
        #[unroll]
        for i in 0..4usize {
            total += quad.extract(i);
        }
        // The last column of the vector is never before the first of the row.
        if comptime!(states) && line.exists && extents.has(Present::INITIAL) && t + history + 3 < history + 3
        {
            #[unroll]
            for i in 0..4usize {
                let e = t + history + i;
                if e < history {
                    quad.insert(i, f32::cast_from(initial[at3(initial, line.b, line.c, e)]));
                }
            }
        }
        if index < line.vectors {
            columns[(line.place + place_of(index, line.part)) as usize] = quad;
        }
    }
    total
}
