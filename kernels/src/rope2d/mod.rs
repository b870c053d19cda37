//! RoPE2D: rotary position embedding over two axes, as CroCo-style vision transformers use it.
//!
//! A head vector of length D = 4Q is `[uy | vy | ux | vx]`, four contiguous slices of Q: the first half is
//! rotated by the token's row y, the second by its column x, element i of u with element i of v:
//!
//! ```text
//! theta = f0 * p * base^(-i/Q)      u' = u cos(theta) - v sin(theta)      v' = v cos(theta) + u sin(theta)
//! ```
//!
//! with p = y or x. The backward pass is the same rotation by -theta ([`rotate`] with `inverse`). Arithmetic
//! is fp32 with one rounding at the end. Elements of a head past the rotated ones and the tokens of a prefix
//! are copied. Positions are integers, fp32 numbers (between the patches of a grid of another size), or those
//! of a grid, without a tensor. [`rotate_all`] rotates queries and keys in one launch. The result may
//! overwrite the tokens.
//!
//! cos and sin come from fp32 tables computed in f64 on the host (`table.rs`), because shader `sin` and `cos`
//! promise no more than 2^-11, and only in -pi..pi. A position is split into digits with one table row each,
//! whose rotations are composed in fp32: the angle of every i32 or fp32 position is right to 1e-6 radians
//! (beyond |theta| = 2^29 to f64's resolution, |theta| * 2^-52), of integers below 2048 to one rounding.
//! Nothing is read back from the device.
//!
//! A position outside the range of i32 (as i64 or fp32), an infinity or NaN gives NaN in the elements that it
//! rotates, whatever the tokens are; no position reads outside a table. Factors that rotate by more than
//! [`MAX_RADIANS`] from one position to the next are refused.

mod kernel;
mod launch;
pub mod reference;
mod table;

use crate::dtype::FloatType;
use crate::error::{ConvError, invalid};
use crate::index_operand::IndexOperand;
use crate::limits::Limits;
use crate::operand::{Operand, check_dtype};
use cubecl::prelude::*;
use table::Digits;

/// Order of the axes of the tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RopeLayout {
    /// `[B, H, N, D]`.
    #[default]
    Bhnd,
    /// `[B, N, H, D]`.
    Bnhd,
}

/// A RoPE2D problem: tokens of D = `head_dim` elements in H heads, rotated by positions `[B, N, 2]` of (y,
/// x).
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
    /// Elements of a head that are rotated, from the first: a multiple of 4, all of them unless
    /// [`with_rotated`](Self::with_rotated) says otherwise.
    pub rotated: usize,
    /// Tokens at the beginning that are copied as they are, such as VGGT's special tokens.
    pub prefix: usize,
}

/// Rows and columns of patches in row-major order, after the tokens of the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeGrid {
    /// Patches along y.
    pub rows: usize,
    /// Patches along x.
    pub columns: usize,
    /// Position of the first row and of the first column: 0, in VGGT 1.
    pub first: i32,
}

/// Largest rotation of the fastest frequency from one position to the next, in radians. Beyond it, fp32
/// positions and f64 angles cannot tell rotations apart.
pub const MAX_RADIANS: f64 = (1u32 << 20) as f64;

/// Positions of the tokens.
#[derive(Clone, Copy, Debug)]
pub enum Positions<'a> {
    /// (y, x) as `[B, N, 2]` integers.
    Index(&'a IndexOperand),
    /// (y, x) as `[B, N, 2]` fp32 numbers. Values outside the range of i32 and NaN give NaN.
    Float(&'a Operand),
    /// On a grid.
    Grid(RopeGrid),
}

/// A rotation: tokens, their positions, and the result, which may overwrite the tokens.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// Shapes and options.
    pub problem: Rope2dProblem,
    /// The tokens.
    pub tokens: &'a Operand,
    /// Their positions.
    pub positions: Positions<'a>,
    /// The result, of the tokens' shape and dtype.
    pub out: &'a Operand,
}

