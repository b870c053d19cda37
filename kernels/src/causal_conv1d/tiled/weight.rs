//! dw and db: partial sums of tiles of steps, in the workspace of [`super::super::weight`], which adds the parts.
//!
//! ```text
//!   dw[c,k] = sum over b, t of g[b,c,t] * column(b, c, t + k)      g: the gradient before the activation
//!
//!   a cube    a channel and up to 128 taps; some tiles of 2048 steps, one after the other, in shared memory
//!   a unit    16 neighbouring taps and a share of the steps (see products.rs, with g for the factors)
//! ```
//!
//! At the end units of the same taps are added, a tree of fixed shape. Bytes per cube and tile: its columns and 128 more, its
//! gradients. Operations per element: W multiply-adds, up to 16 for fewer taps. Shared memory: 8.6 KiB for columns, 8.1 KiB for
//! gradients. Any strides, any width; declined: sequence ids. In `[B, T, C]` a cube's elements are a row of channels apart.

use super::Memory;
use super::products::{Places, Quad, add_products, part, put_sums};
use super::stage::{Line, put, read};
use crate::causal_conv1d::args::{Rows, Strides, at3, strides};
use crate::causal_conv1d::call::Call;
use crate::causal_conv1d::plan::check_turns;
use crate::causal_conv1d::problem::CausalConv1dProblem;
use crate::cells::Cells;
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::grid::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Steps of a tile.
const STEPS: usize = 2048;

/// Taps of a cube at most.
const TAPS: usize = 128;

/// What of a kernel is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    /// Sums of a unit, 16 or 32.
    outputs: usize,
    /// Steps between the beginning of a vector and the first column.
    shift: usize,
    /// Whether a tile is read while the one before it is multiplied.
    ahead: bool,
}

impl Tile {
    fn units(self) -> usize {
        STEPS / self.outputs
    }

    /// Vectors of a unit's sums, of a tile that it reads, and parts in which vectors lie in shared memory.
    fn parts(self) -> usize {
        self.outputs / 4
    }

    /// Vectors of a part of the gradients, and of the columns, which have those of the taps and one of the shift beside the tile's.
    fn gradient_part(self) -> usize {
        part(self.units(), self.parts())
    }

    fn column_part(self) -> usize {
        part(self.units() + TAPS / self.outputs + 1, self.parts())
    }

    /// Vectors that a unit reads of a tile's columns.
    fn together(self) -> usize {
        self.parts() + TAPS / 4 / self.units() + 1
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
        let outputs = outputs();
        let lanes = problem.width.div_ceil(outputs).next_power_of_two().min(TAPS / outputs);
        let blocks = problem.width.div_ceil(lanes * outputs);
        let tiles = problem.length.div_ceil(STEPS);
        let items = (problem.batch * tiles).max(1);
        let bytes = 4 * (problem.channels * (problem.width + 1)) as u64;
        let affordable = usize::try_from(limits.workspace_bytes / bytes.max(1)).unwrap_or(usize::MAX);
        let wanted = (4 * limits.cubes_in_flight).div_ceil(problem.channels * blocks);
        let items_per_cube = items.div_ceil(wanted.min(affordable).clamp(1, items));
        Self { lanes, blocks, tiles, items_per_cube, parts: items.div_ceil(items_per_cube) }
    }
}

/// WIP, to be removed.
fn outputs() -> usize {
    if super::wip_variant() == 4 { 32 } else { 16 }
}

