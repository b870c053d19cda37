//! Causal depthwise conv1d: every output step sees its own and the W-1 steps before it, channel by channel.
//!
//! ```text
//! y[b,c,t] = activation( bias[c] + sum over k < W of weight[c,k] * X(b, c, t - (W-1) + k) )
//!            + residual[b,c,t]
//! ```
//!
//! X(t) for t < 0 is the initial state (`[B, C, W-1]`, oldest step first) or 0. [`forward`], [`backward`],
//! [`final_state`] for the next chunk, and [`update`] for decoding step by step. x is `[B, C, T]` or
//! `[B, T, C]`, any strides; any width from 1 on and any T, also T < W-1 and T = 0. x and weight may differ
//! in dtype. Sums are fp32, rounded once; no atomics, so equal calls give equal bits. The optional residual
//! is of x's shape and dtype; its gradient is dy, 0 at padding, for which nothing is launched.
//!
//! Sequence ids (`seq_idx [B, T]`) pack several sequences into a row: a tap is read only where its id equals
//! that of the output step. A negative id is padding: y is 0 there and whatever dy holds reaches no gradient.
//! Equality is all that is asked, so an id must not come back after its run has ended: within W-1 steps it
//! would be read across what is between. An initial state belongs to the sequence of the row's first step (to
//! none where that is padding); a row that begins with another sequence than its state's is given zeros.
//!
//! The final state is what the next step of the row's last sequence would read: the W-1 columns of
//! `[initial state | x]` that end with the last step that is no padding, 0 in place of those of other
//! sequences; the initial state where all is padding. So pieces of a row give the whole wherever it is cut.
//! States are of x's type or fp32 ([`CausalConv1dProblem::with_state_dtype`]).
//!
//! Values that are not finite: one of x at step t reaches y at t to t + W-1 of its sequence, one of dy
//! reaches dx at t - (W-1) to t, one of a state the steps that read it, and nothing else but dw and db of its
//! channel. With SiLU one of x also reaches, through the derivative, dx of every step that is read together
//! with it. What stands at padding reaches nothing. Weights are multiplied with the zeros before the first
//! step, and in gradients with those beyond the last, as with any other: infinite ones make NaN of the first
//! W-1 steps of y and may make NaN of the last W-1 of dx.
//!
//! dw and db are sums over all rows and steps: a unit adds at most about a thousand terms in a row, the rest
//! are trees, so that their error grows with the logarithm of their number.

mod args;
mod call;
mod forward;
mod gradient;
mod narrow;
mod passes;
mod plan;
mod problem;
pub mod reference;
mod state;
mod step;
mod update;
mod weight;
mod wide;

pub use plan::{NARROW_WIDTH, Pass, Plan, eligible, plan};
pub use problem::{CausalConv1dProblem, Conv1dLayout, OptionalShapes, UpdateProblem};
pub use update::{DecodingSteps, check_update_steps, update, update_steps};

use crate::dtype::FloatType;
use crate::error::{ConvError, invalid};
use crate::index_operand::IndexOperand;
use crate::limits::Limits;
use crate::operand::{Operand, check_dtype};
use call::Call;
use cubecl::prelude::*;

const OP: &str = "causal_conv1d";

/// What both passes read. The optional ones must be present exactly where the problem says so.
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

/// What the backward pass writes, each of the shape and dtype of its input. An optional input's gradient may
/// be left out.
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
    let call = Call::new(client, limits, problem, inputs);
    let y = args::canonical(y, problem.layout);
    match plan {
        Plan::Narrow => narrow::forward(&call, &y),
        Plan::Wide => wide::forward(&call, None, (0, problem.channels), &y),
        Plan::Empty | Plan::Looped => forward::launch(&call, None, (0, problem.channels), &y),
    }
}

