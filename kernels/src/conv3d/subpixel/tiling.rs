//! How the sub-pixel input gradient is divided into threadgroups, and where its blocks load and store.

use super::config::SubpixelTile;
use crate::conv3d::epilogue::bias_of;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// One axis of the H x W slice: see [`super::blocks`].
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct FrameAxis {
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

/// The depth axis, handled position by position.
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

/// The grid. A threadgroup's index is, fastest first: tile of blocks, row segment, column tile, frame, image,
/// group, split-K slice.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct SubpixelTiling {
    pub(super) depth: DepthAxis,
    pub(super) height: FrameAxis,
    pub(super) width: FrameAxis,
    pub(super) tiles: FastDivmod<u32>,
    pub(super) segments: FastDivmod<u32>,
    pub(super) column_tiles: FastDivmod<u32>,
    pub(super) column_tile_count: u32,
    pub(super) frames: FastDivmod<u32>,
    pub(super) batch: FastDivmod<u32>,
    pub(super) groups: FastDivmod<u32>,
    /// Blocks of a segment's row, and its elements.
    pub(super) blocks: u32,
    pub(super) pitch: FastDivmod<u32>,
    pub(super) pitch_count: u32,
    /// Channels of dy and of dx in one group, and its columns.
    pub(super) channels: u32,
    pub(super) out_channels: u32,
    pub(super) columns: u32,
    /// Blocks of dy's channels, and of one split-K slice.
    pub(super) chunks: u32,
    pub(super) slice_chunks: u32,
    pub(super) source_batch_stride: usize,
    pub(super) source_channel_stride: usize,
    pub(super) out_batch_stride: usize,
    pub(super) out_channel_stride: usize,
    pub(super) slice_stride: usize,
}

/// The work assignment of a threadgroup.
#[derive(CubeType, Clone, Copy)]
pub(super) struct SubpixelWork {
    /// The tile's first element in its segment, and the segment's first block.
    pub(super) first: u32,
    pub(super) first_block: u32,
    pub(super) column_tile: u32,
    pub(super) d: u32,
    pub(super) n: u32,
    pub(super) group: u32,
    pub(super) slice: u32,
}

/// The stages of a threadgroup: its chunks of channels for every tap along depth that reaches its frame.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Stages {
    pub(super) count: u32,
    /// The first tap of the column tile among all packed ones.
    pub(super) tap_base: u32,
    first_tap: u32,
    first_chunk: u32,
    end_chunk: u32,
}

/// The stage that a threadgroup loads next.
#[derive(CubeType, Clone, Copy)]
pub(super) struct StageCursor {
    pub(super) tap: u32,
    pub(super) chunk: u32,
    pub(super) stage: u32,
}

#[cube]
impl StageCursor {
    pub(super) fn advance(&mut self, stages: &Stages, tiling: &SubpixelTiling) {
        self.stage += 1u32;
        self.chunk += 1u32;
        if self.chunk == stages.end_chunk {
            self.chunk = stages.first_chunk;
            self.tap += tiling.depth.tap_step;
        }
    }
}

#[cube]
impl Stages {
    pub(super) fn first(&self) -> StageCursor {
        StageCursor { tap: self.first_tap, chunk: self.first_chunk, stage: 0u32.runtime() }
    }
}

#[cube]
impl SubpixelTiling {
    pub(super) fn stages(&self, work: &SubpixelWork) -> Stages {
        let first_chunk = work.slice * self.slice_chunks;
        let end_chunk = min(first_chunk + self.slice_chunks, self.chunks);
        let (first_tap, taps) = self.depth.inside(work.d);
        let tap_base = (work.group * self.column_tile_count + work.column_tile) * self.depth.taps;
        let count = taps * (max(end_chunk, first_chunk) - first_chunk);
        Stages { count, tap_base, first_tap, first_chunk, end_chunk }
    }

