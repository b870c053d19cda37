//! The video autoencoders of Wan and LTX, streaming: `video-vae --help`.

mod clip;
mod commands;
mod demo;
mod latents;
mod layers;
mod ltx;
mod start;
mod stream;
mod timing;
mod train;
mod vae;
mod wan;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use example_common::cli::{RunOptions, count, exit, rate};
use example_common::device::{self, DeviceChoice};

use commands::Run;
use timing::{Storage, Timing};
use train::Settings;

/// Clips to latents and back, with the weights of Wan 2.1, Wan 2.2 or LTX-Video 0.9.
///
/// Without a command, a small Wan is trained on moving shapes and written to the artifacts folder, where
/// the commands find it:
///
///     video-vae
///     video-vae reconstruct CLIP
#[derive(Parser, Debug)]
#[command(version, verbatim_doc_comment, max_term_width = 100, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    demo: Demo,
}

#[derive(Args, Debug)]
struct Demo {
    /// Passes over the training clips [default: 10]
    #[arg(long, value_name = "N", value_parser = count(1, 100_000), help_heading = "Training")]
    epochs: Option<usize>,
    /// Clips per training step
    #[arg(long, value_name = "N", value_parser = count(1, 65_536), default_value = "2", help_heading = "Training")]
    batch_size: usize,
    /// Learning rate at the start; it falls to 0 along a cosine
    #[arg(long, value_name = "RATE", value_parser = rate, default_value = "0.0006", help_heading = "Training")]
    learning_rate: f64,
    /// Seed of the weights and of the order of clips
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Training")]
    seed: u64,
    /// Smoke run: at most this many training steps per epoch, for one epoch unless --epochs is given
    #[arg(long, value_name = "N", value_parser = count(1, 1_000_000), help_heading = "Training")]
    steps: Option<usize>,
    /// Frames of the held-out clip that is streamed; those to train on have 9
    #[arg(long, value_name = "N", value_parser = count(1, 100_000), default_value = "33", help_heading = "Training")]
    held_out_frames: usize,
    /// Folder for logs, weights, the plot and the GIF
    #[arg(long, value_name = "DIR", default_value = ARTIFACTS, help_heading = "Run")]
    artifacts: PathBuf,
    #[command(flatten)]
    run: RunOptions,
}

/// Where the demo puts its model, and the commands look for one.
const ARTIFACTS: &str = "artifacts/video-vae";

#[derive(Subcommand, Debug)]
enum Command {
    /// Write the latents of a clip
    Encode {
        /// A folder of PNG frames or an animated GIF
        clip: PathBuf,
        /// The file to write
        #[arg(short, long, value_name = "FILE", default_value = "latents.safetensors")]
        output: PathBuf,
        #[command(flatten)]
        with: With,
    },
    /// Write the frames of a file of latents
    Decode {
        /// A file that `encode` wrote
        latents: PathBuf,
        /// A new or empty folder for PNG frames, or a file NAME.gif
        #[arg(short, long, value_name = "PATH")]
        output: PathBuf,
        #[command(flatten)]
        with: With,
    },
    /// Encode and decode a clip, and print how near the result is
    Reconstruct {
        /// A folder of PNG frames or an animated GIF
        clip: PathBuf,
        /// A new or empty folder for PNG frames, or a file NAME.gif
        #[arg(short, long, value_name = "PATH")]
        output: Option<PathBuf>,
        #[command(flatten)]
        with: With,
    },
    /// Time the decoder on random latents, with random weights, and print the memory that it takes
    Time(Time),
}

#[derive(Args, Debug)]
struct Time {
    /// A model's config.json; the channels of Wan 2.1 without
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Pixels of a frame
    #[arg(long, value_name = "HEIGHTxWIDTH", value_parser = timing::size, default_value = "480x832")]
    size: [usize; 2],
    /// Frames of the clip, at least; whole latents are decoded
    #[arg(long, value_name = "N", value_parser = count(1, 100_000), default_value = "17")]
    frames: usize,
    /// Type of weights and activations
    #[arg(long, value_enum, default_value_t = Storage::F32)]
    dtype: Storage,
    /// Latent frames that go through the model together
    #[arg(long, value_name = "N", value_parser = count(1, 1024), default_value = "1")]
    chunk: usize,
    /// Times that the clip is decoded after the first one
    #[arg(long, value_name = "N", value_parser = count(1, 1000), default_value = "3")]
    repeats: usize,
    /// Frames of a second of video
    #[arg(long, value_name = "N", value_parser = count(1, 1000), default_value = "16")]
    fps: usize,
    /// What to run on
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
}

#[derive(Args, Debug)]
struct With {
    /// Folder with config.json and diffusion_pytorch_model.safetensors
    #[arg(long, value_name = "DIR", default_value = ARTIFACTS)]
    model: PathBuf,
    /// Latent frames that go through the model together: more are faster and take more memory
    #[arg(long, value_name = "N", value_parser = count(1, 1024), default_value = "1")]
    chunk: usize,
    /// Frames per second of a GIF
    #[arg(long, value_name = "N", value_parser = count(1, 100), default_value = "16")]
    fps: usize,
    /// What to run on
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
}

fn main() -> ExitCode {
    exit(run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    match &cli.command {
        None => train(&cli.demo),
        Some(Command::Encode { clip, output, with }) => with.run(|run| run.encode(clip, output)),
        Some(Command::Decode { latents, output, with }) => with.run(|run| run.decode(latents, output)),
        Some(Command::Reconstruct { clip, output, with }) => {
            with.run(|run| run.reconstruct(clip, output.as_deref()))
        }
        Some(Command::Time(time)) => time.run(),
    }
}

impl With {
    fn run(&self, command: impl FnOnce(Run<'_>) -> Result<()>) -> Result<()> {
        let picked = device::pick(self.device)?;
        println!("Running on {}.", picked.name);
        command(Run {
            model: &self.model,
            device: &picked.device,
            chunk: self.chunk,
            frames_per_second: self.fps,
        })
    }
}

impl Time {
    fn run(&self) -> Result<()> {
        let picked = device::pick(self.device)?;
        println!("Running on {}.", picked.name);
        let timing = Timing {
            config: self.config.clone(),
            size: self.size,
            frames: self.frames,
            dtype: self.dtype,
            chunk: self.chunk,
            repeats: self.repeats,
            frames_per_second: self.fps,
        };
        timing::run(&timing, picked.device)
    }
}

fn train(demo: &Demo) -> Result<()> {
    let settings = Settings {
        epochs: demo.epochs.unwrap_or(if demo.steps.is_some() { 1 } else { 10 }),
        steps: demo.steps,
        batch_size: demo.batch_size,
        learning_rate: demo.learning_rate,
        seed: demo.seed,
        held_out_frames: demo.held_out_frames,
    };
    let picked = device::pick(demo.run.device)?;
    demo::run(&settings, &picked, &demo.artifacts, demo.run.overwrite, demo.run.plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn numbers_out_of_bounds_are_refused_with_the_option() {
        for args in [
            ["video-vae", "--steps", "0"].as_slice(),
            &["video-vae", "encode", "clip", "--chunk", "0"],
            &["video-vae", "decode", "latents", "-o", "out.gif", "--fps", "1000"],
            &["video-vae", "time", "--size", "480"],
        ] {
            let error = Cli::try_parse_from(args).unwrap_err().to_string();
            let [.., option, value] = args else { unreachable!() };
            assert!(error.contains(option) && error.contains(value), "{error}");
        }
    }
}
