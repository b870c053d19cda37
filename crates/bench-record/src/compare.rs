//! What got slower or faster between two records, and by how much on average.
//!
//! A row is slower where its median grew by more than the noise: the distances from p10 to p90 of both
//! measurements added. A row without quantiles is not judged, but counts in the averages.

use crate::Record;
use crate::statistics::{geometric_mean, short};
use comfy_table::{CellAlignment, Table, presets};
use std::fmt::{self, Display, Formatter};

/// The same measurement in both records.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// The row of the first record.
    pub old: &'a Record,
    /// The row of the second record.
    pub new: &'a Record,
}

/// How a pair differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The median grew by more than the noise.
    Slower,
    /// It shrank by more than the noise.
    Faster,
    /// Neither.
    Same,
    /// One of the rows has no quantiles.
    Unknown,
}

impl Pair<'_> {
    /// The new time over the old one; none where a median was not measured.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        Some(self.new.median_ms? / self.old.median_ms?)
    }

    /// Whether the difference is more than the noise.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let spread = |record: &Record| Some(record.p90_ms? - record.p10_ms?);
        let judged = || {
            let difference = self.new.median_ms? - self.old.median_ms?;
            Some((difference, spread(self.old)? + spread(self.new)?))
        };
        match judged() {
            None => Verdict::Unknown,
            Some((difference, noise)) if difference > noise => Verdict::Slower,
            Some((difference, noise)) if -difference > noise => Verdict::Faster,
            Some(_) => Verdict::Same,
        }
    }
}

/// Two records side by side.
#[derive(Debug)]
pub struct Comparison<'a> {
    /// Rows in both.
    pub pairs: Vec<Pair<'a>>,
    /// Rows of the first record alone.
    pub gone: Vec<&'a Record>,
    /// Rows of the second record alone.
    pub added: Vec<&'a Record>,
}

impl<'a> Comparison<'a> {
    /// Pairs rows of the same plan first; what is left is paired without its plan where that is unambiguous,
    /// so that a changed choice of plan shows as one row.
    #[must_use]
    pub fn of(old: &'a [Record], new: &'a [Record]) -> Self {
        let (mut gone, mut added): (Vec<_>, Vec<_>) = (old.iter().collect(), new.iter().collect());
        let mut pairs = Vec::new();
        let mut take = |same: &dyn Fn(&Record, &Record) -> bool| {
            let mut left = Vec::new();
            for old in std::mem::take(&mut gone) {
                let matches = added.iter().filter(|new| same(old, new)).count();
                match added.iter().position(|new| same(old, new)) {
                    Some(place) if matches == 1 => pairs.push(Pair { old, new: added.remove(place) }),
                    _ => left.push(old),
                }
            }
            gone = left;
        };
        let same_device = |old: &Record, new: &Record| old.key() == new.key() && old.device == new.device;
        take(&|old, new| same_device(old, new) && old.plan == new.plan);
        take(&same_device);
        Self { pairs, gone, added }
    }

    /// The pairs of a verdict, the largest change first.
    fn with(&self, verdict: Verdict) -> Vec<(f64, &Pair<'a>)> {
        let pairs = self.pairs.iter().filter(|pair| pair.verdict() == verdict);
        let mut pairs: Vec<_> = pairs.filter_map(|pair| Some((pair.ratio()?, pair))).collect();
        pairs.sort_by(|a, b| b.0.ln().abs().total_cmp(&a.0.ln().abs()));
        pairs
    }

