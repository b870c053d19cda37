//! Causal conv1d from slices of `[initial state | x]`: tap k of every step is the slice that starts at k.
//!
//! dw and db are Burn's own sums over the batch and all steps, serial on the CPU: their error grows with the
//! number of steps.

use crate::backend::portable::{activate, activation_gradient, dtype_of, narrow, round, widen};
use crate::backend::{CausalConv1dGradients, CausalConv1dInputs};
use burn::backend::ops::PadMode;
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, get_device_settings};
use burn::tensor::{FloatDType, IntDType, Shape};
use conv_kernels::causal_conv1d::{CausalConv1dProblem, Conv1dLayout};

/// See [`ConvOps::causal_conv1d`](crate::backend::ConvOps::causal_conv1d).
pub(crate) fn forward<B: Backend>(
    inputs: CausalConv1dInputs<B>,
    problem: &CausalConv1dProblem,
) -> FloatTensor<B> {
    let dtype = inputs.x.dtype();
    if problem.x_shape().contains(&0) {
        return inputs.x;
    }
    let taps = Taps::of(&inputs, problem);
    let mut y = activate::<B>(taps.pre_activation(&inputs, problem), problem.activation);
    if let Some(residual) = inputs.residual.into_option() {
        let residual = swap_layout::<B>(widen::<B>(residual), problem.layout);
        y = B::float_add(y, taps.clear_padding(residual));
    }
    round::<B>(swap_layout::<B>(y, problem.layout), dtype)
}

/// See [`ConvOps::causal_conv1d_backward`](crate::backend::ConvOps::causal_conv1d_backward).
pub(crate) fn backward<B: Backend>(
    inputs: CausalConv1dInputs<B>,
    dy: FloatTensor<B>,
    problem: &CausalConv1dProblem,
) -> CausalConv1dGradients<B> {
    let (dtype, weight_dtype, device) = (inputs.x.dtype(), inputs.weight.dtype(), inputs.x.device());
    let state_dtype = dtype_of(problem.state_dtype);
    let (batch, channels, length, width) = (problem.batch, problem.channels, problem.length, problem.width);
    if problem.x_shape().contains(&0) {
        let zeros = |shape: Shape, dtype| B::float_zeros(shape, &device, FloatDType::from(dtype));
        return CausalConv1dGradients {
            x: zeros(problem.x_shape().into(), dtype),
            weight: zeros(problem.weight_shape().into(), weight_dtype),
            bias: problem.bias.then(|| zeros([channels].into(), weight_dtype)).into(),
            initial_state: problem
                .initial_state
                .then(|| zeros(problem.state_shape().into(), state_dtype))
                .into(),
        };
    }
    let taps = Taps::of(&inputs, problem);
    let pre = taps.pre_activation(&inputs, problem);
    let dy = swap_layout::<B>(widen::<B>(dy), problem.layout);
    let dpre = taps.clear_padding(activation_gradient::<B>(pre, dy, problem.activation));

    // What each tap hands back, shifted to where it read.
    let mut dhistory: Option<FloatTensor<B>> = None;
    let mut dweight = Vec::with_capacity(width);
    for k in 0..width {
        let share = taps.clear_foreign(B::float_mul(dpre.clone(), column::<B>(&inputs.weight, k)), k);
        let shifted = B::float_pad(share, &[(0, 0), (0, 0), (k, width - 1 - k)], PadMode::Constant(0.0));
        dhistory = Some(match dhistory {
            Some(sum) => B::float_add(sum, shifted),
            None => shifted,
        });
        let products = B::float_mul(dpre.clone(), taps.read(k));
        dweight.push(B::float_reshape(B::float_sum_dims(products, &[0, 2]), [channels, 1].into()));
    }
    let dhistory = dhistory.expect("the width is at least 1");
    let dx = swap_layout::<B>(narrow::<B>(dhistory.clone(), 2, width - 1, length), problem.layout);
    let db = problem.bias.then(|| {
        let db = B::float_reshape(B::float_sum_dims(dpre, &[0, 2]), [channels].into());
        round::<B>(db, weight_dtype)
    });
    let dinitial = problem.initial_state.then(|| match width {
        1 => B::float_zeros([batch, channels, 0].into(), &device, state_dtype.into()),
        _ => round::<B>(narrow::<B>(dhistory, 2, 0, width - 1), state_dtype),
    });
    CausalConv1dGradients {
        x: round::<B>(dx, dtype),
        weight: round::<B>(B::float_cat(dweight, 1), weight_dtype),
        bias: db.into(),
        initial_state: dinitial.into(),
    }
}

