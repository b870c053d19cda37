//! RoPE: rotary position embedding over one, two or three axes.
//!
//! A head is a row of pairs of elements (u, v), each of which turns by its frequency times the token's
//! position along its frequency's axis:
//!
//! ```text
//! theta = position * frequency      u' = u cos(theta) - v sin(theta)      v' = v cos(theta) + u sin(theta)
//! ```
//!
//! Which elements are a pair, which frequency it has and which axis it belongs to is [`RopeAngles`]. The
//! backward pass is the same rotation by -theta ([`rotate`] with `inverse`). Arithmetic is fp32 with one
//! rounding at the end. Elements of a head past the rotated ones and the tokens of a prefix are copied.
//! Positions are integers, fp32 numbers (between the patches of a grid of another size), those of a grid of
//! two or three axes, or consecutive ones from an offset on, without a tensor ([`Positions`]). [`rotate_all`]
//! rotates queries and keys in one launch. The result may overwrite the tokens.
//!
//! The kernel computes cos and sin itself (`angle.rs`), from a table of frequencies that the host makes in
//! fixed point (`frequencies.rs`): shader `sin` and `cos` promise no more than 2^-11, and only in -pi..pi.
//! The angle of every i32 or fp32 position is right to 1e-7 radians, however large it is. Nothing is read
//! back from the device.
//!
//! A position outside the range of i32 (as i64 or fp32), an infinity or NaN gives NaN in the elements that
//! it rotates, whatever the tokens are. Factors that rotate by more than [`MAX_RADIANS`] from one position
//! to the next are refused.

mod angle;
mod angles;
mod args;
mod frequencies;
mod kernel;
mod launch;
mod problem;
pub mod reference;
mod turn;

pub use angles::{Frequency, MAX_RADIANS, RopeAngles, RopeAxes, RopePairs, RopeScaling};
pub use problem::{RopeGrid, RopeLayout, RopeProblem, RopeVolume};

use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::index_operand::IndexOperand;
use crate::limits::Limits;
use crate::needs::Needs;
use crate::operand::{Operand, check_operand};
use cubecl::prelude::*;

/// Positions of the tokens.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Positions<'a> {
    /// `[B, N, axes]` integers.
    Index(&'a IndexOperand),
    /// `[B, N, axes]` fp32 numbers. Values outside the range of i32 and NaN give NaN.
    Float(&'a Operand),
    /// On a grid of two axes.
    Grid(RopeGrid),
    /// On a grid of three axes.
    Volume(RopeVolume),
    /// One after the other, the first token after the prefix at this position, along all axes: a sequence,
    /// from its beginning or from where a cache of keys ends.
    Offset(i32),
}

/// A rotation: tokens, their positions, and the result, which may overwrite the tokens.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// Shapes and options.
    pub problem: RopeProblem,
    /// The tokens.
    pub tokens: &'a Operand,
    /// Their positions.
    pub positions: Positions<'a>,
    /// The result, of the tokens' shape and dtype.
    pub out: &'a Operand,
}

/// Rotates `tokens` by their positions into `out` of the same shape and dtype; by the opposite angles if
/// `inverse`, which undoes the rotation and is its gradient. Positions are `[B, N, axes]`.
///
/// The first call with some angles on a device computes and uploads 16 bytes for each pair of a head; those
/// of the last 64 are cached.
///
/// # Errors
/// When an operand does not have the problem's shape and dtype, the device lacks a storage type, or the
/// tensors are too large for its index type.
pub fn rotate(
    client: &Client,
    limits: &Limits,
    problem: &RopeProblem,
    tokens: &Operand,
    positions: &IndexOperand,
    out: &Operand,
    inverse: bool,
) -> Result<(), ConvError> {
    let rotation = Rotation { problem: *problem, tokens, positions: Positions::Index(positions), out };
    rotate_all(client, limits, &[rotation], inverse)
}

/// Buffers of a launch for queries and keys: two each of tokens, positions and results, table and arguments.
const PAIR_BINDINGS: usize = 8;

/// [`rotate`] of one tensor, or of queries and keys in one launch: two problems of the same angles, head
/// dimension, rotated elements and dtype. Others get a launch each.
///
/// # Errors
/// As [`rotate`].
pub fn rotate_all(
    client: &Client,
    limits: &Limits,
    rotations: &[Rotation],
    inverse: bool,
) -> Result<(), ConvError> {
    for rotation in rotations {
        check(client, limits, rotation)?;
    }
    let rotations: Vec<Rotation> =
        rotations.iter().filter(|each| !each.problem.tokens_shape().contains(&0)).copied().collect();
    let alike = |a: &RopeProblem, b: &RopeProblem| {
        let of = |each: &RopeProblem| (each.angles, each.dtype, each.rotated, each.head_dim);
        of(a) == of(b)
    };
    match &rotations[..] {
        [q, k] if alike(&q.problem, &k.problem) && limits.bindings >= PAIR_BINDINGS => {
            launch::launch(client, limits, &rotations, inverse)
        }
        all => all.iter().try_for_each(|each| launch::launch(client, limits, &[*each], inverse)),
    }
}

/// Refuses a device that cannot run the kernel.
///
/// # Errors
/// As [`Needs::check`].
pub fn check_device(limits: &Limits) -> Result<(), ConvError> {
    let needs = Needs { shared_bytes: kernel::SHARED_BYTES, ..Needs::OF_ANY_CALL };
    needs.check(format_args!("rope: a rotation"), limits)
}

/// Refuses operands that do not fit the problem or the device.
fn check(client: &Client, limits: &Limits, rotation: &Rotation) -> Result<(), ConvError> {
    let Rotation { problem, tokens, positions, out } = rotation;
    let shape = problem.tokens_shape();
    for (name, operand) in [("the token tensor", tokens), ("out", out)] {
        check_operand("rope", name, operand, &shape, problem.dtype)?;
    }
    limits.check_dtype("rope", problem.dtype)?;
    check_device(limits)?;
    match positions {
        Positions::Index(positions) => {
            problem.check_positions(&positions.shape)?;
            positions.check("rope", "the position tensor", &problem.positions_shape(), client)
        }
        Positions::Float(positions) => {
            problem.check_positions(&positions.shape)?;
            if positions.dtype != FloatType::F32 {
                let got = positions.dtype.name();
                let message = format!("rope: the position tensor is {got}, fractional positions must be f32");
                return Err(ConvError::dtype("positions", &[FloatType::F32.name()], got, message));
            }
            Ok(())
        }
        Positions::Grid(grid) => problem.check_grid(*grid),
        Positions::Volume(volume) => problem.check_volume(*volume),
        Positions::Offset(offset) => problem.check_offset(*offset),
    }
}
