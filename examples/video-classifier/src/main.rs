//! Trains a small 3D residual network to tell video clips apart: `video-classifier --help`.

mod artifacts;
mod data;
mod loader;
mod model;
mod plot;
mod synth;
mod train;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::module::Module;
use clap::Parser;
use example_common::cli::{RunOptions, count, exit, minutes, plural, rate};
use example_common::{device, progress, run_folder};

use artifacts::{Artifacts, Run, Settings};
use data::{Clip, ClipShape};
use loader::Clips;
use train::{Confusion, Job};

/// Train a small 3D residual network on a folder of labelled video clips.
///
/// Clips are folders of PNG frames or animated GIFs, sorted into one folder per class. For a first run
/// without clips of your own:
///
///     video-classifier --make-data shapes --data shapes
#[derive(Parser, Debug)]
#[command(version, verbatim_doc_comment, max_term_width = 100)]
struct Cli {
    /// Train on this folder: DIR/<class>/<clip>/*.png or DIR/<class>/<clip>.gif, or the same under DIR/train
    /// and DIR/test; without these two, a fifth of each class is held out
    #[arg(long, value_name = "DIR", required_unless_present = "make_data", help_heading = "Data")]
    data: Option<PathBuf>,
    /// Write the example data set, 640 clips of moving shapes in 8 classes, to this new folder
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    make_data: Option<PathBuf>,
    /// Frames per clip: longer clips are sampled evenly, shorter ones repeat their last frame [default: 8]
    #[arg(long, value_name = "N", value_parser = count(1, 1024), help_heading = "Data")]
    frames: Option<usize>,
    /// Height and width of a frame: others are resized to this square [default: 32]
    #[arg(long, value_name = "PIXELS", value_parser = count(8, 1024), help_heading = "Data")]
    size: Option<usize>,

    /// Passes over the training clips [default: 12]
    #[arg(long, value_name = "N", value_parser = count(1, 100_000), help_heading = "Training")]
    epochs: Option<usize>,
    /// Clips per training step [default: 16]
    #[arg(long, value_name = "N", value_parser = count(1, 65_536), help_heading = "Training")]
    batch_size: Option<usize>,
    /// Learning rate at the start; it falls to 0 along a cosine [default: 0.001]
    #[arg(long, value_name = "RATE", value_parser = rate, help_heading = "Training")]
    learning_rate: Option<f64>,
    /// Seed of the weights and of the order of clips [default: 1]
    #[arg(long, value_name = "N", help_heading = "Training")]
    seed: Option<u64>,
    /// Smoke run: at most this many training steps and test batches per epoch, for one epoch unless --epochs
    /// is given
    #[arg(long, value_name = "N", value_parser = count(1, 1_000_000), help_heading = "Training")]
    steps: Option<usize>,

    /// Folder for checkpoints, logs, weights and the plot
    #[arg(long, value_name = "DIR", default_value = "artifacts", help_heading = "Run")]
    artifacts: PathBuf,
    /// Continue the run in the artifacts folder from its last finished epoch, with its settings
    #[arg(long, conflicts_with = "overwrite", help_heading = "Run")]
    resume: bool,
    /// Train on this many devices of the kind: each step's batch is divided among them [default: 1]
    #[arg(long, value_name = "N", value_parser = count(1, 64), help_heading = "Run")]
    devices: Option<usize>,
    /// Take each step's batch in this many parts; one device takes them one after the other [default: one for
    /// each device]
    #[arg(long, value_name = "N", value_parser = count(1, 65_536), help_heading = "Run")]
    parts: Option<usize>,
    #[command(flatten)]
    run: RunOptions,
}

impl Cli {
    /// The settings of this run: given ones, else those of the run that is resumed, else the defaults.
    fn settings(&self, saved: Option<&Settings>) -> Settings {
        let steps = self.steps.or(saved.and_then(|saved| saved.steps));
        let epochs = if steps.is_some() { 1 } else { 12 };
        let devices = self.devices.or(saved.map(|s| s.devices)).unwrap_or(1);
        Settings {
            frames: self.frames.or(saved.map(|s| s.frames)).unwrap_or(8),
            size: self.size.or(saved.map(|s| s.size)).unwrap_or(32),
            epochs: self.epochs.or(saved.map(|s| s.epochs)).unwrap_or(epochs),
            batch_size: self.batch_size.or(saved.map(|s| s.batch_size)).unwrap_or(16),
            learning_rate: self.learning_rate.or(saved.map(|s| s.learning_rate)).unwrap_or(1e-3),
            seed: self.seed.or(saved.map(|s| s.seed)).unwrap_or(1),
            steps,
            devices,
            parts: self.parts.or(saved.map(|s| s.parts)).unwrap_or(devices),
        }
    }
}

