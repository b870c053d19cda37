//! Causal depthwise conv1d: each output step reads its own and the W-1 previous steps of its channel.
//!
//! ```text
//! y[b,c,t] = activation( bias[c] + sum over k < W of weight[c,k] * X(b, c, t - (W-1) + k) )
//!            + residual[b,c,t]
//! ```
//!
//! X(t) for t < 0 is the initial state (`[B, C, W-1]`, oldest step first) or 0. [`forward`] and [`backward`];
//! [`final_state`] carries a chunk's state to the next; [`update`] decodes step by step. x is `[B, C, T]` or
//! `[B, T, C]` with any strides, W >= 1, any T (also T < W-1 and T = 0). x and weight may differ in dtype.
//! Accumulation is fp32 with one rounding at the end; no atomics, so results are bitwise reproducible. The
//! optional residual has x's shape and dtype; its gradient is dy (0 at padding) and needs no kernel.
//!
//! Sequence ids (`seq_idx [B, T]`) pack several sequences into a row: a tap contributes only where its id
//! equals that of the output step. A negative id marks padding: y is 0 there, and dy at padding reaches no
//! gradient. Ids are compared for equality only, so an id must not recur within W-1 steps of its sequence's
//! end: its taps would reach across the gap. The initial state belongs to the sequence of the row's first
//! step (to none if that is padding); pass zeros to a row that begins with a different sequence.
//!
//! The final state is what the next step of the row's last sequence would read, so a row may be split into
//! chunks anywhere. It is the W-1 columns of `[initial state | x]` that end with the last step that is not
//! padding, with 0 for columns of other sequences, or the initial state if the whole row is padding.
//! States have x's dtype or are fp32 ([`CausalConv1dProblem::with_state_dtype`]).
//!
//! Non-finite values: x at step t reaches y at t ..= t + W-1 of its sequence, dy reaches dx at t - (W-1) ..=
//! t, a state the steps that read it; besides these only dw and db of the channel. With SiLU, x also reaches,
//! through the derivative, dx of every step that shares an output with it. Values at padding reach nothing.
//! Taps are multiplied by the zeros before the first step and, in gradients, past the last one: an infinite
//! tap gives NaN in the first W-1 steps of y and may give NaN in the last W-1 steps of dx.
//!
//! dw and db are sums over all rows and steps. A thread adds about a thousand elements at most, the rest are
//! tree reductions: the error grows with the logarithm of the number of elements.

mod args;
mod call;
mod decode;
mod looped;
mod narrow;
mod needs;
mod plan;
mod problem;
pub mod reference;
mod state;
mod wide;

pub use decode::{DecodingSteps, check_update_steps, update, update_needs, update_steps};
pub use plan::{NARROW_WIDTH, Pass, Plan, eligible, plan};
pub use problem::{CausalConv1dProblem, Conv1dLayout, OptionalShapes, UpdateProblem};

use crate::dtype::FloatType;
use crate::error::{ConvError, invalid};
use crate::index_operand::IndexOperand;
use crate::limits::Limits;
use crate::needs::Needs;
use crate::operand::{Operand, check_operand};
use call::Conv1dCall;
use cubecl::prelude::*;

const OP: &str = "causal_conv1d";

/// Inputs of both passes. An optional input must be present exactly if the problem has it.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// `[B, C, T]` or `[B, T, C]`.
    pub x: &'a Operand,
    /// `[C, W]`.
    pub weight: &'a Operand,
    /// `[C]`, in the weight's dtype.
    pub bias: Option<&'a Operand>,
    /// `[B, C, W-1]`, oldest step first, in the states' dtype.
    pub initial_state: Option<&'a Operand>,
    /// `[B, T]`.
    pub seq_idx: Option<&'a IndexOperand>,
    /// Of x's shape and dtype, added after the activation. The backward pass does not read it.
    pub residual: Option<&'a Operand>,
}

/// Outputs of the backward pass, each with the shape and dtype of its input. The gradients of optional inputs
/// may be omitted.
#[derive(Clone, Copy, Debug)]
pub struct Gradients<'a> {
    /// dx.
    pub x: &'a Operand,
    /// dw.
    pub weight: &'a Operand,
    /// db.
    pub bias: Option<&'a Operand>,
    /// Gradient of the initial state.
    pub initial_state: Option<&'a Operand>,
}

/// Computes y, of x's shape and dtype.
///
/// # Errors
/// When an operand does not have the problem's shape and dtype, the plan cannot serve the problem, or the
/// tensors are too large for the device's index type.
pub fn forward(
    client: &Client,
    limits: &Limits,
    problem: &CausalConv1dProblem,
    plan: &Plan,
    inputs: &Inputs,
    y: &Operand,
) -> Result<(), ConvError> {
    check_inputs(client, limits, problem, inputs)?;
    check_operand(OP, "y", y, &problem.x_shape(), problem.dtype)?;
    plan::check(*plan, problem, Pass::Forward, limits)?;
    if problem.x_shape().contains(&0) {
        return Ok(());
    }
    let call = Conv1dCall::new(client, limits, problem, inputs);
    let y = args::canonical(y, problem.layout);
    match plan {
        Plan::Narrow => narrow::forward(&call, &y),
        Plan::Wide => wide::forward(&call, None, (0, problem.channels), &y),
        Plan::Empty | Plan::Looped => looped::forward(&call, None, (0, problem.channels), &y),
    }
}

