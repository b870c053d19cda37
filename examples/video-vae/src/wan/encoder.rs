//! Frames to the moments of their latents.

use burn::module::Module;
use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor};
use burn_conv_ops::nn::CausalConv3d;

use super::blocks::{AttentionBlock, MidBlock, ResidualBlock};
use super::resample::Downsample;
use super::{WanConfig, causal};
use crate::layers::{RmsNorm, averaged};
use crate::stream::Stream;

#[derive(Module, Debug)]
pub(super) struct Encoder {
    conv_in: CausalConv3d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    norm_out: RmsNorm<4>,
    conv_out: CausalConv3d,
}

impl Encoder {
    pub(super) fn new(config: &WanConfig, device: &Device) -> Self {
        let base = config.base_dim;
        let downsamplings = config.downsamplings();
        let mut down_blocks = Vec::new();
        let mut channels = base;
        for (stage, multiple) in config.dim_mult.iter().enumerate() {
            let (c_in, c_out) = (channels, base * multiple);
            let downsampling = downsamplings.get(stage).copied();
            let mut resnets = vec![ResidualBlock::new([c_in, c_out], device)];
            resnets.extend((1..config.num_res_blocks).map(|_| ResidualBlock::new([c_out; 2], device)));
            let downsample = downsampling.map(|in_time| Downsample::new(c_out, in_time, device));
            if config.is_residual {
                let factors = downsampling.map_or([1, 1], |in_time| [1 + usize::from(in_time), 2]);
                let [frames, pixels] = factors;
                down_blocks.push(DownBlock::Stage(Stage {
                    resnets,
                    downsampler: downsample,
                    channels: c_out,
                    frames,
                    pixels,
                }));
            } else {
                let scale = 0.5f64.powi(stage as i32);
                for resnet in resnets {
                    down_blocks.push(DownBlock::Residual(resnet));
                    if config.attn_scales.contains(&scale) {
                        down_blocks.push(DownBlock::Attention(AttentionBlock::new(c_out, device)));
                    }
                }
                down_blocks.extend(downsample.map(DownBlock::Resample));
            }
            channels = c_out;
        }
        Self {
            conv_in: causal([config.in_channels, base], device),
            down_blocks,
            mid_block: MidBlock::new(channels, device),
            norm_out: RmsNorm::new(channels, device),
            conv_out: causal([channels, 2 * config.z_dim], device),
        }
    }

    pub(super) fn forward(&self, x: Tensor<5>, stream: &mut Stream) -> Tensor<5> {
        let mut x = self.conv_in.forward_streaming(x, &mut stream.slot().frames);
        for block in &self.down_blocks {
            x = block.forward(x, stream);
        }
        let x = self.mid_block.forward(x, stream);
        let x = silu(self.norm_out.forward(x));
        self.conv_out.forward_streaming(x, &mut stream.slot().frames)
    }
}

/// An entry of `down_blocks`: Wan 2.1 lists layers, Wan 2.2 stages.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a handful of them, in a Vec")]
enum DownBlock {
    Residual(ResidualBlock),
    Attention(AttentionBlock),
    Resample(Downsample),
    Stage(Stage),
}

impl DownBlock {
    fn forward(&self, x: Tensor<5>, stream: &mut Stream) -> Tensor<5> {
        match self {
            Self::Residual(block) => block.forward(x, stream),
            Self::Attention(block) => block.forward(x),
            Self::Resample(block) => block.forward(x, stream),
            Self::Stage(block) => block.forward(x, stream),
        }
    }
}

/// A stage of Wan 2.2: residual blocks and downsampling, and next to them the mean over what is merged.
#[derive(Module, Debug)]
struct Stage {
    resnets: Vec<ResidualBlock>,
    downsampler: Option<Downsample>,
    /// Of the output.
    channels: usize,
    /// How many of each direction are merged.
    frames: usize,
    pixels: usize,
}

impl Stage {
    fn forward(&self, x: Tensor<5>, stream: &mut Stream) -> Tensor<5> {
        let shortcut = averaged(x.clone(), self.channels, [self.frames, self.pixels]);
        let mut x = x;
        for resnet in &self.resnets {
            x = resnet.forward(x, stream);
        }
        if let Some(downsampler) = &self.downsampler {
            x = downsampler.forward(x, stream);
        }
        x + shortcut
    }
}
