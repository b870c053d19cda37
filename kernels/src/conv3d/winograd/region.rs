//! A Winograd pass as a correlation, and the regions its tiles are split into so that V and M fit the
//! workspace.
//!
//! ```text
//! V row = ((image, input frame), tile)     tiles of a frame: rows * columns, padded to a multiple of four
//! M row = ((image, output frame), tile)
//!
//!           columns of tiles
//!          +---+---+---+---+---+      a region: whole images; else some rows of tiles of one image;
//!   row 0  | 0 | 1 | 2 | 3 | 4 |      else some frames of one row of tiles
//!          +---+---+---+---+---+
//!   row 1  | 5 | 6 | 7 | 8 | 9 | + 2  padding tiles up to a multiple of four
//!          +---+---+---+---+---+
//! ```
//!
//! Four consecutive rows belong to one frame, so the product moves them as a vector. Padding tiles are zero
//! in V and never read from M. Rows of the product are independent.

use super::WinogradTile;
use crate::conv3d::args::clamp_to_i32;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::{Conv3dProblem, PaddingMode};
use cubecl::prelude::*;

/// Rows, or channels of a filter, in a vector.
pub(crate) const VECTOR: usize = 4;

/// A correlation with a 3x3 window of stride 1 in H and W: the forward pass (the weight gradient uses the
/// same V), or the input gradient as a forward pass over dy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Correlation {
    pub(crate) batch: usize,
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    /// Input extents D, H, W.
    pub(crate) input: [usize; 3],
    /// Output extents OD, OH, OW.
    pub(crate) output: [usize; 3],
    pub(crate) kernel_depth: usize,
    pub(crate) stride_depth: usize,
    pub(crate) dilation_depth: usize,
    /// Padding before each axis; negative where the input gradient crops.
    pub(crate) begin: [i32; 3],
    /// Whether depth, and H and W, replicate their edges; else they read zeros.
    pub(crate) replicate_depth: bool,
    pub(crate) replicate_plane: bool,
    /// Reads the filter as `w[in, out, mirrored taps]` instead of `w[out, in, taps]`.
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

/// The part of the output that one pass over V and M computes; ranges are `(first, end)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) images: (usize, usize),
    /// Output frames.
    pub(crate) frames: (usize, usize),
    /// Input frames that these read.
    pub(crate) input_frames: (usize, usize),
    /// Rows of tiles.
    pub(crate) rows: (usize, usize),
    /// Columns of tiles of a frame.
    columns: usize,
}

impl Correlation {
    /// `pass` of `problem` as a correlation.
    pub(crate) fn of(problem: &Conv3dProblem, pass: Pass) -> Self {
        let window = &problem.window;
        let replicates =
            problem.winograd_padding().map(|modes| modes.map(|mode| mode == PaddingMode::Replicate));
        let [replicate_depth, replicate_plane] = replicates.unwrap_or_default();
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
            replicate_depth,
            replicate_plane,
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
            replicate_depth: false,
            replicate_plane: false,
            mirror: true,
            ..forward
        }
    }

    /// Rows and columns of tiles of a frame.
    pub(crate) fn tiles(&self, tile: WinogradTile) -> (usize, usize) {
        (self.output[1].div_ceil(tile.outputs()), self.output[2].div_ceil(tile.outputs()))
    }

    /// The whole output as one region.
    pub(crate) fn whole_output(&self, tile: WinogradTile) -> RegionExtent {
        RegionExtent {
            images: self.batch.max(1),
            frames: self.output[0].max(1),
            rows: self.tiles(tile).0.max(1),
        }
    }

    /// Shape of U: `[point, kd, in, out]`, `out` rounded up to a multiple of four.
    pub(crate) fn filter_shape(&self, tile: WinogradTile) -> [usize; 4] {
        let points = tile.inputs() * tile.inputs();
        [points, self.kernel_depth, self.in_channels, self.out_channels.next_multiple_of(VECTOR)]
    }

    /// Elements of one slice of a weight gradient's S, `[point, kd, in, out]`, with channels padded to a
    /// multiple.
    pub(crate) fn sums(&self, tile: WinogradTile, padding: usize) -> u64 {
        let [points, depth, channels, outputs] = self.filter_shape(tile);
        let sizes = [points, depth, channels.next_multiple_of(padding), outputs.next_multiple_of(padding)];
        sizes.iter().map(|&size| size as u64).product()
    }

    /// The input frames that output frames `first..end` read; empty when all of them are padding.
    fn input_frames(&self, first: usize, end: usize) -> (usize, usize) {
        let begin = i64::from(self.begin[0]);
        let depth = self.input[0] as i64;
        let reach = (self.kernel_depth - 1) * self.dilation_depth;
        let low = (first * self.stride_depth) as i64 - begin;
        let high = ((end - 1) * self.stride_depth + reach) as i64 - begin;
        if self.replicate_depth {
            (low.clamp(0, depth - 1) as usize, high.clamp(0, depth - 1) as usize + 1)
        } else {
            let low = low.clamp(0, depth);
            (low as usize, (high + 1).clamp(low, depth) as usize)
        }
    }

    /// The regions of this extent that cover the output, in order.
    pub(crate) fn regions(&self, tile: WinogradTile, extent: RegionExtent) -> Vec<Region> {
        let (rows, columns) = self.tiles(tile);
        let ranges = |length: usize, step: usize| {
            (0..length).step_by(step).map(move |first| (first, length.min(first + step)))
        };
        let mut regions = Vec::new();
        for images in ranges(self.batch, extent.images) {
            for frames in ranges(self.output[0], extent.frames) {
                for rows in ranges(rows, extent.rows) {
                    let input_frames = self.input_frames(frames.0, frames.1);
                    regions.push(Region { images, frames, input_frames, rows, columns });
                }
            }
        }
        regions
    }

    /// Elements of U, V and M for regions of an extent; channels and rows of M are padded to a multiple.
    pub(crate) fn workspace(&self, tile: WinogradTile, extent: RegionExtent, padding: usize) -> [u64; 3] {
        let points = (tile.inputs() * tile.inputs()) as u64;
        let frame = (extent.rows * self.tiles(tile).1).next_multiple_of(VECTOR) as u64;
        let reach = (self.kernel_depth - 1) * self.dilation_depth;
        let input_frames = ((extent.frames - 1) * self.stride_depth + reach + 1).min(self.input[0]).max(1);
        let channel = |frames: usize| extent.images as u64 * frames as u64 * frame;
        let [channels, rows] = [self.out_channels as u64, channel(extent.frames)]
            .map(|size| size.next_multiple_of(padding as u64));
        [
            self.filter_shape(tile).iter().map(|&size| size as u64).product(),
            points * self.in_channels as u64 * channel(input_frames),
            points * channels * rows,
        ]
    }

    /// The largest extent that `fits`, evened out over the regions: whole images, else rows of tiles of one
    /// image, else frames of one row of tiles (neighbouring regions then transform shared input frames
    /// twice).
    pub(crate) fn largest_region(
        &self,
        tile: WinogradTile,
        fits: &dyn Fn(RegionExtent) -> bool,
    ) -> Option<RegionExtent> {
        let whole = self.whole_output(tile);
        let largest_even = |limit: usize, of: &dyn Fn(usize) -> RegionExtent| {
            let largest = (1..=limit).take_while(|&size| fits(of(size))).last()?;
            Some(of(limit.div_ceil(limit.div_ceil(largest))))
        };
        largest_even(whole.images, &|images| RegionExtent { images, ..whole })
            .or_else(|| largest_even(whole.rows, &|rows| RegionExtent { images: 1, rows, ..whole }))
            .or_else(|| largest_even(whole.frames, &|frames| RegionExtent { images: 1, frames, rows: 1 }))
    }
}

