//! conv3d's long sums, and the gradients of bias and activation.

use crate::conv3d::{self, computed, inputs, launch, padded_work, problem, result_shape};
use crate::conv3d_behaviour::sample;
use crate::device::{EXECUTED, MOST_WORK};
use crate::support::{client, output, upload, upload_strided};
use conv_cases::conv3d::{self as cases, Conv3dCase};
use conv_cases::fill;
use conv_kernels::conv3d::{
    Activation, Conv3dProblem, Pass, Plan, activation_gradient, bias_gradient, eligible, reference,
    weight_and_bias_gradient,
};
use conv_kernels::tolerance::{Expected, Guard};
use conv_kernels::{FloatType, Limits};
use conv_testing::is_full;
use cubecl::prelude::*;

/// Sums of ones, as long as the device allows: a single missing product shows, which no bound on rounding
/// would notice.
#[test]
fn long_sums_are_complete() {
    let client = client();
    let limits = Limits::of(&client);
    let k = limits.loop_iterations.map_or(200_000, |most| (most - 3) * 8);
    for (c, o) in [(k, 1), (1, k)] {
        let case = Conv3dCase { bias: false, ..Conv3dCase::new("long_sums", [1, c, 1, 1, 2], o, [1, 1, 1]) };
        let problem = problem(&case, FloatType::F32);
        let inputs = inputs(&client, &problem, &|_, length| vec![1.0; length]);
        let pass = if c > 1 { Pass::Forward } else { Pass::InputGradient };
        let mut plans = eligible(&problem, pass, &limits);
        if !is_full() {
            // Tiles of 128 channels compute a hundred times what these problems have.
            plans.retain(|plan| padded_work(&problem, pass, plan) <= MOST_WORK);
        }
        for plan in plans {
            let out = output(&client, &result_shape(&problem, pass), FloatType::F32);
            launch((&client, &limits), &problem, (pass, &plan), &inputs, &out);
            assert_eq!(out.read(&client), [k as f64; 2], "{} {}", pass.name(), plan.name());
        }
    }
    // One iteration more is refused where there is a limit.
    if let Some(most) = limits.loop_iterations {
        let case =
            Conv3dCase { bias: false, ..Conv3dCase::new("too_long", [1, most * 8, 1, 1, 1], 1, [1, 1, 1]) };
        let problem = problem(&case, FloatType::F32);
        let inputs = inputs(&client, &problem, &|_, length| vec![1.0; length]);
        let out = output(&client, &problem.y_shape(), FloatType::F32);
        let operands = [inputs.x.operand(), inputs.w.operand(), out.operand()];
        let result = conv_kernels::conv3d::forward(&client, &limits, &problem, &Plan::Direct, operands, None);
        assert_eq!(
            result.unwrap_err().message(),
            format!(
                "conv3d: the forward by direct takes {} loop iterations per thread, this software device \
                 ends loops after {most}",
                // One loop over taps, one over blocks of channels, and the iteration in which each ends.
                most + 3
            )
        );
    }
}

/// Split-K where tiles are few: bias and activation are applied by the second kernel, and the phases of a
/// strided input gradient share their partials.
#[test]
pub(crate) fn split_k_has_the_same_epilogue() {
    let padding = [(1, 1); 3];
    let deep = Conv3dCase { padding, ..Conv3dCase::new("deep", [2, 70, 2, 3, 3], 5, [3, 3, 3]) };
    let strided = Conv3dCase {
        padding,
        stride: [2, 2, 2],
        bias: false,
        ..Conv3dCase::new("strided", [1, 3, 4, 5, 5], 130, [3, 3, 3])
    };
    let activated = |activation, name: &str| Conv3dCase { activation, name: name.into(), ..deep.clone() };
    let cases = [
        activated(cases::Activation::Relu, "deep_relu"),
        activated(cases::Activation::Silu, "deep_silu"),
        strided,
    ];
    conv3d::run_all_tiles(&cases, &fill::normal, false);
}

