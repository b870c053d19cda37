//! dw and db: partial sums of tiles of steps, which [`super::super::weight`] adds.
//!
//! ```text
//!   dw[c,k] = sum over b, t of g[b,c,t] * column(b, c, t + k)      g: the gradient before the activation
//!
//!   a cube    1 channel x 2048 steps (`[B, C, T]`), 8 x 256 (`[B, T, C]`); up to 128 taps; tiles in turn
//!   a unit    16 neighbouring taps of a channel, a share of its steps (see products.rs; g: the factors)
//! ```
//!
//! At the end units of the same taps are added, a tree of fixed shape. In `[B, C, T]` the next tile is read
//! while one is multiplied. In `[B, T, C]` neighbouring units read the 8 channels of a sector of memory.
//!
//! Bytes per cube and tile: its columns and 128 more of every channel, its gradients. Operations per element:
//! W multiply-adds, up to 16 for fewer taps. Barriers: two per tile. Shared memory: up to 12.6 KiB for
//! columns, 8.6 KiB for gradients. Measured on an H200 for 128 taps over `[1, 4096, 8192]` in f32: 596 us for
//! the whole backward pass in `[B, C, T]`. Any strides, any width; declined: sequence ids.

use super::Memory;
use super::products::{OUTPUTS, PARTS, Places, Quad, UNITS, add_products, part, put_sums};
use super::stage::{Line, put, read};
use crate::causal_conv1d::args::{Rows, Strides, at3, strides};
use crate::causal_conv1d::call::Call;
use crate::causal_conv1d::problem::{CausalConv1dProblem, Conv1dLayout};
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use crate::registers::Registers;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Taps of a cube at most.
const TAPS: usize = 128;

/// Tiles of a cube at most: of each a unit adds up to 128 terms.
const TILES: usize = 8;

/// What of a kernel is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    layout: Conv1dLayout,
    /// Steps between the beginning of a vector and the first column.
    shift: usize,
}

impl Tile {
    /// Channels of a tile: those that lie together in a sector of memory.
    fn rows(self) -> usize {
        match self.layout {
            Conv1dLayout::Bct => 1,
            Conv1dLayout::Btc => 8,
        }
    }

    /// Units of a channel, and steps of the tile.
    fn row_units(self) -> usize {
        UNITS / self.rows()
    }

    fn steps(self) -> usize {
        self.row_units() * OUTPUTS
    }

    /// Whether a tile is read while the one before it is multiplied. In `[B, T, C]` reads are elements, too
    /// many to wait in registers.
    fn ahead(self) -> bool {
        self.layout == Conv1dLayout::Bct
    }

    /// Vectors of a channel in a part of the columns (those of the taps and one of the shift beside the
    /// tile's), in a part of the gradients (one keeps channels apart), and those of the parts.
    fn column_row(self) -> usize {
        self.row_units() + TAPS / OUTPUTS + 1
    }

    fn gradient_row(self) -> usize {
        self.row_units() + 1
    }

    fn column_part(self) -> usize {
        part(self.rows() * self.column_row())
    }

    fn gradient_part(self) -> usize {
        part(self.rows() * self.gradient_row())
    }

    /// Vectors that a unit reads of a tile's columns.
    fn together(self) -> usize {
        PARTS + (TAPS / 4 + usize::from(self.shift > 0)).div_ceil(self.row_units())
    }
}

/// How taps and steps are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Units along the taps, cubes along them.
    lanes: usize,
    blocks: usize,
    /// Tiles of a row, and of all rows for a cube.
    tiles: usize,
    items_per_cube: usize,
    parts: usize,
}

impl Cut {
    pub(crate) fn of(problem: &CausalConv1dProblem, limits: &Limits) -> Self {
        let tile = Tile { layout: problem.layout, shift: 0 };
        let lanes = problem.width.div_ceil(OUTPUTS).next_power_of_two().min(TAPS / OUTPUTS);
        let blocks = problem.width.div_ceil(lanes * OUTPUTS);
        let tiles = problem.length.div_ceil(tile.steps());
        let items = (problem.batch * tiles).max(1);
        let bytes = 4 * (problem.channels * (problem.width + 1)) as u64;
        let affordable = usize::try_from(limits.workspace_bytes / bytes.max(1)).unwrap_or(usize::MAX);
        let wanted = (4 * limits.cubes_in_flight).div_ceil(problem.channels.div_ceil(tile.rows()) * blocks);
        // No unit adds more terms in a row than those of a few tiles.
        let few = items.div_ceil(wanted.clamp(1, items)).min(TILES);
        let items_per_cube = few.max(items.div_ceil(affordable.max(1)));
        Self { lanes, blocks, tiles, items_per_cube, parts: items.div_ceil(items_per_cube) }
    }

    /// Turns of the loops of a unit.
    pub(crate) fn turns(&self) -> usize {
        self.items_per_cube * 40
    }
}

