//! The tile of a stem's input gradient, what it costs, and the strips of a plane that its tiles lie in.

use super::blocks::Plane;
use crate::conv3d::gemm::config::SUBGROUP;

/// How a cube's sums are shared out. Constants of this type are the ones that are tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubpixelTile {
    /// Blocks of positions of a cube's tile.
    pub tile_m: usize,
    /// Columns of a cube's tile, all of them a unit's own: channels of dx and positions of a block.
    pub columns: usize,
    /// Blocks of a unit; on matrix units, of a plane.
    pub rows: usize,
    /// Elements of dy's plane, of each channel, that shared memory holds.
    pub window: usize,
    /// Taps of a plane whose weights shared memory holds.
    pub taps: usize,
    /// Channels of dy in shared memory at a time.
    pub channels: usize,
    /// Rows, columns and terms of a fragment, 8 on Apple's simdgroups, 16 elsewhere; 0 for fp32
    /// multiply-adds.
    pub fragment: usize,
}

const fn tile(tile: [usize; 2], rows: usize, window: usize, taps: usize, channels: usize) -> SubpixelTile {
    let [tile_m, columns] = tile;
    SubpixelTile { tile_m, columns, rows, window, taps, channels, fragment: 0 }
}

/// Fragments of 16 (f16): 128 units, 16 KiB of shared memory, 16 sums in a unit. (7x7x7, stride 2 on an H200:
/// 1.28 ms where 256 blocks take 1.37 in planes of 128 and 1.98 in planes of 64.)
const SIXTEEN: SubpixelTile = matrix_tile(16, 128, 32, 256);
/// Fragments of 8 (f32): 128 units, 23 KiB, 16 sums.
const EIGHT: SubpixelTile = matrix_tile(8, 128, 32, 256);

const fn matrix_tile(fragment: usize, tile_m: usize, rows: usize, window: usize) -> SubpixelTile {
    SubpixelTile { tile_m, columns: 16, rows, window, taps: 64, channels: 16, fragment }
}

impl SubpixelTile {
    /// Every tile for multiply-adds.
    pub const ALL: [Self; 2] = [Self::M512N12, Self::M1024N4];
    /// 128 units, 11 KiB of shared memory, 48 sums in a unit: 64 bytes of shared memory read for 96
    /// operations. (7x7x7, stride 2 on an H200: 2.01 ms where 8 blocks of a unit take 2.30 and 6 take 2.08.)
    pub const M512N12: Self = tile([512, 12], 4, 896, 32, 2);
    /// 128 units, 12 KiB, 32 sums: 48 bytes for 64 operations. Stride 1. (3x3x3: 0.17 ms where 16 blocks of
    /// a unit take 0.21.)
    pub const M1024N4: Self = tile([1024, 4], 8, 1280, 64, 2);

    /// The tile for fragments of a shape.
    pub fn on_matrices(fragment: usize) -> Option<Self> {
        [EIGHT, SIXTEEN].into_iter().find(|tile| tile.fragment == fragment)
    }

    /// Units of a cube.
    pub fn units(&self) -> usize {
        self.tile_m / self.rows * if self.fragment == 0 { 1 } else { SUBGROUP }
    }

    /// Planes of a cube on matrix units.
    pub(super) fn planes(&self) -> usize {
        self.tile_m / self.rows
    }

    /// Bytes of shared memory of a cube whose stages' elements have `size` bytes.
    pub fn shared_bytes(&self, size: usize) -> usize {
        if self.fragment > 0 {
            let patches = self.planes() * self.fragment * self.fragment * 4;
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
    pub(super) fn vectors(&self) -> usize {
        self.columns / 4
    }

    /// Vectors of a stage's weights, a whole number for each unit.
    pub(super) fn stage_vectors(&self) -> usize {
        self.weight_reads() * self.units()
    }

    /// On matrix units: vectors of `width` elements from one block of the window to the next, its channels
    /// and 16 bytes that spread them over the banks.
    pub(super) fn row(&self, width: usize, size: usize) -> usize {
        (self.channels + 16 / size) / width
    }

    /// On matrix units: vectors of `width` channels of the window that a unit reads.
    pub(super) fn vector_reads(&self, width: usize) -> usize {
        self.window * self.channels / width / self.units()
    }

    /// Of each channel, elements of the window that a unit reads.
    pub(super) fn reads(&self) -> usize {
        self.window / self.units()
    }

    /// Vectors of the weights that a unit reads.
    pub(super) fn weight_reads(&self) -> usize {
        (self.taps * self.channels * self.vectors()).div_ceil(self.units())
    }
}

/// The strips of a plane: as many blocks of every row, and beyond them what their windows overlap, so that a
/// tap is one and the same distance for all blocks of a strip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Strips {
    /// Strips side by side.
    pub(super) count: usize,
    /// Blocks of a strip's row.
    pub(super) blocks: usize,
    /// Elements of a strip's row.
    pub(super) pitch: usize,
}

impl Strips {
    /// The fewest strips that cover the plane; none where the window of a tile does not fit.
    pub(super) fn of([height, width]: &Plane, tile: &SubpixelTile) -> Option<Self> {
        let (rows, rim) = (height.span(), width.span());
        let room = tile.window.checked_sub(tile.tile_m + rim)?;
        let longest = room.checked_div(rows).unwrap_or(width.blocks + rim);
        let most = longest.checked_sub(rim).filter(|most| *most > 0 && width.blocks > 0)?;
        let count = width.blocks.div_ceil(most);
        let blocks = width.blocks.div_ceil(count);
        Some(Self { count, blocks, pitch: blocks + rim })
    }

    /// Tiles of a strip.
    pub(super) fn tiles(&self, [height, _]: &Plane, tile: &SubpixelTile) -> usize {
        (height.blocks * self.pitch).div_ceil(tile.tile_m)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_share_out_evenly_within_apples_budget() {
        for tile in SubpixelTile::ALL {
            let units = tile.units();
            assert!((64..=1024).contains(&units), "{tile:?}: {units} units");
            assert!(tile.shared_bytes(4) <= 32 * 1024, "{tile:?}: {} bytes", tile.shared_bytes(4));
            // Read without a mask, and a bit for each of a unit's.
            assert!(tile.window.is_multiple_of(units) && tile.reads() <= 32, "{tile:?}");
            assert!(tile.columns.is_multiple_of(4), "{tile:?}");
        }
        for (tile, size) in [(EIGHT, 4), (SIXTEEN, 2)] {
            let (units, width) = (tile.units(), if tile.fragment == 8 { 4 } else { 16 / size });
            assert!((64..=1024).contains(&units), "{tile:?}: {units} units");
            assert!(tile.shared_bytes(size) <= 32 * 1024, "{tile:?}: {} bytes", tile.shared_bytes(size));
            assert_eq!(tile.vector_reads(width) * units * width, tile.window * tile.channels, "{tile:?}");
        }
    }
}
