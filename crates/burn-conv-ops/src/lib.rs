//! conv3d, causal conv1d and RoPE2D for Burn.
//!
//! ```no_run
//! use burn::tensor::{Device, Distribution, Tensor};
//! use burn_conv_ops::{Conv3dOptions, conv3d};
//!
//! let device = Device::default().autodiff();
//! let clip = Tensor::<5>::random([1, 3, 8, 64, 64], Distribution::Default, &device);
//! let weight = Tensor::<5>::random([16, 3, 3, 3, 3], Distribution::Default, &device).require_grad();
//! let y = conv3d(clip, weight.clone(), None, Conv3dOptions::new().with_padding([1; 3]));
//! assert_eq!(y.dims(), [1, 16, 8, 64, 64]);
//! let gradients = y.mean().backward();
//! let dw = weight.grad(&gradients);
//! ```
//!
//! Every function takes tensors of any strides on any device this crate is compiled for, computes in fp32 and
//! rounds once, and gives gradients that are equal bit for bit from run to run. Each panics with the sentence
//! of its [`ConvError`]; its `try_` twin returns the error. [`nn`] holds the modules.
//!
//! # Features
//!
//! `wgpu` (Metal on macOS, Vulkan or another API through WGSL elsewhere), `vulkan` (SPIR-V), `metal`, `cuda`,
//! `flex` (CPU), `autodiff` and `fusion`. The default is `autodiff`, `fusion`, `wgpu` and `flex`. `fusion`
//! has to agree with Burn: leave it on with Burn's default features, turn it off together with Burn's.

#[cfg(feature = "autodiff")]
mod autodiff;
mod check;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod cube;
mod decoding;
pub mod nn;
mod ops;
mod options;
mod packed;
mod portable;

pub use conv_kernels::ConvError;
pub use conv_kernels::causal_conv1d::{CausalConv1dProblem, Conv1dLayout, UpdateProblem};
pub use conv_kernels::conv3d::{Activation, Algorithm, Conv3dProblem, PaddingMode, WinogradTile};
pub use conv_kernels::rope2d::{Rope2dProblem, RopeGrid, RopeLayout};
pub use decoding::{
    causal_conv1d_last_seq_idx, causal_conv1d_last_states, causal_conv1d_seq_idx, causal_conv1d_update,
    causal_conv1d_update_steps, try_causal_conv1d_last_states, try_causal_conv1d_seq_idx,
    try_causal_conv1d_update, try_causal_conv1d_update_steps,
};
pub use ops::{
    CausalConv1dGradients, CausalConv1dInputs, CausalConv1dSteps, Conv3dCall, ConvOps, OptionalIntTensor,
    OptionalTensor, RopePositions,
};
pub use options::{
    CausalConv1dOptions, CausalConv1dPlaces, CausalConv1dState, CausalConv1dUpdateOptions, Conv3dOptions,
    Rope2dOptions, Rope2dPositions,
};
pub use packed::{causal_conv1d_packed, try_causal_conv1d_packed};

use burn::backend::Dispatch;
use burn::tensor::Tensor;

/// conv3d: y `[N, O, OD, OH, OW]` of x `[N, C, D, H, W]`, weight `[O, C/groups, KD, KH, KW]` and bias `[O]`,
/// with PyTorch's semantics.
///
/// # Rounding
/// y is an fp32 sum through the activation, rounded once, with the same bits whether gradients are tracked or
/// not. A tracked SiLU keeps the value before it in fp32, beside y; ReLU keeps y, and its slope is that of y
/// as stored (0 where a positive value is so small that y is 0: in f16 up to 2^-25). The gradient before an
/// activation is a tensor of the storage type; the gradients of x, weight and bias are fp32 sums of it, each
/// rounded once.
///
/// On the CPU backend the sums are Burn's own. The weight gradient of few channels there is one serial fp32
/// sum over the windows of a frame: for a 1x1x1 filter and equal terms its relative error is 1.2e-5 at 64x64
/// windows, 1.9e-4 at 256x256, 2.9e-3 at 1024x1024 and 8.2e-3 at 2048x2048, and a sum of ones stays at 2^24.
/// Other frames and images are sums of their own (64 frames of 1024x1024: 1.9e-4), and so are those of 3x3x3
/// and depthwise filters (2e-6 at most). The bias' gradient is right to 1.2e-5, and to 4e-4 along one row of
/// 16.8 million.
///
/// # NaN, infinities, range
/// On every device a result is not finite where a product of its sum holds NaN or an infinity. Beside these,
/// a non-finite weight may make any result of its channel (y: its output channel, dx: its input channel)
/// non-finite, an element of x or dy any weight's gradient of its channel, since the padding's zeros are
/// multiplied; all other results keep their values. Where [`Algorithm::Auto`] takes Winograd, an element of x
/// reaches its tile of 4 x 4 results as well; [`Algorithm::NoWinograd`] never takes it. Finite tensors give
/// finite, right results as long as `C/groups * taps * max|x| * max|weight|` is below the largest fp32
/// number.
///
/// # Panics
/// Where [`try_conv3d`] returns an error.
pub fn conv3d(
    x: Tensor<5>,
    weight: Tensor<5>,
    bias: Option<Tensor<1>>,
    options: impl Into<Conv3dOptions>,
) -> Tensor<5> {
    or_panic(try_conv3d(x, weight, bias, options))
}

