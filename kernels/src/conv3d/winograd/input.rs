//! Input transform, one thread per (channel, image, frame, tile), tiles fastest:
//!
//! ```text
//! V[point, c, (image, frame, tile)] = (B^T d B)[point]      d: t x t inputs, tiles overlap by 2
//! D[point, o, (image, frame, tile)] = (G dy G^T)[point]     dy: m x m outputs, no overlap (weight gradient)
//!
//!    +---------+--+                     F(4x4): one tile reads 6 x 6 inputs, the next one starts 4 further
//!    | m       |2 |
//!    |    t    |  |
//!    +---------+--+
//! ```
//!
//! A stream's cache and x are transformed by a launch each: frames of one tensor after those of the other in
//! V.
//!
//! Layouts: x and dy any strides, V and D contiguous fp32. Bytes per thread: t * t inputs (dy: m * m) are
//! read, t * t fp32 values written (coalesced). A threadgroup is 64 threads; about 1500 FLOP per thread.
//! Padding tiles are written as zeros: the weight gradient sums over tiles. Off NVIDIA rows are transformed
//! in loops ([`super::row_loops`]) where [`unrolls`] says no. Declined: what [`super`] declines.

use super::WinogradCall;
use super::constants::{Matrix, WinogradTile, scale_exponent};
use super::region::{Correlation, Region, RegionArgs, VECTOR};
use super::row_loops::{add_row, finished_row, no_rows};
use super::transform::{columns, scale_down, transform_square};
use crate::conv3d::args::offset;
use crate::launch::{Span, dispatches};
use crate::operand::Operand;
use cubecl::ir::{AddressType, ElemType};
use cubecl::prelude::*;

/// Threads of a threadgroup.
const THREADS: u32 = 64;

/// How a tensor is divided into tiles.
#[derive(Clone, Copy)]
pub(crate) struct InputTiling {
    channels: usize,
    /// Padding before H and W.
    begin: [i32; 2],
    /// Rows and columns of the padded frame that any output needs.
    needed: [usize; 2],
    replicate: bool,
    matrix: Matrix,
}

impl InputTiling {
    /// The correlation's input in overlapping tiles of t x t.
    pub(crate) fn input(correlation: &Correlation) -> Self {
        Self {
            channels: correlation.in_channels,
            begin: [correlation.begin[1], correlation.begin[2]],
            needed: [correlation.output[1] + 2, correlation.output[2] + 2],
            replicate: correlation.replicate_plane,
            matrix: Matrix::Input,
        }
    }

    /// The gradient of the correlation's output in disjoint tiles of m x m; for [`Region::of_outputs`].
    pub(crate) fn gradient(correlation: &Correlation) -> Self {
        Self {
            channels: correlation.out_channels,
            begin: [0; 2],
            needed: [correlation.output[1], correlation.output[2]],
            replicate: false,
            matrix: Matrix::Gradient,
        }
    }
}

/// A tensor, and the frames before it where these are in a tensor of their own.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) cache: Option<&'a Operand>,
    pub(crate) tensor: &'a Operand,
}

impl<'a> Source<'a> {
    /// All frames in one tensor.
    pub(crate) fn whole(tensor: &'a Operand) -> Self {
        Self { cache: None, tensor }
    }

    /// The cache, or the tensor once more.
    pub(crate) fn cache_or_tensor(&self) -> &'a Operand {
        self.cache.unwrap_or(self.tensor)
    }

    /// The tensors that a region's input frames are in, and which of these each holds.
    fn parts(&self, region: &Region) -> impl Iterator<Item = (&'a Operand, Frames)> + use<'a> {
        let (first, end) = region.input_frames;
        let held = self.cache.map_or(0, |cache| cache.shape[2]);
        let part = move |operand, (from, to): (usize, usize)| {
            let (begin, end) = (first.max(from), end.min(to));
            (end > begin).then(|| {
                let frames = Frames { count: end - begin, in_region: begin - first, in_source: begin - from };
                (operand, frames)
            })
        };
        let cached = self.cache.and_then(|cache| part(cache, (0, held)));
        cached.into_iter().chain(part(self.tensor, (held, usize::MAX)))
    }
}

