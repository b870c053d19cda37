//! Decoding steps of a causal conv1d, and what serves sequences that are packed into one row.

#[cfg(feature = "autodiff")]
pub(crate) mod autodiff;
pub(crate) mod check;
#[cfg(feature = "cubecl")]
pub(crate) mod cube;
pub(crate) mod portable;

use super::{CausalConv1dOptions, CausalConv1dUpdateOptions};
use crate::backend::{CausalConv1dSteps, ConvOps};
use crate::{Conv1dLayout, ConvError, or_panic};
use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};

/// One decoding step of a causal conv1d: y `[B, C]` and the new state from x `[B, C]`, the state `[B, C, S]`
/// of the last S >= W-1 inputs (oldest first), weight `[C, W]` and bias `[C]`. The state is of x's dtype or
/// fp32, and stays so. Rings and slots of states, as the options say: [`causal_conv1d_update_steps`].
///
/// # Panics
/// Where [`try_causal_conv1d_update`] returns an error.
pub fn causal_conv1d_update(
    x: Tensor<2>,
    state: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    options: impl Into<CausalConv1dUpdateOptions>,
) -> (Tensor<2>, Tensor<3>) {
    or_panic(try_causal_conv1d_update(x, state, weight, bias, options))
}

/// [`causal_conv1d_update`] with errors as values.
///
/// # Errors
/// As [`try_causal_conv1d`](crate::try_causal_conv1d).
pub fn try_causal_conv1d_update(
    x: Tensor<2>,
    state: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    options: impl Into<CausalConv1dUpdateOptions>,
) -> Result<(Tensor<2>, Tensor<3>), ConvError> {
    let options = options.into();
    if options.cache_seqlens.is_some() || options.state_indices.is_some() {
        let x = x.unsqueeze_dim::<3>(2);
        let (y, state) = try_causal_conv1d_update_steps(x, state, weight, bias, options)?;
        return Ok((y.squeeze_dim::<2>(2), state));
    }
    let problem = check::one_step(&x, &state, &weight, bias.as_ref(), &options)?;
    let bias = bias.map(Tensor::into_dispatch).into();
    let (x, state, weight) = (x.into_dispatch(), state.into_dispatch(), weight.into_dispatch());
    let (y, state) = Dispatch::causal_conv1d_update(x, state, weight, bias, problem);
    Ok((Tensor::from_dispatch(y), Tensor::from_dispatch(state)))
}

/// Several decoding steps in one launch: y `[B, C, L]` and the state after the last of them from x
/// `[B, C, L]`, as [`causal_conv1d_update`] L times. The options say which row of the state belongs to which
/// row of x, and whether states are rings; by default row b belongs to row b and columns are shifted. A state
/// that nobody else holds is updated in its memory.
///
/// ```no_run
/// use burn::tensor::{Device, Distribution, Int, Tensor};
/// use burn_conv_ops::{CausalConv1dUpdateOptions, causal_conv1d_update_steps};
///
/// let device = Device::default();
/// let x = Tensor::<3>::random([2, 256, 3], Distribution::Default, &device);
/// let weight = Tensor::<2>::random([256, 4], Distribution::Default, &device);
/// // Ten slots, of which row 0 has number 7; row 1 is padding.
/// let state = Tensor::<3>::zeros([10, 256, 4], &device);
/// let slots = Tensor::<1, Int>::from_data([7, -1], &device);
/// let options = CausalConv1dUpdateOptions::new().with_state_indices(slots);
/// let (y, state) = causal_conv1d_update_steps(x, state, weight, None, options);
/// assert_eq!((y.dims(), state.dims()), ([2, 256, 3], [10, 256, 4]));
/// ```
///
/// # Panics
/// Where [`try_causal_conv1d_update_steps`] returns an error.
pub fn causal_conv1d_update_steps(
    x: Tensor<3>,
    state: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    options: impl Into<CausalConv1dUpdateOptions>,
) -> (Tensor<3>, Tensor<3>) {
    or_panic(try_causal_conv1d_update_steps(x, state, weight, bias, options))
}

/// [`causal_conv1d_update_steps`] with errors as values.
///
/// # Errors
/// As [`try_causal_conv1d`](crate::try_causal_conv1d).
pub fn try_causal_conv1d_update_steps(
    x: Tensor<3>,
    state: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    options: impl Into<CausalConv1dUpdateOptions>,
) -> Result<(Tensor<3>, Tensor<3>), ConvError> {
    let options = options.into();
    let problem = check::steps(&x, &state, &weight, bias.as_ref(), &options)?;
    if x.shape().num_elements() == 0 {
        return Ok((x, state));
    }
    let inputs = CausalConv1dSteps {
        x: x.into_dispatch(),
        state: state.into_dispatch(),
        weight: weight.into_dispatch(),
        bias: bias.map(Tensor::into_dispatch).into(),
        lengths: options.cache_seqlens.map(Tensor::into_dispatch).into(),
        slots: options.state_indices.map(Tensor::into_dispatch).into(),
    };
    let (y, state) = Dispatch::causal_conv1d_update_steps(inputs, problem);
    Ok((Tensor::from_dispatch(y), Tensor::from_dispatch(state)))
}

