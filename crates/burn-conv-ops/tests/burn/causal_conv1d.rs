//! Every causal conv1d case of the conformance table against the f64 reference: y, the final state, and the
//! gradient of every input through both outputs. Decoding steps against their reference, and against the
//! whole-sequence op.

use crate::support::{absolute, bits, check, devices, int_upload, normal, values};
use burn::tensor::{Device, Tensor};
use burn_conv_ops::{
    Activation, CausalConv1dOptions, CausalConv1dUpdateOptions, Conv1dLayout, causal_conv1d,
    causal_conv1d_update, causal_conv1d_with_state,
};
use conv_cases::causal_conv1d::{self as cases, Case, SeqIdx, UpdateCase};
use conv_kernels::FloatType;
use conv_kernels::causal_conv1d::{CausalConv1dProblem, OptionalShapes, UpdateProblem, reference};
use conv_kernels::tolerance::Expected;

const F32: FloatType = FloatType::F32;

fn activation(silu: bool) -> Activation {
    if silu { Activation::Silu } else { Activation::None }
}

fn options(case: &Case) -> CausalConv1dOptions {
    let layout = if case.btc { Conv1dLayout::Btc } else { Conv1dLayout::Bct };
    CausalConv1dOptions::from(activation(case.silu)).with_layout(layout)
}

fn x_shape(case: &Case) -> [usize; 3] {
    if case.btc { [case.b, case.t, case.c] } else { [case.b, case.c, case.t] }
}

fn state_shape(case: &Case) -> [usize; 3] {
    [case.b, case.c, case.w - 1]
}

fn problem(case: &Case) -> CausalConv1dProblem {
    let optional = OptionalShapes {
        bias: case.bias.then_some(case.c),
        initial_state: case.initial.then(|| state_shape(case)),
        seq_idx: (case.seq_idx != SeqIdx::None).then_some([case.b, case.t]),
        residual: case.residual.then(|| x_shape(case)),
    };
    let CausalConv1dOptions { activation, layout, .. } = options(case);
    CausalConv1dProblem::new(x_shape(case), [case.c, case.w], optional, layout, activation, F32, F32)
        .unwrap_or_else(|error| panic!("{case}: {error}"))
}

struct Results {
    y: Tensor<3>,
    last: Tensor<3>,
    dx: Tensor<3>,
    dw: Tensor<2>,
    db: Option<Tensor<1>>,
    dinitial: Option<Tensor<3>>,
    dresidual: Option<Tensor<3>>,
}

fn run(case: &Case, device: &Device) -> Results {
    let device = device.clone().autodiff();
    let x = normal(1, x_shape(case), &device).require_grad();
    let w = normal(2, [case.c, case.w], &device).require_grad();
    let b = case.bias.then(|| normal(3, [case.c], &device).require_grad());
    let initial = case.initial.then(|| normal(4, state_shape(case), &device).require_grad());
    let seq_idx = (case.seq_idx != SeqIdx::None).then(|| int_upload(&ids(case), [case.b, case.t], &device));
    let residual = case.residual.then(|| normal(7, x_shape(case), &device).require_grad());
    let mut options = options(case);
    options.initial_state = initial.clone();
    options.seq_idx = seq_idx;
    options.residual = residual.clone();
    let (y, last) = causal_conv1d_with_state(x.clone(), w.clone(), b.clone(), options.clone());
    // y alone is the same.
    let alone = causal_conv1d(x.clone(), w.clone(), b.clone(), options);
    assert_eq!(bits(alone.inner()), bits(y.clone().inner()), "{case}: y without the final state");
    let dy = normal(5, x_shape(case), &device);
    let mut loss = (y.clone() * dy).sum();
    if case.w > 1 {
        loss = loss + (last.clone() * normal(6, state_shape(case), &device)).sum();
    }
    let grads = loss.backward();
    Results {
        y: y.inner(),
        last: last.inner(),
        dx: x.grad(&grads).expect("x is tracked"),
        dw: w.grad(&grads).expect("the weight is tracked"),
        db: b.map(|b| b.grad(&grads).expect("the bias is tracked")),
        dinitial: initial.map(|initial| initial.grad(&grads).expect("the initial state is tracked")),
        dresidual: residual.map(|residual| residual.grad(&grads).expect("the residual is tracked")),
    }
}

