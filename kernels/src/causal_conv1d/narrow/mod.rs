//! The plan for widths up to 8: taps in registers, every tensor read and written once, the backward pass in
//! one sweep.
//!
//! Kernels are compiled for 4 or 8 taps, of which a narrower filter uses the last; bias, activation and
//! states are arguments of the launch. What is compiled in: types, layout, whether there are ids, how many
//! neighbours are read at once.

mod access;
mod bct;
mod bct_backward;
mod btc;
mod btc_backward;
mod cut;
mod run_gradient;
mod sums;

use super::Gradients;
use super::args::{Present, canonical, strides};
use super::call::Conv1dCall;
use super::looped::weight;
use super::plan::Pass;
use super::problem::{CausalConv1dProblem, Conv1dLayout};
use crate::activation::Activation;
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::index_operand::IndexOperand;
use crate::launch::dispatches;
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use access::SizesLaunch;
use bct::{Tile, forward_kernel};
use bct_backward::backward_kernel;
use btc::channels_forward_kernel;
use btc_backward::channels_backward_kernel;
use cubecl::prelude::*;
use cut::{ChannelCut, Read, TimeCut};

/// The widest filter.
pub(crate) const WIDTH: usize = 8;

/// Units of a cube along time and along channels.
const TIME_UNITS: usize = 128;
const CHANNEL_UNITS: usize = 128;

/// Units of a cube that goes backward along words: they wait for each other twice in a turn, with much to do
/// in between. Against cubes of 128, those of 64 take 1 to 13 % less time on an H200, those of 256 up to 40 %
/// more.
const WORD_UNITS: usize = 64;

/// Runs that a unit along time has per turn; of words, forward, twice as many, which hides more of the
/// memory's latency where there is little else to do.
const TOGETHER: usize = 2;

/// Whether the width is served and extents fit the kernels' 32-bit coordinates.
pub(crate) fn serves(problem: &CausalConv1dProblem) -> bool {
    let extents = [problem.batch, problem.channels, problem.length];
    problem.width <= WIDTH
        && extents.iter().all(|extent| *extent < 1 << 30)
        && extents.iter().product::<usize>() < 1 << 36
}

fn taps(problem: &CausalConv1dProblem) -> usize {
    if problem.width <= 4 { 4 } else { 8 }
}

/// The most turns that the loops of a unit make, however the tensors of a problem with results lie in memory.
pub(crate) fn turns(problem: &CausalConv1dProblem, pass: Pass, limits: &Limits) -> usize {
    let of = |read: Read| {
        let tile = tile(problem, limits, read, pass, true);
        match (problem.layout, pass) {
            (Conv1dLayout::Bct, Pass::Forward) => 0,
            (Conv1dLayout::Bct, Pass::Backward) => TimeCut::of(problem, tile, limits).turns_of_cube(),
            (Conv1dLayout::Btc, Pass::Forward) => ChannelCut::of(problem, tile.steps(), limits).turns,
            (Conv1dLayout::Btc, Pass::Backward) => ChannelCut::of(problem, tile.steps(), limits).turns + 1,
        }
    };
    let words = problem.dtype.size() == 2 && limits.halves_in_words;
    of(Read::One).max(of(Read::Four)).max(if words { of(Read::Words) } else { 0 })
}

/// What is compiled in. The branches of states and residual are left out only where it matters: few kernels
/// are compiled.
fn tile(problem: &CausalConv1dProblem, limits: &Limits, read: Read, pass: Pass, extras: bool) -> Tile {
    let packed = problem.seq_idx;
    let extras = extras || packed || read == Read::One;
    // So that a unit of the backward pass, which has few companions, has 128 bytes under way. Where all is
    // over in microseconds the longer code takes longer to arrive than to run.
    let elements = problem.batch * problem.channels * problem.length;
    let halves = problem.dtype.size() == 2 && limits.unroll && elements >= 1 << 20;
    let batch = if pass == Pass::Forward || halves { 8 } else { 4 };
    let wide = read == Read::Words;
    let units = match problem.layout {
        Conv1dLayout::Bct if wide && pass == Pass::Backward => WORD_UNITS,
        Conv1dLayout::Bct => TIME_UNITS,
        Conv1dLayout::Btc => CHANNEL_UNITS,
    };
    let together = if wide && pass == Pass::Forward { 2 * TOGETHER } else { TOGETHER };
    let full = problem.width == taps(problem) && problem.activation == Activation::Silu;
    let straight = full && !extras;
    let early = wide && pass == Pass::Backward;
    Tile { straight, taps: taps(problem), together, units, wide, batch, packed, extras, early }
}

