//! What a run leaves behind: a record, a table per case while it runs, a summary at the end.

use anyhow::{Context, Result};
use bench_record::compare::plain;
use bench_record::peers::groups;
use bench_record::record::OURS;
use bench_record::statistics::short;
use bench_record::{Record, Writer};
use comfy_table::{ColumnConstraint, Table, Width};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name of Burn's rows in the column `implementation`.
pub(crate) const BURN: &str = "burn";

/// A record's row, and what tables say next to it.
#[derive(Clone, Debug)]
struct Shown {
    record: Record,
    /// Whether this is what a user gets without forcing a plan.
    chosen: bool,
    /// Whether bytes rather than operations bind.
    memory_bound: bool,
}

/// Collects records and shows them.
pub(crate) struct Report {
    path: PathBuf,
    writer: Writer,
    rows: Vec<Shown>,
    /// Where the present case begins in `rows`.
    case_start: usize,
    failures: Vec<String>,
    /// Of each peer and reason the first row, and how many rows.
    peer_failures: Vec<(String, String, usize)>,
    skips: Vec<String>,
    bar: ProgressBar,
}

impl Report {
    /// Creates `folder/<date>-<name>.csv`, with a number where that exists already.
    pub(crate) fn create(folder: &Path, name: &str, steps: usize) -> Result<Self> {
        let date = chrono::Local::now().format("%Y-%m-%d");
        let numbered = |number: usize| match number {
            1 => folder.join(format!("{date}-{name}.csv")),
            _ => folder.join(format!("{date}-{name}-{number}.csv")),
        };
        let path = (1..).map(numbered).find(|path| !path.exists()).context("no free file name")?;
        let writer = Writer::create(&path)?;
        let bar = ProgressBar::new(steps as u64);
        let style = "{bar:24.cyan} {pos}/{len} {elapsed} {msg}";
        bar.set_style(ProgressStyle::with_template(style).context("progress bar")?);
        bar.enable_steady_tick(Duration::from_millis(500));
        Ok(Self {
            path,
            writer,
            rows: Vec::new(),
            case_start: 0,
            failures: Vec::new(),
            peer_failures: Vec::new(),
            skips: Vec::new(),
            bar,
        })
    }

    /// What was measured so far.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.rows.iter().map(|row| row.record.clone()).collect()
    }

    /// Shows what runs now.
    pub(crate) fn running(&self, what: String) {
        self.bar.set_message(what);
    }

    /// Prints a line above the bar.
    pub(crate) fn note(&self, line: &str) {
        self.bar.suspend(|| println!("{line}"));
    }

    /// Writes a verified row.
    pub(crate) fn push(&mut self, record: Record, chosen: bool, memory_bound: bool) -> Result<()> {
        self.writer.push(&record).context("cannot write the record")?;
        self.rows.push(Shown { record, chosen, memory_bound });
        Ok(())
    }

    /// Notes a row that is not written.
    pub(crate) fn failed(&mut self, implementation: &str, row: &str, error: &str) {
        if implementation == OURS {
            let text = format!("{row}: {error}");
            self.bar.suspend(|| println!("  FAILED  {text}"));
            self.failures.push(text);
            return;
        }
        let reason = format!("{implementation}: {error}");
        match self.peer_failures.iter_mut().find(|(other, ..)| *other == reason) {
            Some((_, _, rows)) => *rows += 1,
            None => self.peer_failures.push((reason, row.to_string(), 1)),
        }
    }

    /// Notes what is not run.
    pub(crate) fn skip(&mut self, text: String) {
        self.skips.push(text);
    }

    /// Shows the case that has ended under `title`, if anything was measured.
    pub(crate) fn end_case(&mut self, title: &str) {
        let rows = &self.rows[self.case_start..];
        if !rows.is_empty() {
            let table = case_table(rows);
            self.bar.suspend(|| println!("\n{title}\n{table}"));
        }
        self.case_start = self.rows.len();
        self.bar.inc(1);
        if !std::io::stderr().is_terminal() {
            eprintln!("{}/{} {title}", self.bar.position(), self.bar.length().unwrap_or_default());
        }
    }

    /// Shows the summary; whether every row of ours was verified.
    pub(crate) fn finish(self) -> bool {
        self.bar.finish_and_clear();
        let records = self.records();
        if let Some(table) = summary_table(&records) {
            println!("\nTimes as fast as peers (geometric mean over cases; automatic plans)\n{table}");
        }
        list("SKIPPED", &self.skips);
        let peers = self.peer_failures.iter().map(|(reason, row, rows)| match rows {
            1 => format!("{reason} ({row})"),
            _ => format!("{reason} ({row} and {} more)", rows - 1),
        });
        list("Peers FAILED, no row was written", &peers.collect::<Vec<_>>());
        list("FAILED, no row was written", &self.failures);
        println!("\n{} rows in {}", self.rows.len(), self.path.display());
        self.failures.is_empty()
    }
}