/// Copies the last W-1 columns of `[initial state | x]` into `out [B, C, W-1]`, in the states' dtype: the
/// initial state of the next chunk. Steps before the first, where no initial state is given, are 0.
///
/// With sequence ids those columns end with the row's last step that is no padding, and what belongs to
/// another sequence than that step is 0: what the next step of that sequence would read. A row of padding
/// only hands its initial state on.
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
    check_dtype(OP, problem.dtype, limits)?;
    check_dtype(OP, problem.state_dtype, limits)?;
    if out.is_empty() {
        return Ok(());
    }
    // Ids without steps are never read.
    let seq_idx = seq_idx.filter(|_| problem.length > 0);
    state::launch_final_state(client, limits, problem, x, initial_state, seq_idx, out)
}

/// Computes every gradient from dy, the gradient of y, and `dfinal`, that of the final state (none: zero).
/// Nothing of the forward pass is needed but its inputs.
///
/// Workspace: fp32 partial sums of dw; but for the plan `narrow` an activation needs the gradient before it
/// in fp32, for as many channels at a time as [`Limits::workspace_bytes`] holds.
///
/// # Errors
/// As [`forward`].
#[allow(clippy::too_many_arguments)]
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

    let mut call = Call::new(client, limits, problem, inputs);
    if let Some(ids) = call.views.seq_idx.take() {
        // Where the final state ends only its gradient asks.
        let held = dfinal.is_some_and(|dfinal| !dfinal.is_empty());
        call.views.seq_idx = Some(if held { state::with_ends(client, limits, problem, &ids)? } else { ids });
    }
    if *plan == Plan::Narrow && problem.batch * problem.length > 0 {
        let dy = args::canonical(dy, problem.layout);
        return narrow::backward(&call, &dy, dfinal.filter(|dfinal| !dfinal.is_empty()), out);
    }
    passes::backward(&call, *plan, dy, dfinal, out)
}

/// The last S steps of sequences packed into one row: of x `[1, C, T]` or `[1, T, C]` the steps from
/// `bounds[i]` to `bounds[i + 1]` (`cu_seqlens [N + 1]`, ascending), into `out [N, C, S]`, zeros before a
/// sequence that is shorter.
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
    check_dtype(op, x.dtype, limits)?;
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
    if out.is_empty() {
        return Ok(());
    }
    state::launch_last_states(client, limits, &x.bindable(client), bounds, out)
}

/// Sequence ids of sequences packed into one row, `out [1, T]`, from `bounds` (`cu_seqlens [N + 1]`,
/// ascending): sequence i has the steps from `bounds[i]` to `bounds[i + 1]`, steps before the first bound and
/// from the last on are padding (-1). `out` has the type of the bounds.
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
    let length = out.shape.last().copied().unwrap_or(0);
    out.check(op, "seq_idx", &[1, length], client)?;
    if out.dtype != bounds.dtype {
        let names = [bounds.dtype.name(), out.dtype.name()];
        invalid!("{op}: cu_seqlens are {}, seq_idx {}, they must be alike", names[0], names[1]);
    }
    if length == 0 {
        return Ok(());
    }
    state::launch_sequence_ids(client, limits, bounds, out)
}

fn check_inputs(
    client: &Client,
    limits: &Limits,
    problem: &CausalConv1dProblem,
    inputs: &Inputs,
) -> Result<(), ConvError> {
    check_dtype(OP, problem.dtype, limits)?;
    check_dtype(OP, problem.weight_dtype, limits)?;
    check_operand(OP, "x", inputs.x, &problem.x_shape(), problem.dtype)?;
    check_operand(OP, "weight", inputs.weight, &problem.weight_shape(), problem.weight_dtype)?;
    check_optional(OP, "bias", inputs.bias, problem.bias, &[problem.channels], problem.weight_dtype)?;
    let state = problem.state_shape();
    let state_dtype = problem.state_dtype;
    check_dtype(OP, state_dtype, limits)?;
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

fn check_operand(
    op: &str,
    name: &str,
    operand: &Operand,
    shape: &[usize],
    dtype: FloatType,
) -> Result<(), ConvError> {
    if operand.shape != shape {
        invalid!("{op}: {name} has shape {:?}, the problem needs {shape:?}", operand.shape);
    }
    if operand.dtype != dtype {
        invalid!("{op}: {name} is {}, the problem needs {}", operand.dtype.name(), dtype.name());
    }
    Ok(())
}
