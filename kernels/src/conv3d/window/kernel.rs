//! conv3d as implicit GEMM with a shared input window, on MMA units: forward pass without a stride within the
//! frame, and input gradient (strided ones by [`super::phases`]). fp32 accumulation.
//!
//! ```text
//! D[n][m] += sum over depth taps, blocks of 16 channels, taps (kh, kw) of
//!            W[n][16] * X[16][m + kh * dilation_h * pitch + kw * dilation_w]
//!
//!    row segments of a frame           tile:   tile_m consecutive elements of a segment, row by row; those
//!    +--------------------------+              of the halo are computed and not stored
//!    | positions         | halo |      window: the tile's elements and those that its taps reach
//!    | positions ..tile..| halo |      tap:    the same fragments, shifted by a constant within the window
//!    +--------------------------+
//!
//! source          any strides, loaded one element at a time, lanes along the row
//! packed weights  [group][depth tap][block][tap][n][16 channels]  (pack.rs), memory -> fragments
//! window          [element][16 channels], pitch padded by 16 bytes
//! ```
//!
//! The gathered implicit GEMM ([`crate::conv3d::gemm`]) loads every tap anew: for 3x3 taps, 9 times the
//! loads, offsets and masks of this kernel. Per block a threadgroup loads `window * 16` source elements and
//! `taps * 16 * tile_n` weights (each subgroup along M loads the same ones), for
//! `2 * tile_m * tile_n * 16 * taps` FLOP. Depth taps outside the source are skipped. Weights bypass shared
//! memory, so that a block has two barriers and not one for each tap.
//!
//! Declined: strides within the frame (forward), windows that do not fit ([`super::config`]), the weight
//! gradient.