fn sizes(call: &Conv1dCall, present: u32) -> SizesLaunch {
    let Conv1dCall { problem, views, .. } = call;
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

/// Launches the forward pass; `y` is in `[B, C, T]` order.
pub(crate) fn forward(call: &Conv1dCall, y: &Operand) -> Result<(), ConvError> {
    let &Conv1dCall { client, limits, problem, ref views } = call;
    let (x, weight) = (&views.x, &views.weight);
    let bias = views.bias.as_ref().unwrap_or(weight);
    let residual = views.residual.as_ref();
    let flags = call.present(&[(residual.is_some(), Present::RESIDUAL)]);
    let reached: Vec<&Operand> = [x, y].into_iter().chain(residual).collect();
    let read = Read::of(problem.layout, &reached, limits);
    let (width, memory) = read.vector(problem.dtype);
    let elements = read.elements();
    let extras = views.initial_state.is_some() || residual.is_some();
    let tile = tile(problem, limits, read, Pass::Forward, extras);
    // What the kernel knows of and the call does not have, another tensor stands in for.
    let initial = tile.extras.then(|| views.initial_or_x());
    let residual = tile.extras.then(|| residual.unwrap_or(x));
    let mut operands = views.operands();
    operands.extend(residual);
    operands.push(y);
    let address = address_type("causal_conv1d", &operands, views.index_extent(), limits)?;
    let taps = taps(problem);
    let macs = |elements: usize| 2.0 * (elements * (taps + 8)) as f64;
    if problem.layout == Conv1dLayout::Bct {
        let cut = TimeCut::of(problem, tile, limits);
        let cubes = problem.batch * cut.groups * cut.turns;
        for dispatch in dispatches(cubes, macs(TIME_UNITS * tile.together * tile.run()), limits) {
            // SAFETY: rows and steps are checked in the kernel, places beside a row are not written and read
            // as the tensor's first; the conformance run puts guards around every buffer.
            unsafe {
                forward_kernel::launch_unchecked(
                    client,
                    dispatch.count(),
                    CubeDim::new_1d(TIME_UNITS as u32),
                    address,
                    width,
                    x.buffer_arg(elements),
                    weight.buffer_arg(1),
                    bias.buffer_arg(1),
                    initial.map(Operand::tensor_arg).into(),
                    views.seq_idx.as_ref().map(IndexOperand::tensor_arg).into(),
                    residual.map(|residual| residual.buffer_arg(elements)).into(),
                    y.buffer_arg(elements),
                    sizes(call, flags),
                    strides(x),
                    strides(residual.unwrap_or(x)),
                    strides(y),
                    cut.launch(problem, cut.turns),
                    dispatch.span(),
                    tile,
                    problem.dtype.elem(),
                    memory,
                    problem.weight_dtype.elem(),
                    problem.state_dtype.elem(),
                    views.index_elem(),
                );
            }
        }
    } else {
        let cut = ChannelCut::of(problem, tile.steps(), limits);
        let operations = macs(CHANNEL_UNITS * cut.turns * cut.steps * 4);
        for dispatch in dispatches(cut.parts * cut.groups, operations, limits) {
            // SAFETY: as above.
            unsafe {
                channels_forward_kernel::launch_unchecked(
                    client,
                    dispatch.count(),
                    CubeDim::new_1d(CHANNEL_UNITS as u32),
                    address,
                    width,
                    x.buffer_arg(elements),
                    weight.buffer_arg(1),
                    bias.buffer_arg(1),
                    initial.map(Operand::tensor_arg).into(),
                    views.seq_idx.as_ref().map(IndexOperand::tensor_arg).into(),
                    residual.map(|residual| residual.buffer_arg(elements)).into(),
                    y.buffer_arg(elements),
                    sizes(call, flags),
                    strides(x),
                    strides(residual.unwrap_or(x)),
                    strides(y),
                    cut.launch(problem),
                    dispatch.span(),
                    tile,
                    problem.dtype.elem(),
                    problem.weight_dtype.elem(),
                    problem.state_dtype.elem(),
                    views.index_elem(),
                );
            }
        }
    }
    Ok(())
}

/// Launches the backward pass of a problem with steps; `dy` is in `[B, C, T]` order.
pub(crate) fn backward(
    call: &Conv1dCall,
    dy: &Operand,
    dfinal: Option<&Operand>,
    out: &Gradients,
) -> Result<(), ConvError> {
    let &Conv1dCall { client, limits, problem, ref views } = call;
    let (x, weight) = (&views.x, &views.weight);
    let dx = &canonical(out.x, problem.layout);
    let bias = views.bias.as_ref().unwrap_or(weight);
    let dinitial = out.initial_state.filter(|dinitial| !dinitial.is_empty());
    let along_time = problem.layout == Conv1dLayout::Bct;
    let read = Read::of(problem.layout, &[x, dy, dx], limits);
    let (width, memory) = read.vector(problem.dtype);
    let elements = read.elements();
    let states = [views.initial_state.as_ref(), dfinal, dinitial].iter().any(Option::is_some);
    let tile = tile(problem, limits, read, Pass::Backward, states);
    let time = TimeCut::of(problem, tile, limits);
    let channels = ChannelCut::of(problem, tile.steps(), limits);
    let parts = if along_time { time.parts } else { channels.parts };
    // Whole sums need no room of their own; allocating it would take as long as a small launch.
    let partials = (parts > 1)
        .then(|| Operand::empty(client, &[parts, problem.width + 1, problem.channels], FloatType::F32));
    let flags = Present::bits(&[
        (views.bias.is_some(), Present::BIAS),
        (views.initial_state.is_some(), Present::INITIAL),
        (dfinal.is_some(), Present::DFINAL),
        (dinitial.is_some(), Present::DINITIAL),
        (out.bias.is_some(), Present::DBIAS),
        (parts == 1, Present::DIRECT),
    ]);
    let mut operands = views.operands();
    operands.extend([dy, dx].into_iter().chain(&partials));
    operands.extend(dfinal);
    operands.extend(dinitial);
    let address = address_type("causal_conv1d", &operands, views.index_extent(), limits)?;
    let taps = taps(problem);
    let macs = |elements: usize| 2.0 * (elements * (3 * taps + 16)) as f64;
    let cubes = parts * if along_time { time.groups } else { channels.groups };
    let of_cube = if along_time {
        macs(time.turns_of_cube() * tile.units * tile.together * tile.run())
    } else {
        macs((channels.turns + 1) * channels.steps * tile.units * 4)
    };
    for dispatch in dispatches(cubes, of_cube, limits) {
        macro_rules! launch {
            ($kernel:ident, $share:expr, $($memory:expr)?) => {
                // SAFETY: as in `forward`; sums are written for channels and taps that exist.
                unsafe {
                    $kernel::launch_unchecked(
                        client,
                        dispatch.count(),
                        CubeDim::new_1d(tile.units as u32),
                        address,
                        width,
                        x.buffer_arg(elements),
                        dy.buffer_arg(elements),
                        weight.buffer_arg(1),
                        bias.buffer_arg(1),
                        tile.extras.then(|| views.initial_or_x().tensor_arg()).into(),
                        views.seq_idx.as_ref().map(IndexOperand::tensor_arg).into(),
                        tile.extras.then(|| dfinal.unwrap_or(dy).tensor_arg()).into(),
                        dx.buffer_arg(elements),
                        dinitial.unwrap_or(dx).tensor_arg(),
                        out.weight.tensor_arg(),
                        out.bias.unwrap_or(out.weight).tensor_arg(),
                        partials.as_ref().unwrap_or(out.weight).tensor_arg(),
                        sizes(call, flags),
                        strides(x),
                        strides(dy),
                        strides(dx),
                        $share,
                        dispatch.span(),
                        tile,
                        problem.dtype.elem(),
                        $($memory,)?
                        problem.weight_dtype.elem(),
                        problem.state_dtype.elem(),
                        views.index_elem(),
                    );
                }
            };
        }
        if along_time {
            launch!(backward_kernel, time.launch(problem, time.segments), memory);
        } else {
            launch!(channels_backward_kernel, channels.launch(problem),);
        }
    }
    let Some(partials) = partials else { return Ok(()) };
    let partials = weight::fold(client, limits, partials, sums::MOST_PARTS)?;
    sums::launch(client, limits, &partials, out)
}
