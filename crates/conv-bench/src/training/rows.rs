//! The record's rows of a step, whose operations and bytes nobody counts.

use crate::bench::{Bench, Row, named};
use crate::measure::Times;
use crate::verify::Deviation;
use anyhow::Result;
use bench_record::Record;
use bench_record::record::WALL_CLOCK;
use bench_record::statistics::digits;

/// The pass of a first step in the record.
const FIRST: &str = "first";

/// What was measured of one implementation's step.
pub(super) struct Measured {
    /// Seconds of the first step.
    pub(super) first: f64,
    pub(super) times: Times,
    pub(super) deviation: Deviation,
    /// Whether loss and gradients are those of a correct step.
    pub(super) verified: bool,
}

/// Writes what both clocks say, then the first step by the host's clock.
pub(super) fn write(bench: &mut Bench, row: &Row, implementation: &str, step: &Measured) -> Result<()> {
    let compared = |blank: Record| Record {
        max_err: Some(digits(step.deviation.max)),
        rms_err: Some(digits(step.deviation.rms)),
        verified: Some(step.verified),
        ..blank
    };
    bench.write_clocks(row, implementation, step.times, false, |blank, samples| Record {
        median_ms: Some(digits(samples.median)),
        p10_ms: Some(digits(samples.p10)),
        p90_ms: Some(digits(samples.p90)),
        ..compared(blank)
    })?;
    let blank = Record {
        pass: FIRST.into(),
        implementation: implementation.into(),
        plan: row.plan.clone(),
        device: bench.device.name.clone(),
        backend: format!("{}{WALL_CLOCK}", bench.device.backend),
        median_ms: Some(digits(step.first * 1e3)),
        ..named(row)
    };
    bench.report.push(compared(blank), row.chosen, false)
}
