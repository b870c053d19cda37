//! RoPE2D's options: those of RoPE that CroCo's models choose.

use super::RopeOptions;
use crate::nn::setters;
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
}

setters!(Rope2dOptions {
    /// Sets the ratio of the highest to the lowest frequency.
    with_base(base: f32);
    /// Sets the factor of every angle.
    with_f0(f0: f32);
    /// Sets the order of the axes of the tokens.
    with_layout(layout: RopeLayout);
    /// Sets how many tokens at the beginning stay as they are.
    with_prefix(prefix: usize);
    /// Sets how many elements of a head are rotated; `None` for all.
    with_rotated(rotated => Option<usize>);
});

impl From<Rope2dOptions> for RopeOptions {
    fn from(options: Rope2dOptions) -> Self {
        let Rope2dOptions { base, f0, layout, prefix, rotated } = options;
        let croco = Self::croco().with_base(base).with_f0(f0).with_layout(layout);
        croco.with_prefix(prefix).with_rotated(rotated)
    }
}
