//! Epilogue of the window GEMMs: accumulator fragment -> the subgroup's patch of shared memory -> bias,
//! activation, residual, rounding, masked store. Fragments have channels as rows and positions as columns.
//! Not unrolled, fragments are chosen at run time ([`crate::conv3d::mma`]): 5 kB of text for 50.

use super::config::{PATCH_FRAGMENTS, WindowTile};
use super::tiling::{WindowTiling, WindowWork};
use crate::activation::activate_vector;
use crate::conv3d::epilogue::{add_residual_vector, channel_bias, finished_with_channel, residual_offset};
use crate::conv3d::gemm::config::SUBGROUP;
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::mma::{store_chosen, store_chosen_to_patch, store_to_patch};
use cubecl::cmma::{self, MatrixLayout};
use cubecl::prelude::*;

/// Stores a subgroup's results with any strides, one fragment and one element at a time.
#[cube]
pub(super) fn write_result<E: Float, O: Float>(
    acc: &Sequence<cmma::Matrix<f32>>,
    bias: ComptimeOption<&Tensor<E>>,
    residual: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    gather: &GatherArgs,
    tiling: &WindowTiling,
    work: &WindowWork,
    #[comptime] tile: WindowTile,
    #[comptime] unroll: bool,
) {
    let thread = UNIT_POS as usize;
    let subgroup = thread / SUBGROUP;
    let lane = (thread % SUBGROUP) as u32;
    let subgroup_m = (subgroup % comptime!(tile.tile_m / tile.subgroup_m) * tile.subgroup_m) as u32;
    let subgroup_n = (subgroup / comptime!(tile.tile_m / tile.subgroup_m) * tile.subgroup_n) as u32;
    let mut patches = Shared::<[f32]>::new_slice(comptime!(tile.subgroups() * tile.fragment * tile.fragment));
    let patch = subgroup * comptime!(tile.fragment * tile.fragment);
    let first_channel = work.group * tiling.n + work.first_n + subgroup_n;
    let frame_offset = gather.out_at(work.n, 0u32)
        + gather.depth.out_offset(work.d)
        + work.k_slice as usize * tiling.slice_stride;
    let place = Place { lane, subgroup_m, subgroup_n, patch, first_channel, frame_offset };
    let (rows, columns) = comptime!((tile.subgroup_n / tile.fragment, tile.subgroup_m / tile.fragment));
    if comptime!(unroll) {
        #[unroll]
        for column in 0..columns {
            let first = comptime!((column * tile.fragment) as u32);
            let at = result_row(residual, gather, tiling, work, &place, first, tile);
            #[unroll]
            for row in 0..rows {
                let sum = acc.index(comptime!(row * columns + column));
                store_to_patch(sum, &mut patches, patch, tile.fragment);
                let first = comptime!((row * tile.fragment) as u32);
                write_fragment(&patches, bias, residual, out, gather, tiling, work, &place, &at, first, tile);
            }
        }
    } else {
        for column in 0..comptime!(columns as u32) {
            let first = column * tile.fragment as u32;
            let at = result_row(residual, gather, tiling, work, &place, first, tile);
            for row in 0..comptime!(rows as u32) {
                let chosen = row * comptime!(columns as u32) + column;
                store_chosen_to_patch(acc, chosen, &mut patches, patch, tile.fragment);
                let first = row * tile.fragment as u32;
                write_fragment(&patches, bias, residual, out, gather, tiling, work, &place, &at, first, tile);
            }
        }
    }
}

/// A lane's part of a subgroup's tile.
#[derive(CubeType)]
struct Place {
    lane: u32,
    subgroup_m: u32,
    subgroup_n: u32,
    patch: usize,
    first_channel: u32,
    frame_offset: usize,
}

/// The position whose results a lane stores of all fragments of a column.
#[derive(CubeType)]
struct ResultRow {
    exists: bool,
    /// Offset of channel 0 in the result, and in the residual.
    at: usize,
    added: usize,
}