use super::config::{CHANNELS, WindowTile};
use super::epilogue::write_result;
use super::phases::{PhaseTaps, PhaseWork, Phases, work_of};
use super::tiling::{BlockRange, SourceBlock, WindowTiling, WindowWork};
use crate::conv3d::cache::CacheArgs;
use crate::conv3d::gemm::config::SUBGROUP;
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::mma::{accumulators, load_fragment, multiply_fragments, pack_vector, store_window};
use crate::conv3d::problem::PaddingMode;
use crate::launch::Span;
use cubecl::cmma::{self, MatrixIdent, MatrixLayout};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn window_kernel<E: Float, S: Float, O: Float, V: Size>(
    source: &[E],
    cache: ComptimeOption<&[E]>,
    weight: &[Vector<S, V>],
    bias: ComptimeOption<&Tensor<E>>,
    residual: ComptimeOption<&Tensor<E>>,
    out: &mut [O],
    gather: GatherArgs,
    cache_args: ComptimeOption<CacheArgs>,
    tiling: WindowTiling,
    phases: ComptimeOption<Phases>,
    span: Span,
    // Along depth, and along H and W.
    #[comptime] padding: [PaddingMode; 2],
    #[comptime] tile: WindowTile,
    #[comptime] prefetch: bool,
    #[comptime] size: usize,
    // For the kernel's key, in which optional arguments do not count.
    #[comptime] _has_residual: bool,
    #[comptime] _has_cache: bool,
    #[define(E)] _dtype: ElemType,
    #[define(S)] _stage_dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    // The whole threadgroup exits: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let PhaseWork { gather, tiling, work, taps } =
        work_of(&phases, gather, tiling, span.index() as u32, tile);
    let phased = taps.is_some();
    let width = V::value();
    let pitch = comptime!(tile.window_pitch(width, size));
    let (loads, threads) = comptime!((tile.window_loads(width), tile.threads()));
    let mut window = Shared::<[Vector<S, V>]>::new_slice(comptime!(tile.window * pitch));
    let mut offsets = Shared::<[usize]>::new_slice(tile.window);
    let acc = accumulators(comptime!(tile.subgroup_m * tile.subgroup_n), tile.fragment);

    let blocks = BlockRange::new(&gather, &cache_args, &tiling, &work, &taps, comptime!(padding[0]));
    find_offsets(&gather, &tiling, &work, &mut offsets, comptime!(padding[1]), tile);
    sync_cube();
    let tap_vectors = comptime!(CHANNELS / width) * tiling.packed_n as usize;
    let in_tile = UNIT_POS as usize / SUBGROUP / comptime!(tile.tile_m / tile.subgroup_m) * tile.subgroup_n;
    let column = (work.first_n as usize + in_tile) * comptime!(CHANNELS / width);
    let mut block = blocks.first;
    let mut tap_offset = blocks.packed_tap(block) * tap_vectors + column;
    // A block is in the source or, as a whole, in its cache: branching for each element would keep the loads
    // from being in flight together.
    if comptime!(prefetch) {
        let next = blocks.at(block);
        let exists = block < blocks.end;
        if next.in_cache {
            let values = read_window(cache.unwrap(), &offsets, &next, exists, width, tile);
            store_window(&values, &mut window, tile.window, pitch, loads, threads);
        } else {
            let values = read_window(source, &offsets, &next, exists, width, tile);
            store_window(&values, &mut window, tile.window, pitch, loads, threads);
        }
        sync_cube();
        while block < blocks.end {
            block += 1u32;
            let next = blocks.at(block);
            let mut tap = 0u32.runtime();
            while tap + 1u32 < tiling.taps {
                multiply(&window, weight, tap_offset, &acc, &gather, &tiling, &taps, tap, pitch, tile);
                // Packed taps are consecutive, also from one block to the next.
                if comptime!(!phased) {
                    tap_offset += tap_vectors;
                }
                tap += 1u32;
            }
            // Prefetch the next window before the last tap, outside the loop: 1.6x. Inside, the loop's back
            // edge would wait for the loads, as the end of a branch does: it has the products and the stores.
            let exists = block < blocks.end;
            if next.in_cache {
                let values = read_window(cache.unwrap(), &offsets, &next, exists, width, tile);
                multiply(&window, weight, tap_offset, &acc, &gather, &tiling, &taps, tap, pitch, tile);
                sync_cube();
                store_window(&values, &mut window, tile.window, pitch, loads, threads);
            } else {
                let values = read_window(source, &offsets, &next, exists, width, tile);
                multiply(&window, weight, tap_offset, &acc, &gather, &tiling, &taps, tap, pitch, tile);
                sync_cube();
                store_window(&values, &mut window, tile.window, pitch, loads, threads);
            }
            if comptime!(phased) {
                tap_offset = blocks.packed_tap(block) * tap_vectors + column;
            } else {
                tap_offset += tap_vectors;
            }
            sync_cube();
        }
    } else {
        // Few loads in flight leave registers for more threads, which hide the latency.
        while block < blocks.end {
            let next = blocks.at(block);
            // Every thread has finished with the previous block.
            sync_cube();
            if next.in_cache {
                load_window(cache.unwrap(), &offsets, &next, &mut window, pitch, tile);
            } else {
                load_window(source, &offsets, &next, &mut window, pitch, tile);
            }
            sync_cube();
            // Row by row of taps: no tap is divided out, and addresses are sums.
            let (row_vectors, next_vectors) = packed_steps(&taps, tap_vectors);
            let mut row_offset = tap_offset;
            let mut row_shift = 0u32.runtime();
            let mut h = 0u32.runtime();
            while h < gather.height.tap_count {
                let mut shift = row_shift;
                let mut w = 0u32.runtime();
                if comptime!(phased) {
                    tap_offset = row_offset;
                }
                while w < gather.width.tap_count {
                    multiply_tap(&window, weight, tap_offset, &acc, shift, prefetch, pitch, tile);
                    // Packed taps are consecutive, also from one block to the next, but in a phase.
                    tap_offset += next_vectors;
                    shift += gather.width.step;
                    w += 1u32;
                }
                row_offset += row_vectors;
                row_shift += gather.height.step * tiling.pitch;
                h += 1u32;
            }
            block += 1u32;
            if comptime!(phased) {
                tap_offset = blocks.packed_tap(block) * tap_vectors + column;
            }
        }
    }
    write_result(&acc, bias, residual, out, &gather, &tiling, &work, tile, prefetch);
}

