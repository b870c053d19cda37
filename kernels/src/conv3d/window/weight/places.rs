//! Where the elements of a cube's strips lie: the work's cut on the device.

use super::WindowWeightTile;
use super::kernel::TAPS;
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::problem::PaddingMode;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// How the work is shared out: a cube's index, from the fastest: channels, output channels, taps of the
/// plane, depth tap, part, group; a strip's index: band of rows, strip, frame, image.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct WeightTiling {
    pub(super) tiles_c: FastDivmod<u32>,
    pub(super) tiles_o: FastDivmod<u32>,
    pub(super) tap_tiles: FastDivmod<u32>,
    pub(super) depth_taps: FastDivmod<u32>,
    pub(super) parts: FastDivmod<u32>,
    pub(super) bands: FastDivmod<u32>,
    pub(super) strips: FastDivmod<u32>,
    pub(super) depth: FastDivmod<u32>,
    /// Strips altogether and of a part.
    pub(super) strip_count: u32,
    pub(super) part_strips: u32,
    pub(super) band_rows: u32,
    /// Sites of a strip's row, and its elements.
    pub(super) sites: u32,
    pub(super) pitch: FastDivmod<u32>,
    pub(super) pitch_count: u32,
    pub(super) height: u32,
    pub(super) width: u32,
    /// Chunks that the taps of one reach beyond it.
    pub(super) ahead: u32,
    /// Channels of a group of x and of dy.
    pub(super) channels: u32,
    pub(super) out_channels: u32,
    /// Taps of a plane, and of a row of it.
    pub(super) taps: u32,
    pub(super) row_taps: FastDivmod<u32>,
    /// Elements of a part, and of the result's from one output channel, channel and tap to the next.
    pub(super) part_stride: usize,
    pub(super) row_stride: usize,
    pub(super) channel_stride: usize,
    pub(super) tap_stride: usize,
}

/// A cube's share.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Share {
    pub(super) first_c: u32,
    pub(super) first_o: u32,
    pub(super) first_tap: u32,
    pub(super) depth_tap: u32,
    pub(super) part: u32,
    pub(super) group: u32,
}

#[cube]
impl WeightTiling {
    pub(super) fn share(&self, cube: u32, #[comptime] tile: WindowWeightTile) -> Share {
        let (rest, c) = self.tiles_c.div_mod(cube);
        let (rest, o) = self.tiles_o.div_mod(rest);
        let (rest, tap) = self.tap_tiles.div_mod(rest);
        let (rest, depth_tap) = self.depth_taps.div_mod(rest);
        let (group, part) = self.parts.div_mod(rest);
        Share {
            first_c: c * comptime!(tile.channels() as u32),
            first_o: o * comptime!(tile.out_channels() as u32),
            first_tap: tap * TAPS as u32,
            depth_tap,
            part,
            group,
        }
    }
}

/// A strip of a plane: where its first site lies, and the planes of x and dy.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Strip {
    pub(super) row: u32,
    pub(super) rows: u32,
    pub(super) column: u32,
    pub(super) x: usize,
    pub(super) dy: usize,
    /// Whether the depth tap reads inside the source.
    pub(super) inside: bool,
}

#[cube]
pub(super) fn strip_at(
    walk: &GatherArgs,
    tiling: &WeightTiling,
    share: &Share,
    index: u32,
    #[comptime] padding: PaddingMode,
) -> Strip {
    let (rest, band) = tiling.bands.div_mod(index);
    let (rest, strip) = tiling.strips.div_mod(rest);
    let (n, d) = tiling.depth.div_mod(rest);
    let at = walk.depth.coordinate(d) + (share.depth_tap * walk.depth.step) as i32;
    let (frame, inside) = walk.depth.load_offset(at, padding);
    let row = band * tiling.band_rows;
    Strip {
        row,
        rows: min(tiling.band_rows, tiling.height - row),
        column: strip * tiling.sites,
        x: walk.source_at(n, 0u32) + frame,
        dy: walk.out_at(n, 0u32) + walk.depth.out_offset(d),
        inside,
    }
}

/// Where element `element` of a strip lies in channel 0 of x, and whether it does.
#[cube]
pub(super) fn x_place(
    walk: &GatherArgs,
    tiling: &WeightTiling,
    strip: &Strip,
    element: u32,
    #[comptime] padding: PaddingMode,
) -> (usize, bool) {
    let (row, column) = tiling.pitch.div_mod(element);
    let (h, h_inside) = walk.height.load_offset(walk.height.coordinate(strip.row + row), padding);
    let (w, w_inside) = walk.width.load_offset(walk.width.coordinate(strip.column + column), padding);
    (strip.x + h + w, h_inside && w_inside)
}

/// Where element `element` of a strip lies in channel 0 of dy, and whether it is a site.
#[cube]
pub(super) fn dy_place(
    walk: &GatherArgs,
    tiling: &WeightTiling,
    strip: &Strip,
    element: u32,
) -> (usize, bool) {
    let (row, column) = tiling.pitch.div_mod(element);
    let inside = row < strip.rows && column < tiling.sites && strip.column + column < tiling.width;
    let place =
        strip.dy + walk.height.out_offset(strip.row + row) + walk.width.out_offset(strip.column + column);
    (place, inside)
}
