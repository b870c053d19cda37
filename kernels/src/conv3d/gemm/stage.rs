//! The GEMM of two shared-memory stages with fp32 multiply-adds, common to all passes, and the assignment of
//! tiles to threadgroups. [`super::config`] draws the tile and counts its bytes and operations.

use super::config::{RegisterTile, VECTOR, row_stride};
use cubecl::prelude::*;

/// Four adjacent rows or columns of a stage at one K index.
pub(crate) type F32x4 = Vector<f32, Const<4>>;

/// M, N, K of one group's GEMM and its grid: tiles, groups and split-K slices.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct GemmShape {
    pub(super) m: u32,
    /// Channels of one group's result.
    pub(super) n: u32,
    /// Length of the sum.
    pub(super) k: u32,
    /// K indices of a split-K slice, a multiple of `tile_k`; at least K where the sum is not split.
    pub(super) slice_k: u32,
    /// Channels of one group's source.
    pub(super) source_channels: u32,
    pub(super) tiles_m: usize,
    pub(super) tiles_n: usize,
    pub(super) groups: usize,
    /// Distance between the partial results of two slices.
    pub(super) slice_stride: usize,
    /// [`Activation::code`](crate::activation::Activation::code) of the epilogue.
    pub(super) activation: u32,
}

/// The work of a threadgroup: its group, its split-K slice, its tile's first row and column, and its K range.
#[derive(CubeType, Clone, Copy)]
pub(super) struct WorkTile {
    pub(super) group: u32,
    pub(super) slice: usize,
    pub(super) first_m: u32,
    pub(super) first_n: u32,
    pub(super) first_k: u32,
    pub(super) end_k: u32,
}

#[cube]
impl GemmShape {
    /// The work of a threadgroup. N fastest, so that adjacent threadgroups read the same rows.
    pub(super) fn work_tile(
        &self,
        threadgroup: usize,
        #[comptime] tile_m: usize,
        #[comptime] tile_n: usize,
    ) -> WorkTile {
        let in_n = threadgroup % self.tiles_n;
        let rest = threadgroup / self.tiles_n;
        let in_m = rest % self.tiles_m;
        let rest = rest / self.tiles_m;
        let slice = rest / self.groups;
        let first_k = slice as u32 * self.slice_k;
        WorkTile {
            group: (rest % self.groups) as u32,
            slice,
            first_m: (in_m * tile_m) as u32,
            first_n: (in_n * tile_n) as u32,
            first_k,
            end_k: min(first_k + self.slice_k, self.k),
        }
    }
}

/// The `at`-th four values that a thread has loaded one by one. A sequence, not an array: drivers do not keep
/// arrays of 16-bit numbers in registers.
#[cube]
fn four_values<E: Float, R: Size>(from: &Sequence<Vector<E, R>>, #[comptime] at: usize) -> F32x4 {
    let mut values = F32x4::empty();
    #[unroll]
    for i in 0..VECTOR {
        values.insert(i, f32::cast_from(from.index(comptime!(at * VECTOR + i)).extract(0usize)));
    }
    values
}

/// Zeroes a stage. The first iteration of the K loop multiplies the zeros while it loads the first stage:
/// there is no prologue, so the loads are in the kernel once.
#[cube]
pub(super) fn zero_stage<S: Float, V: Size>(stage: &mut Shared<[Vector<S, V>]>, #[comptime] threads: usize) {
    let mut at = UNIT_POS as usize;
    while at < stage.len() {
        stage[at] = Vector::new(S::from_int(0));
        at += threads;
    }
}

/// The tile's row that is row `i` of this thread.
#[cube]
pub(super) fn row_of(#[comptime] i: usize, #[comptime] tile: RegisterTile) -> u32 {
    let vector = UNIT_POS % comptime!((tile.tile_m / tile.rows) as u32);
    vector * VECTOR as u32 + comptime!((i / VECTOR * VECTOR * (tile.tile_m / tile.rows) + i % VECTOR) as u32)
}

/// The tile's column that is column `j` of this thread.
#[cube]
pub(crate) fn column_of(j: usize, #[comptime] tile: RegisterTile) -> u32 {
    let vector = UNIT_POS / comptime!((tile.tile_m / tile.rows) as u32);
    let vectors = comptime!(VECTOR * (tile.tile_n / tile.columns));
    vector * VECTOR as u32 + (j / VECTOR * vectors + j % VECTOR) as u32
}

/// The vector along M or N that is a thread's `load`-th with lanes along K: thread t holds K index `t %
/// tile_k`.
#[cube]
pub(super) fn vector_along_k(load: usize, #[comptime] tile: RegisterTile) -> usize {
    UNIT_POS as usize / tile.tile_k + load * comptime!(tile.threads() / tile.tile_k)
}

/// Stores a thread's `load`-th vector with lanes along K, the `at`-th four values of `next`.
#[cube]
pub(super) fn store_vector_along_k<E: Float, R: Size>(
    next: &Sequence<Vector<E, R>>,
    #[comptime] at: usize,
    load: usize,
    stage: &mut Shared<[F32x4]>,
    #[comptime] extent: usize,
    #[comptime] tile: RegisterTile,
) {
    let k = UNIT_POS as usize % tile.tile_k;
    let vector = vector_along_k(load, tile);
    if comptime!(tile.divides(extent)) || vector < comptime!(extent / VECTOR) {
        stage[k * comptime!(row_stride(extent)) + vector] = four_values(next, at);
    }
}

/// Stores a thread's `load`-th vector with lanes along M, the `at`-th of `next`: as a vector or element by
/// element.
#[cube]
pub(super) fn store_vector_along_m<E: Float, R: Size>(
    next: &Sequence<Vector<E, R>>,
    #[comptime] at: usize,
    load: usize,
    stage: &mut Shared<[F32x4]>,
    #[comptime] tile: RegisterTile,
) {
    let source_width = R::value();
    let element = UNIT_POS as usize + load * comptime!(tile.threads());
    let k = element / comptime!(tile.tile_m / VECTOR);
    let mut values = F32x4::empty();
    if comptime!(source_width == VECTOR) {
        values = F32x4::cast_from(*next.index(at));
    } else {
        #[unroll]
        for i in 0..VECTOR {
            let value = next.index(comptime!(at * VECTOR + i));
            values.insert(i, f32::cast_from(value.extract(0usize)));
        }
    }
    stage[k * comptime!(row_stride(tile.tile_m)) + element % comptime!(tile.tile_m / VECTOR)] = values;
}

/// Adds the products of a stage to this thread's sums, in the order of K.
#[cube]
pub(crate) fn multiply(
    rows: &Shared<[F32x4]>,
    columns: &Shared<[F32x4]>,
    sums: &mut Array<f32>,
    #[comptime] tile: RegisterTile,
    #[comptime] unroll: bool,
) {
    let row = UNIT_POS as usize % comptime!(tile.tile_m / tile.rows);
    let column = UNIT_POS as usize / comptime!(tile.tile_m / tile.rows);
    #[unroll(unroll)]
    for k in 0..tile.tile_k {
        let mut b = Array::<F32x4>::new(comptime!(tile.columns / VECTOR));
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
