//! How taps come to shared memory: a block of them for each row of a cube, in the order in which columns meet
//! them.

use super::forward::{BLOCK, TAP_PART, TAP_ROW, TiledShare};
use super::products::{Quad, place_of};
use crate::causal_conv1d::args::{Rows, at2};
use cubecl::prelude::*;

/// Reads the taps of vector `index` of the block that begins with tap `k`; the first tap of all in place of
/// those that do not exist.
#[cube]
pub(super) fn read_taps<W: Float>(
    weight: &Tensor<W>,
    extents: &Rows,
    share: &TiledShare,
    first_row: usize,
    k: usize,
    index: u32,
) -> Sequence<W> {
    let c = first_row + (index / comptime!(BLOCK as u32 / 4)) as usize;
    let mut raw = Sequence::<W>::new();
    #[unroll]
    for i in 0..4usize {
        let tap = k + (index % comptime!(BLOCK as u32 / 4)) as usize * 4 + i;
        let from = select(share.reversed != 0u32, extents.width - 1 - tap, tap);
        let exists = c < extents.channels && tap < extents.width;
        raw.push(weight[select(exists, at2(weight, extents.first + c, from), 0usize)]);
    }
    raw
}

/// Puts them into shared memory, where the cube has their row; 0 in place of those that do not exist.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn put_taps<W: Float>(
    raw: &Sequence<W>,
    extents: &Rows,
    first_row: usize,
    k: usize,
    index: u32,
    rows: u32,
    taps: &mut Shared<[Quad]>,
) {
    let row = index / comptime!(BLOCK as u32 / 4);
    let vector = index % comptime!(BLOCK as u32 / 4);
    if row < rows {
        let mut quad = Quad::new(0.0f32);
        #[unroll]
        for i in 0..4usize {
            let exists =
                first_row + (row as usize) < extents.channels && k + vector as usize * 4 + i < extents.width;
            quad.insert(i, select(exists, f32::cast_from(*raw.index(i)), 0.0f32));
        }
        let place = place_of(vector, comptime!(TAP_PART));
        taps[(row * comptime!(TAP_ROW as u32) + place) as usize] = quad;
    }
}
