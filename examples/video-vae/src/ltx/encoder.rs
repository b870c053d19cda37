//! Frames to the means of their latents.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::LtxConfig;
use super::blocks::{MidBlock, ResidualBlock, normed};
use super::conv::Conv;
use crate::stream::Stream;

#[derive(Module, Debug)]
pub(super) struct Encoder {
    conv_in: Conv,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    conv_out: Conv,
    latent_channels: usize,
}

impl Encoder {
    pub(super) fn new(config: &LtxConfig, device: &Device) -> Self {
        let (causal, epsilon) = (config.encoder_causal, config.resnet_norm_eps);
        let channels = &config.block_out_channels;
        let stages = channels.len();
        let stage = |stage: usize| {
            let (c_in, c_out) = (channels[stage], channels[(stage + 1).min(stages - 1)]);
            let same = |_| ResidualBlock::new([c_in; 2], causal, epsilon, device);
            let halving = config.spatio_temporal_scaling[stage].then(|| Conv::halving(c_in, causal, device));
            DownBlock {
                resnets: (0..config.layers_per_block[stage]).map(same).collect(),
                downsamplers: halving.into_iter().collect(),
                conv_out: (c_in != c_out).then(|| ResidualBlock::new([c_in, c_out], causal, epsilon, device)),
            }
        };
        let widest = channels[stages - 1];
        Self {
            conv_in: Conv::new([3 * config.patch_size * config.patch_size, channels[0]], causal, device),
            down_blocks: (0..stages).map(stage).collect(),
            mid_block: MidBlock::new(widest, config.layers_per_block[stages], causal, epsilon, device),
            // One more channel: a logarithm of the variance that all latents share.
            conv_out: Conv::new([widest, config.latent_channels + 1], causal, device),
            latent_channels: config.latent_channels,
        }
    }

    pub(super) fn forward(&self, x: Option<Tensor<5>>, stream: &mut Stream) -> Option<Tensor<5>> {
        let mut x = self.conv_in.forward(x, stream);
        for block in &self.down_blocks {
            x = block.forward(x, stream);
        }
        let x = self.mid_block.forward(x, stream);
        let moments = self.conv_out.forward(x.map(normed), stream)?;
        Some(moments.narrow(1, 0, self.latent_channels))
    }
}

/// A stage: residual blocks, half the frames and pixels, and a block that changes the channels.
#[derive(Module, Debug)]
struct DownBlock {
    resnets: Vec<ResidualBlock>,
    downsamplers: Vec<Conv>,
    conv_out: Option<ResidualBlock>,
}

impl DownBlock {
    fn forward(&self, x: Option<Tensor<5>>, stream: &mut Stream) -> Option<Tensor<5>> {
        let mut x = x;
        for resnet in &self.resnets {
            x = resnet.forward(x, stream);
        }
        for downsampler in &self.downsamplers {
            x = downsampler.forward(x, stream);
        }
        match &self.conv_out {
            Some(block) => block.forward(x, stream),
            None => x,
        }
    }
}