/// See [`ConvOps::causal_conv1d_final_state`](crate::backend::ConvOps::causal_conv1d_final_state).
/// Differentiable where the backend is.
pub(crate) fn final_state<B: Backend>(
    x: FloatTensor<B>,
    initial: Option<FloatTensor<B>>,
    ids: Option<IntTensor<B>>,
    problem: &CausalConv1dProblem,
) -> FloatTensor<B> {
    let (length, history) = (problem.length, problem.width - 1);
    let (shape, dtype) = (Shape::from(problem.state_shape()), dtype_of(problem.state_dtype));
    if shape.iter().any(|&size| size == 0) {
        return B::float_zeros(shape, &x.device(), dtype.into());
    }
    let zeros = || B::float_zeros(shape.clone(), &x.device(), dtype.into());
    if length == 0 {
        return initial.unwrap_or_else(zeros);
    }
    if let Some(ids) = ids {
        let initial = initial.unwrap_or_else(zeros);
        return FinalColumns::<B>::of(ids, problem).choose(swap_layout::<B>(x, problem.layout), initial);
    }
    if length >= history {
        let time = problem.layout.step_axis();
        let last = narrow::<B>(x, time, length - history, history);
        return round::<B>(swap_layout::<B>(last, problem.layout), dtype);
    }
    let initial = initial.unwrap_or_else(zeros);
    let kept = narrow::<B>(initial, 2, length, history - length);
    B::float_cat(vec![kept, round::<B>(swap_layout::<B>(x, problem.layout), dtype)], 2)
}

/// Which columns of `[initial state | x]` are the final state of rows with ids. `[B, C, W-1]` each.
struct FinalColumns<B: Backend> {
    /// Step of x, any where the column is one of the initial state.
    steps: IntTensor<B>,
    /// Column of the initial state, any where it is a step.
    columns: IntTensor<B>,
    /// Whether it is one of the initial state.
    initial: BoolTensor<B>,
    /// Whether it belongs to another sequence than the last step that is no padding.
    foreign: BoolTensor<B>,
}

impl<B: Backend> FinalColumns<B> {
    fn of(ids: IntTensor<B>, problem: &CausalConv1dProblem) -> Self {
        let (batch, length, history) = (problem.batch, problem.length, problem.width - 1);
        let (device, dtype) = (ids.device(), IntDType::from(ids.dtype()));
        let bools = get_device_settings::<B>(&device).bool_dtype;
        let count = |from: usize, to: usize| {
            let numbers = B::int_arange(from as i64..to as i64, &device, dtype);
            B::int_expand(B::int_reshape(numbers, [1, to - from].into()), [batch, to - from].into())
        };
        let spread = |of_row: IntTensor<B>| B::int_expand(of_row, [batch, history].into());
        // The steps up to the last that is no padding, 0 where there is none, and its id.
        let padding = B::int_lower_elem(ids.clone(), 0.into(), bools);
        let end = B::int_max_dim(B::int_mask_fill(count(1, length + 1), padding, 0.into()), 1);
        let last = B::int_clamp_min(B::int_sub_scalar(end.clone(), 1.into()), 0.into());
        let own = spread(B::int_gather(1, ids.clone(), last));
        let none = B::int_equal_elem(spread(end.clone()), 0.into(), bools);

        let columns = B::int_add(spread(end), count(0, history));
        let initial = B::int_lower_elem(columns.clone(), (history as i64).into(), bools);
        let steps = B::int_clamp_min(B::int_sub_scalar(columns.clone(), (history as i64).into()), 0.into());
        // The initial state belongs to the sequence of the first step.
        let other = B::int_not_equal(B::int_gather(1, ids, steps.clone()), own, bools);
        let foreign = B::bool_and(other, B::bool_not(none));
        let all = |columns: IntTensor<B>| {
            let columns = B::int_reshape(columns, [batch, 1, history].into());
            B::int_expand(columns, problem.state_shape().into())
        };
        let mask = |mask: BoolTensor<B>| {
            let mask = B::bool_reshape(mask, [batch, 1, history].into());
            B::bool_expand(mask, problem.state_shape().into())
        };
        Self {
            steps: all(steps),
            columns: all(B::int_clamp_max(columns, (history as i64 - 1).into())),
            initial: mask(initial),
            foreign: mask(foreign),
        }
    }

    /// The final state, in the dtype of the initial one, from x as `[B, C, T]`.
    fn choose(self, x: FloatTensor<B>, initial: FloatTensor<B>) -> FloatTensor<B> {
        let of_x = round::<B>(B::float_gather(2, x, self.steps), initial.dtype());
        let of_initial = B::float_gather(2, initial, self.columns);
        B::float_mask_fill(B::float_mask_where(of_x, self.initial, of_initial), self.foreign, 0.0.into())
    }
}

/// dy without what it holds at padding: the gradient of the residual.
#[cfg_attr(not(feature = "autodiff"), allow(dead_code))]
pub(crate) fn clear_padding<B: Backend>(
    dy: FloatTensor<B>,
    seq_idx: Option<IntTensor<B>>,
    problem: &CausalConv1dProblem,
) -> FloatTensor<B> {
    let Some(ids) = seq_idx else { return dy };
    if problem.x_shape().contains(&0) {
        return dy;
    }
    let bools = get_device_settings::<B>(&ids.device()).bool_dtype;
    let spread = problem.layout.swapped([problem.batch, 1, problem.length]);
    let padding = B::bool_reshape(B::int_lower_elem(ids, 0.into(), bools), spread.into());
    B::float_mask_fill(dy, B::bool_expand(padding, problem.x_shape().into()), 0.0.into())
}

