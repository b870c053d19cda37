//! From problems and tensors to the kernel's arguments.

use super::kernel::{HEADS, SideLaunch, Source, SplitLaunch, UNITS, rotate_kernel};
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
    let (width, wide) = together(problem, &views, limits);
    let (vector, memory) = if wide { (4, WORD) } else { (width, problem.dtype.elem()) };
    let sides: Vec<Cut> = rotations.iter().map(|each| Cut::of(&each.problem, width)).collect();
    let (first, last) = (&rotations[0], &rotations[rotations.len() - 1]);
    let (source, elem) = source(&first.positions);
    let fractions = source == Source::Float;
    let digits = Digits::of(&problem, fractions);
    let shape = digits.table_shape(&problem);
    let operands: Vec<&Operand> = views.iter().flatten().collect();
    let positions = rotations.iter().map(|each| each.positions.extent()).max().unwrap_or(0);
    let cubes: usize = sides.iter().map(|side| side.cubes).sum();
    let largest = positions.max(shape.iter().product());
    let address = address_type("rope2d", &operands, largest, limits)?;
    let table = Operand::contiguous(table::get(client, &problem, fractions), &shape, FloatType::F32);
    let (views_last, pair) = (&views[views.len() - 1], rotations.len() == 2);
    for dispatch in dispatches(cubes, (HEADS * UNITS * width * 16) as f64, limits) {
        let split = SplitLaunch::new(
            problem.frequencies() as u32,
            digits.bits,
            digits.levels(),
            digits.nan_row(),
            digits.fraction_levels,
            if inverse { -1.0 } else { 1.0 },
        );
        // SAFETY: tokens and heads are checked in the kernel; table rows come from digits, which are below
        // their level's rows for every position, whatever its bits; the result may be the tokens' memory,
        // since a unit reads what it writes before it writes it.
        unsafe {
            rotate_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS as u32),
                address,
                vector,
                views[0][0].buffer_arg(width),
                pair.then(|| views_last[0].buffer_arg(width)).into(),
                first.positions.buffer_arg(&table),
                pair.then(|| last.positions.buffer_arg(&table)).into(),
                table.buffer_arg(vector),
                views[0][1].buffer_arg(width),
                pair.then(|| views_last[1].buffer_arg(width)).into(),
                sides[0].launch(first, &views[0]),
                sides[sides.len() - 1].launch(last, views_last),
                split,
                sides[0].cubes,
                dispatch.span(),
                pair,
                wide,
                source,
                problem.dtype.elem(),
                memory,
                elem,
            );
        }
    }
    Ok(())
}

/// How the vectors of a tensor of tokens are shared out.
struct Cut {
    lanes: usize,
    groups: usize,
    cubes: usize,
}

impl Cut {
    fn of(problem: &Rope2dProblem, width: usize) -> Self {
        let lanes = problem.head_dim / 2 / width;
        let groups = problem.heads.div_ceil(HEADS);
        let cubes = (problem.batch * problem.tokens * groups * lanes).div_ceil(UNITS);
        Self { lanes, groups, cubes }
    }

    fn launch(&self, rotation: &Rotation, [tokens, out]: &[Operand; 2]) -> SideLaunch {
        let problem = &rotation.problem;
        let heads_first = problem.layout == RopeLayout::Bnhd;
        let both = [problem.tokens as u32, self.groups as u32];
        let [fast, slow] = if heads_first { [both[1], both[0]] } else { both };
        let (strides, columns, start) = match &rotation.positions {
            Positions::Index(positions) => (positions.strides.clone(), 1, 0),
            Positions::Float(positions) => (positions.strides.clone(), 1, 0),
            Positions::Grid(grid) => (vec![0; 3], grid.columns.max(1), grid.first),
        };
        SideLaunch::new(
            self.lanes as u32,
            fast,
            slow,
            u32::from(heads_first),
            problem.batch as u32,
            problem.heads as u32,
            self.groups as u32,
            problem.prefix as u32,
            tokens.strides[0],
            tokens.strides[1],
            tokens.strides[2],
            tokens.strides[3],
            out.strides[0],
            out.strides[1],
            out.strides[2],
            out.strides[3],
            strides[0],
            strides[1],
            strides[2],
            columns as u32,
            start,
            problem.rotated as u32,
            problem.head_dim as u32,
        )
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

/// Elements that are read at once, and whether as words: the most that u, v and the rest begin aligned to in
/// every head of every tensor.
fn together(problem: Rope2dProblem, views: &[[Operand; 2]], limits: &Limits) -> (usize, bool) {
    let copied = (problem.head_dim - problem.rotated) / 2;
    let aligned = |count: usize| {
        problem.frequencies().is_multiple_of(count)
            && copied.is_multiple_of(count)
            && views.iter().flatten().all(|operand| {
                let start = operand.handle.offset_start.unwrap_or(0);
                operand.strides[3] == 1
                    && operand.strides[..3].iter().all(|stride| stride.is_multiple_of(count))
                    && start.is_multiple_of((count * operand.dtype.size()) as u64)
            })
    };
    match () {
        () if limits.halves_in_words && problem.dtype.size() == 2 && aligned(8) => (8, true),
        () if aligned(4) => (4, false),
        () => (1, false),
    }
}

/// What the kernel reads positions from, and their type.
fn source(positions: &Positions) -> (Source, ElemType) {
    match positions {
        Positions::Index(positions) => (Source::Index, positions.dtype.elem()),
        Positions::Float(_) => (Source::Float, FloatType::F32.elem()),
        Positions::Grid(_) => (Source::Grid, IndexType::I32.elem()),
    }
}

impl Positions<'_> {
    fn extent(&self) -> usize {
        match self {
            Self::Index(positions) => positions.extent(),
            Self::Float(positions) => positions.extent(),
            Self::Grid(_) => 0,
        }
    }

    /// The tensor as a kernel argument; a grid has none and gets one that is not read.
    fn buffer_arg(&self, other: &Operand) -> BufferArg {
        match self {
            Self::Index(positions) => positions.buffer_arg(),
            Self::Float(positions) => positions.buffer_arg(1),
            Self::Grid(_) => other.buffer_arg(1),
        }
    }
}
