//! What a run leaves behind: a CSV row per verified measurement, a table per case while it runs, a summary at
//! the end.

use crate::measure::{Samples, geometric_mean};
use crate::verify::Deviation;
use anyhow::{Context, Result};
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::fs::{self, File};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name of our rows in the column `implementation`.
pub(crate) const OURS: &str = "ours";
/// The name of Burn's rows.
pub(crate) const BURN: &str = "burn";

/// One row of the CSV; the fields are its columns.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Record {
    pub(crate) op: &'static str,
    pub(crate) case: String,
    pub(crate) dtype: &'static str,
    pub(crate) pass: &'static str,
    pub(crate) algorithm: String,
    pub(crate) implementation: &'static str,
    pub(crate) device: String,
    pub(crate) backend: &'static str,
    pub(crate) median_ms: f64,
    pub(crate) p10_ms: f64,
    pub(crate) p90_ms: f64,
    /// 10^9 operations per second, counting those of the direct algorithm.
    pub(crate) gflops: f64,
    /// 10^9 bytes per second, each tensor counted once.
    pub(crate) gbps: f64,
    /// The shortest possible time over the median; empty where the limit was not measured.
    pub(crate) share_of_limit: Option<f64>,
    /// Largest error over the RMS of the truth.
    pub(crate) max_err: f64,
    /// RMS error over the RMS of the truth.
    pub(crate) rms_err: f64,
    /// Whether every element compared is inside the bound that holds for every correct fp32-accumulating
    /// kernel.
    pub(crate) bound_ok: bool,
    /// Whether this is what a user gets without forcing a plan.
    #[serde(skip)]
    pub(crate) chosen: bool,
    /// Whether bytes rather than operations bind.
    #[serde(skip)]
    pub(crate) memory_bound: bool,
}

impl Record {
    /// Fills in the measured columns, to six digits.
    pub(crate) fn measured(
        mut self,
        samples: Samples,
        flops: f64,
        bytes: f64,
        bound: Option<f64>,
        deviation: Deviation,
    ) -> Self {
        let seconds = samples.median * 1e-3;
        self.median_ms = digits(samples.median);
        self.p10_ms = digits(samples.p10);
        self.p90_ms = digits(samples.p90);
        self.gflops = digits(flops / seconds * 1e-9);
        self.gbps = digits(bytes / seconds * 1e-9);
        self.share_of_limit = bound.map(|bound| digits(bound / seconds));
        self.max_err = digits(deviation.max);
        self.rms_err = digits(deviation.rms);
        self
    }
}

