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
//! written and read once, 8 bytes each. Frames in a cache: each vector is loaded from one of the two tensors,
//! and both loads are in flight together. Declined: other windows or strides ([`super::vectors`]), replicate
//! padding.

use super::channels::{Channels, or_zero};
use super::config::MatrixTile;
use super::fragments::weight_epilogue;
use super::index::{ChannelTap, GatherArgs, OutputPosition};
use super::mma_loop::Stages;
use super::read::inside_or_zero;
use super::stage::GemmShape;
use super::tap_check::TapCheck;
use crate::conv3d::cache::CacheArgs;
use crate::conv3d::mma::accumulators;
use crate::conv3d::pass::Pass;
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn contiguous_weight_kernel<E: Float, S: Float, O: Float, V: Size>(
    source: &[Vector<E, V>],
    cache: ComptimeOption<&[Vector<E, V>]>,
    dy: &[Vector<E, V>],
    out: &mut [O],
    gather: GatherArgs,
    cache_args: ComptimeOption<CacheArgs>,
    shape: GemmShape,
    span: Span,
    #[comptime] tile: MatrixTile,
    #[comptime] prefetch: bool,
    #[comptime] size: usize,
    // For the kernel's key, in which optional arguments do not count.
    #[comptime] _has_cache: bool,
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
    let first_channel =
        later_frames(&cache_args, &gather, gather.source_channel(work.group * shape.source_channels));
    let mut taps = Sequence::<ChannelTap>::new();
    let mut cache_taps = Sequence::<usize>::new();
    #[unroll]
    for load in 0..comptime!(tile.loads(tile.tile_m, width)) {
        let in_tile = first_row + comptime!((load * (tile.threads() / k_vectors)) as u32);
        let m = min(work.first_m + in_tile, shape.m - 1u32);
        let tap = gather.channel_tap(m, true.runtime(), Pass::Forward, TapCheck::Masks);
        cache_taps.push(cache_tap(&cache_args, &gather, &tap, work.group * shape.source_channels, m));
        taps.push(tap);
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
            let k = min(k, shape.k - 1u32);
            let position = gather.position(k, TapCheck::Masks);
            let cached = cache_position(&cache_args, &gather, k);
            let (later, _) =
                load_source(source, &gather, &taps, &position, first_channel, &cached, exists, prefetch);
            let earlier =
                load_cached(cache, &gather, &taps, &cache_taps, &position, &cached, exists, prefetch);
            let gradients = channels.load(position.out, exists, width);
            stages.multiply(&sums);
            sync_cube();
            let sources = joined(&later, &earlier, &taps, &position, &cached);
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
            let k = min(k, shape.k - 1u32);
            let position = gather.frame_position(k);
            let cached = cache_position(&cache_args, &gather, k);
            let (later, inside) =
                load_source(source, &gather, &taps, &position, first_channel, &cached, exists, prefetch);
            let earlier =
                load_cached(cache, &gather, &taps, &cache_taps, &position, &cached, exists, prefetch);
            let gradients = channels.load_rows(&rows, position.out / width, exists);
            let sources = joined(&later, &earlier, &taps, &position, &cached);
            let sources = inside_or_zero(&sources, &inside);
            let gradients = or_zero(&gradients, exists);
            sync_cube();
            stages.store(&sources, &gradients);
            stage_k += stage;
            sync_cube();
            stages.multiply(&sums);
        }
    }
    weight_epilogue(&sums, &mut scratch, out, &gather, &shape, &work, tile);
}

/// A thread's position in the cache.
#[derive(CubeType, Clone, Copy)]
struct CachePosition {
    /// The cache's frames.
    frames: i32,
    /// Where tap 0 of channel 0 reads.
    offset: usize,
}

/// The offset of the frames behind the cache, if `channel` is that of a channel.
#[cube]
fn later_frames(cache: &ComptimeOption<CacheArgs>, gather: &GatherArgs, channel: usize) -> usize {
    #[comptime]
    match cache {
        // Wraps; so does a position's offset in the cache's frames.
        ComptimeOption::Some(cache) => channel - cache.frames as usize * gather.depth.source_stride,
        ComptimeOption::None => channel,
    }
}

/// What the channel tap `m` adds to a position's offset in the cache; its group begins at channel `first`.
#[cube]
fn cache_tap(
    cache: &ComptimeOption<CacheArgs>,
    gather: &GatherArgs,
    tap: &ChannelTap,
    first: u32,
    m: u32,
) -> usize {
    #[comptime]
    match cache {
        ComptimeOption::Some(cache) => {
            (first + gather.taps.div(m)) as usize * cache.channel_stride + tap.d as usize * cache.depth_stride
        }
        ComptimeOption::None => 0usize,
    }
}

