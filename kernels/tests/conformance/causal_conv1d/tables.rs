//! The conformance table in every layout and dtype, with lower bounds on the number of compared cases.

use super::{run, run_with};
use crate::support::client;
use conv_cases::causal_conv1d::{self as cases, Case};
use conv_kernels::causal_conv1d::NARROW_WIDTH;
use conv_kernels::{FloatType, Limits};
use conv_testing::is_full;
use std::collections::HashSet;

fn conformance(btc: bool) -> Vec<Case> {
    cases::conformance().into_iter().filter(|case| case.btc == btc).collect()
}

/// In the quick tier f16 runs every 15th case: f32 covers every width and length, and f16 differs only by
/// conversions. 15 is coprime to the 16 pairs of width and layout.
const THINNED: usize = 15;

/// Runs f16's thinned table in the quick tier; returns whether it did.
fn ran_thinned(table: &[Case], dtype: FloatType, exact: bool) -> bool {
    let thinned = dtype == FloatType::F16 && !is_full();
    if thinned {
        run(&table.iter().step_by(THINNED).cloned().collect::<Vec<_>>(), dtype, exact);
    }
    thinned
}

/// The table of a layout in a dtype. With the exact runs below there are more than a thousand cases in two
/// dtypes: per layout and dtype every width from 1 to 8 at every length around the tile boundaries, and those
/// of options and wide filters.
fn run_layout(btc: bool, dtype: FloatType) {
    let table = conformance(btc);
    if ran_thinned(&table, dtype, false) {
        return;
    }
    let Some(compared) = run(&table, dtype, false) else { return };
    assert!(compared.len() >= 175, "{} cases were compared", compared.len());
    let narrow = compared.iter().filter(|case| case.w <= NARROW_WIDTH).map(|case| (case.t, case.w));
    let pairs = narrow.collect::<HashSet<_>>().len();
    assert!(pairs >= 20 * NARROW_WIDTH, "{pairs} lengths and widths were compared");
}

fn run_exact(dtype: FloatType) {
    let table = cases::conformance();
    if ran_thinned(&table, dtype, true) {
        return;
    }
    let Some(compared) = run(&table, dtype, true) else { return };
    assert!(compared.len() >= 350, "{} cases were compared", compared.len());
}

#[test]
pub(crate) fn f32_bct_matches_the_reference() {
    run_layout(false, FloatType::F32);
}

#[test]
pub(crate) fn f32_btc_matches_the_reference() {
    run_layout(true, FloatType::F32);
}

#[test]
pub(crate) fn f16_bct_matches_the_reference() {
    run_layout(false, FloatType::F16);
}

#[test]
pub(crate) fn f16_btc_matches_the_reference() {
    run_layout(true, FloatType::F16);
}

#[test]
pub(crate) fn f32_integers_are_exact() {
    run_exact(FloatType::F32);
}

#[test]
pub(crate) fn f16_integers_are_exact() {
    run_exact(FloatType::F16);
}

/// The structure for devices that take long straight-line code: four channels of a thread, several slices,
/// 16-bit words in the backward pass, tiles prefetched. 11 is coprime to the 16 pairs of width and layout.
#[test]
fn much_work_per_thread_matches_the_reference() {
    let client = client();
    let limits = Limits { unroll: true, ..Limits::of(&client) };
    for (dtype, step) in [(FloatType::F32, 11), (FloatType::F16, 23)] {
        let table: Vec<_> = cases::conformance().into_iter().step_by(step).collect();
        let Some(compared) = run_with((&client, &limits), &table, dtype, false) else { continue };
        for btc in [false, true] {
            let compared = compared.iter().filter(|case| case.btc == btc && case.w <= NARROW_WIDTH).count();
            assert!(compared >= 4, "{compared} cases were compared, btc {btc}, {}", dtype.name());
        }
    }
}
