//! RoPE2D's options: those of RoPE that CroCo's models choose.

use super::RopeOptions;
use conv_kernels::rope::RopeLayout;

/// Options of [`rope2d`](crate::rope2d()).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Rope2dOptions {
    /// Ratio of the highest to the lowest frequency; 100, as in published checkpoints ("RoPE100").
    pub base: f32,
    /// Factor of every angle; 1. Coordinates in -1..1 want a large one. Angles may grow by up to 2^20 radians
    /// from one position to the next.
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

impl From<Rope2dOptions> for RopeOptions {
    fn from(options: Rope2dOptions) -> Self {
        let Rope2dOptions { base, f0, layout, prefix, rotated } = options;
        let croco = Self::croco().with_base(base).with_f0(f0).with_layout(layout);
        croco.with_prefix(prefix).with_rotated(rotated)
    }
}
