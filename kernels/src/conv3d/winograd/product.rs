//! The transform-domain product on fp32 multiply-adds (with MMA instructions: `product_mma.rs`):
//!
//! ```text
//! M[point, o, (n, f, tile)] = sum over (kd, c) of V[point, c, (n, in(f, kd), tile)] * U[point, kd, c, o]
//!
//! one GEMM per point (slowest grid index): M = tiles of the region, N = out channels, K = KD * C
//!
//!            N = o           threadgroup  tile_m x tile_n results of one point
//!         +------+------+    stage        tile_k channels of one depth tap, in shared memory
//!  tiles  | tile |      |    thread       rows x columns results in registers
//!         +------+------+
//! ```
//!
//! V and U are stored as stages need them, so every load is a vector of four; the next stage is loaded while
//! one is multiplied. Output frames share input frames of V by address. Depth taps in the padding of all rows
//! of a tile are skipped; other rows read zero there, or the nearest frame under replicate padding. Per stage
//! and threadgroup: `4 * (tile_m + tile_n) * tile_k` bytes, `2 * tile_m * tile_n * tile_k` FLOP; M is written
//! once per 2048 K elements (F(6x6) with fp32 results: 512).

use super::depth::{DepthAxis, depth_axis};
use super::product_mma::product_mma_kernel;
use super::region::{Region, RegionArgs, VECTOR};
use super::{PRODUCT, WinogradCall, WinogradTile};
use crate::conv3d::gemm::config::{RegisterTile, row_stride};
use crate::conv3d::gemm::stage::{F32x4, column_of, multiply};
use crate::dtype::FloatType;
use crate::launch::{Span, dispatches};
use crate::operand::Operand;
use cubecl::ir::AddressType;
use cubecl::prelude::*;

/// K elements that one launch sums in registers before it adds them to M. Longer fp32 sums lose accuracy, and
/// outputs are small differences of these sums, most of all for F(6x6): results of 16 bits hide that.
pub(super) fn chunk_elements(tile: WinogradTile, result: FloatType) -> usize {
    if tile == WinogradTile::F6x6 && result == FloatType::F32 { 512 } else { 2048 }
}

/// The product's extents and the K chunk.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct ProductArgs {
    depth: DepthAxis,
    pub(crate) in_channels: u32,
    pub(crate) out_channels: u32,
    /// Stages of this launch, counted over all taps; every launch but the first adds to M.
    pub(crate) chunk_first: u32,
    chunk_end: u32,
    tiles_m: usize,
    tiles_n: usize,
}

pub(crate) fn launch(call: &WinogradCall, address: AddressType, region: &Region, [u, v, m]: [&Operand; 3]) {
    let correlation = call.correlation;
    let mma_tile = call.config.mma_tile;
    let [tile_m, tile_n, tile_k, threads] = match mma_tile {
        Some(tile) => [tile.tile_m, tile.tile_n, tile.tile_k, tile.threads()],
        None => [PRODUCT.tile_m, PRODUCT.tile_n, PRODUCT.tile_k, PRODUCT.threads()],
    };
    let (tiles_m, tiles_n) = (region.m_rows().div_ceil(tile_m), correlation.out_channels.div_ceil(tile_n));
    let points = call.config.tile.inputs() * call.config.tile.inputs();
    // Without input channels M is still written, with zeros.
    let stages_per_tap = correlation.in_channels.div_ceil(tile_k).max(1);
    let stages = (correlation.kernel_depth * stages_per_tap) as u32;
    let chunk = (chunk_elements(call.config.tile, call.result) / tile_k) as u32;
    for chunk_first in (0..stages).step_by(chunk as usize) {
        let chunk_end = stages.min(chunk_first + chunk);
        let k_elements = (chunk_end - chunk_first) as usize * tile_k;
        let flop = 2.0 * (tile_m * tile_n * k_elements) as f64;
        for dispatch in dispatches(tiles_m * tiles_n * points, flop, call.limits) {
            let args = ProductArgsLaunch {
                depth: depth_axis(correlation),
                in_channels: correlation.in_channels as u32,
                out_channels: correlation.out_channels as u32,
                chunk_first,
                chunk_end,
                tiles_m,
                tiles_n,
            };
            let [v, u] = [v, u].map(|operand| operand.buffer_arg(VECTOR));
            let m = m.buffer_arg(if mma_tile.is_some() { 1 } else { VECTOR });
            let (count, threads) = (dispatch.count(), CubeDim::new_1d(threads as u32));
            let (client, unroll) = (call.client, call.limits.unroll);
            let (span, region) = (dispatch.span(), region.args());
            // SAFETY: see `mod.rs`; rows and columns past the last load the last one and are not written, K
            // elements and frames past the last are not read.
            unsafe {
                match mma_tile {
                    Some(tile) => product_mma_kernel::launch_unchecked(
                        client, count, threads, address, v, u, m, span, region, args, tile,
                    ),
                    // SAFETY: the same contract and masks.
                    None => product_kernel::launch_unchecked(
                        client, count, threads, address, v, u, m, span, region, args, PRODUCT, unroll,
                    ),
                }
            }
        }
    }
}

