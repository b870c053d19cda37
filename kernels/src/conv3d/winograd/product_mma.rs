//! The transform-domain product with fp32 MMA instructions (Apple's simdgroup matrices), with the tile
//! traversal and the loads of [`super::product`]:
//!
//! ```text
//! M[channels][tiles] += U^T[channels][K] * V[K][tiles]           fragments of 8 x 8, fp32 throughout
//!
//!             64 tiles
//!           +-----+-----+      a threadgroup: 4 subgroups of 32 threads
//!       64  | s0  | s1  |      a subgroup:    32 x 32 results, 16 accumulator fragments
//!  channels +-----+-----+
//!           | s2  | s3  |      epilogue: fragment -> the subgroup's shared patch -> mask -> vectors of four
//!           +-----+-----+                tiles, added to the sums of earlier K chunks
//! ```
//!
//! Per stage of 32 K elements and threadgroup: 16 KiB loaded in vectors of four, `2 * 64 * 64 * 32` FLOP. 18
//! KiB of shared memory. Declines devices without 8 x 8 fp32 MMA.

use super::product::{ProductArgs, TileLoader, store_stage};
use super::region::{RegionArgs, VECTOR};
use crate::conv3d::gemm::MatrixTile;
use crate::conv3d::gemm::config::{SUBGROUP, row_stride};
use crate::conv3d::gemm::fragments::multiply;
use crate::conv3d::gemm::stage::F32x4;
use crate::conv3d::mma::{accumulators, store_to_patch};
use crate::dtype::FloatType;
use crate::launch::Span;
use crate::limits::Limits;
use cubecl::prelude::*;

/// The MMA tile of the product, if the device has fp32 MMA and the threadgroup memory for the stages.
pub(crate) fn tile(limits: &Limits) -> Option<MatrixTile> {
    let served = limits.matrices.contains(&(FloatType::F32, 8));
    MatrixTile::all(8).first().copied().filter(|tile| served && tile.shared_bytes(4) <= limits.shared_bytes)
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn product_mma_kernel(
    v: &[F32x4],
    u: &[F32x4],
    m: &mut [F32x4],
    span: Span,
    region: RegionArgs,
    args: ProductArgs,
    #[comptime] tile: MatrixTile,
) {
    // Uniform over the threadgroup: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let threads = comptime!(tile.threads());
    let loader = TileLoader::new(span.index(), &region, &args, tile.tile_m, tile.tile_n);
    let mut stage = loader.first_stage(&region, &args, tile.tile_m, tile.tile_k);
    let mut row_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.tile_k * row_stride(tile.tile_m)));
    let mut column_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.tile_k * row_stride(tile.tile_n)));
    let mut patches = Shared::<[f32]>::new_slice(comptime!(tile.subgroups() * tile.fragment * tile.fragment));
    let sums = accumulators(comptime!(tile.subgroup_m * tile.subgroup_n), tile.fragment);

    let next_rows = loader.load_rows(v, &stage, &region, &args, tile.tile_m, tile.tile_k, threads);
    let next_columns = loader.load_columns(u, &stage, &args, tile.tile_n, tile.tile_k, threads);
    store_stage(&next_rows, &mut row_stage, tile.tile_m, threads);
    store_stage(&next_columns, &mut column_stage, tile.tile_n, threads);
    sync_cube();
    while stage.position < stage.end {
        stage.advance(&args, tile.tile_k);
        let next_rows = loader.load_rows(v, &stage, &region, &args, tile.tile_m, tile.tile_k, threads);
        let next_columns = loader.load_columns(u, &stage, &args, tile.tile_n, tile.tile_k, threads);
        multiply(&row_stage, &column_stage, &sums, comptime!((false, false)), 4usize, tile);
        sync_cube();
        store_stage(&next_rows, &mut row_stage, tile.tile_m, threads);
        store_stage(&next_columns, &mut column_stage, tile.tile_n, threads);
        sync_cube();
    }

    let thread = UNIT_POS as usize;
    let subgroup = (thread / SUBGROUP) as u32;
    let lane = (thread % SUBGROUP) as u32;
    let subgroup_m = subgroup % comptime!((tile.tile_m / tile.subgroup_m) as u32) * tile.subgroup_m as u32;
    let subgroup_n = subgroup / comptime!((tile.tile_m / tile.subgroup_m) as u32) * tile.subgroup_n as u32;
    let patch = subgroup as usize * comptime!(tile.fragment * tile.fragment);
    let vectors = comptime!((tile.fragment / VECTOR) as u32);
    #[unroll]
    for j in 0..comptime!(tile.subgroup_m / tile.fragment) {
        #[unroll]
        for i in 0..comptime!(tile.subgroup_n / tile.fragment) {
            let sum = sums.index(comptime!(i * (tile.subgroup_m / tile.fragment) + j));
            store_to_patch(sum, &mut patches, patch, tile.fragment);
            // A lane stores one vector of tiles of a channel; lanes without one are idle.
            let in_channel = lane / vectors;
            let in_row = lane % vectors;
            let channel = loader.first_column * VECTOR as u32
                + subgroup_n
                + comptime!((i * tile.fragment) as u32)
                + in_channel;
            let row = loader.first_row
                + subgroup_m / VECTOR as u32
                + comptime!((j * tile.fragment / VECTOR) as u32)
                + in_row;
            let exists = row < loader.m_vectors && channel < args.out_channels;
            if in_channel < tile.fragment as u32 && exists {
                let at = loader.result_offset(&args, channel, row);
                let from = patch + (in_channel * tile.fragment as u32 + in_row * VECTOR as u32) as usize;
                let mut values = F32x4::empty();
                #[unroll]
                for r in 0..VECTOR {
                    values.insert(r, patches[from + r]);
                }
                if args.chunk_first > 0u32 {
                    values += m[at];
                }
                m[at] = values;
            }
        }
    }
}
