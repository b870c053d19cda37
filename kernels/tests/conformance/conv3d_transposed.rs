//! The transposed forward pass under every plan of an input gradient: bias and activation are fused with one
//! rounding, and keeping the value before the activation changes no bit of y.

use crate::conv3d::{Oracle, check_exact, inputs, is_run_here, one_tile_each, padded_work, problem};
use crate::device::MOST_WORK;
use crate::support::{Buffer, client, dtypes, output, read_all, round};
use conv_cases::conv3d::{self as cases, Activation, Conv3dCase};
use conv_cases::fill;
use conv_kernels::conv3d::{
    Conv3dProblem, Pass, Plan, WinogradTile, eligible, reference, transposed_forward,
    transposed_forward_with_pre,
};
use conv_kernels::{FloatType, Limits, Operand};
use conv_testing::conv3d::{transposed_bias, try_launch_transposed};
use conv_testing::is_full;
use cubecl::prelude::*;

/// A case whose input gradient is a transposed convolution: padding with zeros.
pub(crate) fn is_transposed(case: &Conv3dCase) -> bool {
    case.padding_modes() == [cases::Padding::Zeros; 3]
}

/// Compares y with the reference under the plans that `pick` picks, exactly for integers; y of the call that
/// keeps the value before the activation with y bit by bit, and the value with the reference.
pub(crate) fn check(
    (client, limits): (&Client, &Limits),
    table: &[Conv3dCase],
    fill: &dyn Fn(u64, usize) -> Vec<f32>,
    exact: bool,
    pick: fn(&Conv3dProblem, Vec<Plan>, usize) -> Vec<Plan>,
) -> usize {
    let mut failures = Vec::new();
    let mut checks = 0;
    let calls = table.iter().flat_map(|case| limits.dtypes.iter().map(move |dtype| (case, *dtype)));
    for (round, (case, dtype)) in calls.filter(|(case, _)| is_transposed(case)).enumerate() {
        let problem = problem(case, dtype);
        let inputs = inputs(client, &problem, fill);
        let bias = transposed_bias(client, &problem, fill);
        let of = (&inputs, bias.as_ref());
        let plans = pick(&problem, eligible(&problem, Pass::InputGradient, limits), round);
        let oracle = Oracle::transposed(&problem, of, &plans);
        let plain = Conv3dProblem { window: without_activation(&problem), ..problem };
        let before = Oracle::transposed(&plain, of, &plans);
        let bias = bias.as_ref().map(Buffer::operand);
        let shape = problem.x_shape();
        for plan in &plans {
            let what = format!("{case} {} {}", dtype.name(), plan.name());
            let [fused, y] = [(); 2].map(|()| output(client, &shape, dtype));
            let pre = output(client, &shape, FloatType::F32);
            try_launch_transposed((client, limits), &problem, plan, of, &fused).expect(&what);
            let operands = [inputs.dy.operand(), inputs.w.operand(), y.operand()];
            transposed_forward_with_pre(client, limits, &problem, plan, operands, pre.operand(), bias)
                .expect(&what);
            let [fused, y, pre] = &read_all(client, &[&fused, &y, &pre])[..] else { unreachable!() };
            let inexact = matches!(plan, Plan::Winograd(config) if config.tile != WinogradTile::F2x2);
            let compare = |oracle: &Oracle, dtype, got: &[f64]| {
                if exact && !inexact {
                    check_exact(got, oracle.values(), dtype)
                } else {
                    oracle.check(plan, Pass::InputGradient, dtype, got, !exact).map(|_| ())
                }
            };
            let same = fused.iter().zip(y).all(|(a, b)| a.to_bits() == b.to_bits());
            let results = [
                compare(&oracle, dtype, fused),
                compare(&before, FloatType::F32, pre),
                if same { Ok(()) } else { Err("y depends on whether the value before is kept".into()) },
            ];
            failures
                .extend(results.into_iter().filter_map(|result| Some(format!("{what}: {}", result.err()?))));
            checks += 1;
        }
    }
    assert!(failures.is_empty(), "{} failures in {checks} checks:\n{}", failures.len(), failures.join("\n"));
    checks
}