fn ids(case: &Case) -> Vec<i64> {
    cases::seq_idx(case).into_iter().map(i64::from).collect()
}

fn assert_conforms(case: &Case, on: &str, results: Results) {
    let problem = problem(case);
    assert_eq!(results.y.dims(), problem.x_shape(), "{on} {case}");
    assert_eq!(results.last.dims(), problem.state_shape(), "{on} {case}");
    let cpu = Device::flex();
    let x = values(normal(1, x_shape(case), &cpu));
    let weight = values(normal(2, [case.c, case.w], &cpu));
    let bias = case.bias.then(|| values(normal(3, [case.c], &cpu)));
    let initial = case.initial.then(|| values(normal(4, state_shape(case), &cpu)));
    let ids = (case.seq_idx != SeqIdx::None).then(|| ids(case));
    let residual = case.residual.then(|| values(normal(7, x_shape(case), &cpu)));
    let inputs = reference::Inputs {
        x: &x,
        weight: &weight,
        bias: bias.as_deref(),
        initial_state: initial.as_deref(),
        seq_idx: ids.as_deref(),
        residual: residual.as_deref(),
    };
    let (dy, dfinal) = (values(normal(5, x_shape(case), &cpu)), values(normal(6, state_shape(case), &cpu)));
    // exp and a division, each a few units in the last place.
    let extra = if case.silu { 24 } else { 0 };
    let compare = |what: &str, got: Vec<f64>, values: &[f64], magnitudes: &[f64], terms: usize| {
        let expected = Expected { values, magnitudes, terms: terms + extra, dtype: F32, slope: 1.0 };
        check(&format!("{on} {what} {case}"), &expected, &got);
    };
    let magnitude = reference::forward_magnitude(&problem, &inputs);
    compare("y", values(results.y), &reference::forward(&problem, &inputs), &magnitude, case.w + 2);
    let last = reference::final_state(&problem, &inputs);
    assert_eq!(values(results.last), last, "{on} final state {case}");

    let want = reference::backward(&problem, &inputs, &dy, Some(&dfinal));
    let bound = reference::backward_magnitude(&problem, &inputs, &dy, Some(&dfinal));
    let (taps, steps) = (2 * case.w + 2, case.b * case.t + case.w + 1);
    compare("dx", values(results.dx), &want.x, &bound.x, taps);
    compare("dw", values(results.dw), &want.weight, &bound.weight, steps);
    if let Some(db) = results.db {
        compare("db", values(db), &want.bias, &bound.bias, steps);
    }
    if let Some(dinitial) = results.dinitial {
        compare("dinitial", values(dinitial), &want.initial_state, &bound.initial_state, taps);
    }
    if let Some(dresidual) = results.dresidual {
        // dy, but at padding.
        let token = |index: usize| {
            let t = if case.btc { index / case.c % case.t } else { index % case.t };
            ids.as_ref().is_none_or(|ids| ids[index / (case.c * case.t) * case.t + t] >= 0)
        };
        let want: Vec<f64> = (0..dy.len()).map(|i| if token(i) { dy[i] } else { 0.0 }).collect();
        assert_eq!(values(dresidual), want, "{on} gradient of the residual {case}");
    }
}

#[test]
fn causal_conv1d_conforms_on_every_device() {
    let mut table = cases::conformance();
    table.push(Case { bias: true, initial: true, ..Case::new("no_steps", [2, 3, 0], 4) });
    table.push(Case::new("no_rows", [0, 3, 5], 4));
    assert!(table.len() > 300, "{} cases", table.len());
    for (on, device) in devices() {
        // The kernels' own tests run every case. 17 is coprime to the 16 pairs of width and layout: all of
        // them are met.
        let step = if on == "gpu" { 17 } else { 1 };
        for case in table.iter().rev().step_by(step) {
            assert_conforms(case, on, run(case, &device));
        }
    }
}