/// The last `length` steps of sequences that are packed into one row, as `[N, C, length]`: the states to go
/// on decoding with. x is `[1, C, T]` or `[1, T, C]` as `layout` says, sequence i has the steps from
/// `cu_seqlens[i]` to `cu_seqlens[i + 1]` (`[N + 1]`, ascending, at most T). A shorter sequence has
/// zeros before it.
///
/// # Panics
/// Where [`try_causal_conv1d_last_states`] returns an error.
pub fn causal_conv1d_last_states(
    x: Tensor<3>,
    cu_seqlens: Tensor<1, Int>,
    length: usize,
    layout: Conv1dLayout,
) -> Tensor<3> {
    or_panic(try_causal_conv1d_last_states(x, cu_seqlens, length, layout))
}

/// [`causal_conv1d_last_states`] with errors as values.
///
/// # Errors
/// As [`try_causal_conv1d`](crate::try_causal_conv1d).
pub fn try_causal_conv1d_last_states(
    x: Tensor<3>,
    cu_seqlens: Tensor<1, Int>,
    length: usize,
    layout: Conv1dLayout,
) -> Result<Tensor<3>, ConvError> {
    check::last_states(&x, &cu_seqlens, length, layout)?;
    let (x, cu_seqlens) = (x.into_dispatch(), cu_seqlens.into_dispatch());
    Ok(Tensor::from_dispatch(Dispatch::causal_conv1d_last_states(x, cu_seqlens, length, layout)))
}

/// Sequence ids `[1, steps]` of sequences that are packed into one row: i for the steps from `cu_seqlens[i]`
/// to `cu_seqlens[i + 1]` (`[N + 1]`, ascending), -1 (padding) before the first bound and from the last on.
///
/// # Panics
/// Where [`try_causal_conv1d_seq_idx`] returns an error.
pub fn causal_conv1d_seq_idx(cu_seqlens: Tensor<1, Int>, steps: usize) -> Tensor<2, Int> {
    or_panic(try_causal_conv1d_seq_idx(cu_seqlens, steps))
}

/// [`causal_conv1d_seq_idx`] with errors as values.
///
/// # Errors
/// When there is no bound, or the device cannot read the bounds' dtype or hold the ids.
pub fn try_causal_conv1d_seq_idx(
    cu_seqlens: Tensor<1, Int>,
    steps: usize,
) -> Result<Tensor<2, Int>, ConvError> {
    check::seq_idx(&cu_seqlens, steps)?;
    Ok(Tensor::from_dispatch(Dispatch::causal_conv1d_seq_idx(cu_seqlens.into_dispatch(), steps)))
}

/// The sequence of each row's last step that is no padding, `[B]`, from the ids of its steps `[B, T]`: whose
/// the final state is. Where there is no such step it is that of `before`, the sequence of the initial state
/// `[B]`, or -1.
///
/// # Panics
/// Where [`try_causal_conv1d_last_seq_idx`] returns an error.
pub fn causal_conv1d_last_seq_idx(seq_idx: Tensor<2, Int>, before: Option<Tensor<1, Int>>) -> Tensor<1, Int> {
    or_panic(try_causal_conv1d_last_seq_idx(seq_idx, before))
}

/// [`causal_conv1d_last_seq_idx`] with errors as values.
///
/// # Errors
/// When the device cannot read the ids' dtype or count the steps, or `before` does not have a sequence for
/// each row, is on another device or of another dtype than the ids.
pub fn try_causal_conv1d_last_seq_idx(
    seq_idx: Tensor<2, Int>,
    before: Option<Tensor<1, Int>>,
) -> Result<Tensor<1, Int>, ConvError> {
    check::last_seq_idx(&seq_idx, before.as_ref())?;
    let [rows, steps] = seq_idx.dims();
    let like = (seq_idx.device(), seq_idx.dtype());
    let before = before.unwrap_or_else(|| Tensor::full([rows], -1, (&like.0, like.1)));
    if rows * steps == 0 {
        return Ok(before);
    }
    let count = Tensor::<1, Int>::arange(1..steps as i64 + 1, (&like.0, like.1));
    let count = count.unsqueeze_dim::<2>(0).expand([rows, steps]);
    let end = count.mask_fill(seq_idx.clone().lower_elem(0), 0).max_dim(1);
    let last = seq_idx.gather(1, end.clone().sub_scalar(1).clamp_min(0));
    Ok(last.mask_where(end.equal_elem(0), before.unsqueeze_dim::<2>(1)).flatten::<1>(0, 1))
}

/// The options where initial states that belong to another sequence than their row's first step are zeros.
pub(crate) fn own_states(options: CausalConv1dOptions) -> CausalConv1dOptions {
    let initial_state = match (&options.initial_state, &options.initial_seq_idx, &options.seq_idx) {
        (Some(initial), Some(own), Some(ids)) if initial.shape().num_elements() > 0 && ids.dims()[1] > 0 => {
            // Where the row begins with padding, no step reads the state, but the final state may be it.
            let first = ids.clone().narrow(1, 0, 1);
            let other = first.clone().not_equal(own.clone().unsqueeze_dim::<2>(1));
            let foreign = other.bool_and(first.greater_equal_elem(0));
            let mask = foreign.unsqueeze_dim::<3>(2).expand(initial.dims());
            Some(initial.clone().mask_fill(mask, 0.0))
        }
        _ => return options,
    };
    CausalConv1dOptions { initial_state, initial_seq_idx: None, ..options }
}
