//! NaN and infinities through Burn: the CPU backend and the GPU device keep the contract that stands at
//! [`burn_conv_ops::conv3d`].

use crate::conv3d::{options, problem};
use crate::support::{devices, upload, values};
use burn::tensor::Device;
use burn_conv_ops::{Algorithm, conv3d};
use conv_cases::conv3d::Conv3dCase;
use conv_cases::fill;
use conv_kernels::conv3d::reference::{self, Reach, reach};
use conv_kernels::conv3d::{Conv3dProblem, Pass};

/// y, dx and dw of x, w and dy.
fn run(case: &Conv3dCase, [x, w, dy]: [&[f32]; 3], device: &Device) -> [Vec<f64>; 3] {
    let device = device.clone().autodiff();
    let x = upload(x, case.input_shape(), &device).require_grad();
    let w = upload(w, case.weight_shape(), &device).require_grad();
    let dy = upload(dy, case.output_shape(), &device);
    // Winograd spreads what is not finite over its tiles.
    let y = conv3d(x.clone(), w.clone(), None, options(case).with_algorithm(Algorithm::NoWinograd));
    let grads = (y.clone() * dy).sum().backward();
    let [dx, dw] = [x, w].map(|tensor| values(tensor.grad(&grads).expect("both are tracked")));
    [values(y.inner()), dx, dw]
}

/// The f64 results of a pass, and how they are reached.
fn expected(problem: &Conv3dProblem, pass: Pass, [x, w, dy]: [&[f64]; 3]) -> (Vec<f64>, Vec<Reach>) {
    let (values, operands) = match pass {
        Pass::Forward => (reference::pre_activation(problem, x, w, None), [x, w]),
        Pass::InputGradient => (reference::input_gradient(problem, w, dy), [w, dy]),
        Pass::WeightGradient => (reference::weight_gradient(problem, x, dy), [x, dy]),
    };
    (values, reach(problem, pass, operands))
}

#[test]
fn non_finite_elements_reach_what_the_contract_says() {
    let case =
        |name: &str, shape, o, kernel| Conv3dCase { bias: false, ..Conv3dCase::new(name, shape, o, kernel) };
    let depth = [(1, 1), (0, 0), (0, 0)];
    let padding = [(1, 1); 3];
    let cases = [
        Conv3dCase { padding: depth, groups: 4, ..case("depthwise", [1, 4, 4, 4, 4], 4, [3, 1, 1]) },
        case("width", [1, 1, 1, 1, 8], 1, [1, 1, 3]),
        case("wide", [1, 16, 1, 1, 8], 16, [1, 1, 3]),
        Conv3dCase { padding, ..case("dense", [2, 5, 3, 5, 6], 6, [3, 3, 3]) },
        Conv3dCase { padding: [(1, 0), (1, 1), (0, 1)], ..case("uneven", [1, 3, 3, 5, 6], 4, [3, 3, 3]) },
        Conv3dCase {
            padding,
            stride: [1, 2, 3],
            groups: 2,
            ..case("strided", [1, 6, 3, 8, 10], 4, [3, 3, 3])
        },
        Conv3dCase { padding, replicate: true, ..case("replicate", [1, 3, 3, 4, 5], 4, [3, 3, 3]) },
    ];
    let mut failures = Vec::new();
    for (on, device) in devices() {
        for case in &cases {
            let problem = problem(case);
            for (operand, turn) in (0..3).flat_map(|operand| (0..3).map(move |turn| (operand, turn))) {
                let shapes = [problem.x_shape(), problem.weight_shape(), problem.y_shape()];
                let mut inputs =
                    [0, 1, 2].map(|at| fill::integers(at as u64, shapes[at].iter().product(), 1, 4));
                let broken = &mut inputs[operand];
                let at = [0, broken.len() - 1, broken.len() / 2 + broken.len() / 7][turn];
                broken[at] = [f32::INFINITY, f32::NAN, f32::NEG_INFINITY][turn];
                let got = run(case, inputs.each_ref().map(Vec::as_slice), &device);
                let wide = inputs.map(|input| input.into_iter().map(f64::from).collect::<Vec<_>>());
                for (pass, got) in
                    [Pass::Forward, Pass::InputGradient, Pass::WeightGradient].into_iter().zip(got)
                {
                    let (want, reach) = expected(&problem, pass, wide.each_ref().map(Vec::as_slice));
                    let wrong = (0..got.len()).filter(|at| match reach[*at] {
                        Reach::Must => got[*at].is_finite(),
                        Reach::May => got[*at].is_finite() && got[*at] != want[*at],
                        Reach::Never => got[*at] != want[*at],
                    });
                    let wrong: Vec<_> = wrong.map(|at| (at, reach[at], got[at], want[at])).collect();
                    if !wrong.is_empty() {
                        let (name, count, pass) = (&case.name, wrong.len(), pass.name());
                        failures
                            .push(format!("{on} {name} {pass} {operand} {turn}: {count}, {:?}", wrong[0]));
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
