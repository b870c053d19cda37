//! Completes masked images from a second view of the same scene: `cross-view --help`.

mod model;
mod pairs;
mod scene;
mod sheet;
mod train;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::data::dataloader::DataLoader;
use burn::module::Module;
use clap::Parser;
use example_common::cli::{RunOptions, count, exit, rate, trained};
use example_common::device;
use example_common::plot::SeriesLabelPosition::LowerLeft;
use example_common::plot::{Curve, Panel, draw, from_zero, read_metric};
use example_common::run_folder;

use model::CrossView;
use pairs::{PATCH, Pairs, Patches};
use train::{Errors, Settings};

/// Train a small network to complete masked images from a second view of the same scene.
///
/// Most patches of the first view are masked; the network predicts them from the few that are left
/// and from the second view. For a first run, on generated scenes:
///
///     cross-view
#[derive(Parser, Debug)]
#[command(version, verbatim_doc_comment, max_term_width = 100)]
struct Cli {
    /// Train on this folder: DIR/<pair>/*.png, two pictures of one scene each; every tenth pair is held out
    /// [default: generated scenes in data/scenes, written there first]
    #[arg(long, value_name = "DIR", help_heading = "Images")]
    images: Option<PathBuf>,
    /// Height and width of a picture, a multiple of 4: others are resized to this square
    #[arg(long, value_name = "PIXELS", value_parser = count(8, 1024), default_value = "32", help_heading = "Images")]
    size: usize,
    /// Share of the first view's patches that is masked
    #[arg(long, value_name = "PART", value_parser = part, default_value = "0.75", help_heading = "Images")]
    mask_ratio: f64,

    /// Passes over the training pairs [default: 10]
    #[arg(long, value_name = "N", value_parser = count(1, 100_000), help_heading = "Training")]
    epochs: Option<usize>,
    /// Pairs per training step
    #[arg(long, value_name = "N", value_parser = count(1, 65_536), default_value = "8", help_heading = "Training")]
    batch_size: usize,
    /// Learning rate at the start; it falls to 0 along a cosine
    #[arg(long, value_name = "RATE", value_parser = rate, default_value = "0.002", help_heading = "Training")]
    learning_rate: f64,
    /// Seed of the weights, of the masks and of the order of pairs
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Training")]
    seed: u64,
    /// Smoke run: at most this many training steps per epoch, for one epoch unless --epochs is given
    #[arg(long, value_name = "N", value_parser = count(1, 1_000_000), help_heading = "Training")]
    steps: Option<usize>,

    /// Folder for logs, weights, the plot and the pictures
    #[arg(long, value_name = "DIR", default_value = "artifacts/cross-view", help_heading = "Run")]
    artifacts: PathBuf,
    #[command(flatten)]
    run: RunOptions,
}

/// Rows of the sheet.
const SHOWN: usize = 6;

fn part(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(part) if part > 0.0 && part < 1.0 => Ok(part),
        _ => Err("it must be a number between 0 and 1".to_owned()),
    }
}

