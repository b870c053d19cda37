//! How the shifted product's work is shared out, on the device: tiles to cubes, the blocks of a sum to its
//! parts.

use super::config::{CHANNELS, WindowTile};
use super::phases::PhaseTaps;
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::problem::PaddingMode;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// How the work is shared out: a cube's index, from the fastest: tile of channels, tile of sites, strip,
/// frame, image, group, part of the sum.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Tiling {
    pub(super) tiles_n: FastDivmod<u32>,
    pub(super) tiles_m: FastDivmod<u32>,
    pub(super) strips: FastDivmod<u32>,
    pub(super) depth: FastDivmod<u32>,
    pub(super) batch: FastDivmod<u32>,
    pub(super) groups: FastDivmod<u32>,
    /// Parts of the sum, and the distance between the partials of two parts.
    pub(super) parts: u32,
    pub(super) part_stride: usize,
    /// Sites of a strip's row, and its elements.
    pub(super) sites: u32,
    pub(super) pitch: FastDivmod<u32>,
    pub(super) pitch_count: u32,
    pub(super) height: u32,
    pub(super) width: u32,
    /// Channels of one group's result, and filled up to tiles.
    pub(super) n: u32,
    pub(super) packed_n: u32,
    /// Channels of one group's source, and blocks of them.
    pub(super) channels: u32,
    pub(super) blocks: FastDivmod<u32>,
    pub(super) block_count: u32,
    /// Blocks that are not parted, which divide `block_count`.
    pub(super) together: u32,
    pub(super) depth_taps: u32,
    /// Taps of a plane, and of a row of it.
    pub(super) taps: u32,
    pub(super) row_taps: FastDivmod<u32>,
    /// [`Activation::code`](crate::activation::Activation::code) of what is applied to the result.
    pub(super) activation: u32,
}

/// A cube's share.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Share {
    pub(super) first_n: u32,
    /// The first of the tile's elements in its strip, and the strip's first site.
    pub(super) first: u32,
    pub(super) strip: u32,
    pub(super) d: u32,
    pub(super) n: u32,
    pub(super) group: u32,
    pub(super) part: u32,
}

#[cube]
impl Tiling {
    pub(super) fn share(&self, cube: u32, #[comptime] tile: WindowTile) -> Share {
        let (rest, in_n) = self.tiles_n.div_mod(cube);
        let (rest, in_m) = self.tiles_m.div_mod(rest);
        let (rest, strip) = self.strips.div_mod(rest);
        let (rest, d) = self.depth.div_mod(rest);
        let (rest, n) = self.batch.div_mod(rest);
        let (part, group) = self.groups.div_mod(rest);
        Share {
            first_n: in_n * tile.tile_n as u32,
            first: in_m * tile.tile_m as u32,
            strip: strip * self.sites,
            d,
            n,
            group,
            part,
        }
    }

    /// How a phase is shared out, which has so many sites and taps in the plane and in a row of it.
    pub(super) fn phase(&self, height: u32, width: u32, taps: u32, row_taps: u32) -> Tiling {
        Tiling {
            tiles_n: self.tiles_n,
            tiles_m: self.tiles_m,
            strips: self.strips,
            depth: self.depth,
            batch: self.batch,
            groups: self.groups,
            parts: self.parts,
            part_stride: self.part_stride,
            sites: self.sites,
            pitch: self.pitch,
            pitch_count: self.pitch_count,
            height,
            width,
            n: self.n,
            packed_n: self.packed_n,
            channels: self.channels,
            blocks: self.blocks,
            block_count: self.block_count,
            together: self.together,
            depth_taps: self.depth_taps,
            taps,
            row_taps: FastDivmod::new_Fallback(row_taps),
            activation: self.activation,
        }
    }
}

/// The blocks of a cube's part of the sum: of every depth tap that its frame's windows have.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Blocks {
    pub(super) first: u32,
    pub(super) end: u32,
    /// The packed weights' blocks before these depth taps, where all of them are multiplied.
    packed: u32,
    /// The group's channels of the image in the source.
    source: usize,
    depth: i32,
    first_tap: u32,
}

#[cube]
pub(super) fn blocks_of(
    walk: &GatherArgs,
    tiling: &Tiling,
    share: &Share,
    #[comptime] padding: PaddingMode,
) -> Blocks {
    // Depth taps that lie inside the source; all of them where padding repeats its ends.
    let depth = walk.depth.coordinate(share.d);
    let mut first_tap = 0u32;
    let mut end_tap = tiling.depth_taps;
    if comptime!(padding == PaddingMode::Zeros) {
        let (first, end) = walk.depth.valid_taps(depth);
        first_tap = first;
        end_tap = max(end, first);
    }
    let count = (end_tap - first_tap) * (tiling.block_count / tiling.together);
    Blocks {
        first: share.part * count / tiling.parts * tiling.together,
        end: (share.part + 1u32) * count / tiling.parts * tiling.together,
        packed: (share.group * tiling.depth_taps + first_tap) * tiling.block_count,
        source: walk.source_at(share.n, 0u32) + walk.source_channel(share.group * tiling.channels),
        depth,
        first_tap,
    }
}

/// A block of the source: its first channel at the first place of a plane, and how many channels of the group
/// it and those after it hold.
#[derive(CubeType, Clone, Copy)]
pub(super) struct SourceBlock {
    pub(super) first: usize,
    pub(super) channels: u32,
}

#[cube]
pub(super) fn block_at(
    walk: &GatherArgs,
    tiling: &Tiling,
    blocks: &Blocks,
    block: u32,
    #[comptime] padding: PaddingMode,
) -> SourceBlock {
    let (tap, in_channels) = tiling.blocks.div_mod(block);
    let step = (blocks.first_tap + tap) * walk.depth.step;
    let (frame, _) = walk.depth.load_offset(blocks.depth + step as i32, padding);
    let first_channel = in_channels * CHANNELS as u32;
    SourceBlock {
        first: blocks.source + frame + walk.source_channel(first_channel),
        // A block that only fills a stage holds none.
        channels: max(tiling.channels, first_channel) - first_channel,
    }
}

/// Which of the packed taps is a block's first.
#[cube]
pub(super) fn packed_tap(
    taps: &ComptimeOption<PhaseTaps>,
    tiling: &Tiling,
    blocks: &Blocks,
    block: u32,
) -> usize {
    #[comptime]
    match taps {
        ComptimeOption::Some(taps) => {
            let (tap, in_channels) = tiling.blocks.div_mod(block);
            let depth = taps.depth + (blocks.first_tap + tap) * taps.depth_step;
            ((depth * tiling.block_count + in_channels) * taps.plane + taps.first) as usize
        }
        ComptimeOption::None => ((blocks.packed + block) * tiling.taps) as usize,
    }
}
