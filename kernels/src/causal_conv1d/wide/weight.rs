//! dw and db: split-K partial sums over tiles of steps, reduced by
//! [`looped::weight`](crate::causal_conv1d::looped::weight).
//!
//! ```text
//!   dw[c,k] = sum over b, t of g[b,c,t] * column(b, c, t + k)      g: the pre-activation gradient
//!
//!   threadgroup (128 threads): up to 128 taps of 1 channel (`[B, C, T]`) or 8 channels (`[B, T, C]`)
//!
//!   tile, per channel   columns   | steps              | taps + shift |    steps: 2048 or 256
//!                       gradients | steps              |
//!   thread              16 consecutive taps; of the tile as many steps as the threadgroup has taps
//!                       (see products.rs, with the gradients as factors)
//! ```
//!
//! A threadgroup accumulates over its tiles; then threads of the same taps are added by a tree reduction of
//! fixed shape. `[B, C, T]`: the next tile is prefetched during the products. `[B, T, C]`: consecutive
//! threads load the 8 channels of a memory sector.
//!
//! Bytes per tile: the columns and up to 128 more of every channel, the gradients. FLOP: 2 x 2048 per tap (at
//! least 16 taps). Barriers: two per tile. Shared memory: up to 12.6 KiB of columns, 8.6 KiB of gradients.
//! Any strides, any width. Declined: sequence ids.

use super::AccessWidth;
use super::products::{OUTPUTS, Quad, SECTIONS, SharedOffsets, THREADS, accumulate, store_sums};
use super::stage::{StagedRow, copy, load, store};
use super::weight_split::{WeightSplit, WideWeightTile};
use crate::causal_conv1d::args::{ConvParams, Strides, offset3, strides};
use crate::causal_conv1d::call::Conv1dCall;
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::operand::{Operand, address_type};
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// [`WeightSplit`] as a kernel argument.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct WideWeightWork {
    lanes: u32,
    tap_blocks: usize,
    slices: usize,
    tiles: usize,
    items: usize,
    items_per_threadgroup: usize,
}

