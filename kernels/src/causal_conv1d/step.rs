//! One decoding step of a state of four columns, Mamba's: a unit has one channel of one row, whose state is a
//! vector.
//!
//! ```text
//! h = [state 0 .. state 3 | x]      new state = h[1..]
//! y = activation( bias + sum over k < W of weight[k] * h[5 - W + k] )
//! ```
//!
//! Column by column such a state is written in four parts of 16 bytes each, four times as many writes as
//! there are sectors. The sum has the order of [`super::update`]'s loop, so its bits are the same. Bytes: x,
//! y, both states once. Operations: W multiply-adds and the activation. Declined: other lengths of the state,
//! states that are not contiguous, rings and slots. The new state may be the old one's memory: a unit reads
//! its vector before it writes it.

use super::args::{Present, UNITS};
use super::problem::UpdateProblem;
use super::update::DecodingSteps;
use crate::activation::activate_by_code;
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type, row_major};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Columns of the state.
const COLUMNS: usize = 4;

type Quad = Vector<f32, Const<4>>;

/// Whether the steps are one step of such a state.
pub(super) fn serves(problem: &UpdateProblem, steps: &DecodingSteps) -> bool {
    let whole = |state: &Operand| {
        let vector = (COLUMNS * state.dtype.size()) as u64;
        state.strides == row_major(&state.shape)
            && state.handle.offset_start.unwrap_or(0).is_multiple_of(vector)
    };
    problem.state_length == COLUMNS
        && steps.x.shape[2] == 1
        && steps.lengths.is_none()
        && steps.slots.is_none()
        && whole(steps.state)
        && whole(steps.new_state)
}

/// Launches the step of a problem with rows and channels.
pub(super) fn launch(
    client: &Client,
    limits: &Limits,
    problem: &UpdateProblem,
    steps: &DecodingSteps,
) -> Result<(), ConvError> {
    let units = problem.batch * problem.channels;
    let bias = steps.bias.unwrap_or(steps.weight);
    let operands = [steps.x, steps.state, steps.weight, steps.y, steps.new_state, bias];
    let address = address_type("causal_conv1d_update", &operands, units + UNITS as usize, limits)?;
    let operations = f64::from(UNITS) * (2 * problem.width + 8) as f64;
    for dispatch in dispatches(units.div_ceil(UNITS as usize), operations, limits) {
        let places = PlacesLaunch::new(
            problem.batch,
            problem.channels,
            problem.width,
            steps.x.strides[0],
            steps.x.strides[1],
            steps.y.strides[0],
            steps.y.strides[1],
            steps.weight.strides[0],
            steps.weight.strides[1],
            steps.bias.map_or(0, |bias| bias.strides[0]),
        );
        // SAFETY: rows and channels are checked in the kernel.
        unsafe {
            step_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                steps.x.buffer_arg(1),
                steps.state.buffer_arg(COLUMNS),
                steps.weight.buffer_arg(1),
                bias.buffer_arg(1),
                steps.y.buffer_arg(1),
                steps.new_state.buffer_arg(COLUMNS),
                places,
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

/// Extents, and distances in elements.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Places {
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
    places: Places,
    activation: u32,
    present: u32,
    span: Span,
    #[define(X)] _dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
) {
    let index = span.index() * UNITS as usize + UNIT_POS as usize;
    let b = index / places.channels;
    let c = index - b * places.channels;
    if span.is_idle() || b >= places.batch {
        terminate!();
    }
    let seen = Quad::cast_from(state[index]);
    let newest = f32::cast_from(x[b * places.x_b + c * places.x_c]);
    let mut sum = 0.0f32;
    if present & Present::BIAS != 0u32 {
        sum = f32::cast_from(bias[c * places.bias_c]);
    }
    // Place p of [state | x] is read by tap p - (5 - W), the first place by a filter of five taps only.
    let row = c * places.weight_c;
    #[unroll]
    for p in 0..comptime!(COLUMNS + 1) {
        if p + places.width > COLUMNS {
            let tap = f32::cast_from(weight[row + (p + places.width - COLUMNS - 1) * places.weight_k]);
            let mut value = newest;
            if comptime!(p < COLUMNS) {
                value = seen.extract(p);
            }
            sum = fma(tap, value, sum);
        }
    }
    y[b * places.y_b + c * places.y_c] = X::cast_from(activate_by_code(sum, activation));
    let mut next = Quad::new(newest);
    #[unroll]
    for j in 1..COLUMNS {
        next.insert(comptime!(j - 1), seen.extract(j));
    }
    new_state[index] = Vector::cast_from(next);
}
