//! The transform-domain product on matrix units for fp32 (Apple's simdgroups): what [`super::product`]
//! computes, its walk and its loads.
//!
//! ```text
//! D[channels][tiles] += U[channels][terms] * V[terms][tiles]       fragments of 8 x 8, fp32 throughout
//! ```
//!
//! A cube is four planes of 32 units, a plane 32 x 32 results as 16 fragments. Stages hold terms of rows: V
//! and U lie in memory like that, so a load is a vector of four neighbours. Fragments pass through a patch of
//! shared memory per plane, where tails are left out and sums of earlier terms are added. Per stage of 32
//! terms and cube: 4096 loads, `2 * 64 * 64 * 32` operations; 18 KiB of shared memory. Declined: devices
//! without 8 x 8 matrices of fp32.

use super::product::{Depth, Walk, store_stage};
use super::region::{RegionArgs, VECTOR};
use crate::conv3d::gemm::MatrixTile;
use crate::conv3d::gemm::config::{SUBGROUP, row_stride};
use crate::conv3d::gemm::fragments::{accumulators, multiply, store_to_scratch};
use crate::conv3d::gemm::stage::F32x4;
use crate::dtype::FloatType;
use crate::launch::Span;
use crate::limits::Limits;
use cubecl::prelude::*;

/// The product's tile on matrix units, where the device has them for fp32 and the memory for its stages.
pub(crate) fn tile(limits: &Limits) -> Option<MatrixTile> {
    let served = limits.matrices.contains(&(FloatType::F32, 8));
    MatrixTile::all(8).first().copied().filter(|tile| served && tile.shared_bytes(4) <= limits.shared_bytes)
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn product_mma_kernel(
    v: &[F32x4],
    u: &[F32x4],
    m: &mut [F32x4],
    span: Span,
    region: RegionArgs,
    depth: Depth,
    #[comptime] tile: MatrixTile,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let units = comptime!(tile.threads());
    let walk = Walk::new(span.cube(), &region, &depth, tile.tile_m, tile.tile_n);
    let mut stage = walk.first_stage(&region, &depth, tile.tile_m, tile.tile_k);
    let mut row_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.tile_k * row_stride(tile.tile_m)));
    let mut column_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.tile_k * row_stride(tile.tile_n)));
    let mut patches = Shared::<[f32]>::new_slice(comptime!(tile.subgroups() * tile.fragment * tile.fragment));
    let sums = accumulators(comptime!(tile.subgroup_m * tile.subgroup_n), tile.fragment);

    let next_rows = walk.load_rows(v, &stage, &region, &depth, tile.tile_m, tile.tile_k, units);
    let next_columns = walk.load_columns(u, &stage, &depth, tile.tile_n, tile.tile_k, units);
    store_stage(&next_rows, &mut row_stage, tile.tile_m, units);
    store_stage(&next_columns, &mut column_stage, tile.tile_n, units);
    sync_cube();
    while stage.position < stage.end {
        stage.advance(&depth, tile.tile_k);
        let next_rows = walk.load_rows(v, &stage, &region, &depth, tile.tile_m, tile.tile_k, units);
        let next_columns = walk.load_columns(u, &stage, &depth, tile.tile_n, tile.tile_k, units);
        multiply(&row_stage, &column_stage, &sums, comptime!((false, false)), 4usize, tile);
        sync_cube();
        store_stage(&next_rows, &mut row_stage, tile.tile_m, units);
        store_stage(&next_columns, &mut column_stage, tile.tile_n, units);
        sync_cube();
    }

    let unit = UNIT_POS as usize;
    let plane = (unit / SUBGROUP) as u32;
    let lane = (unit % SUBGROUP) as u32;
    let plane_m = plane % comptime!((tile.tile_m / tile.subgroup_m) as u32) * tile.subgroup_m as u32;
    let plane_n = plane / comptime!((tile.tile_m / tile.subgroup_m) as u32) * tile.subgroup_n as u32;
    let patch = plane as usize * comptime!(tile.fragment * tile.fragment);
    let vectors = comptime!((tile.fragment / VECTOR) as u32);
    #[unroll]
    for j in 0..comptime!(tile.subgroup_m / tile.fragment) {
        #[unroll]
        for i in 0..comptime!(tile.subgroup_n / tile.fragment) {
            let sum = sums.index(comptime!(i * (tile.subgroup_m / tile.fragment) + j));
            store_to_scratch(sum, &mut patches, patch, tile.fragment);
            // A lane writes a vector of tiles of a channel; there are fewer of them than lanes.
            let in_channel = lane / vectors;
            let in_row = lane % vectors;
            let channel = walk.first_column * VECTOR as u32
                + plane_n
                + comptime!((i * tile.fragment) as u32)
                + in_channel;
            let row = walk.first_row
                + plane_m / VECTOR as u32
                + comptime!((j * tile.fragment / VECTOR) as u32)
                + in_row;
            let exists = row < walk.rows && channel < depth.out_channels;
            if in_channel < tile.fragment as u32 && exists {
                let at = walk.result(&depth, channel, row);
                let from = patch + (in_channel * tile.fragment as u32 + in_row * VECTOR as u32) as usize;
                let mut values = F32x4::empty();
                #[unroll]
                for r in 0..VECTOR {
                    values.insert(r, patches[from + r]);
                }
                if depth.part_first > 0u32 {
                    values += m[at];
                }
                m[at] = values;
            }
        }
    }
}
