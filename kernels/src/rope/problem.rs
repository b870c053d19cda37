//! Shapes and options of a rotation, validated.

use super::{Frequency, RopeAngles, RopeAxes, RopePairs};
use crate::dtype::FloatType;
use crate::error::{ConvError, invalid};

/// Order of the axes of the tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RopeLayout {
    /// `[B, H, N, D]`.
    #[default]
    Bhnd,
    /// `[B, N, H, D]`.
    Bnhd,
}

/// A rotation: tokens of D = `head_dim` elements in H heads, rotated by positions `[B, N, axes]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeProblem {
    /// B.
    pub batch: usize,
    /// H.
    pub heads: usize,
    /// N.
    pub tokens: usize,
    /// D, even.
    pub head_dim: usize,
    /// Order of the axes of the tokens.
    pub layout: RopeLayout,
    /// What turns by which angle.
    pub angles: RopeAngles,
    /// Storage type of the tokens.
    pub dtype: FloatType,
    /// Elements of a head that are rotated, from the first: those that the axes name, or all of them unless
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

/// Frames, rows and columns of patches in row-major order, after the tokens of the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeVolume {
    /// Frames.
    pub frames: usize,
    /// Patches along y.
    pub rows: usize,
    /// Patches along x.
    pub columns: usize,
    /// Position of the first frame, row and column.
    pub first: [i32; 3],
}

/// Fewer elements than this can be rotated: batch, heads and tokens are counted with 32 bits.
const MOST_ELEMENTS: usize = 1 << 33;

