//! Trains a small 3D U-Net on labelled volumes: `volume-segmentation --help`.

mod cubes;
mod data;
mod model;
mod nifti;
mod sheet;
mod synth;
mod train;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use burn::module::Module;
use burn::tensor::Device;
use clap::Parser;
use example_common::cli::{RunOptions, count, exit, plural, rate, trained};
use example_common::device;
use example_common::plot::SeriesLabelPosition::{LowerRight, UpperRight};
use example_common::plot::{Panel, draw, from_zero, read_metric};
use example_common::{progress, run_folder};

use data::{Case, Cases};
use model::{MULTIPLE, UNet};
use train::{DICE, Overlap, Settings, predict};

/// Train a small 3D U-Net to find what is labelled in volumes.
///
/// Volumes are NIfTI files or folders of PNG slices. For a first run, on generated volumes with blobs
/// and tubes:
///
///     volume-segmentation
#[derive(Parser, Debug)]
#[command(version, verbatim_doc_comment, max_term_width = 100)]
struct Cli {
    /// Train on this folder: DIR/images/<case>.nii.gz and DIR/labels/<case>.nii.gz, also .nii or folders of
    /// PNG slices; every fifth case is held out [default: generated volumes in data/volumes, written there
    /// first]
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    data: Option<PathBuf>,
    /// Voxels along each edge of the cubes that the network sees, a multiple of 4; volumes may be larger or
    /// smaller
    #[arg(long, value_name = "VOXELS", value_parser = count(8, 1024), default_value = "24", help_heading = "Data")]
    size: usize,

    /// Channels at full resolution
    #[arg(long, value_name = "N", value_parser = count(1, 1024), default_value = "8", help_heading = "Training")]
    channels: usize,
    /// Passes over the training volumes, one cube of each [default: 20]
    #[arg(long, value_name = "N", value_parser = count(1, 100_000), help_heading = "Training")]
    epochs: Option<usize>,
    /// Cubes per training step
    #[arg(long, value_name = "N", value_parser = count(1, 65_536), default_value = "2", help_heading = "Training")]
    batch_size: usize,
    /// Learning rate at the start; it falls to 0 along a cosine
    #[arg(long, value_name = "RATE", value_parser = rate, default_value = "0.005", help_heading = "Training")]
    learning_rate: f64,
    /// Seed of the weights, of the cubes and of the order of volumes
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Training")]
    seed: u64,
    /// Smoke run: at most this many training steps and test batches per epoch and held-out volumes at the
    /// end, for one epoch unless --epochs is given
    #[arg(long, value_name = "N", value_parser = count(1, 1_000_000), help_heading = "Training")]
    steps: Option<usize>,

    /// Folder for logs, weights, the plot and the pictures
    #[arg(long, value_name = "DIR", default_value = "artifacts/volume-segmentation", help_heading = "Run")]
    artifacts: PathBuf,
    #[command(flatten)]
    run: RunOptions,
}

/// Rows of the sheet.
const SHOWN: usize = 6;

