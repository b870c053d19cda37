//! The network: a small 3D U-Net for cubes `[N, 1, S, S, S]`.
//!
//! ```text
//! encoder 1   1 ->  C, 3x3x3           S       ------------------+ skip
//! encoder 2   C -> 2C, stride 2        S/2     ------+ skip      |
//! encoder 3  2C -> 4C, stride 2        S/4           |           |
//! decoder 1  4C -> 2C, transposed 2x2x2, stride 2; with the skip -> 2C, 3x3x3     S/2
//! decoder 2  2C ->  C, transposed 2x2x2, stride 2; with the skip ->  C, 3x3x3     S
//! head        C -> classes, 1x1x1
//! ```
//!
//! Each encoder and decoder has two 3x3x3 convolutions, each with an instance norm and a ReLU. All of its
//! convolutions, the transposed ones too, come from `burn-conv-ops`.

use burn::module::Module;
use burn::nn::{InstanceNorm, InstanceNormConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use burn_conv_ops::nn::{Conv3d, Conv3dConfig, ConvTranspose3d, ConvTranspose3dConfig};

/// Levels of resolution.
const LEVELS: usize = 3;
/// Extents are a multiple of it.
pub(crate) const MULTIPLE: usize = 1 << (LEVELS - 1);

/// A 3D U-Net.
#[derive(Module, Debug)]
pub(crate) struct UNet {
    /// From fine to coarse.
    encoder: Vec<Stage>,
    /// From coarse to fine.
    decoder: Vec<Up>,
    head: Conv3d,
}

impl UNet {
    /// A network with random weights for `classes` classes, with `channels` channels at full resolution.
    pub(crate) fn new(channels: usize, classes: usize, device: &Device) -> Self {
        let widths: Vec<usize> = (0..LEVELS).map(|level| channels << level).collect();
        let mut encoder = vec![Stage::new([1, channels], 1, device)];
        encoder.extend(widths.windows(2).map(|pair| Stage::new([pair[0], pair[1]], 2, device)));
        let decoder = widths.windows(2).rev().map(|pair| Up::new([pair[1], pair[0]], device)).collect();
        let head = Conv3dConfig::new([channels, classes], [1; 3]).init(device);
        Self { encoder, decoder, head }
    }

    /// Logits `[N, classes, D, H, W]` of `[N, 1, D, H, W]`, extents that [`MULTIPLE`] divides.
    pub(crate) fn forward(&self, mut x: Tensor<5>) -> Tensor<5> {
        let mut levels = Vec::with_capacity(LEVELS);
        for stage in &self.encoder {
            x = stage.forward(x);
            levels.push(x.clone());
        }
        for (up, skip) in self.decoder.iter().zip(levels.into_iter().rev().skip(1)) {
            x = up.forward(x, skip);
        }
        self.head.forward(x)
    }
}

/// Two convolutions, the first of them with a stride.
#[derive(Module, Debug)]
struct Stage {
    first: ConvNorm,
    second: ConvNorm,
}

impl Stage {
    fn new([c_in, c_out]: [usize; 2], stride: usize, device: &Device) -> Self {
        Self {
            first: ConvNorm::new([c_in, c_out], stride, device),
            second: ConvNorm::new([c_out, c_out], 1, device),
        }
    }

    fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        self.second.forward(self.first.forward(x))
    }
}

/// Twice the extents, and what the encoder had at that resolution.
#[derive(Module, Debug)]
struct Up {
    double: ConvTranspose3d,
    stage: Stage,
}

impl Up {
    fn new([c_in, c_out]: [usize; 2], device: &Device) -> Self {
        Self {
            double: ConvTranspose3dConfig::new([c_in, c_out], [2; 3]).with_stride(2).init(device),
            stage: Stage::new([2 * c_out, c_out], 1, device),
        }
    }

    fn forward(&self, x: Tensor<5>, skip: Tensor<5>) -> Tensor<5> {
        self.stage.forward(Tensor::cat(vec![self.double.forward(x), skip], 1))
    }
}

/// A 3x3x3 convolution that keeps the extents (up to its stride), an instance norm in place of its bias, a
/// ReLU.
#[derive(Module, Debug)]
struct ConvNorm {
    conv: Conv3d,
    norm: InstanceNorm,
}

impl ConvNorm {
    fn new(channels: [usize; 2], stride: usize, device: &Device) -> Self {
        let conv = Conv3dConfig::new(channels, [3; 3]).with_stride(stride).with_padding(1).with_bias(false);
        Self { conv: conv.init(device), norm: InstanceNormConfig::new(channels[1]).init(device) }
    }

    fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        relu(self.norm.forward(self.conv.forward(x)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::Param;
    use burn::tensor::{Distribution, Int};

    #[test]
    fn every_voxel_gets_a_logit_for_each_class() {
        let device = Device::flex();
        let net = UNet::new(2, 3, &device);
        for extents in [[8, 8, 8], [4, 8, 12]] {
            let [d, h, w] = extents;
            let x = Tensor::<5>::random([2, 1, d, h, w], Distribution::Default, &device);
            assert_eq!(net.forward(x).dims(), [2, 3, d, h, w]);
        }
        // Weights of 3x3x3 layers with their norms, transposed ones with bias, the head.
        let layer = |c_in: usize, c_out: usize| 27 * c_in * c_out + 2 * c_out;
        let up = |c_in: usize, c_out: usize| 8 * c_in * c_out + c_out;
        let encoder = layer(1, 2) + layer(2, 2) + layer(2, 4) + layer(4, 4) + layer(4, 8) + layer(8, 8);
        let decoder = up(8, 4) + layer(8, 4) + layer(4, 4) + up(4, 2) + layer(4, 2) + layer(2, 2);
        assert_eq!(net.num_params(), encoder + decoder + 2 * 3 + 3);
    }

    #[test]
    fn fine_detail_passes_by_the_coarse_levels() {
        let device = Device::flex();
        let mut net = UNet::new(2, 2, &device);
        for up in &mut net.decoder {
            up.double.weight = Param::from_tensor(up.double.weight.val().zeros_like());
            up.double.bias = None;
        }
        // Nothing comes from the coarse levels any more: what is left of the input comes through the last
        // skip connection.
        let values = |sign: f32| {
            let x = Tensor::<1, Int>::arange(0..512, &device).float().reshape([1, 1, 8, 8, 8]);
            net.forward((x * sign).sin()).try_into_vec_as::<f32>().unwrap()
        };
        let (one, other) = (values(1.0), values(-1.0));
        let apart = one.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart > 1e-3, "{apart}");
    }
}
