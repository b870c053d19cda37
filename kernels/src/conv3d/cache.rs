//! A stream's cache, for kernels that read whole frames: the first frames of the joined input, in a tensor of
//! their own with the layout of x within a frame. A frame is in one of the two tensors, so a kernel branches
//! once for all loads of a frame. A branch around each load would keep them from being in flight together.
//!
//! ```text
//! depth d of the joined input    0 .. frames - 1       frames ..
//! read from                      cache, frame d        x, frame d - frames
//! ```

use super::gemm::index::GatherArgs;
use super::padding::source_of;
use super::problem::PaddingMode;
use crate::operand::Operand;
use cubecl::prelude::*;

/// Where the first frames of the source are, if they are in a tensor of their own: a cache `[N, C, frames, H,
/// W]` whose frames have the source's layout.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct CacheArgs {
    pub(super) frames: u32,
    pub(super) image_stride: usize,
    pub(super) channel_stride: usize,
    pub(super) depth_stride: usize,
}

/// A cache as a kernel argument.
pub(super) fn cache_args(cache: &Operand) -> CacheArgsLaunch {
    CacheArgsLaunch {
        frames: cache.shape[2] as u32,
        image_stride: cache.strides[0],
        channel_stride: cache.strides[1],
        depth_stride: cache.strides[2],
    }
}

/// A frame of the joined input: its offset in the tensor that has it, and whether it is inside.
#[derive(CubeType, Clone, Copy)]
pub(super) struct JoinedFrame {
    pub(super) in_cache: bool,
    pub(super) offset: usize,
    pub(super) inside: bool,
}

#[cube]
impl CacheArgs {
    /// Offset of a channel of an image.
    pub(super) fn channel_at(&self, image: u32, channel: u32) -> usize {
        image as usize * self.image_stride + channel as usize * self.channel_stride
    }
}

/// Offsets of a channel in the source and in the cache.
#[derive(CubeType, Clone, Copy)]
pub(super) struct ChannelAt {
    pub(super) source: usize,
    pub(super) cache: usize,
}

/// The source, and its cache where there is one.
#[derive(CubeType)]
pub(super) struct JoinedFrames<'a, 'c, E: Float> {
    pub(super) source: &'a [E],
    pub(super) cache: ComptimeOption<&'c [E]>,
    pub(super) cache_args: &'a ComptimeOption<CacheArgs>,
    pub(super) gather: &'a GatherArgs,
    /// Along depth.
    #[cube(comptime)]
    padding: PaddingMode,
}

#[cube]
impl<'a, 'c, E: Float> JoinedFrames<'a, 'c, E> {
    pub(super) fn new(
        source: &'a [E],
        cache: ComptimeOption<&'c [E]>,
        cache_args: &'a ComptimeOption<CacheArgs>,
        gather: &'a GatherArgs,
        #[comptime] padding: PaddingMode,
    ) -> JoinedFrames<'a, 'c, E> {
        JoinedFrames::<'a, 'c, E> { source, cache, cache_args, gather, padding }
    }

    /// A channel of an image.
    pub(super) fn channel_at(&self, image: u32, channel: u32) -> ChannelAt {
        let source = self.gather.source_at(image, channel);
        #[comptime]
        match self.cache_args {
            ComptimeOption::Some(args) => ChannelAt { source, cache: args.channel_at(image, channel) },
            ComptimeOption::None => ChannelAt { source, cache: source },
        }
    }

    /// The frame that coordinate `depth` reads. Without a cache `in_cache` is a constant, and nothing is
    /// compiled for frames of the cache.
    pub(super) fn at(&self, depth: i32) -> JoinedFrame {
        let padding = comptime!(self.padding);
        #[comptime]
        match self.cache_args {
            ComptimeOption::Some(args) => {
                let axis = &self.gather.depth;
                let depth = source_of(depth, axis.extent as i32, padding);
                let frames = args.frames as i32;
                let in_cache = depth < frames;
                let frame = select(in_cache, depth, depth - frames) as usize;
                JoinedFrame {
                    in_cache,
                    offset: frame * select(in_cache, args.depth_stride, axis.source_stride),
                    inside: comptime!(padding != PaddingMode::Zeros) || (depth as u32) < axis.extent,
                }
            }
            ComptimeOption::None => {
                let (offset, inside) = self.gather.depth.load_offset(depth, padding);
                JoinedFrame { in_cache: false.runtime(), offset, inside }
            }
        }
    }
}