/// Consecutive input frames of a region: the first one's place in the region and in its tensor.
struct Frames {
    count: usize,
    in_region: usize,
    in_source: usize,
}

/// [`Frames`] as a kernel argument.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct FrameArgs {
    count: u32,
    in_region: u32,
    in_source: u32,
}

pub(crate) fn launch(
    call: &WinogradCall,
    address: AddressType,
    region: &Region,
    tiling: InputTiling,
    (source, v): (Source, &Operand),
) {
    for (source, frames) in source.parts(region) {
        launch_frames(call, address, region, tiling, &frames, [source, v]);
    }
}

fn launch_frames(
    call: &WinogradCall,
    address: AddressType,
    region: &Region,
    tiling: InputTiling,
    frames: &Frames,
    [source, v]: [&Operand; 2],
) {
    let transforms = tiling.channels * region.frame_rows(frames.count);
    let flop = f64::from(THREADS) * 1500.0;
    let unroll = unrolls(call, address, &tiling);
    for dispatch in dispatches(transforms.div_ceil(THREADS as usize), flop, call.limits) {
        // SAFETY: see `mod.rs`; inputs outside their extents are not read, or another element is in their
        // place.
        unsafe {
            input_kernel::launch_unchecked(
                call.client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                source.tensor_arg(),
                v.tensor_arg(),
                dispatch.span(),
                region.args(),
                FrameArgsLaunch {
                    count: frames.count as u32,
                    in_region: frames.in_region as u32,
                    in_source: frames.in_source as u32,
                },
                tiling.channels as u32,
                tiling.begin[0],
                tiling.begin[1],
                tiling.needed[0] as u32,
                tiling.needed[1] as u32,
                tiling.replicate,
                tiling.matrix,
                call.config.tile,
                unroll,
                source.dtype.elem(),
            );
        }
    }
}

