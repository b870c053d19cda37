//! Files of latents: one safetensors tensor `latents`, `[1, Z, T, H, W]`, as the model's `encode` gives it.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};

/// The tensor's name.
const NAME: &str = "latents";
/// Metadata: the clip's frames, of which the last latent may stand for fewer than it could.
const FRAMES: &str = "frames";

/// The latents of a clip.
#[derive(Debug)]
pub(crate) struct Latents {
    /// `[1, Z, T, H, W]`.
    pub(crate) data: TensorData,
    /// Frames of the clip, where they are known.
    pub(crate) frames: Option<usize>,
}

impl Latents {
    /// Puts the parts of a clip together.
    pub(crate) fn of_parts(parts: Vec<TensorData>, frames: usize) -> Result<Self> {
        let parts = parts.into_iter().map(|part| Tensor::<5>::from_data(part, &Device::flex())).collect();
        Ok(Self { data: Tensor::cat(parts, 2).try_into_data()?, frames: Some(frames) })
    }

    /// `Z` and `T`.
    pub(crate) fn channels_and_frames(&self) -> (usize, usize) {
        (self.data.shape()[1], self.data.shape()[2])
    }

    /// Writes a file.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let failed = || format!("{} cannot be written", path.display());
        let shape = self.data.shape().to_vec();
        let view = safetensors::tensor::TensorView::new(Dtype::F32, shape, self.data.as_bytes())
            .with_context(failed)?;
        let metadata = self.frames.map(|frames| HashMap::from([(FRAMES.to_owned(), frames.to_string())]));
        safetensors::serialize_to_file([(NAME, view)], metadata, path).with_context(failed)
    }

    /// Reads a file.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
        let broken = || format!("{} is no file of latents", path.display());
        let file = SafeTensors::deserialize(&bytes).with_context(broken)?;
        let tensor = file.tensor(NAME).with_context(broken)?;
        let dtype = match tensor.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => return Err(anyhow!("latents of type {other:?}")).with_context(broken),
        };
        let shape = tensor.shape().to_vec();
        ensure!(
            shape.len() == 5 && shape[0] == 1 && shape.iter().all(|&extent| extent > 0),
            "{}: latents of shape {shape:?}, not [1, Z, T, H, W]",
            path.display()
        );
        let data = TensorData::from_bytes_vec(tensor.data().to_vec(), shape, dtype).convert::<f32>();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).with_context(broken)?;
        let frames = metadata.metadata().as_ref().and_then(|metadata| metadata.get(FRAMES)?.parse().ok());
        Ok(Self { data, frames })
    }
}