fn main() -> ExitCode {
    exit(run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    if let Some(dir) = &cli.make_data {
        synth::make_data(dir)?;
    }
    match (&cli.data, &cli.make_data) {
        (Some(data), _) => train_on(cli, data),
        (None, Some(dir)) => {
            println!("To train on it: video-classifier --data {}", dir.display());
            Ok(())
        }
        (None, None) => bail!("nothing to do: give --data or --make-data"),
    }
}

fn train_on(cli: &Cli, data: &Path) -> Result<()> {
    let started = Instant::now();
    let artifacts = Artifacts::new(&cli.artifacts);
    let saved = if cli.resume {
        let saved = artifacts.saved_run()?;
        Some(saved.with_context(|| format!("{} holds no run to resume", cli.artifacts.display()))?)
    } else {
        None
    };
    let settings = cli.settings(saved.as_ref().map(|run| &run.settings));
    let folder = data::scan(data)?;
    if let Some(first) = folder.ignored.first() {
        println!("Ignored {} files that are no clips ({}, ..)", folder.ignored.len(), first.display());
    }
    let run = Run {
        settings,
        classes: folder.classes,
        train_clips: folder.train.len(),
        test_clips: folder.test.len(),
    };
    let Run { settings, classes, .. } = &run;
    println!("{} classes: {}.", classes.len(), classes.join(", "));
    println!(
        "{} clips to train on, {} held out; {} frames of {} x {} pixels each.",
        run.train_clips, run.test_clips, settings.frames, settings.size, settings.size
    );
    check_parts(settings, run.train_clips)?;
    let picked = device::pick_several(cli.run.device, settings.devices)?;
    let names: Vec<_> = picked.iter().map(|picked| picked.name.as_str()).collect();
    let devices: Vec<_> = picked.iter().map(|picked| picked.device.clone()).collect();
    println!("Running on {}.", names.join(" and "));

    let (train, test) = load(folder.train, folder.test, settings)?;
    let finished = match &saved {
        Some(saved) => artifacts.resume(saved, &run)?,
        None => {
            artifacts.start(&run, cli.run.overwrite)?;
            0
        }
    };
    if cli.resume {
        println!("Resuming after epoch {finished} of {}.", settings.epochs);
    }
    let job = Job {
        settings,
        artifacts: &artifacts,
        classes: classes.len(),
        train,
        test,
        devices: &devices,
        finished,
        plain: cli.run.plain,
    };
    let begun = Instant::now();
    let model = train::train(&job)?;
    let trained = artifacts.finished_epochs().saturating_sub(finished) * job.clips_per_epoch();
    if trained > 0 {
        println!(
            "Trained on {trained} clips, {:.1} a second with the tests between epochs, on {} device{}.",
            trained as f64 / begun.elapsed().as_secs_f64(),
            devices.len(),
            plural(devices.len())
        );
    }

    let finished = artifacts.finished_epochs();
    if finished > 0 {
        plot::draw_run(artifacts.dir(), finished, &artifacts.path("plot.svg"))?;
    }
    if finished < settings.epochs {
        println!(
            "Stopped with {finished} of {} epochs finished and saved. To continue: video-classifier --data {} \
             --artifacts {} --resume",
            settings.epochs,
            data.display(),
            artifacts.dir().display()
        );
        return Ok(());
    }
    let confusion = train::test(&job, &model)?;
    let parameters = model.num_params();
    run_folder::save_weights(artifacts.dir(), model)?;
    report(classes, &confusion);
    println!(
        "\nTest accuracy {:.1} % ({} of {} held-out clips) after {} epoch{} in {} on {}; {} parameters.",
        100.0 * confusion.correct() as f64 / confusion.total() as f64,
        confusion.correct(),
        confusion.total(),
        settings.epochs,
        plural(settings.epochs),
        minutes(started.elapsed()),
        names.join(" and "),
        parameters
    );
    println!(
        "In {}: plot.svg (loss and accuracy), model.bpk (weights), checkpoint/, run.json, experiment.log.",
        artifacts.dir().display()
    );
    Ok(())
}

/// Refuses batches that cannot be divided into their parts, and parts that are not one for each device.
fn check_parts(settings: &Settings, clips: usize) -> Result<()> {
    let Settings { batch_size, devices, parts, .. } = *settings;
    if devices > 1 && parts != devices {
        bail!("--parts {parts} with --devices {devices}: of several devices each takes one part");
    }
    if !batch_size.is_multiple_of(parts) {
        bail!("--batch-size {batch_size} cannot be divided evenly into {parts} parts");
    }
    if clips < devices {
        bail!("{clips} clips to train on are fewer than the {devices} devices");
    }
    Ok(())
}

/// Decodes the clips with a progress bar.
fn load(train: Vec<Clip>, test: Vec<Clip>, settings: &Settings) -> Result<(Arc<Clips>, Arc<Clips>)> {
    let shape = ClipShape { frames: settings.frames, size: settings.size };
    let bar = progress::bar("reading clips", train.len() + test.len());
    let clips = |list| Clips::load(list, shape, || bar.inc(1)).map(Arc::new);
    let loaded = clips(train).and_then(|train| Ok((train, clips(test)?)));
    bar.finish_and_clear();
    let (train, test) = loaded?;
    if train.read_from_disk() {
        println!("The clips are too many to keep in memory; they are decoded again in every epoch.");
    }
    Ok((train, test))
}

/// One line per class.
fn report(classes: &[String], confusion: &Confusion) {
    let width = classes.iter().map(String::len).max().unwrap_or(0).max(5);
    println!("\n{:width$}  clips  correct  most often taken for", "class");
    for (class, name) in classes.iter().enumerate() {
        let (clips, correct, worst) = confusion.of_class(class);
        let worst = worst.map(|(other, count)| format!("{} ({count})", classes[other])).unwrap_or_default();
        println!("{}", format!("{name:width$}  {clips:5}  {correct:7}  {worst}").trim_end());
    }
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
    fn a_resumed_run_takes_its_settings_from_the_file() {
        let cli = |args: &[&str]| Cli::parse_from([&["video-classifier", "--data", "d"], args].concat());
        let first = cli(&["--epochs", "3", "--frames", "4", "--learning-rate", "0.5"]).settings(None);
        assert_eq!((first.epochs, first.frames, first.batch_size), (3, 4, 16));
        assert_eq!(cli(&["--resume"]).settings(Some(&first)), first);
        let changed = cli(&["--resume", "--frames", "5"]).settings(Some(&first));
        assert_eq!((changed.epochs, changed.frames), (3, 5));
        assert_eq!(cli(&["--steps", "2"]).settings(None).epochs, 1);
    }

    #[test]
    fn a_batch_is_divided_evenly() {
        let settings = |args: &[&str]| {
            Cli::parse_from([&["video-classifier", "--data", "d"], args].concat()).settings(None)
        };
        assert!(check_parts(&settings(&["--devices", "4"]), 100).is_ok());
        let error = check_parts(&settings(&["--devices", "3"]), 100).unwrap_err().to_string();
        assert_eq!(error, "--batch-size 16 cannot be divided evenly into 3 parts");
        let error = check_parts(&settings(&["--devices", "2", "--parts", "4"]), 100).unwrap_err().to_string();
        assert_eq!(error, "--parts 4 with --devices 2: of several devices each takes one part");
        let error = check_parts(&settings(&["--devices", "4"]), 3).unwrap_err().to_string();
        assert_eq!(error, "3 clips to train on are fewer than the 4 devices");
    }

    #[test]
    fn numbers_out_of_bounds_are_refused_with_the_option() {
        let wrong = [("--frames", "0"), ("--size", "7"), ("--batch-size", "0"), ("--epochs", "many")];
        for (option, value) in wrong.into_iter().chain([("--learning-rate", "2"), ("--learning-rate", "0")]) {
            let error = Cli::try_parse_from(["video-classifier", "--data", "d", option, value]);
            let error = error.unwrap_err().to_string();
            assert!(error.contains(option) && error.contains(value), "{error}");
        }
    }
}
