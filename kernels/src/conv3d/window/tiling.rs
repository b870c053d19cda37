//! Work assignment of the window GEMMs, on the device: tiles to threadgroups, channel blocks to split-K
//! slices.

use super::config::{CHANNELS, WindowTile};
use super::phases::PhaseTaps;
use crate::conv3d::cache::CacheArgs;
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::padding::source_of;
use crate::conv3d::problem::PaddingMode;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// Extents of the work. A threadgroup's index, fastest first: tile of channels, tile of positions, row
/// segment, depth, image, group, split-K slice.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct WindowTiling {
    pub(super) tiles_n: FastDivmod<u32>,
    pub(super) tiles_m: FastDivmod<u32>,
    pub(super) segments: FastDivmod<u32>,
    pub(super) depth: FastDivmod<u32>,
    pub(super) batch: FastDivmod<u32>,
    pub(super) groups: FastDivmod<u32>,
    /// Split-K slices, and the distance between the partials of two slices.
    pub(super) k_slices: u32,
    pub(super) slice_stride: usize,
    /// Positions of a segment's row, and its elements with the halo.
    pub(super) segment_width: u32,
    pub(super) pitch_divmod: FastDivmod<u32>,
    pub(super) pitch: u32,
    pub(super) height: u32,
    pub(super) width: u32,
    /// Result channels of one group, and padded to whole tiles.
    pub(super) n: u32,
    pub(super) packed_n: u32,
    /// Source channels of one group, and blocks of them.
    pub(super) channels: u32,
    pub(super) blocks: FastDivmod<u32>,
    pub(super) block_count: u32,
    /// Blocks of a stage; split-K slices begin at multiples of it. Divides `block_count`.
    pub(super) stage_blocks: u32,
    pub(super) depth_taps: u32,
    /// Taps of a frame, and of one of its rows.
    pub(super) taps: u32,
    pub(super) row_taps: FastDivmod<u32>,
    /// [`Activation::code`](crate::activation::Activation::code) of the epilogue.
    pub(super) activation: u32,
}

/// The work assignment of a threadgroup: one tile of one split-K slice.
#[derive(CubeType, Clone, Copy)]
pub(super) struct WindowWork {
    pub(super) first_n: u32,
    /// The tile's first element within its segment, and the segment's first column.
    pub(super) first_m: u32,
    pub(super) first_w: u32,
    pub(super) d: u32,
    pub(super) n: u32,
    pub(super) group: u32,
    pub(super) k_slice: u32,
}

#[cube]
impl WindowTiling {
    pub(super) fn work(&self, threadgroup: u32, #[comptime] tile: WindowTile) -> WindowWork {
        let (rest, in_n) = self.tiles_n.div_mod(threadgroup);
        let (rest, in_m) = self.tiles_m.div_mod(rest);
        let (rest, segment) = self.segments.div_mod(rest);
        let (rest, d) = self.depth.div_mod(rest);
        let (rest, n) = self.batch.div_mod(rest);
        let (k_slice, group) = self.groups.div_mod(rest);
        WindowWork {
            first_n: in_n * tile.tile_n as u32,
            first_m: in_m * tile.tile_m as u32,
            first_w: segment * self.segment_width,
            d,
            n,
            group,
            k_slice,
        }
    }

    /// The tiling of a phase with this many positions, taps of a frame and taps of one of its rows.
    pub(super) fn phase(&self, height: u32, width: u32, taps: u32, row_taps: u32) -> WindowTiling {
        WindowTiling {
            tiles_n: self.tiles_n,
            tiles_m: self.tiles_m,
            segments: self.segments,
            depth: self.depth,
            batch: self.batch,
            groups: self.groups,
            k_slices: self.k_slices,
            slice_stride: self.slice_stride,
            segment_width: self.segment_width,
            pitch_divmod: self.pitch_divmod,
            pitch: self.pitch,
            height,
            width,
            n: self.n,
            packed_n: self.packed_n,
            channels: self.channels,
            blocks: self.blocks,
            block_count: self.block_count,
            stage_blocks: self.stage_blocks,
            depth_taps: self.depth_taps,
            taps,
            row_taps: FastDivmod::new_Fallback(row_taps),
            activation: self.activation,
        }
    }
}

/// The channel blocks of a threadgroup's split-K slice, counted over the depth taps inside the source.
#[derive(CubeType)]
pub(super) struct BlockRange<'a> {
    pub(super) first: u32,
    pub(super) end: u32,
    /// Packed blocks before those of these depth taps, in a pass without phases.
    first_packed: u32,
    /// Offset of the group's first channel of the image in the source.
    source: usize,
    depth: i32,
    first_tap: u32,
    gather: &'a GatherArgs,
    cache: &'a ComptimeOption<CacheArgs>,
    pub(super) tiling: &'a WindowTiling,
    pub(super) work: &'a WindowWork,
    taps: &'a ComptimeOption<PhaseTaps>,
    /// Along depth.
    #[cube(comptime)]
    padding: PaddingMode,
}

