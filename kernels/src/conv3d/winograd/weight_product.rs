//! The transform-domain product of the weight gradient, on fp32 multiply-adds:
//!
//! ```text
//! S[part, point, kd, c, o] += sum over the part's (image, frame, tile) of
//!                             D[point, o, (image, frame, tile)]
//!                             * V[point, c, (image, source(frame, kd), tile)]
//! ```
//!
//! One matrix product per point and depth tap, points being the slowest index of the grid: rows are the
//! output channels, columns the input channels, the sum runs over the region's tiles. Both operands hold
//! tiles in runs, so a unit reads four tiles of four channels and turns them in registers into four vectors
//! of its stage:
//!
//! ```text
//!            tiles (the sum)         stage: tile_k rows (tiles) of tile_m / 4 vectors of channels
//!           +----+----+----+----+
//! channels  | 4x4|    |    |    |    unit u reads block (u / 4, u % 4): 64 channels x 16 tiles are 64 blocks
//!           +----+----+----+----+
//! ```
//!
//! Tile, units and registers are those of [`RegisterTile::M64N64`]. Per stage and cube
//! `(tile_m + tile_n) * tile_k` loads, `2 * tile_m * tile_n * tile_k` operations; S is read and written once
//! per 2048 tiles at most, whose sums stay in registers: an fp32 sum of more terms loses digits. Several
//! parts of the sum run side by side where one would not fill the device; each has its own S. Frames in the
//! depth padding read zero, or the nearest one under replicate padding.

use super::region::{Correlation, Region, RegionArgs, VECTOR};
use super::{Call, PRODUCT, WinogradTile};
use crate::conv3d::gemm::RegisterTile;
use crate::conv3d::gemm::config::row_stride;
use crate::conv3d::gemm::stage::{F32x4, column_of, multiply};
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::Operand;
use cubecl::ir::AddressType;
use cubecl::prelude::*;

/// Stages whose products are summed in registers at most.
pub(super) const PART_STAGES: usize = 128;
/// Stages that a part has at least: one of fewer spends its time on its ends.
const LEAST_STAGES: usize = 8;

/// Tiles of a part, in vectors.
const PART_VECTORS: usize = PART_STAGES * PRODUCT.tile_k / VECTOR;

/// Cubes of one part.
pub(crate) fn cubes(correlation: &Correlation, tile: WinogradTile) -> usize {
    let points = tile.inputs() * tile.inputs();
    let channels =
        correlation.out_channels.div_ceil(PRODUCT.tile_m) * correlation.in_channels.div_ceil(PRODUCT.tile_n);
    points * correlation.kernel_depth * channels
}

/// Parts of the sum that run side by side: four times the cubes that fill the device, S within a quarter of
/// the workspace.
pub(crate) fn parts(correlation: &Correlation, tile: WinogradTile, limits: &Limits) -> usize {
    let wanted = (4 * limits.cubes_in_flight).div_ceil(cubes(correlation, tile).max(1));
    let bytes = 4 * correlation.filter_shape(tile).iter().map(|&size| size as u64).product::<u64>();
    let affordable = usize::try_from(limits.workspace_bytes / 4 / bytes.max(1)).unwrap_or(usize::MAX);
    let (rows, columns) = correlation.tiles(tile);
    let terms = correlation.batch * correlation.output[0] * rows * columns;
    wanted.min(affordable).min(terms / (LEAST_STAGES * PRODUCT.tile_k)).max(1)
}

/// The launches of a region, each as its first vector of tiles and the vectors of a part.
pub(crate) fn sweeps(region: &Region, parts: usize) -> impl Iterator<Item = (usize, usize)> {
    let vectors = region.m_rows() / VECTOR;
    let launches = vectors.div_ceil(parts * PART_VECTORS);
    let stage = const { PRODUCT.tile_k / VECTOR };
    let length = vectors.div_ceil(launches.max(1) * parts).next_multiple_of(stage);
    (0..launches).map(move |launch| (launch * parts * length, length))
}

/// How output frames find their input frames, and the extents of the product.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Extents {
    input: u32,
    kernel: u32,
    stride: u32,
    dilation: u32,
    begin: i32,
    /// 1 where frames outside the input repeat the nearest one.
    replicate: u32,
    in_channels: u32,
    out_channels: u32,
    /// First vector of tiles of this launch, and those of one part.
    first: u32,
    length: u32,
    parts: usize,
    points: usize,
    /// 1 where the sums are added to what is there.
    add: u32,
    tiles_m: usize,
    tiles_n: usize,
}

