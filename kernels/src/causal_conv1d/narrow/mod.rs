//! The plan for widths up to 8: taps in registers, every tensor read and written once, the backward pass in
//! one sweep.
//!
//! Four kernels: forward and backward, each for `[B, C, T]` ([`bct`], threads along time) and `[B, T, C]`
//! ([`btc`], threads along channels); [`reduce`] adds partial sums of dw and db. They are compiled for 4 or 8
//! taps (a narrower filter uses the last), element types, vector width, and with or without sequence ids;
//! bias, activation and states are run-time arguments.
//!
//! # Safety of the launches
//! Every unchecked launch relies on:
//! - operands have the problem's shapes (checked by the parent module);
//! - the address type covers every offset of every operand (`address_type`);
//! - the caller's outputs alias no other operand;
//! - an absent tensor is replaced by another of the same type, and `present` keeps the kernel from touching
//!   it.
//!
//! Kernels check batch, channel and step: out-of-range loads read element 0 of their tensor, out-of-range
//! stores are skipped, idle threadgroups exit. Vector access is chosen only where all tensors are aligned for
//! it ([`schedule::VectorAccess::of`]).

mod access;
mod bct;
mod bct_backward;
mod bct_forward;
mod btc;
mod btc_backward;
mod reduce;
mod schedule;
mod slice_gradient;

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
use access::CallParamsLaunch;
use bct::NarrowConfig;
use bct_backward::backward_kernel;
use bct_forward::forward_kernel;
use btc::channels_forward_kernel;
use btc_backward::channels_backward_kernel;
use cubecl::prelude::*;
use schedule::{BctSchedule, BtcSchedule, VectorAccess, channels_per_thread};

/// The widest filter.
pub(crate) const WIDTH: usize = 8;

/// Threads of a threadgroup.
const BCT_THREADS: usize = 128;
const BTC_THREADS: usize = 128;

/// Threads of a threadgroup of the `[B, C, T]` backward kernel with word access: it has two barriers per
/// tile, and fewer threads wait less at them.
const BCT_WORD_BACKWARD_THREADS: usize = 64;

/// Slices of a thread per tile in `[B, C, T]`. The forward kernel with word access has twice as many: more
/// loads in flight hide the memory's latency. The backward kernel has one where occupancy hides it.
const SLICES: usize = 2;

/// Shared memory of the largest backward kernel: the heads of slices, halos and the sums of dw and db.
pub(crate) const BACKWARD_SHARED_BYTES: usize = BCT_THREADS * (16 * SLICES + 2 * WIDTH + 4 * (WIDTH + 1));

/// Whether the width is served and the extents fit the kernels' 32-bit coordinates.
pub(crate) fn serves(problem: &CausalConv1dProblem) -> bool {
    let extents = [problem.batch, problem.channels, problem.length];
    problem.width <= WIDTH
        && extents.iter().all(|extent| *extent < 1 << 30)
        && extents.iter().product::<usize>() < 1 << 36
}

/// Tap registers of the kernels for this width.
fn taps(problem: &CausalConv1dProblem) -> usize {
    if problem.width <= 4 { 4 } else { 8 }
}

/// The most loop iterations of a thread, over every vector width that the tensors may allow.
pub(crate) fn loop_iterations(problem: &CausalConv1dProblem, pass: Pass, limits: &Limits) -> usize {
    most_over_accesses(problem, pass, limits, |config| match (problem.layout, pass) {
        (Conv1dLayout::Bct, Pass::Forward) => 0,
        (Conv1dLayout::Bct, Pass::Backward) => BctSchedule::of(problem, config, limits).iterations(),
        (Conv1dLayout::Btc, Pass::Forward) => BtcSchedule::of(problem, config, limits).iterations,
        (Conv1dLayout::Btc, Pass::Backward) => BtcSchedule::of(problem, config, limits).iterations + 1,
    })
}

/// The most partial sums of dw and db per channel of a problem with steps, over every vector width; 0 where a
/// threadgroup has all of a channel's steps and stores dw itself.
pub(crate) fn partial_sums(problem: &CausalConv1dProblem, limits: &Limits) -> usize {
    most_over_accesses(problem, Pass::Backward, limits, |config| {
        let partials = match problem.layout {
            Conv1dLayout::Bct => BctSchedule::of(problem, config, limits).partials,
            Conv1dLayout::Btc => BtcSchedule::of(problem, config, limits).partials,
        };
        if partials > 1 { partials } else { 0 }
    })
}

/// The most that `of` says of the configurations for every vector width that the tensors may allow.
fn most_over_accesses(
    problem: &CausalConv1dProblem,
    pass: Pass,
    limits: &Limits,
    of: impl Fn(NarrowConfig) -> usize,
) -> usize {
    let of = |access| of(config(problem, limits, access, pass, true));
    let words = problem.dtype.size() == 2 && limits.halves_in_words;
    let vectors = of(VectorAccess::Scalar).max(of(VectorAccess::Vector4));
    vectors.max(if words { of(VectorAccess::Words) } else { 0 })
}

