//! The input gradient of stems: few channels of dx, which a product with a row per position would leave its columns empty for.
//! The positions of a plane are taken in blocks of one stride by one stride, which see the same windows.
//!
//! ```text
//! dx[c, block * stride + phase] = sum over depth taps, o, taps j of the plane of
//!                                 dy[o, block + origin + j * step] * W[j, o][c, phase]
//!
//!    a strip of a plane, row by row          rows of the product:     blocks, `tile_m` behind each other in a strip; those in
//!    +--------------------------+            columns:                 its rim are computed and not written
//!    | blocks            | rim  |              channels of dx, phases of the block: 3 * 2 * 2 for a stride of 2
//!    | blocks   ..tile.. | rim  |            a unit: blocks u, u + units, .. and all columns of the tile, in registers
//!    +--------------------------+            a tap:  the same window of dy, read from another place
//! ```
//!
//! A cube computes one frame, so that depth taps that reach it from no window are left out. Of two channels of dy at a time it
//! holds the window and the weights in shared memory: it reads `2 * reach` elements and `8 * taps * columns` bytes of weights
//! for `4 * taps * tile_m * columns` operations. Per tap and channel a unit reads `rows + columns / 4` times from shared memory
//! (blocks beside those of its neighbours, columns the same as theirs) for `rows * columns` multiply-adds.
//! Phases that a tap does not reach multiply zeros: 8 of 7 taps along an axis for a kernel of 7, 4 of 3 for one of 3.
//! A sum that is split leaves fp32 partials for `reduce.rs`. Declined: more than four channels per group, windows that do not
//! fit ([`super::config`]), other passes.

use super::config::StemTile;
use crate::cells::Cells;
use crate::grid::Span;
use cubecl::ir::ElemType;
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

/// How the work is shared out: a cube's index, from the fastest: tile of blocks, strip, tile of columns, frame, image, group,
/// part of the sum.
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

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn stem_kernel<E: Float, O: Float>(
    dy: &[E],
    weight: &[Vector<f32, Const<4>>],
    out: &mut [O],
    tiling: Tiling,
    span: Span,
    #[comptime] tile: StemTile,
    #[comptime] unroll: bool,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let share = tiling.share(span.cube() as u32, tile.tile_m);
    let mut window = Shared::<[f32]>::new_slice(comptime!(tile.channels * tile.window));
    let mut weights = Shared::<[Vector<f32, Const<4>>]>::new_slice(tile.stage_vectors());
    let sums = Cells::<f32>::new(comptime!(tile.rows * tile.columns), 0.0f32.runtime());
    let places = places(&tiling, &share, tile);
    let source = share.n as usize * tiling.source_batch_stride
        + (share.group * tiling.channels) as usize * tiling.source_channel_stride;
    let first_chunk = share.part * tiling.part_chunks;
    let end_chunk = min(first_chunk + tiling.part_chunks, tiling.chunks);
    let (first_tap, taps) = tiling.depth.inside(share.d);
    let of_tap = (share.group * tiling.column_tile_count + share.column_tile) * tiling.depth.taps;

    // A stage is read while the one before it is multiplied: it waits in registers.
    let stages = taps * (max(end_chunk, first_chunk) - first_chunk);
    let mut tap = first_tap;
    let mut chunk = first_chunk;
    let mut stage = 0u32.runtime();
    let (frame, _) = tiling.depth.window(share.d, tap);
    let more = stages > 0u32;
    let sources = read_window(dy, &tiling, &places, source, frame, chunk, more, tile);
    let factors = read_weights(weight, &tiling, of_tap + tap, chunk, more, tile);
    write_window(&sources, &mut window, tile);
    write_weights(&factors, &mut weights, tile);
    sync_cube();
    while stage < stages {
        stage += 1u32;
        chunk += 1u32;
        if chunk == end_chunk {
            chunk = first_chunk;
            tap += tiling.depth.tap_step;
        }
        let (frame, _) = tiling.depth.window(share.d, tap);
        let more = stage < stages;
        let sources = read_window(dy, &tiling, &places, source, frame, chunk, more, tile);
        let factors = read_weights(weight, &tiling, of_tap + tap, chunk, more, tile);
        multiply(&window, &weights, &sums, &tiling, tile, unroll);
        sync_cube();
        write_window(&sources, &mut window, tile);
        write_weights(&factors, &mut weights, tile);
        sync_cube();
    }
    write(&sums, out, &tiling, &share, tile);
}

/// Where the elements of the window that a unit reads lie in a plane of dy, and a bit for each that says whether they do.
#[derive(CubeType)]
struct Places {
    at: Sequence<usize>,
    mask: u32,
}

#[cube]
fn places(tiling: &Tiling, share: &Share, #[comptime] tile: StemTile) -> Places {
    let mut at = Sequence::<usize>::new();
    let mut mask = 0u32.runtime();
    #[unroll]
    for i in 0..comptime!(tile.reads()) {
        let element = share.first + UNIT_POS + comptime!((i * tile.units()) as u32);
        let (h, w) = tiling.block(share, element);
        let (h, h_inside) = tiling.height.window(h);
        let (w, w_inside) = tiling.width.window(w);
        at.push(h + w);
        mask |= select(h_inside && w_inside, comptime!(1u32 << i), 0u32);
    }
    Places { at, mask }
}

