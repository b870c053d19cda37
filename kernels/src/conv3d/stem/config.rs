//! The tile of a stem's input gradient, what it costs, and the strips of a plane that its tiles lie in.

use super::blocks::Plane;

/// How a cube's sums are shared out. Constants of this type are the ones that are tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StemTile {
    /// Blocks of positions of a cube's tile.
    pub tile_m: usize,
    /// Columns of a cube's tile, all of them a unit's own: channels of dx and positions of a block.
    pub columns: usize,
    /// Blocks of a unit.
    pub rows: usize,
    /// Elements of dy's plane, of each channel, that shared memory holds.
    pub window: usize,
    /// Taps of a plane whose weights shared memory holds.
    pub taps: usize,
    /// Channels of dy in shared memory at a time.
    pub channels: usize,
}

const fn tile(tile: [usize; 2], rows: usize, window: usize, taps: usize, channels: usize) -> StemTile {
    let [tile_m, columns] = tile;
    StemTile { tile_m, columns, rows, window, taps, channels }
}

impl StemTile {
    /// Every tile.
    pub const ALL: [Self; 2] = [Self::M512N12, Self::M1024N4];
    /// 128 units, 11 KiB of shared memory, 48 sums in a unit: 64 bytes of shared memory read for 96 operations.
    pub const M512N12: Self = tile([512, 12], 4, 896, 32, 2);
    /// 128 units, 12 KiB, 32 sums: 48 bytes for 64 operations. Stride 1.
    pub const M1024N4: Self = tile([1024, 4], 8, 1280, 64, 2);

    /// Units of a cube.
    pub fn units(&self) -> usize {
        self.tile_m / self.rows
    }

    /// Bytes of shared memory of a cube.
    pub fn shared_bytes(&self) -> usize {
        4 * self.channels * self.window + 16 * self.stage_vectors()
    }

    /// The name used in tables and reports.
    pub fn name(&self) -> String {
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

    /// Of each channel, elements of the window that a unit reads.
    pub(super) fn reads(&self) -> usize {
        self.window / self.units()
    }

    /// Vectors of the weights that a unit reads.
    pub(super) fn weight_reads(&self) -> usize {
        (self.taps * self.channels * self.vectors()).div_ceil(self.units())
    }
}

/// The strips of a plane: as many blocks of every row, and beyond them what their windows overlap, so that a tap is one and
/// the same distance for all blocks of a strip.
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
    pub(super) fn of([height, width]: &Plane, tile: &StemTile) -> Option<Self> {
        let (rows, rim) = (height.span(), width.span());
        let room = tile.window.checked_sub(tile.tile_m + rim)?;
        let longest = room.checked_div(rows).unwrap_or(width.blocks + rim);
        let most = longest.checked_sub(rim).filter(|most| *most > 0 && width.blocks > 0)?;
        let count = width.blocks.div_ceil(most);
        let blocks = width.blocks.div_ceil(count);
        Some(Self { count, blocks, pitch: blocks + rim })
    }

    /// Tiles of a strip.
    pub(super) fn tiles(&self, [height, _]: &Plane, tile: &StemTile) -> usize {
        (height.blocks * self.pitch).div_ceil(tile.tile_m)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_share_out_evenly_within_apples_budget() {
        for tile in StemTile::ALL {
            let units = tile.units();
            assert!((64..=1024).contains(&units), "{tile:?}: {units} units");
            assert!(tile.shared_bytes() <= 32 * 1024, "{tile:?}: {} bytes", tile.shared_bytes());
            // Read without a mask, and a bit for each of a unit's.
            assert!(tile.window.is_multiple_of(units) && tile.reads() <= 32, "{tile:?}");
            assert!(tile.columns.is_multiple_of(4), "{tile:?}");
        }
    }
}
