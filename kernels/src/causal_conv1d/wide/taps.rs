//! Taps from DRAM to shared memory: one block per row of the threadgroup, reversed for gradients.

use super::forward::{TAP_BLOCK, TAP_PITCH, TAP_ROW, WideWork};
use super::products::{Quad, section_index};
use crate::causal_conv1d::args::{ConvParams, offset2};
use cubecl::prelude::*;

/// Loads the four taps of vector `index` of the block that begins with tap `k`. Masked lanes load the
/// weight's first element.
#[cube]
pub(super) fn load_taps<W: Float>(
    weight: &Tensor<W>,
    params: &ConvParams,
    work: &WideWork,
    first_row: usize,
    k: usize,
    index: u32,
) -> Sequence<W> {
    let c = first_row + (index / comptime!(TAP_BLOCK as u32 / 4)) as usize;
    let mut raw = Sequence::<W>::new();
    #[unroll]
    for i in 0..4usize {
        let tap = k + (index % comptime!(TAP_BLOCK as u32 / 4)) as usize * 4 + i;
        let from = select(work.reversed != 0u32, params.width - 1 - tap, tap);
        let exists = c < params.channels && tap < params.width;
        raw.push(weight[select(exists, offset2(weight, params.first + c, from), 0usize)]);
    }
    raw
}

/// Stores what [`load_taps`] returned into shared memory, if the threadgroup has the row; 0 past the last tap
/// and channel.
#[cube]
pub(super) fn store_taps<W: Float>(
    raw: &Sequence<W>,
    params: &ConvParams,
    first_row: usize,
    k: usize,
    index: u32,
    rows: u32,
    taps: &mut Shared<[Quad]>,
) {
    let row = index / comptime!(TAP_BLOCK as u32 / 4);
    let vector = index % comptime!(TAP_BLOCK as u32 / 4);
    if row < rows {
        let mut quad = Quad::new(0.0f32);
        #[unroll]
        for i in 0..4usize {
            let exists =
                first_row + (row as usize) < params.channels && k + vector as usize * 4 + i < params.width;
            quad.insert(i, select(exists, f32::cast_from(*raw.index(i)), 0.0f32));
        }
        let at = section_index(vector, comptime!(TAP_PITCH));
        taps[(row * comptime!(TAP_ROW as u32) + at) as usize] = quad;
    }
}
