//! RoPE2D: functions, options, module, and what each kind of backend runs.

#[cfg(feature = "autodiff")]
pub(crate) mod autodiff;
mod check;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(crate) mod cube;
pub(crate) mod nn;
mod options;
pub(crate) mod portable;

pub use options::{Rope2dOptions, Rope2dPositions};

use crate::backend::ConvOps;
use crate::{ConvError, or_panic};
use burn::backend::Dispatch;
use burn::tensor::Tensor;

/// RoPE2D: tokens `[B, H, N, D]` (or `[B, N, H, D]`, as the options say), rotated by their positions of (row,
/// column): the first half of D by the row, the second by the column, element i of each half's first quarter
/// with element i of its second. Positions are integers `[B, N, 2]`, which may be negative, fp32 numbers
/// `[B, N, 2]` or a [`RopeGrid`](crate::RopeGrid), see [`Rope2dPositions`]. They have no gradient.
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
pub fn rope2d(
    tokens: Tensor<4>,
    positions: impl Into<Rope2dPositions>,
    options: impl Into<Rope2dOptions>,
) -> Tensor<4> {
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
    options: impl Into<Rope2dOptions>,
) -> Result<Tensor<4>, ConvError> {
    let (positions, options) = (positions.into(), options.into());
    let problem = check::check(&tokens, &positions, &options)?;
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
    options: impl Into<Rope2dOptions>,
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
    options: impl Into<Rope2dOptions>,
) -> Result<(Tensor<4>, Tensor<4>), ConvError> {
    let (q_positions, k_positions, options) = (q_positions.into(), k_positions.into(), options.into());
    let q_problem = check::check(&q, &q_positions, &options)?;
    let k_problem = check::check(&k, &k_positions, &options)?;
    if !check::one_launch([&q, &k], [&q_positions, &k_positions]) {
        // Not one launch.
        return Ok((try_rope2d(q, q_positions, options)?, try_rope2d(k, k_positions, options)?));
    }
    let (q, k) = (q.into_dispatch(), k.into_dispatch());
    let (q_positions, k_positions) = (q_positions.into_dispatch(), k_positions.into_dispatch());
    let (q, k) = Dispatch::rope2d_qk(q, k, q_positions, k_positions, q_problem, k_problem);
    Ok((Tensor::from_dispatch(q), Tensor::from_dispatch(k)))
}
