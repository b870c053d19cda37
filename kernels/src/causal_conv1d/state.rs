//! The final state, and the last states of packed sequences: copies of a few columns. And the ids of packed sequences.

use super::args::{Present, Rows, UNITS, at3, canonical, column};
use super::problem::CausalConv1dProblem;
use crate::error::ConvError;
use crate::grid::{Span, dispatches};
use crate::index_operand::IndexOperand;
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

/// The last S steps of each packed sequence, those from `bounds[i]` to `bounds[i + 1]` of row 0 of x, into `out [N, C, S]`;
/// zeros where a sequence is shorter.
pub(crate) fn launch_last_states(
    client: &Client,
    limits: &Limits,
    x: &Operand,
    bounds: &IndexOperand,
    out: &Operand,
) -> Result<(), ConvError> {
    let largest = out.len().max(bounds.extent()) + UNITS as usize;
    let address = address_type("causal_conv1d_last_states", &[x, out], largest, limits)?;
    for dispatch in dispatches(out.len().div_ceil(UNITS as usize), 8.0 * f64::from(UNITS), limits) {
        // SAFETY: sequences, channels and steps are checked in the kernel.
        unsafe {
            last_states_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                x.tensor_arg(),
                bounds.tensor_arg(),
                out.tensor_arg(),
                dispatch.span(),
                x.dtype.elem(),
                bounds.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn last_states_kernel<X: Float, I: Int>(
    x: &Tensor<X>,
    bounds: &Tensor<I>,
    out: &mut Tensor<X>,
    span: Span,
    #[define(X)] _dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    let index = span.cube() * UNITS as usize + UNIT_POS as usize;
    let row = index / out.shape(2);
    let m = index - row * out.shape(2);
    let sequence = row / out.shape(1);
    let c = row - sequence * out.shape(1);
    if span.is_idle() || sequence >= out.shape(0) {
        terminate!();
    }
    // Bounds outside x, which no checked call has, read nothing.
    let start = min(usize::cast_from(bounds[sequence * bounds.stride(0)]), x.shape(2));
    let end = min(usize::cast_from(bounds[(sequence + 1) * bounds.stride(0)]), x.shape(2));
    let mut value = X::from_int(0);
    if end + m >= start + out.shape(2) {
        value = x[at3(x, 0usize, c, end + m - out.shape(2))];
    }
    let at = at3(&*out, sequence, c, m);
    out[at] = value;
}

/// The ids of the sequences from `bounds[i]` to `bounds[i + 1]` into `out [1, T]`, -1 elsewhere: a search per step.
pub(crate) fn launch_sequence_ids(
    client: &Client,
    limits: &Limits,
    bounds: &IndexOperand,
    out: &IndexOperand,
) -> Result<(), ConvError> {
    let largest = out.extent().max(bounds.extent()) + UNITS as usize;
    let address = address_type("causal_conv1d_seq_idx", &[], largest, limits)?;
    for dispatch in dispatches(out.shape[1].div_ceil(UNITS as usize), 64.0 * f64::from(UNITS), limits) {
        // SAFETY: steps are checked in the kernel, places of bounds stay below their number.
        unsafe {
            sequence_ids_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                bounds.tensor_arg(),
                out.tensor_arg(),
                dispatch.span(),
                bounds.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn sequence_ids_kernel<I: Int>(
    bounds: &Tensor<I>,
    out: &mut Tensor<I>,
    span: Span,
    #[define(I)] _index_dtype: ElemType,
) {
    let t = span.cube() * UNITS as usize + UNIT_POS as usize;
    if span.is_idle() || t >= out.shape(1) {
        terminate!();
    }
    // How many bounds are at or before the step.
    let (mut reached, mut end) = (0usize, bounds.shape(0));
    while reached < end {
        let middle = (reached + end) / 2;
        if bounds[middle * bounds.stride(0)] <= I::cast_from(t) {
            reached = middle + 1;
        } else {
            end = middle;
        }
    }
    let inside = reached < bounds.shape(0);
    let at = t * out.stride(1);
    out[at] = select(inside, I::cast_from(reached) - I::from_int(1), I::from_int(-1));
}
