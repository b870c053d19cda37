//! What the caller of RoPE2D may choose.

use crate::backend::RopePositions;
use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};
use conv_kernels::rope2d::{RopeGrid, RopeLayout};

/// Options of [`rope2d`](crate::rope2d()).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Rope2dOptions {
    /// Ratio of the highest to the lowest frequency; 100, as in published checkpoints ("RoPE100").
    pub base: f32,
    /// Factor of every angle; 1. Coordinates in -1..1 want a large one. `|f0|`, and for a base below 1 `|f0|
    /// / base`, may be up to 2^20; the angles of all positions are right to 1e-6 radians then, as long as f64
    /// resolves them so (to `theta * 2^-52`).
    pub f0: f32,
    /// Order of the axes of the tokens; `[B, H, N, D]`.
    pub layout: RopeLayout,
    /// Tokens at the beginning that stay as they are, such as VGGT's special tokens; none. Their positions do
    /// not matter.
    pub prefix: usize,
    /// Elements of a head that are rotated, from the first, a multiple of 4; all of them.
    pub rotated: Option<usize>,
}

impl Default for Rope2dOptions {
    fn default() -> Self {
        Self { base: 100.0, f0: 1.0, layout: RopeLayout::Bhnd, prefix: 0, rotated: None }
    }
}

impl Rope2dOptions {
    /// Base 100, factor 1, `[B, H, N, D]`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the ratio of the highest to the lowest frequency.
    #[must_use]
    pub fn with_base(self, base: f32) -> Self {
        Self { base, ..self }
    }

    /// Sets the factor of every angle.
    #[must_use]
    pub fn with_f0(self, f0: f32) -> Self {
        Self { f0, ..self }
    }

    /// Sets the order of the axes of the tokens.
    #[must_use]
    pub fn with_layout(self, layout: RopeLayout) -> Self {
        Self { layout, ..self }
    }

    /// Sets how many tokens at the beginning stay as they are.
    #[must_use]
    pub fn with_prefix(self, prefix: usize) -> Self {
        Self { prefix, ..self }
    }

    /// Sets how many elements of a head are rotated; `None` for all.
    #[must_use]
    pub fn with_rotated(self, rotated: impl Into<Option<usize>>) -> Self {
        Self { rotated: rotated.into(), ..self }
    }
}

/// Where the tokens of [`rope2d`](crate::rope2d()) stand: (row, column) of each. A position outside the range
/// of i32, an infinite one and NaN make the elements that it turns NaN.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Rope2dPositions {
    /// Integers `[B, N, 2]`, negative ones too.
    Index(Tensor<3, Int>),
    /// fp32 numbers `[B, N, 2]`, such as those between the patches of a grid of another size. No gradient
    /// reaches them.
    Float(Tensor<3>),
    /// The patches of a grid in row-major order, after the tokens of the prefix: no tensor is needed.
    Grid(RopeGrid),
}

impl From<Tensor<3, Int>> for Rope2dPositions {
    fn from(positions: Tensor<3, Int>) -> Self {
        Self::Index(positions)
    }
}

impl From<Tensor<3>> for Rope2dPositions {
    fn from(positions: Tensor<3>) -> Self {
        Self::Float(positions)
    }
}

impl From<RopeGrid> for Rope2dPositions {
    fn from(grid: RopeGrid) -> Self {
        Self::Grid(grid)
    }
}

impl Rope2dPositions {
    /// The positions as backends get them.
    pub(crate) fn into_dispatch(self) -> RopePositions<Dispatch> {
        match self {
            Self::Index(positions) => RopePositions::Index(positions.into_dispatch()),
            Self::Float(positions) => RopePositions::Float(positions.into_dispatch()),
            Self::Grid(grid) => RopePositions::Grid(grid),
        }
    }
}
