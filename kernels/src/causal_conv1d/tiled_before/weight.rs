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
//! gradients. Operations per element: W multiply-adds, up to 16 for fewer taps. Shared memory: 8.8 KiB for columns, 8.3 KiB for
//! gradients. Any strides, any width; declined: sequence ids. In `[B, T, C]` a cube's elements are a row of channels apart.

use super::products::{Line, OUTPUTS, Quad, UNITS, add_products, put_sums, stage};
use crate::causal_conv1d::args::{Rows, at3};
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
const STEPS: usize = UNITS * OUTPUTS;

/// Taps of a cube at most.
const TAPS: usize = 128;

/// Vectors of a quarter of the gradients, and of the columns: one more than needed, so that quarters begin at other banks.
const GRADIENT_STRIDE: usize = UNITS + 1;
const COLUMN_STRIDE: usize = UNITS + TAPS / OUTPUTS + 1;

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
        let lanes = problem.width.div_ceil(OUTPUTS).next_power_of_two().min(TAPS / OUTPUTS);
        let blocks = problem.width.div_ceil(lanes * OUTPUTS);
        let tiles = problem.length.div_ceil(STEPS);
        let items = (problem.batch * tiles).max(1);
        let bytes = 4 * (problem.channels * (problem.width + 1)) as u64;
        let affordable = usize::try_from(limits.workspace_bytes / bytes.max(1)).unwrap_or(usize::MAX);
        let wanted = (4 * limits.cubes_in_flight).div_ceil(problem.channels * blocks);
        let items_per_cube = items.div_ceil(wanted.min(affordable).clamp(1, items));
        Self { lanes, blocks, tiles, items_per_cube, parts: items.div_ceil(items_per_cube) }
    }
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
    let operations = 2.0 * (cut.items_per_cube * STEPS * (cut.lanes * OUTPUTS + 8)) as f64;
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
                CubeDim::new_1d(UNITS as u32),
                address,
                views.x.tensor_arg(),
                views.initial_or_x().tensor_arg(),
                g.tensor_arg(),
                partials.tensor_arg(),
                extents,
                share,
                dispatch.span(),
                problem.dtype.elem(),
                g.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn tiled_weight_kernel<X: Float, G: Float>(
    x: &Tensor<X>,
    initial: &Tensor<X>,
    g: &Tensor<G>,
    partials: &mut Tensor<f32>,
    extents: Rows,
    share: Share,
    span: Span,
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
    let taps = lanes * comptime!(OUTPUTS as u32);
    let first_tap = block * taps as usize;

    let mut columns = Shared::<[Quad]>::new_slice(comptime!(4 * COLUMN_STRIDE));
    let mut gradients = Shared::<[Quad]>::new_slice(comptime!(4 * GRADIENT_STRIDE));
    let sums = Cells::<f32>::new(OUTPUTS, 0.0f32);
    #[unroll]
    for i in 0..OUTPUTS {
        sums.set(i, 0.0f32);
    }
    let mut bias = 0.0f32;
    // Units of the same taps share the steps of a tile: `taps` each.
    let row = UNIT_POS / lanes;
    let own_first = row * taps;

    let end = min((part + 1) * share.items_per_cube, share.items);
    for item in part * share.items_per_cube..end {
        let b = item / share.tiles;
        let first = (item - b * share.tiles) * STEPS;
        // The tile before has been read.
        sync_cube();
        let line = Line {
            b,
            c: channel,
            exists: true,
            e: first_tap + first,
            base: 0u32,
            stride: comptime!(COLUMN_STRIDE as u32),
            vectors: comptime!(STEPS as u32 / 4) + taps / 4u32,
        };
        let units = comptime!(UNITS as u32);
        stage(x, initial, &extents, &line, &mut columns, UNIT_POS, units, comptime!(STEPS / 4 / UNITS));
        // At most a vector for every unit.
        stage(
            x,
            initial,
            &extents,
            &line,
            &mut columns,
            UNIT_POS + comptime!(STEPS as u32 / 4),
            units,
            1usize,
        );
        // Gradients are columns too, without a state before them.
        let line = Line {
            b,
            c,
            exists: true,
            e: first + extents.history(),
            base: 0u32,
            stride: comptime!(GRADIENT_STRIDE as u32),
            vectors: comptime!(STEPS as u32 / 4),
        };
        bias += stage(g, g, &extents, &line, &mut gradients, UNIT_POS, units, comptime!(STEPS / 4 / UNITS));
        sync_cube();
        // The row may end before the unit's steps do.
        let left = max(extents.length, first + own_first as usize) - first - own_first as usize;
        let count = min(left, taps as usize) as u32;
        let column_stride = comptime!(COLUMN_STRIDE as u32);
        let gradient_stride = comptime!(GRADIENT_STRIDE as u32);
        let own = row * lanes;
        add_products(&columns, UNIT_POS, column_stride, &gradients, own, gradient_stride, count, &sums);
    }
    sync_cube();
    put_sums(&mut columns, UNIT_POS, comptime!(COLUMN_STRIDE as u32), &sums);
    let mut quad = Quad::new(0.0f32);
    quad.insert(0usize, bias);
    gradients[UNIT_POS as usize] = quad;
    sync_cube();
    #[unroll]
    for level in 1..comptime!(UNITS.ilog2() + 1) {
        let half = comptime!(UNITS as u32 >> level);
        if UNIT_POS < half {
            let other = gradients[(UNIT_POS + half) as usize];
            gradients[UNIT_POS as usize] += other;
            if half >= lanes {
                #[unroll]
                for m in 0..4u32 {
                    let at = UNIT_POS + m * comptime!(COLUMN_STRIDE as u32);
                    let other = columns[(at + half) as usize];
                    columns[at as usize] += other;
                }
            }
        }
        sync_cube();
    }
    if UNIT_POS < lanes {
        #[unroll]
        for m in 0..4usize {
            let quad = columns[UNIT_POS as usize + comptime!(m * COLUMN_STRIDE)];
            #[unroll]
            for i in 0..4usize {
                let tap = first_tap + UNIT_POS as usize * OUTPUTS + comptime!(4 * m + i);
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
