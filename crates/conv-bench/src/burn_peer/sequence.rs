//! Causal conv1d and RoPE2D composed of Burn's ops, and Burn's own rotary encoding of one axis.

use super::burn_dtype;
use burn::nn::{RotaryEncoding, RotaryEncodingConfig};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Device, Tensor, TensorData, activation, module};
use conv_kernels::rope::RopeProblem;

/// Causal depthwise conv1d as a user of Burn writes it: a grouped conv1d padded on the left, then SiLU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CausalConv1d {
    pub(crate) width: usize,
    pub(crate) channels: usize,
    pub(crate) silu: bool,
}

impl CausalConv1d {
    /// The name in the column `plan`.
    pub(crate) fn name(&self) -> &'static str {
        if self.silu { "conv1d+silu" } else { "conv1d" }
    }

    /// The name of a decoding step in the column `plan`.
    pub(crate) fn update_name(&self) -> &'static str {
        if self.silu { "cat+conv1d+silu" } else { "cat+conv1d" }
    }

    /// y of x `[B, C, T]`, weight `[C, 1, W]`, bias `[C]`.
    pub(crate) fn forward(&self, x: Tensor<3>, weight: Tensor<3>, bias: Option<Tensor<1>>) -> Tensor<3> {
        self.conv(x, weight, bias, self.width - 1)
    }

    /// y and the new state of one step x `[B, C, 1]` after the state `[B, C, W-1]`.
    pub(crate) fn update(
        &self,
        x: Tensor<3>,
        state: Tensor<3>,
        weight: Tensor<3>,
        bias: Option<Tensor<1>>,
    ) -> (Tensor<2>, Tensor<3>) {
        let [batch, channels, _] = x.dims();
        let seen = Tensor::cat(vec![state, x], 2);
        let state = seen.clone().slice([0..batch, 0..channels, 1..self.width]);
        (self.conv(seen, weight, bias, 0).reshape([batch, channels]), state)
    }

    fn conv(&self, x: Tensor<3>, weight: Tensor<3>, bias: Option<Tensor<1>>, left: usize) -> Tensor<3> {
        let mut options = ConvOptions::new([1], [0], [1], self.channels);
        options.padding = [(left, 0)];
        let y = module::conv1d(x, weight, bias, options);
        if self.silu { activation::silu(y) } else { y }
    }
}

/// RoPE2D as a user of Burn writes it, with cosines and sines `[B, 1, N, D]` prepared beforehand: each axis'
/// half of a head times cos, plus the half rotated (its second quarter negated before its first) times sin.
pub(crate) struct Rope2d {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rope2d {
    /// Prepares the tables for positions `[B, N, 2]`.
    pub(crate) fn new(device: &Device, problem: &RopeProblem, positions: &[i64]) -> Self {
        let (batch, tokens, dim) = (problem.batch, problem.tokens, problem.head_dim);
        let quarter = dim / 4;
        let frequencies = problem.frequencies();
        let angle = |index: usize| {
            let (row, place) = (index / dim, index % dim);
            let (axis, i) = (place / (2 * quarter), place % quarter);
            positions[2 * row + axis] as f64 * frequencies[quarter * axis + i].radians
        };
        let table = |function: fn(f64) -> f64| {
            let values: Vec<f32> =
                (0..batch * tokens * dim).map(|index| function(angle(index)) as f32).collect();
            let data = TensorData::new(values, [batch, 1, tokens, dim]);
            Tensor::<4>::from_data(data, (device, DType::F32)).cast(burn_dtype(problem.dtype))
        };
        Self { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// The name in the column `plan`.
    pub(crate) fn name(&self) -> &'static str {
        "rotate_half"
    }

    /// The rotated tokens `[B, H, N, D]`.
    pub(crate) fn forward(&self, tokens: Tensor<4>) -> Tensor<4> {
        let [batch, heads, count, dim] = tokens.dims();
        let quarter = dim / 4;
        let part =
            |i: usize| tokens.clone().slice([0..batch, 0..heads, 0..count, i * quarter..(i + 1) * quarter]);
        let rotated = Tensor::cat(vec![part(1).neg(), part(0), part(3).neg(), part(2)], 3);
        tokens * self.cos.clone() + rotated * self.sin.clone()
    }
}

/// Burn's `RotaryEncoding`: one axis, neighbours as pairs, cosines and sines in a table.
pub(crate) struct Rope {
    encoding: RotaryEncoding,
    first: usize,
}

impl Rope {
    /// Prepares the table for `tokens` positions from `first` on.
    pub(crate) fn new(device: &Device, head_dim: usize, tokens: usize, first: usize) -> Self {
        let config = RotaryEncodingConfig::new(first + tokens, head_dim);
        Self { encoding: config.init(device), first }
    }

    /// The name in the column `plan`.
    pub(crate) fn name(&self) -> &'static str {
        "RotaryEncoding"
    }

    /// The rotated tokens `[B, H, N, D]`.
    pub(crate) fn forward(&self, tokens: Tensor<4>) -> Tensor<4> {
        self.encoding.apply(tokens, self.first)
    }
}