fn list(title: &str, lines: &[String]) {
    if !lines.is_empty() {
        println!("\n{title}");
        lines.iter().for_each(|line| println!("  {line}"));
    }
}

/// A line per implementation and plan: the device's time, and the host's next to it.
fn case_table(rows: &[Shown]) -> Table {
    let mut header = vec![
        "dtype",
        "pass",
        "whose",
        "plan",
        "ms",
        "p10",
        "p90",
        "wall ms",
        "ours is",
        "rate",
        "of limit",
        "RMS error",
    ];
    // The same widths under every case, so that columns line up down the screen.
    let mut widths = vec![7, 9, 15, 26, 10, 10, 10, 10, 9, 14, 10, 11];
    let counted = rows.iter().any(|row| row.record.launches.is_some());
    if counted {
        header.extend(["moved MB", "launches"]);
        widths.extend([10, 8]);
    }
    let mut table = plain(&header, 4);
    for (column, width) in table.column_iter_mut().zip(widths) {
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width)));
    }
    for Shown { record, chosen, memory_bound } in rows {
        let same = |other: &Record| other.key()[..5] == record.key()[..5] && other.plan == record.plan;
        let of_other_clock = rows
            .iter()
            .map(|row| &row.record)
            .find(|other| same(other) && other.is_wall() != record.is_wall());
        if record.is_wall() && of_other_clock.is_some() {
            continue;
        }
        let plans =
            rows.iter().filter(|row| row.record.key() == record.key() && row.record.implementation == OURS);
        let auto = if *chosen && plans.count() > 1 { " (auto)" } else { "" };
        // What the case's name has beyond the first one's: the order in memory.
        let layout = record.case.strip_prefix(&rows[0].record.case).unwrap_or_default().replace('_', " ");
        let time = |value: Option<f64>| value.map_or(String::new(), short);
        let rate = if *memory_bound {
            record.gbps.map(|rate| format!("{} GB/s", short(rate)))
        } else {
            record.gflops.map(|rate| format!("{} GFLOP/s", short(rate)))
        };
        let ours = rows.iter().map(|row| &row.record).find(|other| {
            let clock = other.is_wall() == record.is_wall();
            other.implementation == OURS && clock && other.key()[..4] == record.key()[..4]
        });
        let ratio = ours.filter(|_| record.implementation != OURS);
        let ratio = ratio.and_then(|ours| Some(ratio_text(record.median_ms? / ours.median_ms?)));
        let wall =
            if record.is_wall() { record.median_ms } else { of_other_clock.and_then(|row| row.median_ms) };
        let mut cells = vec![
            record.dtype.clone(),
            record.pass.clone(),
            record.implementation.clone(),
            format!("{}{auto}{layout}", record.plan),
            time(record.median_ms),
            time(record.p10_ms),
            time(record.p90_ms),
            time(wall),
            ratio.unwrap_or_default(),
            rate.unwrap_or_default(),
            record.share_of_limit.map_or(String::new(), |share| format!("{:.0} %", 100.0 * share)),
            record.rms_err.map_or(String::new(), |error| format!("{error:.1e}")),
        ];
        if counted {
            cells.push(record.moved_mb.map_or(String::new(), short));
            cells.push(record.launches.map_or(String::new(), |count| count.to_string()));
        }
        table.add_row(cells);
    }
    table
}

