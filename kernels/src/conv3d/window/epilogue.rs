//! Epilogue of the window GEMMs: accumulator fragment -> the subgroup's patch of shared memory -> bias,
//! activation, residual, rounding, masked store. Fragments have channels as rows and positions as columns.

use super::config::{PATCH_FRAGMENTS, WindowTile};
use super::tiling::{WindowTiling, WindowWork};
use crate::activation::activate_vector;
use crate::conv3d::epilogue::{add_residual_vector, channel_bias, finished_with_channel, residual_offset};
use crate::conv3d::gemm::config::SUBGROUP;
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::mma::store_to_patch;
use cubecl::cmma::{self, MatrixLayout};
use cubecl::prelude::*;

/// Stores a subgroup's results with any strides, one fragment and one element at a time.
#[cube]
pub(super) fn write_result<E: Float, O: Float>(
    acc: &Sequence<cmma::Matrix<f32>>,
    bias: ComptimeOption<&Tensor<E>>,
    residual: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    walk: &GatherArgs,
    tiling: &WindowTiling,
    work: &WindowWork,
    #[comptime] tile: WindowTile,
) {
    let thread = UNIT_POS as usize;
    let subgroup = thread / SUBGROUP;
    let lane = (thread % SUBGROUP) as u32;
    let subgroup_m = (subgroup % comptime!(tile.tile_m / tile.subgroup_m) * tile.subgroup_m) as u32;
    let subgroup_n = (subgroup / comptime!(tile.tile_m / tile.subgroup_m) * tile.subgroup_n) as u32;
    let mut patches = Shared::<[f32]>::new_slice(comptime!(tile.subgroups() * tile.fragment * tile.fragment));
    let patch = subgroup * comptime!(tile.fragment * tile.fragment);
    let first_channel = work.group * tiling.n + work.first_n + subgroup_n;
    let frame_offset = walk.out_at(work.n, 0u32)
        + walk.depth.out_offset(work.d)
        + work.k_slice as usize * tiling.slice_stride;
    #[unroll]
    for column in 0..comptime!(tile.subgroup_m / tile.fragment) {
        // A lane stores one position of every fragment of this column.
        let in_fragment = lane % tile.fragment as u32;
        let element = work.first_m + subgroup_m + comptime!((column * tile.fragment) as u32) + in_fragment;
        let (h, in_row) = tiling.pitch_divmod.div_mod(element);
        let w = work.first_w + in_row;
        let exists = h < tiling.height && in_row < tiling.segment_width && w < tiling.width;
        let at = frame_offset + walk.height.out_offset(h) + walk.width.out_offset(w);
        let added = #[comptime]
        match residual {
            ComptimeOption::Some(residual) => residual_offset(residual, walk, work.n, work.d, h, w),
            ComptimeOption::None => 0usize,
        };
        #[unroll]
        for fragment_row in 0..comptime!(tile.subgroup_n / tile.fragment) {
            let sum = acc.index(comptime!(fragment_row * (tile.subgroup_m / tile.fragment) + column));
            store_to_patch(sum, &mut patches, patch, tile.fragment);
            #[unroll]
            for step in 0..comptime!(tile.fragment * tile.fragment / SUBGROUP) {
                let in_patch =
                    comptime!((step * (SUBGROUP / tile.fragment)) as u32) + lane / tile.fragment as u32;
                let in_tile = comptime!((fragment_row * tile.fragment) as u32) + in_patch;
                if exists && work.first_n + subgroup_n + in_tile < tiling.n {
                    let channel = first_channel + in_tile;
                    let bias = channel_bias(bias, channel);
                    let sum = patches[patch + (in_patch * tile.fragment as u32 + in_fragment) as usize];
                    let sum = sum + bias;
                    let value = finished_with_channel(sum, residual, added, channel, tiling.activation);
                    out[at + walk.out_channel(channel)] = O::cast_from(value);
                }
            }
        }
    }
}

