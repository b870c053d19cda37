//! Trains a small Mamba-2 character model on a text and writes on with it: `mamba-text --help`.

mod generate;
mod model;
mod scan;
mod text;
mod train;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use burn::module::Module;
use clap::Parser;
use example_common::cli::{RunOptions, count, exit, rate, trained};
use example_common::device;
use example_common::plot::SeriesLabelPosition::LowerLeft;
use example_common::plot::{Curve, Panel, draw, from_zero, read_metric};
use example_common::run_folder;

use generate::Sampling;
use text::Text;
use train::Settings;

/// Train a small Mamba-2 character model on a text, then let it write on.
///
/// Text is generated one character at a time from the states of the convolutions and scans, so
/// the cost of a character does not grow with the length of the text before it. For a first run,
/// on this project's own documentation:
///
///     mamba-text
#[derive(Parser, Debug)]
#[command(version, verbatim_doc_comment, max_term_width = 100)]
struct Cli {
    /// Learn this UTF-8 text; its last tenth is held out [default: this project's documentation]
    #[arg(long, value_name = "FILE", help_heading = "Text")]
    text: Option<PathBuf>,
    /// What the generated text begins with [default: the first 40 characters of the held-out text]
    #[arg(long, value_name = "TEXT", help_heading = "Text")]
    prompt: Option<String>,
    /// Characters to generate
    #[arg(long, value_name = "N", value_parser = count(1, 1_000_000), default_value = "600", help_heading = "Text")]
    characters: usize,
    /// How daring the generated text is: near 0 always the likeliest character, 1 as learned
    #[arg(long, value_name = "T", value_parser = temperature, default_value = "0.7", help_heading = "Text")]
    temperature: f64,

    /// Passes; each draws its training windows anew, then tests on the held-out text
    #[arg(long, value_name = "N", value_parser = count(1, 100_000), default_value = "8", help_heading = "Training")]
    epochs: usize,
    /// Training steps per epoch
    #[arg(long, value_name = "N", value_parser = count(1, 1_000_000), default_value = "60", help_heading = "Training")]
    steps: usize,
    /// Windows per training step
    #[arg(long, value_name = "N", value_parser = count(1, 65_536), default_value = "16", help_heading = "Training")]
    batch_size: usize,
    /// Characters per window
    #[arg(long, value_name = "N", value_parser = count(1, 65_536), default_value = "128", help_heading = "Training")]
    length: usize,
    /// Learning rate at the start; it falls to 0 along a cosine
    #[arg(long, value_name = "RATE", value_parser = rate, default_value = "0.003", help_heading = "Training")]
    learning_rate: f64,
    /// Seed of the weights, of the windows and of the generated text
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Training")]
    seed: u64,

    /// Folder for logs, weights, the plot and the generated text
    #[arg(long, value_name = "DIR", default_value = "artifacts/mamba-text", help_heading = "Run")]
    artifacts: PathBuf,
    #[command(flatten)]
    run: RunOptions,
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(temperature) if temperature > 0.0 && temperature <= 100.0 => Ok(temperature),
        _ => Err("it must be a number above 0 and at most 100".to_owned()),
    }
}

fn main() -> ExitCode {
    exit(run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    let started = Instant::now();
    let settings = Settings {
        length: cli.length,
        epochs: cli.epochs,
        steps: cli.steps,
        batch_size: cli.batch_size,
        learning_rate: cli.learning_rate,
        seed: cli.seed,
    };
    let text = Arc::new(Text::new(&text::read(cli.text.as_deref())?, settings.length)?);
    let prompt = match &cli.prompt {
        Some(prompt) => text::encode(&text.vocabulary, prompt).context("--prompt")?,
        None => text.characters[text.held_out..].iter().take(40).copied().collect(),
    };
    ensure!(!prompt.is_empty(), "--prompt needs at least one character");
    println!(
        "{} characters, {} of them different; the last {} are held out.",
        text.characters.len(),
        text.vocabulary.len(),
        text.characters.len() - text.held_out
    );
    let picked = device::pick(cli.run.device)?;
    println!("Running on {}.", picked.name);
    run_folder::start(
        &cli.artifacts,
        &settings,
        &["plot.svg", "sample.txt", "model.bpk"],
        cli.run.overwrite,
    )?;

    let network = train::train(&text, &settings, &picked.device, &cli.artifacts, cli.run.plain)?;
    let frequency_loss = text.frequency_loss();
    let (train_loss, test_loss) = plot(&cli.artifacts, settings.epochs, frequency_loss)?;
    println!("\nLoss on the held-out text, nats per character:");
    println!("  {test_loss:.3}  the network ({train_loss:.3} in training, with dropout)");
    println!("  {frequency_loss:.3}  the frequencies of the characters alone");
    println!("{}", trained(settings.epochs, started.elapsed(), &picked.name, network.num_params()));

    let sampling = Sampling { characters: cli.characters, temperature: cli.temperature, seed: settings.seed };
    let decoding = Instant::now();
    let written = generate::generate(&network, &prompt, sampling, &picked.device.clone().inner())?;
    let rate = written.len() as f64 / decoding.elapsed().as_secs_f64();
    let (prompt, written) =
        (text::decode(&text.vocabulary, &prompt), text::decode(&text.vocabulary, &written));
    println!("\nPrompt:\n{prompt}\n\nGenerated, {rate:.0} characters per second:\n{written}\n");
    write(&cli.artifacts.join("sample.txt"), &(prompt + &written + "\n"))?;
    run_folder::save_weights(&cli.artifacts, network)?;
    println!(
        "In {}: sample.txt (prompt and generated text), plot.svg (loss), model.bpk (weights), run.json.",
        cli.artifacts.display()
    );
    Ok(())
}

/// Draws the losses next to that of the characters' frequencies, and returns the last of each.
fn plot(artifacts: &Path, epochs: usize, frequency_loss: f64) -> Result<(f64, f64)> {
    let [train, test] = read_metric(artifacts, "Loss", epochs)?;
    let (Some(&(last, train_loss)), Some(&(_, test_loss))) = (train.points.last(), test.points.last()) else {
        bail!("training was stopped before its first epoch had ended");
    };
    let points = vec![(1.0, frequency_loss), (last, frequency_loss)];
    let curves = [train, test, Curve { name: "frequencies", points }];
    let panel = Panel {
        title: "loss, nats per character",
        y: from_zero(&curves),
        curves: &curves,
        legend: LowerLeft,
    };
    draw(&[panel], &artifacts.join("plot.svg"))?;
    Ok((train_loss, test_loss))
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
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
        let wrong = [("--length", "0"), ("--steps", "0"), ("--batch-size", "x"), ("--temperature", "0")];
        for (option, value) in wrong.into_iter().chain([("--learning-rate", "2")]) {
            let error = Cli::try_parse_from(["mamba-text", option, value]).unwrap_err().to_string();
            assert!(error.contains(option) && error.contains(value), "{error}");
        }
    }
}
