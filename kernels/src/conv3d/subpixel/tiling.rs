//! How a stem's input gradient is shared out among cubes, and where its blocks read and write.

use super::config::SubpixelTile;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// One axis of the plane: see [`super::blocks`].
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct PlaneAxis {
    /// Windows.
    pub(super) windows: u32,
    /// Positions of the input.
    pub(super) positions: u32,
    pub(super) stride: u32,
    pub(super) phases: FastDivmod<u32>,
    pub(super) taps: u32,
    pub(super) step: u32,
    pub(super) origin: i32,
    pub(super) source_stride: usize,
    pub(super) out_stride: usize,
}

/// The depth axis, which is walked position by position.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct DepthAxis {
    pub(super) windows: u32,
    pub(super) stride: FastDivmod<u32>,
    pub(super) taps: u32,
    /// From one tap that reaches a frame to the next.
    pub(super) tap_step: u32,
    pub(super) dilation: u32,
    pub(super) begin: u32,
    pub(super) source_stride: usize,
    pub(super) out_stride: usize,
}

/// How the work is shared out: a cube's index, from the fastest: tile of blocks, strip, tile of columns,
/// frame, image, group, part of the sum.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Tiling {
    pub(super) depth: DepthAxis,
    pub(super) height: PlaneAxis,
    pub(super) width: PlaneAxis,
    pub(super) tiles: FastDivmod<u32>,
    pub(super) strips: FastDivmod<u32>,
    pub(super) column_tiles: FastDivmod<u32>,
    pub(super) column_tile_count: u32,
    pub(super) frames: FastDivmod<u32>,
    pub(super) batch: FastDivmod<u32>,
    pub(super) groups: FastDivmod<u32>,
    /// Blocks of a strip's row, and its elements.
    pub(super) blocks: u32,
    pub(super) pitch: FastDivmod<u32>,
    pub(super) pitch_count: u32,
    /// Channels of dy and of dx in one group, columns of those.
    pub(super) channels: u32,
    pub(super) out_channels: u32,
    pub(super) columns: u32,
    /// Blocks of dy's channels, and of one part.
    pub(super) chunks: u32,
    pub(super) part_chunks: u32,
    pub(super) source_batch_stride: usize,
    pub(super) source_channel_stride: usize,
    pub(super) out_batch_stride: usize,
    pub(super) out_channel_stride: usize,
    pub(super) part_stride: usize,
}

/// A cube's share.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Share {
    /// The first of the tile's elements in its strip, and the strip's first block.
    pub(super) first: u32,
    pub(super) strip: u32,
    pub(super) column_tile: u32,
    pub(super) d: u32,
    pub(super) n: u32,
    pub(super) group: u32,
    pub(super) part: u32,
}

#[cube]
impl Tiling {
    pub(super) fn share(&self, cube: u32, #[comptime] tile_m: usize) -> Share {
        let (rest, in_strip) = self.tiles.div_mod(cube);
        let (rest, strip) = self.strips.div_mod(rest);
        let (rest, column_tile) = self.column_tiles.div_mod(rest);
        let (rest, d) = self.frames.div_mod(rest);
        let (rest, n) = self.batch.div_mod(rest);
        let (part, group) = self.groups.div_mod(rest);
        Share { first: in_strip * tile_m as u32, strip: strip * self.blocks, column_tile, d, n, group, part }
    }

    /// Row and column of the plane's blocks for an element of a strip.
    pub(super) fn block(&self, share: &Share, element: u32) -> (u32, u32) {
        let (h, in_row) = self.pitch.div_mod(element);
        (h, share.strip + in_row)
    }

    /// Where the results of a cube's image, group and frame go, in its part.
    pub(super) fn out_first(&self, share: &Share) -> usize {
        share.n as usize * self.out_batch_stride
            + (share.group * self.out_channels) as usize * self.out_channel_stride
            + share.d as usize * self.depth.out_stride
            + share.part as usize * self.part_stride
    }

    /// Where the result of an element and a column goes, and whether there is one.
    pub(super) fn place(&self, share: &Share, element: u32, column: u32) -> (usize, bool) {
        let (block_h, block_w) = self.block(share, element);
        let (rest, phase_w) = self.width.phases.div_mod(column);
        let (c, phase_h) = self.height.phases.div_mod(rest);
        let h = block_h * self.height.stride + phase_h;
        let w = block_w * self.width.stride + phase_w;
        let at = c as usize * self.out_channel_stride
            + h as usize * self.height.out_stride
            + w as usize * self.width.out_stride;
        let in_plane = h < self.height.positions && w < self.width.positions;
        (at, in_plane && block_w - share.strip < self.blocks && column < self.columns)
    }
}

#[cube]
impl PlaneAxis {
    /// The first window that reaches a block, and whether there is one there.
    pub(super) fn window(&self, block: u32) -> (usize, bool) {
        let window = block as i32 + self.origin;
        // As an unsigned number a negative one is larger than any extent.
        (window as usize * self.source_stride, (window as u32) < self.windows)
    }
}

#[cube]
impl DepthAxis {
    /// The window that reaches frame `d` with a tap, and whether there is one.
    pub(super) fn window(&self, d: u32, tap: u32) -> (u32, bool) {
        let distance = (d + self.begin) as i32 - (tap * self.dilation) as i32;
        let (window, rest) = self.stride.div_mod(max(distance, 0i32) as u32);
        (window, distance >= 0i32 && rest == 0u32 && window < self.windows)
    }

    /// The first tap that reaches frame `d` from a window, and how many do.
    pub(super) fn inside(&self, d: u32) -> (u32, u32) {
        let mut first = 0u32.runtime();
        let mut count = 0u32.runtime();
        let mut tap = 0u32.runtime();
        while tap < self.taps {
            let (_, inside) = self.window(d, tap);
            first = select(inside && count == 0u32, tap, first);
            count += select(inside, 1u32, 0u32);
            tap += 1u32;
        }
        (first, count)
    }
}

/// Where the blocks of the window that a unit reads lie in a plane of dy, and a bit for each that says
/// whether they do.
#[derive(CubeType)]
pub(super) struct Places {
    pub(super) at: Sequence<usize>,
    pub(super) mask: u32,
}

/// The places of the unit's `reads`: units lie behind each other along the window, and begin again at its
/// end.
#[cube]
pub(super) fn places(
    tiling: &Tiling,
    share: &Share,
    #[comptime] reads: usize,
    #[comptime] tile: SubpixelTile,
) -> Places {
    let mut at = Sequence::<usize>::new();
    let mut mask = 0u32.runtime();
    #[unroll]
    for i in 0..reads {
        let read = UNIT_POS + comptime!((i * tile.units()) as u32);
        let (h, w) = tiling.block(share, share.first + read % comptime!(tile.window as u32));
        let (h, h_inside) = tiling.height.window(h);
        let (w, w_inside) = tiling.width.window(w);
        at.push(h + w);
        mask |= select(h_inside && w_inside, comptime!(1u32 << i), 0u32);
    }
    Places { at, mask }
}
