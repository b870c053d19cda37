//! The plan for widths up to 8: taps in registers, every tensor read and written once, the backward pass in one sweep.
//!
//! Kernels are compiled for 4 or 8 taps, of which a narrower filter uses the last; bias, activation and states are arguments
//! of the launch. What is compiled in: types, layout, whether there are ids, whether four neighbours are one vector.

mod access;
mod along_channels;
mod along_channels_backward;
mod along_time;
mod along_time_backward;
mod sums;

use super::Gradients;
use super::args::{Present, canonical};
use super::call::Call;
use super::plan::check_turns;
use super::problem::{CausalConv1dProblem, Conv1dLayout};
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::grid::dispatches;
use crate::index_operand::IndexOperand;
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use access::{SizesLaunch, StridesLaunch};
use along_channels::{ChannelShareLaunch, channels_forward_kernel};
use along_channels_backward::channels_backward_kernel;
use along_time::{Tile, TimeShareLaunch, forward_kernel};
use along_time_backward::backward_kernel;
use cubecl::prelude::*;

/// The widest filter along time.
pub(crate) const WIDTH: usize = 8;

/// The widest filter along channels, where a unit keeps the window of four of them.
pub(crate) const CHANNEL_WIDTH: usize = 4;

/// Units of a cube along time and along channels.
const TIME_UNITS: usize = 128;
const CHANNEL_UNITS: usize = 256;

/// Quads that a unit along time has per turn.
const TOGETHER: usize = 2;

/// The widest filter of a layout.
pub(crate) fn widest(layout: Conv1dLayout) -> usize {
    if layout == Conv1dLayout::Bct { WIDTH } else { CHANNEL_WIDTH }
}

/// Whether the width is served and extents fit the kernels' 32-bit coordinates.
pub(crate) fn serves(problem: &CausalConv1dProblem) -> bool {
    let extents = [problem.batch, problem.channels, problem.length];
    problem.width <= widest(problem.layout)
        && extents.iter().all(|extent| *extent < 1 << 30)
        && extents.iter().product::<usize>() < 1 << 36
}

/// How the work along time is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TimeCut {
    lanes: usize,
    groups: usize,
    /// Turns of a row, segments of a row, and turns of a segment.
    turns: usize,
    segments: usize,
    segment_turns: usize,
    items_per_cube: usize,
    parts: usize,
}

impl TimeCut {
    fn of(problem: &CausalConv1dProblem, limits: &Limits) -> Self {
        let quads = problem.length.div_ceil(4);
        let lanes = quads.div_ceil(TOGETHER).next_power_of_two().clamp(4, TIME_UNITS);
        let groups = problem.channels.div_ceil(TIME_UNITS / lanes);
        let turns = quads.div_ceil(lanes * TOGETHER);
        // Rows are cut where they are too few for the device; every cut costs a turn.
        let wanted = 16 * limits.cubes_in_flight;
        let segments = (wanted / (problem.batch * groups)).clamp(1, turns.div_ceil(4));
        let segment_turns = turns.div_ceil(segments);
        let segments = turns.div_ceil(segment_turns);
        let items = problem.batch * segments;
        // A few turns are done before another launch would have begun.
        let items_per_cube =
            if items * segment_turns <= 8 { items } else { (items * groups / wanted).clamp(1, items) };
        let items_per_cube = items_per_cube.max(items.div_ceil(affordable(problem, limits)));
        Self {
            lanes,
            groups,
            turns,
            segments,
            segment_turns,
            items_per_cube,
            parts: items.div_ceil(items_per_cube),
        }
    }

    fn launch(&self, problem: &CausalConv1dProblem, cuts: usize) -> TimeShareLaunch {
        TimeShareLaunch::new(
            self.lanes as u32,
            self.lanes as u32,
            (TIME_UNITS / self.lanes) as u32,
            self.groups as u32,
            cuts as u32,
            self.turns as u32,
            self.segment_turns as u32,
            (problem.batch * self.segments) as u32,
            self.items_per_cube as u32,
        )
    }
}

/// How the work along channels is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ChannelCut {
    lanes: usize,
    groups: usize,
    /// Blocks of 4 steps of a run, runs of a row of the batch.
    blocks: usize,
    runs: usize,
    parts: usize,
}

impl ChannelCut {
    fn of(problem: &CausalConv1dProblem, limits: &Limits) -> Self {
        let quads = problem.channels.div_ceil(4);
        let lanes = quads.next_power_of_two().clamp(1, 32);
        let groups = quads.div_ceil(lanes);
        let rows = CHANNEL_UNITS / lanes;
        let blocks_of_row = problem.length.div_ceil(4);
        let parts = |blocks: usize| (problem.batch * blocks_of_row.div_ceil(blocks)).div_ceil(rows);
        // Long runs read few steps twice; there should be enough of them for the device, and their sums have to fit.
        let wanted = limits.cubes_in_flight;
        let mut blocks = blocks_of_row.next_power_of_two().clamp(2, 32);
        while blocks > 2 && parts(blocks) * groups < wanted {
            blocks /= 2;
        }
        while parts(blocks) > affordable(problem, limits) && blocks < blocks_of_row {
            blocks *= 2;
        }
        Self { lanes, groups, blocks, runs: blocks_of_row.div_ceil(blocks), parts: parts(blocks) }
    }