/// The workspace `[parts, C, W + 1]` of a cut.
pub(crate) fn workspace(client: &Client, problem: &CausalConv1dProblem, cut: Cut) -> Operand {
    Operand::empty(client, &[cut.parts, problem.channels, problem.width + 1], FloatType::F32)
}

/// How a cube's work is cut, as the kernel sees it.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Share {
    lanes: u32,
    blocks: usize,
    parts: usize,
    tiles: usize,
    items: usize,
    items_per_cube: usize,
}

/// Partial sums of channels `first..first + channels` from `g[b, c - first, t]`.
pub(crate) fn launch_partials(
    call: &Call,
    g: &Operand,
    (first, channels): (usize, usize),
    (cut, partials): (Cut, &Operand),
) -> Result<(), ConvError> {
    let &Call { client, limits, problem, ref views } = call;
    let mut operands = views.operands();
    operands.extend([g, partials]);
    let largest = problem.length + problem.width + 4 * UNITS * OUTPUTS;
    let address = address_type("causal_conv1d", &operands, largest, limits)?;
    let items = problem.batch * cut.tiles;
    let memory = Memory::of(problem.layout, &[&views.x, g]);
    let width = memory.elements();
    let tile = Tile { layout: problem.layout, shift: memory.shift(0, problem.width) };
    let operations = 2.0 * (cut.items_per_cube * UNITS * OUTPUTS * (cut.lanes * OUTPUTS + 8)) as f64;
    for dispatch in dispatches(channels.div_ceil(tile.rows()) * cut.blocks * cut.parts, operations, limits) {
        let share = ShareLaunch::new(
            cut.lanes as u32,
            cut.blocks,
            cut.parts,
            cut.tiles.max(1),
            items,
            cut.items_per_cube,
        );
        let extents = problem.rows(first, channels, call.present(&[]));
        // SAFETY: channels, steps, taps and columns are checked in the kernel; the conformance run puts
        // guards around every buffer.
        unsafe {
            tiled_weight_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS as u32),
                address,
                width,
                views.x.buffer_arg(width),
                views.initial_or_x().tensor_arg(),
                g.buffer_arg(width),
                partials.tensor_arg(),
                extents,
                strides(&views.x),
                strides(g),
                share,
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
    extents: Rows,
    x_strides: Strides,
    g_strides: Strides,
    share: Share,
    span: Span,
    #[comptime] tile: Tile,
    #[define(X)] _dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
    #[define(G)] _gradient_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let rest = span.index() / share.parts;
    let part = span.index() - rest * share.parts;
    let group = rest / share.blocks;
    let block = rest - group * share.blocks;
    let lanes = share.lanes;
    let taps = lanes * comptime!(OUTPUTS as u32);
    let first_tap = block * taps as usize;

    let mut columns = Shared::<[Quad]>::new_slice(comptime!(PARTS * tile.column_part()));
    let mut gradients = Shared::<[Quad]>::new_slice(comptime!(PARTS * tile.gradient_part()));
    let sums = Registers::<f32>::new(OUTPUTS, 0.0f32);
    let mut bias = 0.0f32;
    let (together, rows, row_units) =
        comptime!((tile.together(), tile.rows() as u32, tile.row_units() as u32));
    // A channel's units of the same taps share the steps of a tile: `taps` each.
    let (row, lane) = (UNIT_POS / row_units, UNIT_POS % row_units);
    let own_first = lane / lanes * taps;
    let places = Places {
        columns: row * comptime!(tile.column_row() as u32) + lane,
        factors: row * comptime!(tile.gradient_row() as u32) + lane / lanes * lanes,
        column_part: comptime!(tile.column_part()),
        factor_part: comptime!(tile.gradient_part()),
        shift: comptime!(tile.shift),
    };
    // The row and lane for which a unit reads memory.
    let (memory_row, memory_lane) = (UNIT_POS % rows, UNIT_POS / rows);
    let first_row = group * rows as usize;
    let own = Own { c: first_row + memory_row as usize, row: memory_row, first_tap, taps };

    let begin = part * share.items_per_cube;
    let end = min((part + 1) * share.items_per_cube, share.items);
    let mut early = Sequence::<Vector<X, N>>::new();
    let mut early_g = Sequence::<Vector<G, N>>::new();
    if comptime!(tile.ahead()) {
        let line = columns_of(&share, &x_strides, &extents, begin, &own, tile);
        read(x, &extents, &line, &mut early, memory_lane, row_units, together);
        let line = gradients_of(&share, &g_strides, &extents, begin, &own, tile);
        read(g, &extents, &line, &mut early_g, memory_lane, row_units, PARTS);
    }
    let held = Registers::<Vector<X, N>>::from_values(&early);
    let held_g = Registers::<Vector<G, N>>::from_values(&early_g);
    for item in begin..end {
        let line = columns_of(&share, &x_strides, &extents, item, &own, tile);
        let line_g = gradients_of(&share, &g_strides, &extents, item, &own, tile);
        let mut raw = held.values();
        let mut raw_g = held_g.values();
        if comptime!(!tile.ahead()) {
            read(x, &extents, &line, &mut raw, memory_lane, row_units, together);
            read(g, &extents, &line_g, &mut raw_g, memory_lane, row_units, PARTS);
        }
        // The tile before has been read.
        sync_cube();
        put(&raw, initial, &extents, &line, &mut columns, memory_lane, row_units, together, true);
        bias += put(&raw_g, initial, &extents, &line_g, &mut gradients, memory_lane, row_units, PARTS, false);
        sync_cube();
        let mut next = Sequence::<Vector<X, N>>::new();
        let mut next_g = Sequence::<Vector<G, N>>::new();
        if comptime!(tile.ahead()) {
            // After the last tile nothing is left to be read.
            let mut line = columns_of(&share, &x_strides, &extents, item + 1, &own, tile);
            line.exists = line.exists && item + 1 < end;
            read(x, &extents, &line, &mut next, memory_lane, row_units, together);
            let mut line = gradients_of(&share, &g_strides, &extents, item + 1, &own, tile);
            line.exists = line.exists && item + 1 < end;
            read(g, &extents, &line, &mut next_g, memory_lane, row_units, PARTS);
        }
        // The row may end before the unit's steps do.
        let first = line_g.t + own_first as usize;
        let left = max(extents.length, first) - first;
        let count = min(left, taps as usize) as u32;
        add_products(&columns, &gradients, &places, count, &sums);
        held.set_all(&next);
        held_g.set_all(&next_g);
    }
    sync_cube();
    put_sums(&mut columns, &places, &sums);
    let mut quad = Quad::new(0.0f32);
    quad.insert(0usize, bias);
    gradients[(memory_row * row_units + memory_lane) as usize] = quad;
    sync_cube();
    #[unroll]
    for level in 1..comptime!(tile.row_units().ilog2() + 1) {
        let half = comptime!(tile.row_units() as u32 >> level);
        if lane < half {
            let other = gradients[(UNIT_POS + half) as usize];
            gradients[UNIT_POS as usize] += other;
            if half >= lanes {
                #[unroll]
                for m in 0..PARTS {
                    let at = places.columns + comptime!((m * tile.column_part()) as u32);
                    let other = columns[(at + half) as usize];
                    columns[at as usize] += other;
                }
            }
        }
        sync_cube();
    }
    let c = first_row + row as usize;
    let channel = extents.first + c;
    if lane < lanes && c < extents.channels {
        #[unroll]
        for m in 0..PARTS {
            let quad = columns[places.columns as usize + comptime!(m * tile.column_part())];
            #[unroll]
            for i in 0..4usize {
                let tap = first_tap + lane as usize * OUTPUTS + comptime!(4 * m + i);
                if tap < extents.width {
                    let at = at3(&*partials, part, channel, tap);
                    partials[at] = quad.extract(i);
                }
            }
        }
    }
    if lane == 0u32 && block == 0 && c < extents.channels {
        let at = at3(&*partials, part, channel, extents.width);
        partials[at] = gradients[UNIT_POS as usize].extract(0usize);
    }
}

/// What a unit brings to shared memory.
#[derive(CubeType, Clone, Copy)]
struct Own {
    /// Channel, counted from the first of the launch and of the cube.
    c: usize,
    row: u32,
    /// The cube's taps.
    first_tap: usize,
    taps: u32,
}

/// The columns of an item's tile.
#[cube]
fn columns_of(
    share: &Share,
    strides: &Strides,
    extents: &Rows,
    item: usize,
    own: &Own,
    #[comptime] tile: Tile,
) -> Line {
    let b = item / share.tiles;
    let first = (item - b * share.tiles) * tile.steps();
    let c = extents.first + own.c;
    Line {
        b,
        c,
        exists: own.c < extents.channels,
        row: b * strides.b + c * strides.c,
        stride: strides.t,
        // Wraps before the first step, to beyond the last.
        t: own.first_tap + first - extents.history() - tile.shift,
        place: own.row * comptime!(tile.column_row() as u32),
        vectors: comptime!((tile.steps() / 4 + usize::from(tile.shift > 0)) as u32) + own.taps / 4u32,
        part: comptime!(tile.column_part()),
    }
}

/// Its gradients.
#[cube]
fn gradients_of(
    share: &Share,
    strides: &Strides,
    extents: &Rows,
    item: usize,
    own: &Own,
    #[comptime] tile: Tile,
) -> Line {
    let b = item / share.tiles;
    Line {
        b,
        c: own.c,
        exists: own.c < extents.channels,
        row: b * strides.b + own.c * strides.c,
        stride: strides.t,
        t: (item - b * share.tiles) * tile.steps(),
        place: own.row * comptime!(tile.gradient_row() as u32),
        vectors: comptime!(tile.steps() as u32 / 4),
        part: comptime!(tile.gradient_part()),
    }
}
