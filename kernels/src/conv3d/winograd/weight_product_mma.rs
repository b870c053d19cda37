//! The transform-domain product of the weight gradient with fp32 MMA instructions (Apple's simdgroup
//! matrices), with the traversal of [`super::weight_product`]:
//!
//! ```text
//! S[slice, point, kd, c, o] += sum over tiles of V[point, c, tile] * D[point, o, tile]
//!
//!             64 channels o
//!           +-----+-----+      a threadgroup: 4 subgroups of 32 threads
//!       64  | s0  | s1  |      a subgroup:    32 x 32 results, 16 accumulator fragments of 8 x 8
//!  channels +-----+-----+
//!         c | s2  | s3  |      prologue: sums of earlier launches from S; epilogue: fragments to S
//!           +-----+-----+
//! ```
//!
//! Both operands are contiguous along tiles (K): a thread loads vectors of four tiles and stores them as they
//! are, to stages with K contiguous. Channels of S are padded to whole fragments
//! ([`super::product_mma::PADDING`]), so that these are loaded and stored in memory, without masks and
//! barriers. Per stage of 16 tiles and threadgroup: 8 KiB loaded, `2 * 64 * 64 * 16` FLOP; 10 KiB of shared
//! memory. Stages are not prefetched, as in [`super::product_mma`]. Declines devices without 8 x 8 fp32 MMA.

use super::product_mma::{ResultTile, padded};
use super::region::{RegionArgs, VECTOR};
use super::weight_work::{WeightProductArgs, WeightWork, load_channels};
use crate::conv3d::gemm::MatrixTile;
use crate::conv3d::gemm::config::SUBGROUP;
use crate::conv3d::gemm::fragments::multiply;
use crate::conv3d::gemm::stage::F32x4;
use crate::conv3d::mma::accumulators;
use crate::launch::Span;
use cubecl::prelude::*;

/// Bytes of an element of a stage.
const SIZE: usize = 4;

/// Bytes of threadgroup memory: the stages.
pub(super) fn shared_bytes(tile: &MatrixTile) -> usize {
    (tile.tile_m + tile.tile_n) * tile.row(tile.tile_k, VECTOR, SIZE) * SIZE * VECTOR
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn weight_product_mma_kernel(
    d: &[F32x4],
    v: &[F32x4],
    sums: &mut [f32],
    span: Span,
    region: RegionArgs,
    args: WeightProductArgs,
    #[comptime] tile: MatrixTile,
) {
    // Uniform over the threadgroup: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let work = WeightWork::new(span.index(), &args, &region, tile.tile_m, tile.tile_n);
    let stage = comptime!((tile.tile_k / VECTOR) as u32);
    let pitch = comptime!(tile.row(tile.tile_k, VECTOR, SIZE));
    let mut row_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.tile_m * pitch));
    let mut column_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.tile_n * pitch));
    let result = result_tile(&work, &args, tile);
    let mut products = accumulators(comptime!(tile.subgroup_m * tile.subgroup_n), tile.fragment);
    if args.add == 1u32 {
        result.load(sums, &mut products, tile);
    }

    let mut tiles = work.first_tiles(&region, stage);
    let mut position = work.first;
    while position < work.end {
        let exists = tiles.vector < work.end;
        let from = work.d_point + tiles.vector as usize;
        let rows =
            load_rows(d, from, exists, work.d_rows, work.first_o, args.out_channels, tile.tile_m, tile);
        let (at, inside) = args.locate(&tiles, &region, work.first_frame, work.end);
        let from = work.v_point + at;
        let columns =
            load_rows(v, from, inside, work.v_rows, work.first_c, args.in_channels, tile.tile_n, tile);
        sync_cube();
        store_rows(&rows, &mut row_stage, pitch, tile);
        store_rows(&columns, &mut column_stage, pitch, tile);
        sync_cube();
        multiply(&row_stage, &column_stage, &products, comptime!((true, true)), SIZE, tile);
        tiles.advance(&region, stage);
        position += stage;
    }
    result.store(sums, &products, tile);
}

/// A subgroup's fragments in S: c along their rows, o contiguous.
#[cube]
fn result_tile(work: &WeightWork, args: &WeightProductArgs, #[comptime] tile: MatrixTile) -> ResultTile {
    let subgroup = UNIT_POS / comptime!(SUBGROUP as u32);
    let across = comptime!((tile.tile_m / tile.subgroup_m) as u32);
    let o = work.first_o + subgroup % across * tile.subgroup_m as u32;
    let c = work.first_c + subgroup / across * tile.subgroup_n as u32;
    let pitch = padded(args.out_channels as usize);
    ResultTile {
        offset: (work.filters * padded(args.in_channels as usize) + c as usize) * pitch + o as usize,
        pitch,
        channels: args.in_channels as i32 - c as i32,
        rows: args.out_channels as i32 - o as i32,
    }
}

/// Loads this thread's vectors of a stage: four tiles of some channels.
#[cube]
fn load_rows(
    from: &[F32x4],
    at: usize,
    exists: bool,
    channel_stride: usize,
    first_channel: u32,
    channels: u32,
    #[comptime] extent: usize,
    #[comptime] tile: MatrixTile,
) -> Sequence<F32x4> {
    let vectors = comptime!(tile.tile_k / VECTOR);
    let step = comptime!(tile.threads() / vectors);
    let first = first_channel + UNIT_POS / comptime!(vectors as u32);
    load_channels(from, at, exists, channel_stride, first, channels, comptime!(extent / step), step)
}

/// Stores what [`load_rows`] has loaded: a row per channel, tiles contiguous.
#[cube]
fn store_rows(
    from: &Sequence<F32x4>,
    stage: &mut Shared<[F32x4]>,
    #[comptime] pitch: usize,
    #[comptime] tile: MatrixTile,
) {
    let vectors = comptime!(tile.tile_k / VECTOR);
    let step = comptime!(tile.threads() / vectors);
    #[unroll]
    for load in 0..from.len() {
        let row = UNIT_POS as usize / vectors + comptime!(load * step);
        stage[row * pitch + UNIT_POS as usize % vectors] = *from.index(load);
    }
}
