//! The GEMM of two shared-memory stages on matrix units, common to all passes: stores with
//! lanes along K, the product, and the epilogue.
//!
//! ```text
//! D[n][m] += A[n][k] * B[k][m]      n: channels, m: output positions; D in fp32
//!
//! K-major stage             rows of one m (n), K contiguous
//! M-major (N-major) stage   rows of one k, M (N) contiguous
//! ```
//!
//! Channels are the rows of D: a fragment's rows are then contiguous in the result, and accumulators can only
//! be stored row-major. The epilogue passes each fragment through a patch
//! ([`crate::conv3d::mma`]). Bytes and FLOP: [`super::config`].

use super::config::{MatrixTile, SUBGROUP};
use super::index::GatherArgs;
use super::stage::{GemmShape, WorkTile};
use crate::conv3d::epilogue::{channel_bias, finished_with_channel, residual_row};
use crate::conv3d::mma::{load_fragment, multiply_fragments, store_chosen_to_patch};
use crate::conv3d::pass::Pass;
use cubecl::cmma::{self, MatrixIdent, MatrixLayout};
use cubecl::prelude::*;

/// Adds the products of a stage to this subgroup's accumulators. `k_major`: whether the source's and the
/// channels' stage are K-major. `size`: bytes of a stage element.
#[cube]
pub(crate) fn multiply<S: Float, V: Size>(
    source_stage: &Shared<[Vector<S, V>]>,
    channel_stage: &Shared<[Vector<S, V>]>,
    sums: &Sequence<cmma::Matrix<f32>>,
    #[comptime] k_major: (bool, bool),
    #[comptime] size: usize,
    #[comptime] tile: MatrixTile,
) {
    let subgroup = UNIT_POS as usize / SUBGROUP;
    let first_position = subgroup % comptime!(tile.tile_m / tile.subgroup_m) * tile.subgroup_m;
    let first_channel = subgroup / comptime!(tile.tile_m / tile.subgroup_m) * tile.subgroup_n;
    #[unroll]
    for k in 0..comptime!(tile.tile_k / tile.fragment) {
        let mut channels = Sequence::<cmma::Matrix<Vector<S, V>>>::new();
        #[unroll]
        for i in 0..comptime!(tile.subgroup_n / tile.fragment) {
            let first = first_channel + comptime!(i * tile.fragment);
            let k_major = comptime!(k_major.1);
            let layout = comptime!(if k_major { MatrixLayout::RowMajor } else { MatrixLayout::ColMajor });
            let ident = MatrixIdent::A;
            channels.push(fragment(channel_stage, first, k, ident, layout, k_major, tile.tile_n, size, tile));
        }
        #[unroll]
        for j in 0..comptime!(tile.subgroup_m / tile.fragment) {
            let first = first_position + comptime!(j * tile.fragment);
            let k_major = comptime!(k_major.0);
            let layout = comptime!(if k_major { MatrixLayout::ColMajor } else { MatrixLayout::RowMajor });
            let ident = MatrixIdent::B;
            let positions = fragment(source_stage, first, k, ident, layout, k_major, tile.tile_m, size, tile);
            let rows = comptime!(tile.subgroup_n / tile.fragment);
            let columns = comptime!(tile.subgroup_m / tile.fragment);
            multiply_fragments(&channels, &positions, sums, rows, j, columns);
        }
    }
}

/// The fragment of a stage that starts at row `first` of the product (M or N, of `extent`) and at the `k`-th
/// fragment along K.
#[cube]
fn fragment<S: Float, V: Size>(
    stage: &Shared<[Vector<S, V>]>,
    first: usize,
    #[comptime] k: usize,
    #[comptime] ident: MatrixIdent,
    #[comptime] layout: MatrixLayout,
    #[comptime] k_major: bool,
    #[comptime] extent: usize,
    #[comptime] size: usize,
    #[comptime] tile: MatrixTile,
) -> cmma::Matrix<Vector<S, V>> {
    let width = V::value();
    let row = comptime!(tile.row(if k_major { tile.tile_k } else { extent }, width, size));
    let mut at = first / width + comptime!(k * tile.fragment * row);
    if comptime!(k_major) {
        at = first * row + comptime!(k * tile.fragment / width);
    }
    let end = stage.len();
    load_fragment(&stage[at..end], ident, layout, comptime!(row * width), tile.fragment)
}