fn without_activation(problem: &Conv3dProblem) -> conv_kernels::conv3d::Window {
    conv_kernels::conv3d::Window { activation: conv_kernels::conv3d::Activation::None, ..problem.window }
}

/// One tile of each kind, of the plans that this device runs.
fn some(problem: &Conv3dProblem, mut plans: Vec<Plan>, round: usize) -> Vec<Plan> {
    plans.retain(|plan| {
        is_run_here(problem, Pass::InputGradient, plan)
            && padded_work(problem, Pass::InputGradient, plan) <= MOST_WORK
    });
    one_tile_each(plans, round)
}

/// Shapes that reach every plan of an input gradient, split-K among them. Windows that tile the result have a
/// column for each tap; strided ones leave positions without a product, along one axis or behind the last.
fn bases() -> Vec<Conv3dCase> {
    let padding = [(1, 1); 3];
    let case = |name: &str, x, o, kernel| Conv3dCase { bias: true, ..Conv3dCase::new(name, x, o, kernel) };
    let mut bases = vec![
        Conv3dCase { padding, ..case("volume", [1, 9, 3, 6, 7], 10, [3, 3, 3]) },
        Conv3dCase { stride: [2; 3], ..case("tiled", [2, 5, 4, 6, 8], 7, [2, 2, 2]) },
        Conv3dCase { stride: [2; 3], groups: 2, ..case("tiled_groups", [1, 6, 2, 4, 6], 4, [2, 2, 2]) },
        Conv3dCase { stride: [1, 2, 2], ..case("tiled_frames", [1, 33, 2, 4, 4], 70, [1, 2, 2]) },
        Conv3dCase { padding, stride: [2; 3], ..case("phases", [1, 8, 4, 6, 7], 6, [3, 3, 2]) },
        Conv3dCase {
            padding,
            stride: [2; 3],
            dilation: [1, 2, 1],
            groups: 2,
            ..case("strided", [1, 8, 6, 9, 7], 6, [3, 3, 2])
        },
        Conv3dCase { stride: [3, 2, 3], ..case("gaps", [1, 5, 5, 6, 8], 9, [1, 1, 2]) },
        Conv3dCase { padding, groups: 8, ..case("depthwise", [1, 8, 4, 6, 6], 8, [3, 3, 3]) },
        Conv3dCase { padding, groups: 2, ..case("staged", [1, 2, 3, 16, 15], 2, [3, 3, 3]) },
        Conv3dCase { stride: [1, 3, 2], groups: 3, ..case("depthwise_gaps", [2, 3, 3, 8, 7], 3, [3, 2, 2]) },
        Conv3dCase { padding, ..case("few", [1, 3, 5, 9, 17], 5, [3, 3, 3]) },
        Conv3dCase { padding, stride: [1, 2, 2], ..case("few_strided", [2, 3, 3, 9, 11], 18, [3, 4, 4]) },
        Conv3dCase {
            padding: [(1, 1), (0, 0), (0, 0)],
            ..case("contiguous", [1, 65, 3, 4, 8], 33, [3, 1, 1])
        },
        Conv3dCase { padding, ..case("deep", [2, 5, 2, 3, 3], 70, [3, 3, 3]) },
        Conv3dCase { padding, ..case("deep_few", [1, 2, 1, 4, 4], 130, [3, 3, 3]) },
        Conv3dCase { stride: [9, 9, 9], ..case("many_phases", [1, 2, 9, 10, 11], 2, [2, 1, 3]) },
        case("empty", [0, 3, 2, 3, 3], 4, [1, 1, 1]),
        case("no_channels", [2, 3, 2, 3, 3], 0, [1, 1, 1]),
    ];
    bases.push(Conv3dCase { bias: false, ..bases[1].clone() });
    bases.push(Conv3dCase { bias: false, ..bases[11].clone() });
    bases
}

/// Activations take turns, and tiles with them.
fn table() -> Vec<Conv3dCase> {
    let activations = [Activation::Silu, Activation::None, Activation::Relu];
    let with = |(place, case): (usize, Conv3dCase)| Conv3dCase { activation: activations[place % 3], ..case };
    bases().into_iter().enumerate().map(with).collect()
}