/// Adds a region's products to `sums`; the first region's first launch sets them.
pub(crate) fn launch(
    call: &Call,
    address: AddressType,
    (region, parts, first): (&Region, usize, bool),
    [d, v, sums]: [&Operand; 3],
) {
    let correlation = call.correlation;
    let tile = PRODUCT;
    let cubes = cubes(correlation, call.config.tile) * parts;
    for (sweep, (from, length)) in sweeps(region, parts).enumerate() {
        let operations = 2.0 * (tile.tile_m * tile.tile_n * length * VECTOR) as f64;
        for dispatch in dispatches(cubes, operations, call.limits) {
            // SAFETY: channels past the last repeat it, their sums are not read; tiles past the last and
            // frames outside the input are not read.
            unsafe {
                weight_product_kernel::launch_unchecked(
                    call.client,
                    dispatch.count(),
                    CubeDim::new_1d(tile.threads() as u32),
                    address,
                    d.buffer_arg(VECTOR),
                    v.buffer_arg(VECTOR),
                    sums.buffer_arg(VECTOR),
                    dispatch.span(),
                    region.args(),
                    ExtentsLaunch::new(
                        correlation.input[0] as u32,
                        correlation.kernel_depth as u32,
                        correlation.stride_depth as u32,
                        correlation.dilation_depth as u32,
                        correlation.begin[0],
                        u32::from(correlation.replicate),
                        correlation.in_channels as u32,
                        correlation.out_channels as u32,
                        from as u32,
                        length as u32,
                        parts,
                        call.config.tile.inputs() * call.config.tile.inputs(),
                        u32::from(sweep > 0 || !first),
                        correlation.out_channels.div_ceil(tile.tile_m),
                        correlation.in_channels.div_ceil(tile.tile_n),
                    ),
                    tile,
                    call.limits.unroll,
                );
            }
        }
    }
}

/// The vector of tiles that a unit reads next.
#[derive(CubeType, Clone, Copy)]
struct Place {
    /// Counted over the region.
    vector: u32,
    image: u32,
    frame: u32,
    in_frame: u32,
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn weight_product_kernel(
    d: &[F32x4],
    v: &[F32x4],
    sums: &mut [F32x4],
    span: Span,
    region: RegionArgs,
    extents: Extents,
    #[comptime] tile: RegisterTile,
    #[comptime] unroll: bool,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let cube = span.cube();
    let in_n = cube % extents.tiles_n;
    let rest = cube / extents.tiles_n;
    let in_m = rest % extents.tiles_m;
    let rest = rest / extents.tiles_m;
    let kernel = extents.kernel as usize;
    let kd = (rest % kernel) as u32;
    let rest = rest / kernel;
    let part = rest % extents.parts;
    let point = rest / extents.parts;

    let stage = comptime!((tile.tile_k / VECTOR) as u32);
    let first_o = in_m as u32 * tile.tile_m as u32;
    let first_c = in_n as u32 * tile.tile_n as u32;
    let d_rows = (region.images * region.frames * region.vectors) as usize;
    let v_rows = (region.images * region.sources * region.vectors) as usize;
    let d_point = point * extents.out_channels as usize * d_rows;
    let v_point = point * extents.in_channels as usize * v_rows;
    let first = extents.first + part as u32 * extents.length;
    let end = min(first + extents.length, d_rows as u32);
    let source = extents.source(region.first_frame, kd);

    let mut row_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.tile_k * row_stride(tile.tile_m)));
    let mut column_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.tile_k * row_stride(tile.tile_n)));
    let mut results = Array::<f32>::new(comptime!(tile.rows * tile.columns));
    #[unroll]
    for i in 0..comptime!(tile.rows * tile.columns) {
        results[i] = 0.0f32;
    }

    let vector = first + UNIT_POS % stage;
    let image_frame = vector / region.vectors;
    let image = image_frame / region.frames;
    let mut place = Place {
        vector,
        image,
        frame: image_frame - image * region.frames,
        in_frame: vector - image_frame * region.vectors,
    };
    let rows = load(
        d,
        d_point + place.vector as usize,
        place.vector < end,
        d_rows,
        first_o,
        extents.out_channels,
        tile,
    );
    let (at, inside) = extents.place(&place, &region, source, end);
    let columns = load(v, v_point + at, inside, v_rows, first_c, extents.in_channels, tile);
    store_turned(&rows, &mut row_stage, tile.tile_m, tile);
    store_turned(&columns, &mut column_stage, tile.tile_n, tile);
    sync_cube();
    let mut position = first;
    while position < end {
        place.advance(&region, stage);
        // Past the last stage there is nothing to read.
        let rows = load(
            d,
            d_point + place.vector as usize,
            place.vector < end,
            d_rows,
            first_o,
            extents.out_channels,
            tile,
        );
        let (at, inside) = extents.place(&place, &region, source, end);
        let columns = load(v, v_point + at, inside, v_rows, first_c, extents.in_channels, tile);
        multiply(&row_stage, &column_stage, &mut results, tile, unroll);
        sync_cube();
        store_turned(&rows, &mut row_stage, tile.tile_m, tile);
        store_turned(&columns, &mut column_stage, tile.tile_n, tile);
        sync_cube();
        position += stage;
    }

    // o is fastest and filled up to vectors; what fills up is not read.
    let row_vectors = (extents.out_channels + comptime!(VECTOR as u32 - 1)) / VECTOR as u32;
    let first_sum = ((part * extents.points + point) * kernel + kd as usize) * extents.in_channels as usize;
    #[unroll]
    for i in 0..comptime!(tile.rows / VECTOR) {
        let row = first_o / VECTOR as u32
            + UNIT_POS % comptime!((tile.tile_m / tile.rows) as u32)
            + comptime!((i * (tile.tile_m / tile.rows)) as u32);
        if row < row_vectors {
            #[unroll]
            for j in 0..comptime!(tile.columns) {
                let c = first_c + column_of(j, tile);
                if c < extents.in_channels {
                    let at = (first_sum + c as usize) * row_vectors as usize + row as usize;
                    let mut values = F32x4::empty();
                    #[unroll]
                    for r in 0..VECTOR {
                        values.insert(r, results[comptime!((i * VECTOR + r) * tile.columns + j)]);
                    }
                    if extents.add == 1u32 {
                        values += sums[at];
                    }
                    sums[at] = values;
                }
            }
        }
    }
}

