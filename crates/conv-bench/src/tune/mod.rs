//! `cargo xtask tune`: verifies and times every eligible plan of conv3d (the rows of `--plan all`) and
//! compares the times with the model of the choice. Per layer and pass: the choice, the fastest plan, what
//! was lost, and whether the model ranks the plans right. An earlier record is read the same way.
//!
//! ```text
//! burn.rs         what `patch` leaves to Burn, where a record has Burn's rows
//! layers.rs       a record's rows as layers, with predictions
//! statistics.rs   regret, rank correlation, ratios
//! page.rs         all of it as text, for the terminal and for an issue
//! ```

mod burn;
mod layers;
mod page;
mod statistics;

use crate::options::Options;
use crate::report::Report;
use anyhow::{Context, Result, ensure};
use bench_record::Record;
use conv_kernels::Limits;
use std::path::Path;

pub(crate) use page::Origin;

/// Without a device: the records of `--record`, for `--chip` or for the device that they name.
///
/// # Errors
/// When a record cannot be read or has no row of conv3d, or the file cannot be written.
pub(crate) fn of_records(options: &Options, file: &Path) -> Result<()> {
    let mut records = Vec::new();
    for path in &options.record {
        records.extend(bench_record::read(path)?);
    }
    records.retain(|record| record.op == "conv3d");
    let first = records.first().context("the records have no row of conv3d")?;
    let name = options.chip.clone().unwrap_or_else(|| first.device.clone());
    let limits = Limits::named(&name);
    let origin = Origin {
        adapter: first.device.clone(),
        backend: first.backend.clone(),
        rates_of: name,
        size: String::new(),
        measured: "from a record".into(),
    };
    write(&records, options, &limits, &origin, file)
}

/// What a run has just measured.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn of_run(
    report: &Report,
    options: &Options,
    limits: &Limits,
    origin: &Origin,
    file: &Path,
) -> Result<()> {
    write(&report.records(), options, limits, origin, file)
}

fn write(records: &[Record], options: &Options, limits: &Limits, origin: &Origin, file: &Path) -> Result<()> {
    let (layers, unknown) = layers::layers(records, options, limits)?;
    ensure!(!layers.is_empty(), "no row has a plan that {} lists", origin.rates_of);
    println!("\n{}", page::summary(&layers, unknown, limits));
    if let Some(text) = burn::summary(&burn::rows(records, options, limits)?) {
        println!("\n{text}");
    }
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    }
    std::fs::write(file, page::page(&layers, unknown, limits, origin))
        .with_context(|| format!("cannot write {}", file.display()))?;
    println!("\nwritten to {}: attach it to an issue", file.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::layers::layers;
    use super::statistics::Layer;
    use super::*;
    use clap::Parser;

    fn recorded(name: &str) -> (Vec<Layer>, usize) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benchmarks").join(name);
        let records = bench_record::read(&path).expect("a record");
        let options = Options::parse_from(["conv-bench"]);
        layers(&records, &options, &Limits::h200()).expect("layers")
    }

    /// Several plans for each layer, of today's kernels; of those of an earlier day the layers that were not
    /// timed again.
    #[test]
    fn the_model_ranks_the_plans_of_an_h200() {
        let of = |name| {
            let (layers, unknown) = recorded(name);
            assert_eq!(unknown, 0, "{name}");
            layers
        };
        let [new, mut old] = ["2026-11-30-h200-plans.csv", "2026-11-21-h200-plans.csv"].map(of);
        old.retain(|layer| new.iter().all(|timed| timed.name != layer.name));
        for (layers, least, correlation, regret, worst) in
            [(&new, 44, 0.9, 1.03, 1.15), (&old, 45, 0.75, 1.05, 1.1)]
        {
            println!("{}", page::summary(layers, 0, &Limits::h200()));
            let correlations: Vec<f64> = layers.iter().filter_map(Layer::rank_correlation).collect();
            let mean = correlations.iter().sum::<f64>() / correlations.len() as f64;
            assert!(correlations.len() >= least && mean > correlation, "{mean:.3} of {}", correlations.len());
            let regrets =
                |count| layers.iter().filter_map(|layer| layer.regret_of_best(count)).collect::<Vec<f64>>();
            let mean =
                bench_record::statistics::geometric_mean(&regrets(1)).expect("choices that were timed");
            assert!(mean < regret, "{mean:.3}");
            // What a tuner of three plans leaves.
            let of_three = regrets(3).into_iter().fold(1.0, f64::max);
            assert!(of_three < worst, "{of_three:.3}");
        }
    }

    /// One plan for each layer: what can be compared is the order of all rows. Three rows are of tiles for
    /// few outputs that the device's choice does not take any more.
    #[test]
    fn the_model_orders_the_layers_of_an_h200() {
        let (layers, unknown) = recorded("2026-11-28-h200.csv");
        assert_eq!((unknown, layers.len()), (3, 255));
        assert!(layers.iter().all(|layer| layer.plans.len() == 1));
        let of = |dtype| {
            let layers = layers.iter().filter(|layer| layer.dtype == dtype);
            let rows = layers.flat_map(|layer| &layer.plans);
            let pairs: Vec<_> = rows.map(|plan| (plan.predicted_ms, plan.measured_ms)).collect();
            statistics::spearman(&pairs).expect("rows")
        };
        let [single, half] = ["f32", "f16"].map(of);
        println!("Spearman over all rows: f32 {single:.3}, f16 {half:.3}");
        assert!(single > 0.9 && half > 0.9, "f32 {single:.3}, f16 {half:.3}");
    }
}