/// The position `k` in the cache, whose frames have the source's layout.
#[cube]
fn cache_position(
    cache: &ComptimeOption<CacheArgs>,
    gather: &GatherArgs,
    k: u32,
) -> ComptimeOption<CachePosition> {
    #[comptime]
    match cache {
        ComptimeOption::Some(cache) => {
            let (n, d, h, w) = gather.position_coordinates(k);
            let offset = n as usize * cache.image_stride
                + gather.depth.coordinate(d) as usize * cache.depth_stride
                + gather.height.coordinate(h) as usize * gather.height.source_stride
                + gather.width.coordinate(w) as usize * gather.width.source_stride;
            ComptimeOption::new_Some(CachePosition { frames: cache.frames as i32, offset })
        }
        ComptimeOption::None => ComptimeOption::new_None(),
    }
}

/// Whether a tap reads the cache.
#[cube]
fn is_cached(cached: &ComptimeOption<CachePosition>, position: &OutputPosition, tap: &ChannelTap) -> bool {
    #[comptime]
    match cached {
        ComptimeOption::Some(cached) => position.d + (tap.d as i32) < cached.frames,
        ComptimeOption::None => false.runtime(),
    }
}

/// Whether a tap reads the source.
#[cube]
fn is_later(
    inside: bool,
    cached: &ComptimeOption<CachePosition>,
    position: &OutputPosition,
    tap: &ChannelTap,
) -> bool {
    #[comptime]
    match cached {
        ComptimeOption::Some(_) => inside && !is_cached(cached, position, tap),
        ComptimeOption::None => inside,
    }
}

/// Loads this thread's vectors of the next source stage into registers. `branches`: whether what is outside,
/// or in the cache, is not loaded; else it reads the first vector, and the second result says what is inside.
#[cube]
fn load_source<E: Float, V: Size>(
    source: &[Vector<E, V>],
    gather: &GatherArgs,
    taps: &Sequence<ChannelTap>,
    position: &OutputPosition,
    first_channel: usize,
    cached: &ComptimeOption<CachePosition>,
    exists: bool,
    #[comptime] branches: bool,
) -> (Sequence<Vector<E, V>>, Sequence<bool>) {
    let mut values = Sequence::<Vector<E, V>>::new();
    let mut insides = Sequence::<bool>::new();
    let width = V::value();
    #[unroll]
    for load in 0..taps.len() {
        let (offset, in_bounds) = gather.load_offset(position, taps.index(load), TapCheck::Masks);
        let inside = in_bounds && exists;
        let later = is_later(inside, cached, position, taps.index(load));
        if branches {
            let mut value = Vector::<E, V>::new(E::from_int(0));
            if later {
                value = source[(offset + first_channel) / width];
            }
            values.push(value);
        } else {
            values.push(source[select(later, offset + first_channel, 0usize) / width]);
            insides.push(inside);
        }
    }
    (values, insides)
}

/// Loads this thread's vectors of the stage that are in the cache, as [`load_source`] those that are not.
/// None without a cache.
#[cube]
fn load_cached<E: Float, V: Size>(
    cache: ComptimeOption<&[Vector<E, V>]>,
    gather: &GatherArgs,
    taps: &Sequence<ChannelTap>,
    cache_taps: &Sequence<usize>,
    position: &OutputPosition,
    cached: &ComptimeOption<CachePosition>,
    exists: bool,
    #[comptime] branches: bool,
) -> Sequence<Vector<E, V>> {
    let mut values = Sequence::<Vector<E, V>>::new();
    let width = V::value();
    #[comptime]
    match cached {
        ComptimeOption::Some(at) => {
            let cache = cache.unwrap();
            #[unroll]
            for load in 0..taps.len() {
                let tap = taps.index(load);
                let (_, in_bounds) = gather.load_offset(position, tap, TapCheck::Masks);
                let inside = in_bounds && exists && is_cached(cached, position, tap);
                let offset = at.offset + *cache_taps.index(load);
                if branches {
                    let mut value = Vector::<E, V>::new(E::from_int(0));
                    if inside {
                        value = cache[offset / width];
                    }
                    values.push(value);
                } else {
                    values.push(cache[select(inside, offset, 0usize) / width]);
                }
            }
        }
        ComptimeOption::None => {}
    }
    values
}

/// A stage's vectors from the tensors that have them. After the last load: the first use of a value waits for
/// its load.
#[cube]
fn joined<E: Float, V: Size>(
    later: &Sequence<Vector<E, V>>,
    earlier: &Sequence<Vector<E, V>>,
    taps: &Sequence<ChannelTap>,
    position: &OutputPosition,
    cached: &ComptimeOption<CachePosition>,
) -> Sequence<Vector<E, V>> {
    let mut values = Sequence::<Vector<E, V>>::new();
    #[unroll]
    for load in 0..later.len() {
        if comptime!(cached.is_some()) {
            let from_cache = is_cached(cached, position, taps.index(load));
            values.push(select(from_cache, *earlier.index(load), *later.index(load)));
        } else {
            values.push(*later.index(load));
        }
    }
    values
}