/// Copies the last W-1 columns of `[initial state | x]` into `out [B, C, W-1]`, in the states' dtype: the
/// initial state of the next chunk. Columns before the first step are 0 if there is no initial state.
///
/// With sequence ids these columns end with the row's last step that is not padding, and columns of other
/// sequences than that step's are 0: what the next step of that sequence would read. A row that is all
/// padding passes its initial state on.
///
/// # Errors
/// As [`forward`].
pub fn final_state(
    client: &Client,
    limits: &Limits,
    problem: &CausalConv1dProblem,
    x: &Operand,
    initial_state: Option<&Operand>,
    seq_idx: Option<&IndexOperand>,
    out: &Operand,
) -> Result<(), ConvError> {
    check_operand(OP, "x", x, &problem.x_shape(), problem.dtype)?;
    check_optional(
        OP,
        "initial state",
        initial_state,
        problem.initial_state,
        &problem.state_shape(),
        problem.state_dtype,
    )?;
    check_operand(OP, "the final state", out, &problem.state_shape(), problem.state_dtype)?;
    check_ids(client, problem, seq_idx)?;
    limits.check_dtype(OP, problem.dtype)?;
    limits.check_dtype(OP, problem.state_dtype)?;
    check_device(OP, limits)?;
    if out.is_empty() {
        return Ok(());
    }
    // Without steps the ids are never read.
    let seq_idx = seq_idx.filter(|_| problem.length > 0);
    state::launch_final_state(client, limits, problem, x, initial_state, seq_idx, out)
}

/// Computes every gradient from dy, the gradient of y, and `dfinal`, that of the final state (none: zero).
/// Of the forward pass only the inputs are needed.
///
/// Workspace: fp32 partial sums of dw. With an activation the plans other than `narrow` also store the
/// pre-activation gradient in fp32, for as many channels at a time as [`Limits::workspace_bytes`] holds.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    client: &Client,
    limits: &Limits,
    problem: &CausalConv1dProblem,
    plan: &Plan,
    inputs: &Inputs,
    dy: &Operand,
    dfinal: Option<&Operand>,
    out: &Gradients,
) -> Result<(), ConvError> {
    let (x, state) = (problem.x_shape(), problem.state_shape());
    check_inputs(client, limits, problem, inputs)?;
    check_operand(OP, "dy", dy, &x, problem.dtype)?;
    check_operand(OP, "dx", out.x, &x, problem.dtype)?;
    check_operand(OP, "dw", out.weight, &problem.weight_shape(), problem.weight_dtype)?;
    if let Some(dfinal) = dfinal {
        check_operand(OP, "the gradient of the final state", dfinal, &state, problem.state_dtype)?;
    }
    if let Some(db) = out.bias {
        check_optional(
            OP,
            "bias gradient",
            Some(db),
            problem.bias,
            &[problem.channels],
            problem.weight_dtype,
        )?;
    }
    if let Some(dinitial) = out.initial_state {
        let expected = problem.initial_state;
        let dtype = problem.state_dtype;
        check_optional(OP, "gradient of the initial state", Some(dinitial), expected, &state, dtype)?;
    }
    plan::check(*plan, problem, Pass::Backward, limits)?;
    if problem.channels == 0 {
        return Ok(());
    }

    let mut call = Conv1dCall::new(client, limits, problem, inputs);
    if let Some(ids) = call.views.seq_idx.take() {
        // Only the gradient of the final state needs the position where that state ends.
        let has_dfinal = dfinal.is_some_and(|dfinal| !dfinal.is_empty());
        let ids = if has_dfinal { state::with_ends(client, limits, problem, &ids)? } else { ids };
        call.views.seq_idx = Some(ids);
    }
    if *plan == Plan::Narrow && problem.batch * problem.length > 0 {
        let dy = args::canonical(dy, problem.layout);
        return narrow::backward(&call, &dy, dfinal.filter(|dfinal| !dfinal.is_empty()), out);
    }
    looped::backward(&call, *plan, dy, dfinal, out)
}

