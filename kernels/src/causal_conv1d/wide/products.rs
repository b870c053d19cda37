//! The K loop of the wide kernels: `sum[i] += sum over j < count of factor[j] * column[first + i + j]`.
//!
//! ```text
//!   columns   | 16 of thread 0 | 16 of thread 1 | ..   thread: 16 sums. Per iteration four factors and one
//!             | - ring of 32 columns - |               vector of columns: 64 FMA per 2 vector loads
//! ```
//!
//! Vector Q of a thread's columns is in slot Q mod 8 of its register ring. After 32 factors the ring is back
//! at its start, so no register is moved.
//!
//! Columns and factors are in shared memory as vectors of four, in four sections: vector Q of a row is the
//! (Q/4)-th of section Q mod 4. The m-th vectors of consecutive threads are adjacent there: no bank
//! conflicts, and the distance between sections is a compile-time constant.

use crate::registers::Registers;
use cubecl::prelude::*;

/// Four consecutive elements in fp32.
pub(super) type Quad = Vector<f32, Const<4>>;

/// Threads per threadgroup.
pub(super) const THREADS: usize = 128;

/// Accumulators per thread.
pub(super) const OUTPUTS: usize = 16;

/// Sections of shared memory: one for each vector of a thread's sums.
pub(super) const SECTIONS: usize = OUTPUTS / 4;

/// Vectors of a thread's register ring, and of the factors after which the ring is back at its start.
const RING: usize = 2 * SECTIONS;

/// The smallest pitch, in vectors, of sections of `vectors`: 2 modulo 8, so that stores to consecutive
/// sections hit different banks.
pub(super) const fn section_pitch(vectors: usize) -> usize {
    (vectors + 5) / 8 * 8 + 2
}

/// Offset of vector `index` of a row from the row's vector 0 in section 0.
#[cube]
pub(super) fn section_index(index: u32, #[comptime] pitch: usize) -> u32 {
    index % comptime!(SECTIONS as u32) * pitch as u32 + index / comptime!(SECTIONS as u32)
}

/// Offsets of a thread's columns and factors in shared memory, and the pitch of their sections, in vectors.
/// The first column is `shift` elements into its vector.
#[derive(CubeType, Clone, Copy)]
pub(super) struct SharedOffsets {
    pub(super) columns: u32,
    pub(super) factors: u32,
    #[cube(comptime)]
    pub(super) column_pitch: usize,
    #[cube(comptime)]
    pub(super) factor_pitch: usize,
    #[cube(comptime)]
    pub(super) shift: usize,
    /// Text for devices whose compilers are slow on it: a sum's four products of a vector of factors behind
    /// each other, without a register's load and store between. Each sum has its products in the same order.
    #[cube(comptime)]
    pub(super) short: bool,
}

/// Vectors of columns that a thread holds before each iteration loads one more.
fn held_vectors(shift: usize) -> usize {
    SECTIONS + usize::from(shift > 0)
}

/// Adds the products of `count` factors to `sums`.
#[cube]
pub(super) fn accumulate(
    columns: &Shared<[Quad]>,
    factors: &Shared<[Quad]>,
    offsets: &SharedOffsets,
    count: u32,
    sums: &Registers<f32>,
) {
    let ring = Registers::<f32>::new(comptime!(4 * RING), 0.0f32);
    let held = comptime!(held_vectors(offsets.shift));
    #[unroll]
    for q in 0..held {
        load_vector(columns, offsets, 0u32, q, &ring);
    }
    let step = comptime!((RING / SECTIONS) as u32);
    let rounds = count / comptime!(4 * RING as u32);
    for round in 0..rounds {
        accumulate_vectors(columns, factors, offsets, round * step, RING, &ring, sums);
    }
    let half = count & comptime!(2 * RING as u32) != 0u32;
    if half {
        accumulate_vectors(columns, factors, offsets, rounds * step, comptime!(RING / 2), &ring, sums);
    }
    let rest = count % comptime!(2 * RING as u32);
    if rest != 0u32 {
        let first = rounds * comptime!(RING as u32) + select(half, comptime!(RING as u32 / 2), 0u32);
        accumulate_tail(columns, factors, offsets, first, rest, sums);
    }
}

/// Loads a vector of columns into the ring: the `q`-th from the one that is `done` after the thread's first
/// in its section.
#[cube]
fn load_vector(
    columns: &Shared<[Quad]>,
    offsets: &SharedOffsets,
    done: u32,
    #[comptime] q: usize,
    ring: &Registers<f32>,
) {
    let at = comptime!((q % SECTIONS * offsets.column_pitch + q / SECTIONS) as u32);
    let quad = columns[(offsets.columns + done + at) as usize];
    #[unroll]
    for i in 0..4usize {
        ring.set(comptime!((4 * q + i) % (4 * RING)), quad.extract(i));
    }
}

