//! The way of a shifted product's sums to memory.

use super::config::{BESIDE, WindowTile};
use super::tiling::{Share, Tiling};
use crate::activation::{activate_by_code, activate_quad};
use crate::conv3d::gemm::config::SUBGROUP;
use crate::conv3d::gemm::fragments::store_to_scratch;
use crate::conv3d::gemm::index::GatherArgs;
use cubecl::cmma::{self, MatrixLayout};
use cubecl::prelude::*;

/// Writes a plane's sums. Each fragment passes through the plane's own patch of shared memory, where bias,
/// activation, rounding and the tails are applied.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn write_result<E: Float, O: Float>(
    sums: &Sequence<cmma::Matrix<f32>>,
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    walk: &GatherArgs,
    tiling: &Tiling,
    share: &Share,
    #[comptime] tile: WindowTile,
) {
    let unit = UNIT_POS as usize;
    let plane = unit / SUBGROUP;
    let lane = (unit % SUBGROUP) as u32;
    let plane_m = (plane % comptime!(tile.tile_m / tile.plane_m) * tile.plane_m) as u32;
    let plane_n = (plane / comptime!(tile.tile_m / tile.plane_m) * tile.plane_n) as u32;
    let mut patches = Shared::<[f32]>::new_slice(comptime!(tile.planes() * tile.fragment * tile.fragment));
    let patch = plane * comptime!(tile.fragment * tile.fragment);
    let first_channel = share.group * tiling.n + share.first_n + plane_n;
    let frame = walk.out_at(share.n, 0u32)
        + walk.depth.out_offset(share.d)
        + share.part as usize * tiling.part_stride;
    #[unroll]
    for column in 0..comptime!(tile.plane_m / tile.fragment) {
        // A lane writes one site of the fragments of a column.
        let in_fragment = lane % tile.fragment as u32;
        let element = share.first + plane_m + comptime!((column * tile.fragment) as u32) + in_fragment;
        let (h, in_row) = tiling.pitch.div_mod(element);
        let w = share.strip + in_row;
        let exists = h < tiling.height && in_row < tiling.sites && w < tiling.width;
        let at = frame + walk.height.out_offset(h) + walk.width.out_offset(w);
        #[unroll]
        for fragment_row in 0..comptime!(tile.plane_n / tile.fragment) {
            let sum = sums.index(comptime!(fragment_row * (tile.plane_m / tile.fragment) + column));
            store_to_scratch(sum, &mut patches, patch, tile.fragment);
            #[unroll]
            for step in 0..comptime!(tile.fragment * tile.fragment / SUBGROUP) {
                let in_patch =
                    comptime!((step * (SUBGROUP / tile.fragment)) as u32) + lane / tile.fragment as u32;
                let in_tile = comptime!((fragment_row * tile.fragment) as u32) + in_patch;
                if exists && share.first_n + plane_n + in_tile < tiling.n {
                    let channel = first_channel + in_tile;
                    let bias: ComptimeOption<f32> =
                        bias.map(|bias| f32::cast_from(bias[channel as usize * bias.stride(0)]));
                    let sum = patches[patch + (in_patch * tile.fragment as u32 + in_fragment) as usize];
                    let sum = sum + bias.unwrap_or_else(|| 0.0f32.runtime());
                    out[at + walk.out_channel(channel)] =
                        O::cast_from(activate_by_code(sum, tiling.activation));
                }
            }
        }
    }
}

/// Neighbouring results that are written as one vector.
pub(super) const TOGETHER: usize = 4;

/// [`write_result`] where planes are runs of sites: two fragments side by side pass through the patch, in
/// vectors of four sites.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn write_runs<E: Float, O: Float>(
    sums: &Sequence<cmma::Matrix<f32>>,
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut [Vector<O, Const<4>>],
    walk: &GatherArgs,
    tiling: &Tiling,
    share: &Share,
    #[comptime] tile: WindowTile,
) {
    let unit = UNIT_POS as usize;
    let plane = unit / SUBGROUP;
    let lane = unit % SUBGROUP;
    let plane_m = plane % comptime!(tile.tile_m / tile.plane_m) * tile.plane_m;
    let plane_n = (plane / comptime!(tile.tile_m / tile.plane_m) * tile.plane_n) as u32;
    // Vectors of a patch's row, and rows that a plane writes at a time.
    let vectors = comptime!(BESIDE * tile.fragment / TOGETHER);
    let rows = comptime!(SUBGROUP / vectors);
    let patch_vectors = comptime!(tile.fragment * vectors);
    let mut patches = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(tile.planes() * patch_vectors));
    let end = patches.len();
    let patch = plane * patch_vectors;
    let first_channel = share.group * tiling.n;
    let frame = walk.out_at(share.n, 0u32)
        + walk.depth.out_offset(share.d)
        + share.part as usize * tiling.part_stride;
    let columns = comptime!(tile.plane_m / tile.fragment);
    #[unroll]
    for pair in 0..comptime!(columns / BESIDE) {
        let in_tile = plane_m + comptime!(pair * BESIDE * tile.fragment) + lane % vectors * TOGETHER;
        let site = share.first as usize + in_tile;
        let exists = site < (tiling.height * tiling.width) as usize;
        #[unroll]
        for fragment_row in 0..comptime!(tile.plane_n / tile.fragment) {
            sync_cube();
            #[unroll]
            for beside in 0..BESIDE {
                let sum = sums.index(comptime!(fragment_row * columns + pair * BESIDE + beside));
                let at = patch + comptime!(beside * tile.fragment / TOGETHER);
                let stride = comptime!((BESIDE * tile.fragment) as u32);
                cmma::store(&mut patches[at..end], sum, stride, MatrixLayout::RowMajor);
            }
            sync_cube();
            #[unroll]
            for step in 0..comptime!(tile.fragment / rows) {
                let in_patch = lane / vectors + comptime!(step * rows);
                let n = share.first_n
                    + plane_n
                    + comptime!((fragment_row * tile.fragment) as u32)
                    + in_patch as u32;
                if exists && n < tiling.n {
                    let channel = first_channel + n;
                    let bias: ComptimeOption<f32> =
                        bias.map(|bias| f32::cast_from(bias[channel as usize * bias.stride(0)]));
                    let bias = bias.unwrap_or_else(|| 0.0f32.runtime());
                    let sum = patches[patch + in_patch * vectors + lane % vectors] + Vector::new(bias);
                    let at = frame + walk.out_channel(channel) + site;
                    out[at / TOGETHER] = Vector::cast_from(activate_quad(sum, tiling.activation, false));
                }
            }
        }
    }
}