/// Partial sums of channels `first..first + channels` from `g[b, c - first, t]`.
pub(crate) fn launch_partials(
    call: &Conv1dCall,
    g: &Operand,
    (first, channels): (usize, usize),
    (split, partials): (WeightSplit, &Operand),
) -> Result<(), ConvError> {
    let &Conv1dCall { client, limits, problem, ref views } = call;
    let mut operands = views.operands();
    operands.extend([g, partials]);
    let largest = problem.length + problem.width + 4 * THREADS * OUTPUTS;
    let address = address_type("causal_conv1d", &operands, largest, limits)?;
    let items = problem.batch * split.tiles;
    let access = AccessWidth::of(problem.layout, &[&views.x, g]);
    let width = access.elements();
    let tile = WideWeightTile {
        layout: problem.layout,
        shift: access.shift(0, problem.width),
        unroll: limits.unroll,
    };
    let operations =
        2.0 * (split.items_per_threadgroup * THREADS * OUTPUTS * (split.lanes * OUTPUTS + 8)) as f64;
    for dispatch in
        dispatches(channels.div_ceil(tile.rows()) * split.tap_blocks * split.slices, operations, limits)
    {
        let work = WideWeightWorkLaunch {
            lanes: split.lanes as u32,
            tap_blocks: split.tap_blocks,
            slices: split.slices,
            tiles: split.tiles.max(1),
            items,
            items_per_threadgroup: split.items_per_threadgroup,
        };
        let params = problem.params(first, channels, call.present(&[]));
        // SAFETY: contract in `args`; the kernel masks channels, steps, taps and columns. Vectors of `width`
        // are aligned in x and g (`AccessWidth::of`).
        unsafe {
            tiled_weight_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS as u32),
                address,
                width,
                views.x.buffer_arg(width),
                views.initial_or_x().tensor_arg(),
                g.buffer_arg(width),
                partials.tensor_arg(),
                params,
                strides(&views.x),
                strides(g),
                work,
                dispatch.span(),
                tile,
                problem.dtype.elem(),
                problem.state_dtype.elem(),
                g.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn tiled_weight_kernel<X: Float, H: Float, G: Float, N: Size>(
    x: &[Vector<X, N>],
    initial: &Tensor<H>,
    g: &[Vector<G, N>],
    partials: &mut Tensor<f32>,
    params: ConvParams,
    x_strides: Strides,
    g_strides: Strides,
    work: WideWeightWork,
    span: Span,
    #[comptime] tile: WideWeightTile,
    #[define(X)] _dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
    #[define(G)] _gradient_dtype: ElemType,
) {
    // Uniform exit before the barriers.
    if span.is_idle() {
        terminate!();
    }
    let rest = span.index() / work.slices;
    let slice = span.index() - rest * work.slices;
    let group = rest / work.tap_blocks;
    let tap_block = rest - group * work.tap_blocks;
    let lanes = work.lanes;
    let taps = lanes * comptime!(OUTPUTS as u32);
    let first_tap = tap_block * taps as usize;

    let mut columns = Shared::<[Quad]>::new_slice(comptime!(SECTIONS * tile.column_pitch()));
    let mut gradients = Shared::<[Quad]>::new_slice(comptime!(SECTIONS * tile.gradient_pitch()));
    let sums = Registers::<f32>::new(OUTPUTS, 0.0f32);
    let mut bias = 0.0f32;
    let (staged, rows, row_threads) =
        comptime!((tile.staged_vectors(), tile.rows() as u32, tile.row_threads() as u32));
    // The threads of the same taps divide the steps of a tile: `taps` each.
    let (row, lane) = (UNIT_POS / row_threads, UNIT_POS % row_threads);
    let own_first = lane / lanes * taps;
    let offsets = SharedOffsets {
        columns: row * comptime!(tile.column_row() as u32) + lane,
        factors: row * comptime!(tile.gradient_row() as u32) + lane / lanes * lanes,
        column_pitch: comptime!(tile.column_pitch()),
        factor_pitch: comptime!(tile.gradient_pitch()),
        shift: comptime!(tile.shift),
        short: comptime!(!tile.unroll),
    };
    // The row and lane for which a thread loads from memory.
    let (memory_row, memory_lane) = (UNIT_POS % rows, UNIT_POS / rows);
    let first_row = group * rows as usize;
    let own = RowAssignment { c: first_row + memory_row as usize, row: memory_row, first_tap, taps };

    let begin = slice * work.items_per_threadgroup;
    let end = min((slice + 1) * work.items_per_threadgroup, work.items);
    let mut prologue = Sequence::<Vector<X, N>>::new();
    let mut prologue_g = Sequence::<Vector<G, N>>::new();
    if comptime!(tile.prefetches()) {
        let line = columns_of(&work, &x_strides, &params, begin, &own, tile);
        load(x, &params, &line, &mut prologue, memory_lane, row_threads, staged);
        let line = gradients_of(&work, &g_strides, &params, begin, &own, tile);
        load(g, &params, &line, &mut prologue_g, memory_lane, row_threads, SECTIONS);
    }
    let held = Registers::<Vector<X, N>>::from_values(&prologue);
    let held_g = Registers::<Vector<G, N>>::from_values(&prologue_g);
    for item in begin..end {
        let line = columns_of(&work, &x_strides, &params, item, &own, tile);
        let line_g = gradients_of(&work, &g_strides, &params, item, &own, tile);
        let mut raw = held.values();
        let mut raw_g = held_g.values();
        if comptime!(tile.unroll && !tile.prefetches()) {
            load(x, &params, &line, &mut raw, memory_lane, row_threads, staged);
            load(g, &params, &line_g, &mut raw_g, memory_lane, row_threads, SECTIONS);
        }
        // All threads have read the previous tile.
        sync_cube();
        if comptime!(tile.unroll) {
            store(&raw, initial, &params, &line, &mut columns, memory_lane, row_threads, staged, true);
            bias += store(
                &raw_g,
                initial,
                &params,
                &line_g,
                &mut gradients,
                memory_lane,
                row_threads,
                SECTIONS,
                false,
            );
        } else {
            copy(x, initial, &params, &line, &mut columns, memory_lane, row_threads, true);
            bias += copy(g, initial, &params, &line_g, &mut gradients, memory_lane, row_threads, false);
        }
        sync_cube();
        let mut next = Sequence::<Vector<X, N>>::new();
        let mut next_g = Sequence::<Vector<G, N>>::new();
        if comptime!(tile.prefetches()) {
            // After the last tile: mask the loads.
            let mut line = columns_of(&work, &x_strides, &params, item + 1, &own, tile);
            line.exists = line.exists && item + 1 < end;
            load(x, &params, &line, &mut next, memory_lane, row_threads, staged);
            let mut line = gradients_of(&work, &g_strides, &params, item + 1, &own, tile);
            line.exists = line.exists && item + 1 < end;
            load(g, &params, &line, &mut next_g, memory_lane, row_threads, SECTIONS);
        }
        // The row may end within the thread's steps.
        let first = line_g.t + own_first as usize;
        let left = max(params.length, first) - first;
        let count = min(left, taps as usize) as u32;
        accumulate(&columns, &gradients, &offsets, count, &sums);
        held.set_all(&next);
        held_g.set_all(&next_g);
    }
    sync_cube();
    store_sums(&mut columns, &offsets, &sums);
    let mut quad = Quad::new(0.0f32);
    quad.insert(0usize, bias);
    gradients[(memory_row * row_threads + memory_lane) as usize] = quad;
    sync_cube();
    #[unroll]
    for level in 1..comptime!(tile.row_threads().ilog2() + 1) {
        let half = comptime!(tile.row_threads() as u32 >> level);
        if lane < half {
            let other = gradients[(UNIT_POS + half) as usize];
            gradients[UNIT_POS as usize] += other;
            if half >= lanes {
                #[unroll]
                for m in 0..SECTIONS {
                    let at = offsets.columns + comptime!((m * tile.column_pitch()) as u32);
                    let other = columns[(at + half) as usize];
                    columns[at as usize] += other;
                }
            }
        }
        sync_cube();
    }
    let c = first_row + row as usize;
    let channel = params.first + c;
    if lane < lanes && c < params.channels {
        #[unroll]
        for m in 0..SECTIONS {
            let quad = columns[offsets.columns as usize + comptime!(m * tile.column_pitch())];
            #[unroll]
            for i in 0..4usize {
                let tap = first_tap + lane as usize * OUTPUTS + comptime!(4 * m + i);
                if tap < params.width {
                    let at = offset3(&*partials, slice, channel, tap);
                    partials[at] = quad.extract(i);
                }
            }
        }
    }
    if lane == 0u32 && tap_block == 0 && c < params.channels {
        let at = offset3(&*partials, slice, channel, params.width);
        partials[at] = gradients[UNIT_POS as usize].extract(0usize);
    }
}

/// The row that a thread stages, and the threadgroup's taps.
#[derive(CubeType, Clone, Copy)]
struct RowAssignment {
    /// Channel, relative to the first of the launch.
    c: usize,
    /// Channel, relative to the first of the threadgroup.
    row: u32,
    /// The threadgroup's taps.
    first_tap: usize,
    taps: u32,
}

/// The columns of an item's tile, as a row to stage.
#[cube]
fn columns_of(
    work: &WideWeightWork,
    strides: &Strides,
    params: &ConvParams,
    item: usize,
    own: &RowAssignment,
    #[comptime] tile: WideWeightTile,
) -> StagedRow {
    let b = item / work.tiles;
    let first = (item - b * work.tiles) * tile.steps();
    let c = params.first + own.c;
    StagedRow {
        b,
        c,
        exists: own.c < params.channels,
        row: b * strides.b + c * strides.c,
        stride: strides.t,
        // Before step 0 this wraps around to past the last step.
        t: own.first_tap + first - params.history() - tile.shift,
        base: own.row * comptime!(tile.column_row() as u32),
        vectors: comptime!((tile.steps() / 4 + usize::from(tile.shift > 0)) as u32) + own.taps / 4u32,
        pitch: comptime!(tile.column_pitch()),
    }
}

/// The gradients of an item's tile, as a row to stage.
#[cube]
fn gradients_of(
    work: &WideWeightWork,
    strides: &Strides,
    params: &ConvParams,
    item: usize,
    own: &RowAssignment,
    #[comptime] tile: WideWeightTile,
) -> StagedRow {
    let b = item / work.tiles;
    StagedRow {
        b,
        c: own.c,
        exists: own.c < params.channels,
        row: b * strides.b + own.c * strides.c,
        stride: strides.t,
        t: (item - b * work.tiles) * tile.steps(),
        base: own.row * comptime!(tile.gradient_row() as u32),
        vectors: comptime!(tile.steps() as u32 / 4),
        pitch: comptime!(tile.gradient_pitch()),
    }
}