/// The workspace `[parts, C, W + 1]` of a cut.
pub(crate) fn workspace(
    client: &Client,
    limits: &Limits,
    problem: &CausalConv1dProblem,
    cut: Cut,
) -> Result<Operand, ConvError> {
    check_turns("causal_conv1d", cut.parts.max(cut.items_per_cube * 40), limits)?;
    let shape = [cut.parts, problem.channels, problem.width + 1];
    Ok(Operand::empty(client, &shape, FloatType::F32))
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
    let largest = problem.length + problem.width + 4 * STEPS;
    let address = address_type("causal_conv1d", &operands, largest, limits)?;
    let items = problem.batch * cut.tiles;
    let memory = Memory::of(&[&views.x, g]);
    let width = memory.elements();
    let tile =
        Tile { outputs: outputs(), shift: memory.shift(0, problem.width), ahead: super::wip_variant() == 3 };
    let operations = 2.0 * (cut.items_per_cube * STEPS * (cut.lanes * outputs() + 8)) as f64;
    for dispatch in dispatches(channels * cut.blocks * cut.parts, operations, limits) {
        let share = ShareLaunch::new(
            cut.lanes as u32,
            cut.blocks,
            cut.parts,
            cut.tiles.max(1),
            items,
            cut.items_per_cube,
        );
        let extents = problem.rows(first, channels, call.present(&[]));
        // SAFETY: channels, steps, taps and columns are checked in the kernel; the conformance run puts guards around every
        // buffer.
        unsafe {
            tiled_weight_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(tile.units() as u32),
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
                g.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn tiled_weight_kernel<X: Float, G: Float, N: Size>(
    x: &[Vector<X, N>],
    initial: &Tensor<X>,
    g: &[Vector<G, N>],
    partials: &mut Tensor<f32>,
    extents: Rows,
    x_strides: Strides,
    g_strides: Strides,
    share: Share,
    span: Span,
    #[comptime] tile: Tile,
    #[define(X)] _dtype: ElemType,
    #[define(G)] _gradient_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let rest = span.cube() / share.parts;
    let part = span.cube() - rest * share.parts;
    let c = rest / share.blocks;
    let block = rest - c * share.blocks;
    let channel = extents.first + c;
    let lanes = share.lanes;
    let taps = lanes * comptime!(tile.outputs as u32);
    let first_tap = block * taps as usize;

    let mut columns = Shared::<[Quad]>::new_slice(comptime!(tile.parts() * tile.column_part()));
    let mut gradients = Shared::<[Quad]>::new_slice(comptime!(tile.parts() * tile.gradient_part()));
    let sums = Cells::<f32>::new(tile.outputs, 0.0f32);
    let mut bias = 0.0f32;
    let (together, parts, shift) = comptime!((tile.together(), tile.parts(), tile.shift));
    let (column_part, gradient_part) = comptime!((tile.column_part(), tile.gradient_part()));
    // Units of the same taps share the steps of a tile: `taps` each.
    let row = UNIT_POS / lanes;
    let own_first = row * taps;
    let places = Places {
        columns: UNIT_POS,
        factors: row * lanes,
        column_part,
        factor_part: gradient_part,
        outputs: comptime!(tile.outputs),
        shift: comptime!(tile.shift),
    };

    let begin = part * share.items_per_cube;
    let end = min((part + 1) * share.items_per_cube, share.items);
    let mut early = Sequence::<Vector<X, N>>::new();
    let mut early_g = Sequence::<Vector<G, N>>::new();
    let units = comptime!(tile.units() as u32);
    if comptime!(tile.ahead) {
        let line = columns_of(&share, &x_strides, &extents, begin, channel, first_tap, taps, shift);
        read(x, &extents, &line, &mut early, UNIT_POS, units, together);
        let line = gradients_of(&share, &g_strides, begin, c);
        read(g, &extents, &line, &mut early_g, UNIT_POS, units, parts);
    }
    let held = Cells::<Vector<X, N>>::of(&early);
    let held_g = Cells::<Vector<G, N>>::of(&early_g);
    for item in begin..end {
        let line = columns_of(&share, &x_strides, &extents, item, channel, first_tap, taps, shift);
        let line_g = gradients_of(&share, &g_strides, item, c);
        let mut raw = held.all();
        let mut raw_g = held_g.all();
        if comptime!(!tile.ahead) {
            read(x, &extents, &line, &mut raw, UNIT_POS, units, together);
            read(g, &extents, &line_g, &mut raw_g, UNIT_POS, units, parts);
        }
        // The tile before has been read.
        sync_cube();
        put(
            &raw,
            initial,
            &extents,
            &line,
            &mut columns,
            UNIT_POS,
            units,
            together,
            parts,
            column_part,
            true,
        );
        bias += put(
            &raw_g,
            initial,
            &extents,
            &line_g,
            &mut gradients,
            UNIT_POS,
            units,
            parts,
            parts,
            gradient_part,
            false,
        );
        sync_cube();
        let mut next = Sequence::<Vector<X, N>>::new();
        let mut next_g = Sequence::<Vector<G, N>>::new();
        if comptime!(tile.ahead) {
            // After the last tile its own reads once more.
            let item = min(item + 1, end - 1);
            let line = columns_of(&share, &x_strides, &extents, item, channel, first_tap, taps, shift);
            read(x, &extents, &line, &mut next, UNIT_POS, units, together);
            let line = gradients_of(&share, &g_strides, item, c);
            read(g, &extents, &line, &mut next_g, UNIT_POS, units, parts);
        }
        // The row may end before the unit's steps do.
        let first = line_g.t + own_first as usize;
        let left = max(extents.length, first) - first;
        let count = min(left, taps as usize) as u32;
        add_products(&columns, &gradients, &places, count, &sums);
        held.keep(&next);
        held_g.keep(&next_g);
    }
    sync_cube();
    put_sums(&mut columns, &places, &sums);
    let mut quad = Quad::new(0.0f32);
    quad.insert(0usize, bias);
    gradients[UNIT_POS as usize] = quad;
    sync_cube();
    #[unroll]
    for level in 1..comptime!(tile.units().ilog2() + 1) {
        let half = comptime!(tile.units() as u32 >> level);
        if UNIT_POS < half {
            let other = gradients[(UNIT_POS + half) as usize];
            gradients[UNIT_POS as usize] += other;
            if half >= lanes {
                #[unroll]
                for m in 0..parts {
                    let at = UNIT_POS + comptime!((m * tile.column_part()) as u32);
                    let other = columns[(at + half) as usize];
                    columns[at as usize] += other;
                }
            }
        }
        sync_cube();
    }
    if UNIT_POS < lanes {
        #[unroll]
        for m in 0..parts {
            let quad = columns[UNIT_POS as usize + comptime!(m * tile.column_part())];
            #[unroll]
            for i in 0..4usize {
                let tap = first_tap + UNIT_POS as usize * tile.outputs + comptime!(4 * m + i);
                if tap < extents.width {
                    let at = at3(&*partials, part, channel, tap);
                    partials[at] = quad.extract(i);
                }
            }
        }
    }
    if UNIT_POS == 0u32 && block == 0 {
        let at = at3(&*partials, part, channel, extents.width);
        partials[at] = gradients[0usize].extract(0usize);
    }
}

/// The columns of an item's tile.
#[cube]
#[allow(clippy::too_many_arguments)]
fn columns_of(
    share: &Share,
    strides: &Strides,
    extents: &Rows,
    item: usize,
    c: usize,
    first_tap: usize,
    taps: u32,
    #[comptime] shift: usize,
) -> Line {
    let b = item / share.tiles;
    let first = (item - b * share.tiles) * STEPS;
    Line {
        b,
        c,
        exists: true,
        row: b * strides.b + c * strides.c,
        stride: strides.t,
        // Wraps before the first step, to beyond the last.
        t: first_tap + first - extents.history() - shift,
        place: 0u32,
        vectors: comptime!(STEPS as u32 / 4 + 1) + taps / 4u32,
    }
}

/// Its gradients.
#[cube]
fn gradients_of(share: &Share, strides: &Strides, item: usize, c: usize) -> Line {
    let b = item / share.tiles;
    Line {
        b,
        c,
        exists: true,
        row: b * strides.b + c * strides.c,
        stride: strides.t,
        t: (item - b * share.tiles) * STEPS,
        place: 0u32,
        vectors: comptime!(STEPS as u32 / 4),
    }
}
