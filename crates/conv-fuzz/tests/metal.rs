//! A fixed seed and the named regressions, on the emitted Metal text.

mod fixed_seed;

use conv_fuzz::device::{Device, Kind};
use conv_fuzz::run::run_named;
use conv_fuzz::text::Case;
use conv_kernels::Limits;

#[test]
fn named_regressions_hold() {
    fixed_seed::named_regressions_hold(Kind::Metal);
}

#[test]
fn lines_that_compare_nothing_fail() {
    fixed_seed::lines_that_compare_nothing_fail(Kind::Metal);
}

#[test]
fn random_problems_match_the_references() {
    fixed_seed::random_problems_match_the_references(Kind::Metal, 100);
}

/// What is launched on the executor is held to every limit of a class.
#[test]
fn a_launch_over_a_limit_is_named() {
    let device = Device::open(Kind::Metal).unwrap_or_else(|error| panic!("{error}"));
    let line = "conv3d x=1,9,2,8,8 o=9 k=1,3,3 bias=1 pass=forward plan=matrix_gemm_64x32x16";
    let case = Case::parse(line).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(run_named(&device, &case), Ok(1));
    let own = device.limits.clone();
    assert_eq!(device.over(&own), None);
    let limits = [
        (Limits { shared_bytes: 1000, ..own.clone() }, "bytes of threadgroup memory, the device has 1000"),
        (Limits { units_per_cube: 32, ..own.clone() }, "threads, the device has 32"),
        (Limits { bindings: 3, ..own.clone() }, "binds 5 buffers, the device has 3"),
        (Limits { buffer_bytes: 64, ..own.clone() }, "bytes, the device has buffers of 64"),
    ];
    for (limits, end) in limits {
        let said = device.over(&limits).unwrap_or_default();
        assert!(said.ends_with(end), "`{said}`, not `{end}`");
    }
}
