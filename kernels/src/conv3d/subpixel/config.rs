//! The tile of the sub-pixel input gradient, and what it costs.

use crate::conv3d::gemm::config::SUBGROUP;

/// The work of a threadgroup. The constants of this type are the tiles that are tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SubpixelTile {
    /// Blocks of positions of a threadgroup's tile (the product's M).
    pub tile_m: usize,
    /// Columns of a threadgroup's tile (the product's N), all of them computed by each thread: channels of dx
    /// times phases of a block.
    pub columns: usize,
    /// Blocks of a thread; with MMA, of a subgroup.
    pub rows: usize,
    /// Elements of a frame of dy, per channel, in shared memory.
    pub window: usize,
    /// Window taps whose weights shared memory holds.
    pub taps: usize,
    /// Channels of dy per stage.
    pub channels: usize,
    /// Rows, columns and K of an MMA fragment, 8 on Apple's simdgroups, 16 elsewhere; 0 for fp32 FMAs.
    pub fragment: usize,
}

const fn tile(tile: [usize; 2], rows: usize, window: usize, taps: usize, channels: usize) -> SubpixelTile {
    let [tile_m, columns] = tile;
    SubpixelTile { tile_m, columns, rows, window, taps, channels, fragment: 0 }
}

/// Fragments of 16 (f16): 128 threads, 16 KiB of shared memory, 16 accumulators per thread.
const MMA_16: SubpixelTile = mma_tile(16, 128, 32, 256);
/// Fragments of 8 (f32): 128 threads, 23 KiB, 16 accumulators.
const MMA_8: SubpixelTile = mma_tile(8, 128, 32, 256);

const fn mma_tile(fragment: usize, tile_m: usize, rows: usize, window: usize) -> SubpixelTile {
    SubpixelTile { tile_m, columns: 16, rows, window, taps: 64, channels: 16, fragment }
}

impl SubpixelTile {
    /// Every tile for FMAs.
    pub const ALL: [Self; 2] = [Self::M512N12, Self::M1024N4];
    /// 128 threads, 11 KiB of shared memory, 48 accumulators per thread: 64 bytes from shared memory per 96
    /// FLOP.
    pub const M512N12: Self = tile([512, 12], 4, 896, 32, 2);
    /// 128 threads, 12 KiB, 32 accumulators: 48 bytes per 64 FLOP. For stride 1.
    pub const M1024N4: Self = tile([1024, 4], 8, 1280, 64, 2);

    /// The tile for MMA fragments of a size.
    pub fn with_fragment(fragment: usize) -> Option<Self> {
        [MMA_8, MMA_16].into_iter().find(|tile| tile.fragment == fragment)
    }

    /// Threads of a threadgroup.
    pub fn threads(&self) -> usize {
        self.tile_m / self.rows * if self.fragment == 0 { 1 } else { SUBGROUP }
    }

    /// Subgroups of a threadgroup with MMA.
    pub(super) fn subgroups(&self) -> usize {
        self.tile_m / self.rows
    }

    /// Bytes of shared memory of a threadgroup whose stage elements have `size` bytes.
    pub fn shared_bytes(&self, size: usize) -> usize {
        if self.fragment > 0 {
            let patches = self.subgroups() * self.fragment * self.fragment * 4;
            return self.window * (self.channels * size + 16) + patches;
        }
        4 * self.channels * self.window + 16 * self.stage_vectors()
    }

    /// The name used in tables and reports.
    pub fn name(&self) -> String {
        if self.fragment > 0 {
            return format!("matrix_{}x{}", self.tile_m, self.columns);
        }
        format!("{}x{}", self.tile_m, self.columns)
    }

    /// Vectors of four neighbouring columns.
    pub(super) fn column_vectors(&self) -> usize {
        self.columns / 4
    }

    /// Vectors of a stage's weights, rounded up to the same number for every thread.
    pub(super) fn stage_vectors(&self) -> usize {
        self.weight_loads() * self.threads()
    }

    /// With MMA: vectors of `width` elements from one block of the window to the next. 16 bytes of padding
    /// avoid bank conflicts.
    pub(super) fn block_pitch(&self, width: usize, size: usize) -> usize {
        (self.channels + 16 / size) / width
    }

    /// With MMA: vectors of `width` channels of the window that each thread loads.
    pub(super) fn vector_loads(&self, width: usize) -> usize {
        self.window * self.channels / width / self.threads()
    }

    /// Elements of the window that each thread loads, per channel.
    pub(super) fn loads(&self) -> usize {
        self.window / self.threads()
    }

    /// Vectors of weights that each thread loads.
    pub(super) fn weight_loads(&self) -> usize {
        (self.taps * self.channels * self.column_vectors()).div_ceil(self.threads())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_divide_evenly_within_apples_budget() {
        for tile in SubpixelTile::ALL {
            let threads = tile.threads();
            assert!((64..=1024).contains(&threads), "{tile:?}: {threads} threads");
            assert!(tile.shared_bytes(4) <= 32 * 1024, "{tile:?}: {} bytes", tile.shared_bytes(4));
            // Loaded without a mask for the end of the window, and one bit of a mask per load.
            assert!(tile.window.is_multiple_of(threads) && tile.loads() <= 32, "{tile:?}");
            assert!(tile.columns.is_multiple_of(4), "{tile:?}");
        }
        for (tile, size) in [(MMA_8, 4), (MMA_16, 2)] {
            let (threads, width) = (tile.threads(), if tile.fragment == 8 { 4 } else { 16 / size });
            assert!((64..=1024).contains(&threads), "{tile:?}: {threads} threads");
            assert!(tile.shared_bytes(size) <= 32 * 1024, "{tile:?}: {} bytes", tile.shared_bytes(size));
            assert_eq!(tile.vector_loads(width) * threads * width, tile.window * tile.channels, "{tile:?}");
        }
    }
}
