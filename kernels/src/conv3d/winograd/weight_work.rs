//! What a threadgroup of the weight gradient's product computes ([`super::weight_product`] draws it), and
//! which tiles its threads load.

use super::depth::DepthAxis;
use super::region::RegionArgs;
use crate::conv3d::gemm::stage::F32x4;
use cubecl::prelude::*;

/// The product's extents and the K range of a launch.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct WeightProductArgs {
    pub(super) depth: DepthAxis,
    pub(super) in_channels: u32,
    pub(super) out_channels: u32,
    /// First vector of tiles of this launch, and vectors per slice.
    pub(super) first: u32,
    pub(super) length: u32,
    pub(super) slices: usize,
    pub(super) points: usize,
    /// 1 to add to S, 0 to overwrite it.
    pub(super) add: u32,
    pub(super) tiles_m: usize,
    pub(super) tiles_n: usize,
}

/// The vector of tiles that a thread loads next.
#[derive(CubeType, Clone, Copy)]
pub(super) struct TileCursor {
    /// Counted over the region.
    pub(super) vector: u32,
    image: u32,
    frame: u32,
    in_frame: u32,
}

/// The work of a threadgroup: a tile of one point's, slice's and depth tap's product.
#[derive(CubeType, Clone, Copy)]
pub(super) struct WeightWork {
    /// First channel of D and of V.
    pub(super) first_o: u32,
    pub(super) first_c: u32,
    /// Vectors of tiles per channel of D and of V, and where the point begins.
    pub(super) d_rows: usize,
    pub(super) v_rows: usize,
    pub(super) d_point: usize,
    pub(super) v_point: usize,
    /// Vectors of the slice: the first, and one past the last.
    pub(super) first: u32,
    pub(super) end: u32,
    /// The input frame of the region's first output frame.
    pub(super) first_frame: i32,
    /// Index of (slice, point, kd) in S.
    pub(super) filters: usize,
}

#[cube]
impl WeightWork {
    pub(super) fn new(
        threadgroup: usize,
        args: &WeightProductArgs,
        region: &RegionArgs,
        #[comptime] tile_m: usize,
        #[comptime] tile_n: usize,
    ) -> WeightWork {
        let in_n = threadgroup % args.tiles_n;
        let rest = threadgroup / args.tiles_n;
        let in_m = rest % args.tiles_m;
        let rest = rest / args.tiles_m;
        let kernel = args.depth.kernel as usize;
        let kd = (rest % kernel) as u32;
        let rest = rest / kernel;
        let slice = rest % args.slices;
        let point = rest / args.slices;
        let d_rows = (region.images * region.frames * region.vectors) as usize;
        let v_rows = (region.images * region.input_frames * region.vectors) as usize;
        let first = args.first + slice as u32 * args.length;
        WeightWork {
            first_o: in_m as u32 * tile_m as u32,
            first_c: in_n as u32 * tile_n as u32,
            d_rows,
            v_rows,
            d_point: point * args.out_channels as usize * d_rows,
            v_point: point * args.in_channels as usize * v_rows,
            first,
            end: min(first + args.length, d_rows as u32),
            first_frame: args.depth.input_of(region.first_frame, kd),
            filters: (slice * args.points + point) * kernel + kd as usize,
        }
    }

    /// The first vector that a thread loads; threads take a stage's vectors round-robin.
    pub(super) fn first_tiles(&self, region: &RegionArgs, #[comptime] stage: u32) -> TileCursor {
        let vector = self.first + UNIT_POS % stage;
        let image_frame = vector / region.vectors;
        let image = image_frame / region.frames;
        TileCursor {
            vector,
            image,
            frame: image_frame - image * region.frames,
            in_frame: vector - image_frame * region.vectors,
        }
    }
}

#[cube]
impl TileCursor {
    /// Advances by the vectors of a stage.
    pub(super) fn advance(&mut self, region: &RegionArgs, #[comptime] stage: u32) {
        self.vector += stage;
        self.in_frame += stage;
        if self.in_frame >= region.vectors {
            let frames = self.in_frame / region.vectors;
            self.in_frame -= frames * region.vectors;
            self.frame += frames;
            if self.frame >= region.frames {
                let images = self.frame / region.frames;
                self.frame -= images * region.frames;
                self.image += images;
            }
        }
    }
}

#[cube]
impl WeightProductArgs {
    /// Offset in a channel of V, in vectors, of the tiles that `tiles` pairs with in D, and whether they
    /// exist; `first_frame` is the input frame of the region's first output frame.
    pub(super) fn locate(
        &self,
        tiles: &TileCursor,
        region: &RegionArgs,
        first_frame: i32,
        end: u32,
    ) -> (usize, bool) {
        let mut frame = first_frame + (tiles.frame * self.depth.stride) as i32;
        if self.depth.replicate == 1u32 {
            frame = clamp(frame, 0i32, self.depth.input as i32 - 1i32);
        }
        let inside = (frame as u32) < self.depth.input && tiles.vector < end;
        let frame = tiles.image * region.input_frames + frame as u32 - region.first_input_frame;
        (frame as usize * region.vectors as usize + tiles.in_frame as usize, inside)
    }
}

/// Loads a vector of tiles of each of `count` channels, `step` apart: zero where the tiles do not exist.
/// Channels past the last load the last.
#[cube]
pub(super) fn load_channels(
    from: &[F32x4],
    at: usize,
    exists: bool,
    channel_stride: usize,
    first: u32,
    channels: u32,
    #[comptime] count: usize,
    #[comptime] step: usize,
) -> Sequence<F32x4> {
    let mut values = Sequence::<F32x4>::new();
    #[unroll]
    for load in 0..count {
        let channel = min(first + comptime!((load * step) as u32), channels - 1u32);
        let mut value = F32x4::new(0.0f32);
        if exists {
            value = from[at + channel as usize * channel_stride];
        }
        values.push(value);
    }
    values
}
