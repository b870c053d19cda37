//! Causal conv1d: every case x dtype x pass x eligible plan against the f64 reference.

mod behaviour;
pub(crate) mod decoding;
mod errors;
mod laws;
mod limits;
mod reference;
mod repeats;
mod states;
pub(crate) mod streaming;
mod tables;
mod views;

use crate::support::client;
use conv_cases::causal_conv1d::{self as cases, Case, SeqIdx};
use conv_cases::fill;
use conv_kernels::causal_conv1d::{CausalConv1dProblem, Conv1dLayout, OptionalShapes, Plan};
use conv_kernels::conv3d::Activation;
use conv_kernels::{FloatType, IndexType, Limits};
pub(crate) use conv_testing::causal_conv1d::*;
use cubecl::prelude::*;
use std::cell::RefCell;
use std::collections::HashSet;

/// The problem of a case.
pub(crate) fn problem(case: &Case, dtype: FloatType, weight_dtype: FloatType) -> CausalConv1dProblem {
    let layout = if case.btc { Conv1dLayout::Btc } else { Conv1dLayout::Bct };
    let x = if case.btc { [case.b, case.t, case.c] } else { [case.b, case.c, case.t] };
    let optional = OptionalShapes {
        bias: case.bias.then_some(case.c),
        initial_state: case.initial.then_some([case.b, case.c, case.w - 1]),
        seq_idx: (case.seq_idx != SeqIdx::None).then_some([case.b, case.t]),
        residual: case.residual.then_some(x),
    };
    let activation = if case.silu { Activation::Silu } else { Activation::None };
    CausalConv1dProblem::new(x, [case.c, case.w], optional, layout, activation, dtype, weight_dtype)
        .unwrap_or_else(|error| panic!("{case}: {error}"))
}

pub(crate) fn normal(seed: u64, length: usize) -> Vec<f32> {
    fill::normal(seed, length)
}

/// Every optional input, both layouts, lengths that are not a multiple of a thread's steps.
pub(crate) fn sample() -> Vec<Case> {
    let base = Case {
        silu: true,
        initial: true,
        seq_idx: SeqIdx::WithPadding,
        residual: true,
        ..Case::new("sample", [2, 5, 37], 4)
    };
    vec![
        base.clone(),
        Case { btc: true, residual: false, ..base.clone() },
        Case { seq_idx: SeqIdx::None, silu: false, c: 40, btc: true, ..base.clone() },
        Case { seq_idx: SeqIdx::None, silu: false, w: 9, t: 5, ..base },
    ]
}

/// Uploads `fill(seed, length)` for each input of the problem.
pub(crate) fn tensors(
    client: &Client,
    problem: &CausalConv1dProblem,
    ids: &[i32],
    with_dfinal: bool,
    fill: &dyn Fn(u64, usize) -> Vec<f32>,
) -> Tensors {
    tensors_with(client, problem, (ids, IndexType::I32), with_dfinal, fill)
}

/// The dtypes of x and weight of the case at `index`: they differ in every third.
fn dtype_pair(dtype: FloatType, index: usize) -> [FloatType; 2] {
    let other = if dtype == FloatType::F32 { FloatType::F16 } else { FloatType::F32 };
    [dtype, if index % 3 == 1 { other } else { dtype }]
}

/// The tests whose tables launch the plans.
pub(crate) const TABLES: [fn(); 7] = [
    tables::f32_bct_matches_the_reference,
    tables::f32_btc_matches_the_reference,
    tables::f16_bct_matches_the_reference,
    tables::f16_btc_matches_the_reference,
    tables::f32_integers_are_exact,
    tables::f16_integers_are_exact,
    behaviour::empty_problems_give_empty_or_zero_results,
];

/// Type, whether time is before channels, and the plans of both passes.
type Launch = (FloatType, bool, [Plan; 2]);

thread_local! {
    /// While there is a set, [`run_with`] notes what it would launch in it, and launches nothing.
    static NOTED: RefCell<Option<HashSet<Launch>>> = const { RefCell::new(None) };
}

