//! y, the gradient before the activation, dx and the gradient of the initial state: one kernel, since each is
//!
//! ```text
//! out[b,c,o] = bias[c] + sum over k < W of factor[c,k] * column(b, c, start + o + k)
//! ```
//!
//! over columns `[initial state | source]`: the source is x with the taps in order and `start` 0 for the
//! first two, the gradient before the activation with the taps reversed for the others, `start` W-1 for dx
//! and 0 for the initial state. A gradient's columns before the first step and beyond the last are 0.
//!
//! ```text
//!   a cube    `rows` channels x up to 4 tiles of `16 lanes` steps; 128 taps at a time, which stay where
//!             there are no more
//!   a unit    16 neighbouring steps of a channel (see products.rs)
//! ```
//!
//! In `[B, C, T]` a tile's columns are read while the one before it is multiplied. In `[B, T, C]` a cube has
//! 8 channels, and neighbouring units read and write neighbouring channels. Results leave through shared
//! memory, neighbours together (straight from registers: as fast, 286 us).
//!
//! Bytes per tile and 128 taps: its steps and 128 more of every row, y once; per cube the taps. Operations
//! per element: W multiply-adds; per 512 of a unit's also 16 vectors of shared memory and the turn of a loop.
//! Barriers: two per tile and 128 taps, two more per tile. Shared memory: 12.6 KiB for columns, 4.6 KiB for
//! taps. Measured on an H200 for 128 taps over `[1, 4096, 8192]`: 285 us in `[B, C, T]`, 340 us in
//! `[B, T, C]`, f16 280 and 340. Any strides, any width; declined: sequence ids.

use super::Memory;
use super::products::{OUTPUTS, PARTS, Places, Quad, UNITS, add_products, part, put_sums};
use super::results::{Results, take_results, write_results};
use super::stage::{Line, put, read};
use super::taps::{put_taps, read_taps};
use crate::causal_conv1d::args::{Present, Rows, RowsLaunch, Strides, strides};
use crate::causal_conv1d::call::Call;
use crate::causal_conv1d::problem::{CausalConv1dProblem, Conv1dLayout};
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::operand::{Operand, address_type};
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Taps that are in shared memory at a time.
pub(super) const BLOCK: usize = 128;

/// Channels of a cube at most.
pub(super) const ROWS: usize = 8;

/// Tiles of a cube at most: the first is read while nothing is multiplied.
const TILES: usize = 4;

/// Vectors of a row beside those of its own steps: the columns of the block's taps, and one of the shift. And
/// those of a part.
const BESIDE: usize = BLOCK / 4 + 1;
const PART_BESIDE: usize = BESIDE.div_ceil(PARTS);

/// Vectors of a part of the columns, of a row of taps, one of which keeps rows apart, and of a part of all
/// taps.
const COLUMN_PART: usize = part(UNITS + ROWS * PART_BESIDE);
pub(super) const TAP_ROW: usize = BLOCK / 4 / PARTS + 1;
pub(super) const TAP_PART: usize = part(ROWS * TAP_ROW);

/// What a launch computes, of channels `first..first + channels`.
pub(crate) struct Sums<'a> {
    /// `[B, C, T]`, or of those channels only.
    pub(crate) source: &'a Operand,
    /// Its channel that belongs to `first`.
    pub(crate) source_first: usize,
    pub(crate) reversed: bool,
    pub(crate) start: usize,
    pub(crate) dy: Option<&'a Operand>,
    pub(crate) residual: Option<&'a Operand>,
    pub(crate) dfinal: Option<&'a Operand>,
    pub(crate) channels: (usize, usize),
    /// `[B, C, ..]`, of which those channels are written, or `[B, channels, ..]` where that is y before its
    /// activation.
    pub(crate) target: &'a Operand,
}

/// How steps and channels are shared out.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct TiledShare {
    /// The units of a row are so many bits.
    lane_bits: u32,
    /// Tiles of a row, those of a cube, and cubes along the steps and along the channels.
    tiles: usize,
    tiles_per_cube: usize,
    cubes: usize,
    groups: usize,
    source_first: usize,
    pub(super) target_first: usize,
    pub(super) start: usize,
    /// Results of a row.
    steps: usize,
    pub(super) reversed: u32,
}

/// What of a kernel is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    layout: Conv1dLayout,
    /// Steps between the beginning of a vector and the first column.
    shift: usize,
}

impl Tile {
    /// Whether a tile's columns are read while the one before it is multiplied. In `[B, T, C]` reads are
    /// elements, too many to wait in registers.
    fn ahead(self) -> bool {
        self.layout == Conv1dLayout::Bct
    }

    /// Vectors of columns that a unit reads at once: those of its steps and one beside them, which is all of
    /// a long row; in `[B, T, C]` all of a row.
    fn together(self) -> usize {
        match self.layout {
            Conv1dLayout::Bct => PARTS + 1,
            Conv1dLayout::Btc => PARTS + (BLOCK / 4).div_ceil(UNITS / ROWS),
        }
    }
}

