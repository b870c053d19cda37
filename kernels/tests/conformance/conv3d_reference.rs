//! The f64 reference itself: PyTorch's results, finite differences, adjoint identities. No device.

use crate::conv3d::problem as problem_of;
use conv_cases::conv3d::{self as cases, Activation as CaseActivation, Conv3dCase};
use conv_cases::fill;
use conv_kernels::FloatType;
use conv_kernels::conv3d::{Conv3dProblem, PaddingMode, Pass, Window, WinogradTile, reference, winograd};
use safetensors::SafeTensors;
use serde::Deserialize;
use std::path::Path;

/// A problem in the metadata of `golden/conv3d.safetensors`; golden/README.md has the schema.
#[derive(Deserialize)]
struct Golden {
    name: String,
    n: usize,
    c: usize,
    d: usize,
    h: usize,
    w: usize,
    o: usize,
    kernel: [usize; 3],
    stride: [usize; 3],
    dilation: [usize; 3],
    padding: [(usize, usize); 3],
    groups: usize,
    replicate: bool,
    bias: bool,
    activation: String,
}

/// Reads a golden file: its bytes and the problems of its metadata.
pub(crate) fn golden<P: for<'a> Deserialize<'a>>(file: &str) -> (Vec<u8>, Vec<P>) {
    let mut folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("golden"));
    let path = folders.find(|folder| folder.exists()).expect("the folder of golden files").join(file);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
    let metadata = metadata.metadata().as_ref().expect("metadata").clone();
    let problems = serde_json::from_str(&metadata["problems"]).expect("the schema of golden/README.md");
    (bytes, problems)
}

/// A float64 tensor of a golden file.
pub(crate) fn tensor(file: &SafeTensors, name: &str) -> Vec<f64> {
    let view = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    view.data().chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().expect("8 bytes"))).collect()
}

/// Panics when two f64 results differ by more than rounding.
pub(crate) fn assert_same(what: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1.0f64, |scale, value| scale.max(value.abs()));
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= 1e-11 * scale, "{what}[{index}]: {got}, PyTorch has {want}");
    }
}

fn dpre(problem: &Conv3dProblem, x: &[f64], w: &[f64], bias: Option<&[f64]>, dy: &[f64]) -> Vec<f64> {
    let pre = reference::pre_activation(problem, x, w, bias);
    let activation = problem.window.activation;
    dy.iter().zip(&pre).map(|(dy, pre)| dy * reference::activation_derivative(activation, *pre)).collect()
}

