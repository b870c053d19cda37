//! Metamorphic tests, without a reference: what batch, channels, stride, padding and dilation mean, and that
//! gradients are adjoint. Data are small integers, so that every sum is exact and results are compared for
//! equality.

use crate::conv3d::{Inputs, computed, problem};
use crate::support::{Buffer, client, upload};
use conv_cases::conv3d::{Conv3dCase, Padding};
use conv_cases::fill;
use conv_kernels::conv3d::reference::source;
use conv_kernels::conv3d::{Algorithm, Conv3dProblem, Pass, Plan, WinogradTile, eligible, plan};
use conv_kernels::{FloatType, Limits};
use cubecl::prelude::*;

/// Windows of every kind: dense, strided, dilated, grouped, depthwise, one tap along H and W, many taps, few
/// channels.
fn cases() -> Vec<Conv3dCase> {
    let new = |name: &str, x, o, kernel| Conv3dCase { bias: false, ..Conv3dCase::new(name, x, o, kernel) };
    let same = [(1, 1); 3];
    vec![
        Conv3dCase { padding: same, ..new("law_3x3x3", [2, 5, 3, 6, 7], 6, [3, 3, 3]) },
        Conv3dCase {
            stride: [2, 2, 3],
            padding: [(1, 1), (0, 2), (1, 0)],
            ..new("law_strided", [2, 9, 5, 7, 8], 8, [3, 3, 2])
        },
        Conv3dCase {
            padding: [(2, 3), (1, 1), (4, 1)],
            modes: Some([Padding::Circular, Padding::Zeros, Padding::Reflect]),
            ..new("law_modes", [2, 4, 6, 6, 9], 9, [3, 3, 2])
        },
        Conv3dCase {
            dilation: [2, 3, 2],
            padding: [(2, 2), (3, 3), (1, 3)],
            replicate: true,
            ..new("law_dilated", [2, 4, 4, 6, 5], 3, [2, 3, 3])
        },
        Conv3dCase { groups: 3, stride: [1, 2, 1], ..new("law_groups", [2, 6, 3, 5, 9], 9, [2, 3, 3]) },
        Conv3dCase { groups: 7, padding: same, ..new("law_depthwise", [2, 7, 4, 6, 8], 7, [3, 3, 3]) },
        Conv3dCase {
            stride: [1, 2, 1],
            padding: [(1, 1), (0, 0), (0, 0)],
            ..new("law_one_tap_in_the_plane", [2, 16, 4, 8, 8], 17, [3, 1, 1])
        },
        Conv3dCase {
            padding: [(5, 6), (0, 0), (6, 5)],
            replicate: true,
            ..new("law_many_taps", [2, 3, 3, 2, 5], 5, [12, 1, 11])
        },
        Conv3dCase { padding: same, ..new("law_few_results", [2, 12, 3, 6, 6], 2, [3, 3, 3]) },
    ]
}

fn integers(seed: u64, length: usize) -> Vec<f32> {
    fill::integers(seed, length, -3, 3)
}

/// Row-major values of a problem's tensors.
struct Values {
    x: Vec<f32>,
    w: Vec<f32>,
    dy: Vec<f32>,
}

fn values(problem: &Conv3dProblem) -> Values {
    let of = |seed, shape: [usize; 5]| integers(seed, shape.iter().product());
    Values { x: of(1, problem.x_shape()), w: of(2, problem.weight_shape()), dy: of(3, problem.y_shape()) }
}

fn upload_all(client: &Client, problem: &Conv3dProblem, values: &Values) -> Inputs {
    let of = |values: &[f32], shape: [usize; 5]| upload(client, values, &shape, problem.dtype);
    Inputs {
        x: of(&values.x, problem.x_shape()),
        w: of(&values.w, problem.weight_shape()),
        bias: None,
        residual: None,
        dy: of(&values.dy, problem.y_shape()),
    }
}

/// A pass under the automatic plan.
fn automatic(client: &Client, problem: &Conv3dProblem, pass: Pass, values: &Values) -> Vec<f64> {
    let limits = Limits::of(client);
    let plan = plan(problem, pass, Algorithm::NoWinograd, &limits).expect("a plan");
    computed((client, &limits), problem, (pass, &plan), &upload_all(client, problem, values))
}

