//! The transform-domain product, on fp32 multiply-adds (on matrix units: `matrix_product.rs`):
//!
//! ```text
//! M[point, o, (image, frame, tile)] = sum over (kd, c) of
//!                                     V[point, c, (image, source(frame, kd), tile)] * U[point, kd, c, o]
//! ```
//!
//! One matrix product per point, points being the slowest index of the grid: rows are the region's tiles,
//! columns the output channels, K = KD * C. Sources of consecutive frames overlap in V, by their addresses.
//!
//! The cube's tile, its stages and the unit's registers are those of [`RegisterTile`]: V and U lie in memory
//! as the stages want them, so every load is a vector of four neighbours, and the next stage is read while
//! one is multiplied. A stage holds channels of one depth tap. Taps in the depth padding of all of a cube's
//! rows are skipped; other rows read zero there, or the nearest frame under replicate padding. Per stage and
//! cube: `(tile_m + tile_n) * tile_k` loads, `2 * tile_m * tile_n * tile_k` operations; M is written once per
//! 2048 terms (F(6x6): 512).

use super::product_mma::product_mma_kernel;
use super::region::{Region, RegionArgs, VECTOR};
use super::{Call, PRODUCT, WinogradTile};
use crate::conv3d::gemm::config::{RegisterTile, row_stride};
use crate::conv3d::gemm::stage::{F32x4, column_of, multiply};
use crate::launch::{Span, dispatches};
use crate::operand::Operand;
use cubecl::ir::AddressType;
use cubecl::prelude::*;

/// Stages of a launch, `tile_k` terms each, that registers sum before M does: a longer fp32 sum loses digits,
/// and Winograd's outputs are small differences of its sums, those of F(6x6) the smallest.
pub(super) fn part_stages(tile: WinogradTile, tile_k: usize) -> u32 {
    let terms = if tile == WinogradTile::F6x6 { 512 } else { 2048 };
    (terms / tile_k) as u32
}

/// How output frames find their input frames, and the extents of the product.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Depth {
    input: u32,
    kernel: u32,
    stride: u32,
    dilation: u32,
    begin: i32,
    /// 1 where frames outside the input repeat the nearest one.
    replicate: u32,
    pub(crate) in_channels: u32,
    pub(crate) out_channels: u32,
    /// The stages of this launch, counted over all taps; all but the first launch add to M.
    pub(crate) part_first: u32,
    part_end: u32,
    tiles_m: usize,
    tiles_n: usize,
}

pub(crate) fn launch(call: &Call, address: AddressType, region: &Region, [u, v, m]: [&Operand; 3]) {
    let correlation = call.correlation;
    let matrices = call.config.matrices;
    let [tile_m, tile_n, tile_k, units] = match matrices {
        Some(tile) => [tile.tile_m, tile.tile_n, tile.tile_k, tile.threads()],
        None => [PRODUCT.tile_m, PRODUCT.tile_n, PRODUCT.tile_k, PRODUCT.threads()],
    };
    let (tiles_m, tiles_n) = (region.m_rows().div_ceil(tile_m), correlation.out_channels.div_ceil(tile_n));
    let points = call.config.tile.inputs() * call.config.tile.inputs();
    // Without input channels (the gradient of a result without channels) there is still M to write.
    let of_tap = correlation.in_channels.div_ceil(tile_k).max(1);
    let stages = (correlation.kernel_depth * of_tap) as u32;
    let part = part_stages(call.config.tile, tile_k);
    for part_first in (0..stages).step_by(part as usize) {
        let part_end = stages.min(part_first + part);
        let terms = (part_end - part_first) as usize * tile_k;
        let operations = 2.0 * (tile_m * tile_n * terms) as f64;
        for dispatch in dispatches(tiles_m * tiles_n * points, operations, call.limits) {
            let depth = DepthLaunch::new(
                correlation.input[0] as u32,
                correlation.kernel_depth as u32,
                correlation.stride_depth as u32,
                correlation.dilation_depth as u32,
                correlation.begin[0],
                u32::from(correlation.replicate),
                correlation.in_channels as u32,
                correlation.out_channels as u32,
                part_first,
                part_end,
                tiles_m,
                tiles_n,
            );
            let [v, u, m] = [v, u, m].map(|operand| operand.buffer_arg(VECTOR));
            let (count, units) = (dispatch.count(), CubeDim::new_1d(units as u32));
            let (client, unroll) = (call.client, call.limits.unroll);
            let (span, region) = (dispatch.span(), region.args());
            // SAFETY: rows and columns past the last repeat it unwritten; no later term or frame is read.
            unsafe {
                match matrices {
                    Some(tile) => product_mma_kernel::launch_unchecked(
                        client, count, units, address, v, u, m, span, region, depth, tile,
                    ),
                    // SAFETY: as above.
                    None => product_kernel::launch_unchecked(
                        client, count, units, address, v, u, m, span, region, depth, PRODUCT, unroll,
                    ),
                }
            }
        }
    }
}

