//! The tile of the implicit GEMM with a shared input window.

use crate::conv3d::gemm::config::SUBGROUP;

/// Source channels of a block: the K extent that is in shared memory at a time.
pub(super) const CHANNELS: usize = 16;

/// Fragments that a patch of the vectorized epilogue holds next to each other.
pub(super) const PATCH_FRAGMENTS: usize = 2;

/// The tile of a threadgroup and of each of its subgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct WindowTile {
    /// Output positions of a threadgroup's tile (M).
    pub tile_m: usize,
    /// Result channels of a threadgroup's tile (N).
    pub tile_n: usize,
    /// Output positions of a subgroup.
    pub subgroup_m: usize,
    /// Result channels of a subgroup.
    pub subgroup_n: usize,
    /// Elements of a source frame that shared memory holds, for each channel of a block.
    pub window: usize,
    /// M, N and K of a fragment: 8 on Apple's simdgroups, 16 elsewhere.
    pub fragment: usize,
}

/// Fragments of 16 (f16): 128 threads, at most 25 KiB of shared memory. 128 accumulators a thread, 64 in the
/// last tile, for results with few channels.
const SIXTEEN: [WindowTile; 3] = [
    WindowTile { tile_m: 128, tile_n: 128, subgroup_m: 64, subgroup_n: 64, window: 256, fragment: 16 },
    WindowTile { tile_m: 256, tile_n: 64, subgroup_m: 64, subgroup_n: 64, window: 384, fragment: 16 },
    WindowTile { tile_m: 256, tile_n: 32, subgroup_m: 64, subgroup_n: 32, window: 384, fragment: 16 },
];
/// Fragments of 8 (f32): 128 threads, 14 KiB of shared memory, 32 accumulators a thread.
const EIGHT: [WindowTile; 1] =
    [WindowTile { tile_m: 64, tile_n: 64, subgroup_m: 32, subgroup_n: 32, window: 160, fragment: 8 }];

impl WindowTile {
    /// The tiles for a fragment size.
    pub fn all(fragment: usize) -> &'static [Self] {
        match fragment {
            8 => &EIGHT,
            16 => &SIXTEEN,
            _ => &[],
        }
    }

    /// Subgroups of a threadgroup.
    pub fn subgroups(&self) -> usize {
        (self.tile_m / self.subgroup_m) * (self.tile_n / self.subgroup_n)
    }

    /// Threads of a threadgroup.
    pub fn threads(&self) -> usize {
        self.subgroups() * SUBGROUP
    }

    /// Bytes of shared memory with stage elements of `size` bytes: the larger of both kernels'.
    pub fn shared_bytes(&self, size: usize) -> usize {
        let patches = self.subgroups() * self.fragment * self.fragment * 4;
        let window = self.window * (CHANNELS * size + 16 + 8) + patches;
        let stage = self.stage_blocks() * CHANNELS * (self.tile_m * size + 16) + PATCH_FRAGMENTS * patches;
        window.max(stage)
    }

    /// The name used in tables and reports.
    pub fn name(&self) -> String {
        format!("{}x{}", self.tile_m, self.tile_n)
    }

    /// Pitch of the window in vectors of `width` elements: the channels of one element, padded by 16 bytes
    /// against bank conflicts.
    pub(super) fn window_pitch(&self, width: usize, size: usize) -> usize {
        (CHANNELS + 16 / size) / width
    }

    /// Vectors of the window that a thread loads.
    pub(super) fn window_loads(&self, width: usize) -> usize {
        self.window * CHANNELS / width / self.threads()
    }

    /// Channel blocks of a stage of [`super::contiguous`]: four vectors a thread, 9 KiB. More registers or
    /// more shared memory cost occupancy.
    pub(super) fn stage_blocks(&self) -> usize {
        if self.tile_m > 128 { 1 } else { 2 }
    }

    /// Pitch of such a stage in vectors of `width` elements: the positions of one channel, padded by 16
    /// bytes.
    pub(super) fn stage_pitch(&self, width: usize, size: usize) -> usize {
        (self.tile_m + 16 / size) / width
    }

    /// Vectors of a block of such a stage that a thread loads.
    pub(super) fn stage_loads(&self, width: usize) -> usize {
        self.tile_m * CHANNELS / width / self.threads()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_divide_evenly_among_threads_within_apples_limits() {
        for (tile, size) in SIXTEEN.iter().map(|tile| (tile, 2)).chain(EIGHT.iter().map(|tile| (tile, 4))) {
            let threads = tile.threads();
            assert!((64..=1024).contains(&threads), "{tile:?}: {threads} threads");
            assert!(tile.shared_bytes(size) <= 32 * 1024, "{tile:?}: {} bytes", tile.shared_bytes(size));
            let width = if tile.fragment == 8 { 4 } else { 16 / size };
            // No load needs a mask for the tile's end.
            assert_eq!(tile.window_loads(width) * threads * width, tile.window * CHANNELS, "{tile:?}");
            assert_eq!(tile.stage_loads(width) * threads * width, tile.tile_m * CHANNELS, "{tile:?}");
            assert!(threads.is_multiple_of(tile.tile_m / width), "{tile:?}: a thread keeps its positions");
        }
    }
}
