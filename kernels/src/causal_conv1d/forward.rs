//! y, and the gradient before the activation: one kernel, since both recompute the same sums.
//!
//! ```text
//! unrolled   a unit: W-1+4 columns and W weights in registers, 4 steps
//! looped     a unit: 1 step, 2 loads per tap
//! ```
//!
//! Bytes: x once from memory (neighbouring units share columns through the cache), y once. Any strides.

use super::args::{Present, Rows, UNITS, at2, at3, column, id_of, steps};
use super::call::Call;
use super::problem::Conv1dLayout;
use crate::activation::{activate, activate_gradient};
use crate::conv3d::Activation;
use crate::error::ConvError;
use crate::grid::{Span, dispatches};
use crate::index_operand::IndexOperand;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Channels `first..first + channels` of the pass: with `dy`, `target[b, c - first, t]` is the gradient before the
/// activation, else y. `target` is `[B, channels, T]`.
pub(crate) fn launch(
    call: &Call,
    dy: Option<&Operand>,
    (first, channels): (usize, usize),
    target: &Operand,
) -> Result<(), ConvError> {
    let &Call { client, limits, problem, unrolled, ref views } = call;
    let units = problem.batch * channels * problem.length.div_ceil(steps(unrolled));
    let mut operands = views.operands();
    operands.extend(dy);
    operands.push(target);
    let largest = (problem.batch * channels * problem.length).max(views.index_extent());
    let address = address_type("causal_conv1d", &operands, largest + UNITS as usize, limits)?;
    let operations = 2.0 * f64::from(UNITS) * (steps(unrolled) * (problem.width + 8)) as f64;
    let [bias, state, ids] = [views.bias.is_some(), views.initial_state.is_some(), views.seq_idx.is_some()];
    let present = [bias, state, ids, dy.is_some()];
    for dispatch in dispatches(units.div_ceil(UNITS as usize), operations, limits) {
        // SAFETY: rows, steps and columns are checked in the kernel; the conformance run puts guards around every buffer.
        unsafe {
            forward_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                views.x.tensor_arg(),
                views.weight.tensor_arg(),
                views.bias.as_ref().map(Operand::tensor_arg).into(),
                views.initial_state.as_ref().map(Operand::tensor_arg).into(),
                views.seq_idx.as_ref().map(IndexOperand::tensor_arg).into(),
                dy.map(Operand::tensor_arg).into(),
                target.tensor_arg(),
                problem.rows(first, channels),
                dispatch.span(),
                unrolled,
                present,
                problem.layout,
                problem.activation,
                problem.dtype.elem(),
                problem.weight_dtype.elem(),
                views.index_elem(),
                target.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn forward_kernel<X: Float, W: Float, I: Int, Y: Float>(
    x: &Tensor<X>,
    weight: &Tensor<W>,
    bias: ComptimeOption<&Tensor<W>>,
    initial: ComptimeOption<&Tensor<X>>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    dy: ComptimeOption<&Tensor<X>>,
    target: &mut Tensor<Y>,
    rows: Rows,
    span: Span,
    #[comptime] unrolled: Option<usize>,
    #[comptime] _present: Present<4>,
    #[comptime] layout: Conv1dLayout,
    #[comptime] activation: Activation,
    #[define(X)] _dtype: ElemType,
    #[define(W)] _weight_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
    #[define(Y)] _target_dtype: ElemType,
) {
    let steps = comptime!(steps(unrolled));
    let index = span.cube() * UNITS as usize + UNIT_POS as usize;
    let place = rows.place(index, rows.length.div_ceil(steps), layout);
    if span.is_idle() || place.b >= rows.batch {
        terminate!();
    }
    let channel = rows.first + place.c;
    let first_step = place.block * steps;
    let bias: ComptimeOption<f32> = bias.map(|bias| f32::cast_from(bias[channel * bias.stride(0)]));
    let bias = bias.unwrap_or_else(|| 0.0f32.runtime());

    let mut sums = Array::<f32>::new(steps);
    #[unroll]
    for step in 0..steps {
        sums[step] = bias;
    }
    if comptime!(unrolled.is_some()) {
        let width = comptime!(unrolled.unwrap_or(1));
        let mut weights = Array::<f32>::new(width);
        #[unroll]
        for k in 0..width {
            weights[k] = f32::cast_from(weight[at2(weight, channel, k)]);
        }
        // The ids of the columns, loaded once; the step of tap 0 at column j has column j + width - 1 for itself.
        let mut ids = Array::<I>::new(comptime!(width + steps - 1));
        if comptime!(seq_idx.is_some()) {
            #[unroll]
            for j in 0..comptime!(width + steps - 1) {
                ids[j] = id_of(seq_idx.unwrap(), &rows, place.b, first_step + j);
            }
        }
        #[unroll]
        for j in 0..comptime!(width + steps - 1) {
            let value = column(x, initial, &rows, place.b, channel, first_step + j);
            #[unroll]
            for step in 0..steps {
                // This step reads the column with tap k = j - step.
                if comptime!(j >= step && j < step + width) {
                    let product = weights[j - step] * value;
                    if comptime!(seq_idx.is_some()) {
                        let same = ids[j] == ids[step + width - 1];
                        sums[step] += select(same, product, 0.0f32);
                    } else {
                        sums[step] += product;
                    }
                }
            }
        }
    } else {
        for k in 0..rows.width {
            let value = column(x, initial, &rows, place.b, channel, first_step + k);
            let product = f32::cast_from(weight[at2(weight, channel, k)]) * value;
            if comptime!(seq_idx.is_some()) {
                let ids = seq_idx.unwrap();
                let own = id_of(ids, &rows, place.b, first_step + rows.history());
                let same = id_of(ids, &rows, place.b, first_step + k) == own;
                sums[0] += select(same, product, 0.0f32);
            } else {
                sums[0] += product;
            }
        }
    }

    #[unroll]
    for step in 0..steps {
        let t = first_step + step;
        if t < rows.length {
            let mut result = sums[step];
            if comptime!(dy.is_some()) {
                let dy = dy.unwrap();
                let gradient = f32::cast_from(dy[at3(dy, place.b, channel, t)]);
                result = activate_gradient(result, gradient, activation);
            } else {
                result = activate(result, activation);
            }
            if comptime!(seq_idx.is_some()) {
                // Padding: a select, so that not even a NaN of dy gets through.
                let padding = id_of(seq_idx.unwrap(), &rows, place.b, t + rows.history()) < I::from_int(0);
                result = select(padding, 0.0f32, result);
            }
            let at = at3(&*target, place.b, place.c, t);
            target[at] = Y::cast_from(result);
        }
    }
}