/// Plans whose sums of integers are exact.
fn exact_plans(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Vec<Plan> {
    let mut plans = eligible(problem, pass, limits);
    plans.retain(|plan| !matches!(plan, Plan::Winograd(config) if config.tile != WinogradTile::F2x2));
    plans
}

/// Checks that every plan of `problem` computes `want` for a pass.
fn holds(client: &Client, what: &str, problem: &Conv3dProblem, pass: Pass, values: &Values, want: &[f64]) {
    let limits = Limits::of(client);
    let inputs = upload_all(client, problem, values);
    for plan in exact_plans(problem, pass, &limits) {
        let got = computed((client, &limits), problem, (pass, &plan), &inputs);
        assert!(got == want, "{what}: {} {}: {problem:?}", pass.name(), plan.name());
    }
}

/// Coordinates of an element of a row-major tensor.
fn coordinates(shape: [usize; 5], mut index: usize) -> [usize; 5] {
    let mut at = [0; 5];
    for axis in (0..5).rev() {
        at[axis] = index % shape[axis];
        index /= shape[axis];
    }
    at
}

/// A row-major tensor of `shape` whose element at each coordinate is `of` it.
fn tensor<T>(shape: [usize; 5], of: impl Fn([usize; 5]) -> T) -> Vec<T> {
    (0..shape.iter().product()).map(|index| of(coordinates(shape, index))).collect()
}

/// The element of a row-major tensor at `coordinates`.
fn at<T: Copy>(values: &[T], shape: [usize; 5], coordinates: [usize; 5]) -> T {
    values[coordinates.iter().zip(shape).fold(0, |index, (at, size)| index * size + at)]
}

#[test]
fn images_of_a_batch_are_independent() {
    let client = client();
    for case in cases() {
        let whole = problem(&case, FloatType::F32);
        let one = Conv3dProblem { batch: 1, ..whole };
        let all = values(&whole);
        let of_image =
            |values: &[f32], image: usize| values.chunks(values.len() / 2).nth(image).map(<[f32]>::to_vec);
        for pass in [Pass::Forward, Pass::InputGradient] {
            let images = [0, 1].map(|image| {
                let (x, dy) = (of_image(&all.x, image).expect("two"), of_image(&all.dy, image).expect("two"));
                automatic(&client, &one, pass, &Values { x, dy, w: all.w.clone() })
            });
            holds(&client, "batch", &whole, pass, &all, &images.concat());
        }
        let sums = [0, 1].map(|image| {
            let (x, dy) = (of_image(&all.x, image).expect("two"), of_image(&all.dy, image).expect("two"));
            automatic(&client, &one, Pass::WeightGradient, &Values { x, dy, w: all.w.clone() })
        });
        let sum: Vec<f64> = sums[0].iter().zip(&sums[1]).map(|(a, b)| a + b).collect();
        holds(&client, "batch", &whole, Pass::WeightGradient, &all, &sum);
    }
}

#[test]
fn channels_may_be_permuted() {
    let client = client();
    for case in cases().into_iter().filter(|case| case.groups == 1) {
        let problem = problem(&case, FloatType::F32);
        let all = values(&problem);
        let (c, o) = (problem.channels, problem.out_channels);
        // Input channels reversed, output channels rotated by one.
        let (of_c, of_o) = (|index: usize| c - 1 - index, |index: usize| (index + 1) % o);
        let permuted = Values {
            x: tensor(problem.x_shape(), |[n, c, d, h, w]| {
                at(&all.x, problem.x_shape(), [n, of_c(c), d, h, w])
            }),
            w: tensor(problem.weight_shape(), |[o, c, d, h, w]| {
                at(&all.w, problem.weight_shape(), [of_o(o), of_c(c), d, h, w])
            }),
            dy: all.dy.clone(),
        };
        let y = automatic(&client, &problem, Pass::Forward, &all);
        let want =
            tensor(problem.y_shape(), |[n, o, d, h, w]| at(&y, problem.y_shape(), [n, of_o(o), d, h, w]));
        holds(&client, "channels", &problem, Pass::Forward, &permuted, &want);
    }
}

#[test]
fn a_stride_of_s_takes_every_sth_window() {
    let client = client();
    for mut case in cases() {
        if case.stride == [1; 3] {
            case.stride = [2, 1, 3];
        }
        let strided = problem(&case, FloatType::F32);
        let dense = problem(&Conv3dCase { stride: [1; 3], ..case.clone() }, FloatType::F32);
        let all = values(&strided);
        let y =
            automatic(&client, &dense, Pass::Forward, &Values { dy: values(&dense).dy, ..values(&strided) });
        let [sd, sh, sw] = case.stride;
        let want = tensor(strided.y_shape(), |[n, o, d, h, w]| {
            at(&y, dense.y_shape(), [n, o, d * sd, h * sh, w * sw])
        });
        holds(&client, "stride", &strided, Pass::Forward, &all, &want);
        // dy is 0 at the windows that the stride skips.
        let dy = tensor(dense.y_shape(), |[n, o, d, h, w]| {
            let taken = d % sd == 0 && h % sh == 0 && w % sw == 0;
            if taken { at(&all.dy, strided.y_shape(), [n, o, d / sd, h / sh, w / sw]) } else { 0.0 }
        });
        let spread = Values { x: all.x.clone(), w: all.w.clone(), dy };
        for pass in [Pass::InputGradient, Pass::WeightGradient] {
            let want = automatic(&client, &dense, pass, &spread);
            holds(&client, "stride", &strided, pass, &all, &want);
        }
    }
}

#[test]
fn padding_equals_an_explicitly_padded_input() {
    let client = client();
    for case in cases() {
        let padded = problem(&case, FloatType::F32);
        let extents: [usize; 3] =
            [0, 1, 2].map(|axis| padded.input[axis] + case.padding[axis].0 + case.padding[axis].1);
        let [d, h, w] = extents;
        let plain = problem(
            &Conv3dCase { d, h, w, padding: [(0, 0); 3], replicate: false, modes: None, ..case.clone() },
            FloatType::F32,
        );
        let all = values(&padded);
        let x = tensor(plain.x_shape(), |[n, c, d, h, w]| {
            let coordinates = [d, h, w];
            let inside = [0, 1, 2]
                .map(|axis| source(&padded, axis, coordinates[axis] as i64 - case.padding[axis].0 as i64));
            match inside {
                [Some(d), Some(h), Some(w)] => at(&all.x, padded.x_shape(), [n, c, d, h, w]),
                _ => 0.0,
            }
        });
        let explicit = Values { x, w: all.w.clone(), dy: all.dy.clone() };
        for pass in [Pass::Forward, Pass::WeightGradient] {
            let want = automatic(&client, &plain, pass, &explicit);
            holds(&client, "padding", &padded, pass, &all, &want);
        }
    }
}

#[test]
fn dilation_is_a_filter_with_zeros_between() {
    let client = client();
    for mut case in cases() {
        if case.dilation == [1; 3] {
            case.dilation = [2, 1, 2];
            case.padding = [0, 1, 2].map(|axis| {
                let (low, high) = case.padding[axis];
                (low + case.kernel[axis], high + 1)
            });
        }
        let dilated = problem(&case, FloatType::F32);
        let kernel = [0, 1, 2].map(|axis| dilated.axis(axis).span());
        let dense = problem(&Conv3dCase { kernel, dilation: [1; 3], ..case.clone() }, FloatType::F32);
        let all = values(&dilated);
        let w = tensor(dense.weight_shape(), |[o, c, d, h, w]| {
            let coordinates = [d, h, w];
            let taps = [0, 1, 2].map(|axis| {
                let step = case.dilation[axis];
                coordinates[axis].is_multiple_of(step).then_some(coordinates[axis] / step)
            });
            match taps {
                [Some(d), Some(h), Some(w)] => at(&all.w, dilated.weight_shape(), [o, c, d, h, w]),
                _ => 0.0,
            }
        });
        let spread = Values { x: all.x.clone(), w, dy: all.dy.clone() };
        for pass in [Pass::Forward, Pass::InputGradient] {
            let want = automatic(&client, &dense, pass, &spread);
            holds(&client, "dilation", &dilated, pass, &all, &want);
        }
    }
}

/// `<conv(x, w), g> = <x, dx(w, g)> = <w, dw(x, g)>`, in integers.
#[test]
fn gradients_are_adjoint() {
    let client = client();
    let limits = Limits::of(&client);
    let dot = |a: &[f64], b: &Buffer| -> f64 { a.iter().zip(b.values()).map(|(a, b)| a * b).sum() };
    for case in cases() {
        let problem = problem(&case, FloatType::F32);
        let inputs = upload_all(&client, &problem, &values(&problem));
        let mut products = Vec::new();
        for (pass, other) in
            [(Pass::Forward, &inputs.dy), (Pass::InputGradient, &inputs.x), (Pass::WeightGradient, &inputs.w)]
        {
            for plan in exact_plans(&problem, pass, &limits) {
                let got = computed((&client, &limits), &problem, (pass, &plan), &inputs);
                products.push((pass.name(), plan.name(), dot(&got, other)));
            }
        }
        let want = products[0].2;
        for (pass, plan, product) in products {
            assert_eq!(product, want, "{case}: {pass} {plan}");
        }
    }
}
