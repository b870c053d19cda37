//! Rows from DRAM to shared memory: vectors of four steps if these are aligned, else single elements through
//! the strides.
//!
//! [`load`] and [`store`] are separate so that all loads are in flight before the first use; [`copy`] has
//! both in a loop, for devices that hide latency by occupancy. With vector
//! loads a row in shared memory begins at a vector: up to three steps (the *shift*) before the first needed
//! one.

use super::products::{Quad, section_index};
use crate::causal_conv1d::args::{ConvParams, Present, offset3};
use cubecl::prelude::*;

/// One row of a tile: its source in memory and its destination in shared memory.
#[derive(CubeType, Clone, Copy)]
pub(super) struct StagedRow {
    pub(super) b: usize,
    /// Channel of the source.
    pub(super) c: usize,
    /// Whether the channel exists.
    pub(super) exists: bool,
    /// Element offset of the row in memory, and the stride of its steps.
    pub(super) row: usize,
    pub(super) stride: usize,
    /// The first step. Steps before step 0 have wrapped around to past the last.
    pub(super) t: usize,
    /// Index of the row's first vector in shared memory, and its number of vectors.
    pub(super) base: u32,
    pub(super) vectors: u32,
    /// Vectors per section of shared memory.
    #[cube(comptime)]
    pub(super) pitch: usize,
}

/// Loads `count` vectors of a row: `first`, `first + step`, .. Masked lanes load the source's first element.
#[cube]
pub(super) fn load<S: Float, N: Size>(
    source: &[Vector<S, N>],
    params: &ConvParams,
    line: &StagedRow,
    raw: &mut Sequence<Vector<S, N>>,
    first: u32,
    step: u32,
    #[comptime] count: usize,
) {
    let vector_size = N::value();
    #[unroll]
    for n in 0..count {
        let index = first + n as u32 * step;
        let t = line.t + index as usize * 4;
        let wanted = line.exists && index < line.vectors;
        if comptime!(vector_size == 4) {
            let inside = wanted && t < params.length;
            raw.push(source[select(inside, line.row + t, 0usize) / 4]);
        } else {
            #[unroll]
            for i in 0..4usize {
                let inside = wanted && t + i < params.length;
                raw.push(source[select(inside, line.row + (t + i) * line.stride, 0usize)]);
            }
        }
    }
}

/// Stores what [`load`] returned into shared memory, as columns of `[initial state | source]` with 0 outside.
/// Returns the sum of the source's values.
#[cube]
pub(super) fn store<S: Float, I: Float, N: Size>(
    raw: &Sequence<Vector<S, N>>,
    initial: &Tensor<I>,
    params: &ConvParams,
    line: &StagedRow,
    columns: &mut Shared<[Quad]>,
    first: u32,
    step: u32,
    #[comptime] count: usize,
    #[comptime] states: bool,
) -> f32 {
    let vector_size = N::value();
    let history = params.history();
    let mut total = 0.0f32;
    #[unroll]
    for n in 0..count {
        let index = first + n as u32 * step;
        let t = line.t + index as usize * 4;
        let mut quad = Quad::new(0.0f32);
        if comptime!(vector_size == 4) {
            // T is a multiple of 4: a vector is inside or outside as a whole.
            let inside = line.exists && t < params.length;
            let whole = Quad::cast_from(*raw.index(n));
            #[unroll]
            for i in 0..4usize {
                quad.insert(i, select(inside, whole.extract(i), 0.0f32));
            }
        } else {
            #[unroll]
            for i in 0..4usize {
                let inside = line.exists && t + i < params.length;
                let value = f32::cast_from(raw.index(comptime!(4 * n + i)).extract(0usize));
                quad.insert(i, select(inside, value, 0.0f32));
            }
        }
        #[unroll]
        for i in 0..4usize {
            total += quad.extract(i);
        }
        // The vector begins before step 0, at column t + history >= -3 (the shift): 3 is added against the
        // wrap.
        if comptime!(states) && line.exists && params.has(Present::INITIAL) && t + history + 3 < history + 3 {
            #[unroll]
            for i in 0..4usize {
                let e = t + history + i;
                if e < history {
                    quad.insert(i, f32::cast_from(initial[offset3(initial, line.b, line.c, e)]));
                }
            }
        }
        if index < line.vectors {
            columns[(line.base + section_index(index, line.pitch)) as usize] = quad;
        }
    }
    total
}

/// Vectors that [`copy`] has in flight: what a thread holds of a row at a time.
const IN_FLIGHT: usize = 2;

/// [`load`] and [`store`] for vectors `first`, `first + step`, .. up to the row's last. Returns the sum of
/// the source's values.
#[cube]
pub(super) fn copy<S: Float, I: Float, N: Size>(
    source: &[Vector<S, N>],
    initial: &Tensor<I>,
    params: &ConvParams,
    line: &StagedRow,
    columns: &mut Shared<[Quad]>,
    first: u32,
    step: u32,
    #[comptime] states: bool,
) -> f32 {
    let mut total = 0.0f32;
    let mut index = first;
    while index < line.vectors {
        let mut raw = Sequence::<Vector<S, N>>::new();
        load(source, params, line, &mut raw, index, step, IN_FLIGHT);
        total += store(&raw, initial, params, line, columns, index, step, IN_FLIGHT, states);
        index += comptime!(IN_FLIGHT as u32) * step;
    }
    total
}
