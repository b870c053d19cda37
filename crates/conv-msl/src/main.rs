//! `cargo xtask msl`: writes the MSL of every kernel, dtype and plan, prints what each requires of the
//! device, and fails if one would not run on an M1.

use anyhow::{Context, Result, bail};
use clap::Parser;
use conv_kernels::FloatType;
use conv_msl::{Op, first_calls};
use msl_host::manifest::Manifest;
use msl_host::report;
use std::path::PathBuf;

/// Lowers every kernel to Metal Shading Language without a GPU and checks it against Apple's limits.
#[derive(Parser)]
struct Arguments {
    /// Folder for the texts and the table.
    #[arg(long, default_value = "target/msl")]
    out: PathBuf,
    /// Only the kernels of this op; may be given several times. A manifest is of what is listed.
    #[arg(long)]
    op: Vec<Op>,
    /// Also write the hash of every kernel's normalised text to this file.
    #[arg(long)]
    manifest: Option<PathBuf>,
    /// List the kernels whose text is not that of this manifest, and fail if there are any.
    #[arg(long)]
    compare: Option<PathBuf>,
    /// Only print, as a table, the kernels and the text that the first training step of R3D-18 compiles in
    /// this type.
    #[arg(long, value_name = "TYPE")]
    first_calls: Option<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(name) = &arguments.first_calls {
        let dtype = FloatType::ALL.into_iter().find(|dtype| dtype.name() == name);
        let dtype = dtype.with_context(|| format!("no type {name}: f32, f16 and bf16 are"))?;
        print!("{}", first_calls::table(&first_calls::r3d_18(), dtype)?);
        return Ok(());
    }
    // Read first: a missing file should not be reported after minutes of work.
    let earlier = arguments.compare.as_deref().map(Manifest::read).transpose()?;
    let ops: &[Op] = if arguments.op.is_empty() { &Op::ALL } else { &arguments.op };
    let variants = conv_msl::all(ops);
    let rows = report::rows(&variants.kernels);
    report::write(&rows, &arguments.out)?;
    print!("{}", report::table(&rows, variants.launches));
    for refusal in &variants.refused {
        println!("refused: {refusal}");
    }
    println!("texts and kernels.csv in {}", arguments.out.display());
    report::verdict(&rows, &variants.refused)?;

    let fallback = conv_msl::before_macos_15(ops);
    let rows = report::rows(&fallback.kernels);
    let table = report::table(&rows, fallback.launches);
    print!("through WGSL and naga, for macOS before 15: {}", table.lines().last().unwrap_or_default());
    println!();
    report::verdict(&rows, &fallback.refused)?;

    let mut manifest = Manifest::default();
    manifest.add("msl", &variants.kernels);
    manifest.add("wgsl", &fallback.kernels);
    if let Some(path) = &arguments.manifest {
        manifest.write(path)?;
        println!("{} texts in {}", manifest.kernels(), path.display());
    }
    earlier.map_or(Ok(()), |earlier| compare(&earlier, &manifest))
}

/// Lists what changed from `earlier` to `now`.
///
/// # Errors
///
/// If anything changed, with the number of kernels.
fn compare(earlier: &Manifest, now: &Manifest) -> Result<()> {
    let changes = earlier.compare(now);
    changes.iter().for_each(|change| println!("{change}"));
    let kernels: usize = changes.iter().map(|change| change.changed + change.added + change.removed).sum();
    if kernels > 0 {
        bail!("{kernels} kernels have a changed, added or removed text");
    }
    println!("no text changed: {} kernels", now.kernels());
    Ok(())
}
