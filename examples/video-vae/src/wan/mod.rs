//! The autoencoder of Wan 2.1 and 2.2, with the parameters of diffusers' `AutoencoderKLWan`.
//!
//! ```text
//! encoder   conv_in, down_blocks (residual blocks; every stage but the last ends in a downsampling),
//!           mid_block, norm_out, SiLU, conv_out; quant_conv
//! decoder   post_quant_conv; conv_in, mid_block, up_blocks (one per stage), norm_out, SiLU, conv_out
//! ```
//!
//! Every convolution in time is causal, so a clip can be given in chunks of any number of latent frames. The
//! first frame has a latent frame of its own; each further one stands for as many frames as there are
//! downsamplings in time, to the power of two.

mod blocks;
mod decoder;
mod encoder;
mod resample;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use burn_conv_ops::nn::{CausalConv3d, CausalConv3dConfig, Conv3d, Conv3dConfig};
use serde::{Deserialize, Serialize};

use crate::layers::{from_patches, to_patches};
use crate::stream::Stream;
use decoder::Decoder;
use encoder::Encoder;

/// What `config.json` says, by diffusers' names and with its defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WanConfig {
    /// Channels of the encoder's first stage.
    pub(crate) base_dim: usize,
    /// Channels of the decoder's last stage; the encoder's where absent.
    pub(crate) decoder_base_dim: Option<usize>,
    /// Channels of a latent.
    pub(crate) z_dim: usize,
    /// Channels of each stage as a multiple.
    pub(crate) dim_mult: Vec<usize>,
    /// Residual blocks per stage of the encoder; the decoder has one more.
    pub(crate) num_res_blocks: usize,
    /// Scales at which the encoder's blocks are followed by attention.
    pub(crate) attn_scales: Vec<f64>,
    /// Which downsamplings are in time too.
    pub(crate) temperal_downsample: Vec<bool>,
    /// Wan 2.2: stages with shortcuts around their resampling.
    pub(crate) is_residual: bool,
    /// Channels that enter the encoder, after patching.
    pub(crate) in_channels: usize,
    /// Channels that leave the decoder, before patches become pixels.
    pub(crate) out_channels: usize,
    /// Side of the squares of pixels that become channels.
    pub(crate) patch_size: Option<usize>,
}

impl Default for WanConfig {
    fn default() -> Self {
        Self {
            base_dim: 96,
            decoder_base_dim: None,
            z_dim: 16,
            dim_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            attn_scales: Vec::new(),
            temperal_downsample: vec![false, true, true],
            is_residual: false,
            in_channels: 3,
            out_channels: 3,
            patch_size: None,
        }
    }
}

impl WanConfig {
    /// What is wrong with it, if something is.
    pub(crate) fn check(&self) -> Result<(), String> {
        let stages = self.dim_mult.len();
        let pixel = self.patch() * self.patch() * 3;
        if stages == 0 || self.temperal_downsample.len() + 1 < stages {
            return Err(format!(
                "{stages} stages (dim_mult) need {} entries of temperal_downsample, it has {}",
                stages.saturating_sub(1),
                self.temperal_downsample.len()
            ));
        }
        if [self.in_channels, self.out_channels] != [pixel; 2] {
            return Err(format!(
                "patches of {} pixels have {pixel} channels, not {} (in_channels) and {} (out_channels)",
                self.patch(),
                self.in_channels,
                self.out_channels
            ));
        }
        Ok(())
    }

    fn patch(&self) -> usize {
        self.patch_size.unwrap_or(1)
    }

    /// Downsamplings: whether in time too.
    fn downsamplings(&self) -> &[bool] {
        &self.temperal_downsample[..self.dim_mult.len() - 1]
    }

    /// Frames per latent frame, the first aside.
    pub(crate) fn frames_per_latent(&self) -> usize {
        1 << self.downsamplings().iter().filter(|&&in_time| in_time).count()
    }

    /// Pixels per latent, in each direction.
    pub(crate) fn pixels_per_latent(&self) -> usize {
        self.patch() << self.downsamplings().len()
    }
}

/// The autoencoder.
#[derive(Module, Debug)]
pub(crate) struct WanVae {
    encoder: Encoder,
    quant_conv: Conv3d,
    post_quant_conv: Conv3d,
    decoder: Decoder,
    patch: usize,
}

impl WanVae {
    /// With random weights.
    pub(crate) fn new(config: &WanConfig, device: &Device) -> Self {
        let z = config.z_dim;
        Self {
            encoder: Encoder::new(config, device),
            quant_conv: pointwise([2 * z; 2], device),
            post_quant_conv: pointwise([z; 2], device),
            decoder: Decoder::new(config, device),
            patch: config.patch(),
        }
    }

    /// Mean and logarithm of the variance of the latents `[N, Z, T, H, W]` of the next frames `[N, 3, ..]`,
    /// values from -1 to 1.
    pub(crate) fn encode(&self, frames: Tensor<5>, stream: &mut Stream) -> [Tensor<5>; 2] {
        let moments = self.quant_conv.forward(self.encoder.forward(to_patches(frames, self.patch), stream));
        let z = moments.dims()[1] / 2;
        [moments.clone().narrow(1, 0, z), moments.narrow(1, z, z)]
    }

    /// The next frames, of the next latents.
    pub(crate) fn decode(&self, latents: Tensor<5>, stream: &mut Stream) -> Tensor<5> {
        let frames = self.decoder.forward(self.post_quant_conv.forward(latents), stream);
        from_patches(frames, self.patch)
    }
}

fn pointwise(channels: [usize; 2], device: &Device) -> Conv3d {
    Conv3dConfig::new(channels, [1; 3]).init(device)
}

/// 3x3x3, causal in time, zeros around the plane.
fn causal(channels: [usize; 2], device: &Device) -> CausalConv3d {
    CausalConv3dConfig::new(channels, [3; 3]).with_plane_padding(1).init(device)
}
