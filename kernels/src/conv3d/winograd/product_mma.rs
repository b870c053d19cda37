//! The transform-domain product with fp32 MMA instructions (Apple's simdgroup matrices), with the tile
//! traversal and the loads of [`super::product`]:
//!
//! ```text
//! M[channels][tiles] += U^T[channels][K] * V[K][tiles]           fragments of 8 x 8, fp32 throughout
//!
//!             64 tiles
//!           +-----+-----+      a threadgroup: 4 subgroups of 32 threads
//!       64  | s0  | s1  |      a subgroup:    32 x 32 results, 16 accumulator fragments
//!  channels +-----+-----+
//!           | s2  | s3  |      prologue: sums of earlier K chunks from M; epilogue: fragments to M
//!           +-----+-----+
//! ```
//!
//! M is padded to whole fragments ([`PADDING`]), so that they are loaded and stored in memory, without masks
//! and barriers. Per stage of 16 K elements and threadgroup: 8 KiB loaded in vectors of four, `2 * 64 * 64 *
//! 16` FLOP; 9 KiB of shared memory. Apple's GPUs hide latency by occupancy: a stage is not prefetched, its
//! registers hold threads instead. Declines devices without 8 x 8 fp32 MMA.

use super::product::{ProductArgs, TileLoader, store_stage};
use super::region::{RegionArgs, VECTOR};
use crate::conv3d::gemm::MatrixTile;
use crate::conv3d::gemm::config::{SUBGROUP, row_stride};
use crate::conv3d::gemm::fragments::multiply;
use crate::conv3d::gemm::stage::F32x4;
use crate::conv3d::mma::accumulators;
use crate::dtype::FloatType;
use crate::launch::Span;
use crate::limits::Limits;
use cubecl::cmma::{self, MatrixLayout};
use cubecl::prelude::*;

/// 64 x 64 results of 4 subgroups; a stage of 16 K elements leaves registers for 640 threads per core.
const TILE: MatrixTile =
    MatrixTile { tile_m: 64, tile_n: 64, tile_k: 16, subgroup_m: 32, subgroup_n: 32, fragment: 8 };

/// Channels and rows of M, and both channels of S, are padded to multiples of this for kernels with MMA.
pub(super) const PADDING: usize = TILE.fragment;

/// The MMA tile of the product, if the device has fp32 MMA and the threadgroup memory for the stages.
pub(crate) fn tile(limits: &Limits) -> Option<MatrixTile> {
    let served = limits.matrices.contains(&(FloatType::F32, TILE.fragment));
    (served && shared_bytes() <= limits.shared_bytes).then_some(TILE)
}

/// Bytes of threadgroup memory: the stages.
pub(super) fn shared_bytes() -> usize {
    TILE.tile_k * (row_stride(TILE.tile_m) + row_stride(TILE.tile_n)) * 4 * VECTOR
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn product_mma_kernel(
    v: &[F32x4],
    u: &[F32x4],
    m: &mut [f32],
    span: Span,
    region: RegionArgs,
    args: ProductArgs,
    #[comptime] tile: MatrixTile,
) {
    // Uniform over the threadgroup: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let threads = comptime!(tile.threads());
    let loader = TileLoader::new(span.index(), &region, &args, tile.tile_m, tile.tile_n);
    let mut stage = loader.first_stage(&region, &args, tile.tile_m, tile.tile_k);
    let mut row_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.tile_k * row_stride(tile.tile_m)));
    let mut column_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.tile_k * row_stride(tile.tile_n)));
    let result = ResultTile::new(&loader, &args, tile);
    let mut sums = accumulators(comptime!(tile.subgroup_m * tile.subgroup_n), tile.fragment);
    if args.chunk_first > 0u32 {
        result.load(m, &mut sums, tile);
    }

    while stage.position < stage.end {
        let rows = loader.load_rows(v, &stage, &region, &args, tile.tile_m, tile.tile_k, threads);
        let columns = loader.load_columns(u, &stage, &args, tile.tile_n, tile.tile_k, threads);
        sync_cube();
        store_stage(&rows, &mut row_stage, tile.tile_m, threads);
        store_stage(&columns, &mut column_stage, tile.tile_n, threads);
        sync_cube();
        multiply(&row_stage, &column_stage, &sums, comptime!((false, false)), 4usize, tile);
        stage.advance(&args, tile.tile_k);
    }
    result.store(m, &sums, tile);
}

