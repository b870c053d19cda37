//! Command lines, and what a tier sets.

use super::*;

#[test]
fn records_are_read_without_the_benchmark_program() {
    let parsed = |line: &str| match Cli::parse_from(line.split(' ')).command {
        Task::Bench { vulkan, compare, report, options } => (vulkan, compare, report, options),
        _ => unreachable!("bench"),
    };
    let (vulkan, compare, report, options) = parsed("xtask bench --vulkan --peers --size small");
    assert_eq!((vulkan, compare, report), (true, vec![], None));
    assert_eq!(options, words("--peers --size small"));
    assert_eq!(parsed("xtask bench --compare a.csv b.csv").1, words("a.csv b.csv"));
    let (_, _, report, options) = parsed("xtask bench --report a.csv --plots docs");
    assert_eq!((report, options), (Some("a.csv".into()), words("--plots docs")));
    assert!(Cli::try_parse_from("xtask bench --compare a.csv".split(' ')).is_err());
}

#[test]
fn the_tuner_s_file_is_an_option_of_its_own() {
    let parsed = |line: &str| match Cli::parse_from(line.split(' ')).command {
        Task::Tune { vulkan, out, options } => (vulkan, out, options),
        _ => unreachable!("tune"),
    };
    let (vulkan, out, options) = parsed("xtask tune --out a.txt --size small --device software");
    assert_eq!((vulkan, out), (false, PathBuf::from("a.txt")));
    assert_eq!(options, words("--size small --device software"));
    let (_, out, options) = parsed("xtask tune --record b.csv --chip h200");
    assert_eq!(out, PathBuf::from("bench/results/tune.txt"));
    assert_eq!(options, words("--record b.csv --chip h200"));
}

#[test]
fn full_is_no_option_of_cargo_test() {
    let parsed = |line: &str| match Cli::parse_from(line.split(' ')).command {
        Task::Test { full, options } => (full, options),
        _ => unreachable!("test"),
    };
    assert_eq!(parsed("xtask test"), (false, vec![]));
    assert_eq!(parsed("xtask test --full"), (true, vec![]));
    assert_eq!(parsed("xtask test --full --test burn"), (true, words("--test burn")));
}

#[test]
fn the_full_tier_has_every_launch_and_ten_thousand_properties() {
    let unset = |_: &str| false;
    assert_eq!(
        tier(true, unset),
        [("CONV_TESTS", "full"), ("MSL_HOST_LIBRARIES", "off"), ("PROPTEST_CASES", "10000")]
    );
    assert_eq!(tier(false, unset), [("GALLIVM_PERF", "nopt")]);
    // What a caller sets counts.
    let kept = [("CONV_TESTS", "full"), ("MSL_HOST_LIBRARIES", "off")];
    assert_eq!(tier(true, |name| name == "PROPTEST_CASES"), kept);
    assert_eq!(tier(false, |name| name == "GALLIVM_PERF"), []);
}
