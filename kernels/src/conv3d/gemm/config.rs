//! Tiles of the gathered GEMM: what a threadgroup computes, and its cost.
//!
//! ```text
//!                    tile_n columns
//!               +------------------------+
//!               | weight                 | tile_k    a stage:       tile_k rows of tile_m / 4 (tile_n / 4)
//!               +------------------------+                          vectors of four elements, odd pitch
//!      tile_k   |   .      .      .    . |           a thread:      rows x columns results; its row vector i
//! +---------+   |                        |                          is vector t + i * tile_m / rows
//! | source  |   |   .      .      .    . | tile_m    a threadgroup: (tile_m / rows) * (tile_n / columns)
//! +---------+   +------------------------+ rows                     threads
//! ```
//!
//! Per stage and threadgroup: `(tile_m + tile_n) * tile_k` elements loaded from memory for `2 * tile_m *
//! tile_n * tile_k` FLOP. Per K index and thread: `4 * (rows + columns)` bytes loaded from shared memory for
//! `2 * rows * columns` FLOP.

use super::tap_check::TapCheck;

/// Tile of a register-tiled GEMM. The constants of this type are the tested tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct RegisterTile {
    /// Rows (output positions) of a threadgroup.
    pub tile_m: usize,
    /// Columns (channels) of a threadgroup.
    pub tile_n: usize,
    /// K indices of a stage.
    pub tile_k: usize,
    /// Rows of a thread.
    pub rows: usize,
    /// Columns of a thread.
    pub columns: usize,
}

/// Adjacent rows or columns in one vector, in shared memory and registers.
pub(super) const VECTOR: usize = 4;

/// Pitch of a stage in vectors. Odd, which avoids bank conflicts for lanes along K.
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
    /// 256 threads, 21 KiB of shared memory, 16 FLOP per byte from memory (f32).
    pub const M128N128: Self = tile(128, 128, 16, 8, 8);
    /// 128 threads, 15 KiB, 10.7 FLOP per byte.
    pub const M128N64: Self = tile(128, 64, 16, 8, 8);
    /// 64 threads, 10 KiB, 8 FLOP per byte.
    pub const M64N64: Self = tile(64, 64, 16, 8, 8);
    /// 64 threads, 12 KiB, 6.4 FLOP per byte.
    pub const M128N32: Self = tile(128, 32, 16, 8, 8);
    /// 64 threads, 12 KiB, 1.9 FLOP per byte: 5 to 8 channels.
    pub const M128N8: Self = tile(128, 8, 16, 4, 4);
    /// 64 threads, 25 KiB, 2 FLOP per byte: up to 4 channels.
    pub const M256N4: Self = tile(256, 4, 16, 4, 4);

    /// Threads of a threadgroup.
    pub fn threads(&self) -> usize {
        (self.tile_m / self.rows) * (self.tile_n / self.columns)
    }

    /// Bytes of shared memory: the stages, the index tables, and (without prefetch) four results of each
    /// thread where these do not pass through the stage.
    pub fn shared_bytes(&self) -> usize {
        let stages = (self.stage_vectors(self.tile_m) + self.stage_vectors(self.tile_n)) * 16;
        let table = table_bytes(self.tile_m, |check| table_entries(self.tile_k, check));
        let results = if self.columns == VECTOR { 4 * VECTOR * self.threads() } else { 0 };
        stages + table + results
    }

    /// Adjacent rows of each thread whose results fit the stage of the rows (M) together; of a thread of four
    /// columns, whose results have memory of their own, one.
    pub(super) fn rows_at_once(&self) -> usize {
        if self.columns == VECTOR {
            return 1;
        }
        (self.stage_vectors(self.tile_m) * VECTOR / (self.columns * self.threads())).min(VECTOR)
    }

    /// The name used in tables and reports.
    pub fn name(&self) -> String {
        format!("{}x{}x{}", self.tile_m, self.tile_n, self.tile_k)
    }

    /// Vectors of a stage of `extent` rows or columns.
    pub(super) fn stage_vectors(&self, extent: usize) -> usize {
        self.tile_k * row_stride(extent)
    }

    /// Vectors of such a stage that a thread loads, rounded up.
    pub(crate) fn loads(&self, extent: usize) -> usize {
        (extent / VECTOR * self.tile_k).div_ceil(self.threads())
    }

    /// Whether all threads load the same number of them.
    pub(super) fn divides(&self, extent: usize) -> bool {
        self.loads(extent) * self.threads() == extent / VECTOR * self.tile_k
    }
}

/// Entries of the K index table, of which one half is read while the other is filled. Several stages' worth
/// with masks, so that filling does not delay the same subgroup at every barrier.
pub(super) fn table_entries(tile_k: usize, check: TapCheck) -> usize {
    match check {
        TapCheck::Masks => 128,
        // Entries are almost twice as large.
        _ => 2 * tile_k,
    }
}

