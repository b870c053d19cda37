//! What a (channel, tap) pair reads at an output position of a gathered GEMM: an element of the source, or of
//! a second tensor with the first frames, the cache of a causal clip. Coordinates are then those of [cache,
//! source] joined along depth, which is never stored.
//!
//! ```text
//! depth d of the joined input    0 .. frames - 1       frames ..
//! read from                      cache, frame d        source, frame d - frames
//!
//! cache  [N, C, frames, H, W]    source  [N, C, D, H, W]    strides of their own
//! ```
//!
//! Positions and taps count image channels (`n * C + c`) in place of source offsets, so that one product
//! serves either tensor: images are as far apart as C channels ([`has_even_images`]).

use super::index::{ChannelTap, GatherArgs, GatherArgsExpand, OutputPosition, RANGE_BIT};
use super::tap_check::TapCheck;
use crate::conv3d::padding::source_of;
use crate::conv3d::problem::PaddingMode;
use crate::operand::Operand;
use cubecl::ir::AddressType;
use cubecl::prelude::*;

/// The strides of the two tensors that the gather does not have.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct JoinedArgs {
    /// Frames of the cache.
    frames: u32,
    source_channel: usize,
    cache_channel: usize,
    cache_depth: usize,
    cache_height: usize,
    cache_width: usize,
}

/// Whether a tensor's image channels are evenly spaced.
pub(crate) fn has_even_images(operand: &Operand) -> bool {
    operand.shape[0] <= 1 || operand.strides[0] == operand.shape[1] * operand.strides[1]
}

/// The two tensors as a kernel argument.
pub(super) fn joined_args(source: &Operand, cache: &Operand) -> JoinedArgsLaunch {
    JoinedArgsLaunch {
        frames: cache.shape[2] as u32,
        source_channel: source.strides[1],
        cache_channel: cache.strides[1],
        cache_depth: cache.strides[2],
        cache_height: cache.strides[3],
        cache_width: cache.strides[4],
    }
}

#[cube]
impl GatherArgs {
    /// The source offset that a pair reads at a position, and whether it is in bounds. Padding other than
    /// zeros maps coordinates to elements.
    pub(crate) fn load_offset(
        &self,
        position: &OutputPosition,
        tap: &ChannelTap,
        #[comptime] check: TapCheck,
    ) -> (usize, bool) {
        let mut at = position.source + tap.source;
        let mut inside = (position.mask & tap.bits) == tap.bits;
        if comptime!(check.needs_coordinates()) {
            let d = position.d + tap.d as i32;
            let h = position.h + tap.h as i32;
            let w = position.w + tap.w as i32;
            inside = exist(position, tap);
            if comptime!(check.maps().is_some()) {
                let [depth, height, width] = comptime!(check.maps().unwrap_or_default());
                let (d, inside_d) = self.depth.load_offset(d, depth);
                let (h, inside_h) = self.height.load_offset(h, height);
                let (w, inside_w) = self.width.load_offset(w, width);
                at += d + h + w;
                require(&mut inside, inside_d, depth);
                require(&mut inside, inside_h, height);
                require(&mut inside, inside_w, width);
            } else {
                // Negative coordinates are larger than any extent as unsigned.
                inside = inside
                    && (d as u32) < self.depth.extent
                    && (h as u32) < self.height.extent
                    && (w as u32) < self.width.extent;
            }
        }
        (at, inside)
    }

    /// [`load_offset`](Self::load_offset) in the source or the cache, and whether it is in the cache.
    fn joined_offset(
        &self,
        joined: &JoinedArgs,
        position: &OutputPosition,
        tap: &ChannelTap,
        #[comptime] check: TapCheck,
    ) -> (usize, bool, bool) {
        let [depth, height, width] = comptime!(check.maps().unwrap_or_default());
        let d = source_of(position.d + tap.d as i32, self.depth.extent as i32, depth);
        let h = source_of(position.h + tap.h as i32, self.height.extent as i32, height);
        let w = source_of(position.w + tap.w as i32, self.width.extent as i32, width);
        let mut inside = exist(position, tap);
        require(&mut inside, (d as u32) < self.depth.extent, depth);
        require(&mut inside, (h as u32) < self.height.extent, height);
        require(&mut inside, (w as u32) < self.width.extent, width);
        let frames = joined.frames as i32;
        let in_cache = d < frames;
        let frame = select(in_cache, d, d - frames);
        let at = (position.source + tap.source)
            * select(in_cache, joined.cache_channel, joined.source_channel)
            + frame as usize * select(in_cache, joined.cache_depth, self.depth.source_stride)
            + h as usize * select(in_cache, joined.cache_height, self.height.source_stride)
            + w as usize * select(in_cache, joined.cache_width, self.width.source_stride);
        (at, inside, in_cache)
    }
}

