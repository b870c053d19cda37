//! y, the pre-activation gradient, dx and the gradient of the initial state: one kernel, since each is
//!
//! ```text
//! out[b,c,o] = bias[c] + sum over k < W of factor[c,k] * column(b, c, start + o + k)
//! ```
//!
//! over columns `[initial state | source]`:
//!
//! | result                        | source                  | taps     | start |
//! |-------------------------------|-------------------------|----------|-------|
//! | y, pre-activation gradient    | x                       | in order | 0     |
//! | dx                            | pre-activation gradient | reversed | W-1   |
//! | gradient of the initial state | pre-activation gradient | reversed | 0     |
//!
//! A gradient's columns before the first step and past the last are 0.
//!
//! ```text
//!   threadgroup (128 threads): rows channels x up to 4 tiles of 16 * lanes steps, rows * lanes = 128
//!
//!   tile, per row        columns   | 16 * lanes steps     | 128 + shift |   per block of 128 taps
//!                        taps      | 128 |
//!   thread (row, lane)             16 consecutive steps of a channel (see products.rs)
//! ```
//!
//! `[B, C, T]`: up to 128 lanes, and the next tile's columns are prefetched during the products.
//! `[B, T, C]`: 8 channels x 16 lanes; consecutive threads load and store consecutive channels. Sums are
//! exchanged through shared memory, so that stores are coalesced.
//!
//! Per tile and block of 128 taps, bytes: the tile's columns and 128 more per row; per tile y once; per
//! threadgroup the taps. FLOP: 2 x 2048 per tap. Per 512 FMA of a thread 16 vector loads from shared memory.
//! Barriers: two per tile and block, two more per tile. Shared memory: 12.6 KiB of columns, 4.6 KiB of taps.
//! Any strides, any width. Declined: sequence ids.

use super::AccessWidth;
use super::products::{
    OUTPUTS, Quad, SECTIONS, SharedOffsets, THREADS, accumulate, section_pitch, store_sums,
};
use super::results::{OutputRow, write_sums};
use super::stage::{StagedRow, copy, load, store};
use super::taps::{load_taps, store_taps};
use crate::causal_conv1d::args::{ConvParams, ConvParamsLaunch, Present, Strides, strides};
use crate::causal_conv1d::call::Conv1dCall;
use crate::causal_conv1d::problem::{CausalConv1dProblem, Conv1dLayout};
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::operand::{Operand, address_type};
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Taps in shared memory at a time.
pub(super) const TAP_BLOCK: usize = 128;

/// The most channels per threadgroup.
pub(super) const MAX_ROWS: usize = 8;

/// The most tiles per threadgroup. Only the loads of the first are exposed.
const MAX_TILES: usize = 4;

/// Vectors of a row past its own steps, for the taps of a block and the shift; of these, the most per
/// section.
const HALO: usize = TAP_BLOCK / 4 + 1;
const SECTION_HALO: usize = HALO.div_ceil(SECTIONS);

/// Vectors of a section of the columns.
const COLUMN_PITCH: usize = section_pitch(THREADS + MAX_ROWS * SECTION_HALO);
/// Vectors of a row of taps in a section; one of them pads the row.
pub(super) const TAP_ROW: usize = TAP_BLOCK / 4 / SECTIONS + 1;
/// Vectors of a section of the taps.
pub(super) const TAP_PITCH: usize = section_pitch(MAX_ROWS * TAP_ROW);

/// Bytes of shared memory.
pub(crate) const SHARED_BYTES: usize = 16 * SECTIONS * (COLUMN_PITCH + TAP_PITCH);

/// One filter over a source and the operands of its epilogue, for channels `first..first + channels`.
pub(crate) struct FilterPass<'a> {
    /// `[B, C, T]` or `[B, channels, T]`.
    pub(crate) source: &'a Operand,
    /// The source's channel for channel `first`.
    pub(crate) source_first: usize,
    /// Whether the taps are in reverse order.
    pub(crate) reversed: bool,
    /// The column that tap 0 of result 0 reads.
    pub(crate) start: usize,
    pub(crate) dy: Option<&'a Operand>,
    pub(crate) residual: Option<&'a Operand>,
    pub(crate) dfinal: Option<&'a Operand>,
    pub(crate) channels: (usize, usize),
    /// `[B, C, ..]` for gradients, of which these channels are written; `[B, channels, ..]` for y and the
    /// pre-activation gradient.
    pub(crate) target: &'a Operand,
}

