//! A model from its published files: `config.json` and `diffusion_pytorch_model.safetensors`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::store::{ApplyResult, FloatCastAdapter, ModuleSnapshot, SafetensorsStore};
use burn::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::ltx::{LtxConfig, LtxVae};
use crate::stream::Stream;
use crate::wan::{WanConfig, WanVae};

/// The file of the configuration.
pub(crate) const CONFIG: &str = "config.json";
/// The file of the weights.
pub(crate) const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
/// Buffers of the files that encoding and decoding do not use.
const UNUSED: [&str; 2] = ["latents_mean", "latents_std"];

/// What `config.json` describes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "_class_name")]
pub(crate) enum Config {
    #[serde(rename = "AutoencoderKLWan")]
    Wan(WanConfig),
    #[serde(rename = "AutoencoderKLLTXVideo")]
    Ltx(LtxConfig),
}

impl Config {
    /// Reads and checks a file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        let config: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is no configuration of a known model", path.display()))?;
        let checked = match &config {
            Self::Wan(config) => config.check(),
            Self::Ltx(config) => config.check(),
        };
        checked.map_err(|error| anyhow!("{}: {error}", path.display()))?;
        Ok(config)
    }

    /// Frames per latent frame; the clip's first frame has one of its own.
    pub(crate) fn frames_per_latent(&self) -> usize {
        match self {
            Self::Wan(config) => config.frames_per_latent(),
            Self::Ltx(config) => config.frames_per_latent(),
        }
    }

    /// Pixels per latent, in each direction.
    pub(crate) fn pixels_per_latent(&self) -> usize {
        match self {
            Self::Wan(config) => config.pixels_per_latent(),
            Self::Ltx(config) => config.pixels_per_latent(),
        }
    }

    /// Channels of a latent.
    pub(crate) fn latent_channels(&self) -> usize {
        match self {
            Self::Wan(config) => config.z_dim,
            Self::Ltx(config) => config.latent_channels,
        }
    }

    /// A model with random weights.
    pub(crate) fn init(&self, device: &Device) -> Vae {
        match self {
            Self::Wan(config) => Vae::Wan(Box::new(WanVae::new(config, device))),
            Self::Ltx(config) => Vae::Ltx(Box::new(LtxVae::new(config, device))),
        }
    }
}

/// A model.
#[derive(Debug)]
pub(crate) enum Vae {
    Wan(Box<WanVae>),
    Ltx(Box<LtxVae>),
}

impl Vae {
    /// The means of the latents that the next frames complete; frames `[1, 3, T, H, W]` from -1 to 1.
    pub(crate) fn encode(&self, frames: Tensor<5>, stream: &mut Stream) -> Option<Tensor<5>> {
        match self {
            Self::Wan(vae) => {
                let [mean, _] = vae.encode(frames, stream);
                Some(mean)
            }
            Self::Ltx(vae) => vae.encode(frames, stream),
        }
    }

    /// The frames that the next latents complete.
    pub(crate) fn decode(&self, latents: Tensor<5>, stream: &mut Stream) -> Option<Tensor<5>> {
        let frames = match self {
            Self::Wan(vae) => Some(vae.decode(latents, stream)),
            Self::Ltx(vae) => vae.decode(latents, stream),
        };
        frames.map(|frames| frames.clamp(-1.0, 1.0))
    }
}

/// The model of a folder.
pub(crate) fn load(folder: &Path, device: &Device) -> Result<(Config, Vae)> {
    ensure!(folder.is_dir(), "{} is no folder with {CONFIG} and {WEIGHTS}", folder.display());
    let config = Config::read(&folder.join(CONFIG))?;
    let mut vae = config.init(device);
    load_weights(&mut vae, &folder.join(WEIGHTS))?;
    Ok((config, vae))
}

/// Weights by their published names, as f32.
pub(crate) fn load_weights(vae: &mut Vae, path: &Path) -> Result<()> {
    ensure!(path.is_file(), "{} is missing", path.display());
    let result = match vae {
        Vae::Wan(vae) => apply(vae.as_mut(), path),
        Vae::Ltx(vae) => apply(vae.as_mut(), path),
    };
    let result = result.with_context(|| format!("{} cannot be read", path.display()))?;
    if let Some(error) = result.errors.first() {
        bail!("{} does not fit {CONFIG}: {error}", path.display());
    }
    if let Some((name, _)) = result.missing.first() {
        bail!("{} lacks {name} (and {} more)", path.display(), result.missing.len() - 1);
    }
    let unknown: Vec<&String> =
        result.unused.iter().filter(|name| !UNUSED.contains(&name.as_str())).collect();
    if let Some(name) = unknown.first() {
        bail!(
            "{} has {name} (and {} more), which {CONFIG} does not ask for",
            path.display(),
            unknown.len() - 1
        );
    }
    Ok(())
}

fn apply(module: &mut impl ModuleSnapshot, path: &Path) -> Result<ApplyResult> {
    let mut store = SafetensorsStore::from_file(path)
        .with_key_remapping(r"\.resample\.1\.", ".resample.")
        .with_from_adapter(FloatCastAdapter::to(DType::F32))
        .skip_enum_variants(true)
        .validate(false)
        .allow_partial(true);
    module.load_from(&mut store).map_err(|error| anyhow!("{error}"))
}

/// Writes a model as [`load`] reads it.
pub(crate) fn save(folder: &Path, config: &WanConfig, vae: &WanVae) -> Result<()> {
    let write = |path: PathBuf, written: Result<()>| {
        written.with_context(|| format!("{} cannot be written", path.display()))
    };
    let path = folder.join(CONFIG);
    let text = serde_json::to_string_pretty(&Config::Wan(config.clone()))? + "\n";
    write(path.clone(), std::fs::write(&path, text).map_err(anyhow::Error::from))?;
    let path = folder.join(WEIGHTS);
    let mut store = SafetensorsStore::from_file(&path)
        .with_key_remapping(r"\.resample\.", ".resample.1.")
        .skip_enum_variants(true)
        .overwrite(true);
    write(path, vae.save_into(&mut store).map_err(|error| anyhow!("{error}")))
}

#[cfg(test)]
#[path = "vae_tests.rs"]
mod tests;
