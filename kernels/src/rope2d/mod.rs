//! RoPE2D: rotary position embedding over two axes, as CroCo-style vision transformers use it.
//!
//! A head vector of length D = 4Q is `[uy | vy | ux | vx]`, four runs of Q: the first half is rotated by the token's row
//! y, the second by its column x, element i of u with element i of v:
//!
//! ```text
//! theta = f0 * p * base^(-i/Q)      u' = u cos(theta) - v sin(theta)      v' = v cos(theta) + u sin(theta)
//! ```
//!
//! with p = y or x. The backward pass is the same rotation by -theta ([`rotate`] with `inverse`). Arithmetic is fp32,
//! rounded once.
//!
//! Cosines and sines come from fp32 tables computed in f64 on the host (see `table.rs`), because shader
//! `sin` and `cos` promise no more than 2^-11 and only within -pi..pi. The position is split into digits, one table
//! row each, whose angles are added in fp32: every i32 position is served to about 1e-6, those below 2048 to one
//! rounding. An i64 position outside the range of i32 gives NaN. Nothing is read back from the device.

mod kernel;
pub mod reference;
mod table;

use crate::dtype::FloatType;
use crate::error::{ConvError, invalid};
use crate::index_operand::IndexOperand;
use crate::limits::Limits;
use crate::operand::{Operand, check_dtype};
use cubecl::prelude::*;

/// Order of the axes of the tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RopeLayout {
    /// `[B, H, N, D]`.
    #[default]
    Bhnd,
    /// `[B, N, H, D]`.
    Bnhd,
}

/// A RoPE2D problem: tokens of D = `head_dim` elements in H heads, rotated by positions `[B, N, 2]` of (y, x).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope2dProblem {
    /// B.
    pub batch: usize,
    /// H.
    pub heads: usize,
    /// N.
    pub tokens: usize,
    /// D, a multiple of 4.
    pub head_dim: usize,
    /// Order of the axes of the tokens.
    pub layout: RopeLayout,
    /// Ratio of the highest to the lowest frequency, positive; 100 in published checkpoints.
    pub base: f32,
    /// Factor of every angle; 1 in published checkpoints.
    pub f0: f32,
    /// Storage type of the tokens.
    pub dtype: FloatType,
}

impl Rope2dProblem {
    /// The problem of these shapes: tokens `[B, H, N, D]` or `[B, N, H, D]` as `layout` says, positions `[B, N, 2]`.
    ///
    /// # Errors
    /// [`ConvError::Invalid`] or [`ConvError::TooLarge`] with the offending numbers.
    pub fn new(
        tokens: [usize; 4],
        positions: [usize; 3],
        layout: RopeLayout,
        base: f32,
        f0: f32,
        dtype: FloatType,
    ) -> Result<Self, ConvError> {
        let [batch, heads, count, head_dim] = match layout {
            RopeLayout::Bhnd => tokens,
            RopeLayout::Bnhd => [tokens[0], tokens[2], tokens[1], tokens[3]],
        };
        if head_dim % 4 != 0 {
            invalid!("rope2d: the head dimension {head_dim} is not a multiple of 4");
        }
        if !(base > 0.0 && base.is_finite()) {
            invalid!("rope2d: the base is {base}, it must be positive and finite");
        }
        if !f0.is_finite() {
            invalid!("rope2d: f0 is {f0}, it must be finite");
        }
        if positions != [batch, count, 2] {
            invalid!(
                "rope2d: the positions have shape {positions:?}, tokens {tokens:?} need {:?} (batch, tokens, y and x)",
                [batch, count, 2]
            );
        }
        let elements = tokens.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
        let bytes = elements.and_then(|elements| elements.checked_mul(4));
        if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(ConvError::TooLarge(format!(
                "rope2d: tokens {tokens:?} have more elements than can be addressed"
            )));
        }
        Ok(Self { batch, heads, tokens: count, head_dim, layout, base, f0, dtype })
    }

    /// `[B, H, N, D]` or `[B, N, H, D]`.
    pub fn tokens_shape(&self) -> [usize; 4] {
        match self.layout {
            RopeLayout::Bhnd => [self.batch, self.heads, self.tokens, self.head_dim],
            RopeLayout::Bnhd => [self.batch, self.tokens, self.heads, self.head_dim],
        }
    }

    /// `[B, N, 2]`.
    pub fn positions_shape(&self) -> [usize; 3] {
        [self.batch, self.tokens, 2]
    }

    /// Q, frequencies per axis: D / 4.
    pub fn frequencies(&self) -> usize {
        self.head_dim / 4
    }
}

/// Rotates `tokens` by their positions into `out`, which has the same shape and dtype; by the opposite angles when
/// `inverse`, which undoes the rotation and is its gradient. Positions are (y, x) in `[B, N, 2]`.
///
/// The first call of a (base, f0, D) on a device computes and uploads its tables, a few milliseconds; the tables of the
/// last 16 such combinations are kept.
///
/// # Errors
/// When an operand does not have the problem's shape and dtype, the device lacks a storage type, or the tensors are too
/// large for its index type.
pub fn rotate(
    client: &Client,
    limits: &Limits,
    problem: &Rope2dProblem,
    tokens: &Operand,
    positions: &IndexOperand,
    out: &Operand,
    inverse: bool,
) -> Result<(), ConvError> {
    let shape = problem.tokens_shape();
    for (name, operand) in [("tokens", tokens), ("out", out)] {
        if operand.shape != shape {
            invalid!("rope2d: {name} has shape {:?}, the problem needs {shape:?}", operand.shape);
        }
        if operand.dtype != problem.dtype {
            invalid!(
                "rope2d: {name} is {}, the problem needs {}",
                operand.dtype.name(),
                problem.dtype.name()
            );
        }
    }
    check_dtype("rope2d", problem.dtype, limits)?;
    positions.check("rope2d", "positions", &problem.positions_shape(), client)?;
    if shape.contains(&0) {
        return Ok(());
    }
    kernel::launch(client, limits, problem, tokens, positions, out, inverse)
}