/// A cube's tile and its unit's vector of rows and of columns, kept through all stages. What changes is in
/// [`Stage`]: every field of a struct that changes is a variable in the emitted text.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Walk {
    pub(crate) point: usize,
    /// First row and column of the tile, in vectors.
    pub(crate) first_row: u32,
    pub(crate) first_column: u32,
    /// Rows of M and of V, and columns, in vectors.
    pub(crate) rows: u32,
    v_rows: usize,
    columns: usize,
    /// Offset in V, in vectors, of the unit's row at channel 0 and the region's first source frame.
    row: usize,
    /// The frame that tap 0 reads; negative in the padding.
    source: i32,
    /// Offset in U, in vectors, of the unit's columns at term 0.
    column: usize,
}

/// The next stage to read.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Stage {
    kd: u32,
    /// One past the last tap.
    end_kd: u32,
    /// First channel.
    c: u32,
    /// Counted over all taps, and one past the last of this launch.
    pub(crate) position: u32,
    pub(crate) end: u32,
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn product_kernel(
    v: &[F32x4],
    u: &[F32x4],
    m: &mut [F32x4],
    span: Span,
    region: RegionArgs,
    depth: Depth,
    #[comptime] tile: RegisterTile,
    #[comptime] unroll: bool,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let walk = Walk::new(span.cube(), &region, &depth, tile.tile_m, tile.tile_n);
    let mut stage = walk.first_stage(&region, &depth, tile.tile_m, tile.tile_k);

    let mut row_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.tile_k * row_stride(tile.tile_m)));
    let mut column_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.tile_k * row_stride(tile.tile_n)));
    let mut sums = Array::<f32>::new(comptime!(tile.rows * tile.columns));
    #[unroll]
    for i in 0..comptime!(tile.rows * tile.columns) {
        sums[i] = 0.0f32;
    }

    let units = comptime!(tile.threads());
    let next_rows = walk.load_rows(v, &stage, &region, &depth, tile.tile_m, tile.tile_k, units);
    let next_columns = walk.load_columns(u, &stage, &depth, tile.tile_n, tile.tile_k, units);
    store_stage(&next_rows, &mut row_stage, tile.tile_m, units);
    store_stage(&next_columns, &mut column_stage, tile.tile_n, units);
    sync_cube();
    while stage.position < stage.end {
        stage.advance(&depth, tile.tile_k);
        let next_rows = walk.load_rows(v, &stage, &region, &depth, tile.tile_m, tile.tile_k, units);
        let next_columns = walk.load_columns(u, &stage, &depth, tile.tile_n, tile.tile_k, units);
        multiply(&row_stage, &column_stage, &mut sums, tile, unroll);
        sync_cube();
        store_stage(&next_rows, &mut row_stage, tile.tile_m, units);
        store_stage(&next_columns, &mut column_stage, tile.tile_n, units);
        sync_cube();
    }

    #[unroll]
    for i in 0..comptime!(tile.rows / VECTOR) {
        let row = walk.first_row
            + UNIT_POS % comptime!((tile.tile_m / tile.rows) as u32)
            + comptime!((i * (tile.tile_m / tile.rows)) as u32);
        if row < walk.rows {
            #[unroll]
            for j in 0..comptime!(tile.columns) {
                let n = walk.first_column * VECTOR as u32 + column_of(j, tile);
                if n < depth.out_channels {
                    let at = walk.result(&depth, n, row);
                    let mut values = F32x4::empty();
                    #[unroll]
                    for r in 0..VECTOR {
                        values.insert(r, sums[comptime!((i * VECTOR + r) * tile.columns + j)]);
                    }
                    if depth.part_first > 0u32 {
                        values += m[at];
                    }
                    m[at] = values;
                }
            }
        }
    }
}