fn main() -> ExitCode {
    exit(run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    let started = Instant::now();
    let settings = Settings {
        size: cli.size,
        mask_ratio: cli.mask_ratio,
        epochs: cli.epochs.unwrap_or(if cli.steps.is_some() { 1 } else { 10 }),
        steps: cli.steps,
        batch_size: cli.batch_size,
        learning_rate: cli.learning_rate,
        seed: cli.seed,
    };
    let patches = patches(&settings)?;
    let folder = match &cli.images {
        Some(folder) => folder.clone(),
        None => {
            let folder = PathBuf::from("data/scenes");
            scene::make_images(&folder, scene::SCENES)?;
            folder
        }
    };
    let Pairs { train, test } = pairs::read(&folder, settings.size)?;
    println!(
        "{} pairs to train on, {} held out; {} of {} patches of each first view are masked.",
        train.len(),
        test.len(),
        patches.masked,
        patches.count()
    );
    let picked = device::pick(cli.run.device)?;
    println!("Running on {}.", picked.name);
    run_folder::start(&cli.artifacts, &settings, &["plot.svg", "sheet.png", "model.bpk"], cli.run.overwrite)?;

    let (device, test) = (&picked.device, Arc::new(test));
    let test_loader = |batch_size| pairs::test_batches(test.clone(), patches, batch_size, settings.seed);
    let shown = test_loader(SHOWN).to_device(device).iter().next().context("no held-out pair")?;
    let shown = shown.map_err(|error| anyhow!("{error}"))?;

    device.seed(settings.seed);
    let network = CrossView::new(&device.clone().autodiff());
    let before = network.valid().forward(&shown);
    let train_loader = pairs::training_batches(Arc::new(train), patches, settings.batch_size, settings.seed)
        .at_most(settings.steps.unwrap_or(usize::MAX));
    let loaders = [train_loader, test_loader(settings.batch_size)];
    let network = train::train(network, loaders, &settings, &cli.artifacts, cli.run.plain)?;

    let errors = train::measure(&network, &test_loader(settings.batch_size), device)?;
    plot(&cli.artifacts, settings.epochs, errors)?;
    sheet::write(&shown, before, network.forward(&shown), &cli.artifacts.join("sheet.png"))?;
    println!(
        "\nMean squared error of the masked patches of {} held-out pairs, pixels from 0 to 1:",
        test.len()
    );
    println!("  {:.4}  the network", errors.network);
    println!("  {:.4}  the network, shown the second view of another scene", errors.wrong_view);
    println!("  {:.4}  the second view, copied", errors.copied);
    println!("  {:.4}  the mean colour of the visible patches", errors.mean_colour);
    println!("{}", trained(settings.epochs, started.elapsed(), &picked.name, network.num_params()));
    run_folder::save_weights(&cli.artifacts, network)?;
    println!(
        "In {}: sheet.png (before and after), plot.svg (loss), model.bpk (weights), run.json.",
        cli.artifacts.display()
    );
    Ok(())
}

/// How the settings cut a picture: at least one patch is masked and one is not.
fn patches(settings: &Settings) -> Result<Patches> {
    ensure!(settings.size.is_multiple_of(PATCH), "--size {} is not a multiple of {PATCH}", settings.size);
    let side = settings.size / PATCH;
    let masked = (settings.mask_ratio * (side * side) as f64).round() as usize;
    Ok(Patches { side, masked: masked.clamp(1, side * side - 1) })
}

/// Draws the losses next to the error of the mean colour.
fn plot(artifacts: &Path, epochs: usize, errors: Errors) -> Result<()> {
    let [train, test] = read_metric(artifacts, "Loss", epochs)?;
    let Some(last) = test.points.last().map(|point| point.0) else {
        bail!("training was stopped before its first epoch had ended");
    };
    let points = vec![(1.0, errors.mean_colour), (last, errors.mean_colour)];
    let curves = [train, test, Curve { name: "mean colour", points }];
    let panel = Panel {
        title: "mean squared error, masked patches",
        y: from_zero(&curves),
        curves: &curves,
        legend: LowerLeft,
    };
    draw(&[panel], &artifacts.join("plot.svg"))
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
        for (option, value) in [("--size", "4"), ("--mask-ratio", "1"), ("--steps", "0"), ("--epochs", "x")] {
            let error = Cli::try_parse_from(["cross-view", option, value]).unwrap_err().to_string();
            assert!(error.contains(option) && error.contains(value), "{error}");
        }
    }

    #[test]
    fn some_patches_are_masked_and_some_are_not() {
        let cut = |size, mask_ratio| {
            let settings = Settings {
                size,
                mask_ratio,
                epochs: 1,
                steps: None,
                batch_size: 1,
                learning_rate: 0.1,
                seed: 1,
            };
            patches(&settings).map(|patches| (patches.side, patches.masked))
        };
        assert_eq!(cut(32, 0.75).unwrap(), (8, 48));
        assert_eq!((cut(8, 0.01).unwrap(), cut(8, 0.99).unwrap()), ((2, 1), (2, 3)));
        assert_eq!(cut(18, 0.5).unwrap_err().to_string(), "--size 18 is not a multiple of 4");
    }
}