/// The epilogue: adds bias, applies the activation, adds the residual, rounds and stores a subgroup's sums,
/// except those past M and N. With `patches` the bias is that of the channel of several columns. A weight
/// gradient is stored as `[n][m]`. Fragments are chosen at run time: 4 kB of text for 50, and on an H200 the
/// kernels are faster (forward 0.97 of the time, dx 0.90, dw 0.99).
#[cube]
pub(super) fn epilogue<E: Float, O: Float>(
    sums: &Sequence<cmma::Matrix<f32>>,
    scratch: &mut Shared<[f32]>,
    bias: ComptimeOption<&Tensor<E>>,
    residual: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    gather: &GatherArgs,
    shape: &GemmShape,
    work: &WorkTile,
    #[comptime] pass: Pass,
    #[comptime] patches: bool,
    #[comptime] tile: MatrixTile,
) {
    let thread = UNIT_POS as usize;
    let subgroup = (thread / SUBGROUP) as u32;
    let lane = (thread % SUBGROUP) as u32;
    let subgroup_m = subgroup % comptime!((tile.tile_m / tile.subgroup_m) as u32) * tile.subgroup_m as u32;
    let subgroup_n = subgroup / comptime!((tile.tile_m / tile.subgroup_m) as u32) * tile.subgroup_n as u32;
    let start = subgroup as usize * comptime!(tile.fragment * tile.fragment);
    let place = Place { lane, subgroup_m, subgroup_n, start };
    // Result offsets of the tile's channels.
    let gathered = comptime!(pass != Pass::WeightGradient);
    let mut columns = Shared::<[usize]>::new_slice(comptime!(if gathered { tile.tile_n } else { 1 }));
    if gathered && thread < tile.tile_n {
        columns[thread] =
            gather.out_column(work.group * shape.n + min(work.first_n + thread as u32, shape.n - 1u32));
    }
    let (rows, column_count) = comptime!((tile.subgroup_n / tile.fragment, tile.subgroup_m / tile.fragment));
    let (size, options) = comptime!((tile.fragment as u32, (pass, patches)));
    for column in 0..comptime!(column_count as u32) {
        let column_m = column * size;
        let row = result_row(residual, gather, shape, work, &place, column_m, pass, tile);
        for fragment_row in 0..comptime!(rows as u32) {
            let chosen = fragment_row * comptime!(column_count as u32) + column;
            store_chosen_to_patch(sums, chosen, scratch, start, tile.fragment);
            let row_n = fragment_row * size;
            write_fragment(
                &*scratch, &columns, bias, residual, out, gather, shape, work, &place, &row, row_n, options,
                tile,
            );
        }
    }
}

/// [`epilogue`] of a weight gradient, whose sums are rounded and stored as they are.
#[cube]
pub(super) fn weight_epilogue<O: Float>(
    sums: &Sequence<cmma::Matrix<f32>>,
    scratch: &mut Shared<[f32]>,
    out: &mut [O],
    gather: &GatherArgs,
    shape: &GemmShape,
    work: &WorkTile,
    #[comptime] tile: MatrixTile,
) {
    let none = ComptimeOption::<&Tensor<f32>>::new_None();
    let pass = Pass::WeightGradient;
    epilogue(sums, scratch, none, none, out, gather, shape, work, pass, false, tile);
}

/// A lane's part of a subgroup's tile: its number, where the tile and the patch begin.
#[derive(CubeType)]
struct Place {
    lane: u32,
    subgroup_m: u32,
    subgroup_n: u32,
    start: usize,
}