/// Whether the rows of a tile are unrolled: where all loops are, and where a loop over them would hold fewer
/// threads of an M1 ([`super::row_loops`]).
fn unrolls(call: &WinogradCall, address: AddressType, tiling: &InputTiling) -> bool {
    let wide = address == AddressType::U64;
    let holds_fewer = match call.config.tile {
        WinogradTile::F2x2 => false,
        WinogradTile::F4x4 => wide || tiling.matrix == Matrix::Input,
        WinogradTile::F6x6 => wide,
    };
    call.limits.unroll || holds_fewer
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn input_kernel<E: Float>(
    source: &Tensor<E>,
    v: &mut Tensor<f32>,
    span: Span,
    region: RegionArgs,
    frames: FrameArgs,
    channels: u32,
    begin_h: i32,
    begin_w: i32,
    needed_h: u32,
    needed_w: u32,
    #[comptime] replicate: bool,
    #[comptime] matrix: Matrix,
    #[comptime] tile: WinogradTile,
    #[comptime] unroll: bool,
    #[define(E)] _dtype: ElemType,
) {
    let size = comptime!(columns(tile, matrix) as u32);
    let outputs = comptime!(tile.outputs() as u32);
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
    let tiles = region.vectors as usize * VECTOR;
    let images = channels as usize * region.images as usize;
    if span.is_idle() || index >= images * frames.count as usize * tiles {
        terminate!();
    }
    let position = region.tile_at(index, frames.count);
    // The other tensor's frames of the images before, and of this one if they precede.
    let image = position.channel * region.images + position.image - region.first_image;
    let others = image * (region.input_frames - frames.count) + frames.in_region;
    let row = index + others as usize * tiles;
    let rows = images * region.input_frames as usize * tiles;
    let top = position.row * outputs;
    let left = position.column * outputs;
    let height = source.shape(3) as u32;
    let width = source.shape(4) as u32;
    let source_frame = frames.in_source + position.frame;
    let frame_offset = offset(source, position.image, position.channel, source_frame, 0u32, 0u32);
    if comptime!(unroll) {
        let mut square = Array::<f32>::new(comptime!((size * size) as usize));
        #[unroll]
        for i in 0..size {
            #[unroll]
            for j in 0..size {
                let mut h = (top + i) as i32 - begin_h;
                let mut w = (left + j) as i32 - begin_w;
                if comptime!(replicate) {
                    h = clamp(h, 0i32, height as i32 - 1i32);
                    w = clamp(w, 0i32, width as i32 - 1i32);
                }
                let mut value = 0.0f32;
                // Where a tile overhangs the frame, inputs that no output needs read as zero.
                let needed = position.exists && top + i < needed_h && left + j < needed_w;
                if needed && (h as u32) < height && (w as u32) < width {
                    let at = frame_offset + h as usize * source.stride(3) + w as usize * source.stride(4);
                    value = scale_down(f32::cast_from(source[at]), comptime!(scale_exponent(tile, matrix)));
                }
                square[comptime!((i * size + j) as usize)] = value;
            }
        }
        let transformed = transform_square(&square, tile, matrix);
        #[unroll]
        for point in 0..comptime!(tile.inputs() * tile.inputs()) {
            v[point * rows + row] = transformed[point];
        }
    } else {
        let half = no_rows(tile, matrix);
        // The columns to be read, a bit for each: fewer registers in the loop than comparisons there.
        let mut columns = 0u32;
        #[unroll]
        for j in 0..size {
            let mut w = (left + j) as i32 - begin_w;
            if comptime!(replicate) {
                w = clamp(w, 0i32, width as i32 - 1i32);
            }
            let is_needed = left + j < needed_w;
            let is_inside = (w as u32) < width;
            columns |= select(is_needed && is_inside, comptime!(1u32 << j), 0u32);
        }
        columns = select(position.exists, columns, 0u32);
        let first_w = left as i32 - begin_w;
        for i in 0..size {
            let mut h = (top + i) as i32 - begin_h;
            if comptime!(replicate) {
                h = clamp(h, 0i32, height as i32 - 1i32);
            }
            let row_is_needed = top + i < needed_h && (h as u32) < height;
            let needed = select(row_is_needed, columns, 0u32);
            let row_offset = frame_offset + h as usize * source.stride(3);
            // Without branches, so that a row's loads are in flight together: what is outside reads another
            // element.
            let mut loaded = Sequence::<E>::new();
            if comptime!(replicate) {
                // Of the row as well, else all columns' offsets are kept in registers from row to row.
                let first_w = select(row_is_needed, first_w, 0i32);
                #[unroll]
                for j in 0..size {
                    let w = clamp(first_w + comptime!(j as i32), 0i32, width as i32 - 1i32);
                    loaded.push(source[row_offset + w as usize * source.stride(4)]);
                }
            } else {
                let first = row_offset + first_w as usize * source.stride(4);
                let last = source.buffer_len() - 1;
                #[unroll]
                for j in 0..size {
                    loaded.push(source[min(first + comptime!(j as usize) * source.stride(4), last)]);
                }
            }
            let mut values = Sequence::<f32>::new();
            #[unroll]
            for j in 0..size {
                let value = f32::cast_from(*loaded.index(comptime!(j as usize)));
                let value = scale_down(value, comptime!(scale_exponent(tile, matrix)));
                values.push(select(needed & comptime!(1u32 << j) != 0u32, value, 0.0f32));
            }
            add_row(&half, &values, i, tile, matrix);
        }
        let points = comptime!(tile.inputs());
        for i in 0..comptime!(points as u32) {
            let transformed = finished_row(&half, i, tile, matrix);
            let row = row + i as usize * points * rows;
            #[unroll]
            for j in 0..points {
                v[j * rows + row] = transformed[j];
            }
        }
    }
}
