//! What the passes on matrix units share: a plane's accumulators, the product of two stages, and the way of
//! the results to memory.
//!
//! ```text
//! D[channels][sites] += A[channels][terms] * B[terms][sites]
//!
//! in fragments of the device's shape, with fp32 accumulators
//! ```
//!
//! Channels are the product's rows: a fragment's rows are then runs of the result's memory, and accumulators
//! are stored row-major only. A stage holds rows of terms (its fragments' terms are neighbours) or terms of
//! rows.

use super::config::{MatrixTile, PLANE};
use super::index::Walk;
use super::stage::{Extents, Share};
use super::table::Table;
use crate::activation::activate_by_code;
use crate::conv3d::pass::Pass;
use cubecl::cmma::{self, MatrixIdent, MatrixLayout};
use cubecl::prelude::*;

/// A plane's `count` sums in fragments of `size` rows, all zero: rows of channels, columns of sites.
#[cube]
pub(crate) fn accumulators(#[comptime] count: usize, #[comptime] size: usize) -> Sequence<cmma::Matrix<f32>> {
    let mut sums = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..comptime!(count / size / size) {
        sums.push(cmma::Matrix::<f32>::from_value(
            MatrixIdent::Accumulator,
            size,
            size,
            size,
            MatrixLayout::Undefined,
            0.0,
        ));
    }
    sums
}

/// Adds the products of a stage to this plane's accumulators. `along_terms` says of the sites' and of the
/// channels' stage whether its rows are sites (channels) and hold terms, or are terms and hold sites
/// (channels).
#[cube]
pub(crate) fn multiply<S: Float, V: Size>(
    site_stage: &Shared<[Vector<S, V>]>,
    channel_stage: &Shared<[Vector<S, V>]>,
    sums: &Sequence<cmma::Matrix<f32>>,
    #[comptime] along_terms: (bool, bool),
    #[comptime] size: usize,
    #[comptime] tile: MatrixTile,
) {
    let plane = UNIT_POS as usize / PLANE;
    let first_site = plane % comptime!(tile.tile_m / tile.plane_m) * tile.plane_m;
    let first_channel = plane / comptime!(tile.tile_m / tile.plane_m) * tile.plane_n;
    #[unroll]
    for k in 0..comptime!(tile.tile_k / tile.fragment) {
        let mut channels = Sequence::<cmma::Matrix<Vector<S, V>>>::new();
        #[unroll]
        for i in 0..comptime!(tile.plane_n / tile.fragment) {
            let first = first_channel + comptime!(i * tile.fragment);
            let along_terms = comptime!(along_terms.1);
            let layout = comptime!(if along_terms { MatrixLayout::RowMajor } else { MatrixLayout::ColMajor });
            let ident = MatrixIdent::A;
            channels.push(fragment(
                channel_stage,
                first,
                k,
                ident,
                layout,
                along_terms,
                tile.tile_n,
                size,
                tile,
            ));
        }
        #[unroll]
        for j in 0..comptime!(tile.plane_m / tile.fragment) {
            let first = first_site + comptime!(j * tile.fragment);
            let along_terms = comptime!(along_terms.0);
            let layout = comptime!(if along_terms { MatrixLayout::ColMajor } else { MatrixLayout::RowMajor });
            let ident = MatrixIdent::B;
            let sites = fragment(site_stage, first, k, ident, layout, along_terms, tile.tile_m, size, tile);
            #[unroll]
            for i in 0..comptime!(tile.plane_n / tile.fragment) {
                let sum = sums.index(comptime!(i * (tile.plane_m / tile.fragment) + j));
                cmma::execute(channels.index(i), &sites, sum, sum);
            }
        }
    }
}