/// A block of the source: offset of its first channel in its frame, and how many of the group's channels are
/// left from there on.
#[derive(CubeType, Clone, Copy)]
pub(super) struct SourceBlock {
    pub(super) offset: usize,
    pub(super) channel_stride: usize,
    /// Whether it is in the cache, as a whole.
    pub(super) in_cache: bool,
    pub(super) channels_left: u32,
}

#[cube]
impl SourceBlock {
    /// Offset of channel `channel` of the block from its first one.
    pub(super) fn channel(&self, channel: u32) -> usize {
        channel as usize * self.channel_stride
    }
}

#[cube]
impl<'a> BlockRange<'a> {
    pub(super) fn new(
        gather: &'a GatherArgs,
        cache: &'a ComptimeOption<CacheArgs>,
        tiling: &'a WindowTiling,
        work: &'a WindowWork,
        taps: &'a ComptimeOption<PhaseTaps>,
        #[comptime] padding: PaddingMode,
    ) -> BlockRange<'a> {
        // Depth taps inside the source; all of them with replicate padding.
        let depth = gather.depth.coordinate(work.d);
        let mut first_tap = 0u32;
        let mut end_tap = tiling.depth_taps;
        if comptime!(padding == PaddingMode::Zeros) {
            let (first, end) = gather.depth.valid_taps(depth);
            first_tap = first;
            end_tap = max(end, first);
        }
        let count = (end_tap - first_tap) * (tiling.block_count / tiling.stage_blocks);
        BlockRange::<'a> {
            first: work.k_slice * count / tiling.k_slices * tiling.stage_blocks,
            end: (work.k_slice + 1u32) * count / tiling.k_slices * tiling.stage_blocks,
            first_packed: (work.group * tiling.depth_taps + first_tap) * tiling.block_count,
            source: gather.source_at(work.n, 0u32) + gather.source_channel(work.group * tiling.channels),
            depth,
            first_tap,
            gather,
            cache,
            tiling,
            work,
            taps,
            padding,
        }
    }

    /// Whether a block is in the cache. Blocks of one depth tap are in the same tensor.
    pub(super) fn is_in_cache(&self, block: u32) -> bool {
        #[comptime]
        match self.cache {
            ComptimeOption::Some(cache) => {
                let (tap, _) = self.tiling.blocks.div_mod(block);
                let depth = self.depth + ((self.first_tap + tap) * self.gather.depth.step) as i32;
                source_of(depth, self.gather.depth.extent as i32, comptime!(self.padding))
                    < cache.frames as i32
            }
            ComptimeOption::None => false.runtime(),
        }
    }

    /// The block at an index of the range.
    pub(super) fn at(&self, block: u32) -> SourceBlock {
        let gather = self.gather;
        let (tap, in_channels) = self.tiling.blocks.div_mod(block);
        let step = (self.first_tap + tap) * gather.depth.step;
        let depth = self.depth + step as i32;
        #[comptime]
        match self.cache {
            ComptimeOption::Some(cache) => {
                let depth = source_of(depth, gather.depth.extent as i32, comptime!(self.padding));
                let frames = cache.frames as i32;
                let in_cache = depth < frames;
                let channel_stride = select(in_cache, cache.channel_stride, gather.source_channel_stride);
                let image =
                    self.work.n as usize * select(in_cache, cache.image_stride, gather.source_batch_stride);
                let frame = select(in_cache, depth, depth - frames) as usize
                    * select(in_cache, cache.depth_stride, gather.depth.source_stride);
                let first_channel = in_channels * CHANNELS as u32;
                let channel = (self.work.group * self.tiling.channels + first_channel) as usize;
                SourceBlock {
                    offset: image + frame + channel * channel_stride,
                    channel_stride,
                    in_cache,
                    channels_left: channels_left(self.tiling, first_channel),
                }
            }
            ComptimeOption::None => {
                let (frame, _) = gather.depth.load_offset(depth, comptime!(self.padding));
                let first_channel = in_channels * CHANNELS as u32;
                SourceBlock {
                    offset: self.source + frame + gather.source_channel(first_channel),
                    channel_stride: gather.source_channel_stride,
                    in_cache: false.runtime(),
                    channels_left: channels_left(self.tiling, first_channel),
                }
            }
        }
    }

    /// Index of a block's first packed tap.
    pub(super) fn packed_tap(&self, block: u32) -> usize {
        #[comptime]
        match self.taps {
            ComptimeOption::Some(taps) => {
                let (tap, in_channels) = self.tiling.blocks.div_mod(block);
                let depth = taps.depth + (self.first_tap + tap) * taps.depth_step;
                ((depth * self.tiling.block_count + in_channels) * taps.frame_taps + taps.first) as usize
            }
            ComptimeOption::None => ((self.first_packed + block) * self.tiling.taps) as usize,
        }
    }
}

/// The channels of the group from this one on; a padding block has none.
#[cube]
fn channels_left(tiling: &WindowTiling, first_channel: u32) -> u32 {
    max(tiling.channels, first_channel) - first_channel
}
