//! RoPE: functions, options, modules, and what each kind of backend runs. RoPE2D is a case of it.

#[cfg(feature = "autodiff")]
pub(crate) mod autodiff;
mod check;
#[cfg(feature = "cubecl")]
pub(crate) mod cube;
pub(crate) mod nn;
pub(crate) mod nn2d;
mod options;
mod options2d;
pub(crate) mod portable;

pub use options::{RopeBase, RopeOptions, RopePositions};
pub use options2d::Rope2dOptions;

use crate::backend::ConvOps;
use crate::{ConvError, or_panic};
use burn::backend::Dispatch;
use burn::tensor::Tensor;

/// Rotary position embedding: tokens `[B, H, N, D]` (or `[B, N, H, D]`, as the options say), each pair of
/// elements of a head turned by its frequency times the token's position along an axis. The options of a
/// model say what is a pair and which axis it belongs to. Positions are integers or fp32 numbers
/// `[B, N, axes]`, a grid, or an offset, see [`RopePositions`]. They have no gradient.
///
/// ```no_run
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_conv_ops::{RopeOptions, RopeVolume, rope, rope_qk};
///
/// let device = Device::default();
/// let random = |shape| Tensor::<4>::random(shape, Distribution::Default, &device);
///
/// // Wan: 5 frames of 30 x 52 patches.
/// let volume = RopeVolume { frames: 5, rows: 30, columns: 52, first: [0; 3] };
/// let turned = rope(random([1, 12, 5 * 30 * 52, 128]), volume, RopeOptions::wan(128));
/// assert_eq!(turned.dims(), [1, 12, 7800, 128]);
///
/// // A decoding step of LLaMA behind 1000 cached tokens.
/// let (q, k) = (random([1, 32, 1, 128]), random([1, 8, 1, 128]));
/// let (q, k) = rope_qk(q, k, 1000, 1000, RopeOptions::llama());
/// assert_eq!((q.dims(), k.dims()), ([1, 32, 1, 128], [1, 8, 1, 128]));
/// ```
///
/// # Panics
/// Where [`try_rope`] returns an error.
pub fn rope(
    tokens: Tensor<4>,
    positions: impl Into<RopePositions>,
    options: impl Into<RopeOptions>,
) -> Tensor<4> {
    or_panic(try_rope(tokens, positions, options))
}

/// [`rope()`] with errors as values.
///
/// # Errors
/// When the head has not the elements that the axes need, a base or a factor is not positive, angles grow by
/// more than 2^20 radians from one position to the next, a grid ends beyond the range of i32, shapes or
/// devices do not fit together, or the device cannot hold a dtype. Nothing is launched then.
pub fn try_rope(
    tokens: Tensor<4>,
    positions: impl Into<RopePositions>,
    options: impl Into<RopeOptions>,
) -> Result<Tensor<4>, ConvError> {
    let (positions, options) = (positions.into(), options.into());
    let problem = check::check(&tokens, &positions, &options)?;
    let (tokens, positions) = (tokens.into_dispatch(), positions.into_dispatch());
    Ok(Tensor::from_dispatch(Dispatch::rope(tokens, positions, problem, false)))
}

/// [`rope()`] of queries and keys, each with its own positions, in one launch.
///
/// # Panics
/// Where [`try_rope_qk`] returns an error.
pub fn rope_qk(
    q: Tensor<4>,
    k: Tensor<4>,
    q_positions: impl Into<RopePositions>,
    k_positions: impl Into<RopePositions>,
    options: impl Into<RopeOptions>,
) -> (Tensor<4>, Tensor<4>) {
    or_panic(try_rope_qk(q, k, q_positions, k_positions, options))
}

/// [`rope_qk`] with errors as values.
///
/// # Errors
/// As [`try_rope`].
pub fn try_rope_qk(
    q: Tensor<4>,
    k: Tensor<4>,
    q_positions: impl Into<RopePositions>,
    k_positions: impl Into<RopePositions>,
    options: impl Into<RopeOptions>,
) -> Result<(Tensor<4>, Tensor<4>), ConvError> {
    let (q_positions, k_positions, options) = (q_positions.into(), k_positions.into(), options.into());
    let q_problem = check::check(&q, &q_positions, &options)?;
    let k_problem = check::check(&k, &k_positions, &options)?;
    if !check::one_launch([&q, &k], [&q_positions, &k_positions]) {
        return Ok((try_rope(q, q_positions, options)?, try_rope(k, k_positions, options)?));
    }
    let (q, k) = (q.into_dispatch(), k.into_dispatch());
    let (q_positions, k_positions) = (q_positions.into_dispatch(), k_positions.into_dispatch());
    let (q, k) = Dispatch::rope_qk(q, k, q_positions, k_positions, q_problem, k_problem);
    Ok((Tensor::from_dispatch(q), Tensor::from_dispatch(k)))
}

/// RoPE2D: [`rope()`] as CroCo's models use it. Tokens `[B, H, N, D]` (or `[B, N, H, D]`) are rotated by
/// their positions of (row, column): the first half of D by the row, the second by the column, element i of
/// each half's first quarter with element i of its second. Positions are integers `[B, N, 2]`, which may be
/// negative, fp32 numbers `[B, N, 2]` or a [`RopeGrid`](crate::RopeGrid).
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
    positions: impl Into<RopePositions>,
    options: impl Into<Rope2dOptions>,
) -> Tensor<4> {
    or_panic(try_rope2d(tokens, positions, options))
}

/// [`rope2d()`] with errors as values.
///
/// # Errors
/// As [`try_rope`]; D has to be a multiple of 4.
pub fn try_rope2d(
    tokens: Tensor<4>,
    positions: impl Into<RopePositions>,
    options: impl Into<Rope2dOptions>,
) -> Result<Tensor<4>, ConvError> {
    let options: Rope2dOptions = options.into();
    try_rope(tokens, positions, options)
}

/// [`rope2d()`] of queries and keys, each with its own positions, in one launch.
///
/// # Panics
/// Where [`try_rope2d_qk`] returns an error.
pub fn rope2d_qk(
    q: Tensor<4>,
    k: Tensor<4>,
    q_positions: impl Into<RopePositions>,
    k_positions: impl Into<RopePositions>,
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
    q_positions: impl Into<RopePositions>,
    k_positions: impl Into<RopePositions>,
    options: impl Into<Rope2dOptions>,
) -> Result<(Tensor<4>, Tensor<4>), ConvError> {
    let options: Rope2dOptions = options.into();
    try_rope_qk(q, k, q_positions, k_positions, options)
}
