//! Packs the weights for the window GEMMs: `[group][depth tap][block][tap][n][16 channels]`, with zeros up to
//! whole tiles along n and whole blocks along the channels.
//!
//! ```text
//! packed[g][kd][b][kh, kw][n][c] = w[n, 16 b + c, kd, kh, kw]  of group g   (dx: n and channel exchanged)
//!
//! memory, forward:  [n][channel][taps]    a threadgroup: 8 n x 16 channels x at most 32 taps,
//! memory, dx:       [channel][n][taps]    loaded in memory's order, stored to shared memory
//! shared memory:    [tap][n][channel]     (pitch padded by 2), then stored in packed order
//! ```
//!
//! Shared memory makes both sides coalesced: the weights of a tap are `taps` elements apart in memory and
//! adjacent in the packed order. Row-major weights with aligned rows are loaded in vectors. Per threadgroup
//! 8 * 16 * 32 elements in and out, no FLOP; 8 KiB (f16) or 16 KiB (f32) of shared memory.

use super::config::CHANNELS;
use super::extents::WindowExtents;
use crate::conv3d::call::Conv3dCall;
use crate::conv3d::gemm::gather::{divisor, gather_args};
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::gemm::tap_check::TapCheck;
use crate::conv3d::gemm::weight_vector_width;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::Conv3dProblem;
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// Threads of a threadgroup.
const THREADS: usize = 256;
/// Result channels (n) of a threadgroup.
const OUT_CHANNELS: usize = 8;
/// Taps of a threadgroup, at most.
const TAPS: usize = 32;
/// Pitch of a tap in shared memory, padded by two: no bank conflicts with lanes along taps.
const TAP_STRIDE: usize = OUT_CHANNELS * CHANNELS + 2;
/// Loads of a thread in flight.
const LOADS_IN_FLIGHT: usize = 2;
/// Bytes of shared memory of a threadgroup, for elements of four bytes.
pub(crate) const SHARED_BYTES: usize = 4 * TAPS * TAP_STRIDE;

/// Extents of the packed weights. A threadgroup's index, fastest first: channel tile, block, chunk of taps,
/// group.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct PackTiling {
    channel_tiles: FastDivmod<u32>,
    packed_n: u32,
    blocks: FastDivmod<u32>,
    depth_taps: u32,
    n: u32,
    channels: u32,
    block_count: u32,
    /// Threadgroups along the taps, and the taps of each but the last.
    chunks: FastDivmod<u32>,
    chunk_divmod: FastDivmod<u32>,
    chunk_taps: u32,
    /// Taps of a frame, and of the whole window.
    frame_divmod: FastDivmod<u32>,
    frame_taps: u32,
    all_taps: u32,
}

/// Packs the weights, in vectors of `width` elements.
pub(super) fn launch(
    call: &Conv3dCall,
    extents: &WindowExtents,
    [weight, packed]: [&Operand; 2],
    width: usize,
) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, pass, .. } = *call;
    let all_taps = problem.taps();
    let chunks = all_taps.div_ceil(TAPS);
    let chunk_taps = all_taps.div_ceil(chunks.max(1));
    let channel_tiles = extents.packed_n / OUT_CHANNELS;
    let threadgroups = channel_tiles * extents.blocks * chunks * problem.window.groups;
    let read_width = read_width(problem, weight, width);
    let largest = weight.len().max(packed.len());
    let address = address_type("conv3d", &[weight, packed], largest, limits)?;
    for dispatch in dispatches(threadgroups, (chunk_taps * OUT_CHANNELS * CHANNELS * 20) as f64, limits) {
        // SAFETY: the contract of the module `window`. Reads past the last weight are masked; the index of a
        // threadgroup names channels, a block and taps that the packed weights have.
        unsafe {
            pack_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS as u32),
                address,
                width,
                read_width,
                weight.buffer_arg(read_width),
                packed.buffer_arg(width),
                gather_args(problem, pass, &extents.packed_walks(problem), [weight, weight, weight]),
                PackTilingLaunch {
                    channel_tiles: channel_tiles as u32,
                    packed_n: extents.packed_n as u32,
                    blocks: divisor(extents.blocks),
                    depth_taps: extents.depth_taps as u32,
                    n: extents.n as u32,
                    channels: extents.channels as u32,
                    block_count: extents.blocks as u32,
                    chunks: chunks as u32,
                    chunk_divmod: chunk_taps as u32,
                    chunk_taps: chunk_taps as u32,
                    frame_divmod: extents.taps as u32,
                    frame_taps: extents.taps as u32,
                    all_taps: all_taps as u32,
                },
                dispatch.span(),
                pass,
                weight.dtype.elem(),
                packed.dtype.elem(),
            );
        }
    }
    Ok(())
}