/// `[initial state | x]` in fp32 and, where there are sequence ids, which of its columns each step may read.
struct Taps<B: Backend> {
    history: FloatTensor<B>,
    length: usize,
    ids: Option<Ids<B>>,
}

/// Masks of `[B, C, T]`.
struct Ids<B: Backend> {
    /// Per tap: the column belongs to another sequence than the step, or the step is padding, which reads
    /// nothing.
    foreign: Vec<BoolTensor<B>>,
    /// The step is padding.
    padding: BoolTensor<B>,
}

impl<B: Backend> Taps<B> {
    fn of(inputs: &CausalConv1dInputs<B>, problem: &CausalConv1dProblem) -> Self {
        let x = swap_layout::<B>(widen::<B>(inputs.x.clone()), problem.layout);
        let history = match inputs.initial_state.as_option() {
            Some(initial) if problem.width > 1 => B::float_cat(vec![widen::<B>(initial.clone()), x], 2),
            _ => B::float_pad(x, &[(0, 0), (0, 0), (problem.width - 1, 0)], PadMode::Constant(0.0)),
        };
        let ids = inputs.seq_idx.as_option().map(|ids| Ids::of(ids.clone(), problem));
        Self { history, length: problem.length, ids }
    }

    /// What tap k reads at every step; 0 where it belongs to another sequence.
    fn read(&self, k: usize) -> FloatTensor<B> {
        self.clear_foreign(narrow::<B>(self.history.clone(), 2, k, self.length), k)
    }

    fn clear_foreign(&self, value: FloatTensor<B>, k: usize) -> FloatTensor<B> {
        match &self.ids {
            Some(ids) => B::float_mask_fill(value, ids.foreign[k].clone(), 0.0.into()),
            None => value,
        }
    }

    fn clear_padding(&self, value: FloatTensor<B>) -> FloatTensor<B> {
        match &self.ids {
            Some(ids) => B::float_mask_fill(value, ids.padding.clone(), 0.0.into()),
            None => value,
        }
    }

    fn pre_activation(
        &self,
        inputs: &CausalConv1dInputs<B>,
        problem: &CausalConv1dProblem,
    ) -> FloatTensor<B> {
        let mut sum = B::float_mul(self.read(0), column::<B>(&inputs.weight, 0));
        for k in 1..problem.width {
            sum = B::float_add(sum, B::float_mul(self.read(k), column::<B>(&inputs.weight, k)));
        }
        if let Some(bias) = inputs.bias.as_option() {
            let bias = B::float_reshape(widen::<B>(bias.clone()), [1, problem.channels, 1].into());
            sum = B::float_add(sum, bias);
        }
        // Every activation maps the 0 of padding to 0.
        self.clear_padding(sum)
    }
}

impl<B: Backend> Ids<B> {
    fn of(ids: IntTensor<B>, problem: &CausalConv1dProblem) -> Self {
        let (batch, length, history) = (problem.batch, problem.length, problem.width - 1);
        let bools = get_device_settings::<B>(&ids.device()).bool_dtype;
        let slice = |ids: IntTensor<B>, start: usize, end: usize| {
            B::int_slice(ids, &[(0..batch).into(), (start..end).into()])
        };
        let spread = |mask: BoolTensor<B>| {
            let mask = B::bool_reshape(mask, [batch, 1, length].into());
            B::bool_expand(mask, [batch, problem.channels, length].into())
        };
        // The initial state belongs to the sequence of the first step.
        let first = B::int_repeat_dim(slice(ids.clone(), 0, 1), 1, history.max(1));
        let all = if history == 0 { ids.clone() } else { B::int_cat(vec![first, ids.clone()], 1) };
        let padding = B::int_lower_elem(ids.clone(), 0.into(), bools);
        let foreign = (0..problem.width)
            .map(|k| {
                let other = B::int_not_equal(slice(all.clone(), k, k + length), ids.clone(), bools);
                spread(B::bool_or(other, padding.clone()))
            })
            .collect();
        Self { foreign, padding: spread(padding) }
    }
}

/// Column k of the weight as `[1, C, 1]`, in fp32.
fn column<B: Backend>(weight: &FloatTensor<B>, k: usize) -> FloatTensor<B> {
    let channels = weight.shape()[0];
    B::float_reshape(widen::<B>(narrow::<B>(weight.clone(), 1, k, 1)), [1, channels, 1].into())
}

/// `[B, C, T]` from the layout and back.
pub(crate) fn swap_layout<B: Backend>(tensor: FloatTensor<B>, layout: Conv1dLayout) -> FloatTensor<B> {
    if layout.step_axis() == 2 { tensor } else { B::float_swap_dims(tensor, 1, 2) }
}