/// The compile-time configuration. Only some cases get a kernel without the branches of states and residual,
/// so that few kernels are compiled.
fn config(
    problem: &CausalConv1dProblem,
    limits: &Limits,
    access: VectorAccess,
    pass: Pass,
    extras: bool,
) -> NarrowConfig {
    let has_ids = problem.seq_idx;
    let channels = channels_per_thread(limits);
    let one_channel = problem.layout == Conv1dLayout::Btc && channels == 1;
    let extras = extras || has_ids || (access == VectorAccess::Scalar && !one_channel);
    // Backward in 16 bits: 128 bytes in flight per thread make up for low occupancy. A small tensor is done
    // before the longer code pays off.
    let elements = problem.batch * problem.channels * problem.length;
    let large_halves = problem.dtype.size() == 2 && limits.unroll && elements >= 1 << 20;
    let load_batch = if pass == Pass::Forward || large_halves { 8 } else { 4 };
    let words = access == VectorAccess::Words;
    let threads = match problem.layout {
        Conv1dLayout::Bct if words && pass == Pass::Backward => BCT_WORD_BACKWARD_THREADS,
        Conv1dLayout::Bct => BCT_THREADS,
        Conv1dLayout::Btc => BTC_THREADS,
    };
    let slices = match pass {
        Pass::Forward if words => 2 * SLICES,
        Pass::Backward if !limits.unroll => 1,
        Pass::Forward | Pass::Backward => SLICES,
    };
    let full_silu = problem.width == taps(problem) && problem.activation == Activation::Silu;
    let branch_free = full_silu && !extras;
    let prefetch = words && pass == Pass::Backward;
    let taps = taps(problem);
    NarrowConfig {
        branch_free,
        taps,
        slices,
        channels,
        threads,
        words,
        load_batch,
        has_ids,
        extras,
        prefetch,
        unroll: limits.unroll,
    }
}

fn call_params(call: &Conv1dCall, present: u32) -> CallParamsLaunch {
    let Conv1dCall { problem, views, .. } = call;
    CallParamsLaunch {
        channels: problem.channels as u32,
        length: problem.length as u32,
        width: problem.width as u32,
        activation: problem.activation.code(),
        present,
        weight_c: views.weight.strides[0],
        weight_k: views.weight.strides[1],
        bias_c: views.bias.as_ref().map_or(0, |bias| bias.strides[0]),
    }
}

