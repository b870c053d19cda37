//! The sliding products that the tiled kernels share: `sum[i] += sum over j < count of factor[j] * column[16 * place + i + j]`.
//!
//! ```text
//!   columns   | 16 of unit 0 | 16 of unit 1 | ..      a unit: 16 sums; four factors at a time, a vector of columns for each four
//!             | ---- its ring of vectors ---- |        64 multiply-adds per 2 vectors of shared memory
//! ```
//!
//! Vector Q of a unit's columns is in cells Q mod 8 of its ring: after 32 factors the ring is where it was, so that nothing is moved.
//!
//! Columns and factors lie in shared memory as vectors of four, in quarters: vector Q is the Q/4-th of its row in quarter Q mod 4.
//! The m-th vectors of neighbouring units are neighbours there, a load meets every bank once, and the distance between quarters
//! is a constant of the code.

use crate::cells::Cells;
use cubecl::prelude::*;

/// Four neighbours.
pub(super) type Quad = Vector<f32, Const<4>>;

/// Sums of a unit.
pub(super) const OUTPUTS: usize = 16;

/// Units of a cube.
pub(super) const UNITS: usize = 128;

/// Vectors in a unit's ring, and factors until it has gone round.
const RING: usize = 8;
const ROUND: usize = 4 * RING;

/// Where vector `index` of a row stands that begins with the first vector of a quarter.
#[cube]
pub(super) fn place_of(index: u32, #[comptime] quarter: usize) -> u32 {
    index % 4u32 * quarter as u32 + index / 4u32
}

/// Where a unit's columns and factors begin, and how far their quarters are apart. Its first column is `shift` after the beginning of
/// a vector.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Places {
    pub(super) columns: u32,
    pub(super) factors: u32,
    #[cube(comptime)]
    pub(super) column_quarter: usize,
    #[cube(comptime)]
    pub(super) factor_quarter: usize,
    #[cube(comptime)]
    pub(super) shift: usize,
}

/// Adds the products of `count` factors.
#[cube]
pub(super) fn add_products(
    columns: &Shared<[Quad]>,
    factors: &Shared<[Quad]>,
    places: &Places,
    count: u32,
    sums: &Cells<f32>,
) {
    let ring = Cells::<f32>::new(ROUND, 0.0f32);
    let first = comptime!(ahead(places.shift));
    #[unroll]
    for q in 0..first {
        take(columns, places, 0u32, q, &ring);
    }
    let rounds = count / comptime!(ROUND as u32);
    for round in 0..rounds {
        add_quads(columns, factors, places, round * 2u32, RING, &ring, sums);
    }
    let mut done = rounds * 2u32;
    if count & comptime!(OUTPUTS as u32) != 0u32 {
        add_quads(columns, factors, places, done, comptime!(RING / 2), &ring, sums);
        done += 1u32;
    }
    let rest = count % comptime!(OUTPUTS as u32);
    if rest != 0u32 {
        add_rest(columns, factors, places, done, rest, sums);
    }
}

/// Vectors that a unit holds before it takes the one that four more factors need.
fn ahead(shift: usize) -> usize {
    if shift == 0 { 4 } else { 5 }
}

/// Takes vector `q` of those from the unit's `16 * done`-th column on into its ring.
#[cube]
fn take(columns: &Shared<[Quad]>, places: &Places, done: u32, #[comptime] q: usize, ring: &Cells<f32>) {
    let quarter = comptime!((q % 4 * places.column_quarter + q / 4) as u32);
    let quad = columns[(places.columns + done + quarter) as usize];
    #[unroll]
    for i in 0..4usize {
        ring.set(comptime!(q % RING * 4 + i), quad.extract(i));
    }
}

/// Adds the products of `4 * quads` factors, `16 * done` after the first.
#[cube]
fn add_quads(
    columns: &Shared<[Quad]>,
    factors: &Shared<[Quad]>,
    places: &Places,
    done: u32,
    #[comptime] quads: usize,
    ring: &Cells<f32>,
    sums: &Cells<f32>,
) {
    #[unroll]
    for m in 0..quads {
        take(columns, places, done, comptime!(m + ahead(places.shift)), ring);
        let quarter = comptime!((m % 4 * places.factor_quarter + m / 4) as u32);
        let quad = factors[(places.factors + done + quarter) as usize];
        #[unroll]
        for j in 0..4usize {
            let factor = quad.extract(j);
            #[unroll]
            for i in 0..OUTPUTS {
                let column = ring.get(comptime!((4 * m + j + i + places.shift) % ROUND));
                sums.set(i, fma(factor, column, sums.get(i)));
            }
        }
    }
}

/// Adds the products of fewer than 16 factors, one by one: a factor of 0 in place of one that does not exist would make NaN of an
/// infinite column.
#[cube]
fn add_rest(
    columns: &Shared<[Quad]>,
    factors: &Shared<[Quad]>,
    places: &Places,
    done: u32,
    rest: u32,
    sums: &Cells<f32>,
) {
    let held = comptime!(4 * ahead(places.shift));
    let window = Cells::<f32>::new(ROUND, 0.0f32);
    #[unroll]
    for q in 0..comptime!(held / 4) {
        take(columns, places, done, q, &window);
    }
    for j in 0..rest {
        let next = comptime!((held / 4) as u32) + j / 4u32;
        let column = columns[(places.columns + done + place_of(next, places.column_quarter)) as usize];
        let at = places.factors + done + place_of(j / 4u32, places.factor_quarter);
        let factor = lane_of(factors[at as usize], j % 4u32);
        #[unroll]
        for i in 0..OUTPUTS {
            let sum = fma(factor, window.get(comptime!(i + places.shift)), sums.get(i));
            sums.set(i, sum);
        }
        #[unroll]
        for i in 0..comptime!(held - 1) {
            window.set(i, window.get(i + 1));
        }
        window.set(comptime!(held - 1), lane_of(column, j % 4u32));
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
pub(super) fn put_sums(columns: &mut Shared<[Quad]>, place: u32, sums: &Cells<f32>, #[comptime] quarter: usize) {
    #[unroll]
    for m in 0..4usize {
        let mut quad = Quad::new(0.0f32);
        #[unroll]
        for i in 0..4usize {
            quad.insert(i, sums.get(comptime!(4 * m + i)));
        }
        columns[(place + comptime!((m * quarter) as u32)) as usize] = quad;
    }
}
