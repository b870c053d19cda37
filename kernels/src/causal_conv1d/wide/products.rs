//! The sliding products that the tiled kernels share: `sum[i] += sum over j < count of factor[j] *
//! column[first + i + j]`.
//!
//! ```text
//!   columns   | 16 of unit 0 | 16 of unit 1 | ..    a unit: 16 sums; four factors at a time, and with them
//!             | - its ring of 32 - |                a vector of columns: 64 multiply-adds per 2 vectors
//! ```
//!
//! Vector Q of a unit's columns is in cells Q mod 8 of its ring: after 32 factors the ring is where it was,
//! so that nothing is moved.
//!
//! Columns and factors lie in shared memory as vectors of four, in four parts: vector Q is the Q/4-th of its
//! row in part Q mod 4. The m-th vectors of neighbouring units are neighbours there, a load meets every bank
//! once, and the distance between parts is a constant of the code.

use crate::registers::Registers;
use cubecl::prelude::*;

/// Four neighbours.
pub(super) type Quad = Vector<f32, Const<4>>;

/// Units of a cube.
pub(super) const UNITS: usize = 128;

/// Sums of a unit.
pub(super) const OUTPUTS: usize = 16;

/// Parts in which vectors lie in shared memory: one for each vector of a unit's sums.
pub(super) const PARTS: usize = OUTPUTS / 4;

/// Vectors of a unit's ring, and of the factors after which it is where it was.
const ROUND: usize = 2 * PARTS;

/// The smallest part for so many vectors: neighbours that are put into neighbouring parts meet different
/// banks.
pub(super) const fn part(vectors: usize) -> usize {
    (vectors + 5) / 8 * 8 + 2
}

/// Where vector `index` of a row stands that begins with the first vector of a part.
#[cube]
pub(super) fn place_of(index: u32, #[comptime] part: usize) -> u32 {
    index % comptime!(PARTS as u32) * part as u32 + index / comptime!(PARTS as u32)
}

/// Where a unit's columns and factors begin, and how far their parts are apart. Its first column is `shift`
/// after the beginning of a vector.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Places {
    pub(super) columns: u32,
    pub(super) factors: u32,
    #[cube(comptime)]
    pub(super) column_part: usize,
    #[cube(comptime)]
    pub(super) factor_part: usize,
    #[cube(comptime)]
    pub(super) shift: usize,
}

/// Vectors that a unit holds before it takes the one that four more factors need.
fn ahead(shift: usize) -> usize {
    PARTS + usize::from(shift > 0)
}

/// Adds the products of `count` factors.
#[cube]
pub(super) fn add_products(
    columns: &Shared<[Quad]>,
    factors: &Shared<[Quad]>,
    places: &Places,
    count: u32,
    sums: &Registers<f32>,
) {
    let ring = Registers::<f32>::new(comptime!(4 * ROUND), 0.0f32);
    let held = comptime!(ahead(places.shift));
    #[unroll]
    for q in 0..held {
        take(columns, places, 0u32, q, &ring);
    }
    let step = comptime!((ROUND / PARTS) as u32);
    let rounds = count / comptime!(4 * ROUND as u32);
    for round in 0..rounds {
        add_quads(columns, factors, places, round * step, ROUND, &ring, sums);
    }
    let half = count & comptime!(2 * ROUND as u32) != 0u32;
    if half {
        add_quads(columns, factors, places, rounds * step, comptime!(ROUND / 2), &ring, sums);
    }
    let rest = count % comptime!(2 * ROUND as u32);
    if rest != 0u32 {
        let first = rounds * comptime!(ROUND as u32) + select(half, comptime!(ROUND as u32 / 2), 0u32);
        add_rest(columns, factors, places, first, rest, sums);
    }
}

/// Takes vector `q` of those from the one that is `done` after the unit's first in its part on into its ring.
#[cube]
fn take(columns: &Shared<[Quad]>, places: &Places, done: u32, #[comptime] q: usize, ring: &Registers<f32>) {
    let at = comptime!((q % PARTS * places.column_part + q / PARTS) as u32);
    let quad = columns[(places.columns + done + at) as usize];
    #[unroll]
    for i in 0..4usize {
        ring.set(comptime!((4 * q + i) % (4 * ROUND)), quad.extract(i));
    }
}

/// Adds the products of `4 * quads` factors, of which the first are `done` after the unit's first in their
/// part.
#[cube]
fn add_quads(
    columns: &Shared<[Quad]>,
    factors: &Shared<[Quad]>,
    places: &Places,
    done: u32,
    #[comptime] quads: usize,
    ring: &Registers<f32>,
    sums: &Registers<f32>,
) {
    #[unroll]
    for m in 0..quads {
        take(columns, places, done, comptime!(m + ahead(places.shift)), ring);
        let at = comptime!((m % PARTS * places.factor_part + m / PARTS) as u32);
        let quad = factors[(places.factors + done + at) as usize];
        #[unroll]
        for j in 0..4usize {
            let factor = quad.extract(j);
            #[unroll]
            for i in 0..OUTPUTS {
                let column = ring.get(comptime!((4 * m + j + i + places.shift) % (4 * ROUND)));
                sums.set(i, fma(factor, column, sums.get(i)));
            }
        }
    }
}

/// Adds the products of fewer than 16 factors from the `first`-th vector on, one by one: a factor of 0 in
/// place of one that does not exist would make NaN of an infinite column.
#[cube]
fn add_rest(
    columns: &Shared<[Quad]>,
    factors: &Shared<[Quad]>,
    places: &Places,
    first: u32,
    rest: u32,
    sums: &Registers<f32>,
) {
    let held = comptime!(ahead(places.shift));
    let window = Registers::<f32>::new(comptime!(4 * held), 0.0f32);
    #[unroll]
    for q in 0..held {
        let at = places.columns + place_of(first + q as u32, places.column_part);
        let quad = columns[at as usize];
        #[unroll]
        for i in 0..4usize {
            window.set(comptime!(4 * q + i), quad.extract(i));
        }
    }
    for j in 0..rest {
        let next = first + j / 4u32;
        let at = places.columns + place_of(next + held as u32, places.column_part);
        let column = columns[at as usize];
        let at = places.factors + place_of(next, places.factor_part);
        let factor = lane_of(factors[at as usize], j % 4u32);
        #[unroll]
        for i in 0..OUTPUTS {
            let sum = fma(factor, window.get(comptime!(i + places.shift)), sums.get(i));
            sums.set(i, sum);
        }
        #[unroll]
        for i in 0..comptime!(4 * held - 1) {
            window.set(i, window.get(i + 1));
        }
        window.set(comptime!(4 * held - 1), lane_of(column, j % 4u32));
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
pub(super) fn put_sums(columns: &mut Shared<[Quad]>, places: &Places, sums: &Registers<f32>) {
    #[unroll]
    for m in 0..PARTS {
        let mut quad = Quad::new(0.0f32);
        #[unroll]
        for i in 0..4usize {
            quad.insert(i, sums.get(comptime!(4 * m + i)));
        }
        columns[(places.columns + comptime!((m * places.column_part) as u32)) as usize] = quad;
    }
}