#[cube]
impl Depth {
    /// The frame that tap 0 of an output frame reads.
    fn source(&self, frame: u32) -> i32 {
        (frame * self.stride) as i32 - self.begin
    }

    /// Stages of one depth tap.
    fn stages(&self, #[comptime] tile_k: usize) -> u32 {
        max((self.in_channels + comptime!(tile_k as u32 - 1)) / comptime!(tile_k as u32), 1u32)
    }

    /// The taps that any of the rows `first..=last` (in vectors) reads: the first, and one past the last.
    fn taps(&self, region: &RegionArgs, first: u32, last: u32) -> (u32, u32) {
        let (first, last) = (first / region.vectors, last / region.vectors);
        let image = first / region.frames;
        let mut kd = 0u32;
        let mut end = self.kernel;
        // Frames of two images read all taps between them, or so few that it does not matter.
        if self.replicate == 0u32 && last / region.frames == image {
            let low = self.source(region.first_frame + first - image * region.frames);
            let high = self.source(region.first_frame + last - image * region.frames);
            while kd < end && high + ((kd * self.dilation) as i32) < 0i32 {
                kd += 1u32;
            }
            while end > kd && low + ((end - 1u32) * self.dilation) as i32 >= self.input as i32 {
                end -= 1u32;
            }
        }
        (kd, end)
    }
}

#[cube]
impl Stage {
    /// Goes on to the next stage; past the last there is nothing to read.
    pub(crate) fn advance(&mut self, depth: &Depth, #[comptime] tile_k: usize) {
        self.position += 1u32;
        self.c += tile_k as u32;
        if self.c >= depth.in_channels {
            self.c = 0u32;
            self.kd += 1u32;
        }
    }
}

#[cube]
impl Walk {
    /// The walk of a cube: columns fastest, then rows, then points.
    pub(crate) fn new(
        cube: usize,
        region: &RegionArgs,
        depth: &Depth,
        #[comptime] tile_m: usize,
        #[comptime] tile_n: usize,
    ) -> Walk {
        let in_n = cube % depth.tiles_n;
        let rest = cube / depth.tiles_n;
        let in_m = rest % depth.tiles_m;
        let point = rest / depth.tiles_m;

        let row_vectors = comptime!((tile_m / VECTOR) as u32);
        let column_vectors = comptime!((tile_n / VECTOR) as u32);
        let first_row = in_m as u32 * row_vectors;
        let first_column = in_n as u32 * column_vectors;
        let rows = region.images * region.frames * region.vectors;
        let columns = (depth.out_channels + comptime!(VECTOR as u32 - 1)) / VECTOR as u32;

        let v_rows = (region.images * region.sources * region.vectors) as usize;
        let row = min(first_row + UNIT_POS % row_vectors, rows - 1u32);
        let image_frame = row / region.vectors;
        let image = image_frame / region.frames;
        let frame = image_frame - image * region.frames;
        let in_frame = row - image_frame * region.vectors;
        let terms = depth.kernel as usize * depth.in_channels as usize;
        Walk {
            point,
            first_row,
            first_column,
            rows,
            v_rows,
            columns: columns as usize,
            row: point * depth.in_channels as usize * v_rows
                + (image * region.sources * region.vectors + in_frame) as usize,
            source: depth.source(region.first_frame + frame),
            column: point * terms * columns as usize
                + min(first_column + UNIT_POS % column_vectors, columns - 1u32) as usize,
        }
    }