/// [`conv3d`] with errors as values.
///
/// # Errors
/// When shapes, dtypes or devices do not fit together, the device cannot hold the dtype or the result, or a
/// forced algorithm cannot serve the problem. Nothing is launched then.
pub fn try_conv3d(
    x: Tensor<5>,
    weight: Tensor<5>,
    bias: Option<Tensor<1>>,
    options: impl Into<Conv3dOptions>,
) -> Result<Tensor<5>, ConvError> {
    let call = check::conv3d(&x, &weight, bias.as_ref(), &options.into())?;
    let bias = bias.map(Tensor::into_dispatch).into();
    Ok(Tensor::from_dispatch(Dispatch::conv3d_forward(x.into_dispatch(), weight.into_dispatch(), bias, call)))
}

/// Causal depthwise conv1d: y of x's shape, every step from its own input and the W-1 before it. x is
/// `[B, C, T]` or `[B, T, C]` as the options say, weight `[C, W]`, bias `[C]`. Weight and bias may have
/// another dtype than x.
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
    options: CausalConv1dOptions,
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
    options: CausalConv1dOptions,
) -> Result<Tensor<3>, ConvError> {
    convolve(x, weight, bias, CausalConv1dState::new(), options)
}

/// y alone, where the final state is not asked for.
fn convolve(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    state: CausalConv1dState,
    options: CausalConv1dOptions,
) -> Result<Tensor<3>, ConvError> {
    let problem = check::causal_conv1d(&x, &weight, bias.as_ref(), &state, &options)?;
    let inputs = causal_conv1d_inputs(x, weight, bias, state);
    Ok(Tensor::from_dispatch(Dispatch::causal_conv1d(inputs, problem)))
}

/// [`causal_conv1d()`] that begins with a state and returns the one to continue with: y, and the last W-1
/// steps of `[initial state | x]` as `[B, C, W-1]`, in the initial state's dtype: x's, or fp32. Calls on
/// consecutive pieces of a sequence, each with the state of the one before, give what one call on the whole
/// gives. Both outputs are differentiable. The state also says which sequence a step belongs to and what is
/// added to y.
///
/// With sequence ids the returned state is that of each row's last sequence: the last W-1 steps up to the
/// row's last that is no padding, zeros in place of what belongs to another sequence. A row of padding only
/// returns its initial state. Pieces give the whole wherever they are cut, if each is told whose its state
/// is:
///
/// ```no_run
/// use burn::tensor::{Device, Distribution, Int, Tensor};
/// use burn_conv_ops::{
///     CausalConv1dOptions, CausalConv1dState, causal_conv1d_last_seq_idx, causal_conv1d_with_state,
/// };
///
/// let device = Device::default();
/// let weight = Tensor::<2>::random([64, 4], Distribution::Default, &device);
/// let x = || Tensor::<3>::random([1, 64, 5], Distribution::Default, &device);
/// let ids = Tensor::<2, Int>::from_data([[0, 0, 0, 1, 1]], &device);
/// let state = CausalConv1dState::new().with_seq_idx(ids.clone());
/// let (first, next) =
///     causal_conv1d_with_state(x(), weight.clone(), None, state, CausalConv1dOptions::new());
/// let state = CausalConv1dState::new()
///     .with_initial(next)
///     .with_initial_seq_idx(causal_conv1d_last_seq_idx(ids, None))
///     .with_seq_idx(Tensor::<2, Int>::from_data([[1, 1, 2, 2, -1]], &device));
/// let (second, next) = causal_conv1d_with_state(x(), weight, None, state, CausalConv1dOptions::new());
/// ```
///
/// # Panics
/// Where [`try_causal_conv1d_with_state`] returns an error.
pub fn causal_conv1d_with_state(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    state: CausalConv1dState,
    options: CausalConv1dOptions,
) -> (Tensor<3>, Tensor<3>) {
    or_panic(try_causal_conv1d_with_state(x, weight, bias, state, options))
}

/// [`causal_conv1d_with_state`] with errors as values.
///
/// # Errors
/// As [`try_causal_conv1d`].
pub fn try_causal_conv1d_with_state(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    state: CausalConv1dState,
    options: CausalConv1dOptions,
) -> Result<(Tensor<3>, Tensor<3>), ConvError> {
    let problem = check::causal_conv1d(&x, &weight, bias.as_ref(), &state, &options)?;
    let state = decoding::own_states(state);
    let initial = state.initial.clone().map(Tensor::into_dispatch).into();
    let ids = state.seq_idx.clone().map(Tensor::into_dispatch).into();
    let next = Dispatch::causal_conv1d_final_state(x.clone().into_dispatch(), initial, ids, problem);
    let y = Dispatch::causal_conv1d(causal_conv1d_inputs(x, weight, bias, state), problem);
    Ok((Tensor::from_dispatch(y), Tensor::from_dispatch(next)))
}

