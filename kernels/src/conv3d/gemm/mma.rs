//! Gathered implicit GEMM on matrix units (cooperative matrices, simdgroup matrices), fp32 accumulation:
//! forward pass and input gradient.
//!
//! ```text
//! out[position, n] = activation( bias[n] + sum over k = (c, tap) of source(position, k) * weight(k, n) )
//!                    + residual[position, n]
//!
//!                  tile_m output positions
//!               +----------+----------+    a stage:        tile_k of tile_m positions and tile_n channels
//!     tile_n    | subgroup | subgroup |    a subgroup:     subgroup_n x subgroup_m results, in fragments
//!    channels   +----------+----------+    a threadgroup:  (tile_n / subgroup_n) * (tile_m / subgroup_m)
//!               | subgroup | subgroup |                    subgroups of 32
//!               +----------+----------+
//!
//! source, out  [N, C, D, H, W], any strides; the residual has out's shape and strides of its own
//! weight       [N / groups, K] of each group, any strides; packed ([`super::pack`]) for input gradients
//! ```
//!
//! Lanes load along positions, which are adjacent in memory. The source's stage is K-major, but M-major where
//! whole vectors of positions are loaded (pointwise-in-frame windows, [`super::vectors`]). The weight's stage
//! is K-major where vectors along K are loaded, else N-major. K loop: [`super::mma_loop`], fragments and
//! epilogue: [`super::fragments`], bytes and FLOP: [`super::config`]. Declined: what [`super::fma`] declines,
//! and types for which the device has no matrices with fp32 accumulators.

use super::channels::Channels;
use super::config::MatrixTile;
use super::fragments::epilogue;
use super::index::{GatherArgs, OutputPosition};
use super::mma_loop::{SourceRows, Stages, k_loop};
use super::read::{JoinedArgs, Source};
use super::stage::GemmShape;
use super::table::{IndexTable, TableLayout};
use super::tap_check::TapCheck;
use crate::conv3d::mma::accumulators;
use crate::conv3d::pass::Pass;
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn mma_kernel<E: Float, S: Float, O: Float, V: Size, W: Size, R: Size>(
    source: &[Vector<E, R>],
    weight: &[Vector<E, W>],
    cache: ComptimeOption<&[Vector<E, R>]>,
    bias: ComptimeOption<&Tensor<E>>,
    residual: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    gather: GatherArgs,
    joined: ComptimeOption<JoinedArgs>,
    shape: GemmShape,
    span: Span,
    #[comptime] check: TapCheck,
    #[comptime] patches: bool,
    #[comptime] tile: MatrixTile,
    #[comptime] prefetch: bool,
    #[comptime] branches: bool,
    #[comptime] size: usize,
    // For the kernel's key, in which optional arguments do not count.
    #[comptime] _has_residual: bool,
    #[define(E)] _dtype: ElemType,
    #[define(S)] _stage_dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // Uniform for the threadgroup: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let work = shape.work_tile(span.index(), tile.tile_m, tile.tile_n);
    // Adjacent positions, and adjacent K indices, in one load.
    let (source_width, weight_width) = (R::value(), W::value());
    let mut stages = Stages::<S, V>::new(comptime!((source_width == 1, weight_width > 1)), size, tile);
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(tile.subgroups() * tile.fragment * tile.fragment));
    // Without branches vectors of the weight need no offsets: their rows are K itself.
    let table = IndexTable::new(comptime!(TableLayout {
        entries: tile.k_entries(check, branches),
        offsets: branches || weight_width == 1,
        pass: Pass::Forward,
        check,
        threads: tile.threads(),
    }));
    let width = V::value();
    let count = comptime!(tile.positions_per_thread(width, source_width));
    let lanes = comptime!(tile.tile_m / (count * source_width));
    let mut positions = Sequence::<OutputPosition>::new();
    #[unroll]
    for i in 0..count {
        let in_tile = UNIT_POS as usize % lanes * source_width + comptime!(i * lanes);
        let mut position =
            gather.position(min(work.first_m + in_tile as u32, shape.m - source_width as u32), check);
        position.source += gather.source_channel(work.group * shape.source_channels);
        positions.push(position);
    }
    let rows = SourceRows::new_Positions(positions);
    let source = Source::new(source, cache, joined, &gather, check);
    let weights = Channels::new(
        weight,
        gather.weight_group(work.group),
        work.first_n,
        shape.n - 1u32,
        gather.weight_column(1u32),
        tile,
    );
    let sums = accumulators(comptime!(tile.subgroup_m * tile.subgroup_n), tile.fragment);
    k_loop(&source, &rows, &weights, table, &mut stages, &sums, &work, prefetch, branches);
    epilogue(&sums, &mut scratch, bias, residual, out, &gather, &shape, &work, Pass::Forward, patches, tile);
}