    /// The first stage that any row of the tile reads in this launch.
    pub(crate) fn first_stage(
        &self,
        region: &RegionArgs,
        depth: &Depth,
        #[comptime] tile_m: usize,
        #[comptime] tile_k: usize,
    ) -> Stage {
        let end_row = min(self.first_row + comptime!((tile_m / VECTOR) as u32), self.rows);
        let (first_kd, end_kd) = depth.taps(region, self.first_row, end_row - 1u32);
        // The part's stages among those of the taps that are read.
        let stages = depth.stages(tile_k);
        let position = max(first_kd * stages, depth.part_first);
        let kd = position / stages;
        Stage {
            kd,
            end_kd,
            c: (position - kd * stages) * tile_k as u32,
            position,
            end: min(end_kd * stages, depth.part_end),
        }
    }

    /// Offset in M, in vectors, of a channel's row.
    pub(crate) fn result(&self, depth: &Depth, channel: u32, row: u32) -> usize {
        (self.point * depth.out_channels as usize + channel as usize) * self.rows as usize + row as usize
    }

    /// Reads this unit's vectors of a stage of V.
    pub(crate) fn load_rows(
        &self,
        v: &[F32x4],
        stage: &Stage,
        region: &RegionArgs,
        depth: &Depth,
        #[comptime] extent: usize,
        #[comptime] tile_k: usize,
        #[comptime] units: usize,
    ) -> Sequence<F32x4> {
        let mut values = Sequence::<F32x4>::new();
        let mut source = self.source + (stage.kd * depth.dilation) as i32;
        if depth.replicate == 1u32 {
            source = clamp(source, 0i32, depth.input as i32 - 1i32);
        }
        let inside = (source as u32) < depth.input && stage.kd < stage.end_kd;
        let at = self.row + (source as u32 - region.first_source) as usize * region.vectors as usize;
        #[unroll]
        for load in 0..comptime!((extent / VECTOR * tile_k).div_ceil(units)) {
            let c = stage.c
                + UNIT_POS / comptime!((extent / VECTOR) as u32)
                + comptime!((load * units / (extent / VECTOR)) as u32);
            let mut value = F32x4::new(0.0f32);
            if inside && c < depth.in_channels {
                value = v[at + c as usize * self.v_rows];
            }
            values.push(value);
        }
        values
    }

    /// Reads this unit's vectors of a stage of U.
    pub(crate) fn load_columns(
        &self,
        u: &[F32x4],
        stage: &Stage,
        depth: &Depth,
        #[comptime] extent: usize,
        #[comptime] tile_k: usize,
        #[comptime] units: usize,
    ) -> Sequence<F32x4> {
        let mut values = Sequence::<F32x4>::new();
        #[unroll]
        for load in 0..comptime!((extent / VECTOR * tile_k).div_ceil(units)) {
            let c = stage.c
                + UNIT_POS / comptime!((extent / VECTOR) as u32)
                + comptime!((load * units / (extent / VECTOR)) as u32);
            let mut value = F32x4::new(0.0f32);
            if stage.kd < stage.end_kd && c < depth.in_channels {
                value = u[self.column + (stage.kd * depth.in_channels + c) as usize * self.columns];
            }
            values.push(value);
        }
        values
    }
}

/// Writes the vectors that were read of a stage of `extent` rows or columns.
#[cube]
pub(crate) fn store_stage(
    from: &Sequence<F32x4>,
    stage: &mut Shared<[F32x4]>,
    #[comptime] extent: usize,
    #[comptime] units: usize,
) {
    let vectors = comptime!(extent / VECTOR);
    #[unroll]
    for load in 0..from.len() {
        let k = UNIT_POS as usize / vectors + comptime!(load * units / vectors);
        stage[k * comptime!(row_stride(extent)) + UNIT_POS as usize % vectors] = *from.index(load);
    }
}