/// Whether a position and a pair exist, without masks: [`RANGE_BIT`] is set in taps that do not, or in
/// positions that do.
#[cube]
fn exist(position: &OutputPosition, tap: &ChannelTap) -> bool {
    tap.bits < RANGE_BIT || position.mask >= RANGE_BIT
}

/// Requires a coordinate to be in bounds along an axis with zeros; other modes map it there.
#[cube]
fn require(inside: &mut bool, in_bounds: bool, #[comptime] padding: PaddingMode) {
    if comptime!(padding == PaddingMode::Zeros) {
        *inside = *inside && in_bounds;
    }
}

/// The source of a gathered GEMM, in elements or in vectors of adjacent ones, and its cache.
#[derive(CubeType)]
pub(super) struct Source<'a, 'c, T: CubePrimitive> {
    tensor: &'a [T],
    cache: ComptimeOption<&'c [T]>,
    joined: ComptimeOption<JoinedArgs>,
    pub(super) gather: &'a GatherArgs,
    #[cube(comptime)]
    pub(super) check: TapCheck,
}

#[cube]
impl<'a, 'c, T: CubePrimitive + Default + IntoRuntime> Source<'a, 'c, T> {
    pub(super) fn new(
        tensor: &'a [T],
        cache: ComptimeOption<&'c [T]>,
        joined: ComptimeOption<JoinedArgs>,
        gather: &'a GatherArgs,
        #[comptime] check: TapCheck,
    ) -> Source<'a, 'c, T> {
        Source::<'a, 'c, T> { tensor, cache, joined, gather, check }
    }

    /// What a pair reads at a position: zeros where it reads outside.
    pub(super) fn read(&self, position: &OutputPosition, tap: &ChannelTap) -> T {
        let source_width = T::vector_size();
        let check = comptime!(self.check);
        #[comptime]
        match &self.joined {
            ComptimeOption::Some(joined) => {
                let cache = self.cache.unwrap();
                let (at, inside, in_cache) = self.gather.joined_offset(joined, position, tap, check);
                let mut value = T::default();
                if inside {
                    if in_cache {
                        value = cache[at / source_width];
                    } else {
                        value = self.tensor[at / source_width];
                    }
                }
                value
            }
            ComptimeOption::None => {
                let (at, in_bounds) = self.gather.load_offset(position, tap, check);
                let mut value = T::default();
                if in_bounds {
                    value = self.tensor[at / source_width];
                }
                value
            }
        }
    }

    /// [`Self::read`] of one tensor without a branch, so that all loads of a thread are in flight together:
    /// what is outside reads the first element. The second result says what is inside.
    pub(super) fn read_anything(&self, position: &OutputPosition, tap: &ChannelTap) -> (T, bool) {
        let source_width = T::vector_size();
        let (at, inside) = self.gather.load_offset(position, tap, comptime!(self.check));
        (self.tensor[select(inside, at, 0usize) / source_width], inside)
    }
}

#[cube]
impl<'a, 'c, E: Float, R: Size> Source<'a, 'c, Vector<E, R>> {
    /// Loads what a pair reads: with a branch, or whether it is inside as well.
    pub(super) fn push(
        &self,
        values: &mut Sequence<Vector<E, R>>,
        insides: &mut Sequence<bool>,
        position: &OutputPosition,
        tap: &ChannelTap,
        #[comptime] branches: bool,
    ) {
        if branches {
            values.push(self.read(position, tap));
        } else {
            let (value, inside) = self.read_anything(position, tap);
            values.push(value);
            insides.push(inside);
        }
    }
}

/// What [`Source::read_anything`] loaded, zeros where it is outside. After the last load: the first use of a
/// value waits for its load.
#[cube]
pub(super) fn inside_or_zero<E: Float, R: Size>(
    loaded: &Sequence<Vector<E, R>>,
    inside: &Sequence<bool>,
) -> Sequence<Vector<E, R>> {
    let mut values = Sequence::<Vector<E, R>>::new();
    #[unroll]
    for i in 0..loaded.len() {
        values.push(select(*inside.index(i), *loaded.index(i), Vector::new(E::from_int(0))));
    }
    values
}

/// Whether a thread's loads are behind branches: with prefetch, and where offsets of 64 bits or two tensors
/// leave no registers for loads in flight together.
pub(super) fn branches(prefetch: bool, cache: Option<&Operand>, address: AddressType) -> bool {
    prefetch || cache.is_some() || address == AddressType::U64
}