#[test]
fn every_plan_fuses_bias_and_activation() {
    let client = client();
    let limits = Limits { dtypes: dtypes(), ..Limits::of(&client) };
    let mut table = table();
    if is_full() {
        table.extend(cases::conformance());
    }
    let checks = check((&client, &limits), &table, &fill::normal, false, some);
    println!("{checks} plans");
    assert!(checks >= 20 * limits.dtypes.len(), "{checks} plans");
}

#[test]
fn integers_with_a_bias_are_exact() {
    let client = client();
    let limits = Limits { dtypes: vec![FloatType::F32], ..Limits::of(&client) };
    let table: Vec<_> =
        bases().into_iter().map(|case| Conv3dCase { activation: Activation::Relu, ..case }).collect();
    let integers = |seed, length| fill::integers(seed, length, -4, 4);
    check((&client, &limits), &table, &integers, true, some);
}

/// Sums that are multiples of a half type's roundoff, biases of half of that: rounding the sum first, to
/// even, loses what decides how y is rounded.
#[test]
fn halves_are_rounded_once() {
    let client = client();
    let all = Limits::of(&client);
    for dtype in all.dtypes.iter().copied().filter(|dtype| *dtype != FloatType::F32) {
        let unit = dtype.unit_roundoff() as f32;
        let fill = move |seed: u64, length: usize| -> Vec<f32> {
            let steps = fill::integers(seed, length, 0, 2);
            match seed {
                4 => vec![1.0; length],
                5 => steps.iter().map(|step| unit * (0.5 + step)).collect(),
                _ => steps.iter().map(|step| [0.0, 1.0, unit][*step as usize]).collect(),
            }
        };
        let picked = ["volume", "tiled", "phases", "depthwise", "few", "few_strided", "deep", "many_phases"];
        let table: Vec<_> =
            bases().into_iter().filter(|case| case.bias && picked.contains(&&*case.name)).collect();
        let limits = Limits { dtypes: vec![dtype], ..all.clone() };
        check((&client, &limits), &table, &fill, true, some);

        let mut differ = 0;
        for case in &table {
            let problem = problem(case, dtype);
            let inputs = inputs(&client, &problem, &fill);
            let sums = reference::input_gradient(&problem, &inputs.w.values(), &inputs.dy.values());
            let bias = transposed_bias(&client, &problem, &fill).expect("a bias").values();
            let positions = problem.input.iter().product::<usize>();
            for (index, sum) in sums.iter().enumerate() {
                let bias = bias[index / positions % problem.channels];
                let twice = round(round(*sum as f32, dtype) + bias as f32, dtype);
                differ += usize::from(twice != round((sum + bias) as f32, dtype));
            }
        }
        assert!(differ >= 50, "{}: two roundings differ from one in {differ} elements", dtype.name());
    }
}

#[test]
fn what_is_not_a_transposed_convolution_is_refused() {
    let client = client();
    let limits = Limits::of(&client);
    let case = Conv3dCase { padding: [(1, 1); 3], ..Conv3dCase::new("small", [1, 2, 1, 2, 2], 3, [1, 1, 1]) };
    let refusal = |case: &Conv3dCase, bias: Option<&Operand>| {
        let problem = problem(case, FloatType::F32);
        let inputs = inputs(&client, &problem, &fill::normal);
        let y = output(&client, &problem.x_shape(), FloatType::F32);
        let operands = [inputs.dy.operand(), inputs.w.operand(), y.operand()];
        let result = transposed_forward(&client, &limits, &problem, &Plan::Direct, operands, bias);
        result.expect_err("a refusal").to_string()
    };
    assert_eq!(
        refusal(&Conv3dCase { replicate: true, ..case.clone() }, None),
        "conv3d: a transposed convolution has padding with zeros, the problem's is [Replicate, Replicate, \
         Replicate]"
    );
    let bias = output(&client, &[3], FloatType::F32);
    assert_eq!(
        refusal(&case, Some(bias.operand())),
        "conv3d: the transposed convolution's bias is f32 of shape [3], the problem needs f32 of shape [2]"
    );
}
