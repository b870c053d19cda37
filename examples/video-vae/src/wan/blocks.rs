//! Residual blocks, attention within a frame, and the middle of encoder and decoder.

use burn::module::Module;
use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Device, Tensor};
use burn_conv_ops::nn::{CausalConv3d, Conv3d};

use super::{causal, pointwise};
use crate::layers::{FrameConv, RmsNorm};
use crate::stream::Stream;

/// `x + conv2(silu(norm2(conv1(silu(norm1(x))))))`, the `x` in front through a pointwise convolution where
/// the channels change.
#[derive(Module, Debug)]
pub(super) struct ResidualBlock {
    norm1: RmsNorm<4>,
    conv1: CausalConv3d,
    norm2: RmsNorm<4>,
    conv2: CausalConv3d,
    conv_shortcut: Option<Conv3d>,
}

impl ResidualBlock {
    pub(super) fn new([c_in, c_out]: [usize; 2], device: &Device) -> Self {
        Self {
            norm1: RmsNorm::new(c_in, device),
            conv1: causal([c_in, c_out], device),
            norm2: RmsNorm::new(c_out, device),
            conv2: causal([c_out, c_out], device),
            conv_shortcut: (c_in != c_out).then(|| pointwise([c_in, c_out], device)),
        }
    }

    pub(super) fn forward(&self, x: Tensor<5>, stream: &mut Stream) -> Tensor<5> {
        let h = silu(self.norm1.forward(x.clone()));
        let h = self.conv1.forward_streaming(h, &mut stream.slot().frames);
        let h = silu(self.norm2.forward(h));
        let x = match &self.conv_shortcut {
            Some(shortcut) => shortcut.forward(x),
            None => x,
        };
        self.conv2.forward_streaming_with_residual(h, x, &mut stream.slot().frames)
    }
}

/// Self-attention of one head between the pixels of a frame.
#[derive(Module, Debug)]
pub(super) struct AttentionBlock {
    norm: RmsNorm<3>,
    to_qkv: FrameConv,
    proj: FrameConv,
}

impl AttentionBlock {
    pub(super) fn new(channels: usize, device: &Device) -> Self {
        Self {
            norm: RmsNorm::new(channels, device),
            to_qkv: FrameConv::same([channels, 3 * channels], 1, device),
            proj: FrameConv::same([channels; 2], 1, device),
        }
    }

    pub(super) fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        let [n, c, t, h, w] = x.dims();
        let qkv = self.to_qkv.forward(self.norm.forward(x.clone()));
        // [N, C, T, H, W] to [N * T, H * W, C]
        let tokens = |index: usize| {
            let part = qkv.clone().narrow(1, index * c, c);
            part.permute([0, 2, 3, 4, 1]).reshape([n * t, h * w, c])
        };
        let scores = tokens(0).matmul(tokens(1).transpose()) / (c as f64).sqrt();
        let mixed = softmax(scores, 2).matmul(tokens(2));
        let mixed = mixed.reshape([n, t, h, w, c]).permute([0, 4, 1, 2, 3]);
        self.proj.forward_with_residual(mixed, x)
    }
}

/// Residual block, attention, residual block.
#[derive(Module, Debug)]
pub(super) struct MidBlock {
    attentions: Vec<AttentionBlock>,
    resnets: Vec<ResidualBlock>,
}

impl MidBlock {
    pub(super) fn new(channels: usize, device: &Device) -> Self {
        Self {
            attentions: vec![AttentionBlock::new(channels, device)],
            resnets: (0..2).map(|_| ResidualBlock::new([channels; 2], device)).collect(),
        }
    }

    pub(super) fn forward(&self, x: Tensor<5>, stream: &mut Stream) -> Tensor<5> {
        let x = self.resnets[0].forward(x, stream);
        let pairs = self.attentions.iter().zip(&self.resnets[1..]);
        pairs.fold(x, |x, (attention, resnet)| resnet.forward(attention.forward(x), stream))
    }
}
