//! Causal depthwise conv1d: functions, options, module, and what each kind of backend runs.

#[cfg(feature = "autodiff")]
pub(crate) mod autodiff;
mod check;
#[cfg(feature = "cubecl")]
pub(crate) mod cube;
pub(crate) mod decoding;
mod from_burn;
pub(crate) mod nn;
mod options;
pub(crate) mod packed;
pub(crate) mod portable;

pub use decoding::{
    causal_conv1d_last_seq_idx, causal_conv1d_last_states, causal_conv1d_seq_idx, causal_conv1d_update,
    causal_conv1d_update_steps, try_causal_conv1d_last_seq_idx, try_causal_conv1d_last_states,
    try_causal_conv1d_seq_idx, try_causal_conv1d_update, try_causal_conv1d_update_steps,
};
pub use options::{CausalConv1dOptions, CausalConv1dUpdateOptions};
pub use packed::{causal_conv1d_packed, try_causal_conv1d_packed};

use crate::backend::{CausalConv1dInputs, ConvOps};
use crate::{ConvError, or_panic};
use burn::backend::Dispatch;
use burn::tensor::Tensor;

/// Causal depthwise conv1d: y of x's shape, every step from its own input and the W-1 before it. x is
/// `[B, C, T]` or `[B, T, C]` as the options say, weight `[C, W]`, bias `[C]`. Weight and bias may have
/// another dtype than x. The options may also hold the steps before the first, sequence ids and a residual;
/// [`causal_conv1d_with_state`] returns the state to continue with as well.
///
/// A NaN or an infinity at a step of x reaches y at that step and the W-1 that follow in its sequence, and
/// nothing else; one of dy reaches dx at that step and the W-1 before it. With an activation one of x also
/// reaches dx wherever a step that reads it hands a gradient back, and dw and db of its channel. The steps
/// before the first are zeros like any other, so an infinite weight makes NaN there, and it may make NaN of
/// the last W-1 steps of dx.
///
/// The error of dw and db, sums over the batch and all steps, grows with the logarithm of their number; on
/// the CPU, where they are Burn's own sums, with the number.
///
/// ```no_run
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_conv_ops::{Activation, CausalConv1dOptions, causal_conv1d};
///
/// let device = Device::default();
/// let x = Tensor::<3>::random([2, 256, 1000], Distribution::Default, &device);
/// let weight = Tensor::<2>::random([256, 4], Distribution::Default, &device);
/// let y = causal_conv1d(x, weight, None, CausalConv1dOptions::new().with_activation(Activation::Silu));
/// assert_eq!(y.dims(), [2, 256, 1000]);
/// ```
///
/// # Panics
/// Where [`try_causal_conv1d`] returns an error.
pub fn causal_conv1d(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    options: impl Into<CausalConv1dOptions>,
) -> Tensor<3> {
    or_panic(try_causal_conv1d(x, weight, bias, options))
}

/// [`causal_conv1d()`] with errors as values.
///
/// # Errors
/// When shapes, dtypes or devices do not fit together, or the device cannot hold a dtype or the result.
/// Nothing is launched then.
pub fn try_causal_conv1d(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    options: impl Into<CausalConv1dOptions>,
) -> Result<Tensor<3>, ConvError> {
    let options = options.into();
    let problem = check::check(&x, &weight, bias.as_ref(), &options)?;
    let inputs = inputs(x, weight, bias, decoding::own_states(options));
    Ok(Tensor::from_dispatch(Dispatch::causal_conv1d(inputs, problem)))
}

/// [`causal_conv1d()`] that also returns the state to continue with: the last W-1 steps of `[initial state |
/// x]` as `[B, C, W-1]`, in the initial state's dtype: x's, or fp32. Calls on consecutive pieces of a
/// sequence, each with the state of the one before, give what one call on the whole gives. Both outputs are
/// differentiable.
///
/// ```no_run
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_conv_ops::{CausalConv1dOptions, causal_conv1d_with_state};
///
/// let device = Device::default();
/// let weight = Tensor::<2>::random([64, 4], Distribution::Default, &device);
/// let piece = || Tensor::<3>::random([1, 64, 5], Distribution::Default, &device);
/// let (first, state) = causal_conv1d_with_state(piece(), weight.clone(), None, CausalConv1dOptions::new());
/// let (second, state) = causal_conv1d_with_state(piece(), weight, None, state);
/// ```
///
/// With sequence ids the returned state is that of each row's last sequence: the last W-1 steps up to the
/// row's last that is no padding, zeros in place of what belongs to another sequence. A row of padding only
/// returns its initial state. Pieces give the whole wherever they are cut, if each is told whose its state
/// is:
///
/// ```no_run
/// use burn::tensor::{Device, Distribution, Int, Tensor};
/// use burn_conv_ops::{CausalConv1dOptions, causal_conv1d_last_seq_idx, causal_conv1d_with_state};
///
/// let device = Device::default();
/// let weight = Tensor::<2>::random([64, 4], Distribution::Default, &device);
/// let piece = || Tensor::<3>::random([1, 64, 5], Distribution::Default, &device);
/// let ids = Tensor::<2, Int>::from_data([[0, 0, 0, 1, 1]], &device);
/// let options = CausalConv1dOptions::new().with_seq_idx(ids.clone());
/// let (first, state) = causal_conv1d_with_state(piece(), weight.clone(), None, options);
/// let options = CausalConv1dOptions::new()
///     .with_initial_state(state)
///     .with_initial_seq_idx(causal_conv1d_last_seq_idx(ids, None))
///     .with_seq_idx(Tensor::<2, Int>::from_data([[1, 1, 2, 2, -1]], &device));
/// let (second, state) = causal_conv1d_with_state(piece(), weight, None, options);
/// ```
///
/// # Panics
/// Where [`try_causal_conv1d_with_state`] returns an error.
pub fn causal_conv1d_with_state(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    options: impl Into<CausalConv1dOptions>,
) -> (Tensor<3>, Tensor<3>) {
    or_panic(try_causal_conv1d_with_state(x, weight, bias, options))
}

/// [`causal_conv1d_with_state`] with errors as values.
///
/// # Errors
/// As [`try_causal_conv1d`].
pub fn try_causal_conv1d_with_state(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    options: impl Into<CausalConv1dOptions>,
) -> Result<(Tensor<3>, Tensor<3>), ConvError> {
    let options = options.into();
    let problem = check::check(&x, &weight, bias.as_ref(), &options)?;
    let options = decoding::own_states(options);
    let initial = options.initial_state.clone().map(Tensor::into_dispatch).into();
    let ids = options.seq_idx.clone().map(Tensor::into_dispatch).into();
    let next = Dispatch::causal_conv1d_final_state(x.clone().into_dispatch(), initial, ids, problem);
    let y = Dispatch::causal_conv1d(inputs(x, weight, bias, options), problem);
    Ok((Tensor::from_dispatch(y), Tensor::from_dispatch(next)))
}

fn inputs(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    options: CausalConv1dOptions,
) -> CausalConv1dInputs<Dispatch> {
    CausalConv1dInputs {
        x: x.into_dispatch(),
        weight: weight.into_dispatch(),
        bias: bias.map(Tensor::into_dispatch).into(),
        initial_state: options.initial_state.map(Tensor::into_dispatch).into(),
        seq_idx: options.seq_idx.map(Tensor::into_dispatch).into(),
        residual: options.residual.map(Tensor::into_dispatch).into(),
    }
}