/// How many times as fast as each peer, per op, dtype and pass; none where nothing can be compared.
fn summary_table(records: &[Record]) -> Option<Table> {
    let groups = groups(records);
    let mut table = plain(&["peer", "op", "dtype", "pass", "cases", "ours is", "least", "most"], 4);
    for group in &groups {
        let words = [group.peer].into_iter().chain(group.of).map(String::from);
        let ratios = [group.mean, group.range.0, group.range.1].map(ratio_text);
        table.add_row(words.chain([group.cases.to_string()]).chain(ratios));
    }
    (!groups.is_empty()).then_some(table)
}

/// A ratio, such as `12.3x`.
fn ratio_text(value: f64) -> String {
    format!("{}x", short(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench_record::record::WALL_CLOCK;

    fn shown(implementation: &str, plan: &str, clock: &str, chosen: bool, median: f64) -> Shown {
        let record = Record {
            op: "conv3d".into(),
            case: "a".into(),
            dtype: "f32".into(),
            pass: "fwd".into(),
            implementation: implementation.into(),
            plan: plan.into(),
            backend: format!("wgpu{clock}"),
            median_ms: Some(median),
            ..Record::default()
        };
        Shown { record, chosen, memory_bound: false }
    }

    #[test]
    fn a_record_is_written_under_a_name_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..2)
            .map(|_| {
                let mut report = Report::create(folder.path(), "device", 1).unwrap();
                report.push(shown(OURS, "direct", "", true, 2.0).record, true, false).unwrap();
                let path = report.path.clone();
                assert!(report.finish());
                path
            })
            .collect();
        assert_ne!(paths[0], paths[1]);
        assert_eq!(bench_record::read(&paths[1]).unwrap()[0].median_ms, Some(2.0));
    }

    #[test]
    fn a_failure_of_ours_counts_and_one_of_a_peers_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut report = Report::create(folder.path(), "device", 1).unwrap();
        report.failed(BURN, "a fwd", "no");
        report.failed(BURN, "b fwd", "no");
        assert!(report.failures.is_empty());
        assert_eq!(report.peer_failures, [("burn: no".into(), "a fwd".into(), 2)]);
        report.failed(OURS, "a fwd", "no");
        assert!(!report.finish());
    }

    #[test]
    fn the_hosts_time_stands_next_to_the_devices() {
        let rows = [
            shown(OURS, "winograd_2x2", "", true, 1.0),
            shown(OURS, "winograd_2x2", WALL_CLOCK, true, 1.25),
            shown(OURS, "direct", "", false, 100.0),
            shown(BURN, "conv3d", "", true, 2.0),
            shown("mlx", "conv3d", WALL_CLOCK, true, 5.0),
        ];
        let text = case_table(&rows).to_string();
        let lines: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(lines[1], ["f32", "fwd", "ours", "winograd_2x2", "(auto)", "1.00", "1.25"], "{text}");
        assert_eq!(lines[2], ["f32", "fwd", "ours", "direct", "100"]);
        assert_eq!(lines[3], ["f32", "fwd", "burn", "conv3d", "2.00", "2.00x"]);
        assert_eq!(lines[4], ["f32", "fwd", "mlx", "conv3d", "5.00", "5.00", "4.00x"]);
        assert!(!text.contains("launches"), "{text}");
        let mut counted = rows.clone();
        counted[0].record.launches = Some(7);
        counted[0].record.moved_mb = Some(12.0);
        let text = case_table(&counted).to_string();
        let lines: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(lines[0][lines[0].len() - 3..], ["moved", "MB", "launches"], "{text}");
        assert_eq!(lines[1][5..], ["1.00", "1.25", "12.0", "7"], "{text}");
        let records: Vec<Record> = rows.into_iter().map(|row| row.record).collect();
        assert_eq!(summary_table(&records).unwrap().row_iter().count(), 2);
        assert!(summary_table(&records[..3]).is_none());
    }
}
