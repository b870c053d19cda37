//! From problems and tensors to the kernel's arguments.

use super::angle::{AngleArgsLaunch, FLOAT32, GRID, INT32, INT64, LINE, VOLUME};
use super::args::{HeadArgsLaunch, RotationArgsLaunch};
use super::kernel::{ANGLES, HEADS, RotationConfig, THREADS, rotate_kernel};
use super::{Positions, RopeLayout, RopePairs, RopeProblem, Rotation, frequencies};
use crate::error::ConvError;
use crate::half_words::WORD;
use crate::index_operand::IndexType;
use crate::launch::dispatches;
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Groups of heads of a threadgroup at most: as many threads share a cell's angles.
const MOST_GROUPS: usize = 8;

/// Of the threads that a device holds at once, one in so many still keeps its memory busy.
const SHARE: usize = 2;

/// Rounds at most.
const MOST_ROUNDS: usize = 4;

/// How often a thread takes further heads for the cos and sin that it holds; `once`: groups of heads of one
/// round. They weigh twice as much next to packed 16-bit numbers: on the H200 rounds are 0.98 to 1.12 times
/// as fast there, 0.88 to 1.05 times in fp32 and slower for neighbours.
fn rounds(problem: &RopeProblem, cells: usize, once: usize, packed: bool, limits: &Limits) -> usize {
    if !packed || problem.angles.pairs == RopePairs::Neighbours {
        return 1;
    }
    (cells * once / (limits.cubes_in_flight * THREADS / SHARE).max(1)).clamp(1, once.clamp(1, MOST_ROUNDS))
}

/// Words of a table row.
const ROW: usize = 4;

/// Launches one or two rotations of the same angles, head dimension and types.
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
        rotations.iter().map(|each| RotationWork::of(&each.problem, width, packed, limits)).collect();
    let (first, last) = (&rotations[0], &rotations[rotations.len() - 1]);
    let operands: Vec<&Operand> = views.iter().flatten().collect();
    let table = Table { handle: frequencies::table(client, &problem), words: problem.rotated / 2 * ROW };
    let words: Vec<usize> = rotations.iter().map(|each| each.positions.words()).collect();
    let threadgroups: usize = work.iter().map(|each| each.threadgroups).sum();
    let largest = words.iter().copied().max().unwrap_or(0).max(table.words);
    let address = address_type("rope", &operands, largest, limits)?;
    let largest_rounds = work.iter().map(|each| each.rounds).max().unwrap_or(1);
    let (views_last, pair) = (&views[views.len() - 1], rotations.len() == 2);
    let [_, second, third, _] = problem.blocks();
    for dispatch in dispatches(threadgroups, (largest_rounds * HEADS * THREADS * width * 16) as f64, limits) {
        let head = HeadArgsLaunch {
            pairs: (problem.rotated / 2) as u32,
            second: second as u32,
            third: third as u32,
            head_dim: problem.head_dim as u32,
        };
        let angles = AngleArgsLaunch { inverse: u32::from(inverse), nan: f32::NAN.to_bits() };
        // SAFETY: `rotate_all` has checked shapes and types. The kernel clamps cells and heads, lanes of
        // pairs read their own rows of the table; the result may overwrite the tokens, because a thread
        // loads its elements before it stores them.
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
                table.rows_arg(),
                views[0][1].buffer_arg(width),
                pair.then(|| views_last[1].buffer_arg(width)).into(),
                work[0].launch(first, &views[0]),
                work[work.len() - 1].launch(last, views_last),
                head,
                angles,
                work[0].threadgroups,
                dispatch.span(),
                pair,
                RotationConfig {
                    packed,
                    neighbours: problem.angles.pairs == RopePairs::Neighbours,
                    prefetch: limits.unroll,
                },
                problem.dtype.elem(),
                memory,
            );
        }
    }
    Ok(())
}

/// The table of frequencies.
struct Table {
    handle: Handle,
    words: usize,
}

impl Table {
    fn rows_arg(&self) -> BufferArg {
        // SAFETY: the table has as many words, see `frequencies::table`.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.words / ROW) }
    }

    fn words_arg(&self) -> BufferArg {
        // SAFETY: as above.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.words) }
    }
}

/// The grid of one tensor of tokens.
struct RotationWork {
    lanes: usize,
    /// Cells of a threadgroup, and all.
    cells: usize,
    all_cells: usize,
    /// Groups of heads of a threadgroup, and all.
    own_groups: usize,
    groups: usize,
    rounds: usize,
    threadgroups: usize,
}

impl RotationWork {
    fn of(problem: &RopeProblem, width: usize, packed: bool, limits: &Limits) -> Self {
        let lanes = problem.head_dim / 2 / width;
        let all_cells = problem.batch * problem.tokens * lanes;
        let once = problem.heads.div_ceil(HEADS);
        let groups = once.div_ceil(rounds(problem, all_cells, once, packed, limits));
        // Evenly over the threadgroups, and so many that the angles of the cells fit.
        let own_groups =
            groups.div_ceil(groups.div_ceil(MOST_GROUPS)).max((THREADS * width).div_ceil(ANGLES));
        let cells = THREADS / own_groups;
        let groups = groups.next_multiple_of(own_groups);
        // As many rounds as these groups need, so that few threads reach beyond the last head.
        let rounds = once.div_ceil(groups);
        let threadgroups = all_cells.div_ceil(cells) * (groups / own_groups);
        Self { lanes, cells, all_cells, own_groups, groups, rounds, threadgroups }
    }

