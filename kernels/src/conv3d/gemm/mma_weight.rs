//! The weight gradient as a gathered implicit GEMM on matrix units (cooperative matrices, simdgroup
//! matrices), fp32 accumulation.
//!
//! ```text
//! partial[slice, n, m] = sum over the slice's positions k of dy(k, n) * source(k, m)        m = (c, tap)
//!
//!                  tile_m channel taps
//!               +----------+----------+      a stage:        tile_k positions of tile_m channel taps and of
//!     tile_n    | subgroup | subgroup |                      tile_n channels of dy
//!    channels   +----------+----------+      a subgroup:     subgroup_n x subgroup_m results, in fragments
//!               | subgroup | subgroup |      a threadgroup:  (tile_n / subgroup_n) * (tile_m / subgroup_m)
//!               +----------+----------+                      subgroups of 32
//!
//! source, dy  [N, C, D, H, W], any strides;  partial  [slices, O, C / groups, taps], contiguous, fp32
//! ```
//!
//! Positions are adjacent in memory, so lanes load along K: 32 adjacent positions of one channel tap. The
//! stages are M-major and N-major, but K-major where whole vectors of positions are loaded (the source of
//! pointwise-in-frame windows; dy, [`super::vectors`]). Positions and channel taps are divided out once per
//! threadgroup ([`super::table`]). K loop: [`super::mma_loop`], fragments and epilogue:
//! [`super::fragments`]. `reduce.rs` adds the slices in order. Bytes and FLOP per stage: [`super::config`];
//! partial results are written and read once, 8 bytes each. Declined: what [`super::fma`] declines, and types
//! for which the device has no matrices with fp32 accumulators.

use super::channels::Channels;
use super::config::MatrixTile;
use super::fragments::weight_epilogue;
use super::index::GatherArgs;
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
pub(crate) fn mma_weight_kernel<E: Float, S: Float, O: Float, V: Size, W: Size, R: Size>(
    source: &[Vector<E, R>],
    cache: ComptimeOption<&[Vector<E, R>]>,
    dy: &[Vector<E, W>],
    out: &mut [O],
    gather: GatherArgs,
    joined: ComptimeOption<JoinedArgs>,
    shape: GemmShape,
    span: Span,
    #[comptime] check: TapCheck,
    #[comptime] tile: MatrixTile,
    #[comptime] prefetch: bool,
    #[comptime] branches: bool,
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
    // Adjacent positions of the source, and of dy, in one load.
    let (source_width, dy_width) = (R::value(), W::value());
    let mut stages = Stages::<S, V>::new(comptime!((source_width > 1, dy_width > 1)), size, tile);
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(tile.subgroups() * tile.fragment * tile.fragment));
    let layout = comptime!(TableLayout {
        entries: tile.k_entries(check, branches),
        offsets: true,
        pass: Pass::WeightGradient,
        check,
        threads: tile.threads(),
    });
    let positions = IndexTable::new(layout);
    let mut taps = IndexTable::new(comptime!(TableLayout { entries: tile.tile_m, offsets: false, ..layout }));
    taps.fill_taps(&gather, &work, &shape);
    let rows = SourceRows::new_Taps(taps);

    let sums = accumulators(comptime!(tile.subgroup_m * tile.subgroup_n), tile.fragment);
    let source = Source::new(source, cache, joined, &gather, check);
    let gradients = Channels::new(
        dy,
        0usize,
        work.group * shape.n + work.first_n,
        work.group * shape.n + shape.n - 1u32,
        gather.out_channel(1u32),
        tile,
    );
    k_loop(&source, &rows, &gradients, positions, &mut stages, &sums, &work, prefetch, branches);
    weight_epilogue(&sums, &mut scratch, out, &gather, &shape, &work, tile);
}