/// The threadgroup's tile and this thread's vectors, constant over the K loop. What changes is in
/// [`StageCursor`]: every field of a mutable struct becomes a variable in the kernel.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct TileLoader {
    pub(crate) point: usize,
    /// First row and column of the tile, in vectors.
    pub(crate) first_row: u32,
    pub(crate) first_column: u32,
    /// Vectors per channel of M and of V, and per K element of U.
    pub(crate) m_vectors: u32,
    v_vectors: usize,
    u_vectors: usize,
    /// Offset in V, in vectors, of the thread's row at channel 0 and the region's first input frame.
    row_offset: usize,
    /// The input frame of depth tap 0; negative in the padding.
    first_tap_frame: i32,
    /// Offset in U, in vectors, of the thread's columns at K element 0.
    column_offset: usize,
}

/// The next stage to load.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct StageCursor {
    kd: u32,
    /// One past the last depth tap.
    end_kd: u32,
    /// First channel.
    c: u32,
    /// Stages counted over all taps: the next one, and one past the last of this launch.
    pub(crate) position: u32,
    pub(crate) end: u32,
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn product_kernel(
    v: &[F32x4],
    u: &[F32x4],
    m: &mut [F32x4],
    span: Span,
    region: RegionArgs,
    args: ProductArgs,
    #[comptime] tile: RegisterTile,
    #[comptime] unroll: bool,
) {
    // Uniform over the threadgroup: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let loader = TileLoader::new(span.index(), &region, &args, tile.tile_m, tile.tile_n);
    let mut stage = loader.first_stage(&region, &args, tile.tile_m, tile.tile_k);

    let mut row_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.tile_k * row_stride(tile.tile_m)));
    let mut column_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.tile_k * row_stride(tile.tile_n)));
    let mut sums = Array::<f32>::new(comptime!(tile.rows * tile.columns));
    #[unroll]
    for i in 0..comptime!(tile.rows * tile.columns) {
        sums[i] = 0.0f32;
    }
    let threads = comptime!(tile.threads());
    let next_rows = loader.load_rows(v, &stage, &region, &args, tile.tile_m, tile.tile_k, threads);
    let next_columns = loader.load_columns(u, &stage, &args, tile.tile_n, tile.tile_k, threads);
    store_stage(&next_rows, &mut row_stage, tile.tile_m, threads);
    store_stage(&next_columns, &mut column_stage, tile.tile_n, threads);
    sync_cube();
    while stage.position < stage.end {
        stage.advance(&args, tile.tile_k);
        let next_rows = loader.load_rows(v, &stage, &region, &args, tile.tile_m, tile.tile_k, threads);
        let next_columns = loader.load_columns(u, &stage, &args, tile.tile_n, tile.tile_k, threads);
        multiply(&row_stage, &column_stage, &mut sums, tile, unroll);
        sync_cube();
        store_stage(&next_rows, &mut row_stage, tile.tile_m, threads);
        store_stage(&next_columns, &mut column_stage, tile.tile_n, threads);
        sync_cube();
    }

    #[unroll]
    for i in 0..comptime!(tile.rows / VECTOR) {
        let row = loader.first_row
            + UNIT_POS % comptime!((tile.tile_m / tile.rows) as u32)
            + comptime!((i * (tile.tile_m / tile.rows)) as u32);
        if row < loader.m_vectors {
            #[unroll]
            for j in 0..comptime!(tile.columns) {
                let n = loader.first_column * VECTOR as u32 + column_of(j, tile);
                if n < args.out_channels {
                    let at = loader.result_offset(&args, n, row);
                    let mut values = F32x4::empty();
                    #[unroll]
                    for r in 0..VECTOR {
                        values.insert(r, sums[comptime!((i * VECTOR + r) * tile.columns + j)]);
                    }
                    if args.chunk_first > 0u32 {
                        values += m[at];
                    }
                    m[at] = values;
                }
            }
        }
    }
}

