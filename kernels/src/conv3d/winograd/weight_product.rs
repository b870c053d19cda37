//! The transform-domain product of the weight gradient, on fp32 multiply-adds (with MMA instructions:
//! `weight_product_mma.rs`):
//!
//! ```text
//! S[slice, point, kd, c, o] += sum over the slice's (image, frame, tile) of
//!                              D[point, o, (image, frame, tile)]
//!                              * V[point, c, (image, input_frame(frame, kd), tile)]
//!
//! one GEMM per point (slowest grid index), slice and kd: M = out channels, N = in channels, K = tiles
//!
//!            tiles (K)               stage: tile_k rows (tiles) of tile_m / 4 vectors of channels
//!           +----+----+----+----+
//! channels  | 4x4|    |    |    |    thread t loads block (t / 4, t % 4): 64 channels x 16 tiles = 64 blocks
//!           +----+----+----+----+
//! ```
//!
//! Both operands are contiguous along tiles (K), so a thread loads four tiles of four channels and transposes
//! them in registers into four vectors of its stage. Tile, threads and registers are those of
//! [`RegisterTile::M64N64`]. Per stage and threadgroup: `4 * (tile_m + tile_n) * tile_k` bytes,
//! `2 * tile_m * tile_n * tile_k` FLOP.
//!
//! Registers sum at most 2048 tiles (longer fp32 sums lose accuracy), then S is read and written once. If one
//! slice does not fill the device, several split-K slices run concurrently, each with its own S. Frames in
//! the depth padding read as zero, or as the nearest frame under replicate padding.

use super::depth::depth_axis;
use super::region::{Correlation, Region, RegionArgs, VECTOR};
use super::weight_product_mma::weight_product_mma_kernel;
use super::weight_work::{TileCursor, WeightProductArgs, WeightProductArgsLaunch, WeightWork, load_channels};
use super::{PRODUCT, WinogradCall, WinogradTile};
use crate::conv3d::gemm::RegisterTile;
use crate::conv3d::gemm::config::row_stride;
use crate::conv3d::gemm::stage::{F32x4, column_of, multiply};
use crate::conv3d::split::{MIN_STAGES, SliceCount, slices_within};
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::Operand;
use cubecl::ir::AddressType;
use cubecl::prelude::*;

/// Stages summed in registers before S is updated.
pub(super) const MAX_STAGES: usize = 128;

/// Tiles of a slice and launch, in vectors.
const SLICE_VECTORS: usize = MAX_STAGES * PRODUCT.tile_k / VECTOR;

/// Threadgroups of one slice.
pub(crate) fn threadgroups(correlation: &Correlation, tile: WinogradTile) -> usize {
    let points = tile.inputs() * tile.inputs();
    let channels =
        correlation.out_channels.div_ceil(PRODUCT.tile_m) * correlation.in_channels.div_ceil(PRODUCT.tile_n);
    points * correlation.kernel_depth * channels
}

/// Split-K slices: enough for four times the threadgroups that fill the device, S within a quarter of the
/// workspace.
pub(crate) fn slices(correlation: &Correlation, tile: WinogradTile, limits: &Limits) -> usize {
    let (rows, columns) = correlation.tiles(tile);
    let k_elements = correlation.batch * correlation.output[0] * rows * columns;
    let filter_elements = correlation.filter_shape(tile).iter().product();
    SliceCount {
        filling: (4 * limits.cubes_in_flight).div_ceil(threadgroups(correlation, tile).max(1)),
        worthwhile: k_elements / (MIN_STAGES * PRODUCT.tile_k),
        accurate: 1,
        affordable: slices_within(filter_elements, limits.workspace_bytes / 4),
    }
    .slices()
}

/// The launches of a region: each one's first vector of tiles, and the vectors of a slice.
pub(crate) fn slice_launches(region: &Region, slices: usize) -> impl Iterator<Item = (usize, usize)> {
    let vectors = region.m_rows() / VECTOR;
    let launches = vectors.div_ceil(slices * SLICE_VECTORS);
    let stage = const { PRODUCT.tile_k / VECTOR };
    let length = vectors.div_ceil(launches.max(1) * slices).next_multiple_of(stage);
    (0..launches).map(move |launch| (launch * slices * length, length))
}