/// `value` rounded to six significant digits.
fn digits(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

/// Collects records and shows them.
pub(crate) struct Report {
    path: PathBuf,
    writer: csv::Writer<File>,
    records: Vec<Record>,
    /// Where the present case begins in `records`.
    case_start: usize,
    failures: Vec<String>,
    burn_failures: Vec<String>,
    skips: Vec<String>,
    bar: ProgressBar,
}

impl Report {
    /// Creates `folder/<date>-<size>.csv`.
    pub(crate) fn create(folder: &Path, size: &str, steps: usize) -> Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create the folder {}", folder.display()))?;
        let path = folder.join(format!("{}-{size}.csv", chrono::Local::now().format("%Y-%m-%dT%H%M%S")));
        let writer =
            csv::Writer::from_path(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let bar = ProgressBar::new(steps as u64);
        let style = "{bar:24.cyan} {pos}/{len} {elapsed} {msg}";
        bar.set_style(ProgressStyle::with_template(style).context("progress bar")?);
        bar.enable_steady_tick(Duration::from_millis(500));
        Ok(Self {
            path,
            writer,
            records: Vec::new(),
            case_start: 0,
            failures: Vec::new(),
            burn_failures: Vec::new(),
            skips: Vec::new(),
            bar,
        })
    }

    /// Shows what runs now.
    pub(crate) fn running(&self, what: String) {
        self.bar.set_message(what);
    }

    /// Writes a verified row.
    pub(crate) fn push(&mut self, record: Record) -> Result<()> {
        self.writer
            .serialize(&record)
            .and_then(|()| Ok(self.writer.flush()?))
            .context("cannot write the results")?;
        self.records.push(record);
        Ok(())
    }

    /// Notes a row that is not written.
    pub(crate) fn failed(&mut self, implementation: &str, text: String) {
        self.bar.suspend(|| println!("  FAILED  {text}"));
        if implementation == OURS { self.failures.push(text) } else { self.burn_failures.push(text) }
    }

    /// Notes what is not run.
    pub(crate) fn skip(&mut self, text: String) {
        self.skips.push(text);
    }

    /// Shows the case that has ended under `title`, if anything was measured.
    pub(crate) fn end_case(&mut self, title: &str) {
        let records = &self.records[self.case_start..];
        if !records.is_empty() {
            let table = case_table(records);
            self.bar.suspend(|| println!("\n{title}\n{table}"));
        }
        self.case_start = self.records.len();
        self.bar.inc(1);
        if !std::io::stderr().is_terminal() {
            eprintln!("{}/{} {title}", self.bar.position(), self.bar.length().unwrap_or_default());
        }
    }

    /// Shows the summary; whether every row of ours was verified.
    pub(crate) fn finish(self) -> bool {
        self.bar.finish_and_clear();
        if let Some(table) = summary_table(&self.records) {
            println!("\nSpeed-up over Burn's own op (geometric mean over cases; automatic plans)\n{table}");
        }
        list("SKIPPED", &self.skips);
        list("Burn's own op FAILED, no row was written", &self.burn_failures);
        list("FAILED, no row was written", &self.failures);
        println!("\n{} rows in {}", self.records.len(), self.path.display());
        self.failures.is_empty()
    }
}

fn list(title: &str, lines: &[String]) {
    if !lines.is_empty() {
        println!("\n{title}");
        lines.iter().for_each(|line| println!("  {line}"));
    }
}

/// A borderless table with right-aligned numbers from column `numbers` on.
fn table(header: &[&str], numbers: usize) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    for column in table.column_iter_mut().skip(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn case_table(records: &[Record]) -> Table {
    let header = [
        "dtype",
        "pass",
        "plan",
        "ours ms",
        "p10",
        "p90",
        "Burn ms",
        "speed-up",
        "rate",
        "of limit",
        "RMS error",
    ];
    // The same widths under every case, so that columns line up down the screen.
    let widths = [7, 9, 26, 10, 10, 10, 10, 10, 14, 10, 11];
    let mut table = table(&header, 3);
    for (column, width) in table.column_iter_mut().zip(widths) {
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width)));
    }
    for record in records {
        let of_burn = |other: &&Record| {
            other.implementation == BURN && (other.dtype, other.pass) == (record.dtype, record.pass)
        };
        let burn = records.iter().find(of_burn);
        let has_ours = |other: &Record| {
            other.implementation == OURS && (other.dtype, other.pass) == (record.dtype, record.pass)
        };
        let (plan, ours, peer) = match record.implementation {
            OURS => (record.algorithm.clone(), Some(record), burn),
            // Burn alone: our row was not verified.
            _ if !records.iter().any(has_ours) => (String::new(), None, Some(record)),
            _ => continue,
        };
        let plan = if record.chosen && records.iter().filter(|other| has_ours(other)).count() > 1 {
            format!("{plan} (auto)")
        } else {
            plan
        };
        let time = |value: Option<f64>| value.map_or(String::new(), short);
        let rate = if record.memory_bound {
            format!("{} GB/s", short(record.gbps))
        } else {
            format!("{} GFLOP/s", short(record.gflops))
        };
        let speed_up =
            ours.zip(peer).map_or(String::new(), |(ours, burn)| ratio(burn.median_ms / ours.median_ms));
        table.add_row([
            record.dtype.to_string(),
            record.pass.to_string(),
            plan,
            time(ours.map(|ours| ours.median_ms)),
            time(ours.map(|ours| ours.p10_ms)),
            time(ours.map(|ours| ours.p90_ms)),
            time(peer.map(|burn| burn.median_ms)),
            speed_up,
            rate,
            record.share_of_limit.map_or(String::new(), |share| format!("{:.0} %", 100.0 * share)),
            format!("{:.1e}", record.rms_err),
        ]);
    }
    table
}

/// Op, pass and dtype.
type GroupKey<'a> = (&'a str, &'a str, &'a str);

