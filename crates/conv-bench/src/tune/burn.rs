//! What `patch` leaves to Burn, against a record's rows with both.

use crate::conv3d::{cases, problem};
use crate::options::{Options, Size};
use anyhow::Result;
use bench_record::Record;
use bench_record::peers::pairs;
use bench_record::statistics::geometric_mean;
use conv_kernels::conv3d::{Algorithm, burn_seconds, fitted_seconds, plan};
use conv_kernels::{FloatType, Limits};
use std::fmt::Write;

/// A row with both implementations.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) pass: &'static str,
    /// Milliseconds of ours and of Burn's.
    pub(crate) measured: [f64; 2],
    /// The same by the model; none where it has none for Burn's op.
    pub(crate) predicted: Option<[f64; 2]>,
}

impl Row {
    /// Whether the rule leaves it to Burn.
    pub(crate) fn is_left(&self) -> bool {
        self.predicted.is_some_and(|[ours, burns]| ours > burns)
    }

    pub(crate) fn is_faster_by_burn(&self) -> bool {
        self.measured[0] > self.measured[1]
    }
}

/// The rows of single passes by the better clock.
///
/// # Errors
/// For a workload that is no valid problem.
pub(crate) fn rows(records: &[Record], options: &Options, limits: &Limits) -> Result<Vec<Row>> {
    let cases = cases(options, Size::Full);
    let mut rows = Vec::new();
    for (ours, burns) in pairs(records, crate::report::BURN).into_iter().filter(|(row, _)| row.op == "conv3d")
    {
        let pass = super::layers::PASSES.into_iter().find(|(name, _)| *name == ours.pass);
        let dtype = FloatType::ALL.into_iter().find(|dtype| dtype.name() == ours.dtype);
        let case = cases.iter().find(|case| case.name == ours.case);
        let (Some((pass_name, pass)), Some(dtype), Some(case)) = (pass, dtype, case) else { continue };
        let (Some(measured), Some(burns)) = (ours.median_ms, burns.median_ms) else { continue };
        let problem = problem(case, dtype)?;
        let predicted = burn_seconds(&problem, pass, limits).and_then(|burns| {
            let plan = plan(&problem, pass, Algorithm::Auto, limits).ok()?;
            Some([fitted_seconds(&problem, pass, &plan, limits), burns].map(|seconds| 1e3 * seconds))
        });
        let name = case.name.clone();
        rows.push(Row { name, dtype: dtype.name(), pass: pass_name, measured: [measured, burns], predicted });
    }
    Ok(rows)
}

/// How often the rule leaves a row to Burn, how often rightly, and what it is worth; none without rows.
pub(crate) fn summary(rows: &[Row]) -> Option<String> {
    let mean = |left: &dyn Fn(&Row) -> bool| {
        let ratio = |row: &Row| if left(row) { 1.0 } else { row.measured[1] / row.measured[0] };
        geometric_mean(&rows.iter().map(ratio).collect::<Vec<_>>())
    };
    let count = |left: bool, faster: bool| {
        rows.iter().filter(|row| row.is_left() == left && row.is_faster_by_burn() == faster).count()
    };
    let mut text = format!(
        "{} rows with Burn's op, of {} its time is predicted: {} left to Burn, {} rightly; {} kept, {} of them slower; \
         Burn's time over ours {:.4} without the rule, {:.4} with it (geometric means)",
        rows.len(),
        rows.iter().filter(|row| row.predicted.is_some()).count(),
        count(true, true) + count(true, false),
        count(true, true),
        count(false, true) + count(false, false),
        count(false, true),
        mean(&|_| false)?,
        mean(&Row::is_left)?,
    );
    let shown = |row: &&Row| row.is_left() || row.measured[1] < 1.05 * row.measured[0];
    for row in rows.iter().filter(shown) {
        let Row { name, dtype, pass, measured: [ours, burns], predicted } = row;
        let predicted = predicted
            .map_or("not predicted".into(), |[ours, burns]| format!("predicted {ours:.4} and {burns:.4}"));
        let left = if row.is_left() { ", left to Burn" } else { "" };
        let _ =
            write!(text, "\n  {name} {dtype} {pass}: ours {ours:.4} ms, Burn {burns:.4}, {predicted}{left}");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::path::Path;

    fn recorded(name: &str) -> Vec<Row> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benchmarks").join(name);
        let records = bench_record::read(&path).expect("a record");
        rows(&records, &Options::parse_from(["conv-bench"]), &Limits::h200()).expect("rows")
    }

    /// Pointwise layers with short sums, and no row on which Burn was slower.
    #[test]
    fn what_is_left_to_burn_was_faster_there() {
        let rows: Vec<Row> =
            ["2026-11-28-h200.csv", "2026-11-29-h200.csv", "2026-11-30-h200.csv"].map(recorded).concat();
        println!("{}", summary(&rows).expect("rows"));
        assert!(rows.len() > 250 && rows.iter().filter(|row| row.predicted.is_some()).count() > 30);
        let left: Vec<_> = rows.iter().filter(|row| row.is_left()).map(|row| row.name.as_str()).collect();
        assert_eq!(left, ["2d_resnet50_1x1_64_256", "2d_resnet50_1x1_s2_256_512"]);
        assert!(rows.iter().filter(|row| row.is_left()).all(Row::is_faster_by_burn));
        // Not at the edge: what is kept is predicted to be a fifth faster at least.
        let kept = rows.iter().filter(|row| !row.is_left()).filter_map(|row| row.predicted);
        assert!(kept.clone().all(|[ours, burns]| ours < 0.8 * burns));
    }
}
