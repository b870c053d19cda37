//! Bitwise reproducibility of conv3d: every plan in every pass, launched again and again.

use crate::conv3d::{PASSES, inputs, is_run_here, launch, problem, result_shape};
use crate::conv3d_behaviour::bits;
use crate::device::repeats;
use crate::support::{client, dtypes, output, read_all};
use crate::tiers::kind;
use conv_cases::conv3d::{self as cases, Conv3dCase};
use conv_cases::fill;
use conv_kernels::conv3d::{Plan, eligible};
use conv_kernels::{FloatType, Limits};
use conv_testing::is_full;
use std::collections::HashSet;

/// Small problems that have every plan between them.
fn small() -> Vec<Conv3dCase> {
    let padding = [(1, 1); 3];
    let case = |name: &str, x, o, kernel| Conv3dCase { padding, ..Conv3dCase::new(name, x, o, kernel) };
    vec![
        case("repeat", [1, 5, 2, 4, 5], 6, [3; 3]),
        case("repeat_few", [1, 3, 2, 4, 5], 3, [3; 3]),
        Conv3dCase { groups: 8, ..case("repeat_depthwise", [1, 8, 3, 6, 6], 8, [3; 3]) },
        Conv3dCase { groups: 2, ..case("repeat_staged", [1, 2, 3, 16, 15], 2, [3; 3]) },
        Conv3dCase {
            groups: 4,
            stride: [1, 2, 2],
            ..case("repeat_depthwise_strided", [1, 4, 3, 6, 6], 4, [3; 3])
        },
        Conv3dCase {
            padding: [(1, 1), (0, 0), (0, 0)],
            ..Conv3dCase::new("repeat_contiguous", [1, 9, 2, 4, 4], 10, [3, 1, 1])
        },
    ]
}

/// 1,000 launches of each plan (100 on a software device in the quick tier).
#[test]
fn repeats_give_equal_bits() {
    let client = client();
    let limits = Limits::of(&client);
    let types = if is_full() { dtypes() } else { vec![FloatType::F32] };
    let mut repeated = HashSet::new();
    for (case, dtype) in small().iter().flat_map(|case| types.iter().map(move |dtype| (case, *dtype))) {
        let problem = problem(case, dtype);
        let inputs = inputs(&client, &problem, &fill::normal);
        for pass in PASSES {
            let plans = eligible(&problem, pass, &limits).into_iter();
            for plan in plans.filter(|plan| is_run_here(&problem, pass, plan)) {
                // Once each: the small problems share most plans.
                if !repeated.insert((dtype, pass, kind(&plan))) {
                    continue;
                }
                let mut first = None;
                let mut left = repeats(&limits, 100);
                while left > 0 {
                    let count = left.min(100);
                    left -= count;
                    let outputs: Vec<_> = (0..count)
                        .map(|_| {
                            let out = output(&client, &result_shape(&problem, pass), dtype);
                            launch((&client, &limits), &problem, (pass, &plan), &inputs, &out);
                            out
                        })
                        .collect();
                    for result in read_all(&client, &outputs.iter().collect::<Vec<_>>()) {
                        let result = bits(&result);
                        let first = first.get_or_insert_with(|| result.clone());
                        assert!(result == *first, "{case} {} {} {}", dtype.name(), pass.name(), plan.name());
                    }
                }
            }
        }
    }
    println!("{} combinations of plan, pass and type", repeated.len());
    // No case of the table has a plan that is not among them.
    let mut missing = HashSet::new();
    for (case, dtype) in
        cases::conformance().iter().flat_map(|case| types.iter().map(move |dtype| (case, *dtype)))
    {
        let problem = problem(case, dtype);
        for pass in PASSES {
            let plans = eligible(&problem, pass, &limits).into_iter();
            let here = plans.filter(|plan| *plan != Plan::Empty && is_run_here(&problem, pass, plan));
            missing
                .extend(here.map(|plan| (dtype, pass, kind(&plan))).filter(|plan| !repeated.contains(plan)));
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}