impl Rope2dProblem {
    /// The problem with these shapes: tokens `[B, H, N, D]` or `[B, N, H, D]` as `layout` says, positions
    /// `[B, N, 2]`.
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
                "rope2d: the positions have shape {positions:?}, tokens {tokens:?} need {:?} \
                 (batch, tokens, y and x)",
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
        let (rotated, prefix) = (head_dim, 0);
        let problem =
            Self { batch, heads, tokens: count, head_dim, layout, base, f0, dtype, rotated, prefix };
        let fastest = problem.fastest();
        if fastest > MAX_RADIANS {
            invalid!(
                "rope2d: f0 {f0} with base {base} rotates by up to {fastest} radians from one position \
                 to the next, the limit is {MAX_RADIANS}"
            );
        }
        Ok(problem)
    }

    /// The same problem, of which only the first `rotated` elements of a head are rotated.
    ///
    /// # Errors
    /// [`ConvError::Invalid`] if `rotated` is not a positive multiple of 4 up to the head dimension.
    pub fn with_rotated(self, rotated: usize) -> Result<Self, ConvError> {
        if rotated == 0 || !rotated.is_multiple_of(4) || rotated > self.head_dim {
            invalid!(
                "rope2d: {rotated} rotated elements of a head of {}, expected a positive multiple of 4 \
                 and no more than the head has",
                self.head_dim
            );
        }
        Ok(Self { rotated, ..self })
    }

    /// The same problem, of which the first `prefix` tokens are copied. Their positions do not matter.
    ///
    /// # Errors
    /// [`ConvError::Invalid`] if there are fewer tokens.
    pub fn with_prefix(self, prefix: usize) -> Result<Self, ConvError> {
        if prefix > self.tokens {
            invalid!("rope2d: the prefix is {prefix} tokens, there are only {}", self.tokens);
        }
        Ok(Self { prefix, ..self })
    }

    /// Upper bound of a frequency's rotation from one position to the next, in radians: `|f0| * base^(-i/Q)`
    /// for i in 0..Q.
    pub(crate) fn fastest(&self) -> f64 {
        f64::from(self.f0.abs()) * f64::from(self.base).recip().max(1.0)
    }

    /// Refuses a problem whose table of cosines and sines exceeds the device's largest buffer (heads of about
    /// a hundred thousand elements); `fractions`: positions are fp32.
    ///
    /// # Errors
    /// [`ConvError::TooLarge`] with the numbers.
    pub fn check_table(&self, fractions: bool, limits: &Limits) -> Result<(), ConvError> {
        let shape = Digits::of(self, fractions).table_shape(self);
        let bytes = shape.iter().product::<usize>() as u64 * 4;
        if bytes > limits.buffer_bytes {
            return Err(ConvError::TooLarge(format!(
                "rope2d: the table for {} rotated elements has {bytes} bytes, the largest buffer of this \
                 device has {}",
                self.rotated, limits.buffer_bytes
            )));
        }
        Ok(())
    }

    /// Refuses a grid that does not have a patch for every token after the prefix, or positions beyond i32.
    ///
    /// # Errors
    /// [`ConvError::Invalid`] with the numbers.
    pub fn check_grid(&self, grid: RopeGrid) -> Result<(), ConvError> {
        let patches =
            grid.rows.checked_mul(grid.columns).and_then(|patches| patches.checked_add(self.prefix));
        if patches != Some(self.tokens) {
            invalid!(
                "rope2d: a grid of {} x {} patches after {} other tokens was given for {} tokens",
                grid.rows,
                grid.columns,
                self.prefix,
                self.tokens
            );
        }
        // Below 2^33 with the tokens, unless there are no patches.
        let last = grid.rows.max(grid.columns) as i64 + i64::from(grid.first) - 1;
        if self.tokens > self.prefix && last > i64::from(i32::MAX) {
            invalid!(
                "rope2d: a grid of {} x {} patches from position {} on ends at {last}, \
                 the last position is {}",
                grid.rows,
                grid.columns,
                grid.first,
                i32::MAX
            );
        }
        Ok(())
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

    /// Q, frequencies per axis: a quarter of the rotated elements.
    pub fn frequencies(&self) -> usize {
        self.rotated / 4
    }
}

/// Rotates `tokens` by their positions into `out` of the same shape and dtype; by the opposite angles if
/// `inverse`, which undoes the rotation and is its gradient. Positions are (y, x) in `[B, N, 2]`.
///
/// The first call of a (base, f0, D) on a device computes and uploads its table in a few milliseconds; the
/// tables of the last 16 such combinations are cached.
///
/// # Errors
/// When an operand does not have the problem's shape and dtype, the device lacks a storage type, or the
/// tensors are too large for its index type.
pub fn rotate(
    client: &Client,
    limits: &Limits,
    problem: &Rope2dProblem,
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

/// [`rotate`] of one tensor, or of queries and keys in one launch: two problems of the same base, factor,
/// head dimension, rotated elements and dtype, with the same kind of positions. Others get a launch each.
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
    let alike = |a: &Rotation, b: &Rotation| {
        let of = |each: &Rotation| {
            let Rope2dProblem { base, f0, dtype, rotated, head_dim, .. } = each.problem;
            let kind = match each.positions {
                Positions::Index(positions) => Some(positions.dtype as usize),
                Positions::Float(_) => Some(usize::MAX),
                Positions::Grid(_) => None,
            };
            (base.to_bits(), f0.to_bits(), dtype, rotated, head_dim, kind)
        };
        of(a) == of(b)
    };
    match &rotations[..] {
        [q, k] if alike(q, k) && limits.bindings >= PAIR_BINDINGS => {
            launch::launch(client, limits, &rotations, inverse)
        }
        all => all.iter().try_for_each(|each| launch::launch(client, limits, &[*each], inverse)),
    }
}

/// Refuses operands that do not fit the problem or the device.
fn check(client: &Client, limits: &Limits, rotation: &Rotation) -> Result<(), ConvError> {
    let Rotation { problem, tokens, positions, out } = rotation;
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
    problem.check_table(matches!(positions, Positions::Float(_)), limits)?;
    if shape.iter().product::<usize>() >= 1 << 33 {
        return Err(ConvError::TooLarge(format!(
            "rope2d: tokens {shape:?} have 2^33 elements or more, too many for one launch"
        )));
    }
    let expected = problem.positions_shape();
    match positions {
        Positions::Index(positions) => positions.check("rope2d", "positions", &expected, client),
        Positions::Float(positions) if positions.shape != expected => {
            invalid!("rope2d: positions has shape {:?}, the problem needs {expected:?}", positions.shape)
        }
        Positions::Float(positions) if positions.dtype != FloatType::F32 => {
            invalid!("rope2d: positions is {}, fractional positions must be f32", positions.dtype.name())
        }
        Positions::Float(_) => Ok(()),
        Positions::Grid(grid) => problem.check_grid(*grid),
    }
}
