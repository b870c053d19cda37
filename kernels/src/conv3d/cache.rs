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

    /// The frame that coordinate `depth` reads.
    pub(super) fn frame_at(
        &self,
        walk: &GatherArgs,
        depth: i32,
        #[comptime] padding: PaddingMode,
    ) -> JoinedFrame {
        let depth = source_of(depth, walk.depth.extent as i32, padding);
        let frames = self.frames as i32;
        let in_cache = depth < frames;
        let frame = select(in_cache, depth, depth - frames) as usize;
        JoinedFrame {
            in_cache,
            offset: frame * select(in_cache, self.depth_stride, walk.depth.source_stride),
            inside: comptime!(padding != PaddingMode::Zeros) || (depth as u32) < walk.depth.extent,
        }
    }
}

/// Offset of a channel of an image in the cache; zero without one.
#[cube]
pub(super) fn cache_channel(cache: &ComptimeOption<CacheArgs>, n: u32, c: u32) -> usize {
    #[comptime]
    match cache {
        ComptimeOption::Some(cache) => cache.channel_at(n, c),
        ComptimeOption::None => 0usize,
    }
}
