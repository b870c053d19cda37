//! From problems and tensors to the kernel's arguments.

use super::kernel::{HEADS, PositionSource, RotationArgsLaunch, THREADS, TableLayoutLaunch, rotate_kernel};
use super::table::{self, Digits};
use super::{Positions, Rope2dProblem, RopeLayout, Rotation};
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::half_words::WORD;
use crate::index_operand::IndexType;
use crate::launch::dispatches;
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Launches one or two rotations of the same base, factor, head dimension and types.
pub(super) fn launch(
    client: &Client,
    limits: &Limits,
    rotations: &[Rotation],
    inverse: bool,
) -> Result<(), ConvError> {
    let problem = rotations[0].problem;
    let views: Vec<[Operand; 2]> = rotations
        .iter()
        .map(|each| [each.tokens, each.out].map(|operand| token_major(operand, each.problem.layout)))
        .collect();
    let (width, packed) = vector_width(problem, &views, limits);
    let (vector, memory) = if packed { (4, WORD) } else { (width, problem.dtype.elem()) };
    let work: Vec<RotationWork> =
        rotations.iter().map(|each| RotationWork::of(&each.problem, width)).collect();
    let (first, last) = (&rotations[0], &rotations[rotations.len() - 1]);
    let (source, elem) = source(&first.positions);
    let fractions = source == PositionSource::Float;
    let digits = Digits::of(&problem, fractions);
    let shape = digits.table_shape(&problem);
    let operands: Vec<&Operand> = views.iter().flatten().collect();
    let positions = rotations.iter().map(|each| each.positions.extent()).max().unwrap_or(0);
    let threadgroups: usize = work.iter().map(|each| each.threadgroups).sum();
    let largest = positions.max(shape.iter().product());
    let address = address_type("rope2d", &operands, largest, limits)?;
    let table = Operand::contiguous(table::get(client, &problem, fractions), &shape, FloatType::F32);
    let (views_last, pair) = (&views[views.len() - 1], rotations.len() == 2);
    for dispatch in dispatches(threadgroups, (HEADS * THREADS * width * 16) as f64, limits) {
        let layout = TableLayoutLaunch {
            frequencies: problem.frequencies() as u32,
            bits: digits.bits,
            levels: digits.levels(),
            nan_row: digits.nan_row(),
            fraction_levels: digits.fraction_levels,
            sign: if inverse { -1.0 } else { 1.0 },
        };
        // SAFETY: `rotate_all` has checked shapes and types. The kernel masks tokens and heads; digits are
        // below their level's rows for every position, whatever its bits; the result may overwrite the
        // tokens, because a thread loads its elements before it stores them.
        unsafe {
            rotate_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS as u32),
                address,
                vector,
                views[0][0].buffer_arg(width),
                pair.then(|| views_last[0].buffer_arg(width)).into(),
                first.positions.buffer_arg(&table),
                pair.then(|| last.positions.buffer_arg(&table)).into(),
                table.buffer_arg(vector),
                views[0][1].buffer_arg(width),
                pair.then(|| views_last[1].buffer_arg(width)).into(),
                work[0].launch(first, &views[0]),
                work[work.len() - 1].launch(last, views_last),
                layout,
                work[0].threadgroups,
                dispatch.span(),
                pair,
                packed,
                source,
                problem.dtype.elem(),
                memory,
                elem,
            );
        }
    }
    Ok(())
}

/// The grid of one tensor of tokens: lanes per head, groups of heads, threadgroups.
struct RotationWork {
    lanes: usize,
    groups: usize,
    threadgroups: usize,
}

impl RotationWork {
    fn of(problem: &Rope2dProblem, width: usize) -> Self {
        let lanes = problem.head_dim / 2 / width;
        let groups = problem.heads.div_ceil(HEADS);
        let threadgroups = (problem.batch * problem.tokens * groups * lanes).div_ceil(THREADS);
        Self { lanes, groups, threadgroups }
    }

    fn launch(&self, rotation: &Rotation, [tokens, out]: &[Operand; 2]) -> RotationArgsLaunch {
        let problem = &rotation.problem;
        let heads_first = problem.layout == RopeLayout::Bnhd;
        let both = [problem.tokens as u32, self.groups as u32];
        let [fast, slow] = if heads_first { [both[1], both[0]] } else { both };
        let (strides, columns, start) = match &rotation.positions {
            Positions::Index(positions) => (positions.strides.clone(), 1, 0),
            Positions::Float(positions) => (positions.strides.clone(), 1, 0),
            Positions::Grid(grid) => (vec![0; 3], grid.columns.max(1), grid.first),
        };
        RotationArgsLaunch {
            lanes: self.lanes as u32,
            fast,
            slow,
            heads_first: u32::from(heads_first),
            batch: problem.batch as u32,
            heads: problem.heads as u32,
            groups: self.groups as u32,
            prefix: problem.prefix as u32,
            in_b: tokens.strides[0],
            in_n: tokens.strides[1],
            in_h: tokens.strides[2],
            in_d: tokens.strides[3],
            out_b: out.strides[0],
            out_n: out.strides[1],
            out_h: out.strides[2],
            out_d: out.strides[3],
            position_b: strides[0],
            position_n: strides[1],
            position_axis: strides[2],
            columns: columns as u32,
            first: start,
            rotated: problem.rotated as u32,
            head_dim: problem.head_dim as u32,
        }
    }
}

/// `operand` with its axes in `[B, N, H, D]` order.
fn token_major(operand: &Operand, layout: RopeLayout) -> Operand {
    let mut view = operand.clone();
    if layout == RopeLayout::Bhnd {
        view.shape.swap(1, 2);
        view.strides.swap(1, 2);
    }
    view
}

/// Elements per load, and whether they are packed 16-bit numbers: the widest to which u, v and the rest are
/// aligned in every head of every tensor.
fn vector_width(problem: Rope2dProblem, views: &[[Operand; 2]], limits: &Limits) -> (usize, bool) {
    let copied = (problem.head_dim - problem.rotated) / 2;
    let aligned = |count: usize| {
        copied.is_multiple_of(count)
            && views.iter().flatten().all(|operand| operand.has_vectors(3, problem.frequencies(), count))
    };
    match () {
        () if limits.halves_in_words && problem.dtype.size() == 2 && aligned(8) => (8, true),
        () if aligned(4) => (4, false),
        () => (1, false),
    }
}

/// The source of positions and their type.
fn source(positions: &Positions) -> (PositionSource, ElemType) {
    match positions {
        Positions::Index(positions) => (PositionSource::Index, positions.dtype.elem()),
        Positions::Float(_) => (PositionSource::Float, FloatType::F32.elem()),
        Positions::Grid(_) => (PositionSource::Grid, IndexType::I32.elem()),
    }
}

impl Positions<'_> {
    /// Elements that the positions' strides reach.
    fn extent(&self) -> usize {
        match self {
            Self::Index(positions) => positions.extent(),
            Self::Float(positions) => positions.extent(),
            Self::Grid(_) => 0,
        }
    }

    /// The tensor as a kernel argument; a grid has none and binds `other`, which is not read.
    fn buffer_arg(&self, other: &Operand) -> BufferArg {
        match self {
            Self::Index(positions) => positions.buffer_arg(),
            Self::Float(positions) => positions.buffer_arg(1),
            Self::Grid(_) => other.buffer_arg(1),
        }
    }
}
