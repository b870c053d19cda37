//! A fixed seed and the named regressions, on the emitted Metal text.

mod fixed_seed;

use conv_fuzz::device::Kind;

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