/// A subgroup's fragments in M, or in S of the weight gradient.
#[derive(CubeType, Clone, Copy)]
pub(super) struct ResultTile {
    /// Offset of the subgroup's first channel and row.
    pub(super) offset: usize,
    /// Elements of a channel, padding included.
    pub(super) pitch: usize,
    /// Channels and rows from the subgroup's first to the last one that exists; none where negative.
    pub(super) channels: i32,
    pub(super) rows: i32,
}

#[cube]
impl ResultTile {
    fn new(loader: &TileLoader, args: &ProductArgs, #[comptime] tile: MatrixTile) -> ResultTile {
        let subgroup = UNIT_POS / comptime!(SUBGROUP as u32);
        let across = comptime!((tile.tile_m / tile.subgroup_m) as u32);
        let row = loader.first_row * VECTOR as u32 + subgroup % across * tile.subgroup_m as u32;
        let channel = loader.first_column * VECTOR as u32 + subgroup / across * tile.subgroup_n as u32;
        let pitch = padded(loader.m_vectors as usize * VECTOR);
        let channels = padded(args.out_channels as usize);
        ResultTile {
            offset: (loader.point * channels + channel as usize) * pitch + row as usize,
            pitch,
            channels: args.out_channels as i32 - channel as i32,
            rows: (loader.m_vectors * VECTOR as u32) as i32 - row as i32,
        }
    }

    /// Whether fragment (i, j) has a result that exists. Uniform over the subgroup.
    fn holds(&self, #[comptime] i: usize, #[comptime] j: usize, #[comptime] fragment: usize) -> bool {
        comptime!((i * fragment) as i32) < self.channels && comptime!((j * fragment) as i32) < self.rows
    }

    /// Offset of fragment (i, j).
    fn at(&self, #[comptime] i: usize, #[comptime] j: usize, #[comptime] fragment: usize) -> usize {
        self.offset + comptime!(i * fragment) * self.pitch + comptime!(j * fragment)
    }

    /// Loads the sums of earlier launches.
    pub(super) fn load(
        &self,
        m: &mut [f32],
        sums: &mut Sequence<cmma::Matrix<f32>>,
        #[comptime] tile: MatrixTile,
    ) {
        let fragment = comptime!(tile.fragment);
        let across = comptime!(tile.subgroup_m / fragment);
        let end = m.len();
        #[unroll]
        for i in 0..comptime!(tile.subgroup_n / fragment) {
            #[unroll]
            for j in 0..across {
                if self.holds(i, j, fragment) {
                    let at = self.at(i, j, fragment);
                    let sum = sums.index_mut(comptime!(i * across + j));
                    cmma::load_with_layout(sum, &m[at..end], self.pitch as u32, MatrixLayout::RowMajor);
                }
            }
        }
    }

    /// Stores the sums.
    pub(super) fn store(
        &self,
        m: &mut [f32],
        sums: &Sequence<cmma::Matrix<f32>>,
        #[comptime] tile: MatrixTile,
    ) {
        let fragment = comptime!(tile.fragment);
        let across = comptime!(tile.subgroup_m / fragment);
        let end = m.len();
        #[unroll]
        for i in 0..comptime!(tile.subgroup_n / fragment) {
            #[unroll]
            for j in 0..across {
                if self.holds(i, j, fragment) {
                    let at = self.at(i, j, fragment);
                    let sum = sums.index(comptime!(i * across + j));
                    cmma::store(&mut m[at..end], sum, self.pitch as u32, MatrixLayout::RowMajor);
                }
            }
        }
    }
}

/// The next multiple of [`PADDING`].
#[cube]
pub(super) fn padded(extent: usize) -> usize {
    (extent + comptime!(PADDING - 1)) / PADDING * PADDING
}
