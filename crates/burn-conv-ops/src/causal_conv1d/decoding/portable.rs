//! Decoding steps and packed sequences from Burn's ops. Differentiable where the backend is. Indices stay on
//! the device.

use crate::backend::CausalConv1dSteps;
use crate::backend::portable::{activate, narrow, round, widen};
use crate::causal_conv1d::packed::last_states_shape;
use crate::causal_conv1d::portable::swap_layout;
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, get_device_settings};
use burn::tensor::{BoolDType, IndexingUpdateOp, IntDType, Shape};
use conv_kernels::causal_conv1d::{Conv1dLayout, UpdateProblem};

/// See [`ConvOps::causal_conv1d_update`](crate::backend::ConvOps::causal_conv1d_update).
pub(crate) fn update<B: Backend>(
    x: FloatTensor<B>,
    state: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    problem: &UpdateProblem,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (batch, channels, length) = (problem.batch, problem.channels, problem.state_length);
    let (dtype, state_dtype) = (x.dtype(), state.dtype());
    if batch == 0 || channels == 0 {
        return (x, state);
    }
    let newest = round::<B>(B::float_reshape(x, [batch, channels, 1].into()), state_dtype);
    let joined = if length == 0 { newest } else { B::float_cat(vec![state, newest], 2) };
    let window = narrow::<B>(joined.clone(), 2, length + 1 - problem.width, problem.width);
    let weight = B::float_reshape(widen::<B>(weight), [1, channels, problem.width].into());
    let sum = B::float_sum_dim(B::float_mul(widen::<B>(window), weight), 2);
    let mut pre = B::float_reshape(sum, [batch, channels].into());
    if let Some(bias) = bias {
        pre = B::float_add(pre, B::float_reshape(widen::<B>(bias), [1, channels].into()));
    }
    let new_state = if length == 0 {
        B::float_zeros([batch, channels, 0].into(), &joined.device(), state_dtype.into())
    } else {
        narrow::<B>(joined, 2, 1, length)
    };
    (round::<B>(activate::<B>(pre, problem.activation), dtype), new_state)
}

/// See [`ConvOps::causal_conv1d_update_steps`](crate::backend::ConvOps::causal_conv1d_update_steps): one step
/// after the other.
pub(crate) fn update_steps<B: Backend>(
    inputs: CausalConv1dSteps<B>,
    problem: &UpdateProblem,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let CausalConv1dSteps { x, state, weight, bias, lengths, slots } = inputs;
    let (bias, lengths, slots) = (bias.into_option(), lengths.into_option(), slots.into_option());
    let (batch, channels) = (problem.batch, problem.channels);
    let length = x.shape()[2];
    let bools = bools::<B>(&x);
    let rows = state.shape()[0];
    let served = slots.as_ref().map(|slots| Served::<B>::of(slots, rows, bools));

    let mut seen = match &served {
        Some(_) if problem.state_length == 0 => {
            B::float_zeros([batch, channels, 0].into(), &x.device(), state.dtype().into())
        }
        Some(served) => B::float_select(state.clone(), 0, served.rows.clone()),
        None => state.clone(),
    };
    // The columns of a ring in the order of their steps, and back.
    let turn = |state: FloatTensor<B>, by: IntTensor<B>| turned::<B>(state, by, problem);
    if let Some(lengths) = &lengths {
        seen = turn(seen, lengths.clone());
    }
    let mut steps = Vec::with_capacity(length);
    for step in 0..length {
        let newest = B::float_reshape(narrow::<B>(x.clone(), 2, step, 1), [batch, channels].into());
        let (y, next) = update::<B>(newest, seen, weight.clone(), bias.clone(), problem);
        steps.push(B::float_reshape(y, [batch, channels, 1].into()));
        seen = next;
    }
    let mut y = B::float_cat(steps, 2);
    if let Some(lengths) = lengths {
        seen = turn(seen, B::int_neg(B::int_add_scalar(lengths, (length as i64).into())));
    }
    let Some(served) = served else { return (y, seen) };
    let spread = |mask: BoolTensor<B>, shape: [usize; 3]| {
        let mask = B::bool_reshape(mask, [shape[0], 1, 1].into());
        B::bool_expand(mask, shape.into())
    };
    y = B::float_mask_fill(y, spread(served.padding, [batch, channels, length]), 0.0.into());
    if problem.state_length == 0 {
        return (y, state);
    }
    let chosen = B::float_select(seen, 0, served.owners);
    let unowned = spread(served.unowned, [rows, channels, problem.state_length]);
    (y, B::float_mask_where(chosen, unowned, state))
}

/// Which rows of x and of the state belong together.
struct Served<B: Backend> {
    /// `[B]`: a row of the state for each row of x, any for padding.
    rows: IntTensor<B>,
    /// `[B]`: the row of x is padding, or a later one has its slot.
    padding: BoolTensor<B>,
    /// `[slots]`: the last row of x that has each row of the state, any where there is none.
    owners: IntTensor<B>,
    /// `[slots]`: the row of the state belongs to none.
    unowned: BoolTensor<B>,
}

