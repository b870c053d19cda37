//! RoPE2D as a module.

use super::forms::RopeLayoutForm;
use super::{config, setters};
use crate::{Rope2dOptions, RopeLayout, rope2d, rope2d_qk};
use burn::module::Module;
use burn::serde::{Deserialize, Serialize};
use burn::tensor::{Device, Int, Tensor, TensorData};
use derive_new::new;

/// Configuration of a [`Rope2d`]: `Rope2dConfig::new().init()`.
#[derive(Clone, Debug, new, Serialize, Deserialize)]
#[serde(crate = "burn::serde")]
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
}

config!(Rope2dConfig);
setters!(Rope2dConfig {
    /// Sets the ratio of the highest to the lowest frequency.
    with_base(base: f32);
    /// Sets the factor of every angle.
    with_f0(f0: f32);
    /// Sets the order of the axes of the tokens.
    with_layout(layout: RopeLayout);
});

impl Rope2dConfig {
    /// The module. It has no parameters and belongs to no device.
    #[must_use]
    pub fn init(&self) -> Rope2d {
        Rope2d {
            options: Rope2dOptions {
                base: self.base,
                f0: self.f0,
                layout: self.layout,
                ..Rope2dOptions::new()
            },
        }
    }
}

/// Rotary position embedding over rows and columns, without parameters.
#[derive(Module, Debug)]
pub struct Rope2d {
    /// Base, factor and layout.
    #[module(skip)]
    pub options: Rope2dOptions,
}

impl Rope2d {
    /// The tokens `[B, H, N, D]` (or `[B, N, H, D]`), rotated by their positions `[B, N, 2]` of (row, column).
    ///
    /// # Panics
    /// Where [`try_rope2d`](crate::try_rope2d) returns an error.
    pub fn forward(&self, tokens: Tensor<4>, positions: Tensor<3, Int>) -> Tensor<4> {
        rope2d(tokens, positions, self.options)
    }

    /// Queries and keys, each rotated by its positions.
    ///
    /// # Panics
    /// Where [`try_rope2d_qk`](crate::try_rope2d_qk) returns an error.
    pub fn forward_qk(
        &self,
        q: Tensor<4>,
        k: Tensor<4>,
        q_positions: Tensor<3, Int>,
        k_positions: Tensor<3, Int>,
    ) -> (Tensor<4>, Tensor<4>) {
        rope2d_qk(q, k, q_positions, k_positions, self.options)
    }

    /// Positions `[batch, rows * columns, 2]` of a grid of patches in row-major order.
    pub fn grid(batch: usize, rows: i32, columns: i32, device: &Device) -> Tensor<3, Int> {
        let pairs: Vec<i32> = (0..rows).flat_map(|y| (0..columns).flat_map(move |x| [y, x])).collect();
        let tokens = pairs.len() / 2;
        let grid = Tensor::<3, Int>::from_data(TensorData::new(pairs, [1, tokens, 2]), device);
        grid.expand([batch, tokens, 2])
    }
}