fn main() -> ExitCode {
    exit(run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    let started = Instant::now();
    let settings = Settings {
        size: cli.size,
        channels: cli.channels,
        epochs: cli.epochs.unwrap_or(if cli.steps.is_some() { 1 } else { 20 }),
        steps: cli.steps,
        batch_size: cli.batch_size,
        learning_rate: cli.learning_rate,
        seed: cli.seed,
    };
    let Settings { size, epochs, batch_size, seed, .. } = settings;
    ensure!(size.is_multiple_of(MULTIPLE), "--size {size} is not a multiple of {MULTIPLE}");
    let folder = match &cli.data {
        Some(folder) => folder.clone(),
        None => {
            let folder = PathBuf::from("data/volumes");
            synth::make_data(&folder)?;
            folder
        }
    };
    let Cases { labels, train, test, ignored } = read(&folder)?;
    if let Some(first) = ignored.first() {
        println!("Ignored {} files that are no volumes ({}, ..)", ignored.len(), first.display());
    }
    println!(
        "{} volumes to train on, {} held out; labels {}.",
        train.len(),
        test.len(),
        labels[1..].iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
    );
    let picked = device::pick(cli.run.device)?;
    println!("Running on {}.", picked.name);
    let written = ["plot.svg", "sheet.png", "model.bpk"];
    run_folder::start(&cli.artifacts, &settings, &written, cli.run.overwrite)?;

    let (device, classes) = (&picked.device, labels.len());
    let (train, test) = (Arc::new(train), Arc::new(test));
    let measured = &test[..settings.steps.map_or(test.len(), |steps| steps.min(test.len()))];
    let most = settings.steps.unwrap_or(usize::MAX);
    let loaders = [
        cubes::training_batches(train, classes, size, batch_size, seed).at_most(most),
        cubes::test_batches(test.clone(), classes, size, batch_size).at_most(most),
    ];
    device.seed(seed);
    let network = UNet::new(settings.channels, classes, &device.clone().autodiff());
    let before = predict_all(&network.valid(), measured, size, classes, device)?;
    let network = train::train(network, loaders, &settings, &cli.artifacts, cli.run.plain)?;
    plot(&cli.artifacts, epochs)?;
    let after = predict_all(&network, measured, size, classes, device)?;

    let rows: Vec<sheet::Row<'_>> = measured
        .iter()
        .zip(before.iter().zip(&after))
        .map(|(case, (before, after))| sheet::Row { case, before, after })
        .collect();
    sheet::write(&rows[..rows.len().min(SHOWN)], &cli.artifacts.join("sheet.png"))?;
    report(&rows, &labels);
    println!("{}", trained(epochs, started.elapsed(), &picked.name, network.num_params()));
    run_folder::save_weights(&cli.artifacts, network)?;
    println!(
        "In {}: sheet.png (before and after), plot.svg (loss, Dice), model.bpk (weights), run.json.",
        cli.artifacts.display()
    );
    Ok(())
}

/// Reads the volumes with a progress bar.
fn read(folder: &Path) -> Result<Cases> {
    let bar = progress::bar("reading volumes", 0);
    let cases = data::read(folder, |all| {
        bar.set_length(all);
        bar.inc(1);
    });
    bar.finish_and_clear();
    cases
}

/// The classes of whole volumes, with a progress bar.
fn predict_all(
    network: &UNet,
    cases: &[Case],
    size: usize,
    classes: usize,
    device: &Device,
) -> Result<Vec<Vec<u8>>> {
    let bar = progress::bar("segmenting held-out volumes", cases.len());
    let predict = |case| {
        let predicted = predict(network, case, size, classes, device);
        bar.inc(1);
        predicted
    };
    let predicted = cases.iter().map(predict).collect();
    bar.finish_and_clear();
    predicted
}

/// Draws loss and Dice.
fn plot(artifacts: &Path, epochs: usize) -> Result<()> {
    let (loss, dice) = (read_metric(artifacts, "Loss", epochs)?, read_metric(artifacts, DICE, epochs)?);
    if loss[1].points.is_empty() {
        bail!("training was stopped before its first epoch had ended");
    }
    let panels = [
        Panel { title: "cross-entropy and 1 - Dice", y: from_zero(&loss), curves: &loss, legend: UpperRight },
        Panel { title: "Dice", y: 0.0..1.0, curves: &dice, legend: LowerRight },
    ];
    draw(&panels, &artifacts.join("plot.svg"))
}

/// Mean Dice over the volumes: a line per class and one for all.
fn report(rows: &[sheet::Row<'_>], labels: &[u32]) {
    // For each volume the Dice of each class.
    let dice = |predicted: for<'a> fn(&'a sheet::Row<'_>) -> &'a [u8]| -> Vec<Vec<Option<f64>>> {
        rows.iter().map(|row| Overlap::of(predicted(row), &row.case.classes, labels.len()).dice()).collect()
    };
    let (before, after) = (dice(|row| row.before), dice(|row| row.after));
    let of = |dice: &[Vec<Option<f64>>], class: usize| train::mean(dice.iter().map(|dice| dice[class]));
    let all = |dice: &[Vec<Option<f64>>]| {
        train::mean((1..labels.len()).map(|class| Some(of(dice, class)).filter(|dice| !dice.is_nan())))
    };
    println!("\nMean Dice of {} whole held-out volume{}:", rows.len(), plural(rows.len()));
    println!("  before  after  label");
    for (class, label) in labels.iter().enumerate().skip(1) {
        println!("   {:.3}  {:.3}  {label}", of(&before, class), of(&after, class));
    }
    println!("   {:.3}  {:.3}  mean", all(&before), all(&after));
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
        for (option, value) in [("--size", "4"), ("--channels", "0"), ("--steps", "0"), ("--epochs", "x")] {
            let error = Cli::try_parse_from(["volume-segmentation", option, value]).unwrap_err().to_string();
            assert!(error.contains(option) && error.contains(value), "{error}");
        }
    }
}