/// Work assignment: which tiles and channels a threadgroup has.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct WideWork {
    /// log2 of the threads per row.
    lane_bits: u32,
    /// Tiles per row.
    tiles: usize,
    tiles_per_threadgroup: usize,
    /// Threadgroups along the steps of a row.
    threadgroups: usize,
    /// Threadgroups along the channels.
    channel_groups: usize,
    source_first: usize,
    pub(super) target_first: usize,
    pub(super) start: usize,
    /// Results per row.
    steps: usize,
    pub(super) reversed: u32,
}

/// Comptime configuration of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct WideTile {
    layout: Conv1dLayout,
    /// Steps from the start of a vector to the first column.
    shift: usize,
    /// Whether a tile's loads are all in flight at once, for devices that prefer that to occupancy.
    unroll: bool,
}

impl WideTile {
    /// Whether the next tile's columns are prefetched during the products. `[B, T, C]` loads single elements,
    /// too many to hold in registers.
    fn prefetches(self) -> bool {
        self.unroll && self.layout == Conv1dLayout::Bct
    }

    /// Vectors of columns that a thread loads at once. `[B, C, T]`: its steps and one of the halo, which
    /// covers a long row. `[B, T, C]`: all of a row.
    fn staged_vectors(self) -> usize {
        match self.layout {
            Conv1dLayout::Bct => SECTIONS + 1,
            Conv1dLayout::Btc => SECTIONS + (TAP_BLOCK / 4).div_ceil(THREADS / MAX_ROWS),
        }
    }
}

/// An upper bound of the loop iterations of a thread.
pub(crate) fn iterations(problem: &CausalConv1dProblem) -> usize {
    // `[B, T, C]` has the shortest tiles, hence the most.
    let tiles = problem.length.div_ceil(THREADS / MAX_ROWS * OUTPUTS).clamp(1, MAX_TILES);
    problem.width.div_ceil(TAP_BLOCK) * tiles * 48 + 32
}

