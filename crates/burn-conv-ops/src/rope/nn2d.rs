//! RoPE2D as a module.

use super::nn::forward;
use super::{Rope2dOptions, RopePositions, try_rope2d, try_rope2d_qk};
use crate::RopeLayout;
use crate::forms::RopeLayoutForm;
use crate::nn::{config, setters};
use burn::module::Module;
use burn::serde::{Deserialize, Serialize};
use burn::tensor::{Device, Int, Tensor, TensorData};
use derive_new::new;

/// Configuration of a [`Rope2d`]: `Rope2dConfig::new().init()`.
#[derive(Clone, Debug, new, Serialize, Deserialize)]
#[serde(crate = "burn::serde")]
#[non_exhaustive]
pub struct Rope2dConfig {
    /// Ratio of the highest to the lowest frequency; 100.
    #[new(value = "100.0")]
    pub base: f32,
    /// Factor of every angle; 1.
    #[new(value = "1.0")]
    pub f0: f32,
    /// Order of the axes of the tokens; `[B, H, N, D]`.
    #[new(default)]
    #[serde(with = "RopeLayoutForm")]
    pub layout: RopeLayout,
    /// Tokens at the beginning that stay as they are, such as VGGT's special tokens; none.
    #[new(default)]
    pub prefix: usize,
    /// Elements of a head that are rotated, from the first, a multiple of 4; all of them.
    #[new(default)]
    pub rotated: Option<usize>,
}

config!(Rope2dConfig);
setters!(Rope2dConfig {
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

impl Rope2dConfig {
    /// The module. It has no parameters and belongs to no device.
    #[must_use]
    pub fn init(&self) -> Rope2d {
        let Self { base, f0, layout, prefix, rotated } = *self;
        Rope2d { options: Rope2dOptions { base, f0, layout, prefix, rotated } }
    }
}

/// Rotary position embedding over rows and columns, without parameters.
#[derive(Module, Debug)]
pub struct Rope2d {
    /// Base, factor, layout, and what is not rotated.
    #[module(skip)]
    pub options: Rope2dOptions,
}

forward!(
    Rope2d,
    try_rope2d,
    try_rope2d_qk,
    /// The tokens `[B, H, N, D]` (or `[B, N, H, D]`), rotated by their positions of (row, column): a tensor
    /// `[B, N, 2]` of integers or fp32 numbers, or a [`RopeGrid`](crate::RopeGrid).
);

impl Rope2d {
    /// Positions `[batch, rows * columns, 2]` of a grid of patches in row-major order; no tokens where there
    /// are no rows or no columns.
    ///
    /// # Panics
    /// If a row or a column has no i32.
    pub fn grid(batch: usize, rows: usize, columns: usize, device: &Device) -> Tensor<3, Int> {
        let end =
            |size: usize| i32::try_from(size).unwrap_or_else(|_| panic!("rope: {size} patches pass an i32"));
        let (rows, columns) = (end(rows), end(columns));
        let pairs: Vec<i32> = (0..rows).flat_map(|y| (0..columns).flat_map(move |x| [y, x])).collect();
        let tokens = pairs.len() / 2;
        if batch * tokens == 0 {
            return Tensor::empty([batch, tokens, 2], device);
        }
        let grid = Tensor::<3, Int>::from_data(TensorData::new(pairs, [1, tokens, 2]), device);
        grid.expand([batch, tokens, 2])
    }
}