#[cube]
impl ProductArgs {
    /// Stages of one depth tap.
    fn stages_per_tap(&self, #[comptime] tile_k: usize) -> u32 {
        max((self.in_channels + comptime!(tile_k as u32 - 1)) / comptime!(tile_k as u32), 1u32)
    }

    /// The depth taps inside the input for any of the rows `first..=last` (in vectors): first, one past last.
    fn tap_range(&self, region: &RegionArgs, first: u32, last: u32) -> (u32, u32) {
        let (first, last) = (first / region.vectors, last / region.vectors);
        let image = first / region.frames;
        let mut kd = 0u32;
        let mut end = self.depth.kernel;
        // Rows of several images: no tap is skipped.
        if self.depth.replicate == 0u32 && last / region.frames == image {
            let low = self.depth.first_input(region.first_frame + first - image * region.frames);
            let high = self.depth.first_input(region.first_frame + last - image * region.frames);
            while kd < end && high + ((kd * self.depth.dilation) as i32) < 0i32 {
                kd += 1u32;
            }
            while end > kd && low + ((end - 1u32) * self.depth.dilation) as i32 >= self.depth.input as i32 {
                end -= 1u32;
            }
        }
        (kd, end)
    }
}

#[cube]
impl StageCursor {
    /// Advances to the next stage; past the last one, loads return zeros.
    pub(crate) fn advance(&mut self, args: &ProductArgs, #[comptime] tile_k: usize) {
        self.position += 1u32;
        self.c += tile_k as u32;
        if self.c >= args.in_channels {
            self.c = 0u32;
            self.kd += 1u32;
        }
    }
}

#[cube]
impl TileLoader {
    /// The loader of a threadgroup: columns fastest, then rows, then points.
    pub(crate) fn new(
        threadgroup: usize,
        region: &RegionArgs,
        args: &ProductArgs,
        #[comptime] tile_m: usize,
        #[comptime] tile_n: usize,
    ) -> TileLoader {
        let in_n = threadgroup % args.tiles_n;
        let rest = threadgroup / args.tiles_n;
        let in_m = rest % args.tiles_m;
        let point = rest / args.tiles_m;
        let tile_rows = comptime!((tile_m / VECTOR) as u32);
        let tile_columns = comptime!((tile_n / VECTOR) as u32);
        let first_row = in_m as u32 * tile_rows;
        let first_column = in_n as u32 * tile_columns;
        let m_vectors = region.images * region.frames * region.vectors;
        let u_vectors = (args.out_channels + comptime!(VECTOR as u32 - 1)) / VECTOR as u32;
        let v_vectors = (region.images * region.input_frames * region.vectors) as usize;
        let row = min(first_row + UNIT_POS % tile_rows, m_vectors - 1u32);
        let image_frame = row / region.vectors;
        let image = image_frame / region.frames;
        let frame = image_frame - image * region.frames;
        let in_frame = row - image_frame * region.vectors;
        let k_elements = args.depth.kernel as usize * args.in_channels as usize;
        TileLoader {
            point,
            first_row,
            first_column,
            m_vectors,
            v_vectors,
            u_vectors: u_vectors as usize,
            row_offset: point * args.in_channels as usize * v_vectors
                + (image * region.input_frames * region.vectors + in_frame) as usize,
            first_tap_frame: args.depth.first_input(region.first_frame + frame),
            column_offset: point * k_elements * u_vectors as usize
                + min(first_column + UNIT_POS % tile_columns, u_vectors - 1u32) as usize,
        }
    }

