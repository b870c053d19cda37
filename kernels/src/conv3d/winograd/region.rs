//! A Winograd pass as a correlation, and the regions into which its tiles are cut so that V and M fit the
//! workspace.
//!
//! ```text
//! V row = ((image, source frame), tile)    tiles of a frame: rows * columns, filled up to a multiple of four
//! M row = ((image, output frame), tile)
//! ```
//!
//! Four neighbouring rows lie in one frame, so they travel as a vector through the product. What fills up is
//! zero in V and never read from M; a row of the product depends on no other.

use super::WinogradTile;
use crate::conv3d::args::clamp_to_i32;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::{Conv3dProblem, PaddingMode};
use cubecl::prelude::*;

/// Rows, or channels of a filter, that travel together.
pub(crate) const VECTOR: usize = 4;

/// A stride-1 3x3-in-plane correlation: the forward pass (whose V the weight gradient shares), or the input
/// gradient seen as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Correlation {
    pub(crate) batch: usize,
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    pub(crate) input: [usize; 3],
    pub(crate) output: [usize; 3],
    pub(crate) kernel_depth: usize,
    pub(crate) stride_depth: usize,
    pub(crate) dilation_depth: usize,
    /// Padding before each axis; negative where the input gradient crops.
    pub(crate) begin: [i32; 3],
    pub(crate) replicate: bool,
    /// Read the filter `w[in, out, mirrored taps]` instead of `w[out, in, taps]`.
    pub(crate) mirror: bool,
}

/// Extents of a region: images, output frames, rows of tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegionExtent {
    /// Images; more than one only in regions of whole images.
    pub images: usize,
    /// Output frames, counted over depth.
    pub frames: usize,
    /// Rows of tiles.
    pub rows: usize,
}

/// The part of the output that one round of V, M and y covers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) images: (usize, usize),
    /// Output frames.
    pub(crate) frames: (usize, usize),
    /// Input frames that they read.
    pub(crate) sources: (usize, usize),
    /// Rows of tiles.
    pub(crate) rows: (usize, usize),
    /// Columns of tiles of the plane.
    columns: usize,
}

impl Correlation {
    /// The correlation that `pass` of `problem` is.
    pub(crate) fn of(problem: &Conv3dProblem, pass: Pass) -> Self {
        let window = &problem.window;
        let forward = Self {
            batch: problem.batch,
            in_channels: problem.channels,
            out_channels: problem.out_channels,
            input: problem.input,
            output: problem.output(),
            kernel_depth: problem.kernel[0],
            stride_depth: window.stride[0],
            dilation_depth: window.dilation[0],
            begin: [0, 1, 2].map(|axis| clamp_to_i32(window.padding[axis].0)),
            replicate: window.padding_mode == PaddingMode::Replicate,
            mirror: false,
        };
        if pass != Pass::InputGradient {
            return forward;
        }
        Self {
            in_channels: forward.out_channels,
            out_channels: forward.in_channels,
            input: forward.output,
            output: forward.input,
            begin: [0, 1, 2].map(|axis| clamp_to_i32(problem.axis(axis).span() - 1) - forward.begin[axis]),
            replicate: false,
            mirror: true,
            ..forward
        }
    }

    /// Rows and columns of tiles of a plane.
    pub(crate) fn tiles(&self, tile: WinogradTile) -> (usize, usize) {
        (self.output[1].div_ceil(tile.outputs()), self.output[2].div_ceil(tile.outputs()))
    }

    /// The region of everything.
    pub(crate) fn whole(&self, tile: WinogradTile) -> RegionExtent {
        RegionExtent {
            images: self.batch.max(1),
            frames: self.output[0].max(1),
            rows: self.tiles(tile).0.max(1),
        }
    }

    /// Elements of U, [point, (kd, in), out].
    pub(crate) fn filter_shape(&self, tile: WinogradTile) -> [usize; 4] {
        let points = tile.inputs() * tile.inputs();
        [points, self.kernel_depth, self.in_channels, self.out_channels.next_multiple_of(VECTOR)]
    }

    /// The input frames that output frames `first..end` read; empty when all of them are padding.
    fn sources(&self, first: usize, end: usize) -> (usize, usize) {
        let begin = i64::from(self.begin[0]);
        let depth = self.input[0] as i64;
        let reach = (self.kernel_depth - 1) * self.dilation_depth;
        let low = (first * self.stride_depth) as i64 - begin;
        let high = ((end - 1) * self.stride_depth + reach) as i64 - begin;
        if self.replicate {
            (low.clamp(0, depth - 1) as usize, high.clamp(0, depth - 1) as usize + 1)
        } else {
            let low = low.clamp(0, depth);
            (low as usize, (high + 1).clamp(low, depth) as usize)
        }
    }

    /// The regions of an extent, in order.
    pub(crate) fn regions(&self, tile: WinogradTile, extent: RegionExtent) -> Vec<Region> {
        let (rows, columns) = self.tiles(tile);
        let cuts = |length: usize, step: usize| {
            (0..length).step_by(step).map(move |first| (first, length.min(first + step)))
        };
        let mut regions = Vec::new();
        for images in cuts(self.batch, extent.images) {
            for frames in cuts(self.output[0], extent.frames) {
                for rows in cuts(rows, extent.rows) {
                    let sources = self.sources(frames.0, frames.1);
                    regions.push(Region { images, frames, sources, rows, columns });
                }
            }
        }
        regions
    }