/// Ratios of Burn's time to ours, per op, pass and dtype; none where nothing can be compared.
fn summary_table(records: &[Record]) -> Option<Table> {
    let mut groups: Vec<(GroupKey, Vec<f64>)> = Vec::new();
    for ours in records.iter().filter(|record| record.implementation == OURS && record.chosen) {
        let same = |other: &&Record| {
            let key = |record: &Record| (record.op, record.pass, record.dtype);
            other.implementation == BURN && key(other) == key(ours) && other.case == ours.case
        };
        let Some(burn) = records.iter().find(same) else { continue };
        let key = (ours.op, ours.pass, ours.dtype);
        let ratio = burn.median_ms / ours.median_ms;
        match groups.iter_mut().find(|(other, _)| *other == key) {
            Some((_, ratios)) => ratios.push(ratio),
            None => groups.push((key, vec![ratio])),
        }
    }
    let mut table = table(&["op", "pass", "dtype", "cases", "speed-up", "least", "most"], 3);
    for ((op, pass, dtype), ratios) in &groups {
        let mean = geometric_mean(ratios)?;
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        let count = ratios.len().to_string();
        table.add_row([
            op.to_string(),
            pass.to_string(),
            dtype.to_string(),
            count,
            ratio(mean),
            ratio(least),
            ratio(most),
        ]);
    }
    (!groups.is_empty()).then_some(table)
}

/// A ratio, such as `12.3x`.
fn ratio(value: f64) -> String {
    format!("{}x", short(value))
}

/// Three significant digits, without an exponent.
fn short(value: f64) -> String {
    let magnitude = value.abs().max(1e-9).log10().floor() as i32;
    let decimals = (2 - magnitude).clamp(0, 6) as usize;
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(
        case: &str,
        implementation: &'static str,
        algorithm: &str,
        chosen: bool,
        median: f64,
    ) -> Record {
        let blank = Record {
            op: "conv3d",
            case: case.into(),
            dtype: "f32",
            pass: "fwd",
            algorithm: algorithm.into(),
            implementation,
            device: "a \"device\", quoted".into(),
            backend: "wgpu",
            median_ms: 0.0,
            p10_ms: 0.0,
            p90_ms: 0.0,
            gflops: 0.0,
            gbps: 0.0,
            share_of_limit: None,
            max_err: 0.0,
            rms_err: 0.0,
            bound_ok: true,
            chosen,
            memory_bound: false,
        };
        let samples = Samples { median, p10: median, p90: median };
        blank.measured(samples, 2e9, 1e6, Some(0.5e-3), Deviation { max: 1e-6, rms: 1.0 / 3e6 })
    }

    #[test]
    fn the_csv_has_the_columns_of_the_record_format() {
        let folder = tempfile::tempdir().unwrap();
        let mut report = Report::create(folder.path(), "small", 1).unwrap();
        report.push(record("a", OURS, "direct", true, 2.0)).unwrap();
        let text = fs::read_to_string(&report.path).unwrap();
        let mut lines = text.lines();
        assert_eq!(
            lines.next().unwrap(),
            "op,case,dtype,pass,algorithm,implementation,device,backend,median_ms,p10_ms,p90_ms,gflops,gbps,\
             share_of_limit,max_err,rms_err,bound_ok"
        );
        let row = lines.next().unwrap();
        assert!(row.starts_with(
            "conv3d,a,f32,fwd,direct,ours,\"a \"\"device\"\", quoted\",wgpu,2.0,2.0,2.0,1000.0,0.5,"
        ));
        assert!(row.ends_with(",0.25,1e-6,3.33333e-7,true"), "{row}");
        assert!(report.finish());
    }

    #[test]
    fn a_failure_of_ours_counts_and_one_of_burns_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut report = Report::create(folder.path(), "small", 1).unwrap();
        report.failed(BURN, "burn".into());
        assert!(report.failures.is_empty());
        report.failed(OURS, "ours".into());
        assert!(!report.finish());
    }

    #[test]
    fn the_summary_compares_automatic_plans_of_the_same_case() {
        let records = [
            record("a", OURS, "direct", false, 100.0),
            record("a", OURS, "winograd_2x2", true, 1.0),
            record("a", BURN, "conv3d", true, 2.0),
            record("b", OURS, "direct", true, 1.0),
            record("b", BURN, "conv3d", true, 8.0),
            record("c", OURS, "direct", true, 1.0),
        ];
        let text = summary_table(&records).unwrap().to_string();
        let row: Vec<_> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(row, ["conv3d", "fwd", "f32", "2", "4.00x", "2.00x", "8.00x"]);
        assert!(summary_table(&records[..2]).is_none());
        let text = case_table(&records[..3]).to_string();
        assert!(text.contains("winograd_2x2 (auto)") && text.contains("0.0200x"), "{text}");
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [(0.012345, "0.0123"), (1.2345, "1.23"), (123.45, "123"), (98765.4, "98765")] {
            assert_eq!(short(value), text);
        }
    }
}