fn assert_update_conforms(case: &UpdateCase, on: &str, device: &Device) {
    let bias_length = case.bias.then_some(case.c);
    let (x_shape, state_shape) = ([case.b, case.c], [case.b, case.c, case.s]);
    let activation = activation(case.silu);
    let problem =
        UpdateProblem::new(x_shape, state_shape, [case.c, case.w], bias_length, activation, F32, F32)
            .unwrap_or_else(|error| panic!("{}: {error}", case.name));
    let cpu = Device::flex();
    let weight = normal(1, [case.c, case.w], device);
    let bias = case.bias.then(|| normal(2, [case.c], device));
    let mut state = normal(3, state_shape, device);
    let (weight64, bias64) =
        (values(normal(1, [case.c, case.w], &cpu)), case.bias.then(|| values(normal(2, [case.c], &cpu))));
    let mut state64 = values(normal(3, state_shape, &cpu));
    for step in 0..case.steps {
        let x = normal(10 + step as u64, x_shape, device);
        let x64 = values(normal(10 + step as u64, x_shape, &cpu));
        let options = CausalConv1dUpdateOptions::new().with_activation(activation);
        let (y, next) = causal_conv1d_update(x, state, weight.clone(), bias.clone(), options);
        let linear = UpdateProblem { activation: Activation::None, ..problem };
        let abs_bias = bias64.as_deref().map(absolute);
        let (magnitudes, _) = reference::update(
            &linear,
            &absolute(&x64),
            &absolute(&state64),
            &absolute(&weight64),
            abs_bias.as_deref(),
        );
        let (want, next64) = reference::update(&problem, &x64, &state64, &weight64, bias64.as_deref());
        let expected =
            Expected { values: &want, magnitudes: &magnitudes, terms: case.w + 25, dtype: F32, slope: 1.1 };
        check(&format!("{on} {} step {step}", case.name), &expected, &values(y));
        assert_eq!(values(next.clone()), next64, "{on} {} state after step {step}", case.name);
        (state, state64) = (next, next64);
    }
}

#[test]
fn decoding_steps_conform_on_every_device() {
    for (on, device) in devices() {
        for case in cases::update_cases() {
            assert_update_conforms(&case, on, &device);
        }
    }
}

#[test]
fn pieces_and_single_steps_give_what_the_whole_gives() {
    let ([b, c, t], w) = ([2, 5, 13], 4);
    for (on, device) in devices() {
        let (x, weight, bias) =
            (normal(1, [b, c, t], &device), normal(2, [c, w], &device), normal(3, [c], &device));
        let options = CausalConv1dOptions::new().with_activation(Activation::Silu);
        let whole = values(causal_conv1d(x.clone(), weight.clone(), Some(bias.clone()), options.clone()));

        let mut given = options.clone();
        let mut pieces = Vec::new();
        for (start, end) in [(0, 1), (1, 3), (3, 9), (9, 13)] {
            let piece = x.clone().narrow(2, start, end - start);
            let (y, next) = causal_conv1d_with_state(piece, weight.clone(), Some(bias.clone()), given);
            pieces.push(y);
            given = options.clone().with_initial_state(next);
        }
        assert_eq!(values(Tensor::cat(pieces, 2)), whole, "{on}: pieces");

        let mut state = Tensor::zeros([b, c, w - 1], &device);
        let mut steps = Vec::new();
        for step in 0..t {
            let x = x.clone().narrow(2, step, 1).reshape([b, c]);
            let options = CausalConv1dUpdateOptions::new().with_activation(Activation::Silu);
            let (y, next) = causal_conv1d_update(x, state, weight.clone(), Some(bias.clone()), options);
            steps.push(y.reshape([b, c, 1]));
            state = next;
        }
        crate::support::assert_close(on, &values(Tensor::cat(steps, 2)), &whole, 1e-5);
    }
}