/// The vector width of the weight loads: `width` where the weight's rows are whole aligned vectors, else one.
fn read_width(problem: &Conv3dProblem, weight: &Operand, width: usize) -> usize {
    if problem.taps() <= TAPS { weight_vector_width(weight, width) } else { 1 }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn pack_kernel<E: Float, S: Float, V: Size, W: Size>(
    weight: &[Vector<E, W>],
    out: &mut [Vector<S, V>],
    gather: GatherArgs,
    tiling: PackTiling,
    span: Span,
    #[comptime] pass: Pass,
    #[define(E)] _dtype: ElemType,
    #[define(S)] _stage_dtype: ElemType,
) {
    // The whole threadgroup exits: a barrier follows.
    if span.is_idle() {
        terminate!();
    }
    let mut stage = Shared::<[S]>::new_slice(comptime!(TAPS * TAP_STRIDE));
    let (rest, channel_tile) = tiling.channel_tiles.div_mod(span.index() as u32);
    let (rest, block) = tiling.blocks.div_mod(rest);
    let (group, chunk) = tiling.chunks.div_mod(rest);
    let work = PackWork {
        group,
        first_n: channel_tile * OUT_CHANNELS as u32,
        block,
        first_tap: chunk * tiling.chunk_taps,
    };
    let read_width = W::value();
    let loads = tiling.chunk_taps * comptime!((OUT_CHANNELS * CHANNELS / read_width) as u32);
    let mut load = UNIT_POS;
    while load < loads {
        // All loads before the first use.
        let mut values = Sequence::<Vector<E, W>>::new();
        #[unroll]
        for step in 0..LOADS_IN_FLIGHT {
            let load = load + comptime!((step * THREADS) as u32);
            let mut value = Vector::<E, W>::new(E::from_int(0));
            let (at, exists) = source_offset(load, &gather, &tiling, &work, read_width, pass);
            if load < loads && exists {
                value = weight[at / read_width];
            }
            values.push(value);
        }
        #[unroll]
        for step in 0..LOADS_IN_FLIGHT {
            let load = load + comptime!((step * THREADS) as u32);
            if load < loads {
                #[unroll]
                for i in 0..read_width {
                    let element = load * comptime!(read_width as u32) + i as u32;
                    let (tap, n, channel) = coordinates(element, &tiling, pass);
                    // The input gradient takes taps in reverse memory order.
                    let reverse = comptime!(read_width > 1 && pass == Pass::InputGradient);
                    let tap = if reverse { tiling.chunk_taps - 1u32 - tap } else { tap };
                    let at = tap * TAP_STRIDE as u32 + n * CHANNELS as u32 + channel;
                    stage[at as usize] = S::cast_from(values.index(step).extract(i));
                }
            }
        }
        load += comptime!((LOADS_IN_FLIGHT * THREADS) as u32);
    }
    sync_cube();
    write_packed(&stage, out, &tiling, &work);
}

/// The work assignment of a threadgroup: its first result channel, block and tap.
#[derive(CubeType, Clone, Copy)]
struct PackWork {
    group: u32,
    first_n: u32,
    block: u32,
    first_tap: u32,
}

/// Offset in the weight of a load of the threadgroup's work, and whether it is inside.
#[cube]
fn source_offset(
    load: u32,
    gather: &GatherArgs,
    tiling: &PackTiling,
    work: &PackWork,
    #[comptime] read_width: usize,
    #[comptime] pass: Pass,
) -> (usize, bool) {
    let (tap, n, channel) = coordinates(load * comptime!(read_width as u32), tiling, pass);
    let (tap, n) = (work.first_tap + tap, work.first_n + n);
    let channel = work.block * CHANNELS as u32 + channel;
    let exists = tap < tiling.all_taps && n < tiling.n && channel < tiling.channels;
    let mut at = gather.weight_group(work.group) + gather.weight_column(n);
    if comptime!(read_width > 1) {
        // Rows are whole vectors: a vector that begins in a row ends in it.
        at += gather.weight_channel(channel) + tap as usize;
    } else {
        at +=
            gather.channel_tap(channel * tiling.all_taps + tap, true.runtime(), pass, TapCheck::Masks).weight;
    }
    (at, exists)
}

/// Tap, result channel and source channel, within the threadgroup's work, of an element in memory order.
#[cube]
fn coordinates(element: u32, tiling: &PackTiling, #[comptime] pass: Pass) -> (u32, u32, u32) {
    let (rest, tap) = tiling.chunk_divmod.div_mod(element);
    let mut n = rest / CHANNELS as u32;
    let mut channel = rest % CHANNELS as u32;
    if comptime!(pass == Pass::InputGradient) {
        n = rest % OUT_CHANNELS as u32;
        channel = rest / OUT_CHANNELS as u32;
    }
    (tap, n, channel)
}

/// Stores a threadgroup's work, the channels of a tap next to each other.
#[cube]
fn write_packed<S: Float, V: Size>(
    stage: &Shared<[S]>,
    out: &mut [Vector<S, V>],
    tiling: &PackTiling,
    work: &PackWork,
) {
    let width = V::value();
    let row_vectors = comptime!(CHANNELS / width);
    let mut vector = UNIT_POS as usize;
    while vector < tiling.chunk_taps as usize * comptime!(OUT_CHANNELS * row_vectors) {
        let in_chunk = vector / comptime!(OUT_CHANNELS * row_vectors);
        let in_tap = vector % comptime!(OUT_CHANNELS * row_vectors);
        let tap = work.first_tap + in_chunk as u32;
        if tap < tiling.all_taps {
            let mut values = Vector::<S, V>::empty();
            #[unroll]
            for i in 0..width {
                values.insert(i, stage[in_chunk * TAP_STRIDE + in_tap * width + i]);
            }
            let (depth_tap, tap) = tiling.frame_divmod.div_mod(tap);
            let depth_tap = (work.group * tiling.depth_taps + depth_tap) * tiling.block_count + work.block;
            let row = (depth_tap * tiling.frame_taps + tap) as usize * tiling.packed_n as usize;
            out[(row + work.first_n as usize) * row_vectors + in_tap] = values;
        }
        vector += THREADS;
    }
}