#[test]
fn the_reference_agrees_with_pytorch() {
    let (bytes, problems) = golden::<Golden>("conv3d.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    assert!(problems.len() >= 48, "{} problems", problems.len());
    for (index, golden) in problems.iter().enumerate() {
        let Golden { kernel, stride, dilation, padding, groups, replicate, bias, .. } = *golden;
        let case = Conv3dCase {
            stride,
            dilation,
            padding,
            groups,
            replicate,
            bias,
            activation: match golden.activation.as_str() {
                "relu" => CaseActivation::Relu,
                "silu" => CaseActivation::Silu,
                _ => CaseActivation::None,
            },
            ..Conv3dCase::new(
                &golden.name,
                [golden.n, golden.c, golden.d, golden.h, golden.w],
                golden.o,
                kernel,
            )
        };
        let problem = problem_of(&case, FloatType::F32);
        let load = |name: &str| tensor(&file, &format!("{index}.{name}"));
        let (x, w, dy) = (load("x"), load("w"), load("dy"));
        let b = bias.then(|| load("b"));
        let name = &golden.name;
        assert_same(&format!("{name} y"), &reference::forward(&problem, &x, &w, b.as_deref()), &load("y"));
        let dpre = dpre(&problem, &x, &w, b.as_deref(), &dy);
        assert_same(&format!("{name} dx"), &reference::input_gradient(&problem, &w, &dpre), &load("dx"));
        assert_same(&format!("{name} dw"), &reference::weight_gradient(&problem, &x, &dpre), &load("dw"));
        if bias {
            assert_same(&format!("{name} db"), &reference::bias_gradient(&problem, &dpre), &load("db"));
        }
    }
}

/// A problem of golden/padding_modes.safetensors, stored in f32.
#[derive(Deserialize)]
struct ModesGolden {
    stride: [usize; 3],
    padding: [(usize, usize); 3],
    modes: [String; 3],
}

#[test]
fn padding_modes_of_the_reference_are_pytorchs() {
    let (bytes, problems) = golden::<ModesGolden>("padding_modes.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    assert!(problems.len() >= 24, "{} problems", problems.len());
    for (index, golden) in problems.iter().enumerate() {
        let load = |name: &str| -> (Vec<f64>, [usize; 5]) {
            let view = file.tensor(&format!("{index}.{name}")).expect("a tensor");
            let numbers =
                view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
            (numbers.map(f64::from).collect(), view.shape().try_into().expect("five axes"))
        };
        let ((x, x_shape), (w, w_shape), (dy, _)) = (load("x"), load("w"), load("dy"));
        let padding_mode = [0, 1, 2].map(|axis| match golden.modes[axis].as_str() {
            "zeros" => PaddingMode::Zeros,
            "replicate" => PaddingMode::Replicate,
            "reflect" => PaddingMode::Reflect,
            "circular" => PaddingMode::Circular,
            other => panic!("no padding mode is named {other}"),
        });
        let window =
            Window { stride: golden.stride, padding: golden.padding, padding_mode, ..Window::default() };
        let problem = Conv3dProblem::new(x_shape, w_shape, None, window, FloatType::F32).expect("a problem");
        let close = |what: &str, got: Vec<f64>, (want, _): (Vec<f64>, [usize; 5])| {
            assert_eq!(got.len(), want.len(), "{index} {what}");
            let scale = want.iter().fold(1.0f64, |scale, value| scale.max(value.abs()));
            // The results are rounded to f32.
            let far = got.iter().zip(&want).position(|(got, want)| (got - want).abs() > 1e-7 * scale);
            assert_eq!(far, None, "padding_modes {index} {what}");
        };
        close("y", reference::forward(&problem, &x, &w, None), load("y"));
        close("dx", reference::input_gradient(&problem, &w, &dy), load("dx"));
        close("dw", reference::weight_gradient(&problem, &x, &dy), load("dw"));
    }
}

fn f64s(seed: u64, length: usize) -> Vec<f64> {
    fill::normal(seed, length).into_iter().map(f64::from).collect()
}

/// <dy, conv(x, w)> = <dx, x> = <dw, w> and db is its derivative in b, for every case of the table.
#[test]
fn gradients_are_adjoint_to_the_forward_pass() {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for case in cases::conformance() {
        let problem = problem_of(&Conv3dCase { bias: false, ..case.clone() }, FloatType::F32);
        let x = f64s(1, problem.x_shape().iter().product());
        let w = f64s(2, problem.weight_shape().iter().product());
        let dy = f64s(3, problem.y_shape().iter().product());
        let y = reference::pre_activation(&problem, &x, &w, None);
        let magnitude = dot(&y, &y).sqrt() * dot(&dy, &dy).sqrt() + 1.0;
        let value = dot(&dy, &y);
        for (what, other) in [
            ("dx", dot(&reference::input_gradient(&problem, &w, &dy), &x)),
            ("dw", dot(&reference::weight_gradient(&problem, &x, &dy), &w)),
        ] {
            assert!((value - other).abs() <= 1e-12 * magnitude, "{case} {what}: {value} and {other}");
        }
    }
}

/// Central differences of the whole forward pass, activation included, in one random direction per tensor.
#[test]
fn gradients_match_finite_differences() {
    let mut checked = 0;
    for case in cases::conformance().into_iter().filter(|case| case.macs() < 60_000).take(80) {
        let problem = problem_of(&case, FloatType::F32);
        let x = f64s(1, problem.x_shape().iter().product());
        let w = f64s(2, problem.weight_shape().iter().product());
        let b = problem.bias.then(|| f64s(3, problem.out_channels));
        let dy = f64s(4, problem.y_shape().iter().product());
        let objective = |x: &[f64], w: &[f64], b: Option<&[f64]>| -> f64 {
            reference::forward(&problem, x, w, b).iter().zip(&dy).map(|(y, dy)| y * dy).sum()
        };
        let dpre = dpre(&problem, &x, &w, b.as_deref(), &dy);
        // ReLU's kink makes differences meaningless where a pre-activation is near zero.
        let pre = reference::pre_activation(&problem, &x, &w, b.as_deref());
        let kink = problem.window.activation == conv_kernels::conv3d::Activation::Relu;
        if kink && pre.iter().any(|pre| pre.abs() < 1e-3) {
            continue;
        }
        let step = 1e-6;
        let moved = |values: &[f64], direction: &[f64], by: f64| -> Vec<f64> {
            values.iter().zip(direction).map(|(value, direction)| value + by * direction).collect()
        };
        let check = |what: &str, gradient: Vec<f64>, direction: &[f64], along: &dyn Fn(f64) -> f64| {
            let analytic: f64 = gradient.iter().zip(direction).map(|(g, v)| g * v).sum();
            let difference = (along(step) - along(-step)) / (2.0 * step);
            let scale = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
            assert!(
                (analytic - difference).abs() <= 1e-3 * analytic.abs() + 1e-5 * (1.0 + scale),
                "{case} {what}: {analytic} and {difference}"
            );
        };
        let v = f64s(11, x.len());
        check("dx", reference::input_gradient(&problem, &w, &dpre), &v, &|by| {
            objective(&moved(&x, &v, by), &w, b.as_deref())
        });
        let v = f64s(12, w.len());
        check("dw", reference::weight_gradient(&problem, &x, &dpre), &v, &|by| {
            objective(&x, &moved(&w, &v, by), b.as_deref())
        });
        if let Some(b) = &b {
            let v = f64s(13, b.len());
            check("db", reference::bias_gradient(&problem, &dpre), &v, &|by| {
                objective(&x, &w, Some(&moved(b, &v, by)))
            });
        }
        checked += 1;
    }
    assert!(checked >= 40, "{checked} problems");
}

/// Through whole problems with every depth option, Winograd in f64 is the direct sum.
#[test]
fn the_winograd_identity_holds_through_whole_problems() {
    let mut checked = 0;
    for case in cases::conformance() {
        let served = case.kernel[1..] == [3, 3] && case.stride[1..] == [1, 1] && case.dilation[1..] == [1, 1];
        // Winograd reads zeros or replicate padding.
        if !served || case.groups != 1 || case.macs() > 300_000 || case.modes.is_some() {
            continue;
        }
        let problem = problem_of(&Conv3dCase { bias: false, ..case.clone() }, FloatType::F32);
        let x = f64s(1, problem.x_shape().iter().product());
        let w = f64s(2, problem.weight_shape().iter().product());
        let dy = f64s(3, problem.y_shape().iter().product());
        for tile in WinogradTile::ALL {
            let y = winograd::reference::evaluate(&problem, Pass::Forward, tile, &x, &w, false);
            assert_same(
                &format!("{case} {tile:?} y"),
                &y,
                &reference::pre_activation(&problem, &x, &w, None),
            );
            if problem.window.stride[0] == 1 && problem.window.padding_mode == [PaddingMode::Zeros; 3] {
                let dx = winograd::reference::evaluate(&problem, Pass::InputGradient, tile, &dy, &w, false);
                assert_same(
                    &format!("{case} {tile:?} dx"),
                    &dx,
                    &reference::input_gradient(&problem, &w, &dy),
                );
            }
            let dw = winograd::reference::weight_gradient(&problem, tile, &x, &dy, false);
            assert_same(&format!("{case} {tile:?} dw"), &dw, &reference::weight_gradient(&problem, &x, &dy));
            checked += 1;
        }
    }
    assert!(checked >= 60, "{checked} problems");
}
