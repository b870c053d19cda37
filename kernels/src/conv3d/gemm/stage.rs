//! The register-tiled product of two shared-memory stages, common to all passes: what [`super::config`]
//! draws.

use super::config::{RegisterTile, VECTOR, row_stride};
use cubecl::prelude::*;

/// Four neighbouring rows or columns of the product, at one term.
pub(crate) type Neighbours = Vector<f32, Const<4>>;

/// Extents of a gathered product and of its grid.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Extents {
    pub(super) m: u32,
    /// Channels of one group's result.
    pub(super) n: u32,
    /// Terms of the sum.
    pub(super) k: u32,
    /// Terms of one part of a split sum, a multiple of the stage's; K itself where the sum is not split.
    pub(super) part_k: u32,
    /// Channels of one group's source.
    pub(super) source_channels: u32,
    pub(super) tiles_m: usize,
    pub(super) tiles_n: usize,
    pub(super) groups: usize,
    /// Distance between the partials of two parts.
    pub(super) part_stride: usize,
    /// [`Activation::code`](crate::activation::Activation::code) of what is applied to the result.
    pub(super) activation: u32,
}

/// What a cube computes: its tile's first site and channel, its group, and its part's terms.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Share {
    pub(super) group: u32,
    pub(super) part: usize,
    pub(super) first_m: u32,
    pub(super) first_n: u32,
    pub(super) first_k: u32,
    pub(super) end_k: u32,
}

#[cube]
impl Extents {
    /// The share of a cube: channels fastest, so that neighbours read the same sites.
    pub(super) fn share(&self, cube: usize, #[comptime] tile_m: usize, #[comptime] tile_n: usize) -> Share {
        let in_n = cube % self.tiles_n;
        let rest = cube / self.tiles_n;
        let in_m = rest % self.tiles_m;
        let rest = rest / self.tiles_m;
        let part = rest / self.groups;
        let first_k = part as u32 * self.part_k;
        Share {
            group: (rest % self.groups) as u32,
            part,
            first_m: (in_m * tile_m) as u32,
            first_n: (in_n * tile_n) as u32,
            first_k,
            end_k: min(first_k + self.part_k, self.k),
        }
    }
}

/// Four values of a load. They travel as a sequence, not an array: drivers keep arrays of 16-bit numbers out
/// of registers.
#[cube]
fn neighbours<E: Float>(from: &Sequence<E>, #[comptime] load: usize) -> Neighbours {
    let mut values = Neighbours::empty();
    #[unroll]
    for i in 0..VECTOR {
        values.insert(i, f32::cast_from(*from.index(comptime!(load * VECTOR + i))));
    }
    values
}

/// Fills a stage with zeros, which the first turn of a loop multiplies while it reads the first terms: the
/// gather is in the kernel's text once.
#[cube]
pub(super) fn clear<S: Float, V: Size>(stage: &mut Shared<[Vector<S, V>]>, #[comptime] units: usize) {
    let mut at = UNIT_POS as usize;
    while at < stage.len() {
        stage[at] = Vector::new(S::from_int(0));
        at += units;
    }
}

/// Row of the tile that is row `i` of this unit.
#[cube]
pub(super) fn row_of(#[comptime] i: usize, #[comptime] tile: RegisterTile) -> u32 {
    let vector = UNIT_POS % comptime!((tile.tile_m / tile.rows) as u32);
    vector * VECTOR as u32 + comptime!((i / VECTOR * VECTOR * (tile.tile_m / tile.rows) + i % VECTOR) as u32)
}

/// Column of the tile that is column `j` of this unit.
#[cube]
pub(crate) fn column_of(#[comptime] j: usize, #[comptime] tile: RegisterTile) -> u32 {
    let vector = UNIT_POS / comptime!((tile.tile_m / tile.rows) as u32);
    vector * VECTOR as u32
        + comptime!((j / VECTOR * VECTOR * (tile.tile_n / tile.columns) + j % VECTOR) as u32)
}

/// Writes vectors that were read with lanes along terms: unit u holds term `u % tile_k`.
#[cube]
pub(super) fn write_along_terms<E: Float>(
    next: &Sequence<E>,
    stage: &mut Shared<[Neighbours]>,
    #[comptime] extent: usize,
    #[comptime] tile: RegisterTile,
) {
    let term = UNIT_POS as usize % tile.tile_k;
    #[unroll]
    for load in 0..comptime!(tile.loads(extent)) {
        let vector = UNIT_POS as usize / tile.tile_k + comptime!(load * (tile.units() / tile.tile_k));
        if comptime!(tile.divides(extent)) || vector < comptime!(extent / VECTOR) {
            stage[term * comptime!(row_stride(extent)) + vector] = neighbours(next, load);
        }
    }
}

/// Writes vectors that were read with lanes along rows, whole or element by element.
#[cube]
pub(super) fn write_along_rows<E: Float, R: Size>(
    next: &Sequence<Vector<E, R>>,
    stage: &mut Shared<[Neighbours]>,
    #[comptime] tile: RegisterTile,
) {
    let beside = R::value();
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_m)) {
        let element = UNIT_POS as usize + comptime!(load * tile.units());
        let k = element / comptime!(tile.tile_m / VECTOR);
        let mut values = Neighbours::empty();
        if comptime!(beside == VECTOR) {
            values = Neighbours::cast_from(*next.index(load));
        } else {
            #[unroll]
            for i in 0..VECTOR {
                let read = next.index(comptime!(load * VECTOR + i));
                values.insert(i, f32::cast_from(read.extract(0usize)));
            }
        }
        stage[k * comptime!(row_stride(tile.tile_m)) + element % comptime!(tile.tile_m / VECTOR)] = values;
    }
}

/// Adds the products of a stage to this unit's sums, terms in order.
#[cube]
pub(crate) fn multiply(
    rows: &Shared<[Neighbours]>,
    columns: &Shared<[Neighbours]>,
    sums: &mut Array<f32>,
    #[comptime] tile: RegisterTile,
    #[comptime] unroll: bool,
) {
    let row = UNIT_POS as usize % comptime!(tile.tile_m / tile.rows);
    let column = UNIT_POS as usize / comptime!(tile.tile_m / tile.rows);
    #[unroll(unroll)]
    for k in 0..tile.tile_k {
        let mut b = Array::<Neighbours>::new(comptime!(tile.columns / VECTOR));
        #[unroll]
        for j in 0..comptime!(tile.columns / VECTOR) {
            b[j] = columns[column
                + k * comptime!(row_stride(tile.tile_n))
                + comptime!(j * (tile.tile_n / tile.columns))];
        }
        #[unroll]
        for i in 0..comptime!(tile.rows / VECTOR) {
            let a =
                rows[row + k * comptime!(row_stride(tile.tile_m)) + comptime!(i * (tile.tile_m / tile.rows))];
            #[unroll]
            for r in 0..VECTOR {
                #[unroll]
                for j in 0..tile.columns {
                    let at = comptime!((i * VECTOR + r) * tile.columns + j);
                    let b = b[comptime!(j / VECTOR)].extract(comptime!(j % VECTOR));
                    sums[at] = fma(a.extract(r), b, sums[at]);
                }
            }
        }
    }
}