/// The position whose results a lane stores of all fragments of a column.
#[derive(CubeType)]
struct ResultRow {
    m: u32,
    /// Offset of channel 0 in the result, and in the residual.
    at: usize,
    added: usize,
}

#[cube]
fn result_row<E: Float>(
    residual: ComptimeOption<&Tensor<E>>,
    gather: &GatherArgs,
    shape: &GemmShape,
    work: &WorkTile,
    place: &Place,
    column_m: u32,
    #[comptime] pass: Pass,
    #[comptime] tile: MatrixTile,
) -> ResultRow {
    let fragment_m = place.lane % tile.fragment as u32;
    let m = work.first_m + place.subgroup_m + column_m + fragment_m;
    let mut at = m as usize;
    if comptime!(pass != Pass::WeightGradient) {
        at = gather.position_out(min(m, shape.m - 1u32));
    }
    at += work.slice * shape.slice_stride;
    let added = residual_row(residual, gather, min(m, shape.m - 1u32));
    ResultRow { m, at, added }
}

/// Stores the results in the subgroup's patch, a fragment whose channels begin `row_n` behind the subgroup's.
#[cube]
fn write_fragment<E: Float, O: Float>(
    scratch: &Shared<[f32]>,
    columns: &Shared<[usize]>,
    bias: ComptimeOption<&Tensor<E>>,
    residual: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    gather: &GatherArgs,
    shape: &GemmShape,
    work: &WorkTile,
    place: &Place,
    row: &ResultRow,
    row_n: u32,
    #[comptime] options: (Pass, bool),
    #[comptime] tile: MatrixTile,
) {
    let (pass, patches) = options;
    let lane = place.lane;
    let fragment_m = lane % tile.fragment as u32;
    #[unroll]
    for step in 0..comptime!(tile.fragment * tile.fragment / SUBGROUP) {
        let fragment_n = comptime!((step * (SUBGROUP / tile.fragment)) as u32) + lane / tile.fragment as u32;
        let n = work.first_n + place.subgroup_n + row_n + fragment_n;
        if row.m < shape.m && n < shape.n {
            let channel = work.group * shape.n + n;
            let bias = channel_bias(bias, gather.column_channel(channel, patches));
            let sum = scratch[place.start + (fragment_n * tile.fragment as u32 + fragment_m) as usize];
            let sum = sum + bias;
            let mut column = channel as usize * shape.m as usize;
            if comptime!(pass != Pass::WeightGradient) {
                column = columns[(n - work.first_n) as usize];
            }
            let value = finished_with_channel(sum, residual, row.added, channel, shape.activation);
            out[row.at + column] = O::cast_from(value);
        }
    }
}

/// Stores what was loaded with lanes along K (the channels; the weight gradient's source) to a stage of
/// `extent` rows of the product with pitch `row`: K-major if loaded as vectors along K, else N-major
/// (M-major).
#[cube]
pub(super) fn store_rows<E: Float, S: Float, V: Size, W: Size>(
    from: &Sequence<Vector<E, W>>,
    stage: &mut Shared<[Vector<S, V>]>,
    #[comptime] row: usize,
    #[comptime] extent: usize,
    #[comptime] tile: MatrixTile,
) {
    let width = V::value();
    let load_width = W::value();
    let k_vectors = comptime!(tile.tile_k / load_width);
    let rows = UNIT_POS as usize / k_vectors;
    #[unroll]
    for load in 0..comptime!(tile.loads(extent, width)) {
        let next = rows + comptime!(load * (tile.threads() / k_vectors));
        if comptime!(load_width == width) {
            stage[next * row + UNIT_POS as usize % k_vectors] = Vector::cast_from(*from.index(load));
        } else {
            let mut values = Vector::<S, V>::empty();
            #[unroll]
            for i in 0..width {
                values.insert(i, S::cast_from(from.index(comptime!(load * width + i)).extract(0usize)));
            }
            stage[UNIT_POS as usize % k_vectors * row + next] = values;
        }
    }
}
