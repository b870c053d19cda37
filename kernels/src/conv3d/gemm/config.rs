//! The tile of a gathered product: how a cube shares it out, and what it costs.
//!
//! ```text
//!                    tile_n channels                a stage: tile_k rows (terms) of tile_m / 4 (tile_n / 4)
//!               +------------------------+            vectors of four neighbours, one vector of padding
//!               | weights                | tile_k   a unit:  rows x columns results in fma; its vector
//!               +------------------------+            i of rows is vector u + i * tile_m / rows of the tile
//!      tile_k   |   .      .      .    . |          a cube:  (tile_m / rows) * (tile_n / columns) units
//! +---------+   |                        |
//! | gathered|   |   .      .      .    . | tile_m sites
//! +---------+   +------------------------+
//! ```
//!
//! Per stage and cube: `(tile_m + tile_n) * tile_k` elements read from memory, `2 * tile_m * tile_n * tile_k`
//! operations; per term and unit `4 * (rows + columns)` bytes of shared memory read for `2 * rows * columns`
//! operations.

use crate::conv3d::problem::PaddingMode;

/// Tile of a register-tiled product. Constants of this type are the ones that are tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegisterTile {
    /// Sites of a cube's tile.
    pub tile_m: usize,
    /// Channels of a cube's tile.
    pub tile_n: usize,
    /// Terms of a stage.
    pub tile_k: usize,
    /// Sites of a unit.
    pub rows: usize,
    /// Channels of a unit.
    pub columns: usize,
}

/// Neighbouring rows or columns that travel together, from the gather to the registers.
pub(super) const VECTOR: usize = 4;

/// Vectors from one row of a stage to the next: odd, so that lanes along rows meet no bank twice.
pub(crate) fn row_stride(extent: usize) -> usize {
    (extent / VECTOR) | 1
}

const fn tile(tile_m: usize, tile_n: usize, tile_k: usize, rows: usize, columns: usize) -> RegisterTile {
    RegisterTile { tile_m, tile_n, tile_k, rows, columns }
}

impl RegisterTile {
    /// Every tile, the largest first.
    pub const ALL: [Self; 6] =
        [Self::M128N128, Self::M128N64, Self::M64N64, Self::M128N32, Self::M128N8, Self::M256N4];
    /// 256 units, 17 KiB of shared memory, 16 operations per byte from memory (f32).
    pub const M128N128: Self = tile(128, 128, 16, 8, 8);
    /// 128 units, 13 KiB, 10.7 operations per byte.
    pub const M128N64: Self = tile(128, 64, 16, 8, 8);
    /// 64 units, 9 KiB, 8 operations per byte.
    pub const M64N64: Self = tile(64, 64, 16, 8, 8);
    /// 64 units, 11 KiB, 6.4 operations per byte.
    pub const M128N32: Self = tile(128, 32, 16, 8, 8);
    /// 64 units, 9 KiB, 1.9 operations per byte: heads of few channels.
    pub const M128N8: Self = tile(128, 8, 16, 4, 4);
    /// 64 units, 26 KiB, 2 operations per byte: three or four channels.
    pub const M256N4: Self = tile(256, 4, 16, 4, 4);

    /// Units of a cube.
    pub fn units(&self) -> usize {
        (self.tile_m / self.rows) * (self.tile_n / self.columns)
    }

    /// Bytes of shared memory of a cube: the stages and the table of terms.
    pub fn shared_bytes(&self) -> usize {
        let stages = (self.stage_vectors(self.tile_m) + self.stage_vectors(self.tile_n)) * 16;
        stages + table_bytes(self.tile_m, self.tile_k)
    }

    /// The name used in tables and reports.
    pub fn name(&self) -> String {
        format!("{}x{}x{}", self.tile_m, self.tile_n, self.tile_k)
    }

    /// Vectors of a stage of `extent` rows or columns.
    pub(super) fn stage_vectors(&self, extent: usize) -> usize {
        self.tile_k * row_stride(extent)
    }

    /// Vectors of such a stage that a unit loads, the last not by all units.
    pub(crate) fn loads(&self, extent: usize) -> usize {
        (extent / VECTOR * self.tile_k).div_ceil(self.units())
    }

    /// Whether all units load the same number of them.
    pub(super) fn divides(&self, extent: usize) -> bool {
        self.loads(extent) * self.units() == extent / VECTOR * self.tile_k
    }
}

