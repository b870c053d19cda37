//! Every conv3d case of the conformance table, forward and backward, against the f64 reference. This holds
//! the portable bodies to the same standard as the kernels, and Fusion's output shapes to the real ones.

use crate::support::{absolute, check, devices, normal, values};
use burn::tensor::{Device, Tensor};
use burn_conv_ops::{Activation, Conv3dOptions, PaddingMode, conv3d};
use conv_cases::conv3d::{self as cases, Conv3dCase};
use conv_kernels::FloatType;
use conv_kernels::conv3d::{Conv3dProblem, Window, reference};
use conv_kernels::tolerance::Expected;

pub(crate) fn options(case: &Conv3dCase) -> Conv3dOptions {
    Conv3dOptions::new()
        .with_stride(case.stride)
        .with_padding(case.padding)
        .with_dilation(case.dilation)
        .with_groups(case.groups)
        .with_padding_modes(case.padding_modes().map(|mode| match mode {
            cases::Padding::Zeros => PaddingMode::Zeros,
            cases::Padding::Replicate => PaddingMode::Replicate,
            cases::Padding::Reflect => PaddingMode::Reflect,
            cases::Padding::Circular => PaddingMode::Circular,
        }))
        .with_activation(match case.activation {
            cases::Activation::None => Activation::None,
            cases::Activation::Relu => Activation::Relu,
            cases::Activation::Silu => Activation::Silu,
        })
}

pub(crate) fn problem(case: &Conv3dCase) -> Conv3dProblem {
    let options = options(case);
    let window = Window {
        stride: options.stride,
        padding: case.padding,
        dilation: options.dilation,
        groups: options.groups,
        padding_mode: options.padding_mode,
        activation: options.activation,
    };
    let bias = case.bias.then_some(case.o);
    Conv3dProblem::new(case.input_shape(), case.weight_shape(), bias, window, FloatType::F32)
        .unwrap_or_else(|error| panic!("{case}: {error}"))
}

/// y, dx, dw and, where there is a bias, db.
pub(crate) struct Results {
    y: Tensor<5>,
    dx: Tensor<5>,
    dw: Tensor<5>,
    db: Option<Tensor<1>>,
}

pub(crate) fn run(case: &Conv3dCase, device: &Device) -> Results {
    let device = device.clone().autodiff();
    let x = normal(1, case.input_shape(), &device).require_grad();
    let w = normal(2, case.weight_shape(), &device).require_grad();
    let b = case.bias.then(|| normal(3, [case.o], &device).require_grad());
    let dy = normal(4, case.output_shape(), &device);
    let y = conv3d(x.clone(), w.clone(), b.clone(), options(case));
    let grads = (y.clone() * dy).sum().backward();
    Results {
        y: y.inner(),
        dx: x.grad(&grads).expect("x is tracked"),
        dw: w.grad(&grads).expect("the weight is tracked"),
        db: b.map(|b| b.grad(&grads).expect("the bias is tracked")),
    }
}

pub(crate) fn assert_conforms(case: &Conv3dCase, on: &str, results: Results) {
    let problem = problem(case);
    assert_eq!(results.y.dims(), problem.y_shape(), "{on} {case}");
    assert_eq!(results.dx.dims(), problem.x_shape(), "{on} {case}");
    assert_eq!(results.dw.dims(), problem.weight_shape(), "{on} {case}");

    let cpu = Device::flex();
    let [x, w, dy] = [
        values(normal(1, case.input_shape(), &cpu)),
        values(normal(2, case.weight_shape(), &cpu)),
        values(normal(4, case.output_shape(), &cpu)),
    ];
    let b = case.bias.then(|| values(normal(3, [case.o], &cpu)));
    let activation = problem.window.activation;
    let [forward, input, windows] = reference::longest_sums(&problem);
    // exp and a division, each a few units in the last place.
    let (slope, extra) = if activation == Activation::Silu { (1.1, 24) } else { (1.0, 0) };
    let compare = |what: &str, got: Vec<f64>, values: &[f64], magnitudes: &[f64], terms: usize| {
        let expected = Expected { values, magnitudes, terms: terms + extra, dtype: FloatType::F32, slope };
        check(&format!("{on} {what} {case}"), &expected, &got);
    };

    let pre = reference::pre_activation(&problem, &x, &w, b.as_deref());
    let want: Vec<f64> = pre.iter().map(|value| reference::activate(activation, *value)).collect();
    let magnitude = reference::pre_activation(
        &problem,
        &absolute(&x),
        &absolute(&w),
        b.as_deref().map(absolute).as_deref(),
    );
    let y = values(results.y);
    compare("y", y.clone(), &want, &magnitude, forward);

    // ReLU's derivative jumps at 0: whether a value of about 0 is positive is the device's to say.
    let saved = if activation == Activation::Relu { &y } else { &pre };
    let derivative = |value: &f64| reference::activation_derivative(activation, *value);
    let dpre: Vec<f64> = saved.iter().zip(&dy).map(|(value, dy)| derivative(value) * dy).collect();
    let (abs_x, abs_w) = (absolute(&x), absolute(&w));
    // SiLU's slope is computed from a value that carries the error of the forward sum.
    let (abs_dy, more) = if extra > 0 { (absolute(&dy), forward) } else { (absolute(&dpre), 0) };
    let dx = reference::input_gradient(&problem, &w, &dpre);
    compare(
        "dx",
        values(results.dx),
        &dx,
        &reference::input_gradient(&problem, &abs_w, &abs_dy),
        input + more,
    );
    let dw = reference::weight_gradient(&problem, &x, &dpre);
    compare(
        "dw",
        values(results.dw),
        &dw,
        &reference::weight_gradient(&problem, &abs_x, &abs_dy),
        windows + more,
    );
    if let Some(got) = results.db {
        let db = reference::bias_gradient(&problem, &dpre);
        compare("db", values(got), &db, &reference::bias_gradient(&problem, &abs_dy), windows + more);
    }
}

#[test]
fn conv3d_conforms_on_every_device() {
    let mut table = cases::conformance();
    table.extend(cases::empty());
    assert!(table.len() > 160, "{} cases", table.len());
    for (on, device) in devices() {
        // The kernels' own tests run every case.
        let step = if on == "gpu" && !conv_testing::is_full() { 5 } else { 1 };
        for case in table.iter().step_by(step) {
            assert_conforms(case, on, run(case, &device));
        }
    }
}
