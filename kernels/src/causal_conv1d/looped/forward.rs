//! y and the pre-activation gradient, for any width: one kernel, since both compute the same sums.
//!
//! ```text
//! pre[b,c,t] = bias[c] + sum over k < W of weight[c,k] * column(b, c, t + k)
//! y = activation(pre) + residual        dpre = dy * activation'(pre), 0 at padding
//! ```
//!
//! One step per thread, two loads per tap. Bytes: x once from DRAM (consecutive threads share columns
//! through the cache), y once, a residual once. FLOP per step: 2 W. Any strides, any width.

use crate::activation::{Activation, activate_by_code, activate_gradient};
use crate::causal_conv1d::args::{ConvParams, Present, THREADS, column, offset2, offset3, sequence_id};
use crate::causal_conv1d::call::Conv1dCall;
use crate::causal_conv1d::problem::Conv1dLayout;
use crate::error::ConvError;
use crate::index_operand::IndexOperand;
use crate::launch::{Span, dispatches};
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Channels `first..first + channels` of y, or with `dy` of the pre-activation gradient, into
/// `target[b, c - first, t]`, which is `[B, channels, T]`.
pub(crate) fn launch(
    call: &Conv1dCall,
    dy: Option<&Operand>,
    (first, channels): (usize, usize),
    target: &Operand,
) -> Result<(), ConvError> {
    let &Conv1dCall { client, limits, problem, ref views } = call;
    let threads = problem.batch * channels * problem.length;
    let mut operands = views.operands();
    // One binding serves dy and the residual: never both.
    let residual = views.residual.as_ref().filter(|_| dy.is_none());
    let other = dy.or(residual);
    operands.extend(other);
    operands.push(target);
    let largest = threads.max(views.index_extent());
    let address = address_type("causal_conv1d", &operands, largest + THREADS as usize, limits)?;
    let operations = 2.0 * f64::from(THREADS) * (problem.width + 8) as f64;
    let present = call.present(&[(dy.is_some(), Present::DY), (residual.is_some(), Present::RESIDUAL)]);
    for dispatch in dispatches(threads.div_ceil(THREADS as usize), operations, limits) {
        // SAFETY: contract in `args`; the kernel masks rows, steps and columns.
        unsafe {
            forward_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                views.x.tensor_arg(),
                views.weight.tensor_arg(),
                views.bias_or_weight().tensor_arg(),
                views.initial_or_x().tensor_arg(),
                views.seq_idx.as_ref().map(IndexOperand::tensor_arg).into(),
                other.unwrap_or(&views.x).tensor_arg(),
                target.tensor_arg(),
                problem.params(first, channels, present),
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
    params: ConvParams,
    span: Span,
    #[comptime] packed: bool,
    #[comptime] layout: Conv1dLayout,
    #[define(X)] _dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
    #[define(Y)] _target_dtype: ElemType,
) {
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
    let position = params.position(index, params.length, layout);
    if span.is_idle() || position.b >= params.batch {
        terminate!();
    }
    let channel = params.first + position.c;
    let mut sum = 0.0f32;
    if params.has(Present::BIAS) {
        sum = f32::cast_from(bias[channel * bias.stride(0)]);
    }
    let mut own = I::from_int(0);
    if comptime!(packed) {
        own = sequence_id(seq_idx.unwrap(), &params, position.b, position.t + params.history());
    }
    for k in 0..params.width {
        let value = column(x, initial, &params, position.b, channel, position.t + k);
        let next = fma(f32::cast_from(weight[offset2(weight, channel, k)]), value, sum);
        if comptime!(packed) {
            let same = sequence_id(seq_idx.unwrap(), &params, position.b, position.t + k) == own;
            sum = select(same, next, sum);
        } else {
            sum = next;
        }
    }
    let mut result = activate_by_code(sum, params.activation);
    if params.has(Present::DY) {
        result = f32::cast_from(other[offset3(other, position.b, channel, position.t)]);
        if params.activation == 1u32 {
            result = activate_gradient(sum, result, Activation::Relu);
        }
        if params.activation == 2u32 {
            result = activate_gradient(sum, result, Activation::Silu);
        }
    }
    if params.has(Present::RESIDUAL) {
        result += f32::cast_from(other[offset3(other, position.b, channel, position.t)]);
    }
    if comptime!(packed) {
        // A select, so that even a NaN in dy at padding is dropped.
        result = select(own < I::from_int(0), 0.0f32, result);
    }
    let at = offset3(&*target, position.b, position.c, position.t);
    target[at] = Y::cast_from(result);
}