/// Adds a region's products to `sums`; the first region's first launch sets them.
pub(crate) fn launch(
    call: &WinogradCall,
    address: AddressType,
    (region, slices, first): (&Region, usize, bool),
    [d, v, sums]: [&Operand; 3],
) {
    let correlation = call.correlation;
    let mma_tile = call.config.mma_tile;
    let [tile_m, tile_n, threads] = match mma_tile {
        Some(tile) => [tile.tile_m, tile.tile_n, tile.threads()],
        None => [PRODUCT.tile_m, PRODUCT.tile_n, PRODUCT.threads()],
    };
    let threadgroups = threadgroups(correlation, call.config.tile) * slices;
    for (index, (from, length)) in slice_launches(region, slices).enumerate() {
        let flop = 2.0 * (tile_m * tile_n * length * VECTOR) as f64;
        for dispatch in dispatches(threadgroups, flop, call.limits) {
            let args = WeightProductArgsLaunch {
                depth: depth_axis(correlation),
                in_channels: correlation.in_channels as u32,
                out_channels: correlation.out_channels as u32,
                first: from as u32,
                length: length as u32,
                slices,
                points: call.config.tile.inputs() * call.config.tile.inputs(),
                add: u32::from(index > 0 || !first),
                tiles_m: correlation.out_channels.div_ceil(tile_m),
                tiles_n: correlation.in_channels.div_ceil(tile_n),
            };
            let [d, v] = [d, v].map(|operand| operand.buffer_arg(VECTOR));
            let sums = sums.buffer_arg(if mma_tile.is_some() { 1 } else { VECTOR });
            let (count, threads) = (dispatch.count(), CubeDim::new_1d(threads as u32));
            let (client, unroll) = (call.client, call.limits.unroll);
            let (span, region) = (dispatch.span(), region.args());
            // SAFETY: see `mod.rs`; channels past the last load the last one and their sums are not read,
            // tiles past the last and frames outside the input are not read.
            unsafe {
                match mma_tile {
                    Some(tile) => weight_product_mma_kernel::launch_unchecked(
                        client, count, threads, address, d, v, sums, span, region, args, tile,
                    ),
                    // SAFETY: the same contract and masks.
                    None => weight_product_kernel::launch_unchecked(
                        client, count, threads, address, d, v, sums, span, region, args, PRODUCT, unroll,
                    ),
                }
            }
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn weight_product_kernel(
    d: &[F32x4],
    v: &[F32x4],
    sums: &mut [F32x4],
    span: Span,
    region: RegionArgs,
    args: WeightProductArgs,
    #[comptime] tile: RegisterTile,
    #[comptime] unroll: bool,
) {
    // Uniform over the threadgroup: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let work = WeightWork::new(span.index(), &args, &region, tile.tile_m, tile.tile_n);
    let stage = comptime!((tile.tile_k / VECTOR) as u32);

    let mut row_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.tile_k * row_stride(tile.tile_m)));
    let mut column_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.tile_k * row_stride(tile.tile_n)));
    let mut results = Array::<f32>::new(comptime!(tile.rows * tile.columns));
    #[unroll]
    for i in 0..comptime!(tile.rows * tile.columns) {
        results[i] = 0.0f32;
    }

    let mut tiles = work.first_tiles(&region, stage);
    let (rows, columns) = load_stage(d, v, &work, &tiles, &args, &region, tile);
    store_transposed(&rows, &mut row_stage, tile.tile_m, tile);
    store_transposed(&columns, &mut column_stage, tile.tile_n, tile);
    sync_cube();
    let mut position = work.first;
    while position < work.end {
        tiles.advance(&region, stage);
        // Past the last stage, loads return zeros.
        let (rows, columns) = load_stage(d, v, &work, &tiles, &args, &region, tile);
        multiply(&row_stage, &column_stage, &mut results, tile, unroll);
        sync_cube();
        store_transposed(&rows, &mut row_stage, tile.tile_m, tile);
        store_transposed(&columns, &mut column_stage, tile.tile_n, tile);
        sync_cube();
        position += stage;
    }

    // o is fastest and rounded up to vectors; the padding is not read.
    let row_vectors = (args.out_channels + comptime!(VECTOR as u32 - 1)) / VECTOR as u32;
    let first_sum = work.filters * args.in_channels as usize;
    #[unroll]
    for i in 0..comptime!(tile.rows / VECTOR) {
        let row = work.first_o / VECTOR as u32
            + UNIT_POS % comptime!((tile.tile_m / tile.rows) as u32)
            + comptime!((i * (tile.tile_m / tile.rows)) as u32);
        if row < row_vectors {
            #[unroll]
            for j in 0..comptime!(tile.columns) {
                let c = work.first_c + column_of(j, tile);
                if c < args.in_channels {
                    let at = (first_sum + c as usize) * row_vectors as usize + row as usize;
                    let mut values = F32x4::empty();
                    #[unroll]
                    for r in 0..VECTOR {
                        values.insert(r, results[comptime!((i * VECTOR + r) * tile.columns + j)]);
                    }
                    if args.add == 1u32 {
                        values += sums[at];
                    }
                    sums[at] = values;
                }
            }
        }
    }
}

/// Loads this thread's blocks of D and of V.
#[cube]
fn load_stage(
    d: &[F32x4],
    v: &[F32x4],
    work: &WeightWork,
    tiles: &TileCursor,
    args: &WeightProductArgs,
    region: &RegionArgs,
    #[comptime] tile: RegisterTile,
) -> (Sequence<F32x4>, Sequence<F32x4>) {
    let rows = load_block(
        d,
        work.d_point + tiles.vector as usize,
        tiles.vector < work.end,
        work.d_rows,
        work.first_o,
        args.out_channels,
        tile,
    );
    let (at, inside) = args.locate(tiles, region, work.first_frame, work.end);
    let columns = load_block(v, work.v_point + at, inside, work.v_rows, work.first_c, args.in_channels, tile);
    (rows, columns)
}

/// Loads this thread's block: a vector of tiles of each of four channels.
#[cube]
fn load_block(
    from: &[F32x4],
    at: usize,
    exists: bool,
    channel_stride: usize,
    first_channel: u32,
    channels: u32,
    #[comptime] tile: RegisterTile,
) -> Sequence<F32x4> {
    let first = first_channel + UNIT_POS / comptime!((tile.tile_k / VECTOR) as u32) * VECTOR as u32;
    load_channels(from, at, exists, channel_stride, first, channels, VECTOR, 1usize)
}

/// Stores a block transposed into its stage, tiles as rows.
#[cube]
fn store_transposed(
    from: &Sequence<F32x4>,
    stage: &mut Shared<[F32x4]>,
    #[comptime] extent: usize,
    #[comptime] tile: RegisterTile,
) {
    let blocks = comptime!(tile.tile_k / VECTOR);
    let k = UNIT_POS as usize % blocks * VECTOR;
    let vector = UNIT_POS as usize / blocks;
    #[unroll]
    for i in 0..VECTOR {
        let mut values = F32x4::empty();
        #[unroll]
        for channel in 0..VECTOR {
            values.insert(channel, from.index(channel).extract(i));
        }
        stage[(k + i) * comptime!(row_stride(extent)) + vector] = values;
    }
}