/// The fragment of a stage of `extent` sites or channels that starts at site or channel `first` and at the
/// stage's `k`-th run of terms.
#[cube]
#[allow(clippy::too_many_arguments)]
fn fragment<S: Float, V: Size>(
    stage: &Shared<[Vector<S, V>]>,
    first: usize,
    #[comptime] k: usize,
    #[comptime] ident: MatrixIdent,
    #[comptime] layout: MatrixLayout,
    #[comptime] along_terms: bool,
    #[comptime] extent: usize,
    #[comptime] size: usize,
    #[comptime] tile: MatrixTile,
) -> cmma::Matrix<Vector<S, V>> {
    let width = V::value();
    let row = comptime!(tile.row(if along_terms { tile.tile_k } else { extent }, width, size));
    let mut at = first / width + comptime!(k * tile.fragment * row);
    if comptime!(along_terms) {
        at = first * row + comptime!(k * tile.fragment / width);
    }
    let end = stage.len();
    cmma::Matrix::<Vector<S, V>>::from_slice(
        ident,
        tile.fragment,
        tile.fragment,
        tile.fragment,
        layout,
        &stage[at..end],
        comptime!((row * width) as u32),
    )
}

/// The `run`-th vector of values that were read one by one. It is put together where it is written, not where
/// its values are read: whatever touches a value waits for it.
#[cube]
pub(crate) fn packed<E: Float, S: Float, V: Size>(
    values: &Sequence<E>,
    #[comptime] run: usize,
) -> Vector<S, V> {
    let width = V::value();
    let mut vector = Vector::<S, V>::empty();
    #[unroll]
    for i in 0..width {
        vector.insert(i, S::cast_from(*values.index(comptime!(run * width + i))));
    }
    vector
}

/// Moves a fragment into its plane's patch of shared memory, rows of channels from `patch` on, where any lane
/// may read any of it. All planes of the cube come here together.
#[cube]
pub(crate) fn into_patch(
    sum: &cmma::Matrix<f32>,
    patches: &mut Shared<[f32]>,
    patch: usize,
    #[comptime] size: usize,
) {
    let end = patches.len();
    sync_cube();
    cmma::store(&mut patches[patch..end], sum, size as u32, MatrixLayout::RowMajor);
    sync_cube();
}

/// Writes a plane's sums. Each fragment passes through the plane's own patch of shared memory, where bias,
/// activation, rounding and the tails are applied. A weight gradient is row-major.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn write_result<E: Float, O: Float>(
    sums: &Sequence<cmma::Matrix<f32>>,
    patches: &mut Shared<[f32]>,
    bias: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    walk: &Walk,
    extents: &Extents,
    share: &Share,
    #[comptime] pass: Pass,
    #[comptime] tile: MatrixTile,
) {
    let unit = UNIT_POS as usize;
    let plane = (unit / PLANE) as u32;
    let lane = (unit % PLANE) as u32;
    let plane_m = plane % comptime!((tile.tile_m / tile.plane_m) as u32) * tile.plane_m as u32;
    let plane_n = plane / comptime!((tile.tile_m / tile.plane_m) as u32) * tile.plane_n as u32;
    let patch = plane as usize * comptime!(tile.fragment * tile.fragment);
    // Where the tile's channels go.
    let gathered = comptime!(pass != Pass::WeightGradient);
    let mut columns = Shared::<[usize]>::new_slice(comptime!(if gathered { tile.tile_n } else { 1 }));
    if gathered && unit < tile.tile_n {
        columns[unit] =
            walk.out_column(share.group * extents.n + min(share.first_n + unit as u32, extents.n - 1u32));
    }
    #[unroll]
    for column in 0..comptime!(tile.plane_m / tile.fragment) {
        // A lane writes one site of the fragments of a column.
        let in_fragment = lane % tile.fragment as u32;
        let m = share.first_m + plane_m + comptime!((column * tile.fragment) as u32) + in_fragment;
        let mut at = m as usize;
        if gathered {
            at = walk.site_out(min(m, extents.m - 1u32));
        }
        at += share.part * extents.part_stride;
        #[unroll]
        for fragment_row in 0..comptime!(tile.plane_n / tile.fragment) {
            let sum = sums.index(comptime!(fragment_row * (tile.plane_m / tile.fragment) + column));
            into_patch(sum, patches, patch, tile.fragment);
            #[unroll]
            for step in 0..comptime!(tile.fragment * tile.fragment / PLANE) {
                let in_patch =
                    comptime!((step * (PLANE / tile.fragment)) as u32) + lane / tile.fragment as u32;
                let n = share.first_n + plane_n + comptime!((fragment_row * tile.fragment) as u32) + in_patch;
                if m < extents.m && n < extents.n {
                    let channel = share.group * extents.n + n;
                    let bias: ComptimeOption<f32> =
                        bias.map(|bias| f32::cast_from(bias[channel as usize * bias.stride(0)]));
                    let sum = patches[patch + (in_patch * tile.fragment as u32 + in_fragment) as usize];
                    let sum = sum + bias.unwrap_or_else(|| 0.0f32.runtime());
                    let mut row = channel as usize * extents.m as usize;
                    if gathered {
                        row = columns[(n - share.first_n) as usize];
                    }
                    out[at + row] = O::cast_from(activate_by_code(sum, extents.activation));
                }
            }
        }
    }
}

