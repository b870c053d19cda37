//! Work assignment of the weight gradient, on the device, and the offsets of a row segment's elements.

use super::WindowWeightTile;
use super::kernel::TAPS;
use crate::conv3d::cache::CacheArgs;
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::padding::source_of;
use crate::conv3d::problem::PaddingMode;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// Extents of the work. A threadgroup's index, fastest first: channels of x, channels of dy, taps of the
/// frame, depth tap, split-K slice, group. A segment's index: band of rows, segment of the row, depth, image.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct WeightTiling {
    pub(super) tiles_c: FastDivmod<u32>,
    pub(super) tiles_o: FastDivmod<u32>,
    pub(super) tap_tiles: FastDivmod<u32>,
    pub(super) depth_taps: FastDivmod<u32>,
    pub(super) k_slices: FastDivmod<u32>,
    pub(super) bands: FastDivmod<u32>,
    pub(super) segments: FastDivmod<u32>,
    pub(super) depth: FastDivmod<u32>,
    /// Segments of all bands, frames and images, and of a split-K slice.
    pub(super) segment_count: u32,
    pub(super) slice_segments: u32,
    pub(super) band_rows: u32,
    /// Positions of a segment's row, and its elements with the halo.
    pub(super) segment_width: u32,
    pub(super) pitch_divmod: FastDivmod<u32>,
    pub(super) pitch: u32,
    pub(super) height: u32,
    pub(super) width: u32,
    /// Chunks by which dy lags behind x: what the taps of one chunk reach beyond it.
    pub(super) lag: u32,
    /// Channels of one group of x and of dy.
    pub(super) channels: u32,
    pub(super) out_channels: u32,
    /// Taps of a frame, and of one of its rows.
    pub(super) taps: u32,
    pub(super) row_taps: FastDivmod<u32>,
    /// Strides of the result: split-K slice, channel of dy, channel of x, tap.
    pub(super) slice_stride: usize,
    pub(super) row_stride: usize,
    pub(super) channel_stride: usize,
    pub(super) tap_stride: usize,
}

/// The work assignment of a threadgroup.
#[derive(CubeType, Clone, Copy)]
pub(super) struct WeightWork {
    pub(super) first_c: u32,
    pub(super) first_o: u32,
    pub(super) first_tap: u32,
    pub(super) depth_tap: u32,
    pub(super) k_slice: u32,
    pub(super) group: u32,
}

#[cube]
impl WeightTiling {
    pub(super) fn work(&self, threadgroup: u32, #[comptime] tile: WindowWeightTile) -> WeightWork {
        let (rest, c) = self.tiles_c.div_mod(threadgroup);
        let (rest, o) = self.tiles_o.div_mod(rest);
        let (rest, tap) = self.tap_tiles.div_mod(rest);
        let (rest, depth_tap) = self.depth_taps.div_mod(rest);
        let (group, k_slice) = self.k_slices.div_mod(rest);
        WeightWork {
            first_c: c * comptime!(tile.channels() as u32),
            first_o: o * comptime!(tile.out_channels() as u32),
            first_tap: tap * TAPS as u32,
            depth_tap,
            k_slice,
            group,
        }
    }
}

/// One segment of one band: its rows and first column, and the offsets of its frames in x and dy.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Segment {
    pub(super) row: u32,
    pub(super) rows: u32,
    pub(super) column: u32,
    /// Of channel 0, in the cache where the frame is there.
    pub(super) x: usize,
    pub(super) dy: usize,
    /// Whether the depth tap is inside the source.
    pub(super) inside: bool,
    /// Whether its frame is in the cache.
    pub(super) in_cache: bool,
}

#[cube]
pub(super) fn segment_at(
    gather: &GatherArgs,
    tiling: &WeightTiling,
    cache: &ComptimeOption<CacheArgs>,
    work: &WeightWork,
    index: u32,
    #[comptime] padding: PaddingMode,
) -> Segment {
    let (rest, band) = tiling.bands.div_mod(index);
    let (rest, segment) = tiling.segments.div_mod(rest);
    let (n, d) = tiling.depth.div_mod(rest);
    let at = gather.depth.coordinate(d) + (work.depth_tap * gather.depth.step) as i32;
    let frame = frame_at(gather, cache, at, padding);
    let row = band * tiling.band_rows;
    Segment {
        row,
        rows: min(tiling.band_rows, tiling.height - row),
        column: segment * tiling.segment_width,
        x: image_at(gather, cache, &frame, n) + frame.offset,
        dy: gather.out_at(n, 0u32) + gather.depth.out_offset(d),
        inside: frame.inside,
        in_cache: frame.in_cache,
    }
}

/// A frame of the source: its offset in channel 0 of an image, and the image stride of its tensor.
#[derive(CubeType, Clone, Copy)]
struct SourceFrame {
    offset: usize,
    inside: bool,
    in_cache: bool,
    image_stride: usize,
}

/// What coordinate `at` along depth reads.
#[cube]
fn frame_at(
    gather: &GatherArgs,
    cache: &ComptimeOption<CacheArgs>,
    at: i32,
    #[comptime] padding: PaddingMode,
) -> SourceFrame {
    #[comptime]
    match cache {
        ComptimeOption::Some(cache) => {
            let depth = source_of(at, gather.depth.extent as i32, padding);
            let frames = cache.frames as i32;
            let in_cache = depth < frames;
            SourceFrame {
                offset: select(in_cache, depth, depth - frames) as usize
                    * select(in_cache, cache.depth_stride, gather.depth.source_stride),
                // Other modes than zeros have mapped it there.
                inside: (depth as u32) < gather.depth.extent,
                in_cache,
                image_stride: select(in_cache, cache.image_stride, gather.source_batch_stride),
            }
        }
        ComptimeOption::None => {
            let (offset, inside) = gather.depth.load_offset(at, padding);
            SourceFrame {
                offset,
                inside,
                in_cache: false.runtime(),
                image_stride: gather.source_batch_stride,
            }
        }
    }
}

/// Offset of channel 0 of image `n` in the tensor that a frame is in.
#[cube]
fn image_at(gather: &GatherArgs, cache: &ComptimeOption<CacheArgs>, frame: &SourceFrame, n: u32) -> usize {
    if comptime!(cache.is_some()) { n as usize * frame.image_stride } else { gather.source_at(n, 0u32) }
}

/// Offset of element `element` of a segment in channel 0 of x, and whether it is inside the source.
#[cube]
pub(super) fn x_offset(
    gather: &GatherArgs,
    tiling: &WeightTiling,
    segment: &Segment,
    element: u32,
    #[comptime] padding: PaddingMode,
) -> (usize, bool) {
    let (row, column) = tiling.pitch_divmod.div_mod(element);
    let (h, h_inside) = gather.height.load_offset(gather.height.coordinate(segment.row + row), padding);
    let (w, w_inside) = gather.width.load_offset(gather.width.coordinate(segment.column + column), padding);
    (segment.x + h + w, h_inside && w_inside)
}

/// Offset of element `element` of a segment in channel 0 of dy, and whether it is a position, not halo.
#[cube]
pub(super) fn dy_offset(
    gather: &GatherArgs,
    tiling: &WeightTiling,
    segment: &Segment,
    element: u32,
) -> (usize, bool) {
    let (row, column) = tiling.pitch_divmod.div_mod(element);
    let inside =
        row < segment.rows && column < tiling.segment_width && segment.column + column < tiling.width;
    let place = segment.dy
        + gather.height.out_offset(segment.row + row)
        + gather.width.out_offset(segment.column + column);
    (place, inside)
}
