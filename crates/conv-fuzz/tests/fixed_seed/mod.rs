//! Tests that run on every device.

use conv_fuzz::device::{Device, Kind};
use conv_fuzz::run::{Options, fuzz, regressions, run_named};
use conv_fuzz::text::{Case, Op};
use std::time::Duration;

/// Every row of `regressions.txt`, and that something is compared for each of them.
pub(crate) fn named_regressions_hold(kind: Kind) {
    let device = Device::open(kind).unwrap_or_else(|error| panic!("{error}"));
    let all = regressions().unwrap_or_else(|error| panic!("{error}"));
    let failures: Vec<String> = all
        .iter()
        .filter_map(|(name, case)| Some(format!("{name}: {}", run_named(&device, case).err()?)))
        .collect();
    assert!(failures.is_empty(), "{} of {} failed:\n{}", failures.len(), all.len(), failures.join("\n"));
}

/// A line that compares nothing fails, with its text.
pub(crate) fn lines_that_compare_nothing_fail(kind: Kind) {
    let device = Device::open(kind).unwrap_or_else(|error| panic!("{error}"));
    for line in ["conv3d plan=shifted_gemm_64x64", "causal_conv1d plan=narrow", "conv3d k=1,1,2"] {
        let case = Case::parse(line).unwrap_or_else(|error| panic!("{error}"));
        let error = run_named(&device, &case).expect_err(line);
        assert!(error.starts_with("nothing was compared: ") && error.ends_with(line), "{error}");
    }
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
