//! `cargo xtask msl`: writes the MSL of every kernel, dtype and plan, prints what each asks of the device, and fails when
//! one of them would not run on an M1.

use anyhow::Result;
use clap::Parser;
use msl_host::{report, variants};
use std::path::PathBuf;

/// Lowers every kernel to Metal Shading Language without a GPU and checks it against Apple's limits.
#[derive(Parser)]
struct Arguments {
    /// Folder for the texts and the table.
    #[arg(long, default_value = "target/msl")]
    out: PathBuf,
    /// Print the summary and what is over budget, not the table.
    #[arg(long)]
    summary: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let variants = variants::all();
    let rows = report::rows(&variants.kernels);
    report::write(&rows, &arguments.out)?;
    let table = report::table(&rows, variants.launches);
    let shown = |line: &&str| !arguments.summary || line.starts_with("    ");
    let (lines, summary) = table.trim_end().rsplit_once('\n').unwrap_or(("", table.trim_end()));
    lines.lines().filter(shown).for_each(|line| println!("{line}"));
    println!("{summary}; texts in {}", arguments.out.display());

    for refusal in &variants.refused {
        println!("refused: {refusal}");
    }
    report::verdict(&rows, &variants.refused)
}