    fn launch(&self, rotation: &Rotation, [tokens, out]: &[Operand; 2]) -> RotationArgsLaunch {
        let problem = &rotation.problem;
        let heads_first = problem.layout == RopeLayout::Bnhd;
        let fast =
            if heads_first { self.groups / self.own_groups } else { self.all_cells.div_ceil(self.cells) };
        let places = rotation.positions.places();
        RotationArgsLaunch {
            lanes: self.lanes as u32,
            tokens: problem.tokens as u32,
            all_cells: self.all_cells as u32,
            cells: self.cells as u32,
            by_cells: self.cells as u32,
            fast: fast as u32,
            heads_first: u32::from(heads_first),
            heads: problem.heads as u32,
            groups: self.groups as u32,
            own_groups: self.own_groups as u32,
            rounds: self.rounds as u32,
            prefix: problem.prefix as u32,
            in_b: tokens.strides[0],
            in_n: tokens.strides[1],
            in_h: tokens.strides[2],
            in_d: tokens.strides[3],
            out_b: out.strides[0],
            out_n: out.strides[1],
            out_h: out.strides[2],
            out_d: out.strides[3],
            source: places.source,
            position_b: places.strides[0],
            position_n: places.strides[1],
            position_axis: places.strides[2],
            last_axis: problem.angles.count() as u32 - 1,
            columns: places.columns,
            rows: places.rows,
            first_0: places.first[0],
            first_1: places.first[1],
            first_2: places.first[2],
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

/// Elements per load, and whether they are packed 16-bit numbers: the widest to which the blocks of pairs and
/// the rest are aligned in every head of every tensor.
fn vector_width(problem: RopeProblem, views: &[[Operand; 2]], limits: &Limits) -> (usize, bool) {
    let copied = (problem.head_dim - problem.rotated) / 2;
    let aligned = |count: usize| {
        copied.is_multiple_of(count)
            && problem.blocks().iter().all(|first| first.is_multiple_of(count))
            && views.iter().flatten().all(|operand| operand.has_vectors(3, problem.rotated / 2, count))
    };
    match () {
        () if limits.halves_in_words && problem.dtype.size() == 2 && aligned(8) => (8, true),
        () if aligned(4) => (4, false),
        () => (1, false),
    }
}

/// More columns or rows than there are tokens.
const ENDLESS: usize = i32::MAX as usize;

/// Positions as arguments: a tensor's strides in words, or a grid.
struct Places {
    source: u32,
    strides: [usize; 3],
    columns: u32,
    rows: u32,
    first: [i32; 3],
}

impl Positions<'_> {
    fn places(&self) -> Places {
        let tensor = |source, strides: &[usize], words: usize| {
            let strides = std::array::from_fn(|axis| strides[axis] * words);
            Places { source, strides, columns: 1, rows: 1, first: [0; 3] }
        };
        let grid = |source, columns: usize, rows: usize, first| {
            let [columns, rows] = [columns, rows].map(|extent| extent.max(1) as u32);
            Places { source, strides: [0; 3], columns, rows, first }
        };
        match *self {
            Self::Index(positions) => {
                let source = if positions.dtype == IndexType::I32 { INT32 } else { INT64 };
                tensor(source, &positions.strides, positions.dtype.size() / 4)
            }
            Self::Float(positions) => tensor(FLOAT32, &positions.strides, 1),
            // All rows are of the first frame, all consecutive positions in the first row.
            Self::Grid(each) => grid(GRID, each.columns, ENDLESS, [each.first, each.first, 0]),
            Self::Volume(each) => grid(VOLUME, each.columns, each.rows, each.first),
            Self::Offset(first) => grid(LINE, ENDLESS, ENDLESS, [first; 3]),
        }
    }

    /// Words that the positions' strides reach.
    fn words(&self) -> usize {
        match self {
            Self::Index(positions) => positions.extent() * positions.dtype.size() / 4,
            Self::Float(positions) => positions.extent(),
            Self::Grid(_) | Self::Volume(_) | Self::Offset(_) => 0,
        }
    }

    /// The words as a kernel argument; without a tensor those of the table, which are not read.
    fn buffer_arg(&self, table: &Table) -> BufferArg {
        let handle = match self {
            Self::Index(positions) => &positions.handle,
            Self::Float(positions) => &positions.handle,
            Self::Grid(_) | Self::Volume(_) | Self::Offset(_) => return table.words_arg(),
        };
        // SAFETY: the strides describe the buffer (see `Operand`); integers of 64 bits are two words.
        unsafe { BufferArg::from_raw_parts(handle.clone(), self.words().max(1)) }
    }
}