/// Terms (windows) that are divided out, each by one unit, and shared: one half is read while the other is
/// filled. Several stages of them, so that no plane is late at every barrier for having done it for all.
pub(super) fn shared_terms(tile_k: usize, padding: PaddingMode) -> usize {
    match padding {
        PaddingMode::Zeros => 128,
        // Entries are almost twice as long.
        PaddingMode::Replicate => 2 * tile_k,
    }
}

/// Bytes of the entries of terms (windows) and of a weight gradient's columns: an offset of at most 8 bytes
/// and a mask, of terms another offset, under replicate padding three coordinates.
fn table_bytes(columns: usize, tile_k: usize) -> usize {
    let bytes = |padding: PaddingMode, coordinates: usize| {
        shared_terms(tile_k, padding) * (20 + coordinates) + columns * (12 + coordinates) + 16
    };
    bytes(PaddingMode::Zeros, 0).max(bytes(PaddingMode::Replicate, 12))
}

/// Units of a plane.
pub(crate) const PLANE: usize = 32;

/// Tile of a product on matrix units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixTile {
    /// Sites of a cube's tile.
    pub tile_m: usize,
    /// Channels of a cube's tile.
    pub tile_n: usize,
    /// Terms of a stage.
    pub tile_k: usize,
    /// Sites of a plane.
    pub plane_m: usize,
    /// Channels of a plane.
    pub plane_n: usize,
    /// Rows, columns and terms of a fragment: 8 on Apple's simdgroups, 16 elsewhere.
    pub fragment: usize,
}

const fn matrix_tile(tile: [usize; 3], plane: [usize; 2], fragment: usize) -> MatrixTile {
    let ([tile_m, tile_n, tile_k], [plane_m, plane_n]) = (tile, plane);
    MatrixTile { tile_m, tile_n, tile_k, plane_m, plane_n, fragment }
}

/// Tiles for fragments of 16: 256 units and 31 KiB of shared memory (f16); 128 units, 22 KiB. (128x256x16
/// with 128 sums in a unit halves the gather per operation and is twice as slow on an H200: 14.5 ms where
/// 128x128x32 takes 7.1.)
const SIXTEEN: [MatrixTile; 2] =
    [matrix_tile([128, 128, 32], [32, 64], 16), matrix_tile([128, 64, 32], [64, 32], 16)];
/// Tiles for fragments of 8: 128 units and 20 KiB (f32); 128 units, 16 KiB. A unit holds 32 or 16 sums.
const EIGHT: [MatrixTile; 2] =
    [matrix_tile([64, 64, 32], [32, 32], 8), matrix_tile([64, 32, 32], [32, 16], 8)];