fn causal_conv1d_inputs(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    state: CausalConv1dState,
) -> CausalConv1dInputs<Dispatch> {
    CausalConv1dInputs {
        x: x.into_dispatch(),
        weight: weight.into_dispatch(),
        bias: bias.map(Tensor::into_dispatch).into(),
        initial: state.initial.map(Tensor::into_dispatch).into(),
        seq_idx: state.seq_idx.map(Tensor::into_dispatch).into(),
        residual: state.residual.map(Tensor::into_dispatch).into(),
    }
}

/// RoPE2D: tokens `[B, H, N, D]` (or `[B, N, H, D]`, as the options say), rotated by their positions of (row,
/// column): the first half of D by the row, the second by the column, element i of each half's first quarter
/// with element i of its second. Positions are integers `[B, N, 2]`, which may be negative, fp32 numbers
/// `[B, N, 2]` or a [`RopeGrid`], see [`Rope2dPositions`]. They have no gradient.
///
/// ```no_run
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_conv_ops::{Rope2dOptions, nn::Rope2d, rope2d};
///
/// let device = Device::default();
/// let tokens = Tensor::<4>::random([2, 12, 14 * 14, 64], Distribution::Default, &device);
/// let positions = Rope2d::grid(2, 14, 14, &device);
/// let turned = rope2d(tokens, positions, Rope2dOptions::new());
/// assert_eq!(turned.dims(), [2, 12, 196, 64]);
/// ```
///
/// # Panics
/// Where [`try_rope2d`] returns an error.
pub fn rope2d(tokens: Tensor<4>, positions: impl Into<Rope2dPositions>, options: Rope2dOptions) -> Tensor<4> {
    or_panic(try_rope2d(tokens, positions, options))
}

/// [`rope2d()`] with errors as values.
///
/// # Errors
/// When D is not a multiple of 4, the base is not positive, f0 and base turn by more than 2^20 radians from
/// one position to the next, a grid ends beyond the range of i32, shapes or devices do not fit together, or
/// the device cannot hold a dtype. Nothing is launched then.
pub fn try_rope2d(
    tokens: Tensor<4>,
    positions: impl Into<Rope2dPositions>,
    options: Rope2dOptions,
) -> Result<Tensor<4>, ConvError> {
    let positions = positions.into();
    let problem = check::rope2d(&tokens, &positions, &options)?;
    let (tokens, positions) = (tokens.into_dispatch(), positions.into_dispatch());
    Ok(Tensor::from_dispatch(Dispatch::rope2d(tokens, positions, problem, false)))
}

/// [`rope2d()`] of queries and keys, each with its own positions, in one launch.
///
/// # Panics
/// Where [`try_rope2d_qk`] returns an error.
pub fn rope2d_qk(
    q: Tensor<4>,
    k: Tensor<4>,
    q_positions: impl Into<Rope2dPositions>,
    k_positions: impl Into<Rope2dPositions>,
    options: Rope2dOptions,
) -> (Tensor<4>, Tensor<4>) {
    or_panic(try_rope2d_qk(q, k, q_positions, k_positions, options))
}

/// [`rope2d_qk`] with errors as values.
///
/// # Errors
/// As [`try_rope2d`].
pub fn try_rope2d_qk(
    q: Tensor<4>,
    k: Tensor<4>,
    q_positions: impl Into<Rope2dPositions>,
    k_positions: impl Into<Rope2dPositions>,
    options: Rope2dOptions,
) -> Result<(Tensor<4>, Tensor<4>), ConvError> {
    let (q_positions, k_positions) = (q_positions.into(), k_positions.into());
    let q_problem = check::rope2d(&q, &q_positions, &options)?;
    let k_problem = check::rope2d(&k, &k_positions, &options)?;
    if !check::together([&q, &k], [&q_positions, &k_positions]) {
        // Not one launch.
        return Ok((try_rope2d(q, q_positions, options)?, try_rope2d(k, k_positions, options)?));
    }
    let (q, k) = (q.into_dispatch(), k.into_dispatch());
    let (q_positions, k_positions) = (q_positions.into_dispatch(), k_positions.into_dispatch());
    let (q, k) = Dispatch::rope2d_qk(q, k, q_positions, k_positions, q_problem, k_problem);
    Ok((Tensor::from_dispatch(q), Tensor::from_dispatch(k)))
}

fn or_panic<T>(result: Result<T, ConvError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// The README's examples, compiled with the documentation tests.
#[cfg(all(doctest, feature = "autodiff"))]
#[doc = include_str!("../../../README.md")]
struct ReadmeExamples;
