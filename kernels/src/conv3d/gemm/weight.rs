//! The launch of the weight gradient as a gathered implicit GEMM, and its kernel with fp32 multiply-adds (any
//! device, any storage type).
//!
//! ```text
//! partial[slice, n, m] = sum over the slice's positions k of source(k, m) * dy(k, n)        m = (c, tap)
//!
//!                    tile_n channels of dy
//!                  +-----------------+
//!                  | dy              | tile_k positions      a stage, in fp32
//!         tile_k   +-----------------+
//!       +--------+ |                 |
//!       | source | | sums            | tile_m channel taps, in registers
//!       +--------+ +-----------------+
//!
//! source, dy  [N, C, D, H, W], any strides;  partial  [slices, O, C / groups, taps], contiguous, fp32
//! ```
//!
//! Positions are adjacent in both operands, so lanes load along K. Positions and channel taps are divided out
//! once per threadgroup ([`super::table`]). K loop: [`super::fma_loop`]. `reduce.rs` adds the slices in
//! order; one slice is the result itself. Tile, bytes, FLOP and shared memory: [`super::config`]; partial
//! results are written and read once, 8 bytes each. Declined: M or K of 2^31 - 1 and above.

use super::config::{GemmTile, RegisterTile, SUBGROUP, table_entries};
use super::contiguous_weight::contiguous_weight_kernel;
use super::fma_loop::{Element, Operands, k_loop};
use super::gather::{gather_args, gathers, joined_gather_args};
use super::index::GatherArgs;
use super::mma_loop::SourceRows;
use super::mma_weight::mma_weight_kernel;
use super::read::{JoinedArgs, Source, branches, joined_args};
use super::slices::{prefetches, weight_split};
use super::stage::{F32x4, GemmShape, GemmShapeLaunch, column_of, row_of};
use super::stage_vector;
use super::table::{IndexTable, TableLayout};
use super::tap_check::{TapCheck, padding_of};
use super::vectors::{dy_vector_width, joined_vector_width};
use crate::activation::Activation;
use crate::conv3d::cache::cache_args;
use crate::conv3d::call::Conv3dCall;
use crate::conv3d::pass::Pass;
use crate::conv3d::reduce;
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Launches the weight gradient: operands x, dy, dw.
pub(super) fn weight_gradient(
    call: &Conv3dCall,
    tile: GemmTile,
    [x, dy, dw]: [&Operand; 3],
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, cache, .. } = *call;
    let groups = problem.window.groups;
    let [m, n, k] =
        [problem.group_channels() * problem.taps(), problem.group_out_channels(), problem.positions()];
    let [tile_m, tile_n, _] = tile.shape();
    let (tiles_m, tiles_n) = (m.div_ceil(tile_m), n.div_ceil(tile_n));
    let [gather] = &gathers(problem, Pass::Forward)[..] else { unreachable!("a forward pass is one gather") };
    let check = TapCheck::of_call(gather, call);
    // Adjacent positions per load of dy and of x; where both are whole vectors, `contiguous_weight_kernel`.
    let (dy_width, source_width, contiguous) = match tile {
        GemmTile::Fma(_) => (1, 1, false),
        GemmTile::Mma(tile) => {
            let (stage, width) = stage_vector(tile.fragment, problem.dtype, limits);
            let (dy_width, source_width) = (
                dy_vector_width(dy, width),
                joined_vector_width(gather, [x].into_iter().chain(cache), width),
            );
            // Masks are of the joined input, and none is needed along an axis without padding.
            let masks = check == TapCheck::Masks
                || cache.is_some()
                    && (TapCheck::of(gather, padding_of(problem, Pass::WeightGradient)) == TapCheck::Masks
                        || !gather[0].reads_padding());
            let contiguous = [dy_width, source_width] == [width; 2] && masks;
            let source_width =
                if contiguous || tile.fits_contiguous_weight(stage.size()) { source_width } else { 1 };
            (dy_width, source_width, contiguous)
        }
    };
    let split = weight_split(problem, tile, limits);
    let partials = reduce::partials(client, split.slices, dw);
    let threadgroups = tiles_m * tiles_n * groups * split.slices;
    let address = address_type(
        "conv3d",
        &[x, cache.unwrap_or(x), dy, &partials],
        m.max(n).max(k).max(threadgroups),
        limits,
    )?;
    let flop = 2.0 * (tile_m * tile_n * split.length) as f64;
    for dispatch in dispatches(threadgroups, flop, limits) {
        let gather = match cache {
            Some(_) if !contiguous => joined_gather_args(problem, Pass::Forward, gather, [x, dw, dy], cache),
            _ => gather_args(problem, Pass::Forward, gather, [x, dw, dy]),
        };
        let joined = cache.map(|cache| joined_args(x, cache)).into();
        let shape = GemmShapeLaunch {
            m: m as u32,
            n: n as u32,
            k: k as u32,
            slice_k: split.length as u32,
            source_channels: problem.group_channels() as u32,
            tiles_m,
            tiles_n,
            groups,
            slice_stride: dw.len(),
            activation: Activation::None.code(),
        };
        match tile {
            // SAFETY: the contract of the module `gemm`; positions past the slice's end are not read.
            GemmTile::Fma(tile) => unsafe {
                weight_kernel::launch_unchecked(
                    client,
                    dispatch.count(),
                    CubeDim::new_1d(tile.threads() as u32),
                    address,
                    x.buffer_arg(1),
                    cache.map(|cache| cache.buffer_arg(1)).into(),
                    dy.buffer_arg(1),
                    partials.buffer_arg(1),
                    gather,
                    joined,
                    shape,
                    dispatch.span(),
                    check,
                    tile,
                    prefetches(problem, Pass::WeightGradient, GemmTile::Fma(tile), limits),
                    x.dtype.elem(),
                    partials.dtype.elem(),
                );
            },
            GemmTile::Mma(tile) => {
                let (stage, width) = stage_vector(tile.fragment, problem.dtype, limits);
                let partials_arg = partials.buffer_arg(1);
                let count = dispatch.count();
                let [elem, stage_elem, out_elem] = [x.dtype, stage, partials.dtype].map(|dtype| dtype.elem());
                if contiguous {
                    let tile = tile.for_contiguous_weight();
                    // SAFETY: the contract of the module `gemm`; the vectors of both operands are contiguous,
                    // aligned and within one frame.
                    unsafe {
                        contiguous_weight_kernel::launch_unchecked(
                            client,
                            count,
                            CubeDim::new_2d(SUBGROUP as u32, tile.subgroups() as u32),
                            address,
                            width,
                            x.buffer_arg(width),
                            cache.map(|cache| cache.buffer_arg(width)).into(),
                            dy.buffer_arg(width),
                            partials_arg,
                            gather,
                            cache.map(cache_args).into(),
                            shape,
                            dispatch.span(),
                            tile,
                            limits.unroll,
                            stage.size(),
                            cache.is_some(),
                            elem,
                            stage_elem,
                            out_elem,
                        );
                    }
                    continue;
                }
                // SAFETY: the contract of the module `gemm`; vectors are contiguous, aligned and within one
                // frame.
                unsafe {
                    mma_weight_kernel::launch_unchecked(
                        client,
                        count,
                        CubeDim::new_2d(SUBGROUP as u32, tile.subgroups() as u32),
                        address,
                        width,
                        dy_width,
                        source_width,
                        x.buffer_arg(source_width),
                        cache.map(|cache| cache.buffer_arg(source_width)).into(),
                        dy.buffer_arg(dy_width),
                        partials_arg,
                        gather,
                        joined,
                        shape,
                        dispatch.span(),
                        check,
                        tile,
                        limits.unroll,
                        branches(limits.unroll, cache, address),
                        stage.size(),
                        elem,
                        stage_elem,
                        out_elem,
                    );
                }
            }
        }
    }
    reduce::sum_partials(client, limits, &partials, dw)
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn weight_kernel<E: Float, O: Float>(
    source: &[Element<E>],
    cache: ComptimeOption<&[Element<E>]>,
    dy: &[Element<E>],
    out: &mut [O],
    gather: GatherArgs,
    joined: ComptimeOption<JoinedArgs>,
    shape: GemmShape,
    span: Span,
    #[comptime] check: TapCheck,
    #[comptime] tile: RegisterTile,
    #[comptime] prefetch: bool,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // Uniform for the threadgroup: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let work = shape.work_tile(span.index(), tile.tile_m, tile.tile_n);
    let group = work.group;
    let slice = work.slice;
    let first_m = work.first_m;
    let first_n = work.first_n;

    let mut source_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.stage_vectors(tile.tile_m)));
    let mut dy_stage = Shared::<[F32x4]>::new_slice(comptime!(tile.stage_vectors(tile.tile_n)));
    let entries = comptime!(table_entries(tile.tile_k, check));
    let layout = comptime!(TableLayout {
        entries,
        offsets: true,
        pass: Pass::WeightGradient,
        check,
        threads: tile.threads(),
    });
    let mut taps = IndexTable::new(comptime!(TableLayout { entries: tile.tile_m, offsets: false, ..layout }));
    let positions = IndexTable::new(layout);
    taps.fill_taps(&gather, &work, &shape);

    let mut sums = Array::<f32>::new(comptime!(tile.rows * tile.columns));
    #[unroll]
    for i in 0..comptime!(tile.rows * tile.columns) {
        sums[i] = 0.0f32;
    }
    let operands = Operands::new(
        Source::new(source, cache, joined, &gather, check),
        SourceRows::new_Taps(taps),
        dy,
        0usize,
        gather.out_channel_stride,
        (group * shape.n + first_n, group * shape.n + shape.n - 1u32),
        tile,
    );
    k_loop(&operands, positions, &mut source_stage, &mut dy_stage, &mut sums, &work, prefetch);

    #[unroll]
    for j in 0..tile.columns {
        let n = first_n + column_of(j, tile);
        if n < shape.n {
            let row = slice * shape.slice_stride + (group * shape.n + n) as usize * shape.m as usize;
            #[unroll]
            for i in 0..tile.rows {
                let m = first_m + row_of(i, tile);
                if m < shape.m {
                    out[row + m as usize] = O::cast_from(sums[comptime!(i * tile.columns + j)]);
                }
            }
        }
    }
}