/// Reads this unit's part of the next stage of channels (weights; the weight gradient's dy) into registers,
/// as [`read_channels`] does, where the table says that the stage's terms lie. `channels` are the first and
/// the last channel and their distance.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn gather_channels<E: Float, W: Size>(
    from: &[Vector<E, W>],
    table: &Table,
    at: usize,
    first: usize,
    channels: (u32, u32, usize),
    #[comptime] pass: Pass,
    #[comptime] width: usize,
    #[comptime] tile: MatrixTile,
) -> Sequence<Vector<E, W>> {
    let together = W::value();
    let term = at + UNIT_POS as usize % comptime!(tile.tile_k / together) * together;
    read_channels(from, first + table.weight[term], table.exists(term, pass), channels, width, tile)
}

/// Reads a stage's channels at this unit's term, whose first channel lies at `place`: runs of terms of a
/// channel, or one term of several channels, lanes along terms either way.
#[cube]
pub(super) fn read_channels<E: Float, W: Size>(
    from: &[Vector<E, W>],
    place: usize,
    exists: bool,
    channels: (u32, u32, usize),
    #[comptime] width: usize,
    #[comptime] tile: MatrixTile,
) -> Sequence<Vector<E, W>> {
    let mut values = Sequence::<Vector<E, W>>::new();
    let together = W::value();
    let runs = comptime!(tile.tile_k / together);
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_n, together)) {
        let mut in_tile = UNIT_POS as usize / runs + comptime!(load * (tile.units() / runs));
        if comptime!(together == 1) {
            let vector = UNIT_POS as usize / runs + comptime!(load / width * (tile.units() / runs));
            in_tile = vector * width + comptime!(load % width);
        }
        // Channels past the last repeat it: their results are not written.
        let channel = min(channels.0 + in_tile as u32, channels.1);
        let mut value = Vector::<E, W>::new(E::from_int(0));
        if exists {
            value = from[(place + channel as usize * channels.2) / together];
        }
        values.push(value);
    }
    values
}

/// Writes what was read with lanes along terms ([`gather_channels`]; the weight gradient's sources), of
/// `extent` rows of the product: those rows, which hold terms, or rows of terms that hold them.
#[cube]
pub(super) fn write_rows<E: Float, S: Float, V: Size, W: Size>(
    from: &Sequence<Vector<E, W>>,
    stage: &mut Shared<[Vector<S, V>]>,
    #[comptime] row: usize,
    #[comptime] extent: usize,
    #[comptime] tile: MatrixTile,
) {
    let width = V::value();
    let together = W::value();
    let runs = comptime!(tile.tile_k / together);
    let rows = UNIT_POS as usize / runs;
    #[unroll]
    for load in 0..comptime!(tile.loads(extent, width)) {
        let next = rows + comptime!(load * (tile.units() / runs));
        if comptime!(together == width) {
            stage[next * row + UNIT_POS as usize % runs] = Vector::cast_from(*from.index(load));
        } else {
            let mut values = Vector::<S, V>::empty();
            #[unroll]
            for i in 0..width {
                values.insert(i, S::cast_from(from.index(comptime!(load * width + i)).extract(0usize)));
            }
            stage[UNIT_POS as usize % runs * row + next] = values;
        }
    }
}