/// Equal summands are the worst case: every addition rounds in the same direction. The error may only grow
/// with the logarithm of their number, so a million thirds are as exact as a thousand.
#[test]
fn errors_of_long_sums_of_equal_summands_stay_small() {
    let client = client();
    let limits = Limits::of(&client);
    // Few enough positions for the CPU executor to compute in seconds.
    let outputs = if EXECUTED {
        vec![[1, 48, 48], [1, 256, 256]]
    } else {
        vec![[1, 128, 128], [1, 1024, 1024], [1, 2048, 2048], [300, 64, 64]]
    };
    for [d, h, w] in outputs {
        for (kernel, stride) in [([1; 3], [1; 3]), ([3; 3], [1; 3]), ([1, 3, 3], [1, 2, 1])] {
            let case = Conv3dCase {
                stride,
                ..Conv3dCase::new("thirds", [1, 1, d + kernel[0] - 1, h, w], 1, kernel)
            };
            let problem = problem(&case, FloatType::F32);
            let third = 1.0f32 / 3.0;
            let inputs =
                inputs(&client, &problem, &|seed, length| vec![if seed == 4 { third } else { 1.0 }; length]);
            let want = problem.positions() as f64 * f64::from(third);
            for plan in eligible(&problem, Pass::WeightGradient, &limits) {
                // The serial additions of each kernel: see `split.rs`.
                let bound = match plan {
                    Plan::Depthwise(_) | Plan::Direct | Plan::FewOutputs(_) => 1e-6,
                    Plan::Winograd(_) => 2e-5,
                    // 1024 serial additions.
                    _ => 1e-5,
                };
                // GEMM tiles are computed whole, padding included.
                let simple = matches!(plan, Plan::Depthwise(_) | Plan::Direct);
                if !simple && problem.positions() > MOST_WORK / 10_000
                    || plan == Plan::Direct && problem.positions() * problem.taps() > 1 << 20
                {
                    continue;
                }
                for dw in computed((&client, &limits), &problem, (Pass::WeightGradient, &plan), &inputs) {
                    let error = (dw / want - 1.0).abs();
                    assert!(error < bound, "{d}x{h}x{w} {kernel:?} {}: {error:e}", plan.name());
                }
            }
            let db = output(&client, &[1], FloatType::F32);
            bias_gradient(&client, &limits, &problem, inputs.dy.operand(), db.operand()).expect("valid");
            let error = (db.read(&client)[0] / want - 1.0).abs();
            assert!(error < 1e-6, "{d}x{h}x{w}: db {error:e}");
        }
    }
}

/// More partials than a thread adds are added level by level, also where the partials of bias and weight
/// share a workspace: small integers stay exact.
#[test]
fn partials_of_several_levels_are_complete() {
    let client = client();
    let limits = Limits::of(&client);
    let integers = |seed, length| fill::integers(seed, length, -3, 3);
    for (shape, groups, kernel) in [([1, 3, 2, 250, 300], 3, [2, 3, 3]), ([9, 1, 1, 200, 1600], 1, [1; 3])] {
        let case = Conv3dCase { groups, ..Conv3dCase::new("levels", shape, groups, kernel) };
        check_weight_and_bias_gradient((&client, &limits), problem(&case, FloatType::F32), &integers);
    }
}

#[test]
fn bias_gradients_match_the_reference() {
    let client = client();
    let limits = Limits::of(&client);
    let mut shapes: Vec<_> = sample().iter().map(|case| problem(case, FloatType::F32)).collect();
    shapes.push(problem(&Conv3dCase::new("long", [3, 1, 4, 65, 67], 2, [1, 1, 1]), FloatType::F32));
    for problem in shapes {
        check_bias_gradient((&client, &limits), problem);
    }
}

pub(crate) fn check_bias_gradient((client, limits): (&Client, &Limits), mut problem: Conv3dProblem) {
    for &dtype in &limits.dtypes {
        problem.dtype = dtype;
        let values = fill::normal(9, problem.y_shape().iter().product());
        let dy = upload(client, &values, &problem.y_shape(), dtype);
        let db = output(client, &[problem.out_channels], dtype);
        bias_gradient(client, limits, &problem, dy.operand(), db.operand()).expect("valid");
        assert_bias_gradient(&problem, &dy.values(), &db.read(client));
        // The same values with channels fastest in memory.
        let [_, o, d, h, w] = problem.y_shape();
        let strides = [o * d * h * w, 1, h * w * o, w * o, o];
        let last = upload_strided(client, &values, &problem.y_shape(), &strides, dtype);
        let of_last = output(client, &[problem.out_channels], dtype);
        bias_gradient(client, limits, &problem, last.operand(), of_last.operand()).expect("valid");
        assert_eq!(of_last.read(client), db.read(client), "channels last");
    }
}

/// Depthwise plans compute the bias' gradient in the weight gradient's pass over dy; other plans read dy
/// twice.
#[test]
fn weight_and_bias_gradients_in_one_call() {
    let client = client();
    let limits = Limits::of(&client);
    let mut table = cases::depthwise_tiles();
    table.extend(sample().into_iter().filter(|case| case.bias));
    let integers = |seed, length| fill::integers(seed, length, -3, 3);
    let mut depthwise = 0;
    for case in &table {
        let plans = eligible(&problem(case, FloatType::F32), Pass::WeightGradient, &limits);
        depthwise += usize::from(plans.iter().any(|plan| matches!(plan, Plan::Depthwise(_))));
        check_weight_and_bias_gradient((&client, &limits), problem(case, FloatType::F32), &fill::normal);
        check_weight_and_bias_gradient((&client, &limits), problem(case, FloatType::F32), &integers);
    }
    assert!(depthwise > 4 && depthwise < table.len(), "{depthwise} of {}", table.len());
}

