//! The final state and the one-step update: copies of a few columns, and one dot product per channel.

use super::args::{Present, Rows, UNITS, at2, at3, canonical, column};
use super::plan::check_turns;
use super::problem::{CausalConv1dProblem, UpdateProblem};
use crate::activation::activate;
use crate::conv3d::Activation;
use crate::error::ConvError;
use crate::grid::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// The last W-1 columns of `[initial state | x]` into `out [B, C, W-1]`.
pub(crate) fn launch_final_state(
    client: &Client,
    limits: &Limits,
    problem: &CausalConv1dProblem,
    x: &Operand,
    initial_state: Option<&Operand>,
    out: &Operand,
) -> Result<(), ConvError> {
    let x = canonical(x, problem.layout).bindable(client);
    let operands: Vec<&Operand> = [&x, out].into_iter().chain(initial_state).collect();
    let present = Present::bits(&[(initial_state.is_some(), Present::INITIAL)]);
    let address = address_type("causal_conv1d", &operands, out.len() + UNITS as usize, limits)?;
    for dispatch in dispatches(out.len().div_ceil(UNITS as usize), 8.0 * f64::from(UNITS), limits) {
        // SAFETY: rows and columns are checked in the kernel.
        unsafe {
            final_state_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                x.tensor_arg(),
                initial_state.unwrap_or(&x).tensor_arg(),
                out.tensor_arg(),
                problem.rows(0, problem.channels, present),
                dispatch.span(),
                problem.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn final_state_kernel<X: Float>(
    x: &Tensor<X>,
    initial: &Tensor<X>,
    out: &mut Tensor<X>,
    rows: Rows,
    span: Span,
    #[define(X)] _dtype: ElemType,
) {
    let index = span.cube() * UNITS as usize + UNIT_POS as usize;
    let row = index / rows.history();
    let m = index - row * rows.history();
    let b = row / rows.channels;
    let c = row - b * rows.channels;
    if span.is_idle() || b >= rows.batch {
        terminate!();
    }
    let value = column(x, initial, &rows, b, c, rows.length + m);
    let at = at3(&*out, b, c, m);
    out[at] = X::cast_from(value);
}

/// One decoding step: operands x `[B, C]`, state `[B, C, S]`, weight `[C, W]`, bias, y, new state. One unit per channel.
pub(crate) fn launch_update(
    client: &Client,
    limits: &Limits,
    problem: &UpdateProblem,
    [x, state, weight]: [&Operand; 3],
    bias: Option<&Operand>,
    [y, new_state]: [&Operand; 2],
) -> Result<(), ConvError> {
    check_turns("causal_conv1d_update", problem.width + problem.state_length, limits)?;
    let (state, new_state) = (state.bindable(client), new_state.bindable(client));
    let units = problem.batch * problem.channels;
    let operands: Vec<&Operand> = [x, &state, weight, y, &new_state].into_iter().chain(bias).collect();
    let address = address_type("causal_conv1d_update", &operands, units + UNITS as usize, limits)?;
    let operations = f64::from(UNITS) * (2 * problem.width + problem.state_length + 8) as f64;
    for dispatch in dispatches(units.div_ceil(UNITS as usize), operations, limits) {
        // SAFETY: rows and channels are checked in the kernel, state indices stay below S.
        unsafe {
            update_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                x.tensor_arg(),
                state.tensor_arg(),
                weight.tensor_arg(),
                bias.map(Operand::tensor_arg).into(),
                y.tensor_arg(),
                new_state.tensor_arg(),
                dispatch.span(),
                problem.activation,
                problem.dtype.elem(),
                problem.weight_dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn update_kernel<X: Float, W: Float>(
    x: &Tensor<X>,
    state: &Tensor<X>,
    weight: &Tensor<W>,
    bias: ComptimeOption<&Tensor<W>>,
    y: &mut Tensor<X>,
    new_state: &mut Tensor<X>,
    span: Span,
    #[comptime] activation: Activation,
    #[define(X)] _dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
) {
    let index = span.cube() * UNITS as usize + UNIT_POS as usize;
    let b = index / x.shape(1);
    let c = index - b * x.shape(1);
    if span.is_idle() || b >= x.shape(0) {
        terminate!();
    }
    let (length, width) = (state.shape(2), weight.shape(1));
    let newest = x[at2(x, b, c)];
    let bias: ComptimeOption<f32> = bias.map(|bias| f32::cast_from(bias[c * bias.stride(0)]));
    let mut sum = bias.unwrap_or_else(|| 0.0f32.runtime());
    // Tap k reads element S + 1 - W + k of [state | x].
    for k in 0..width - 1 {
        let value = f32::cast_from(state[at3(state, b, c, length + 1 - width + k)]);
        sum += value * f32::cast_from(weight[at2(weight, c, k)]);
    }
    sum += f32::cast_from(newest) * f32::cast_from(weight[at2(weight, c, width - 1)]);
    let at = at2(&*y, b, c);
    y[at] = X::cast_from(activate(sum, activation));
    if length > 0 {
        for s in 0..length - 1 {
            let at = at3(&*new_state, b, c, s);
            new_state[at] = state[at3(state, b, c, s + 1)];
        }
        let at = at3(&*new_state, b, c, length - 1);
        new_state[at] = newest;
    }
}