/// The most turns of the loops of a unit.
pub(crate) fn turns(problem: &CausalConv1dProblem) -> usize {
    // A cube of `[B, T, C]` has the fewest steps.
    let tiles = problem.length.div_ceil(UNITS / ROWS * OUTPUTS).clamp(1, TILES);
    problem.width.div_ceil(BLOCK) * tiles * 48 + 32
}

pub(crate) fn launch(call: &Call, sums: &Sums) -> Result<(), ConvError> {
    let &Call { client, limits, problem, ref views } = call;
    let (first, channels) = sums.channels;
    let steps = sums.target.shape[2];
    let by_channels = problem.layout == Conv1dLayout::Btc;
    let lanes = if by_channels { UNITS / ROWS } else { steps.div_ceil(OUTPUTS).next_power_of_two() };
    let lanes = lanes.clamp(UNITS / ROWS, UNITS);
    let rows = UNITS / lanes;
    let (tiles, groups) = (steps.div_ceil(lanes * OUTPUTS), channels.div_ceil(rows));
    // Four cubes for each place on the device, as long as there are so many: the last of them leave few
    // places empty.
    let affordable = problem.batch * tiles * groups / (4 * limits.cubes_in_flight);
    let cubes = tiles.div_ceil(affordable.clamp(1, TILES));
    let tiles_per_cube = tiles.div_ceil(cubes.max(1));
    let forward = !sums.reversed;
    let bias = views.bias.as_ref().filter(|_| forward);
    let initial = views.initial_state.as_ref().filter(|_| forward);
    let present = Present::bits(&[
        (bias.is_some(), Present::BIAS),
        (initial.is_some(), Present::INITIAL),
        (sums.dy.is_some(), Present::DY),
        (sums.residual.is_some(), Present::RESIDUAL),
        (sums.dfinal.is_some(), Present::DFINAL),
    ]);
    let activation = if forward { problem.activation.code() } else { 0 };
    let mut operands = views.operands();
    operands.extend([sums.source, sums.target]);
    // dy, or the residual of y: never both.
    let other = sums.dy.or(sums.residual);
    operands.extend(other);
    operands.extend(sums.dfinal);
    let largest = problem.length + problem.width + 2 * (TILES * UNITS + BLOCK) * OUTPUTS;
    let address = address_type("causal_conv1d", &operands, largest, limits)?;
    let memory: Vec<&Operand> = [sums.source, sums.target].into_iter().chain(other).collect();
    let memory = Memory::of(problem.layout, &memory);
    let operations = 2.0 * (tiles_per_cube * UNITS * OUTPUTS * (problem.width + 16)) as f64;
    let tile = Tile { layout: problem.layout, shift: memory.shift(sums.start, problem.width) };
    for dispatch in dispatches(problem.batch * cubes * groups, operations, limits) {
        let share = TiledShareLaunch::new(
            lanes.ilog2(),
            tiles,
            tiles_per_cube,
            cubes,
            groups,
            sums.source_first,
            if forward { 0 } else { first },
            sums.start,
            steps,
            u32::from(sums.reversed),
        );
        let extents = RowsLaunch::new(
            problem.batch,
            first,
            channels,
            problem.length,
            problem.width,
            present,
            activation,
        );
        let width = memory.elements();
        // SAFETY: rows, steps, taps and columns are checked in the kernel; the conformance run puts guards
        // around every buffer.
        unsafe {
            tiled_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS as u32),
                address,
                width,
                sums.source.buffer_arg(width),
                initial.unwrap_or(sums.source).tensor_arg(),
                views.weight.tensor_arg(),
                bias.unwrap_or(&views.weight).tensor_arg(),
                other.unwrap_or(&views.x).buffer_arg(width),
                sums.dfinal.unwrap_or(&views.x).tensor_arg(),
                sums.target.buffer_arg(width),
                extents,
                strides(sums.source),
                strides(other.unwrap_or(&views.x)),
                strides(sums.target),
                share,
                dispatch.span(),
                tile,
                sums.source.dtype.elem(),
                problem.weight_dtype.elem(),
                problem.state_dtype.elem(),
                problem.dtype.elem(),
                sums.target.dtype.elem(),
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
    extents: Rows,
    source_strides: Strides,
    other_strides: Strides,
    target_strides: Strides,
    share: TiledShare,
    span: Span,
    #[comptime] tile: Tile,
    #[define(S)] _source_dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
    #[define(X)] _dtype: ElemType,
    #[define(Y)] _target_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let rest = span.index() / share.cubes;
    let first_tile = (span.index() - rest * share.cubes) * share.tiles_per_cube;
    let b = rest / share.groups;
    let (lanes, rows) = (1u32 << share.lane_bits, comptime!(UNITS as u32) >> share.lane_bits);
    let steps_of_tile = (lanes * comptime!(OUTPUTS as u32)) as usize;
    let first_row = (rest - b * share.groups) * rows as usize;

    let mut columns = Shared::<[Quad]>::new_slice(comptime!(PARTS * COLUMN_PART));
    let mut taps = Shared::<[Quad]>::new_slice(comptime!(PARTS * TAP_PART));
    let together = comptime!(tile.together());
    let row_vectors = lanes + comptime!(PART_BESIDE as u32);
    let (row, lane) = (UNIT_POS >> share.lane_bits, UNIT_POS & (lanes - 1u32));
    let places = Places {
        columns: row * row_vectors + lane,
        factors: row * comptime!(TAP_ROW as u32),
        column_part: comptime!(COLUMN_PART),
        factor_part: comptime!(TAP_PART),
        shift: comptime!(tile.shift),
    };
    // The row and lane for which a unit reads and writes memory: neighbours along the layout's contiguous
    // axis.
    let mut memory_row = row;
    let mut memory_lane = lane;
    if comptime!(tile.layout == Conv1dLayout::Btc) {
        memory_row = UNIT_POS & (rows - 1u32);
        memory_lane = UNIT_POS / rows;
    }
    let c = first_row + memory_row as usize;
    let channel = share.source_first + c;
    let mut line = Line {
        b,
        c: channel,
        exists: c < extents.channels,
        row: b * source_strides.b + channel * source_strides.c,
        stride: source_strides.t,
        // Wraps before the first step, to beyond the last.
        t: share.start + first_tile * steps_of_tile - extents.history() - comptime!(tile.shift),
        place: memory_row * row_vectors,
        vectors: comptime!(PARTS as u32) * lanes
            + comptime!((BLOCK / 4 + usize::from(tile.shift > 0)) as u32),
        part: comptime!(COLUMN_PART),
    };

    let own = first_row + row as usize;
    let mut offset = 0.0f32;
    if extents.has(Present::BIAS) && own < extents.channels {
        offset = f32::cast_from(bias[(extents.first + own) * bias.stride(0)]);
    }
    let sums = Registers::<f32>::new(OUTPUTS, offset);
    let mut early = Sequence::<Vector<S, N>>::new();
    if comptime!(tile.ahead()) {
        read(source, &extents, &line, &mut early, memory_lane, lanes, together);
    }
    let held = Registers::<Vector<S, N>>::from_values(&early);
    let raw_taps = Registers::<W>::new(4usize, W::from_int(0));
    let blocks = extents.width.div_ceil(BLOCK);
    let end_tile = min(first_tile + share.tiles_per_cube, share.tiles);
    let mut first_step = first_tile * steps_of_tile;
    let mut k = 0usize;
    let turns = (end_tile - first_tile) * blocks;
    for turn in 0..turns {
        let mut raw = held.values();
        if comptime!(!tile.ahead()) {
            read(source, &extents, &line, &mut raw, memory_lane, lanes, together);
        }
        // The taps of a single block stay for all tiles.
        let fresh = turn == 0 || blocks > 1;
        if fresh {
            raw_taps.set_all(&read_taps(weight, &extents, &share, first_row, k, UNIT_POS));
        }
        // The columns and taps before have been read.
        sync_cube();
        put(&raw, initial, &extents, &line, &mut columns, memory_lane, lanes, together, true);
        for turn in comptime!(together as u32)..(line.vectors + lanes - 1u32) >> share.lane_bits {
            let first = memory_lane + turn * lanes;
            let mut raw = Sequence::<Vector<S, N>>::new();
            read(source, &extents, &line, &mut raw, first, lanes, 1usize);
            put(&raw, initial, &extents, &line, &mut columns, first, lanes, 1usize, true);
        }
        if fresh {
            put_taps(&raw_taps.values(), &extents, first_row, k, UNIT_POS, rows, &mut taps);
            for turn in 1..(rows * comptime!(BLOCK as u32 / 4)).div_ceil(comptime!(UNITS as u32)) {
                let index = turn * comptime!(UNITS as u32) + UNIT_POS;
                let raw_taps = read_taps(weight, &extents, &share, first_row, k, index);
                put_taps(&raw_taps, &extents, first_row, k, index, rows, &mut taps);
            }
        }
        sync_cube();
        let count = min(extents.width - k, BLOCK) as u32;
        let ends = k + BLOCK >= extents.width;
        let tile_first = first_step;
        k = select(ends, 0usize, k + BLOCK);
        first_step = select(ends, first_step + steps_of_tile, first_step);
        line.t = share.start + first_step + k - extents.history() - comptime!(tile.shift);
        if comptime!(tile.ahead()) && turn + 1 == turns {
            // Nothing is left to be read.
            line.t = extents.length;
        }
        let mut next = Sequence::<Vector<S, N>>::new();
        if comptime!(tile.ahead()) {
            read(source, &extents, &line, &mut next, memory_lane, lanes, together);
        }
        add_products(&columns, &taps, &places, count, &sums);
        if ends {
            let own = Results { b, c, first: tile_first, count: share.steps, lane: memory_lane, lanes };
            sync_cube();
            put_sums(&mut columns, &places, &sums);
            sync_cube();
            if line.exists {
                let values = take_results::<N>(&columns, &line, &own);
                write_results(
                    &values,
                    other,
                    &other_strides,
                    dfinal,
                    target,
                    &target_strides,
                    &extents,
                    &share,
                    &own,
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