    fn launch(&self, problem: &CausalConv1dProblem) -> ChannelShareLaunch {
        ChannelShareLaunch::new(
            self.lanes as u32,
            self.lanes as u32,
            (CHANNEL_UNITS / self.lanes) as u32,
            self.groups as u32,
            self.runs as u32,
            (problem.batch * self.runs) as u32,
            self.blocks as u32,
        )
    }
}

/// Parts of dw and db that the workspace holds, at least 1.
fn affordable(problem: &CausalConv1dProblem, limits: &Limits) -> usize {
    let bytes = 4 * (problem.channels * (problem.width + 1)) as u64;
    usize::try_from(limits.workspace_bytes / bytes.max(1)).unwrap_or(usize::MAX).max(1)
}

fn taps(problem: &CausalConv1dProblem) -> usize {
    if problem.width <= 4 { 4 } else { 8 }
}

/// What is compiled in. The branches of states are left out only where it matters: few kernels are compiled.
fn tile(call: &Call, units: usize, aligned: bool, states: bool) -> Tile {
    let packed = call.views.seq_idx.is_some();
    let states = states || packed || !aligned;
    Tile { taps: taps(call.problem), together: TOGETHER, units, packed, states }
}

fn sizes(call: &Call, present: u32) -> SizesLaunch {
    let Call { problem, views, .. } = call;
    SizesLaunch::new(
        problem.channels as u32,
        problem.length as u32,
        problem.width as u32,
        problem.activation.code(),
        present,
        views.weight.strides[0],
        views.weight.strides[1],
        views.bias.as_ref().map_or(0, |bias| bias.strides[0]),
    )
}

/// Strides of a tensor in `[B, C, T]` order.
fn strides(operand: &Operand) -> StridesLaunch {
    StridesLaunch::new(operand.strides[0], operand.strides[1], operand.strides[2])
}

/// Elements that are read at once: 4 where every run of so many along the layout's last axis lies aligned in all tensors.
fn together(layout: Conv1dLayout, operands: &[&Operand]) -> usize {
    let [line, across] = if layout == Conv1dLayout::Bct { [2, 1] } else { [1, 2] };
    let aligned = operands.iter().all(|operand| {
        let start = operand.handle.offset_start.unwrap_or(0);
        operand.strides[line] == 1
            && operand.shape[line].is_multiple_of(4)
            && [0, across].iter().all(|axis| operand.strides[*axis].is_multiple_of(4))
            && start.is_multiple_of(4 * operand.dtype.size() as u64)
    });
    if aligned { 4 } else { 1 }
}

/// Launches the forward pass; `y` is in `[B, C, T]` order.
pub(crate) fn forward(call: &Call, y: &Operand) -> Result<(), ConvError> {
    let &Call { client, limits, problem, ref views } = call;
    let (x, weight) = (&views.x, &views.weight);
    let bias = views.bias.as_ref().unwrap_or(weight);
    let initial = views.initial_state.as_ref().unwrap_or(x);
    let flags = Present::bits(&[
        (views.bias.is_some(), Present::BIAS),
        (views.initial_state.is_some(), Present::INITIAL),
    ]);
    let width = together(problem.layout, &[x, y]);
    let mut operands = views.operands();
    operands.push(y);
    let address = address_type("causal_conv1d", &operands, views.index_extent(), limits)?;
    let taps = taps(problem);
    let macs = |elements: usize| 2.0 * (elements * (taps + 8)) as f64;
    if problem.layout == Conv1dLayout::Bct {
        let cut = TimeCut::of(problem, limits);
        let tile = tile(call, TIME_UNITS, width == 4, views.initial_state.is_some());
        let cubes = problem.batch * cut.groups * cut.turns;
        for dispatch in dispatches(cubes, macs(TIME_UNITS * TOGETHER * 4), limits) {
            // SAFETY: rows and steps are checked in the kernel, places beside a row are not written and read as the tensor's
            // first; the conformance run puts guards around every buffer.
            unsafe {
                forward_kernel::launch_unchecked(
                    client,
                    dispatch.count(),
                    CubeDim::new_1d(TIME_UNITS as u32),
                    address,
                    width,
                    x.buffer_arg(width),
                    weight.buffer_arg(1),
                    bias.buffer_arg(1),
                    initial.tensor_arg(),
                    views.seq_idx.as_ref().map(IndexOperand::tensor_arg).into(),
                    y.buffer_arg(width),
                    sizes(call, flags),
                    strides(x),
                    strides(y),
                    cut.launch(problem, cut.turns),
                    dispatch.span(),
                    tile,
                    problem.dtype.elem(),
                    problem.weight_dtype.elem(),
                    views.index_elem(),
                );
            }
        }
    } else {
        let cut = ChannelCut::of(problem, limits);
        for dispatch in dispatches(cut.parts * cut.groups, macs(CHANNEL_UNITS * cut.blocks * 16), limits) {
            // SAFETY: as above.
            unsafe {
                channels_forward_kernel::launch_unchecked(
                    client,
                    dispatch.count(),
                    CubeDim::new_1d(CHANNEL_UNITS as u32),
                    address,
                    width,
                    x.buffer_arg(width),
                    weight.buffer_arg(1),
                    bias.buffer_arg(1),
                    initial.tensor_arg(),
                    views.seq_idx.as_ref().map(IndexOperand::tensor_arg).into(),
                    y.buffer_arg(width),
                    sizes(call, flags),
                    strides(x),
                    strides(y),
                    cut.launch(problem),
                    dispatch.span(),
                    tile(call, CHANNEL_UNITS, width == 4, views.initial_state.is_some()),
                    problem.dtype.elem(),
                    problem.weight_dtype.elem(),
                    views.index_elem(),
                );
            }
        }
    }
    Ok(())
}