/// Offsets of the window's elements in a source frame, plus one; zero outside the source.
#[cube]
fn find_offsets(
    gather: &GatherArgs,
    tiling: &WindowTiling,
    work: &WindowWork,
    offsets: &mut Shared<[usize]>,
    #[comptime] padding: PaddingMode,
    #[comptime] tile: WindowTile,
) {
    let mut element = UNIT_POS;
    while element < comptime!(tile.window as u32) {
        let (row, column) = tiling.pitch_divmod.div_mod(work.first_m + element);
        let (h, h_inside) = gather.height.load_offset(gather.height.coordinate(row), padding);
        let (w, w_inside) = gather.width.load_offset(gather.width.coordinate(work.first_w + column), padding);
        let mut offset = 0usize.runtime();
        if h_inside && w_inside {
            offset = h + w + 1usize;
        }
        offsets[element as usize] = offset;
        element += comptime!(tile.threads() as u32);
    }
}

/// Loads this thread's vectors of a block's window into registers: channels of one element, lanes along
/// elements.
#[cube]
fn read_window<E: Float>(
    from: &[E],
    offsets: &Shared<[usize]>,
    block: &SourceBlock,
    exists: bool,
    #[comptime] width: usize,
    #[comptime] tile: WindowTile,
) -> Sequence<E> {
    let mut values = Sequence::<E>::new();
    #[unroll]
    for load in 0..comptime!(tile.window_loads(width)) {
        let vector = UNIT_POS as usize + comptime!(load * tile.threads());
        let channel = (vector / tile.window * width) as u32;
        let offset = offsets[vector % tile.window];
        let at = block.offset + offset + block.channel(channel);
        let inside = offset > 0usize && exists;
        #[unroll]
        for i in 0..width {
            let mut value = E::from_int(0);
            if inside && channel + (i as u32) < block.channels_left {
                value = from[at + block.channel(i as u32) - 1usize];
            }
            values.push(value);
        }
    }
    values
}

/// Loads a block's window, one vector of a thread after the other: fewer addresses and values at a time.
#[cube]
fn load_window<E: Float, S: Float, V: Size>(
    from: &[E],
    offsets: &Shared<[usize]>,
    block: &SourceBlock,
    window: &mut Shared<[Vector<S, V>]>,
    #[comptime] pitch: usize,
    #[comptime] tile: WindowTile,
) {
    let width = V::value();
    let mut vector = UNIT_POS as usize;
    while vector < comptime!(tile.window * CHANNELS / width) {
        let in_block = vector / tile.window;
        let element = vector % tile.window;
        let channel = (in_block * width) as u32;
        let offset = offsets[element];
        let at = block.offset + offset + block.channel(channel);
        let mut values = Sequence::<E>::new();
        #[unroll]
        for i in 0..width {
            let mut value = E::from_int(0);
            if offset > 0usize && channel + (i as u32) < block.channels_left {
                value = from[at + block.channel(i as u32) - 1usize];
            }
            values.push(value);
        }
        window[element * pitch + in_block] = pack_vector(&values, 0usize);
        vector += comptime!(tile.threads());
    }
}

