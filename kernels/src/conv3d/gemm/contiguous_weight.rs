//! The weight gradient on matrix units where the output positions are contiguous in both operands
//! (pointwise-in-frame windows: 1x1x1, 3x1x1), fp32 accumulation: [`super::mma_weight`] without index tables.
//!
//! ```text
//! partial[slice, n, m] = sum over the slice's positions k of dy(k, n) * source(k, m)     m = (c, depth tap)
//!
//! a stage: tile_k positions of tile_m channel taps and of tile_n channels of dy, both K-major
//! ```
//!
//! Layouts, tile and epilogue are those of [`super::mma_weight`]. Both operands are loaded as vectors of
//! positions. A thread divides out one position per stage, and its channel taps once. Per stage a threadgroup
//! loads `tile_k * (tile_m + tile_n)` elements for `2 * tile_m * tile_n * tile_k` FLOP; partial results are
//! written and read once, 8 bytes each. Declined: other windows or strides ([`super::vectors`]), replicate
//! padding, frames in a cache.

use super::channels::{Channels, or_zero};
use super::config::MatrixTile;
use super::fragments::epilogue;
use super::index::{ChannelTap, GatherArgs, OutputPosition};
use super::mma_loop::Stages;
use super::read::inside_or_zero;
use super::stage::GemmShape;
use super::tap_check::TapCheck;
use crate::conv3d::mma::accumulators;
use crate::conv3d::pass::Pass;
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn contiguous_weight_kernel<E: Float, S: Float, O: Float, V: Size>(
    source: &[Vector<E, V>],
    dy: &[Vector<E, V>],
    out: &mut [O],
    gather: GatherArgs,
    shape: GemmShape,
    span: Span,
    #[comptime] tile: MatrixTile,
    #[comptime] prefetch: bool,
    #[comptime] size: usize,
    #[define(E)] _dtype: ElemType,
    #[define(S)] _stage_dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // Uniform for the threadgroup: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let work = shape.work_tile(span.index(), tile.tile_m, tile.tile_n);
    let width = V::value();
    let mut stages = Stages::<S, V>::new((true, true), size, tile);
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(tile.subgroups() * tile.fragment * tile.fragment));
    let sums = accumulators(comptime!(tile.subgroup_m * tile.subgroup_n), tile.fragment);
    if comptime!(prefetch) {
        stages.zero();
    }

    // This thread's position in a stage, and its channel taps. Clamped: results past M are not stored.
    let k_vectors = comptime!(tile.tile_k / width);
    let in_stage = (UNIT_POS as usize % k_vectors * width) as u32;
    let first_row = (UNIT_POS as usize / k_vectors) as u32;
    let first_channel = gather.source_channel(work.group * shape.source_channels);
    let mut taps = Sequence::<ChannelTap>::new();
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_m, width)) {
        let in_tile = first_row + comptime!((load * (tile.threads() / k_vectors)) as u32);
        let m = min(work.first_m + in_tile, shape.m - 1u32);
        taps.push(gather.channel_tap(m, true.runtime(), Pass::Forward, TapCheck::Masks));
    }
    let channels = Channels::new(
        dy,
        0usize,
        work.group * shape.n + work.first_n,
        work.group * shape.n + shape.n - 1u32,
        gather.out_channel(1u32),
        tile,
    );
    sync_cube();
    let stage = comptime!(tile.tile_k as u32).runtime();
    let mut stage_k = work.first_k;
    if comptime!(prefetch) {
        // Each iteration loads the stage at `stage_k` and multiplies the one before; the last loads nothing.
        while stage_k < work.end_k + comptime!(tile.tile_k as u32) {
            let k = stage_k + in_stage;
            let exists = k < work.end_k;
            let position = gather.position(min(k, shape.k - 1u32), TapCheck::Masks);
            let (sources, _) =
                load_source(source, &gather, &taps, &position, first_channel, exists, prefetch);
            let gradients = channels.load(position.out, exists, width);
            stages.multiply(&sums);
            sync_cube();
            stages.store(&sources, &gradients);
            stage_k += stage;
            sync_cube();
        }
    } else {
        // All loads of a stage are in flight together; their registers are free during the product.
        let rows = channels.rows(width);
        while stage_k < work.end_k {
            let k = stage_k + in_stage;
            let exists = k < work.end_k;
            let position = gather.frame_position(min(k, shape.k - 1u32));
            let (sources, inside) =
                load_source(source, &gather, &taps, &position, first_channel, exists, prefetch);
            let gradients = channels.load_rows(&rows, position.out / width, exists);
            let sources = inside_or_zero(&sources, &inside);
            let gradients = or_zero(&gradients, exists);
            sync_cube();
            stages.store(&sources, &gradients);
            stage_k += stage;
            sync_cube();
            stages.multiply(&sums);
        }
    }
    let none = ComptimeOption::<&Tensor<E>>::new_None();
    epilogue(&sums, &mut scratch, none, none, out, &gather, &shape, &work, Pass::WeightGradient, false, tile);
}

/// Loads this thread's vectors of the next source stage into registers. `branches`: whether what is outside
/// is not loaded; else it reads the first vector, and the second result says what is inside.
#[cube]
fn load_source<E: Float, V: Size>(
    source: &[Vector<E, V>],
    gather: &GatherArgs,
    taps: &Sequence<ChannelTap>,
    position: &OutputPosition,
    first_channel: usize,
    exists: bool,
    #[comptime] branches: bool,
) -> (Sequence<Vector<E, V>>, Sequence<bool>) {
    let mut values = Sequence::<Vector<E, V>>::new();
    let mut insides = Sequence::<bool>::new();
    let width = V::value();
    #[unroll]
    for load in 0..taps.len() {
        if branches {
            let mut value = Vector::<E, V>::new(E::from_int(0));
            let (offset, in_bounds) = gather.load_offset(position, taps.index(load), TapCheck::Masks);
            if in_bounds && exists {
                value = source[(offset + first_channel) / width];
            }
            values.push(value);
        } else {
            let (offset, in_bounds) = gather.load_offset(position, taps.index(load), TapCheck::Masks);
            let inside = in_bounds && exists;
            values.push(source[select(inside, offset + first_channel, 0usize) / width]);
            insides.push(inside);
        }
    }
    (values, insides)
}