    /// The first stage of this launch that any row of the tile needs.
    pub(crate) fn first_stage(
        &self,
        region: &RegionArgs,
        args: &ProductArgs,
        #[comptime] tile_m: usize,
        #[comptime] tile_k: usize,
    ) -> StageCursor {
        let end_row = min(self.first_row + comptime!((tile_m / VECTOR) as u32), self.m_vectors);
        let (first_kd, end_kd) = args.tap_range(region, self.first_row, end_row - 1u32);
        let stages = args.stages_per_tap(tile_k);
        let position = max(first_kd * stages, args.chunk_first);
        let kd = position / stages;
        StageCursor {
            kd,
            end_kd,
            c: (position - kd * stages) * tile_k as u32,
            position,
            end: min(end_kd * stages, args.chunk_end),
        }
    }

    /// Offset in M, in vectors, of a channel's row.
    pub(crate) fn result_offset(&self, args: &ProductArgs, channel: u32, row: u32) -> usize {
        (self.point * args.out_channels as usize + channel as usize) * self.m_vectors as usize + row as usize
    }

    /// Loads this thread's vectors of a stage of V.
    pub(crate) fn load_rows(
        &self,
        v: &[F32x4],
        stage: &StageCursor,
        region: &RegionArgs,
        args: &ProductArgs,
        #[comptime] extent: usize,
        #[comptime] tile_k: usize,
        #[comptime] threads: usize,
    ) -> Sequence<F32x4> {
        let mut values = Sequence::<F32x4>::new();
        let mut frame = self.first_tap_frame + (stage.kd * args.depth.dilation) as i32;
        if args.depth.replicate == 1u32 {
            frame = clamp(frame, 0i32, args.depth.input as i32 - 1i32);
        }
        let inside = (frame as u32) < args.depth.input && stage.kd < stage.end_kd;
        let at =
            self.row_offset + (frame as u32 - region.first_input_frame) as usize * region.vectors as usize;
        #[unroll]
        for load in 0..comptime!((extent / VECTOR * tile_k).div_ceil(threads)) {
            let c = stage.c
                + UNIT_POS / comptime!((extent / VECTOR) as u32)
                + comptime!((load * threads / (extent / VECTOR)) as u32);
            let mut value = F32x4::new(0.0f32);
            if inside && c < args.in_channels {
                value = v[at + c as usize * self.v_vectors];
            }
            values.push(value);
        }
        values
    }

    /// Loads this thread's vectors of a stage of U.
    pub(crate) fn load_columns(
        &self,
        u: &[F32x4],
        stage: &StageCursor,
        args: &ProductArgs,
        #[comptime] extent: usize,
        #[comptime] tile_k: usize,
        #[comptime] threads: usize,
    ) -> Sequence<F32x4> {
        let mut values = Sequence::<F32x4>::new();
        #[unroll]
        for load in 0..comptime!((extent / VECTOR * tile_k).div_ceil(threads)) {
            let c = stage.c
                + UNIT_POS / comptime!((extent / VECTOR) as u32)
                + comptime!((load * threads / (extent / VECTOR)) as u32);
            let mut value = F32x4::new(0.0f32);
            if stage.kd < stage.end_kd && c < args.in_channels {
                value = u[self.column_offset + (stage.kd * args.in_channels + c) as usize * self.u_vectors];
            }
            values.push(value);
        }
        values
    }
}

/// Stores a thread's loaded vectors into the shared stage of `extent` rows or columns.
#[cube]
pub(crate) fn store_stage(
    from: &Sequence<F32x4>,
    stage: &mut Shared<[F32x4]>,
    #[comptime] extent: usize,
    #[comptime] threads: usize,
) {
    let vectors = comptime!(extent / VECTOR);
    #[unroll]
    for load in 0..from.len() {
        let k = UNIT_POS as usize / vectors + comptime!(load * threads / vectors);
        stage[k * comptime!(row_stride(extent)) + UNIT_POS as usize % vectors] = *from.index(load);
    }
}