impl MatrixTile {
    /// The tiles for fragments of a shape.
    pub fn all(fragment: usize) -> &'static [Self] {
        match fragment {
            8 => &EIGHT,
            16 => &SIXTEEN,
            _ => &[],
        }
    }

    /// The tile for a weight gradient whose windows lie in runs: with half as many units where that is 128,
    /// 25 KiB. (f16, 3x1x1, 256 channels: 0.23 ms, 0.36 with planes of 32x64; 1x1x1, 512: 0.36 and 0.49.)
    pub(super) fn of_runs(self) -> Self {
        if self.units() > 128 { Self { plane_m: 2 * self.plane_m, ..self } } else { self }
    }

    /// Planes of a cube.
    pub fn planes(&self) -> usize {
        (self.tile_m / self.plane_m) * (self.tile_n / self.plane_n)
    }

    /// Units of a cube.
    pub fn units(&self) -> usize {
        self.planes() * PLANE
    }

    /// Bytes of shared memory for stages whose elements have `size` bytes: the largest of all passes.
    pub fn shared_bytes(&self, size: usize) -> usize {
        let gather = self.tile_m * self.run_bytes(size) + table_bytes(0, self.tile_k) + self.tile_n * 8;
        let sites = self.tile_k * (self.tile_m * size + 16) + table_bytes(self.tile_m, self.tile_k);
        let runs = if self.reads_runs_of_windows(size) { self.weight_run_bytes(size) } else { 0 };
        self.cube_bytes(gather.max(sites), size).max(runs)
    }

    /// Whether the weight gradient may read neighbouring windows of the source as one vector: its stage is
    /// then `tile_m` rows of windows, not `tile_k` rows of sites. It is longer and must fit an Apple GPU's 32
    /// KiB.
    pub(super) fn reads_runs_of_windows(&self, size: usize) -> bool {
        self.weight_run_bytes(size) <= 32 * 1024
    }

    fn weight_run_bytes(&self, size: usize) -> usize {
        self.cube_bytes(self.tile_m * self.run_bytes(size) + table_bytes(self.tile_m, self.tile_k), size)
    }

    /// Bytes of a cube whose sites' stage and tables take `sites` bytes.
    fn cube_bytes(&self, sites: usize, size: usize) -> usize {
        sites + self.tile_n * self.run_bytes(size) + self.planes() * self.fragment * self.fragment * 4
    }

    /// Bytes of a stage's row of terms, with its padding.
    fn run_bytes(&self, size: usize) -> usize {
        self.tile_k * size + 16
    }

    /// The name used in tables and reports.
    pub fn name(&self) -> String {
        format!("{}x{}x{}", self.tile_m, self.tile_n, self.tile_k)
    }

    /// Vectors of `width` elements from one row of `extent` elements of a stage to the next.
    pub(super) fn row(&self, extent: usize, width: usize, size: usize) -> usize {
        (extent + 16 / size) / width
    }

    /// Rows of the sites' stage and vectors from one to the next: rows of terms where neighbouring sites are
    /// read together (in the weight gradient, where they are not), else rows of sites.
    pub(super) fn site_stage(&self, along_terms: bool, width: usize, size: usize) -> (usize, usize) {
        let (rows, extent) =
            if along_terms { (self.tile_m, self.tile_k) } else { (self.tile_k, self.tile_m) };
        (rows, self.row(extent, width, size))
    }

    /// Rows of the channels' stage and vectors from one to the next: rows of channels where terms are read in
    /// runs, else rows of terms.
    pub(super) fn channel_stage(&self, runs: bool, width: usize, size: usize) -> (usize, usize) {
        let (rows, extent) = if runs { (self.tile_n, self.tile_k) } else { (self.tile_k, self.tile_n) };
        (rows, self.row(extent, width, size))
    }

    /// Sites (of which `beside` neighbours travel together) that a unit reads, so that a term's place is
    /// looked up once for all of them.
    pub(super) fn sites(&self, width: usize, beside: usize) -> usize {
        if beside == 1 && self.loads(self.tile_m, width).is_multiple_of(2) { 2 } else { 1 }
    }

    /// Vectors that a unit loads of a stage of `rows` rows.
    pub(super) fn loads(&self, rows: usize, width: usize) -> usize {
        (rows * self.tile_k / width).div_ceil(self.units())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_share_out_evenly_within_apples_budget() {
        for tile in RegisterTile::ALL {
            let units = tile.units();
            assert!((64..=1024).contains(&units), "{tile:?}: {units} units");
            assert!(tile.shared_bytes() <= 32 * 1024, "{tile:?}: {} bytes", tile.shared_bytes());
            // A unit keeps its sites and its term through all stages.
            assert!(
                units.is_multiple_of(tile.tile_m / VECTOR) && units.is_multiple_of(tile.tile_k),
                "{tile:?}"
            );
            assert!(tile.divides(tile.tile_m), "{tile:?}");
        }
    }

    #[test]
    fn matrix_tiles_share_out_evenly_within_apples_budget() {
        for (tile, size) in SIXTEEN.iter().map(|tile| (tile, 2)).chain(EIGHT.iter().map(|tile| (tile, 4))) {
            let units = tile.units();
            assert!((64..=1024).contains(&units) && units >= tile.tile_k, "{tile:?}: {units} units");
            assert!(tile.shared_bytes(size) <= 32 * 1024, "{tile:?}: {} bytes", tile.shared_bytes(size));
            assert!(units.is_multiple_of(tile.tile_m), "{tile:?}: a unit keeps its site");
            let width = 16 / size;
            for (tile, extent) in
                [*tile, tile.of_runs()].iter().flat_map(|tile| [(tile, tile.tile_m), (tile, tile.tile_n)])
            {
                let read = tile.loads(extent, width) * tile.units() * width;
                assert_eq!(read, extent * tile.tile_k, "{tile:?}");
            }
        }
    }
}