impl RopeProblem {
    /// The problem with tokens `[B, H, N, D]` or `[B, N, H, D]` as `layout` says.
    ///
    /// # Errors
    /// A [`ConvError`] with the offending numbers.
    pub fn new(
        tokens: [usize; 4],
        layout: RopeLayout,
        angles: RopeAngles,
        dtype: FloatType,
    ) -> Result<Self, ConvError> {
        let [batch, heads, count, head_dim] = match layout {
            RopeLayout::Bhnd => tokens,
            RopeLayout::Bnhd => [tokens[0], tokens[2], tokens[1], tokens[3]],
        };
        let elements = tokens.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
        let bytes = elements.and_then(|elements| elements.checked_mul(4));
        if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(ConvError::TooLarge(format!(
                "rope: tokens {tokens:?} have more elements than can be addressed"
            )));
        }
        if elements.is_none_or(|elements| elements >= MOST_ELEMENTS) {
            return Err(ConvError::TooLarge(format!(
                "rope: tokens {tokens:?} have 2^33 elements or more, too many for one launch"
            )));
        }
        angles.check()?;
        if let RopeAxes::Even(count) = angles.axes
            && head_dim % (2 * count) != 0
        {
            invalid!("rope: the head dimension {head_dim} is not a multiple of {}", 2 * count);
        }
        let rotated = angles.named().unwrap_or(head_dim);
        let problem =
            Self { batch, heads, tokens: count, head_dim, layout, angles, dtype, rotated, prefix: 0 };
        if rotated > head_dim {
            invalid!(
                "rope: the axes take {rotated} elements of a head ({:?}), it has {head_dim}",
                angles.axes
            );
        }
        problem.checked()
    }

    /// CroCo's rotation by rows and columns.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn rope2d(
        tokens: [usize; 4],
        layout: RopeLayout,
        base: f32,
        f0: f32,
        dtype: FloatType,
    ) -> Result<Self, ConvError> {
        Self::new(tokens, layout, RopeAngles::rope2d(base, f0), dtype)
    }

    fn checked(self) -> Result<Self, ConvError> {
        if !(self.head_dim - self.rotated).is_multiple_of(2) {
            invalid!("rope: the head dimension {} is odd", self.head_dim);
        }
        self.angles.check_speed(self.rotated)?;
        Ok(self)
    }

    /// The same problem, of which only the first `rotated` elements of a head are rotated.
    ///
    /// # Errors
    /// [`ConvError::Invalid`] if the axes do not get equal parts of them, or name another number of elements.
    pub fn with_rotated(self, rotated: usize) -> Result<Self, ConvError> {
        match self.angles.axes {
            RopeAxes::Even(count)
                if rotated == 0 || !rotated.is_multiple_of(2 * count) || rotated > self.head_dim =>
            {
                invalid!(
                    "rope: {rotated} rotated elements of a head of {}, expected a positive multiple of {} and no \
                     more than the head has",
                    self.head_dim,
                    2 * count
                );
            }
            RopeAxes::Even(_) => {}
            axes if rotated != self.rotated => {
                invalid!("rope: the axes take {} elements of a head ({axes:?}), not {rotated}", self.rotated);
            }
            _ => {}
        }
        Self { rotated, ..self }.checked()
    }

    /// The same problem, of which the first `prefix` tokens are copied. Their positions do not matter.
    ///
    /// # Errors
    /// [`ConvError::Invalid`] if there are fewer tokens.
    pub fn with_prefix(self, prefix: usize) -> Result<Self, ConvError> {
        if prefix > self.tokens {
            invalid!("rope: the prefix is {prefix} tokens, there are only {}", self.tokens);
        }
        Ok(Self { prefix, ..self })
    }

    /// Refuses a tensor of positions of another shape.
    ///
    /// # Errors
    /// [`ConvError::Shape`].
    pub fn check_positions(&self, shape: &[usize]) -> Result<(), ConvError> {
        let expected = self.positions_shape();
        if shape != expected {
            let tokens = self.tokens_shape();
            let message = format!(
                "rope: the positions have shape {shape:?}, tokens {tokens:?} need {expected:?} (batch, tokens, \
                 axes)"
            );
            return Err(ConvError::shape("positions", &expected, shape, message));
        }
        Ok(())
    }

    /// Refuses a grid that does not have a patch for every token after the prefix, or positions beyond i32.
    ///
    /// # Errors
    /// [`ConvError::Invalid`] with the numbers.
    pub fn check_grid(&self, grid: RopeGrid) -> Result<(), ConvError> {
        let RopeGrid { rows, columns, first } = grid;
        self.check_patches(&[rows, columns], &[first; 2])
    }

    /// [`check_grid`](Self::check_grid) for three axes.
    ///
    /// # Errors
    /// [`ConvError::Invalid`] with the numbers.
    pub fn check_volume(&self, volume: RopeVolume) -> Result<(), ConvError> {
        let RopeVolume { frames, rows, columns, first } = volume;
        self.check_patches(&[frames, rows, columns], &first)
    }

    /// Refuses an offset from which the tokens after the prefix leave the range of i32.
    ///
    /// # Errors
    /// [`ConvError::Invalid`] with the numbers.
    pub fn check_offset(&self, offset: i32) -> Result<(), ConvError> {
        let tokens = self.tokens - self.prefix;
        let last = tokens as i64 + i64::from(offset) - 1;
        if tokens > 0 && last > i64::from(i32::MAX) {
            invalid!(
                "rope: {tokens} tokens from position {offset} on end at {last}, the last position is {}",
                i32::MAX
            );
        }
        Ok(())
    }

    fn check_patches(&self, extents: &[usize], first: &[i32]) -> Result<(), ConvError> {
        let text: Vec<String> = extents.iter().map(usize::to_string).collect();
        let text = text.join(" x ");
        if extents.len() != self.angles.count() {
            invalid!(
                "rope: a grid of {text} patches has {} axes, the angles have {}",
                extents.len(),
                self.angles.count()
            );
        }
        let patches = extents.iter().try_fold(1usize, |product, extent| product.checked_mul(*extent));
        if patches.and_then(|patches| patches.checked_add(self.prefix)) != Some(self.tokens) {
            invalid!(
                "rope: a grid of {text} patches after {} other tokens was given for {} tokens",
                self.prefix,
                self.tokens
            );
        }
        for (extent, first) in extents.iter().zip(first) {
            // Below 2^33 with the tokens, unless there are no patches.
            let last = *extent as i64 + i64::from(*first) - 1;
            if self.tokens > self.prefix && last > i64::from(i32::MAX) {
                invalid!(
                    "rope: a grid of {text} patches from position {first} on ends at {last}, the last position \
                     is {}",
                    i32::MAX
                );
            }
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

    /// `[B, N, axes]`.
    pub fn positions_shape(&self) -> [usize; 3] {
        [self.batch, self.tokens, self.angles.count()]
    }

    /// The frequency of every rotated pair.
    pub fn frequencies(&self) -> Vec<Frequency> {
        self.angles.frequencies(self.rotated)
    }

    /// The first pair of each block of halves and the end of the last: one block, or one for each axis.
    pub fn blocks(&self) -> [usize; 4] {
        let pairs = self.rotated / 2;
        if self.angles.pairs != RopePairs::HalvesOfAxes {
            return [0, pairs, pairs, pairs];
        }
        let [first, second, _] = self.angles.pairs_of_axes(self.rotated);
        [0, first, first + second, pairs]
    }

    /// The elements (u, v) of every rotated pair.
    pub fn elements(&self) -> Vec<[usize; 2]> {
        if self.angles.pairs == RopePairs::Neighbours {
            return (0..self.rotated / 2).map(|i| [2 * i, 2 * i + 1]).collect();
        }
        let blocks = self.blocks();
        let ends = blocks.windows(2).map(|ends| (ends[0], ends[1]));
        ends.flat_map(|(first, end)| (first..end).map(move |i| [first + i, end + i])).collect()
    }
}

#[cfg(test)]
#[path = "problem_tests.rs"]
mod tests;