/// The last S steps of each sequence packed into the one row of x (`[1, C, T]` or `[1, T, C]`), into
/// `out [N, C, S]`. Sequence i has the steps `bounds[i]..bounds[i + 1]` (`cu_seqlens [N + 1]`, ascending);
/// shorter ones are zero-padded in front.
///
/// # Errors
/// As [`forward`].
pub fn last_states(
    client: &Client,
    limits: &Limits,
    layout: Conv1dLayout,
    x: &Operand,
    bounds: &IndexOperand,
    out: &Operand,
) -> Result<(), ConvError> {
    let op = "causal_conv1d_last_states";
    limits.check_dtype(op, x.dtype)?;
    let x = args::canonical(x, layout);
    if x.shape.len() != 3 || x.shape[0] != 1 {
        invalid!("{op}: x has shape {:?}, sequences are packed into one row [1, C, T] or [1, T, C]", x.shape);
    }
    let sequences = bounds.shape.first().copied().unwrap_or(0);
    if bounds.shape.len() != 1 || sequences == 0 {
        invalid!("{op}: cu_seqlens has shape {:?}, it must be [sequences + 1]", bounds.shape);
    }
    let length = out.shape.last().copied().unwrap_or(0);
    check_operand(op, "out", out, &[sequences - 1, x.shape[1], length], x.dtype)?;
    bounds.check(op, "cu_seqlens", &[sequences], client)?;
    check_device(op, limits)?;
    if out.is_empty() {
        return Ok(());
    }
    decode::launch_last_states(client, limits, &x.bindable(client), bounds, out)
}

/// Sequence ids of sequences packed into one row, `out [1, T]`: i for the steps `bounds[i]..bounds[i + 1]`
/// (`cu_seqlens [N + 1]`, ascending), -1 (padding) before the first bound and from the last bound on. `out`
/// has the dtype of the bounds.
///
/// # Errors
/// As [`forward`].
pub fn sequence_ids(
    client: &Client,
    limits: &Limits,
    bounds: &IndexOperand,
    out: &IndexOperand,
) -> Result<(), ConvError> {
    let op = "causal_conv1d_seq_idx";
    let count = bounds.shape.first().copied().unwrap_or(0);
    if bounds.shape.len() != 1 || count == 0 {
        invalid!("{op}: cu_seqlens has shape {:?}, it must be [sequences + 1]", bounds.shape);
    }
    bounds.check(op, "cu_seqlens", &[count], client)?;
    check_device(op, limits)?;
    let length = out.shape.last().copied().unwrap_or(0);
    out.check(op, "seq_idx", &[1, length], client)?;
    if out.dtype != bounds.dtype {
        let names = [bounds.dtype.name(), out.dtype.name()];
        invalid!("{op}: cu_seqlens is {} and seq_idx is {}, their dtypes must match", names[0], names[1]);
    }
    if length == 0 {
        return Ok(());
    }
    state::launch_sequence_ids(client, limits, bounds, out)
}

/// Refuses a device that cannot run the kernels without a plan: final and last states, ids.
///
/// # Errors
/// As [`Needs::check`].
pub fn check_device(op: &str, limits: &Limits) -> Result<(), ConvError> {
    Needs::OF_ANY_CALL.check(format_args!("{op}: a call"), limits)
}

fn check_inputs(
    client: &Client,
    limits: &Limits,
    problem: &CausalConv1dProblem,
    inputs: &Inputs,
) -> Result<(), ConvError> {
    limits.check_dtype(OP, problem.dtype)?;
    limits.check_dtype(OP, problem.weight_dtype)?;
    check_operand(OP, "x", inputs.x, &problem.x_shape(), problem.dtype)?;
    check_operand(OP, "weight", inputs.weight, &problem.weight_shape(), problem.weight_dtype)?;
    check_optional(OP, "bias", inputs.bias, problem.bias, &[problem.channels], problem.weight_dtype)?;
    let state = problem.state_shape();
    let state_dtype = problem.state_dtype;
    limits.check_dtype(OP, state_dtype)?;
    check_optional(OP, "initial state", inputs.initial_state, problem.initial_state, &state, state_dtype)?;
    check_optional(OP, "residual", inputs.residual, problem.residual, &problem.x_shape(), problem.dtype)?;
    check_ids(client, problem, inputs.seq_idx)
}

fn check_ids(
    client: &Client,
    problem: &CausalConv1dProblem,
    seq_idx: Option<&IndexOperand>,
) -> Result<(), ConvError> {
    match (seq_idx, problem.seq_idx) {
        (Some(ids), true) => ids.check(OP, "seq_idx", &problem.seq_idx_shape(), client),
        (None, false) => Ok(()),
        (Some(_), false) => invalid!("{OP}: seq_idx was given, the problem has none"),
        (None, true) => {
            invalid!("{OP}: the problem needs seq_idx {:?}, none was given", problem.seq_idx_shape())
        }
    }
}

fn check_optional(
    op: &str,
    name: &str,
    operand: Option<&Operand>,
    expected: bool,
    shape: &[usize],
    dtype: FloatType,
) -> Result<(), ConvError> {
    match (operand, expected) {
        (Some(operand), true) => check_operand(op, name, operand, shape, dtype),
        (None, false) => Ok(()),
        (Some(_), false) => invalid!("{op}: {name} was given, the problem has none"),
        (None, true) => invalid!("{op}: the problem needs {name} {shape:?}, none was given"),
    }
}
