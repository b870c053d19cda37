//! The tile of a shifted product, and the strips of a plane that its tiles lie in.

use crate::conv3d::gemm::config::SUBGROUP;
use crate::conv3d::gemm::gather::Gather;

/// Channels of the source in shared memory at a time.
pub(super) const CHANNELS: usize = 16;

/// Fragments that leave a plane side by side where planes are runs of sites.
pub(super) const BESIDE: usize = 2;

/// How a cube's products are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowTile {
    /// Sites of a cube's tile.
    pub tile_m: usize,
    /// Channels of a cube's tile.
    pub tile_n: usize,
    /// Sites of a plane.
    pub plane_m: usize,
    /// Channels of a plane.
    pub plane_n: usize,
    /// Elements of the source's plane, of each channel, that shared memory holds.
    pub window: usize,
    /// Rows, columns and terms of a fragment: 8 on Apple's simdgroups, 16 elsewhere.
    pub fragment: usize,
}

/// Fragments of 16 (f16): 128 units, of which each holds 128 sums; at most 25 KiB of shared memory. On an
/// H200 (forward, 256 -> 256, 43x62x106 and 64 -> 128, 16x56x56, both 3x3x3): 3.3 and 0.14 ms, 3.6 and 0.15;
/// 64x256 takes 3.2 and 0.22, 64x128 3.7 and 0.15, with 256 units 128x256 3.6 and 0.26, 256x128 3.6 and 0.17,
/// 128x64 with planes of 64x32 sums 5.7 and 0.21. Of results with few channels a unit holds 64 sums: 32 ->
/// 32, 128x128x128: 1.6 ms, 256x64 2.3, 256x16 2.3.
const SIXTEEN: [WindowTile; 3] = [
    WindowTile { tile_m: 128, tile_n: 128, plane_m: 64, plane_n: 64, window: 256, fragment: 16 },
    WindowTile { tile_m: 256, tile_n: 64, plane_m: 64, plane_n: 64, window: 384, fragment: 16 },
    WindowTile { tile_m: 256, tile_n: 32, plane_m: 64, plane_n: 32, window: 384, fragment: 16 },
];
/// Fragments of 8 (f32): 128 units, 14 KiB. A unit holds 32 sums.
const EIGHT: [WindowTile; 1] =
    [WindowTile { tile_m: 64, tile_n: 64, plane_m: 32, plane_n: 32, window: 160, fragment: 8 }];

impl WindowTile {
    /// The tiles for fragments of a shape.
    pub fn all(fragment: usize) -> &'static [Self] {
        match fragment {
            8 => &EIGHT,
            16 => &SIXTEEN,
            _ => &[],
        }
    }

    /// Planes of a cube.
    pub fn planes(&self) -> usize {
        (self.tile_m / self.plane_m) * (self.tile_n / self.plane_n)
    }

    /// Units of a cube.
    pub fn units(&self) -> usize {
        self.planes() * SUBGROUP
    }

    /// Bytes of shared memory for stages whose elements have `size` bytes: the larger of both kernels'.
    pub fn shared_bytes(&self, size: usize) -> usize {
        let patches = self.planes() * self.fragment * self.fragment * 4;
        let window = self.window * (CHANNELS * size + 16 + 8) + patches;
        let stage = self.run_blocks() * CHANNELS * (self.tile_m * size + 16) + BESIDE * patches;
        window.max(stage)
    }

    /// The name used in tables and reports.
    pub fn name(&self) -> String {
        format!("{}x{}", self.tile_m, self.tile_n)
    }

    /// Vectors of `width` elements from one site (or channel of the result) of a stage to the next: its
    /// channels, and 16 bytes that spread the rows over the banks.
    pub(super) fn row(&self, width: usize, size: usize) -> usize {
        (CHANNELS + 16 / size) / width
    }

    /// Blocks of a stage of planes that are runs of sites: four vectors of a unit, 9 KiB. With twice as many
    /// (and registers) or two stages in turn 1x1x1 of 512 channels takes 0.56 and 0.62 ms on an H200, 0.34
    /// so.
    pub(super) fn run_blocks(&self) -> usize {
        if self.tile_m > 128 { 1 } else { 2 }
    }

    /// Vectors of `width` elements from one channel of such a stage to the next.
    pub(super) fn run_row(&self, width: usize, size: usize) -> usize {
        (self.tile_m + 16 / size) / width
    }

    /// Vectors of such a block that a unit reads.
    pub(super) fn run_loads(&self, width: usize) -> usize {
        self.tile_m * CHANNELS / width / self.units()
    }

    /// Vectors of the window that a unit reads.
    pub(super) fn window_loads(&self, width: usize) -> usize {
        self.window * CHANNELS / width / self.units()
    }
}

/// The strips of a plane: as many sites of every row, and beyond them what their windows overlap, so that a
/// tap is one and the same distance for all sites of a strip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Strips {
    /// Strips side by side.
    pub(super) count: usize,
    /// Sites of a strip's row.
    pub(super) sites: usize,
    /// Elements of a strip's row.
    pub(super) pitch: usize,
}

impl Strips {
    /// The strips that tile a walk's plane with the fewest elements; none where a window does not fit.
    pub(super) fn of(walks: &Gather, tile: &WindowTile) -> Option<Self> {
        let [_, height, width] = walks;
        let rim = (width.taps.max(1) - 1) * width.step;
        let rows = (height.taps.max(1) - 1) * height.step;
        let room = tile.window.checked_sub(tile.tile_m + rim)?;
        let longest = room.checked_div(rows).unwrap_or(width.positions + rim);
        let most = longest.checked_sub(rim).filter(|most| *most > 0)?;
        let count = width.positions.div_ceil(most);
        let sites = width.positions.div_ceil(count.max(1));
        (width.positions > 0).then_some(Self { count, sites, pitch: sites + rim })
    }

    /// Tiles of a strip.
    pub(super) fn tiles(&self, walks: &Gather, tile: &WindowTile) -> usize {
        (walks[1].positions * self.pitch).div_ceil(tile.tile_m)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_share_out_evenly_within_apples_budget() {
        for (tile, size) in SIXTEEN.iter().map(|tile| (tile, 2)).chain(EIGHT.iter().map(|tile| (tile, 4))) {
            let units = tile.units();
            assert!((64..=1024).contains(&units), "{tile:?}: {units} units");
            assert!(tile.shared_bytes(size) <= 32 * 1024, "{tile:?}: {} bytes", tile.shared_bytes(size));
            let width = if tile.fragment == 8 { 4 } else { 16 / size };
            // Nothing is read with a mask.
            assert_eq!(tile.window_loads(width) * units * width, tile.window * CHANNELS, "{tile:?}");
            assert_eq!(tile.run_loads(width) * units * width, tile.tile_m * CHANNELS, "{tile:?}");
            assert!(units.is_multiple_of(tile.tile_m / width), "{tile:?}: a unit keeps its sites");
        }
    }
}
