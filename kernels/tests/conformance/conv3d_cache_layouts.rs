//! Which layouts of x and a cache the plans read that branch for frames as a whole.

use crate::conv3d::problem;
use crate::support::{client, output};
use conv_cases::conv3d::Conv3dCase;
use conv_kernels::conv3d::{Pass, Plan, eligible, reads_cache};
use conv_kernels::{FloatType, Limits, Operand};

/// Strides of axes of size one differ between tensors of one layout: no plan gives way to `Direct` for them.
#[test]
fn strides_of_axes_of_size_one_are_not_compared() {
    let client = client();
    let limits = Limits { matrices: vec![(FloatType::F32, 8)], ..Limits::of(&client) };
    let case = Conv3dCase::new("stream_column", [1, 16, 4, 9, 1], 3, [3, 3, 1]);
    let problem = problem(&case, FloatType::F32).for_streams();
    let buffer = output(&client, &[1, 16, 2, 9, 1], FloatType::F32);
    let with = |axis: usize, stride: usize| {
        let mut operand: Operand = buffer.operand().clone();
        operand.strides[axis] = stride;
        operand
    };
    let plans = eligible(&problem, Pass::Forward, &limits);
    for kind in ["window", "few_outputs"] {
        let plan = plans.iter().find(|plan| plan.name().starts_with(kind)).expect("some serve the problem");
        assert!(matches!(plan, Plan::Window(_) | Plan::FewOutputs(_)), "{}", plan.name());
        assert!(reads_cache(plan, &with(4, 1), &with(4, 9)), "{kind}");
        assert!(!reads_cache(plan, &with(3, 1), &with(3, 2)), "{kind}");
    }
}