/// Results along the row that are stored as one vector.
pub(super) const OUT_VECTOR: usize = 4;

/// [`write_result`] for contiguous frames: two fragments next to each other fill the patch, and are stored in
/// vectors of four positions.
#[cube]
pub(super) fn write_contiguous<E: Float, O: Float>(
    acc: &Sequence<cmma::Matrix<f32>>,
    bias: ComptimeOption<&Tensor<E>>,
    residual: ComptimeOption<&Tensor<Vector<E, Const<4>>>>,
    out: &mut [Vector<O, Const<4>>],
    walk: &GatherArgs,
    tiling: &WindowTiling,
    work: &WindowWork,
    #[comptime] tile: WindowTile,
) {
    let thread = UNIT_POS as usize;
    let subgroup = thread / SUBGROUP;
    let lane = thread % SUBGROUP;
    let subgroup_m = subgroup % comptime!(tile.tile_m / tile.subgroup_m) * tile.subgroup_m;
    let subgroup_n = (subgroup / comptime!(tile.tile_m / tile.subgroup_m) * tile.subgroup_n) as u32;
    // Vectors of a row of the patch, and rows that a subgroup stores at a time.
    let vectors = comptime!(PATCH_FRAGMENTS * tile.fragment / OUT_VECTOR);
    let rows = comptime!(SUBGROUP / vectors);
    let patch_vectors = comptime!(tile.fragment * vectors);
    let mut patches =
        Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(tile.subgroups() * patch_vectors));
    let end = patches.len();
    let patch = subgroup * patch_vectors;
    let first_channel = work.group * tiling.n;
    let frame_offset = walk.out_at(work.n, 0u32)
        + walk.depth.out_offset(work.d)
        + work.k_slice as usize * tiling.slice_stride;
    let columns = comptime!(tile.subgroup_m / tile.fragment);
    #[unroll]
    for pair in 0..comptime!(columns / PATCH_FRAGMENTS) {
        let in_tile =
            subgroup_m + comptime!(pair * PATCH_FRAGMENTS * tile.fragment) + lane % vectors * OUT_VECTOR;
        let position = work.first_m as usize + in_tile;
        let exists = position < (tiling.height * tiling.width) as usize;
        #[unroll]
        for fragment_row in 0..comptime!(tile.subgroup_n / tile.fragment) {
            sync_cube();
            #[unroll]
            for fragment in 0..PATCH_FRAGMENTS {
                let sum = acc.index(comptime!(fragment_row * columns + pair * PATCH_FRAGMENTS + fragment));
                let at = patch + comptime!(fragment * tile.fragment / OUT_VECTOR);
                let stride = comptime!((PATCH_FRAGMENTS * tile.fragment) as u32);
                cmma::store(&mut patches[at..end], sum, stride, MatrixLayout::RowMajor);
            }
            sync_cube();
            #[unroll]
            for step in 0..comptime!(tile.fragment / rows) {
                let in_patch = lane / vectors + comptime!(step * rows);
                let n = work.first_n
                    + subgroup_n
                    + comptime!((fragment_row * tile.fragment) as u32)
                    + in_patch as u32;
                if exists && n < tiling.n {
                    let channel = first_channel + n;
                    let bias = channel_bias(bias, channel);
                    let sum = patches[patch + in_patch * vectors + lane % vectors] + Vector::new(bias);
                    let at = frame_offset + walk.out_channel(channel) + position;
                    let value = activate_vector(sum, tiling.activation, false);
                    let added: ComptimeOption<Vector<f32, Const<4>>> = residual.map(|residual| {
                        let frame = residual_offset(residual, walk, work.n, work.d, 0u32, 0u32);
                        let from = frame + channel as usize * residual.stride(1) + position;
                        Vector::cast_from(residual[from / OUT_VECTOR])
                    });
                    out[at / OUT_VECTOR] =
                        Vector::cast_from(add_residual_vector(value, added, tiling.activation));
                }
            }
        }
    }
}
