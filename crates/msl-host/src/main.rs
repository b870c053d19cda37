//! `cargo xtask msl`: writes the MSL of every kernel, dtype and plan, prints what each asks of the device,
//! and fails when one of them would not run on an M1.

use anyhow::Result;
use clap::Parser;
use msl_host::{paper, report, variants};
use std::path::PathBuf;

/// Lowers every kernel to Metal Shading Language without a GPU and checks it against Apple's limits.
#[derive(Parser)]
struct Arguments {
    /// Folder for the texts and the table.
    #[arg(long, default_value = "target/msl")]
    out: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let variants = variants::all();
    let rows = report::rows(&variants.kernels);
    report::write(&rows, &arguments.out)?;
    print!("{}", report::table(&rows, variants.launches));
    for refusal in &variants.refused {
        println!("refused: {refusal}");
    }
    paper::write(&paper::all(), &arguments.out)?;
    println!(
        "texts, kernels.csv and paper.csv (bounds on the workloads' times) in {}",
        arguments.out.display()
    );
    report::verdict(&rows, &variants.refused)?;

    let fallback = variants::before_macos_15();
    let rows = report::rows(&fallback.kernels);
    let table = report::table(&rows, fallback.launches);
    print!("through WGSL and naga, for macOS before 15: {}", table.lines().last().unwrap_or_default());
    println!();
    report::verdict(&rows, &fallback.refused)
}