#[cube]
fn result_row<E: Float>(
    residual: ComptimeOption<&Tensor<E>>,
    gather: &GatherArgs,
    tiling: &WindowTiling,
    work: &WindowWork,
    place: &Place,
    first: u32,
    #[comptime] tile: WindowTile,
) -> ResultRow {
    let in_fragment = place.lane % tile.fragment as u32;
    let element = work.first_m + place.subgroup_m + first + in_fragment;
    let (h, in_row) = tiling.pitch_divmod.div_mod(element);
    let w = work.first_w + in_row;
    let exists = h < tiling.height && in_row < tiling.segment_width && w < tiling.width;
    let at = place.frame_offset + gather.height.out_offset(h) + gather.width.out_offset(w);
    let added = #[comptime]
    match residual {
        ComptimeOption::Some(residual) => residual_offset(residual, gather, work.n, work.d, h, w),
        ComptimeOption::None => 0usize,
    };
    ResultRow { exists, at, added }
}

/// Stores the results in the subgroup's patch, a fragment whose channels begin `first` behind the subgroup's.
#[cube]
fn write_fragment<E: Float, O: Float>(
    patches: &Shared<[f32]>,
    bias: ComptimeOption<&Tensor<E>>,
    residual: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    gather: &GatherArgs,
    tiling: &WindowTiling,
    work: &WindowWork,
    place: &Place,
    row: &ResultRow,
    first: u32,
    #[comptime] tile: WindowTile,
) {
    let lane = place.lane;
    let in_fragment = lane % tile.fragment as u32;
    #[unroll]
    for step in 0..comptime!(tile.fragment * tile.fragment / SUBGROUP) {
        let in_patch = comptime!((step * (SUBGROUP / tile.fragment)) as u32) + lane / tile.fragment as u32;
        let in_tile = first + in_patch;
        if row.exists && work.first_n + place.subgroup_n + in_tile < tiling.n {
            let channel = place.first_channel + in_tile;
            let bias = channel_bias(bias, channel);
            let sum = patches[place.patch + (in_patch * tile.fragment as u32 + in_fragment) as usize];
            let sum = sum + bias;
            let value = finished_with_channel(sum, residual, row.added, channel, tiling.activation);
            out[row.at + gather.out_channel(channel)] = O::cast_from(value);
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
    gather: &GatherArgs,
    tiling: &WindowTiling,
    work: &WindowWork,
    #[comptime] tile: WindowTile,
    #[comptime] unroll: bool,
) {
    let thread = UNIT_POS as usize;
    let subgroup = thread / SUBGROUP;
    let lane = thread % SUBGROUP;
    let subgroup_m = subgroup % comptime!(tile.tile_m / tile.subgroup_m) * tile.subgroup_m;
    let subgroup_n = (subgroup / comptime!(tile.tile_m / tile.subgroup_m) * tile.subgroup_n) as u32;
    // Vectors of a row of the patch.
    let vectors = comptime!(PATCH_FRAGMENTS * tile.fragment / OUT_VECTOR);
    let patch_vectors = comptime!(tile.fragment * vectors);
    let mut patches =
        Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(tile.subgroups() * patch_vectors));
    let end = patches.len();
    let patch = subgroup * patch_vectors;
    let first_channel = work.group * tiling.n;
    let frame_offset = gather.out_at(work.n, 0u32)
        + gather.depth.out_offset(work.d)
        + work.k_slice as usize * tiling.slice_stride;
    let columns = comptime!(tile.subgroup_m / tile.fragment);
    let (rows, pairs) = comptime!((tile.subgroup_n / tile.fragment, columns / PATCH_FRAGMENTS));
    let (step, stride) = comptime!((tile.fragment / OUT_VECTOR, (PATCH_FRAGMENTS * tile.fragment) as u32));
    let place = VectorPlace { lane, patch, first_channel, subgroup_n, frame_offset };
    if comptime!(unroll) {
        #[unroll]
        for pair in 0..pairs {
            let in_tile =
                subgroup_m + comptime!(pair * PATCH_FRAGMENTS * tile.fragment) + lane % vectors * OUT_VECTOR;
            let position = work.first_m as usize + in_tile;
            let exists = position < (tiling.height * tiling.width) as usize;
            #[unroll]
            for row in 0..rows {
                sync_cube();
                #[unroll]
                for fragment in 0..PATCH_FRAGMENTS {
                    let sum = acc.index(comptime!(row * columns + pair * PATCH_FRAGMENTS + fragment));
                    let at = patch + comptime!(fragment * step);
                    cmma::store(&mut patches[at..end], sum, stride, MatrixLayout::RowMajor);
                }
                sync_cube();
                let first = comptime!((row * tile.fragment) as u32);
                write_vectors(
                    &patches, bias, residual, out, gather, tiling, work, &place, position, exists, first,
                    tile,
                );
            }
        }
    } else {
        for pair in 0..pairs {
            let in_tile =
                subgroup_m + pair * comptime!(PATCH_FRAGMENTS * tile.fragment) + lane % vectors * OUT_VECTOR;
            let position = work.first_m as usize + in_tile;
            let exists = position < (tiling.height * tiling.width) as usize;
            for row in 0..rows {
                sync_cube();
                let chosen = (row * pairs + pair) as u32;
                let members = comptime!((PATCH_FRAGMENTS, step));
                store_chosen(
                    acc,
                    chosen,
                    &mut patches,
                    patch,
                    0usize,
                    comptime!(rows * pairs),
                    members,
                    stride,
                );
                sync_cube();
                let first = (row * tile.fragment) as u32;
                write_vectors(
                    &patches, bias, residual, out, gather, tiling, work, &place, position, exists, first,
                    tile,
                );
            }
        }
    }
}

/// A lane's part of a subgroup's tile, in vectors.
#[derive(CubeType)]
struct VectorPlace {
    lane: usize,
    patch: usize,
    first_channel: u32,
    subgroup_n: u32,
    frame_offset: usize,
}

/// Stores the vectors in the subgroup's patch at a lane's position, of channels that begin `first` behind the
/// subgroup's.
#[cube]
fn write_vectors<E: Float, O: Float>(
    patches: &Shared<[Vector<f32, Const<4>>]>,
    bias: ComptimeOption<&Tensor<E>>,
    residual: ComptimeOption<&Tensor<Vector<E, Const<4>>>>,
    out: &mut [Vector<O, Const<4>>],
    gather: &GatherArgs,
    tiling: &WindowTiling,
    work: &WindowWork,
    place: &VectorPlace,
    position: usize,
    exists: bool,
    first: u32,
    #[comptime] tile: WindowTile,
) {
    let vectors = comptime!(PATCH_FRAGMENTS * tile.fragment / OUT_VECTOR);
    // Rows that a subgroup stores at a time.
    let rows = comptime!(SUBGROUP / vectors);
    #[unroll]
    for step in 0..comptime!(tile.fragment / rows) {
        let in_patch = place.lane / vectors + comptime!(step * rows);
        let n = work.first_n + place.subgroup_n + first + in_patch as u32;
        if exists && n < tiling.n {
            let channel = place.first_channel + n;
            let bias = channel_bias(bias, channel);
            let sum = patches[place.patch + in_patch * vectors + place.lane % vectors] + Vector::new(bias);
            let at = place.frame_offset + gather.out_channel(channel) + position;
            let value = activate_vector(sum, tiling.activation, false);
            let added: ComptimeOption<Vector<f32, Const<4>>> = residual.map(|residual| {
                let frame = residual_offset(residual, gather, work.n, work.d, 0u32, 0u32);
                let from = frame + channel as usize * residual.stride(1) + position;
                Vector::cast_from(residual[from / OUT_VECTOR])
            });
            out[at / OUT_VECTOR] = Vector::cast_from(add_residual_vector(value, added, tiling.activation));
        }
    }
}
