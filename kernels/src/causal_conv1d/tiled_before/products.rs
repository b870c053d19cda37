//! The sliding products that the tiled kernels share: `sum[i] += sum over j < count of factor[j] * column[16 * place + i + j]`.
//!
//! ```text
//!   columns   | 16 of unit 0 | 16 of unit 1 | ..      a unit: 16 sums; 16 columns wait in registers while the next 16 come
//!             | ------- its window ------- |          256 multiply-adds per 8 vectors of shared memory
//! ```
//!
//! Columns and factors lie in shared memory as vectors of four. Vector Q stands at `Q mod 4 * stride + Q / 4`: the m-th vectors of
//! neighbouring units are neighbours, so that a load meets every bank once.

use crate::causal_conv1d::args::{Present, Rows, at3};
use crate::cells::Cells;
use cubecl::prelude::*;

/// Four neighbours.
pub(super) type Quad = Vector<f32, Const<4>>;

/// Sums of a unit.
pub(super) const OUTPUTS: usize = 16;

/// Units of a cube.
pub(super) const UNITS: usize = 128;

/// Where vector `index` of a run of vectors stands.
#[cube]
pub(super) fn place_of(index: u32, stride: u32) -> u32 {
    index % 4u32 * stride + index / 4u32
}

/// A row of columns: where they come from, and where they go.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Line {
    pub(super) b: usize,
    /// Channel of the source, and whether there is one.
    pub(super) c: usize,
    pub(super) exists: bool,
    /// The first column.
    pub(super) e: usize,
    /// Where the row begins in shared memory, and how many vectors it has.
    pub(super) base: u32,
    pub(super) stride: u32,
    pub(super) vectors: u32,
}

/// Brings the vectors `first`, `first + step`, .. of a row to shared memory, `count` of them: columns of `[initial state | source]`,
/// 0 beside it. Returns their sum. All are under way before anything waits for one.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn stage<S: Float>(
    source: &Tensor<S>,
    initial: &Tensor<S>,
    extents: &Rows,
    line: &Line,
    columns: &mut Shared<[Quad]>,
    first: u32,
    step: u32,
    #[comptime] count: usize,
) -> f32 {
    let history = extents.history();
    let row = line.b * source.stride(0) + line.c * source.stride(1);
    let mut raw = Sequence::<S>::new();
    #[unroll]
    for n in 0..count {
        #[unroll]
        for i in 0..4usize {
            // Wraps before the first step, to beyond the last.
            let t = line.e + (first + n as u32 * step) as usize * 4 + i - history;
            let inside = line.exists && t < extents.length;
            raw.push(source[select(inside, row + t * source.stride(2), 0usize)]);
        }
    }
    let mut total = 0.0f32;
    #[unroll]
    for n in 0..count {
        let index = first + n as u32 * step;
        let mut quad = Quad::new(0.0f32);
        #[unroll]
        for i in 0..4usize {
            let t = line.e + index as usize * 4 + i - history;
            let inside = line.exists && t < extents.length;
            let value = select(inside, f32::cast_from(*raw.index(comptime!(4 * n + i))), 0.0f32);
            total += value;
            quad.insert(i, value);
        }
        if line.exists && extents.has(Present::INITIAL) && line.e + index as usize * 4 < history {
            #[unroll]
            for i in 0..4usize {
                let e = line.e + index as usize * 4 + i;
                if e < history {
                    quad.insert(i, f32::cast_from(initial[at3(initial, line.b, line.c, e)]));
                }
            }
        }
        if index < line.vectors {
            columns[(line.base + place_of(index, line.stride)) as usize] = quad;
        }
    }
    total
}

/// Adds the products of `count` factors. The unit's columns begin at vector `4 * (place - base)` of their run, its factors at
/// vector `4 * (factor_place - base)` of theirs.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn add_products(
    columns: &Shared<[Quad]>,
    place: u32,
    stride: u32,
    factors: &Shared<[Quad]>,
    factor_place: u32,
    factor_stride: u32,
    count: u32,
    sums: &Cells<f32>,
) {
    let window = Cells::<f32>::new(comptime!(2 * OUTPUTS), 0.0f32);
    #[unroll]
    for m in 0..4usize {
        let quad = columns[(place + stride * m as u32) as usize];
        #[unroll]
        for i in 0..4usize {
            window.set(comptime!(4 * m + i), quad.extract(i));
        }
    }
    let blocks = count / comptime!(OUTPUTS as u32);
    for block in 0..blocks {
        #[unroll]
        for m in 0..4usize {
            let quad = columns[(place + stride * m as u32 + block + 1u32) as usize];
            #[unroll]
            for i in 0..4usize {
                window.set(comptime!(OUTPUTS + 4 * m + i), quad.extract(i));
            }
        }
        #[unroll]
        for m in 0..4usize {
            let quad = factors[(factor_place + factor_stride * m as u32 + block) as usize];
            #[unroll]
            for j in 0..4usize {
                let factor = quad.extract(j);
                #[unroll]
                for i in 0..OUTPUTS {
                    let sum = fma(factor, window.get(comptime!(4 * m + j + i)), sums.get(i));
                    sums.set(i, sum);
                }
            }
        }
        #[unroll]
        for i in 0..OUTPUTS {
            window.set(i, window.get(i + OUTPUTS));
        }
    }
    // One by one what is left: a factor of 0 in place of one that does not exist would make NaN of an infinite column.
    for j in 0..count % comptime!(OUTPUTS as u32) {
        let m = j / 4u32;
        let column = columns[(place + stride * m + blocks + 1u32) as usize];
        let factor = lane_of(factors[(factor_place + factor_stride * m + blocks) as usize], j % 4u32);
        #[unroll]
        for i in 0..OUTPUTS {
            let sum = fma(factor, window.get(i), sums.get(i));
            sums.set(i, sum);
        }
        #[unroll]
        for i in 0..comptime!(OUTPUTS - 1) {
            window.set(i, window.get(i + 1));
        }
        window.set(comptime!(OUTPUTS - 1), lane_of(column, j % 4u32));
    }
}

/// Element `lane` of a vector.
#[cube]
pub(super) fn lane_of(quad: Quad, lane: u32) -> f32 {
    let low = select(lane == 0u32, quad.extract(0usize), quad.extract(1usize));
    let high = select(lane == 2u32, quad.extract(2usize), quad.extract(3usize));
    select(lane < 2u32, low, high)
}

/// Puts a unit's sums back where its columns begin.
#[cube]
pub(super) fn put_sums(columns: &mut Shared<[Quad]>, place: u32, stride: u32, sums: &Cells<f32>) {
    #[unroll]
    for m in 0..4usize {
        let mut quad = Quad::new(0.0f32);
        #[unroll]
        for i in 0..4usize {
            quad.insert(i, sums.get(comptime!(4 * m + i)));
        }
        columns[(place + stride * m as u32) as usize] = quad;
    }
}