/// dw has the bits of the separate call, db matches the reference; under Depthwise where it serves, else
/// Direct.
pub(crate) fn check_weight_and_bias_gradient(
    (client, limits): (&Client, &Limits),
    mut problem: Conv3dProblem,
    fill: &dyn Fn(u64, usize) -> Vec<f32>,
) {
    for &dtype in &limits.dtypes {
        problem.dtype = dtype;
        let plans = eligible(&problem, Pass::WeightGradient, limits);
        let wanted = |plan: &&Plan| matches!(plan, Plan::Depthwise(_) | Plan::Direct);
        let plan = plans.iter().rfind(wanted).expect("Direct serves everything");
        let inputs = inputs(client, &problem, fill);
        let alone = computed((client, limits), &problem, (Pass::WeightGradient, plan), &inputs);
        let [dw, db] = [problem.weight_shape().to_vec(), vec![problem.out_channels]]
            .map(|shape| output(client, &shape, dtype));
        let operands = [inputs.x.operand(), inputs.dy.operand(), dw.operand()];
        weight_and_bias_gradient(client, limits, &problem, plan, operands, db.operand()).expect("valid");
        assert_eq!(dw.read(client), alone, "{problem:?} {}", plan.name());
        let dy = inputs.dy.values();
        let exact = dy.iter().all(|value| value.fract() == 0.0) && dtype == FloatType::F32;
        let got = db.read(client);
        if exact {
            assert_eq!(got, reference::bias_gradient(&problem, &dy), "{problem:?} {}", plan.name());
        }
        assert_bias_gradient(&problem, &dy, &got);
    }
}

/// db against the reference.
fn assert_bias_gradient(problem: &Conv3dProblem, dy: &[f64], got: &[f64]) {
    let absolute: Vec<f64> = dy.iter().map(|value| value.abs()).collect();
    let expected = Expected {
        values: &reference::bias_gradient(problem, dy),
        magnitudes: &reference::bias_gradient(problem, &absolute),
        terms: problem.positions(),
        dtype: problem.dtype,
        slope: 1.0,
    };
    expected.check(got, Some(Guard::WEIGHT_GRADIENT.stored_as(problem.dtype))).expect("db");
}

#[test]
fn activation_gradients_match_the_derivative() {
    let client = client();
    check_activation_gradients((&client, &Limits::of(&client)));
}

pub(crate) fn check_activation_gradients((client, limits): (&Client, &Limits)) {
    let shape = [2, 3, 4, 5, 7];
    let mut values = fill::normal(5, shape.iter().product());
    values[0] = 0.0;
    values[1] = -30.0;
    values[2] = 30.0;
    for &dtype in &limits.dtypes {
        let dy = upload(client, &fill::normal(6, values.len()), &shape, dtype);
        for activation in [Activation::None, Activation::Relu, Activation::Silu] {
            let saved_dtype = if activation == Activation::Silu { FloatType::F32 } else { dtype };
            let saved = upload(client, &values, &shape, saved_dtype);
            let dpre = output(client, &shape, dtype);
            let operands = [saved.operand(), dy.operand(), dpre.operand()];
            activation_gradient(client, limits, activation, operands).expect("valid");
            let want: Vec<f64> = saved
                .values()
                .iter()
                .zip(dy.values())
                .map(|(v, dy)| dy * reference::activation_derivative(activation, *v))
                .collect();
            let magnitudes: Vec<f64> = dy.values().iter().map(|dy| dy.abs() * 1.1).collect();
            let expected = Expected { values: &want, magnitudes: &magnitudes, terms: 24, dtype, slope: 1.0 };
            expected
                .check(&dpre.read(client), None)
                .unwrap_or_else(|error| panic!("{activation:?}: {error}"));
        }
    }
}

/// Input gradients whose windows tile the input: one GEMM with a column per channel and tap, in groups.
#[test]
fn gradients_of_patches_are_exact() {
    let base = Conv3dCase {
        stride: [2, 3, 2],
        bias: false,
        ..Conv3dCase::new("patches", [2, 6, 4, 6, 10], 34, [2, 3, 2])
    };
    let cases = [base.clone(), Conv3dCase { groups: 2, stride: [1, 3, 2], kernel: [1, 3, 2], ..base }];
    conv3d::run(&cases, &|seed, length| fill::integers(seed, length, -4, 4), true);
}