/// Accumulates the products of one tap of the frame. `tap_offset` is where this subgroup's packed weights
/// begin: of the tap, or in a phase of the block's first tap.
#[cube]
fn multiply<S: Float, V: Size>(
    window: &Shared<[Vector<S, V>]>,
    weight: &[Vector<S, V>],
    tap_offset: usize,
    acc: &Sequence<cmma::Matrix<f32>>,
    gather: &GatherArgs,
    tiling: &WindowTiling,
    taps: &ComptimeOption<PhaseTaps>,
    tap: u32,
    #[comptime] pitch: usize,
    #[comptime] tile: WindowTile,
) {
    let width = V::value();
    let (h, w) = tiling.row_taps.div_mod(tap);
    let tap_offset = #[comptime]
    match taps {
        ComptimeOption::Some(taps) => {
            let frame_tap = (h * taps.row_step + w * taps.step) as usize;
            tap_offset + frame_tap * comptime!(CHANNELS / width) * tiling.packed_n as usize
        }
        ComptimeOption::None => tap_offset,
    };
    let shift = h * gather.height.step * tiling.pitch + w * gather.width.step;
    multiply_tap(window, weight, tap_offset, acc, shift, true, pitch, tile);
}

/// Vectors of packed weights from a row of taps to the next, and from a tap to the next in its row.
#[cube]
fn packed_steps(taps: &ComptimeOption<PhaseTaps>, tap_vectors: usize) -> (usize, usize) {
    #[comptime]
    match taps {
        ComptimeOption::Some(taps) => {
            (taps.row_step as usize * tap_vectors, taps.step as usize * tap_vectors)
        }
        ComptimeOption::None => (0usize.runtime(), tap_vectors),
    }
}

/// The products of one tap, whose packed weights for this subgroup begin at `tap_offset` and whose elements
/// are `shift` after the tile's.
#[cube]
fn multiply_tap<S: Float, V: Size>(
    window: &Shared<[Vector<S, V>]>,
    weight: &[Vector<S, V>],
    tap_offset: usize,
    acc: &Sequence<cmma::Matrix<f32>>,
    shift: u32,
    #[comptime] prefetch: bool,
    #[comptime] pitch: usize,
    #[comptime] tile: WindowTile,
) {
    let width = V::value();
    let first_m = UNIT_POS as usize / SUBGROUP % comptime!(tile.tile_m / tile.subgroup_m) * tile.subgroup_m;
    let shift = shift as usize;
    let shifted = (first_m + shift) * pitch;
    #[unroll]
    for k in 0..comptime!(CHANNELS / tile.fragment) {
        let a = weight_fragments(weight, tap_offset, k, tile);
        #[unroll]
        for j in 0..comptime!(tile.subgroup_m / tile.fragment) {
            // Off NVIDIA addresses are sums; there the kernel is the one that was timed.
            let mut at = shifted + comptime!(j * tile.fragment * pitch + k * tile.fragment / width);
            if comptime!(prefetch) {
                let first = first_m + comptime!(j * tile.fragment) + shift;
                at = first * pitch + comptime!(k * tile.fragment / width);
            }
            let b = load_fragment(
                &window[at..comptime!(tile.window * pitch)],
                MatrixIdent::B,
                MatrixLayout::ColMajor,
                comptime!(pitch * width),
                tile.fragment,
            );
            let rows = comptime!(tile.subgroup_n / tile.fragment);
            multiply_fragments(&a, &b, acc, rows, j, comptime!(tile.subgroup_m / tile.fragment));
        }
    }
}

/// The weight fragments of a subgroup's channels for the `k`-th fragment of a block's K. `first` is where the
/// block's packed weights for this subgroup begin.
#[cube]
pub(super) fn weight_fragments<S: Float, V: Size>(
    weight: &[Vector<S, V>],
    first: usize,
    #[comptime] k: usize,
    #[comptime] tile: WindowTile,
) -> Sequence<cmma::Matrix<Vector<S, V>>> {
    let width = V::value();
    let end = weight.len();
    let mut a = Sequence::<cmma::Matrix<Vector<S, V>>>::new();
    #[unroll]
    for i in 0..comptime!(tile.subgroup_n / tile.fragment) {
        let at = first + comptime!((i * tile.fragment * CHANNELS + k * tile.fragment) / width);
        let from = &weight[at..end];
        a.push(load_fragment(from, MatrixIdent::A, MatrixLayout::RowMajor, CHANNELS, tile.fragment));
    }
    a
}