#[cube]
impl Place {
    /// Goes on by the vectors of a stage.
    fn advance(&mut self, region: &RegionArgs, #[comptime] stage: u32) {
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
impl Extents {
    /// The frame that a tap of an output frame reads; outside the input in the padding.
    fn source(&self, frame: u32, kd: u32) -> i32 {
        (frame * self.stride + kd * self.dilation) as i32 - self.begin
    }

    /// Offset in a channel of V, in vectors, of what a place reads when the region's first frame reads
    /// `first`, and whether it reads anything.
    fn place(&self, place: &Place, region: &RegionArgs, first: i32, end: u32) -> (usize, bool) {
        let mut source = first + (place.frame * self.stride) as i32;
        if self.replicate == 1u32 {
            source = clamp(source, 0i32, self.input as i32 - 1i32);
        }
        let inside = (source as u32) < self.input && place.vector < end;
        let frame = place.image * region.sources + source as u32 - region.first_source;
        (frame as usize * region.vectors as usize + place.in_frame as usize, inside)
    }
}

/// Reads this unit's block: a vector of tiles of each of four channels. Channels past the last repeat it.
#[cube]
fn load(
    from: &[F32x4],
    at: usize,
    exists: bool,
    channel_stride: usize,
    first_channel: u32,
    channels: u32,
    #[comptime] tile: RegisterTile,
) -> Sequence<F32x4> {
    let mut values = Sequence::<F32x4>::new();
    let first = first_channel + UNIT_POS / comptime!((tile.tile_k / VECTOR) as u32) * VECTOR as u32;
    #[unroll]
    for i in 0..comptime!(VECTOR as u32) {
        let channel = min(first + i, channels - 1u32);
        let mut value = F32x4::new(0.0f32);
        if exists {
            value = from[at + channel as usize * channel_stride];
        }
        values.push(value);
    }
    values
}

/// Writes a block into its stage, tiles as rows.
#[cube]
fn store_turned(
    from: &Sequence<F32x4>,
    stage: &mut Shared<[F32x4]>,
    #[comptime] extent: usize,
    #[comptime] tile: RegisterTile,
) {
    let runs = comptime!(tile.tile_k / VECTOR);
    let k = UNIT_POS as usize % runs * VECTOR;
    let vector = UNIT_POS as usize / runs;
    #[unroll]
    for i in 0..VECTOR {
        let mut values = F32x4::empty();
        #[unroll]
        for channel in 0..VECTOR {
            values.insert(channel, from.index(channel).extract(i));
        }
        stage[(k + i) * comptime!(row_stride(extent)) + vector] = values;
    }
}