/// Launches the forward pass; `y` is in `[B, C, T]` order.
pub(crate) fn forward(call: &Conv1dCall, y: &Operand) -> Result<(), ConvError> {
    let &Conv1dCall { client, limits, problem, ref views } = call;
    let (x, weight) = (&views.x, &views.weight);
    let bias = views.bias.as_ref().unwrap_or(weight);
    let residual = views.residual.as_ref();
    let flags = call.present(&[(residual.is_some(), Present::RESIDUAL)]);
    let vectorized: Vec<&Operand> = [x, y].into_iter().chain(residual).collect();
    let access = VectorAccess::of(problem.layout, Pass::Forward, &vectorized, limits);
    let (width, memory) = access.vector(problem.dtype);
    let elements = access.elements();
    let extras = views.initial_state.is_some() || residual.is_some();
    let config = config(problem, limits, access, Pass::Forward, extras);
    // x stands in for an optional tensor that the kernel binds and the call does not have.
    let initial = config.extras.then(|| views.initial_or_x());
    let residual = config.extras.then(|| residual.unwrap_or(x));
    let mut operands = views.operands();
    operands.extend(residual);
    operands.push(y);
    let address = address_type("causal_conv1d", &operands, views.index_extent(), limits)?;
    let taps = taps(problem);
    let macs = |elements: usize| 2.0 * (elements * (taps + 8)) as f64;
    if problem.layout == Conv1dLayout::Bct {
        let schedule = BctSchedule::of(problem, config, limits);
        let threadgroups = problem.batch * schedule.channel_groups * schedule.tiles_per_row;
        let operations = macs(BCT_THREADS * config.slices * config.slice_len());
        for dispatch in dispatches(threadgroups, operations, limits) {
            // SAFETY: the module's contract.
            unsafe {
                forward_kernel::launch_unchecked(
                    client,
                    dispatch.count(),
                    CubeDim::new_1d(BCT_THREADS as u32),
                    address,
                    width,
                    x.buffer_arg(elements),
                    weight.buffer_arg(1),
                    bias.buffer_arg(1),
                    initial.map(Operand::tensor_arg).into(),
                    views.seq_idx.as_ref().map(IndexOperand::tensor_arg).into(),
                    residual.map(|residual| residual.buffer_arg(elements)).into(),
                    y.buffer_arg(elements),
                    call_params(call, flags),
                    strides(x),
                    strides(residual.unwrap_or(x)),
                    strides(y),
                    schedule.launch(problem, schedule.tiles_per_row),
                    dispatch.span(),
                    config,
                    problem.dtype.elem(),
                    memory,
                    problem.weight_dtype.elem(),
                    problem.state_dtype.elem(),
                    views.index_elem(),
                );
            }
        }
    } else {
        let schedule = BtcSchedule::of(problem, config, limits);
        let threadgroups = schedule.partials * schedule.channel_groups;
        let operations =
            macs(BTC_THREADS * schedule.iterations * schedule.steps_per_iteration * config.channels);
        for dispatch in dispatches(threadgroups, operations, limits) {
            // SAFETY: the module's contract.
            unsafe {
                channels_forward_kernel::launch_unchecked(
                    client,
                    dispatch.count(),
                    CubeDim::new_1d(BTC_THREADS as u32),
                    address,
                    width,
                    config.channels,
                    x.buffer_arg(elements),
                    weight.buffer_arg(1),
                    bias.buffer_arg(1),
                    initial.map(Operand::tensor_arg).into(),
                    views.seq_idx.as_ref().map(IndexOperand::tensor_arg).into(),
                    residual.map(|residual| residual.buffer_arg(elements)).into(),
                    y.buffer_arg(elements),
                    call_params(call, flags),
                    strides(x),
                    strides(residual.unwrap_or(x)),
                    strides(y),
                    schedule.launch(problem),
                    dispatch.span(),
                    config,
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
    let access = VectorAccess::of(problem.layout, Pass::Backward, &[x, dy, dx], limits);
    let (width, memory) = access.vector(problem.dtype);
    let elements = access.elements();
    let states = [views.initial_state.as_ref(), dfinal, dinitial].iter().any(Option::is_some);
    let config = config(problem, limits, access, Pass::Backward, states);
    let time = BctSchedule::of(problem, config, limits);
    let channels = BtcSchedule::of(problem, config, limits);
    let partial_count = if along_time { time.partials } else { channels.partials };
    // Without partial sums no workspace: an allocation takes as long as a small launch.
    let partials = (partial_count > 1).then(|| {
        Operand::empty(client, &[partial_count, problem.width + 1, problem.channels], FloatType::F32)
    });
    let flags = Present::bits(&[
        (views.bias.is_some(), Present::BIAS),
        (views.initial_state.is_some(), Present::INITIAL),
        (dfinal.is_some(), Present::DFINAL),
        (dinitial.is_some(), Present::DINITIAL),
        (out.bias.is_some(), Present::DBIAS),
        (partial_count == 1, Present::DIRECT),
    ]);
    let mut operands = views.operands();
    operands.extend([dy, dx].into_iter().chain(&partials));
    operands.extend(dfinal);
    operands.extend(dinitial);
    let address = address_type("causal_conv1d", &operands, views.index_extent(), limits)?;
    let taps = taps(problem);
    let macs = |elements: usize| 2.0 * (elements * (3 * taps + 16)) as f64;
    let threadgroups = partial_count * if along_time { time.channel_groups } else { channels.channel_groups };
    let operations = if along_time {
        macs(time.iterations() * config.threads * config.slices * config.slice_len())
    } else {
        macs((channels.iterations + 1) * channels.steps_per_iteration * config.threads * config.channels)
    };
    for dispatch in dispatches(threadgroups, operations, limits) {
        macro_rules! launch {
            ($kernel:ident, $work:expr, [$($channels:expr)?], [$($memory:expr)?]) => {
                // SAFETY: the module's contract; sums are stored only for channels and taps in range.
                unsafe {
                    $kernel::launch_unchecked(
                        client,
                        dispatch.count(),
                        CubeDim::new_1d(config.threads as u32),
                        address,
                        width,
                        $($channels,)?
                        x.buffer_arg(elements),
                        dy.buffer_arg(elements),
                        weight.buffer_arg(1),
                        bias.buffer_arg(1),
                        config.extras.then(|| views.initial_or_x().tensor_arg()).into(),
                        views.seq_idx.as_ref().map(IndexOperand::tensor_arg).into(),
                        config.extras.then(|| dfinal.unwrap_or(dy).tensor_arg()).into(),
                        dx.buffer_arg(elements),
                        dinitial.unwrap_or(dx).tensor_arg(),
                        out.weight.tensor_arg(),
                        out.bias.unwrap_or(out.weight).tensor_arg(),
                        partials.as_ref().unwrap_or(out.weight).tensor_arg(),
                        call_params(call, flags),
                        strides(x),
                        strides(dy),
                        strides(dx),
                        $work,
                        dispatch.span(),
                        config,
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
            launch!(backward_kernel, time.launch(problem, time.segments_per_row), [], [memory]);
        } else {
            launch!(channels_backward_kernel, channels.launch(problem), [config.channels], []);
        }
    }
    let Some(partials) = partials else { return Ok(()) };
    let partials = weight::fold(client, limits, partials, reduce::MAX_PARTIALS)?;
    reduce::launch(client, limits, &partials, out)
}
