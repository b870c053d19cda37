//! The tile of a stem's input gradient, what it costs, and the strips of a plane that its tiles lie in.

use super::blocks::Plane;

/// Channels of dy in shared memory at a time.
pub(super) const CHANNELS: usize = 4;

/// Blocks of positions whose channels a unit reads before it waits for them.
pub(super) const READS: usize = 2;

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
}

impl StemTile {
    /// Every tile.
    pub const ALL: [Self; 2] = [Self::M512N12, Self::M1024N4];
    /// 64 units, 21 KiB of shared memory, 96 sums in a unit: 44 bytes of shared memory read for 192 operations.
    pub const M512N12: Self = Self { tile_m: 512, columns: 12, rows: 8, window: 896, taps: 36 };
    /// 64 units, 24 KiB, 64 sums: 80 bytes for 128 operations. Stride 1.
    pub const M1024N4: Self = Self { tile_m: 1024, columns: 4, rows: 16, window: 1280, taps: 64 };

    /// Units of a cube.
    pub fn units(&self) -> usize {
        self.tile_m / self.rows
    }

    /// Bytes of shared memory of a cube.
    pub fn shared_bytes(&self) -> usize {
        4 * CHANNELS * (self.window + self.taps * self.columns)
    }

    /// The name used in tables and reports.
    pub fn name(&self) -> String {
        format!("{}x{}", self.tile_m, self.columns)
    }

    /// Vectors of four neighbouring columns.
    pub(super) fn vectors(&self) -> usize {
        self.columns / 4
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
    /// Elements of dy that a tile's taps reach.
    pub(super) reach: usize,
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
        let pitch = blocks + rim;
        Some(Self { count, blocks, pitch, reach: tile.tile_m + rows * pitch + rim })
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
            // A turn of the loop that reads a window writes as much of it.
            assert!(tile.window.is_multiple_of(READS * units), "{tile:?}");
            assert!(tile.columns.is_multiple_of(4), "{tile:?}");
        }
    }
}
