//! The weights as the shifted product reads them: `[group][depth tap][block][tap][channel of the result][16
//! channels]`, channels filled up to tiles and blocks with zeros.
//!
//! ```text
//! memory, forward:  [result][source][taps]   a cube: 8 channels of the result, 16 of the source, at most
//! memory, dx:       [source][result][taps]   32 taps, read in memory's order into shared memory,
//!                                            [tap][result][source] there
//! ```
//!
//! A tap's weights lie the taps apart in memory and beside each other in the result, so that either the reads
//! or the writes of a kernel without shared memory touch a sector for each element. Weights that lie
//! row-major are read in vectors where their rows are aligned. Bytes: the weights twice; shared memory 8 KiB
//! (f16), 16 KiB (f32).

use super::config::CHANNELS;
use crate::conv3d::gemm::index::GatherArgs;
use crate::conv3d::plan::Pass;
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// Units of a cube.
pub(super) const UNITS: usize = 256;
/// Channels of the result that a cube packs.
pub(super) const ROWS: usize = 8;
/// Taps that a cube packs at most.
pub(super) const TAPS: usize = 32;
/// Elements of a tap in shared memory: two more than there are, so that lanes along taps do not share banks.
const STRIDE: usize = ROWS * CHANNELS + 2;
/// Reads of a unit before it waits for them.
const STEPS: usize = 2;
/// Bytes of shared memory of a cube, of elements of four bytes.
pub(crate) const SHARED_BYTES: usize = 4 * TAPS * STRIDE;

/// Extents of the packed weights. A cube's index, from the fastest: rows, block, taps, group.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Packed {
    pub(super) rows: FastDivmod<u32>,
    pub(super) packed_n: u32,
    pub(super) blocks: FastDivmod<u32>,
    pub(super) depth_taps: u32,
    pub(super) n: u32,
    pub(super) channels: u32,
    pub(super) block_count: u32,
    /// Cubes along the taps, and the taps of each but the last.
    pub(super) chunks: FastDivmod<u32>,
    pub(super) chunk: FastDivmod<u32>,
    pub(super) chunk_taps: u32,
    /// Taps of a plane, and of the whole window.
    pub(super) plane: FastDivmod<u32>,
    pub(super) plane_taps: u32,
    pub(super) all_taps: u32,
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn pack_kernel<E: Float, S: Float, V: Size, W: Size>(
    weight: &[Vector<E, W>],
    out: &mut [Vector<S, V>],
    walk: GatherArgs,
    packed: Packed,
    span: Span,
    #[comptime] pass: Pass,
    #[define(E)] _dtype: ElemType,
    #[define(S)] _stage_dtype: ElemType,
) {
    // The whole cube leaves together: a barrier follows.
    if span.is_idle() {
        terminate!();
    }
    let mut stage = Shared::<[S]>::new_slice(comptime!(TAPS * STRIDE));
    let (rest, rows) = packed.rows.div_mod(span.cube() as u32);
    let (rest, block) = packed.blocks.div_mod(rest);
    let (group, in_taps) = packed.chunks.div_mod(rest);
    let share = Share { group, first_n: rows * ROWS as u32, block, first_tap: in_taps * packed.chunk_taps };
    let together = W::value();
    let reads = packed.chunk_taps * comptime!((ROWS * CHANNELS / together) as u32);
    let mut read = UNIT_POS;
    while read < reads {
        // Several reads are under way at once.
        let mut values = Sequence::<Vector<E, W>>::new();
        #[unroll]
        for step in 0..STEPS {
            let read = read + comptime!((step * UNITS) as u32);
            let mut value = Vector::<E, W>::new(E::from_int(0));
            let (at, exists) = source(read, &walk, &packed, &share, together, pass);
            if read < reads && exists {
                value = weight[at / together];
            }
            values.push(value);
        }
        #[unroll]
        for step in 0..STEPS {
            let read = read + comptime!((step * UNITS) as u32);
            if read < reads {
                #[unroll]
                for i in 0..together {
                    let element = read * comptime!(together as u32) + i as u32;
                    let (tap, n, channel) = place(element, &packed, pass);
                    // In memory an input gradient's taps lie in reverse.
                    let reverse = comptime!(together > 1 && pass == Pass::InputGradient);
                    let tap = if reverse { packed.chunk_taps - 1u32 - tap } else { tap };
                    let at = tap * STRIDE as u32 + n * CHANNELS as u32 + channel;
                    stage[at as usize] = S::cast_from(values.index(step).extract(i));
                }
            }
        }
        read += comptime!((STEPS * UNITS) as u32);
    }
    sync_cube();
    write(&stage, out, &packed, &share);
}

/// What a cube packs.
#[derive(CubeType, Clone, Copy)]
struct Share {
    group: u32,
    first_n: u32,
    block: u32,
    first_tap: u32,
}

/// Where a read of the cube's share lies in the weight, and whether it does.
#[cube]
fn source(
    read: u32,
    walk: &GatherArgs,
    packed: &Packed,
    share: &Share,
    #[comptime] together: usize,
    #[comptime] pass: Pass,
) -> (usize, bool) {
    let (tap, n, channel) = place(read * comptime!(together as u32), packed, pass);
    let (tap, n) = (share.first_tap + tap, share.first_n + n);
    let channel = share.block * CHANNELS as u32 + channel;
    let exists = tap < packed.all_taps && n < packed.n && channel < packed.channels;
    let mut at = walk.weight_group(share.group) + walk.weight_column(n);
    if comptime!(together > 1) {
        // Rows are aligned, so that what begins in one lies in it.
        at += walk.weight_channel(channel) + tap as usize;
    } else {
        at += walk.channel_tap(channel * packed.all_taps + tap, true.runtime(), pass).weight;
    }
    (at, exists)
}

/// Tap, channel of the result and channel of the source, within a cube's share, of its elements in the
/// weight's order.
#[cube]
fn place(element: u32, packed: &Packed, #[comptime] pass: Pass) -> (u32, u32, u32) {
    let (rest, tap) = packed.chunk.div_mod(element);
    let mut n = rest / CHANNELS as u32;
    let mut channel = rest % CHANNELS as u32;
    if comptime!(pass == Pass::InputGradient) {
        n = rest % ROWS as u32;
        channel = rest / ROWS as u32;
    }
    (tap, n, channel)
}

/// Writes a cube's share, the channels of a tap behind each other.
#[cube]
fn write<S: Float, V: Size>(stage: &Shared<[S]>, out: &mut [Vector<S, V>], packed: &Packed, share: &Share) {
    let width = V::value();
    let run = comptime!(CHANNELS / width);
    let mut vector = UNIT_POS as usize;
    while vector < packed.chunk_taps as usize * comptime!(ROWS * run) {
        let in_chunk = vector / comptime!(ROWS * run);
        let in_rows = vector % comptime!(ROWS * run);
        let tap = share.first_tap + in_chunk as u32;
        if tap < packed.all_taps {
            let mut values = Vector::<S, V>::empty();
            #[unroll]
            for i in 0..width {
                values.insert(i, stage[in_chunk * STRIDE + in_rows * width + i]);
            }
            let (depth_tap, tap) = packed.plane.div_mod(tap);
            let depth_tap = (share.group * packed.depth_taps + depth_tap) * packed.block_count + share.block;
            let row = (depth_tap * packed.plane_taps + tap) as usize * packed.packed_n as usize;
            out[(row + share.first_n as usize) * run + in_rows] = values;
        }
        vector += UNITS;
    }
}
