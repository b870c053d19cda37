//! Causal conv1d of sequences that are packed into one row, each with a state of its own.
//!
//! Without states the row stays as it is and ids keep its sequences apart. With states each is put before its
//! sequence, so that the same ids do; what the longer row has at the states' columns is left out of y. For W
//! = 3:
//!
//! ```text
//!   states, x     a a | b b     1 2 3 4 | 5
//!   longer row    a a 1 2 3 4 | b b 5            ids 0 0 0 0 0 0 1 1 1
//! ```
//!
//! Both orders hold the same columns, so the gradient of either move is the other move. Bytes: with states x,
//! y and their gradients are read and written once more. With fp32 states next to 16-bit x the longer row
//! is fp32, so no state is rounded; y is rounded once, as without states. Indices are computed on the device
//! from the bounds.

#[cfg(feature = "autodiff")]
pub(crate) mod autodiff;
mod check;

use super::{
    CausalConv1dOptions, try_causal_conv1d, try_causal_conv1d_last_states, try_causal_conv1d_seq_idx,
};
use crate::backend::ConvOps;
use crate::{Conv1dLayout, ConvError, or_panic};
use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};

const OP: &str = "causal_conv1d_packed";

/// Causal depthwise conv1d of N sequences that are packed into one row: y of x's shape, and the state of each
/// sequence to continue with, `[N, C, W-1]`. x is `[1, C, T]` or `[1, T, C]` as the options say, weight
/// `[C, W]`, bias `[C]`; sequence i has the steps from `cu_seqlens[i]` to `cu_seqlens[i + 1]` (`[N + 1]`,
/// ascending, at most T), the others are padding (y 0, no gradient).
///
/// `options.initial_state` is `[N, C, W-1]`, the W-1 steps before each sequence, oldest first, in x's dtype
/// or fp32, which the returned states then have too; zeros in x's dtype where there is none. With it the row
/// is copied with the states in it, and y out of it: about three times the memory is moved, more with fp32
/// states next to 16-bit x. `options.residual` is of x's shape. Both outputs are differentiable.
///
/// ```no_run
/// use burn::tensor::{Device, Distribution, Int, Tensor};
/// use burn_conv_ops::{CausalConv1dOptions, causal_conv1d_packed};
///
/// let device = Device::default();
/// let weight = Tensor::<2>::random([64, 4], Distribution::Default, &device);
/// // Three sequences of 5, 1 and 4 steps, then three more steps of the first and two of the last.
/// let x = Tensor::<3>::random([1, 64, 10], Distribution::Default, &device);
/// let bounds = Tensor::<1, Int>::from_data([0, 5, 6, 10], &device);
/// let options = CausalConv1dOptions::new();
/// let (_, states) = causal_conv1d_packed(x, weight.clone(), None, bounds, options);
/// let x = Tensor::<3>::random([1, 64, 5], Distribution::Default, &device);
/// let bounds = Tensor::<1, Int>::from_data([0, 3, 3, 5], &device);
/// let (y, states) = causal_conv1d_packed(x, weight, None, bounds, states);
/// assert_eq!((y.dims(), states.dims()), ([1, 64, 5], [3, 64, 3]));
/// ```
///
/// # Panics
/// Where [`try_causal_conv1d_packed`] returns an error.
pub fn causal_conv1d_packed(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    cu_seqlens: Tensor<1, Int>,
    options: impl Into<CausalConv1dOptions>,
) -> (Tensor<3>, Tensor<3>) {
    or_panic(try_causal_conv1d_packed(x, weight, bias, cu_seqlens, options))
}

/// [`causal_conv1d_packed`] with errors as values.
///
/// # Errors
/// As [`try_causal_conv1d`](crate::try_causal_conv1d); when x has more than one row, and when there is a
/// `seq_idx` too.
pub fn try_causal_conv1d_packed(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    cu_seqlens: Tensor<1, Int>,
    options: impl Into<CausalConv1dOptions>,
) -> Result<(Tensor<3>, Tensor<3>), ConvError> {
    let options = options.into();
    check::check(&x, &weight, bias.as_ref(), &cu_seqlens, &options)?;
    let axis = options.layout.step_axis();
    let (steps, history) = (x.dims()[axis], weight.dims()[1] - 1);
    let layout = options.layout;
    let CausalConv1dOptions { initial_state: initial, residual, .. } = options.clone();
    let of_row = |seq_idx, residual| CausalConv1dOptions {
        seq_idx: Some(seq_idx),
        residual,
        initial_state: None,
        initial_seq_idx: None,
        ..options
    };
    let dtype = x.dtype();
    let state_dtype = initial.as_ref().map_or(dtype, |initial| initial.dtype());
    let Some(initial) = initial.filter(|initial| initial.shape().num_elements() > 0) else {
        let last = try_causal_conv1d_last_states(x.clone(), cu_seqlens.clone(), history, layout)?;
        let last = last.cast(state_dtype);
        let seq_idx = try_causal_conv1d_seq_idx(cu_seqlens, steps)?;
        return Ok((try_causal_conv1d(x, weight, bias, of_row(seq_idx, residual))?, last));
    };
    if steps == 0 {
        return Ok((x, initial));
    }

    let order = Order::of(cu_seqlens, steps, history)?;
    // The rows' columns one after the other, along the axis of the steps.
    let columns = if axis == 2 {
        initial.swap_dims(0, 1).flatten::<2>(1, 2)
    } else {
        initial.swap_dims(1, 2).flatten::<2>(0, 1)
    };
    let states = columns.unsqueeze_dim::<3>(0);
    let join = |states: Tensor<3>, x: Tensor<3>| order.join(Tensor::cat(vec![states, x], axis), axis);
    let residual = residual.map(|residual| join(states.zeros_like(), residual.cast(state_dtype)));
    let row = join(states, x.cast(state_dtype));
    let last = try_causal_conv1d_last_states(row.clone(), order.bounds.clone(), history, layout)?;
    let seq_idx = try_causal_conv1d_seq_idx(order.bounds.clone(), row.dims()[axis])?;
    let y = order.part(try_causal_conv1d(row, weight, bias, of_row(seq_idx, residual))?, axis);
    let before = y.dims()[axis] - steps;
    Ok((y.narrow(axis, before, steps).cast(dtype), last))
}

