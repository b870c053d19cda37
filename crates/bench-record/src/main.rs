//! `bench-record compare OLD NEW` and `bench-record report RECORD..`, behind `cargo xtask bench`.

use anyhow::Result;
use bench_record::compare::Comparison;
use bench_record::{read, report};
use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Compares benchmark records and turns them into pages.
#[derive(Parser)]
#[command(name = "bench-record", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print what got slower or faster by more than the noise, and geometric means.
    Compare {
        /// The record before.
        old: PathBuf,
        /// The record after.
        new: PathBuf,
    },
    /// Write a record as one HTML page with plots, next to it.
    Report {
        /// The record; of several the rows are put together.
        #[arg(required = true)]
        records: Vec<PathBuf>,
        /// Write each plot as an SVG into this folder too.
        #[arg(long, value_name = "DIR")]
        plots: Option<PathBuf>,
        /// The page [default: the first record's name with .html].
        #[arg(long, value_name = "FILE")]
        page: Option<PathBuf>,
    },
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Compare { old, new } => {
            let (old, new) = (read(&old)?, read(&new)?);
            println!("{}", Comparison::of(&old, &new));
            Ok(())
        }
        Command::Report { records, plots, page } => {
            let mut rows = Vec::new();
            for path in &records {
                rows.extend(read(path)?);
            }
            let title = records[0].file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let page = page.unwrap_or_else(|| records[0].with_extension("html"));
            report::write(&rows, &title, &page, plots.as_deref())
        }
    }
}
