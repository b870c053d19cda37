//! Latents to frames.

use burn::module::Module;
use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor};
use burn_conv_ops::nn::CausalConv3d;

use super::blocks::{MidBlock, ResidualBlock};
use super::resample::Upsample;
use super::{WanConfig, causal};
use crate::layers::{RmsNorm, duplicated, frames_from};
use crate::stream::Stream;

#[derive(Module, Debug)]
pub(super) struct Decoder {
    conv_in: CausalConv3d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    norm_out: RmsNorm<4>,
    conv_out: CausalConv3d,
}

impl Decoder {
    pub(super) fn new(config: &WanConfig, device: &Device) -> Self {
        let base = config.decoder_base_dim.unwrap_or(config.base_dim);
        let mut upsamplings = config.downsamplings().iter().rev();
        let multiples: Vec<usize> = config.dim_mult.iter().rev().copied().collect();
        let widest = base * multiples[0];
        let mut up_blocks = Vec::new();
        let mut channels = widest;
        for multiple in multiples {
            let c_out = base * multiple;
            let mut resnets = vec![ResidualBlock::new([channels, c_out], device)];
            resnets.extend((0..config.num_res_blocks).map(|_| ResidualBlock::new([c_out; 2], device)));
            let upsampling = upsamplings.next().copied();
            // Wan 2.1 halves the channels when it upsamples.
            channels = if config.is_residual { c_out } else { c_out / 2 };
            let upsample = upsampling.map(|in_time| Upsample::new([c_out, channels], in_time, device));
            up_blocks.push(if config.is_residual {
                UpBlock {
                    resnets,
                    upsamplers: Vec::new(),
                    upsampler: upsample,
                    frames: upsampling.map(factor),
                }
            } else {
                UpBlock { resnets, upsamplers: upsample.into_iter().collect(), upsampler: None, frames: None }
            });
        }
        let narrowest = base * config.dim_mult[0];
        Self {
            conv_in: causal([config.z_dim, widest], device),
            mid_block: MidBlock::new(widest, device),
            up_blocks,
            norm_out: RmsNorm::new(narrowest, device),
            conv_out: causal([narrowest, config.out_channels], device),
        }
    }

    pub(super) fn forward(&self, x: Tensor<5>, stream: &mut Stream) -> Tensor<5> {
        let x = self.conv_in.forward_streaming(x, &mut stream.slot().frames);
        let mut x = self.mid_block.forward(x, stream);
        for block in &self.up_blocks {
            x = block.forward(x, stream);
        }
        let x = silu(self.norm_out.forward(x));
        self.conv_out.forward_streaming(x, &mut stream.slot().frames)
    }
}

fn factor(in_time: bool) -> usize {
    1 + usize::from(in_time)
}

/// A stage: residual blocks and upsampling, which Wan 2.1 calls `upsamplers.0` and Wan 2.2 `upsampler`.
#[derive(Module, Debug)]
struct UpBlock {
    resnets: Vec<ResidualBlock>,
    upsamplers: Vec<Upsample>,
    upsampler: Option<Upsample>,
    /// Wan 2.2: how many frames become of one; the input is added to them, duplicated.
    frames: Option<usize>,
}

impl UpBlock {
    fn forward(&self, x: Tensor<5>, stream: &mut Stream) -> Tensor<5> {
        let input = self.frames.map(|_| x.clone());
        let mut x = x;
        for resnet in &self.resnets {
            x = resnet.forward(x, stream);
        }
        for upsample in self.upsamplers.iter().chain(&self.upsampler) {
            x = upsample.forward(x, stream);
        }
        let (Some(input), Some(frames)) = (input, self.frames) else { return x };
        let shortcut = duplicated(input, x.dims()[1], [frames, 2]);
        // The clip's first frame stays one.
        let dropped = if stream.slot().begins() { frames - 1 } else { 0 };
        x + frames_from(shortcut, dropped).expect("the first frame is one of several")
    }
}