    pub(super) fn work(&self, threadgroup: u32, #[comptime] tile_m: usize) -> SubpixelWork {
        let (rest, in_segment) = self.tiles.div_mod(threadgroup);
        let (rest, segment) = self.segments.div_mod(rest);
        let (rest, column_tile) = self.column_tiles.div_mod(rest);
        let (rest, d) = self.frames.div_mod(rest);
        let (rest, n) = self.batch.div_mod(rest);
        let (slice, group) = self.groups.div_mod(rest);
        SubpixelWork {
            first: in_segment * tile_m as u32,
            first_block: segment * self.blocks,
            column_tile,
            d,
            n,
            group,
            slice,
        }
    }

    /// Row and column of the block of a segment's element.
    pub(super) fn block(&self, work: &SubpixelWork, element: u32) -> (u32, u32) {
        let (h, in_row) = self.pitch.div_mod(element);
        (h, work.first_block + in_row)
    }

    /// Offset of the results of a threadgroup's image, group and frame, in its slice.
    pub(super) fn out_base(&self, work: &SubpixelWork) -> usize {
        work.n as usize * self.out_batch_stride
            + (work.group * self.out_channels) as usize * self.out_channel_stride
            + work.d as usize * self.depth.out_stride
            + work.slice as usize * self.slice_stride
    }

    /// The bias of a column's channel, of the group's last one for columns past the last.
    pub(super) fn column_bias<E: Float>(
        &self,
        bias: ComptimeOption<&Tensor<E>>,
        work: &SubpixelWork,
        column: u32,
    ) -> ComptimeOption<f32> {
        bias.map(|bias| {
            let c = self.height.phases.div(self.width.phases.div(column));
            let channel = work.group * self.out_channels + min(c, self.out_channels - 1u32);
            bias_of(bias, channel as usize)
        })
    }

    /// Offset of the result of an element and a column, and whether it exists.
    pub(super) fn out_position(&self, work: &SubpixelWork, element: u32, column: u32) -> (usize, bool) {
        let (block_h, block_w) = self.block(work, element);
        let (rest, phase_w) = self.width.phases.div_mod(column);
        let (c, phase_h) = self.height.phases.div_mod(rest);
        let h = block_h * self.height.stride + phase_h;
        let w = block_w * self.width.stride + phase_w;
        let at = c as usize * self.out_channel_stride
            + h as usize * self.height.out_stride
            + w as usize * self.width.out_stride;
        let in_frame = h < self.height.positions && w < self.width.positions;
        (at, in_frame && block_w - work.first_block < self.blocks && column < self.columns)
    }
}

#[cube]
impl FrameAxis {
    /// Offset of the first window that reaches a block, and whether it exists.
    pub(super) fn window(&self, block: u32) -> (usize, bool) {
        let window = block as i32 + self.origin;
        // A negative number, cast to unsigned, is larger than any extent.
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

/// Offsets within a frame of dy of the window's blocks that a thread loads, and a mask with a bit for each
/// that exists.
#[derive(CubeType)]
pub(super) struct WindowLoads {
    pub(super) at: Sequence<usize>,
    pub(super) mask: u32,
}

/// The offsets of the thread's `loads`: consecutive threads take consecutive elements of the window, from its
/// beginning again after its end.
#[cube]
pub(super) fn window_loads(
    tiling: &SubpixelTiling,
    work: &SubpixelWork,
    #[comptime] loads: usize,
    #[comptime] tile: SubpixelTile,
) -> WindowLoads {
    let mut at = Sequence::<usize>::new();
    let mut mask = 0u32.runtime();
    #[unroll]
    for i in 0..loads {
        let element = UNIT_POS + comptime!((i * tile.threads()) as u32);
        let (h, w) = tiling.block(work, work.first + element % comptime!(tile.window as u32));
        let (h, h_inside) = tiling.height.window(h);
        let (w, w_inside) = tiling.width.window(w);
        at.push(h + w);
        mask |= select(h_inside && w_inside, comptime!(1u32 << i), 0u32);
    }
    WindowLoads { at, mask }
}