/// Adds the products of `4 * quads` factors, starting `done` vectors after the thread's first in its section.
#[cube]
fn accumulate_vectors(
    columns: &Shared<[Quad]>,
    factors: &Shared<[Quad]>,
    offsets: &SharedOffsets,
    done: u32,
    #[comptime] quads: usize,
    ring: &Registers<f32>,
    sums: &Registers<f32>,
) {
    #[unroll]
    for m in 0..quads {
        load_vector(columns, offsets, done, comptime!(m + held_vectors(offsets.shift)), ring);
        let at = comptime!((m % SECTIONS * offsets.factor_pitch + m / SECTIONS) as u32);
        let quad = factors[(offsets.factors + done + at) as usize];
        if comptime!(offsets.short) {
            let mut window = Sequence::<f32>::new();
            #[unroll]
            for i in 0..comptime!(OUTPUTS + 3) {
                window.push(ring.get(comptime!((4 * m + i + offsets.shift) % (4 * RING))));
            }
            #[unroll]
            for i in 0..OUTPUTS {
                let sum = fma(quad.extract(0usize), *window.index(i), sums.get(i));
                let sum = fma(quad.extract(1usize), *window.index(comptime!(i + 1)), sum);
                let sum = fma(quad.extract(2usize), *window.index(comptime!(i + 2)), sum);
                sums.set(i, fma(quad.extract(3usize), *window.index(comptime!(i + 3)), sum));
            }
        } else {
            #[unroll]
            for j in 0..4usize {
                let factor = quad.extract(j);
                #[unroll]
                for i in 0..OUTPUTS {
                    let column = ring.get(comptime!((4 * m + j + i + offsets.shift) % (4 * RING)));
                    sums.set(i, fma(factor, column, sums.get(i)));
                }
            }
        }
    }
}

/// Adds the products of fewer than 16 factors from vector `first` on, one factor at a time: padding with
/// zero factors would turn an infinite column into NaN.
#[cube]
fn accumulate_tail(
    columns: &Shared<[Quad]>,
    factors: &Shared<[Quad]>,
    offsets: &SharedOffsets,
    first: u32,
    rest: u32,
    sums: &Registers<f32>,
) {
    let held = comptime!(held_vectors(offsets.shift));
    let window = Registers::<f32>::new(comptime!(4 * held), 0.0f32);
    #[unroll]
    for q in 0..held {
        let at = offsets.columns + section_index(first + q as u32, offsets.column_pitch);
        let quad = columns[at as usize];
        #[unroll]
        for i in 0..4usize {
            window.set(comptime!(4 * q + i), quad.extract(i));
        }
    }
    for j in 0..rest {
        let next = first + j / 4u32;
        let at = offsets.columns + section_index(next + held as u32, offsets.column_pitch);
        let column = columns[at as usize];
        let at = offsets.factors + section_index(next, offsets.factor_pitch);
        let factor = element_of(factors[at as usize], j % 4u32);
        #[unroll]
        for i in 0..OUTPUTS {
            let sum = fma(factor, window.get(comptime!(i + offsets.shift)), sums.get(i));
            sums.set(i, sum);
        }
        #[unroll]
        for i in 0..comptime!(4 * held - 1) {
            window.set(i, window.get(i + 1));
        }
        window.set(comptime!(4 * held - 1), element_of(column, j % 4u32));
    }
}

/// Element `lane` of a vector.
#[cube]
pub(super) fn element_of(quad: Quad, lane: u32) -> f32 {
    let low = select(lane == 0u32, quad.extract(0usize), quad.extract(1usize));
    let high = select(lane == 2u32, quad.extract(2usize), quad.extract(3usize));
    select(lane < 2u32, low, high)
}

/// Stores a thread's sums in shared memory, over the thread's first columns.
#[cube]
pub(super) fn store_sums(columns: &mut Shared<[Quad]>, offsets: &SharedOffsets, sums: &Registers<f32>) {
    #[unroll]
    for m in 0..SECTIONS {
        let mut quad = Quad::new(0.0f32);
        #[unroll]
        for i in 0..4usize {
            quad.insert(i, sums.get(comptime!(4 * m + i)));
        }
        columns[(offsets.columns + comptime!((m * offsets.column_pitch) as u32)) as usize] = quad;
    }
}
