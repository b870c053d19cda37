//! Latents to frames.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::LtxConfig;
use super::blocks::{MidBlock, ResidualBlock, Upsampler, normed};
use super::conv::Conv;
use crate::stream::Stream;

#[derive(Module, Debug)]
pub(super) struct Decoder {
    conv_in: Conv,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_out: Conv,
}

impl Decoder {
    pub(super) fn new(config: &LtxConfig, device: &Device) -> Self {
        let (causal, epsilon) = (config.decoder_causal, config.resnet_norm_eps);
        let stages = config.decoder_block_out_channels.len();
        let widest = config.decoder_block_out_channels[stages - 1];
        let mut channels = widest;
        let mut up_blocks = Vec::new();
        for stage in (0..stages).rev() {
            let factor = config.upsample_factor[stage];
            let c_in = channels / factor;
            channels = config.decoder_block_out_channels[stage] / factor;
            let residual = config.upsample_residual[stage];
            let doubling = config.decoder_spatio_temporal_scaling[stage]
                .then(|| Upsampler::new(channels * factor, causal, residual, factor, device));
            let blocks = config.decoder_layers_per_block[stage];
            up_blocks.push(UpBlock {
                conv_in: (c_in != channels)
                    .then(|| ResidualBlock::new([c_in, channels], causal, epsilon, device)),
                upsamplers: doubling.into_iter().collect(),
                resnets: (0..blocks)
                    .map(|_| ResidualBlock::new([channels; 2], causal, epsilon, device))
                    .collect(),
            });
        }
        let middle = config.decoder_layers_per_block[stages];
        Self {
            conv_in: Conv::new([config.latent_channels, widest], causal, device),
            mid_block: MidBlock::new(widest, middle, causal, epsilon, device),
            up_blocks,
            conv_out: Conv::new([channels, 3 * config.patch_size * config.patch_size], causal, device),
        }
    }

    pub(super) fn forward(&self, x: Option<Tensor<5>>, stream: &mut Stream) -> Option<Tensor<5>> {
        let x = self.conv_in.forward(x, stream);
        let mut x = self.mid_block.forward(x, stream);
        for block in &self.up_blocks {
            x = block.forward(x, stream);
        }
        self.conv_out.forward(x.map(normed), stream)
    }
}

/// A stage: a block that changes the channels, twice the frames and pixels, residual blocks.
#[derive(Module, Debug)]
struct UpBlock {
    conv_in: Option<ResidualBlock>,
    upsamplers: Vec<Upsampler>,
    resnets: Vec<ResidualBlock>,
}

impl UpBlock {
    fn forward(&self, x: Option<Tensor<5>>, stream: &mut Stream) -> Option<Tensor<5>> {
        let mut x = x;
        if let Some(block) = &self.conv_in {
            x = block.forward(x, stream);
        }
        for upsampler in &self.upsamplers {
            x = upsampler.forward(x, stream);
        }
        self.resnets.iter().fold(x, |x, resnet| resnet.forward(x, stream))
    }
}