    /// Geometric means of new time over old, by implementation, clock, op, pass and dtype, with the number of
    /// pairs.
    #[must_use]
    pub fn means(&self) -> Vec<([&'a str; 5], usize, f64)> {
        let mut groups: Vec<([&str; 5], Vec<f64>)> = Vec::new();
        for pair in &self.pairs {
            let Some(ratio) = pair.ratio() else { continue };
            let [op, _, dtype, pass, implementation, clock] = pair.old.key();
            let key = [implementation, clock, op, pass, dtype];
            match groups.iter_mut().find(|(other, _)| *other == key) {
                Some((_, ratios)) => ratios.push(ratio),
                None => groups.push((key, vec![ratio])),
            }
        }
        let mean =
            |(key, ratios): ([&'a str; 5], Vec<f64>)| Some((key, ratios.len(), geometric_mean(&ratios)?));
        groups.into_iter().filter_map(mean).collect()
    }
}

impl Display for Comparison<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (title, verdict) in [("Slower", Verdict::Slower), ("Faster", Verdict::Faster)] {
            let rows = self.with(verdict);
            writeln!(f, "{title} by more than the noise: {}", rows.len())?;
            if !rows.is_empty() {
                writeln!(f, "{}\n", changes(&rows))?;
            }
        }
        let unknown = self.pairs.iter().filter(|pair| pair.verdict() == Verdict::Unknown).count();
        if unknown > 0 {
            writeln!(f, "Not judged, since p10 and p90 were not measured: {unknown}")?;
        }
        writeln!(
            f,
            "Rows in both records: {}, in the first alone: {}, in the second alone: {}\n",
            self.pairs.len(),
            self.gone.len(),
            self.added.len()
        )?;
        let mut table = plain(&["implementation", "clock", "op", "pass", "dtype", "rows", "new / old"], 5);
        for (key, count, mean) in self.means() {
            let cells = key.into_iter().map(String::from).chain([count.to_string(), format!("{mean:.3}")]);
            table.add_row(cells);
        }
        write!(f, "Geometric means of the times\n{table}")
    }
}

fn changes(rows: &[(f64, &Pair<'_>)]) -> Table {
    let header = ["op", "case", "dtype", "pass", "implementation", "plan", "old ms", "new ms", "new / old"];
    let mut table = plain(&header, 6);
    for (ratio, Pair { old, new }) in rows {
        let plan =
            if old.plan == new.plan { new.plan.clone() } else { format!("{} -> {}", old.plan, new.plan) };
        let implementation = if new.is_wall() {
            format!("{}, wall clock", new.implementation)
        } else {
            new.implementation.clone()
        };
        let time = |record: &Record| record.median_ms.map_or(String::new(), short);
        let [op, case, dtype, pass, ..] = new.key().map(String::from);
        let row = [op, case, dtype, pass, implementation, plan, time(old), time(new), format!("{ratio:.3}")];
        table.add_row(row);
    }
    table
}

/// A table without borders, with right-aligned numbers from column `numbers` on.
#[must_use]
pub fn plain(header: &[&str], numbers: usize) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(comfy_table::ContentArrangement::Disabled)
        .set_header(header);
    for column in table.column_iter_mut().skip(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(case: &str, plan: &str, median: f64, spread: f64) -> Record {
        Record {
            op: "conv3d".into(),
            case: case.into(),
            dtype: "f32".into(),
            pass: "fwd".into(),
            implementation: "ours".into(),
            plan: plan.into(),
            median_ms: Some(median),
            p10_ms: Some(median - spread / 2.0),
            p90_ms: Some(median + spread / 2.0),
            ..Record::default()
        }
    }

    #[test]
    fn only_more_than_the_noise_is_slower() {
        let old = [row("a", "p", 1.0, 0.1)];
        let verdict = |new: Record| Pair { old: &old[0], new: &new }.verdict();
        assert_eq!(verdict(row("a", "p", 1.19, 0.1)), Verdict::Same);
        assert_eq!(verdict(row("a", "p", 1.21, 0.1)), Verdict::Slower);
        assert_eq!(verdict(row("a", "p", 0.79, 0.1)), Verdict::Faster);
        assert_eq!(verdict(row("a", "p", 1.21, 0.3)), Verdict::Same);
        assert_eq!(verdict(Record { p90_ms: None, ..row("a", "p", 9.0, 0.1) }), Verdict::Unknown);
        assert_eq!(verdict(Record { median_ms: None, ..row("a", "p", 9.0, 0.1) }), Verdict::Unknown);
    }

    #[test]
    fn rows_are_paired_by_plan_and_then_without_it() {
        let old = [
            row("a", "p", 1.0, 0.0),
            row("a", "q", 2.0, 0.0),
            row("b", "p", 1.0, 0.0),
            row("c", "p", 1.0, 0.0),
        ];
        let new = [
            row("a", "q", 4.0, 0.0),
            row("a", "p", 2.0, 0.0),
            row("b", "r", 2.0, 0.0),
            row("d", "p", 1.0, 0.0),
        ];
        let comparison = Comparison::of(&old, &new);
        assert_eq!(comparison.pairs.len(), 3);
        assert!(comparison.pairs.iter().all(|pair| pair.ratio() == Some(2.0)));
        assert_eq!((comparison.gone.len(), comparison.added.len()), (1, 1));
        let text = comparison.to_string();
        assert!(text.contains("Slower by more than the noise: 3") && text.contains("p -> r"), "{text}");
        let last: Vec<_> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(last, ["ours", "device", "conv3d", "fwd", "f32", "3", "2.000"]);
    }

    #[test]
    fn devices_and_clocks_are_not_mixed() {
        let old = [row("a", "p", 1.0, 0.0)];
        let new = [
            Record { device: "other".into(), ..row("a", "p", 1.0, 0.0) },
            Record { backend: ", wall clock".into(), ..row("a", "p", 1.0, 0.0) },
        ];
        assert!(Comparison::of(&old, &new).pairs.is_empty());
    }
}
