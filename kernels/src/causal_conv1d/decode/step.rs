//! One decoding step of a state of four columns (Mamba's): one channel of one row per thread, its state one
//! vector.
//!
//! ```text
//! h = [state 0 .. state 3 | x]      new state = h[1..]
//! y = activation( bias + sum over k < W of weight[k] * h[5 - W + k] )
//! ```
//!
//! Written column by column, a state takes four strided stores, four write transactions per sector; as a
//! vector it takes one coalesced store. The sum has the order of [`update`](mod@super::update)'s loop:
//! bitwise equal. Bytes: x, y and both states once. FLOP: 2 W and the activation. Declined: other state
//! lengths, states that are not contiguous, rings, slots. The new state may be the old one's memory: a
//! thread loads its vector before it stores it.

use super::update::DecodingSteps;
use crate::activation::activate_by_code;
use crate::causal_conv1d::args::{Present, THREADS};
use crate::causal_conv1d::problem::UpdateProblem;
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Columns of the state.
const COLUMNS: usize = 4;

type Quad = Vector<f32, Const<4>>;

/// Whether this kernel serves the call.
pub(super) fn serves(problem: &UpdateProblem, steps: &DecodingSteps) -> bool {
    let vectorizable = |state: &Operand| state.is_row_major() && state.is_aligned(COLUMNS);
    problem.state_length == COLUMNS
        && steps.x.shape[2] == 1
        && steps.lengths.is_none()
        && steps.slots.is_none()
        && vectorizable(steps.state)
        && vectorizable(steps.new_state)
}

/// Launches the step; the problem must have rows and channels.
pub(super) fn launch(
    client: &Client,
    limits: &Limits,
    problem: &UpdateProblem,
    steps: &DecodingSteps,
) -> Result<(), ConvError> {
    let threads = problem.batch * problem.channels;
    let bias = steps.bias.unwrap_or(steps.weight);
    let operands = [steps.x, steps.state, steps.weight, steps.y, steps.new_state, bias];
    let address = address_type("causal_conv1d_update", &operands, threads + THREADS as usize, limits)?;
    let operations = f64::from(THREADS) * (2 * problem.width + 8) as f64;
    for dispatch in dispatches(threads.div_ceil(THREADS as usize), operations, limits) {
        let params = StepParamsLaunch {
            batch: problem.batch,
            channels: problem.channels,
            width: problem.width,
            x_b: steps.x.strides[0],
            x_c: steps.x.strides[1],
            y_b: steps.y.strides[0],
            y_c: steps.y.strides[1],
            weight_c: steps.weight.strides[0],
            weight_k: steps.weight.strides[1],
            bias_c: steps.bias.map_or(0, |bias| bias.strides[0]),
        };
        // SAFETY: contract in `args`; the kernel masks rows, channels follow from the index. `serves` checked
        // that the states are contiguous and aligned to vectors.
        unsafe {
            step_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                steps.x.buffer_arg(1),
                steps.state.buffer_arg(COLUMNS),
                steps.weight.buffer_arg(1),
                bias.buffer_arg(1),
                steps.y.buffer_arg(1),
                steps.new_state.buffer_arg(COLUMNS),
                params,
                problem.activation.code(),
                Present::bits(&[(steps.bias.is_some(), Present::BIAS)]),
                dispatch.span(),
                problem.dtype.elem(),
                problem.weight_dtype.elem(),
                problem.state_dtype.elem(),
            );
        }
    }
    Ok(())
}

/// Extents, and strides in elements.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct StepParams {
    batch: usize,
    channels: usize,
    width: usize,
    x_b: usize,
    x_c: usize,
    y_b: usize,
    y_c: usize,
    weight_c: usize,
    weight_k: usize,
    bias_c: usize,
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn step_kernel<X: Float, W: Float, H: Float>(
    x: &[X],
    state: &[Vector<H, Const<4>>],
    weight: &[W],
    bias: &[W],
    y: &mut [X],
    new_state: &mut [Vector<H, Const<4>>],
    params: StepParams,
    activation: u32,
    present: u32,
    span: Span,
    #[define(X)] _dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
) {
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
    let b = index / params.channels;
    let c = index - b * params.channels;
    if span.is_idle() || b >= params.batch {
        terminate!();
    }
    let old = Quad::cast_from(state[index]);
    let newest = f32::cast_from(x[b * params.x_b + c * params.x_c]);
    let mut sum = 0.0f32;
    if present & Present::BIAS != 0u32 {
        sum = f32::cast_from(bias[c * params.bias_c]);
    }
    // Column p of [state | x] is read by tap p - (5 - W); column 0 only if W = 5.
    let row = c * params.weight_c;
    #[unroll]
    for p in 0..comptime!(COLUMNS + 1) {
        if p + params.width > COLUMNS {
            let tap = f32::cast_from(weight[row + (p + params.width - COLUMNS - 1) * params.weight_k]);
            let mut value = newest;
            if comptime!(p < COLUMNS) {
                value = old.extract(p);
            }
            sum = fma(tap, value, sum);
        }
    }
    y[b * params.y_b + c * params.y_c] = X::cast_from(activate_by_code(sum, activation));
    let mut next = Quad::new(newest);
    #[unroll]
    for j in 1..COLUMNS {
        next.insert(comptime!(j - 1), old.extract(j));
    }
    new_state[index] = Vector::cast_from(next);
}
