//! The autoencoder of LTX-Video 0.9, with the parameters of diffusers' `AutoencoderKLLTXVideo`.
//!
//! ```text
//! encoder   patches; conv_in, down_blocks (residual blocks, downsampling), mid_block, norm, SiLU, conv_out
//! decoder   conv_in, mid_block, up_blocks (upsampling, residual blocks), norm, SiLU, conv_out; pixels
//! ```
//!
//! Encoder and decoder are each causal in time or two-sided, by configuration. A two-sided convolution sees
//! the frame after, so its outputs lag one frame behind its inputs: early chunks may give nothing, and the
//! last one gives what is left. The first and the last frame are repeated outwards.

mod blocks;
mod conv;
mod decoder;
mod encoder;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::layers::{from_patches, to_patches};
use crate::stream::Stream;
use decoder::Decoder;
use encoder::Encoder;

/// What `config.json` says, by diffusers' names and with its defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LtxConfig {
    /// Channels of a frame.
    pub(crate) in_channels: usize,
    /// Channels of a decoded frame.
    pub(crate) out_channels: usize,
    /// Channels of a latent.
    pub(crate) latent_channels: usize,
    /// Channels of the encoder's stages.
    pub(crate) block_out_channels: Vec<usize>,
    /// Channels of the decoder's stages, the last first.
    pub(crate) decoder_block_out_channels: Vec<usize>,
    /// Residual blocks of the encoder's stages and of its middle.
    pub(crate) layers_per_block: Vec<usize>,
    /// Residual blocks of the decoder's stages, the last first, and of its middle.
    pub(crate) decoder_layers_per_block: Vec<usize>,
    /// Which stages of the encoder halve frames and pixels.
    pub(crate) spatio_temporal_scaling: Vec<bool>,
    /// Which stages of the decoder double them, the last first.
    pub(crate) decoder_spatio_temporal_scaling: Vec<bool>,
    /// Which stages of the decoder add noise; not built.
    pub(crate) decoder_inject_noise: Vec<bool>,
    /// Kinds of the encoder's stages; those of 0.9.5 are not built.
    pub(crate) down_block_types: Vec<String>,
    /// Which upsamplings of the decoder have a shortcut, the last first.
    pub(crate) upsample_residual: Vec<bool>,
    /// By how much the decoder's upsamplings divide the channels, the last first.
    pub(crate) upsample_factor: Vec<usize>,
    /// Whether the decoder takes a time step; not built.
    pub(crate) timestep_conditioning: bool,
    /// Side of the squares of pixels that become channels.
    pub(crate) patch_size: usize,
    /// Frames that become channels; 1.
    pub(crate) patch_size_t: usize,
    /// What keeps the layer norms from dividing by zero.
    pub(crate) resnet_norm_eps: f64,
    /// Whether the encoder sees past frames only.
    pub(crate) encoder_causal: bool,
    /// Whether the decoder sees past frames only.
    pub(crate) decoder_causal: bool,
}

impl Default for LtxConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 128,
            block_out_channels: vec![128, 256, 512, 512],
            decoder_block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: vec![4, 3, 3, 3, 4],
            decoder_layers_per_block: vec![4, 3, 3, 3, 4],
            spatio_temporal_scaling: vec![true, true, true, false],
            decoder_spatio_temporal_scaling: vec![true, true, true, false],
            decoder_inject_noise: vec![false; 5],
            down_block_types: Vec::new(),
            upsample_residual: vec![false; 4],
            upsample_factor: vec![1; 4],
            timestep_conditioning: false,
            patch_size: 4,
            patch_size_t: 1,
            resnet_norm_eps: 1e-6,
            encoder_causal: true,
            decoder_causal: false,
        }
    }
}

impl LtxConfig {
    /// What is wrong with it, if something is.
    pub(crate) fn check(&self) -> Result<(), String> {
        let (stages, decoder_stages) = (self.block_out_channels.len(), self.decoder_block_out_channels.len());
        for (name, wanted, found) in [
            ("layers_per_block", stages + 1, self.layers_per_block.len()),
            ("spatio_temporal_scaling", stages, self.spatio_temporal_scaling.len()),
            ("decoder_layers_per_block", decoder_stages + 1, self.decoder_layers_per_block.len()),
            ("decoder_spatio_temporal_scaling", decoder_stages, self.decoder_spatio_temporal_scaling.len()),
            ("upsample_residual", decoder_stages, self.upsample_residual.len()),
            ("upsample_factor", decoder_stages, self.upsample_factor.len()),
        ] {
            if found != wanted {
                return Err(format!("{name} needs {wanted} entries, it has {found}"));
            }
        }
        if [self.in_channels, self.out_channels] != [3; 2] {
            return Err(format!(
                "pictures have 3 channels, not {} (in_channels) and {} (out_channels)",
                self.in_channels, self.out_channels
            ));
        }
        for (name, asked) in [
            ("timestep_conditioning", self.timestep_conditioning),
            ("decoder_inject_noise", self.decoder_inject_noise.contains(&true)),
            ("patch_size_t above 1", self.patch_size_t != 1),
            ("LTXVideo095DownBlock3D", self.down_block_types.iter().any(|kind| kind.contains("095"))),
        ] {
            if asked {
                return Err(format!("{name} is not built here: only the architecture of LTX-Video 0.9 is"));
            }
        }
        Ok(())
    }

    /// Frames per latent frame, the first aside.
    pub(crate) fn frames_per_latent(&self) -> usize {
        1 << self.halvings()
    }

    /// Pixels per latent, in each direction.
    pub(crate) fn pixels_per_latent(&self) -> usize {
        self.patch_size << self.halvings()
    }

    fn halvings(&self) -> usize {
        self.spatio_temporal_scaling.iter().filter(|&&scaled| scaled).count()
    }
}

/// The autoencoder.
#[derive(Module, Debug)]
pub(crate) struct LtxVae {
    encoder: Encoder,
    decoder: Decoder,
    patch: usize,
}

impl LtxVae {
    /// With random weights.
    pub(crate) fn new(config: &LtxConfig, device: &Device) -> Self {
        Self {
            encoder: Encoder::new(config, device),
            decoder: Decoder::new(config, device),
            patch: config.patch_size,
        }
    }

    /// The mean of those latents `[N, Z, T, H, W]` that the next frames `[N, 3, ..]`, values from -1 to 1,
    /// complete.
    pub(crate) fn encode(&self, frames: Tensor<5>, stream: &mut Stream) -> Option<Tensor<5>> {
        self.encoder.forward(Some(to_patches(frames, self.patch)), stream)
    }

    /// The frames that the next latents complete.
    pub(crate) fn decode(&self, latents: Tensor<5>, stream: &mut Stream) -> Option<Tensor<5>> {
        let frames = self.decoder.forward(Some(latents), stream)?;
        Some(from_patches(frames, self.patch))
    }
}