/// Launches the backward pass of a problem with steps; `dy` is in `[B, C, T]` order.
pub(crate) fn backward(
    call: &Call,
    dy: &Operand,
    dfinal: Option<&Operand>,
    out: &Gradients,
) -> Result<(), ConvError> {
    let &Call { client, limits, problem, ref views } = call;
    let (x, weight) = (&views.x, &views.weight);
    let dx = &canonical(out.x, problem.layout);
    let bias = views.bias.as_ref().unwrap_or(weight);
    let initial = views.initial_state.as_ref().unwrap_or(x);
    let dinitial = out.initial_state.filter(|dinitial| !dinitial.is_empty());
    let along_time = problem.layout == Conv1dLayout::Bct;
    let (time, channels) = (TimeCut::of(problem, limits), ChannelCut::of(problem, limits));
    let parts = if along_time { time.parts } else { channels.parts };
    let turns = time.items_per_cube * (time.segment_turns + 1);
    check_turns("causal_conv1d", if along_time { turns } else { channels.blocks + 2 }, limits)?;
    let partials = match parts {
        1 => Operand::empty(client, &[1], FloatType::F32),
        _ => Operand::empty(client, &[parts, problem.width + 1, problem.channels], FloatType::F32),
    };
    let flags = Present::bits(&[
        (views.bias.is_some(), Present::BIAS),
        (views.initial_state.is_some(), Present::INITIAL),
        (dfinal.is_some(), Present::DFINAL),
        (dinitial.is_some(), Present::DINITIAL),
        (out.bias.is_some(), Present::DBIAS),
        (parts == 1, Present::DIRECT),
    ]);
    let width = together(problem.layout, &[x, dy, dx]);
    let mut operands = views.operands();
    operands.extend([dy, dx, &partials]);
    operands.extend(dfinal);
    operands.extend(dinitial);
    let address = address_type("causal_conv1d", &operands, views.index_extent(), limits)?;
    let taps = taps(problem);
    let states = [views.initial_state.as_ref(), dfinal, dinitial].iter().any(Option::is_some);
    let macs = |elements: usize| 2.0 * (elements * (3 * taps + 16)) as f64;
    let cubes = parts * if along_time { time.groups } else { channels.groups };
    let of_cube = if along_time {
        macs(time.items_per_cube * (time.segment_turns + 1) * TIME_UNITS * TOGETHER * 4)
    } else {
        macs((channels.blocks + 2) * CHANNEL_UNITS * 16)
    };
    for dispatch in dispatches(cubes, of_cube, limits) {
        macro_rules! launch {
            ($kernel:ident, $units:expr, $share:expr, $tile:expr) => {
                // SAFETY: as in `forward`; sums are written for channels and taps that exist.
                unsafe {
                    $kernel::launch_unchecked(
                        client,
                        dispatch.count(),
                        CubeDim::new_1d($units as u32),
                        address,
                        width,
                        x.buffer_arg(width),
                        dy.buffer_arg(width),
                        weight.buffer_arg(1),
                        bias.buffer_arg(1),
                        initial.tensor_arg(),
                        views.seq_idx.as_ref().map(IndexOperand::tensor_arg).into(),
                        dfinal.unwrap_or(dy).tensor_arg(),
                        dx.buffer_arg(width),
                        dinitial.unwrap_or(dx).tensor_arg(),
                        out.weight.tensor_arg(),
                        out.bias.unwrap_or(out.weight).tensor_arg(),
                        partials.tensor_arg(),
                        sizes(call, flags),
                        strides(x),
                        strides(dy),
                        strides(dx),
                        $share,
                        dispatch.span(),
                        $tile,
                        problem.dtype.elem(),
                        problem.weight_dtype.elem(),
                        views.index_elem(),
                    );
                }
            };
        }
        if along_time {
            let tile = tile(call, TIME_UNITS, width == 4, states);
            launch!(backward_kernel, TIME_UNITS, time.launch(problem, time.segments), tile);
        } else {
            let share = channels.launch(problem);
            let tile = tile(call, CHANNEL_UNITS, width == 4, states);
            launch!(channels_backward_kernel, CHANNEL_UNITS, share, tile);
        }
    }
    if parts == 1 { Ok(()) } else { sums::launch(client, limits, &partials, out) }
}