impl<B: Backend> Served<B> {
    fn of(slots: &IntTensor<B>, rows: usize, bools: BoolDType) -> Self {
        let (batch, device, dtype) = (slots.shape()[0], slots.device(), IntDType::from(slots.dtype()));
        // [slots, B]: 1 + the row of x where it has the slot, else 0.
        let shape = Shape::from([rows, batch]);
        let numbers = |count: usize, shape: [usize; 2]| {
            let numbers = B::int_arange(0..count as i64, &device, dtype);
            B::int_expand(B::int_reshape(numbers, shape.into()), [rows, batch].into())
        };
        let of_x = B::int_expand(B::int_reshape(slots.clone(), [1, batch].into()), shape);
        let other = B::int_not_equal(of_x, numbers(rows, [rows, 1]), bools);
        let owner = B::int_add_scalar(numbers(batch, [1, batch]), 1.into());
        let owner = B::int_max_dim(B::int_mask_fill(owner, other, 0.into()), 1);
        let owner = B::int_reshape(owner, [rows].into());
        let negative = B::int_lower_elem(slots.clone(), 0.into(), bools);
        let beyond = B::int_greater_equal_elem(slots.clone(), (rows as i64).into(), bools);
        let rows_of_x = B::int_clamp(slots.clone(), 0.into(), (rows as i64 - 1).into());
        let own = B::int_arange(1..batch as i64 + 1, &device, dtype);
        let taken = B::int_not_equal(B::int_select(owner.clone(), 0, rows_of_x.clone()), own, bools);
        Self {
            rows: rows_of_x,
            padding: B::bool_or(B::bool_or(negative, beyond), taken),
            unowned: B::int_equal_elem(owner.clone(), 0.into(), bools),
            owners: B::int_clamp(B::int_sub_scalar(owner, 1.into()), 0.into(), (batch as i64 - 1).into()),
        }
    }
}

/// Column `(j + by[b]) mod S` of row b of the state `[B, C, S]` as column j.
fn turned<B: Backend>(state: FloatTensor<B>, by: IntTensor<B>, problem: &UpdateProblem) -> FloatTensor<B> {
    let (batch, channels, size) = (problem.batch, problem.channels, problem.state_length);
    let dtype = IntDType::from(by.dtype());
    let columns = B::int_reshape(B::int_arange(0..size as i64, &by.device(), dtype), [1, size].into());
    // Within -S..S, then within 0..S whatever sign a remainder has.
    let by = B::int_remainder_scalar(B::int_reshape(by, [batch, 1].into()), (size as i64).into());
    let places = B::int_add(
        B::int_expand(B::int_add_scalar(columns, (size as i64).into()), [batch, size].into()),
        B::int_expand(by, [batch, size].into()),
    );
    let places =
        B::int_reshape(B::int_remainder_scalar(places, (size as i64).into()), [batch, 1, size].into());
    B::float_gather(2, state, B::int_expand(places, [batch, channels, size].into()))
}

/// See [`ConvOps::causal_conv1d_last_states`](crate::backend::ConvOps::causal_conv1d_last_states).
pub(crate) fn last_states<B: Backend>(
    x: FloatTensor<B>,
    bounds: IntTensor<B>,
    length: usize,
    layout: Conv1dLayout,
) -> FloatTensor<B> {
    let shape = last_states_shape(&x.shape(), &bounds.shape(), length, layout);
    let x = swap_layout::<B>(x, layout);
    let [sequences, channels, _] = shape;
    let steps = x.shape()[2];
    if shape.contains(&0) || steps == 0 {
        return B::float_zeros(shape.into(), &x.device(), x.dtype().into());
    }
    let bools = bools::<B>(&x);
    let dtype = IntDType::from(bounds.dtype());
    let bounds = B::int_clamp_max(bounds, (steps as i64).into());
    let bound = |first: usize| {
        let bound = B::int_slice(bounds.clone(), &[(first..first + sequences).into()]);
        B::int_expand(B::int_reshape(bound, [sequences, 1].into()), [sequences, length].into())
    };
    let back = B::int_arange(-(length as i64)..0, &bounds.device(), dtype);
    let back = B::int_expand(B::int_reshape(back, [1, length].into()), [sequences, length].into());
    let step = B::int_add(bound(1), back);
    let missing = B::int_lower(step.clone(), bound(0), bools);
    let step = B::int_reshape(B::int_clamp_min(step, 0.into()), [sequences * length].into());
    let columns = B::float_select(B::float_reshape(x, [channels, steps].into()), 1, step);
    let columns = B::float_reshape(columns, [channels, sequences, length].into());
    let missing = B::bool_expand(B::bool_reshape(missing, [sequences, 1, length].into()), shape.into());
    B::float_mask_fill(B::float_swap_dims(columns, 0, 1), missing, 0.0.into())
}

/// See [`ConvOps::causal_conv1d_seq_idx`](crate::backend::ConvOps::causal_conv1d_seq_idx): counts the bounds
/// at each step, and adds the counts up.
pub(crate) fn seq_idx<B: Backend>(bounds: IntTensor<B>, length: usize) -> IntTensor<B> {
    let (count, device, dtype) = (bounds.shape()[0], bounds.device(), IntDType::from(bounds.dtype()));
    if length == 0 {
        return B::int_empty([1, 0].into(), &device, dtype);
    }
    let bools = get_device_settings::<B>(&device).bool_dtype;
    // A bound beyond the row is at one more step, which is left out then.
    let bounds = B::int_clamp(bounds, 0.into(), (length as i64).into());
    let none = B::int_zeros([length + 1].into(), &device, dtype);
    let one = B::int_ones([count].into(), &device, dtype);
    let here = B::int_select_assign(none, 0, bounds, one, IndexingUpdateOp::Add);
    let reached = B::int_cumsum(B::int_slice(here, &[(0..length).into()]), 0);
    let after = B::int_equal_elem(reached.clone(), (count as i64).into(), bools);
    let ids = B::int_mask_fill(B::int_sub_scalar(reached, 1.into()), after, (-1).into());
    B::int_reshape(ids, [1, length].into())
}

/// How the device of a tensor keeps booleans.
fn bools<B: Backend>(tensor: &FloatTensor<B>) -> BoolDType {
    get_device_settings::<B>(&tensor.device()).bool_dtype
}
