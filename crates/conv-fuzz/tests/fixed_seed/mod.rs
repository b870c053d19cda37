//! Tests that run on every device.

use conv_fuzz::device::{Device, Kind};
use conv_fuzz::outcome::Outcome;
use conv_fuzz::run::{Options, fuzz, regressions, run_case};
use conv_fuzz::text::Op;
use std::time::Duration;

/// Every row of `regressions.txt`.
pub(crate) fn named_regressions_hold(kind: Kind) {
    let device = Device::open(kind).unwrap_or_else(|error| panic!("{error}"));
    let all = regressions().unwrap_or_else(|error| panic!("{error}"));
    let mut failures = Vec::new();
    for (name, case) in &all {
        if let Outcome::Failed(failure) = run_case(&device, case) {
            failures.push(format!("{name}: {}: {}\n  {}", failure.kind, failure.message, failure.case));
        }
    }
    assert!(failures.is_empty(), "{} of {} failed:\n{}", failures.len(), all.len(), failures.join("\n"));
}

/// The first problems of seed 1.
pub(crate) fn random_problems_match_the_references(kind: Kind, problems: u64) {
    let device = Device::open(kind).unwrap_or_else(|error| panic!("{error}"));
    let time = Duration::from_secs(600);
    let report =
        fuzz(&device, &Options { seed: 1, first: 0, problems, time, ops: Op::ALL.to_vec(), verbose: false });
    println!("{report}");
    assert!(report.found.is_empty(), "{} failures", report.found.len());
}