/// Bytes of the K index table of `entries` and of a weight gradient's table of `rows` M indices. An entry has
/// an offset of at most 8 bytes and a mask; in the K table a second offset; without masks three coordinates.
fn table_bytes(rows: usize, entries: impl Fn(TapCheck) -> usize) -> usize {
    let bytes = |check: TapCheck, coordinates: usize| {
        entries(check) * (20 + coordinates) + rows * (12 + coordinates) + 16
    };
    bytes(TapCheck::Masks, 0).max(bytes(TapCheck::Clamp, 12))
}

/// Threads of a subgroup.
pub(crate) const SUBGROUP: usize = 32;

/// Tile of a GEMM on matrix units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct MatrixTile {
    /// Rows (output positions) of a threadgroup.
    pub tile_m: usize,
    /// Columns (channels) of a threadgroup.
    pub tile_n: usize,
    /// K indices of a stage.
    pub tile_k: usize,
    /// Rows of a subgroup.
    pub subgroup_m: usize,
    /// Columns of a subgroup.
    pub subgroup_n: usize,
    /// M, N and K of a fragment: 8 for Apple's simdgroup matrices, 16 elsewhere.
    pub fragment: usize,
}

const fn matrix_tile(tile: [usize; 3], subgroup: [usize; 2], fragment: usize) -> MatrixTile {
    let ([tile_m, tile_n, tile_k], [subgroup_m, subgroup_n]) = (tile, subgroup);
    MatrixTile { tile_m, tile_n, tile_k, subgroup_m, subgroup_n, fragment }
}

/// Tiles for fragments of 16: 256 threads and 31 KiB of shared memory (f16); 128 threads, 22 KiB. A thread
/// holds 64 sums; with 128 (128x256x16) the kernel is twice as slow.
const SIXTEEN: [MatrixTile; 2] =
    [matrix_tile([128, 128, 32], [32, 64], 16), matrix_tile([128, 64, 32], [64, 32], 16)];
/// Tiles for fragments of 8: 128 threads and 20 KiB (f32); 128 threads, 16 KiB. A thread holds 32 or 16 sums.
const EIGHT: [MatrixTile; 2] =
    [matrix_tile([64, 64, 16], [32, 32], 8), matrix_tile([64, 32, 16], [32, 16], 8)];