/// Where the columns of `[states | x]` are in the row that has each state before its sequence.
struct Order {
    /// Where the sequences of the longer row begin, and where the last ends, `[N + 1]`.
    bounds: Tensor<1, Int>,
    /// The column of `[states | x]` that each column of the longer row is.
    from: Tensor<1, Int>,
    /// The column of the longer row that each column of `[states | x]` becomes.
    to: Tensor<1, Int>,
}

impl Order {
    /// The order for `N` states of `history` columns and a row of `steps`.
    fn of(cu_seqlens: Tensor<1, Int>, steps: usize, history: usize) -> Result<Self, ConvError> {
        let sequences = cu_seqlens.dims()[0] - 1;
        let (of_states, length) = (sequences * history, sequences * history + steps);
        let like = (cu_seqlens.device(), cu_seqlens.dtype());
        let count = |end: usize| Tensor::<1, Int>::arange(0..end as i64, (&like.0, like.1));
        let starts = |bounds: &Tensor<1, Int>| bounds.clone().narrow(0, 0, sequences);
        // How many sequences have begun at each step. What follows the last belongs to it here.
        let begun = |bounds: &Tensor<1, Int>, steps: usize| {
            let end = count(1).add_scalar(length as i64 + 1);
            let ids = try_causal_conv1d_seq_idx(Tensor::cat(vec![starts(bounds), end], 0), steps)?;
            Ok::<_, ConvError>(ids.flatten::<1>(0, 1).add_scalar(1))
        };
        // Bounds that no right call has still have to end in places that there are.
        let within = |places: Tensor<1, Int>| places.clamp(0, length as i64 - 1);
        let bounds_of_x = cu_seqlens.clamp(0, steps as i64);
        let bounds = bounds_of_x.clone() + count(sequences + 1).mul_scalar(history as i64);

        let to_states = starts(&bounds).unsqueeze_dim::<2>(1) + count(history).unsqueeze_dim::<2>(0);
        let to_x = count(steps) + begun(&bounds_of_x, steps)?.mul_scalar(history as i64);
        let to = Tensor::cat(vec![to_states.flatten::<1>(0, 1), to_x], 0);

        let begun = begun(&bounds, length)?;
        // Before the first sequence there is no state: as if one had just ended.
        let none = count(1).sub_scalar(history as i64);
        let start = Tensor::cat(vec![none, starts(&bounds)], 0).select(0, begun.clone());
        let in_sequence = count(length) - start;
        let of_begun = begun.mul_scalar(history as i64);
        let from_states = of_begun.clone().sub_scalar(history as i64) + in_sequence.clone();
        let from_x = count(length).add_scalar(of_states as i64) - of_begun;
        let from = from_x.mask_where(in_sequence.lower_elem(history as i64), from_states);
        Ok(Self { bounds, from: within(from), to: within(to) })
    }

    /// The longer row of `[states | x]`.
    fn join(&self, columns: Tensor<3>, axis: usize) -> Tensor<3> {
        moved(columns, &self.from, &self.to, axis)
    }

    /// `[states | x]` of the longer row.
    fn part(&self, row: Tensor<3>, axis: usize) -> Tensor<3> {
        moved(row, &self.to, &self.from, axis)
    }
}

fn moved(x: Tensor<3>, from: &Tensor<1, Int>, to: &Tensor<1, Int>, axis: usize) -> Tensor<3> {
    let (from, to) = (from.clone().into_dispatch(), to.clone().into_dispatch());
    Tensor::from_dispatch(Dispatch::causal_conv1d_move_columns(x.into_dispatch(), from, to, axis))
}

/// The shape of the last `length` steps of packed sequences.
pub(crate) fn last_states_shape(
    x: &[usize],
    bounds: &[usize],
    length: usize,
    layout: Conv1dLayout,
) -> [usize; 3] {
    let channels = x[3 - layout.step_axis()];
    [bounds[0] - 1, channels, length]
}
