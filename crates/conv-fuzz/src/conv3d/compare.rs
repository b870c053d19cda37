//! Results of a conv3d case against the reference: bounds, exact integers, where non-finite values may be.

use crate::tensors::{check_non_finite, is_guarded};
use crate::text::Case;
use conv_kernels::Limits;
use conv_kernels::conv3d::{Activation, Conv3dProblem, NonFinite, Pass, Plan, WinogradTile, reference};
use conv_kernels::tolerance::{Expected, Guard};
use conv_testing::conv3d::{Inputs, Oracle, check_exact};

pub(super) fn compare(
    case: &Case,
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
    (oracle, inputs): (&Oracle, &Inputs),
    plan: &Plan,
    got: &[f64],
) -> Result<(), String> {
    let integers = case.word("data") == "integers";
    let exact_plan = !matches!(plan, Plan::Winograd(config) if config.tile != WinogradTile::F2x2);
    // Gradients have no activation; the transposed forward pass is the input gradient with one.
    let activates = pass == Pass::Forward || case.word("pass") == "transposed";
    let silu = activates && problem.window.activation == Activation::Silu;
    if case.word("bad") != "none" {
        let spreads = plan.notes(problem, pass, limits).non_finite != NonFinite::Window;
        let expected = oracle.expected(plan, pass, problem.dtype).0;
        // A non-finite magnitude gives no bound.
        let right = |index: usize| {
            let bound = expected.bound(index);
            !bound.is_finite() || (got[index] - expected.values[index]).abs() <= bound
        };
        let channel = |index: usize| spreads || may_be_non_finite(problem, pass, inputs, index);
        return check_non_finite(got, oracle.values(), channel, right);
    }
    if integers && exact_plan && !silu {
        return check_exact(got, oracle.values(), problem.dtype);
    }
    let guarded = !integers && plain_data(case) && is_guarded(&oracle.expected(plan, pass, problem.dtype).0);
    oracle.check(plan, pass, problem.dtype, got, guarded).map(|_| ())
}

/// Whether non-finite values may spread to a result: it belongs to a channel with a non-finite weight, or is
/// the weight gradient of channels one of which has a non-finite element. Plans multiply those by the zeros
/// of the padding and past the last window.
fn may_be_non_finite(problem: &Conv3dProblem, pass: Pass, inputs: &Inputs, index: usize) -> bool {
    let non_finite = |values: Vec<f64>, holds: &dyn Fn(usize) -> bool| {
        (0..values.len()).any(|index| !values[index].is_finite() && holds(index))
    };
    let taps = problem.taps();
    let (c, o) = (problem.channels, problem.out_channels);
    let (group_c, group_o) = (problem.group_channels(), problem.group_out_channels());
    let frame = |shape: [usize; 5]| shape[2..].iter().product::<usize>();
    let (of_x, of_y) = (frame(problem.x_shape()), frame(problem.y_shape()));
    match pass {
        Pass::Forward => {
            let channel = index / of_y % o;
            non_finite(inputs.w.values(), &|at| at / (taps * group_c) == channel)
        }
        Pass::InputGradient => {
            let channel = index / of_x % c;
            let of_weight = |at: usize| at / (taps * group_c) / group_o * group_c + at / taps % group_c;
            non_finite(inputs.w.values(), &|at| of_weight(at) == channel)
        }
        Pass::WeightGradient => {
            let out = index / (taps * group_c);
            let channel = out / group_o * group_c + index / taps % group_c;
            non_finite(inputs.x.values(), &|at| at / of_x % c == channel)
                || non_finite(inputs.dy.values(), &|at| at / of_y % o == out)
        }
    }
}

/// Whether elements are independent, as the RMS guard requires.
fn plain_data(case: &Case) -> bool {
    ["x_view", "w_view", "dy_view"].iter().all(|view| !matches!(case.word(view), "batch" | "inner"))
}

pub(super) fn compare_bias(
    case: &Case,
    problem: &Conv3dProblem,
    inputs: &Inputs,
    db: &[f64],
) -> Result<(), String> {
    let dy = inputs.dy.values();
    let values = reference::bias_gradient(problem, &dy);
    let absolute: Vec<f64> = dy.iter().map(|value| value.abs()).collect();
    let magnitudes = reference::bias_gradient(problem, &absolute);
    let (terms, dtype) = (problem.positions(), problem.dtype);
    let expected = Expected { values: &values, magnitudes: &magnitudes, terms, dtype, slope: 1.0 };
    let named = |error: String| format!("db: {error}");
    if case.word("bad") != "none" {
        let right = |index: usize| (db[index] - values[index]).abs() <= expected.bound(index);
        return check_non_finite(db, &values, |_| false, right).map_err(named);
    }
    if case.word("data") == "integers" {
        return check_exact(db, &values, dtype).map_err(named);
    }
    let guard =
        (plain_data(case) && is_guarded(&expected)).then_some(Guard::WEIGHT_GRADIENT.stored_as(dtype));
    expected.check(db, guard).map(|_| ()).map_err(named)
}