/// Reads this unit's elements of a window into registers.
#[cube]
#[allow(clippy::too_many_arguments)]
fn read_window<E: Float>(
    dy: &[E],
    tiling: &Tiling,
    places: &Places,
    source: usize,
    frame: u32,
    chunk: u32,
    exists: bool,
    #[comptime] tile: StemTile,
) -> Sequence<E> {
    let first_channel = chunk * tile.channels as u32;
    let mut at = source
        + first_channel as usize * tiling.source_channel_stride
        + frame as usize * tiling.depth.source_stride;
    let mut values = Sequence::<E>::new();
    #[unroll]
    for c in 0..tile.channels {
        let exists = exists && first_channel + (c as u32) < tiling.channels;
        #[unroll]
        for i in 0..comptime!(tile.reads()) {
            let mut value = E::from_int(0);
            if exists && places.mask & comptime!(1u32 << i) != 0u32 {
                value = dy[at + *places.at.index(i)];
            }
            values.push(value);
        }
        at += tiling.source_channel_stride;
    }
    values
}

/// Writes what [`read_window`] has read.
#[cube]
fn write_window<E: Float>(values: &Sequence<E>, window: &mut Shared<[f32]>, #[comptime] tile: StemTile) {
    #[unroll]
    for c in 0..tile.channels {
        #[unroll]
        for i in 0..comptime!(tile.reads()) {
            window[UNIT_POS as usize + comptime!(c * tile.window + i * tile.units())] =
                f32::cast_from(*values.index(comptime!(c * tile.reads() + i)));
        }
    }
}

/// Reads this unit's vectors of a stage's packed weights into registers.
#[cube]
fn read_weights(
    weight: &[Vector<f32, Const<4>>],
    tiling: &Tiling,
    of_tap: u32,
    chunk: u32,
    exists: bool,
    #[comptime] tile: StemTile,
) -> Sequence<Vector<f32, Const<4>>> {
    let stage = tiling.height.taps * tiling.width.taps * comptime!((tile.channels * tile.vectors()) as u32);
    let first = (of_tap * tiling.chunks + chunk) as usize * stage as usize;
    let mut values = Sequence::<Vector<f32, Const<4>>>::new();
    #[unroll]
    for i in 0..comptime!(tile.weight_reads()) {
        let at = UNIT_POS + comptime!((i * tile.units()) as u32);
        let mut value = Vector::<f32, Const<4>>::new(0.0f32);
        if exists && at < stage {
            value = weight[first + at as usize];
        }
        values.push(value);
    }
    values
}

/// Writes what [`read_weights`] has read.
#[cube]
fn write_weights(
    values: &Sequence<Vector<f32, Const<4>>>,
    weights: &mut Shared<[Vector<f32, Const<4>>]>,
    #[comptime] tile: StemTile,
) {
    #[unroll]
    for i in 0..comptime!(tile.weight_reads()) {
        weights[UNIT_POS as usize + comptime!(i * tile.units())] = *values.index(i);
    }
}

/// Adds the products of a stage to a unit's sums: taps in order, channels in order.
#[cube]
fn multiply(
    window: &Shared<[f32]>,
    weights: &Shared<[Vector<f32, Const<4>>]>,
    sums: &Cells<f32>,
    tiling: &Tiling,
    #[comptime] tile: StemTile,
    #[comptime] unroll: bool,
) {
    let mut row = UNIT_POS as usize;
    let mut from = 0usize.runtime();
    let mut h = 0u32.runtime();
    while h < tiling.height.taps {
        let mut at = row;
        let mut w = 0u32.runtime();
        while w < tiling.width.taps {
            #[unroll(unroll)]
            for c in 0..tile.channels {
                let mut factors = Sequence::<Vector<f32, Const<4>>>::new();
                #[unroll]
                for j in 0..comptime!(tile.vectors()) {
                    factors.push(weights[from + c * comptime!(tile.vectors()) + j]);
                }
                #[unroll]
                for i in 0..comptime!(tile.rows) {
                    let value = window[at + c * tile.window + comptime!(i * tile.units())];
                    #[unroll]
                    for j in 0..comptime!(tile.columns) {
                        let factor = factors.index(comptime!(j / 4)).extract(comptime!(j % 4));
                        let sum = comptime!(i * tile.columns + j);
                        sums.set(sum, fma(value, factor, sums.get(sum)));
                    }
                }
            }
            from += comptime!(tile.channels * tile.vectors());
            at += tiling.width.step as usize;
            w += 1u32;
        }
        row += (tiling.height.step * tiling.pitch_count) as usize;
        h += 1u32;
    }
}

/// Writes a unit's sums, but for positions past the input's end and columns past the last. (What [`Tiling::place`] says, but
/// computed behind the test: before it, 12 columns took a tenth longer on an H200.)
#[cube]
fn write<O: Float>(
    sums: &Cells<f32>,
    out: &mut [O],
    tiling: &Tiling,
    share: &Share,
    #[comptime] tile: StemTile,
) {
    let first = tiling.out_first(share);
    #[unroll]
    for j in 0..comptime!(tile.columns) {
        let column = share.column_tile * tile.columns as u32 + j as u32;
        let (rest, phase_w) = tiling.width.phases.div_mod(column);
        let (c, phase_h) = tiling.height.phases.div_mod(rest);
        let of_channel = first + c as usize * tiling.out_channel_stride;
        #[unroll]
        for i in 0..comptime!(tile.rows) {
            let element = share.first + UNIT_POS + comptime!((i * tile.units()) as u32);
            let (block_h, block_w) = tiling.block(share, element);
            let h = block_h * tiling.height.stride + phase_h;
            let w = block_w * tiling.width.stride + phase_w;
            let exists = block_w - share.strip < tiling.blocks && column < tiling.columns;
            if exists && h < tiling.height.positions && w < tiling.width.positions {
                let at =
                    of_channel + h as usize * tiling.height.out_stride + w as usize * tiling.width.out_stride;
                out[at] = O::cast_from(sums.get(comptime!(i * tile.columns + j)));
            }
        }
    }
}
