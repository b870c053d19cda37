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
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::gemm::tap_check::TapCheck;
use crate::conv3d::pass::Pass;
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// Threads of a threadgroup.
pub(super) const THREADS: usize = 256;
/// Result channels (n) of a threadgroup.
pub(super) const OUT_CHANNELS: usize = 8;
/// Taps of a threadgroup, at most.
pub(super) const TAPS: usize = 32;
/// Pitch of a tap in shared memory, padded by two: no bank conflicts with lanes along taps.
const TAP_STRIDE: usize = OUT_CHANNELS * CHANNELS + 2;
/// Loads of a thread in flight.
const LOADS_IN_FLIGHT: usize = 2;
/// Bytes of shared memory of a threadgroup, for elements of four bytes.
pub(crate) const SHARED_BYTES: usize = 4 * TAPS * TAP_STRIDE;

/// Extents of the packed weights. A threadgroup's index, fastest first: channel tile, block, chunk of taps,
/// group.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct PackTiling {
    pub(super) channel_tiles: FastDivmod<u32>,
    pub(super) packed_n: u32,
    pub(super) blocks: FastDivmod<u32>,
    pub(super) depth_taps: u32,
    pub(super) n: u32,
    pub(super) channels: u32,
    pub(super) block_count: u32,
    /// Threadgroups along the taps, and the taps of each but the last.
    pub(super) chunks: FastDivmod<u32>,
    pub(super) chunk_divmod: FastDivmod<u32>,
    pub(super) chunk_taps: u32,
    /// Taps of a frame, and of the whole window.
    pub(super) frame_divmod: FastDivmod<u32>,
    pub(super) frame_taps: u32,
    pub(super) all_taps: u32,
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn pack_kernel<E: Float, S: Float, V: Size, W: Size>(
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
