//! Without weights: trains a small Wan on moving shapes, then streams a held-out clip that is longer.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::module::Module;
use burn::tensor::Device;
use example_common::cli::trained;
use example_common::device::Picked;
use example_common::plot::SeriesLabelPosition::UpperRight;
use example_common::plot::{Panel, draw, from_zero, read_metric};
use example_common::run_folder;
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use crate::clip::{Chunks, Writer};
use crate::commands::{SquaredError, reconstruct};
use crate::start::start;
use crate::train::{CLIPS, FRAMES, Settings, config, shapes, train};
use crate::vae::{Config, Vae, save};
use crate::wan::WanVae;

/// Frames per second of the GIF.
const RATE: usize = 10;
/// What a run writes next to burn-train's logs.
const WRITTEN: [&str; 4] = ["plot.svg", "before-after.gif", crate::vae::CONFIG, crate::vae::WEIGHTS];

/// Trains, streams and reports.
pub(crate) fn run(
    settings: &Settings,
    picked: &Picked,
    artifacts: &Path,
    overwrite: bool,
    plain: bool,
) -> Result<()> {
    let started = Instant::now();
    println!("{} clips of {FRAMES} frames to train on, {} held out.", CLIPS[0], CLIPS[1]);
    println!("Running on {}.", picked.name);
    run_folder::start(artifacts, settings, &WRITTEN, overwrite)?;
    let device = &picked.device;
    device.seed(settings.seed);
    let config = config();
    let vae = start(WanVae::new(&config, &device.clone().autodiff()));
    let before = stream(&Vae::Wan(Box::new(vae.valid())), settings.held_out_frames, device)?;
    let vae = train(vae, settings, artifacts, plain)?;
    let parameters = vae.num_params();
    save(artifacts, &config, &vae)?;
    let after = stream(&Vae::Wan(Box::new(vae)), settings.held_out_frames, device)?;
    plot(artifacts, settings.epochs)?;
    write_gif(&before, &after, &artifacts.join("before-after.gif"))?;
    println!("\nPSNR of a held-out clip of {} frames, one latent frame at a time:", after.frames.len());
    println!("  {:.2} dB  after training", after.psnr);
    println!("  {:.2} dB  before", before.psnr);
    println!("{}", trained(settings.epochs, started.elapsed(), &picked.name, parameters));
    println!(
        "In {}: before-after.gif (original, before, after), plot.svg (loss), the model as --model reads it.",
        artifacts.display()
    );
    Ok(())
}

/// A clip through a model.
struct Streamed {
    /// Pairs of original and decoded frame.
    frames: Vec<[RgbImage; 2]>,
    psnr: f64,
}

/// Streams the clip after those of training, one latent frame at a time.
fn stream(vae: &Vae, frames: usize, device: &Device) -> Result<Streamed> {
    let config = Config::Wan(config());
    let frames = shapes(CLIPS[0] + CLIPS[1], frames).into_iter().map(Ok);
    let (per_latent, pixels) = (config.frames_per_latent(), config.pixels_per_latent());
    let mut chunks = Chunks::new(Path::new("moving shapes"), Box::new(frames), 1, per_latent, pixels);
    let mut error = SquaredError::default();
    let mut frames = Vec::new();
    reconstruct(vae, &mut chunks, device, |original, decoded| {
        error.add(original, decoded);
        frames.push([original.clone(), decoded.clone()]);
        Ok(())
    })?;
    Ok(Streamed { frames, psnr: error.psnr() })
}

/// Original, before training, after.
fn write_gif(before: &Streamed, after: &Streamed, path: &Path) -> Result<()> {
    const CELL: u32 = 128;
    const GAP: u32 = 4;
    let mut writer = Writer::create(path, RATE)?;
    for ([original, untrained], [_, trained]) in before.frames.iter().zip(&after.frames) {
        let mut sheet = RgbImage::from_pixel(3 * CELL + 2 * GAP, CELL, Rgb([255; 3]));
        for (column, image) in [original, untrained, trained].into_iter().enumerate() {
            let image = imageops::resize(image, CELL, CELL, FilterType::Nearest);
            imageops::replace(&mut sheet, &image, i64::from(column as u32 * (CELL + GAP)), 0);
        }
        writer.push(&sheet)?;
    }
    Ok(())
}

/// Draws the losses.
fn plot(artifacts: &Path, epochs: usize) -> Result<()> {
    let curves = read_metric(artifacts, "Loss", epochs)?;
    if curves[1].points.is_empty() {
        bail!("training was stopped before its first epoch had ended");
    }
    let panel = Panel {
        title: "squared error and divergence",
        y: from_zero(&curves),
        curves: &curves,
        legend: UpperRight,
    };
    draw(&[panel], &artifacts.join("plot.svg")).context("the plot")
}