    /// Elements of U, V and M for regions of an extent.
    pub(crate) fn workspace(&self, tile: WinogradTile, extent: RegionExtent) -> [u64; 3] {
        let points = (tile.inputs() * tile.inputs()) as u64;
        let frame = (extent.rows * self.tiles(tile).1).next_multiple_of(VECTOR) as u64;
        let reach = (self.kernel_depth - 1) * self.dilation_depth;
        let sources = ((extent.frames - 1) * self.stride_depth + reach + 1).min(self.input[0]).max(1);
        let channel = |frames: usize| points * extent.images as u64 * frames as u64 * frame;
        [
            self.filter_shape(tile).iter().map(|&size| size as u64).product(),
            self.in_channels as u64 * channel(sources),
            self.out_channels as u64 * channel(extent.frames),
        ]
    }

    /// The largest region that `fits`, of nearly equal parts: whole images, else rows of tiles of one image,
    /// else frames of one row (which transform again what neighbouring frames share).
    pub(crate) fn largest_region(
        &self,
        tile: WinogradTile,
        fits: &dyn Fn(RegionExtent) -> bool,
    ) -> Option<RegionExtent> {
        let whole = self.whole(tile);
        let parts = |limit: usize, of: &dyn Fn(usize) -> RegionExtent| {
            let largest = (1..=limit).take_while(|&size| fits(of(size))).last()?;
            Some(of(limit.div_ceil(limit.div_ceil(largest))))
        };
        parts(whole.images, &|images| RegionExtent { images, ..whole })
            .or_else(|| parts(whole.rows, &|rows| RegionExtent { images: 1, rows, ..whole }))
            .or_else(|| parts(whole.frames, &|frames| RegionExtent { images: 1, frames, rows: 1 }))
    }
}

/// A region as kernel arguments.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct RegionArgs {
    pub(crate) first_image: u32,
    pub(crate) images: u32,
    pub(crate) first_frame: u32,
    pub(crate) frames: u32,
    pub(crate) first_source: u32,
    pub(crate) sources: u32,
    pub(crate) first_row: u32,
    /// Columns of tiles of the plane.
    pub(crate) columns: u32,
    /// Tiles of a frame.
    pub(crate) tiles: u32,
    /// The same in vectors, filled up.
    pub(crate) vectors: u32,
}

/// Where a tile is: its image, its frame counted in the region, its first row and column of tiles in the
/// plane.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct TilePlace {
    pub(crate) channel: u32,
    pub(crate) image: u32,
    pub(crate) frame: u32,
    pub(crate) row: u32,
    pub(crate) column: u32,
    /// False where the tile fills a frame up: there is no such row and column.
    pub(crate) exists: bool,
}

#[cube]
impl RegionArgs {
    /// The tile at a linear index over (channel, image, frame, tile) with `frames` frames per image.
    pub(crate) fn place(&self, index: usize, frames: u32) -> TilePlace {
        let tiles = self.vectors as usize * VECTOR;
        let rest = index / tiles;
        let tile = (index - rest * tiles) as u32;
        let channel_image = rest / frames as usize;
        let frame = (rest - channel_image * frames as usize) as u32;
        let channel = channel_image / self.images as usize;
        let row = tile / self.columns;
        TilePlace {
            channel: channel as u32,
            image: self.first_image + (channel_image - channel * self.images as usize) as u32,
            frame,
            row: self.first_row + row,
            column: tile - row * self.columns,
            exists: tile < self.tiles,
        }
    }
}

impl Region {
    pub(crate) fn args(&self) -> RegionArgsLaunch {
        RegionArgsLaunch::new(
            self.images.0 as u32,
            (self.images.1 - self.images.0) as u32,
            self.frames.0 as u32,
            (self.frames.1 - self.frames.0) as u32,
            self.sources.0 as u32,
            (self.sources.1 - self.sources.0) as u32,
            self.rows.0 as u32,
            self.columns as u32,
            self.tiles() as u32,
            self.tiles().div_ceil(VECTOR) as u32,
        )
    }

    /// The same tiles of the frames that it writes, as if they were what it reads.
    pub(crate) fn of_outputs(&self) -> Self {
        Self { sources: self.frames, ..*self }
    }

    /// Tiles of one frame.
    fn tiles(&self) -> usize {
        (self.rows.1 - self.rows.0) * self.columns
    }

    /// Rows of V, of one channel and point.
    pub(crate) fn v_rows(&self) -> usize {
        let frames = (self.images.1 - self.images.0) * (self.sources.1 - self.sources.0);
        frames * self.tiles().next_multiple_of(VECTOR)
    }

    /// Rows of M, of one channel and point.
    pub(crate) fn m_rows(&self) -> usize {
        let frames = (self.images.1 - self.images.0) * (self.frames.1 - self.frames.0);
        frames * self.tiles().next_multiple_of(VECTOR)
    }
}