impl MatrixTile {
    /// The tiles for a fragment size, the largest first.
    pub fn all(fragment: usize) -> &'static [Self] {
        match fragment {
            8 => &EIGHT,
            16 => &SIXTEEN,
            _ => &[],
        }
    }

    /// The tile for the weight gradient with contiguous output positions: half as many, larger subgroups, but
    /// at least 128 threads; 25 KiB. 1.4 to 1.6 times as fast.
    pub(super) fn for_contiguous_weight(self) -> Self {
        if self.threads() > 128 { Self { subgroup_m: 2 * self.subgroup_m, ..self } } else { self }
    }

    /// Subgroups of a threadgroup.
    pub fn subgroups(&self) -> usize {
        (self.tile_m / self.subgroup_m) * (self.tile_n / self.subgroup_n)
    }

    /// Threads of a threadgroup.
    pub fn threads(&self) -> usize {
        self.subgroups() * SUBGROUP
    }

    /// Bytes of shared memory for stage elements of `size` bytes: the largest of all passes.
    pub fn shared_bytes(&self, size: usize) -> usize {
        let k_major = self.tile_m * self.k_row_bytes(size) + self.table_bytes(0) + self.tile_n * 8;
        let m_major = self.tile_k * (self.tile_m * size + 16) + self.table_bytes(self.tile_m);
        let contiguous =
            if self.fits_contiguous_weight(size) { self.contiguous_weight_bytes(size) } else { 0 };
        self.threadgroup_bytes(k_major.max(m_major), size).max(contiguous)
    }

    /// Whether the weight gradient may load vectors of adjacent positions of the source. Its stage is then
    /// K-major, which is larger and must fit the 32 KiB of an Apple GPU.
    pub(super) fn fits_contiguous_weight(&self, size: usize) -> bool {
        self.contiguous_weight_bytes(size) <= 32 * 1024
    }

    fn contiguous_weight_bytes(&self, size: usize) -> usize {
        self.threadgroup_bytes(self.tile_m * self.k_row_bytes(size) + self.table_bytes(self.tile_m), size)
    }

    fn table_bytes(&self, rows: usize) -> usize {
        table_bytes(rows, |check| self.table_entries(check))
    }

    /// Entries of the K index table: at least 32 in a half.
    pub(super) fn table_entries(&self, check: TapCheck) -> usize {
        table_entries(self.tile_k, check).max(64)
    }

    /// Entries of the K index table of a kernel whose loads are behind branches or not.
    pub(super) fn k_entries(&self, check: TapCheck, branches: bool) -> usize {
        if branches { table_entries(self.tile_k, check) } else { self.table_entries(check) }
    }

    /// Bytes of a threadgroup whose source stage and index tables take `source` bytes.
    fn threadgroup_bytes(&self, source: usize, size: usize) -> usize {
        source + self.tile_n * self.k_row_bytes(size) + self.subgroups() * self.fragment * self.fragment * 4
    }

    /// Bytes of a row of a K-major stage, with its padding.
    fn k_row_bytes(&self, size: usize) -> usize {
        self.tile_k * size + 16
    }

    /// The name used in tables and reports.
    pub fn name(&self) -> String {
        format!("{}x{}x{}", self.tile_m, self.tile_n, self.tile_k)
    }

    /// Pitch of a stage with rows of `extent` elements, in vectors of `width`: 16 bytes of padding avoid bank
    /// conflicts.
    pub(crate) fn row(&self, extent: usize, width: usize, size: usize) -> usize {
        (extent + 16 / size) / width
    }

    /// Rows and pitch of the source's stage: `tile_m` rows of K (K-major) or `tile_k` rows of M.
    pub(super) fn source_stage(&self, k_major: bool, width: usize, size: usize) -> (usize, usize) {
        let (rows, extent) = if k_major { (self.tile_m, self.tile_k) } else { (self.tile_k, self.tile_m) };
        (rows, self.row(extent, width, size))
    }

    /// Rows and pitch of the channels' stage: `tile_n` rows of K (K-major) or `tile_k` rows of N.
    pub(super) fn channel_stage(&self, k_major: bool, width: usize, size: usize) -> (usize, usize) {
        let (rows, extent) = if k_major { (self.tile_n, self.tile_k) } else { (self.tile_k, self.tile_n) };
        (rows, self.row(extent, width, size))
    }

    /// Output positions (or vectors of `source_width` of them) that a thread loads per K index, so that one
    /// table lookup serves all of them.
    pub(super) fn positions_per_thread(&self, width: usize, source_width: usize) -> usize {
        if source_width == 1 && self.loads(self.tile_m, width).is_multiple_of(2) { 2 } else { 1 }
    }

    /// Vectors that a thread loads of a stage of `rows` rows (M or N).
    pub(super) fn loads(&self, rows: usize, width: usize) -> usize {
        (rows * self.tile_k / width).div_ceil(self.threads())
    }
}

/// The tile of a GEMM, and what multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GemmTile {
    /// fp32 multiply-adds.
    Fma(RegisterTile),
    /// Matrix units.
    Mma(MatrixTile),
}

impl GemmTile {
    /// M, N and K of a threadgroup's stage.
    pub(super) fn shape(&self) -> [usize; 3] {
        match self {
            Self::Fma(tile) => [tile.tile_m, tile.tile_n, tile.tile_k],
            Self::Mma(tile) => [tile.tile_m, tile.tile_n, tile.tile_k],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn register_tiles_divide_evenly_within_32_kib() {
        for tile in RegisterTile::ALL {
            let threads = tile.threads();
            assert!((64..=1024).contains(&threads), "{tile:?}: {threads} threads");
            assert!(tile.shared_bytes() <= 32 * 1024, "{tile:?}: {} bytes", tile.shared_bytes());
            // A thread loads the same positions and the same K index of every stage.
            assert!(
                threads.is_multiple_of(tile.tile_m / VECTOR) && threads.is_multiple_of(tile.tile_k),
                "{tile:?}"
            );
            assert!(tile.divides(tile.tile_m), "{tile:?}");
        }
    }

    #[test]
    fn matrix_tiles_divide_evenly_within_32_kib() {
        for (tile, size) in SIXTEEN.iter().map(|tile| (tile, 2)).chain(EIGHT.iter().map(|tile| (tile, 4))) {
            let threads = tile.threads();
            assert!((64..=1024).contains(&threads) && threads >= tile.tile_k, "{tile:?}: {threads} threads");
            assert!(tile.shared_bytes(size) <= 32 * 1024, "{tile:?}: {} bytes", tile.shared_bytes(size));
            assert!(threads.is_multiple_of(tile.tile_m), "{tile:?}: a thread keeps its position");
            let width = 16 / size;
            for (tile, extent) in [*tile, tile.for_contiguous_weight()]
                .iter()
                .flat_map(|tile| [(tile, tile.tile_m), (tile, tile.tile_n)])
            {
                let read = tile.loads(extent, width) * tile.threads() * width;
                assert_eq!(read, extent * tile.tile_k, "{tile:?}");
            }
        }
    }
}
