//! `encode`, `decode` and `reconstruct`: a clip through a model in chunks, in memory that does not grow with
//! it.

use std::collections::VecDeque;
use std::path::Path;

use anyhow::{Result, ensure};
use burn::tensor::{Device, Tensor};
use image::RgbImage;
use indicatif::{ProgressBar, ProgressStyle};

use crate::clip::{Chunks, Writer, open, to_images};
use crate::latents::Latents;
use crate::stream::Stream;
use crate::vae::{self, Config, Vae};

/// What every command is told.
pub(crate) struct Run<'a> {
    pub(crate) model: &'a Path,
    pub(crate) device: &'a Device,
    /// Latent frames per chunk.
    pub(crate) chunk: usize,
    pub(crate) frames_per_second: usize,
}

impl Run<'_> {
    fn load(&self) -> Result<(Config, Vae)> {
        vae::load(self.model, self.device)
    }

    /// The chunks of a clip, and a bar over its frames.
    fn clip(&self, path: &Path, config: &Config) -> Result<(Chunks, ProgressBar)> {
        let (frames, count) = open(path)?;
        let (per_latent, pixels) = (config.frames_per_latent(), config.pixels_per_latent());
        Ok((Chunks::new(path, frames, self.chunk, per_latent, pixels), bar(count)))
    }

    /// Writes the latents of a clip.
    pub(crate) fn encode(&self, clip: &Path, to: &Path) -> Result<()> {
        let (config, vae) = self.load()?;
        let (mut chunks, bar) = self.clip(clip, &config)?;
        let mut stream = Stream::default();
        let (mut parts, mut frames) = (Vec::new(), 0);
        while let Some(chunk) = chunks.next()? {
            stream.chunk(chunk.last);
            if let Some(latents) = vae.encode(chunk.tensor(self.device), &mut stream) {
                parts.push(latents.try_into_data()?);
            }
            frames += chunk.images.len();
            bar.inc(chunk.images.len() as u64);
        }
        bar.finish_and_clear();
        let latents = Latents::of_parts(parts, frames)?;
        latents.save(to)?;
        let shape = latents.data.shape().to_vec();
        println!("{frames} frames as latents {shape:?} in {}.", to.display());
        Ok(())
    }

    /// Writes the frames of a file of latents.
    pub(crate) fn decode(&self, file: &Path, to: &Path) -> Result<()> {
        let latents = Latents::load(file)?;
        let (config, vae) = self.load()?;
        let (channels, count) = latents.channels_and_frames();
        ensure!(
            channels == config.latent_channels(),
            "{} has latents of {channels} channels, the model in {} decodes {}",
            file.display(),
            self.model.display(),
            config.latent_channels()
        );
        let most = 1 + (count - 1) * config.frames_per_latent();
        let frames = latents.frames.unwrap_or(most).min(most);
        let mut writer = Writer::create(to, self.frames_per_second)?;
        let bar = bar(Some(frames));
        let latents = Tensor::<5>::from_data(latents.data, self.device);
        let mut stream = Stream::default();
        for first in (0..count).step_by(self.chunk) {
            let length = self.chunk.min(count - first);
            stream.chunk(first + length == count);
            let Some(decoded) = vae.decode(latents.clone().narrow(2, first, length), &mut stream) else {
                continue;
            };
            let left = frames - bar.position() as usize;
            for image in to_images(decoded)?.iter().take(left) {
                writer.push(image)?;
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        println!("{frames} frames in {}.", to.display());
        Ok(())
    }

    /// Encodes and decodes a clip; writes the frames if `to` is given, and prints how near they are.
    pub(crate) fn reconstruct(&self, clip: &Path, to: Option<&Path>) -> Result<()> {
        let (config, vae) = self.load()?;
        let (mut chunks, bar) = self.clip(clip, &config)?;
        let mut writer = to.map(|to| Writer::create(to, self.frames_per_second)).transpose()?;
        let mut error = SquaredError::default();
        let kept = reconstruct(&vae, &mut chunks, self.device, |original, decoded| {
            error.add(original, decoded);
            bar.inc(1);
            writer.as_mut().map_or(Ok(()), |writer| writer.push(decoded))
        })?;
        let frames = bar.position();
        bar.finish_and_clear();
        if let Some(to) = to {
            println!("{frames} frames in {}.", to.display());
        }
        println!(
            "PSNR {:.2} dB over {frames} frames; the layers kept {:.1} MB between chunks.",
            error.psnr(),
            kept as f64 / 1e6
        );
        Ok(())
    }
}

/// Encodes and decodes chunk by chunk; `each` gets every original frame next to the decoded one. Returns the
/// bytes that the layers kept between the last two chunks.
pub(crate) fn reconstruct(
    vae: &Vae,
    chunks: &mut Chunks,
    device: &Device,
    mut each: impl FnMut(&RgbImage, &RgbImage) -> Result<()>,
) -> Result<usize> {
    let (mut encoding, mut decoding) = (Stream::default(), Stream::default());
    let mut originals = VecDeque::new();
    let mut kept = 0;
    while let Some(chunk) = chunks.next()? {
        encoding.chunk(chunk.last);
        decoding.chunk(chunk.last);
        let latents = vae.encode(chunk.tensor(device), &mut encoding);
        let last = chunk.last;
        originals.extend(chunk.images);
        let decoded = latents.and_then(|latents| vae.decode(latents, &mut decoding));
        if !last {
            kept = encoding.bytes() + decoding.bytes();
        }
        for image in decoded.map_or(Ok(Vec::new()), to_images)? {
            if let Some(original) = originals.pop_front() {
                each(&original, &image)?;
            }
        }
    }
    Ok(kept)
}

/// Sums up how far frames are from the originals.
#[derive(Debug, Default)]
pub(crate) struct SquaredError {
    sum: u64,
    values: u64,
}

impl SquaredError {
    pub(crate) fn add(&mut self, original: &RgbImage, decoded: &RgbImage) {
        let pairs = original.as_raw().iter().zip(decoded.as_raw());
        self.sum += pairs.map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum::<u64>();
        self.values += original.as_raw().len() as u64;
    }

    /// Peak signal-to-noise ratio in dB.
    pub(crate) fn psnr(&self) -> f64 {
        10.0 * (255.0f64.powi(2) * self.values as f64 / self.sum as f64).log10()
    }
}

fn bar(frames: Option<usize>) -> ProgressBar {
    let (bar, template) = match frames {
        Some(frames) => (ProgressBar::new(frames as u64), "{bar:40} {pos}/{len} frames, {eta} left"),
        None => (ProgressBar::no_length(), "{spinner} {pos} frames"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