/// Launches a filter pass.
pub(crate) fn launch(call: &Conv1dCall, pass: &FilterPass) -> Result<(), ConvError> {
    let &Conv1dCall { client, limits, problem, ref views } = call;
    let (first, channels) = pass.channels;
    let steps = pass.target.shape[2];
    let by_channels = problem.layout == Conv1dLayout::Btc;
    let lanes = if by_channels { THREADS / MAX_ROWS } else { steps.div_ceil(OUTPUTS).next_power_of_two() };
    let lanes = lanes.clamp(THREADS / MAX_ROWS, THREADS);
    let rows = THREADS / lanes;
    let (tiles, groups) = (steps.div_ceil(lanes * OUTPUTS), channels.div_ceil(rows));
    // Several tiles per threadgroup only if at least four waves remain: a short tail wave.
    let affordable = problem.batch * tiles * groups / (4 * limits.cubes_in_flight);
    let threadgroups = tiles.div_ceil(affordable.clamp(1, MAX_TILES));
    let tiles_per_threadgroup = tiles.div_ceil(threadgroups.max(1));
    let forward = !pass.reversed;
    let bias = views.bias.as_ref().filter(|_| forward);
    let initial = views.initial_state.as_ref().filter(|_| forward);
    let present = Present::bits(&[
        (bias.is_some(), Present::BIAS),
        (initial.is_some(), Present::INITIAL),
        (pass.dy.is_some(), Present::DY),
        (pass.residual.is_some(), Present::RESIDUAL),
        (pass.dfinal.is_some(), Present::DFINAL),
    ]);
    let activation = if forward { problem.activation.code() } else { 0 };
    let mut operands = views.operands();
    operands.extend([pass.source, pass.target]);
    // One binding serves dy and the residual: never both.
    let other = pass.dy.or(pass.residual);
    operands.extend(other);
    operands.extend(pass.dfinal);
    let largest = problem.length + problem.width + 2 * (MAX_TILES * THREADS + TAP_BLOCK) * OUTPUTS;
    let address = address_type("causal_conv1d", &operands, largest, limits)?;
    let vectorized: Vec<&Operand> = [pass.source, pass.target].into_iter().chain(other).collect();
    let access = AccessWidth::of(problem.layout, &vectorized);
    let operations = 2.0 * (tiles_per_threadgroup * THREADS * OUTPUTS * (problem.width + 16)) as f64;
    let tile = WideTile {
        layout: problem.layout,
        shift: access.shift(pass.start, problem.width),
        unroll: limits.unroll,
    };
    for dispatch in dispatches(problem.batch * threadgroups * groups, operations, limits) {
        let work = WideWorkLaunch {
            lane_bits: lanes.ilog2(),
            tiles,
            tiles_per_threadgroup,
            threadgroups,
            channel_groups: groups,
            source_first: pass.source_first,
            target_first: if forward { 0 } else { first },
            start: pass.start,
            steps,
            reversed: u32::from(pass.reversed),
        };
        let params = ConvParamsLaunch { activation, ..problem.params(first, channels, present) };
        let width = access.elements();
        // SAFETY: contract in `args`; the kernel masks rows, steps, taps and columns. Vectors of `width` are
        // aligned in source, target and `other` (`AccessWidth::of`).
        unsafe {
            tiled_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS as u32),
                address,
                width,
                pass.source.buffer_arg(width),
                initial.unwrap_or(pass.source).tensor_arg(),
                views.weight.tensor_arg(),
                bias.unwrap_or(&views.weight).tensor_arg(),
                other.unwrap_or(&views.x).buffer_arg(width),
                pass.dfinal.unwrap_or(&views.x).tensor_arg(),
                pass.target.buffer_arg(width),
                params,
                strides(pass.source),
                strides(other.unwrap_or(&views.x)),
                strides(pass.target),
                work,
                dispatch.span(),
                tile,
                pass.source.dtype.elem(),
                problem.weight_dtype.elem(),
                problem.state_dtype.elem(),
                problem.dtype.elem(),
                pass.target.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn tiled_kernel<S: Float, W: Float, H: Float, X: Float, Y: Float, N: Size>(
    source: &[Vector<S, N>],
    initial: &Tensor<H>,
    weight: &Tensor<W>,
    bias: &Tensor<W>,
    other: &[Vector<X, N>],
    dfinal: &Tensor<H>,
    target: &mut [Vector<Y, N>],
    params: ConvParams,
    source_strides: Strides,
    other_strides: Strides,
    target_strides: Strides,
    work: WideWork,
    span: Span,
    #[comptime] tile: WideTile,
    #[define(S)] _source_dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
    #[define(X)] _dtype: ElemType,
    #[define(Y)] _target_dtype: ElemType,
) {
    // Uniform exit before the barriers.
    if span.is_idle() {
        terminate!();
    }
    let rest = span.index() / work.threadgroups;
    let first_tile = (span.index() - rest * work.threadgroups) * work.tiles_per_threadgroup;
    let b = rest / work.channel_groups;
    let (lanes, rows) = (1u32 << work.lane_bits, comptime!(THREADS as u32) >> work.lane_bits);
    let steps_of_tile = (lanes * comptime!(OUTPUTS as u32)) as usize;
    let first_row = (rest - b * work.channel_groups) * rows as usize;

    let mut columns = Shared::<[Quad]>::new_slice(comptime!(SECTIONS * COLUMN_PITCH));
    let mut taps = Shared::<[Quad]>::new_slice(comptime!(SECTIONS * TAP_PITCH));
    let staged = comptime!(tile.staged_vectors());
    let row_vectors = lanes + comptime!(SECTION_HALO as u32);
    let (row, lane) = (UNIT_POS >> work.lane_bits, UNIT_POS & (lanes - 1u32));
    let offsets = SharedOffsets {
        columns: row * row_vectors + lane,
        factors: row * comptime!(TAP_ROW as u32),
        column_pitch: comptime!(COLUMN_PITCH),
        factor_pitch: comptime!(TAP_PITCH),
        shift: comptime!(tile.shift),
        short: comptime!(!tile.unroll),
    };
    // The row and lane for which a thread accesses memory: consecutive along the layout's contiguous axis.
    let mut memory_row = row;
    let mut memory_lane = lane;
    if comptime!(tile.layout == Conv1dLayout::Btc) {
        memory_row = UNIT_POS & (rows - 1u32);
        memory_lane = UNIT_POS / rows;
    }
    let c = first_row + memory_row as usize;
    let channel = work.source_first + c;
    let mut line = StagedRow {
        b,
        c: channel,
        exists: c < params.channels,
        row: b * source_strides.b + channel * source_strides.c,
        stride: source_strides.t,
        // Before step 0 this wraps around to past the last step.
        t: work.start + first_tile * steps_of_tile - params.history() - comptime!(tile.shift),
        base: memory_row * row_vectors,
        vectors: comptime!(SECTIONS as u32) * lanes
            + comptime!((TAP_BLOCK / 4 + usize::from(tile.shift > 0)) as u32),
        pitch: comptime!(COLUMN_PITCH),
    };

    let own = first_row + row as usize;
    let mut offset = 0.0f32;
    if params.has(Present::BIAS) && own < params.channels {
        offset = f32::cast_from(bias[(params.first + own) * bias.stride(0)]);
    }
    let sums = Registers::<f32>::new(OUTPUTS, offset);
    let mut prologue = Sequence::<Vector<S, N>>::new();
    if comptime!(tile.prefetches()) {
        load(source, &params, &line, &mut prologue, memory_lane, lanes, staged);
    }
    let held = Registers::<Vector<S, N>>::from_values(&prologue);
    let raw_taps = Registers::<W>::new(4usize, W::from_int(0));
    let blocks = params.width.div_ceil(TAP_BLOCK);
    let end_tile = min(first_tile + work.tiles_per_threadgroup, work.tiles);
    let mut first_step = first_tile * steps_of_tile;
    let mut k = 0usize;
    let iterations = (end_tile - first_tile) * blocks;
    for iteration in 0..iterations {
        let mut raw = held.values();
        if comptime!(tile.unroll && !tile.prefetches()) {
            load(source, &params, &line, &mut raw, memory_lane, lanes, staged);
        }
        // A single block of taps is loaded once for all tiles.
        let new_taps = iteration == 0 || blocks > 1;
        if new_taps {
            raw_taps.set_all(&load_taps(weight, &params, &work, first_row, k, UNIT_POS));
        }
        // All threads have read the previous columns and taps.
        sync_cube();
        if comptime!(tile.unroll) {
            store(&raw, initial, &params, &line, &mut columns, memory_lane, lanes, staged, true);
            for iteration in comptime!(staged as u32)..(line.vectors + lanes - 1u32) >> work.lane_bits {
                let first = memory_lane + iteration * lanes;
                let mut raw = Sequence::<Vector<S, N>>::new();
                load(source, &params, &line, &mut raw, first, lanes, 1usize);
                store(&raw, initial, &params, &line, &mut columns, first, lanes, 1usize, true);
            }
        } else {
            copy(source, initial, &params, &line, &mut columns, memory_lane, lanes, true);
        }
        if new_taps {
            store_taps(&raw_taps.values(), &params, first_row, k, UNIT_POS, rows, &mut taps);
            for iteration in 1..(rows * comptime!(TAP_BLOCK as u32 / 4)).div_ceil(comptime!(THREADS as u32)) {
                let index = iteration * comptime!(THREADS as u32) + UNIT_POS;
                let raw_taps = load_taps(weight, &params, &work, first_row, k, index);
                store_taps(&raw_taps, &params, first_row, k, index, rows, &mut taps);
            }
        }
        sync_cube();
        let count = min(params.width - k, TAP_BLOCK) as u32;
        let ends = k + TAP_BLOCK >= params.width;
        let tile_first = first_step;
        k = select(ends, 0usize, k + TAP_BLOCK);
        first_step = select(ends, first_step + steps_of_tile, first_step);
        line.t = work.start + first_step + k - params.history() - comptime!(tile.shift);
        if comptime!(tile.prefetches()) && iteration + 1 == iterations {
            // No further tile: mask the loads.
            line.t = params.length;
        }
        let mut next = Sequence::<Vector<S, N>>::new();
        if comptime!(tile.prefetches()) {
            load(source, &params, &line, &mut next, memory_lane, lanes, staged);
        }
        accumulate(&columns, &taps, &offsets, count, &sums);
        if ends {
            let (first, count, lane) = (tile_first, work.steps, memory_lane);
            let output = OutputRow { b, c, first, count, lane, lanes, written: 0u32 };
            sync_cube();
            store_sums(&mut columns, &offsets, &sums);
            sync_cube();
            if line.exists {
                write_sums(
                    &columns,
                    &line,
                    other,
                    &other_strides,
                    dfinal,
                    target,
                    &target_strides,
                    &params,
                    &work,
                    &output,
                    tile.unroll,
                );
            }
            #[unroll]
            for i in 0..OUTPUTS {
                sums.set(i, offset);
            }
        }
        held.set_all(&next);
    }
}