/// A region as kernel arguments.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct RegionArgs {
    pub(crate) first_image: u32,
    pub(crate) images: u32,
    pub(crate) first_frame: u32,
    pub(crate) frames: u32,
    pub(crate) first_input_frame: u32,
    pub(crate) input_frames: u32,
    pub(crate) first_row: u32,
    /// Columns of tiles of a frame.
    pub(crate) columns: u32,
    /// Tiles of a frame in this region.
    pub(crate) tiles: u32,
    /// The same in vectors, rounded up.
    pub(crate) vectors: u32,
}

/// A tile's channel, image, frame (counted from the region's first), and row and column of tiles in the
/// frame.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct TileIndex {
    pub(crate) channel: u32,
    pub(crate) image: u32,
    pub(crate) frame: u32,
    pub(crate) row: u32,
    pub(crate) column: u32,
    /// False for a padding tile: there is no such row and column.
    pub(crate) exists: bool,
}

#[cube]
impl RegionArgs {
    /// The tile at a linear index over (channel, image, frame, tile) with `frames` frames per image.
    pub(crate) fn tile_at(&self, index: usize, frames: u32) -> TileIndex {
        let tiles = self.vectors as usize * VECTOR;
        let rest = index / tiles;
        let tile = (index - rest * tiles) as u32;
        let channel_image = rest / frames as usize;
        let frame = (rest - channel_image * frames as usize) as u32;
        let channel = channel_image / self.images as usize;
        let row = tile / self.columns;
        TileIndex {
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
    /// The kernels' argument.
    pub(crate) fn args(&self) -> RegionArgsLaunch {
        RegionArgsLaunch {
            first_image: self.images.0 as u32,
            images: (self.images.1 - self.images.0) as u32,
            first_frame: self.frames.0 as u32,
            frames: (self.frames.1 - self.frames.0) as u32,
            first_input_frame: self.input_frames.0 as u32,
            input_frames: (self.input_frames.1 - self.input_frames.0) as u32,
            first_row: self.rows.0 as u32,
            columns: self.columns as u32,
            tiles: self.tiles() as u32,
            vectors: self.tiles().div_ceil(VECTOR) as u32,
        }
    }

    /// The same region with its output frames as input frames, to transform dy.
    pub(crate) fn of_outputs(&self) -> Self {
        Self { input_frames: self.frames, ..*self }
    }

    /// Tiles of one frame in this region.
    fn tiles(&self) -> usize {
        (self.rows.1 - self.rows.0) * self.columns
    }

    /// Rows of V per channel and point.
    pub(crate) fn v_rows(&self) -> usize {
        self.frame_rows(self.input_frames.1 - self.input_frames.0)
    }

    /// Rows of M per channel and point.
    pub(crate) fn m_rows(&self) -> usize {
        self.frame_rows(self.frames.1 - self.frames.0)
    }

    /// Rows of V or M per channel and point that so many frames of each image have.
    pub(crate) fn frame_rows(&self, frames: usize) -> usize {
        (self.images.1 - self.images.0) * frames * self.tiles().next_multiple_of(VECTOR)
    }
}
