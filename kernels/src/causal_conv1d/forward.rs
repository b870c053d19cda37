//! y, and the gradient before the activation, for any width: one kernel, since both recompute the same sums.
//!
//! A unit has one step and reads two numbers per tap. Bytes: x once from memory (neighbouring units share
//! columns through the cache), y once, a residual once. Any strides.

use super::args::{Present, Rows, UNITS, at2, at3, column, id_of};
use super::call::Call;
use super::problem::Conv1dLayout;
use crate::activation::{Activation, activate_by_code, activate_gradient};
use crate::error::ConvError;
use crate::index_operand::IndexOperand;
use crate::launch::{Span, dispatches};
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Channels `first..first + channels` of the pass: with `dy`, `target[b, c - first, t]` is the gradient
/// before the activation, else y. `target` is `[B, channels, T]`.
pub(crate) fn launch(
    call: &Call,
    dy: Option<&Operand>,
    (first, channels): (usize, usize),
    target: &Operand,
) -> Result<(), ConvError> {
    let &Call { client, limits, problem, ref views } = call;
    let units = problem.batch * channels * problem.length;
    let mut operands = views.operands();
    // dy, or the residual of y: never both.
    let residual = views.residual.as_ref().filter(|_| dy.is_none());
    let other = dy.or(residual);
    operands.extend(other);
    operands.push(target);
    let largest = units.max(views.index_extent());
    let address = address_type("causal_conv1d", &operands, largest + UNITS as usize, limits)?;
    let operations = 2.0 * f64::from(UNITS) * (problem.width + 8) as f64;
    let present = call.present(&[(dy.is_some(), Present::DY), (residual.is_some(), Present::RESIDUAL)]);
    for dispatch in dispatches(units.div_ceil(UNITS as usize), operations, limits) {
        // SAFETY: rows, steps and columns are checked in the kernel; the conformance run puts guards around
        // every buffer.
        unsafe {
            forward_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                views.x.tensor_arg(),
                views.weight.tensor_arg(),
                views.bias_or_weight().tensor_arg(),
                views.initial_or_x().tensor_arg(),
                views.seq_idx.as_ref().map(IndexOperand::tensor_arg).into(),
                other.unwrap_or(&views.x).tensor_arg(),
                target.tensor_arg(),
                problem.rows(first, channels, present),
                dispatch.span(),
                views.seq_idx.is_some(),
                problem.layout,
                problem.dtype.elem(),
                problem.weight_dtype.elem(),
                problem.state_dtype.elem(),
                views.index_elem(),
                target.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn forward_kernel<X: Float, W: Float, H: Float, I: Int, Y: Float>(
    x: &Tensor<X>,
    weight: &Tensor<W>,
    bias: &Tensor<W>,
    initial: &Tensor<H>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    other: &Tensor<X>,
    target: &mut Tensor<Y>,
    rows: Rows,
    span: Span,
    #[comptime] packed: bool,
    #[comptime] layout: Conv1dLayout,
    #[define(X)] _dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
    #[define(Y)] _target_dtype: ElemType,
) {
    let index = span.index() * UNITS as usize + UNIT_POS as usize;
    let place = rows.place(index, rows.length, layout);
    if span.is_idle() || place.b >= rows.batch {
        terminate!();
    }
    let channel = rows.first + place.c;
    let mut sum = 0.0f32;
    if rows.has(Present::BIAS) {
        sum = f32::cast_from(bias[channel * bias.stride(0)]);
    }
    let mut own = I::from_int(0);
    if comptime!(packed) {
        own = id_of(seq_idx.unwrap(), &rows, place.b, place.t + rows.history());
    }
    for k in 0..rows.width {
        let value = column(x, initial, &rows, place.b, channel, place.t + k);
        let next = fma(f32::cast_from(weight[at2(weight, channel, k)]), value, sum);
        if comptime!(packed) {
            let same = id_of(seq_idx.unwrap(), &rows, place.b, place.t + k) == own;
            sum = select(same, next, sum);
        } else {
            sum = next;
        }
    }
    let mut result = activate_by_code(sum, rows.activation);
    if rows.has(Present::DY) {
        result = f32::cast_from(other[at3(other, place.b, channel, place.t)]);
        if rows.activation == 1u32 {
            result = activate_gradient(sum, result, Activation::Relu);
        }
        if rows.activation == 2u32 {
            result = activate_gradient(sum, result, Activation::Silu);
        }
    }
    if rows.has(Present::RESIDUAL) {
        result += f32::cast_from(other[at3(other, place.b, channel, place.t)]);
    }
    if comptime!(packed) {
        // Padding: a select, so that not even a NaN of dy gets through.
        result = select(own < I::from_int(0), 0.0f32, result);
    }
    let at = at3(&*target, place.b, place.c, place.t);
    target[at] = Y::cast_from(result);
}