/// What `tests` would launch through [`run_with`].
pub(crate) fn noted(tests: impl FnOnce()) -> HashSet<Launch> {
    NOTED.set(Some(HashSet::new()));
    tests();
    NOTED.take().expect("it was set")
}

/// Runs a table with x in `dtype`; with `exact`, integer data, ReLU for SiLU, and no tolerance. Returns the
/// cases whose results were compared, `None` if the device lacks the dtype.
pub(crate) fn run(table: &[Case], dtype: FloatType, exact: bool) -> Option<Vec<Case>> {
    let client = client();
    run_with((&client, &Limits::of(&client)), table, dtype, exact)
}

/// [`run`] with other limits than the device's.
pub(crate) fn run_with(
    (client, limits): (&Client, &Limits),
    table: &[Case],
    dtype: FloatType,
    exact: bool,
) -> Option<Vec<Case>> {
    if !limits.dtypes.contains(&dtype) {
        return None;
    }
    let mut compared = Vec::new();
    let mut failures = Vec::new();
    let mut checks = 0usize;
    for (index, case) in table.iter().enumerate() {
        // A weight of another dtype is a separate kernel: not with every option.
        let plain = case.w <= 4 && !case.initial && case.seq_idx == SeqIdx::None;
        let [dtype, weight_dtype] = if plain { dtype_pair(dtype, index) } else { [dtype; 2] };
        let mut problem = problem(case, dtype, weight_dtype);
        if exact && case.silu {
            problem.activation = Activation::Relu;
        }
        let noted = NOTED.with_borrow_mut(|noted| {
            let launches = plans(&problem, limits).into_iter().map(|plans| (dtype, case.btc, plans));
            noted.as_mut().map(|noted| noted.extend(launches)).is_some()
        });
        if noted {
            compared.push(case.clone());
            continue;
        }
        let ids = (&cases::seq_idx(case)[..], IndexType::I32);
        let (checked, wrong) = check((client, limits), &problem, ids, index % 2 == 0, exact);
        checks += checked;
        // y, the final state, dx, dw and those of the options, under every plan.
        let results = 4 + usize::from(case.bias) + usize::from(case.initial);
        compared.extend((checked == results * plans(&problem, limits).len()).then(|| case.clone()));
        failures.extend(wrong.into_iter().map(|wrong| format!("{case}\n  {wrong}")));
    }
    println!("{} cases, {checks} checks", compared.len());
    assert!(failures.is_empty(), "{} of {checks} checks failed:\n{}", failures.len(), failures.join("\n"));
    Some(compared)
}

/// Checks a problem under every eligible plan: the number of checks, and a line for each that failed.
pub(crate) fn check(
    (client, limits): (&Client, &Limits),
    problem: &CausalConv1dProblem,
    ids: (&[i32], IndexType),
    with_dfinal: bool,
    exact: bool,
) -> (usize, Vec<String>) {
    let integers = |seed: u64, length: usize| fill::integers(seed, length, -3, 3);
    let fill: &dyn Fn(u64, usize) -> Vec<f32> = if exact { &integers } else { &normal };
    let tensors = tensors_with(client, problem, ids, with_dfinal, fill);
    let plans = plans(problem, limits);
    let launched: Vec<_> =
        plans.iter().map(|plans| launch((client, limits), problem, *plans, &tensors)).collect();
    let oracles = oracles(problem, &tensors);
    let (mut checks, mut failures) = (0, Vec::new());
    for (plans, results) in plans.iter().zip(read_results(client, &launched)) {
        assert_eq!(results.len(), oracles.len());
        for ((name, got), oracle) in results.iter().zip(&oracles) {
            checks += 1;
            if let Err(error) = oracle.check(name, got, exact) {
                let [forward, backward] = plans.map(Plan::name);
                let dtypes = format!("{} {}", problem.dtype.name(), problem.weight_dtype.name());
                failures.push(format!("{dtypes} {forward}/{backward} {name}: {error}"));
            }
        }
    }
    (checks, failures)
}
