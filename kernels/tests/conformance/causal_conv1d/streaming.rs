//! A sequence in chunks that pass their state on, and one step at a time.

use super::{Tensors, launch, normal, plans, problem, read_results, tensors};
use crate::support::{Buffer, client, output, read_all, upload, upload_strided};
use conv_cases::causal_conv1d::{self as cases, Case, UpdateCase};
use conv_kernels::causal_conv1d::{
    self as op, CausalConv1dProblem, Plan, UpdateProblem, reference as oracle,
};
use conv_kernels::conv3d::Activation;
use conv_kernels::tolerance::Expected;
use conv_kernels::{FloatType, Limits};
use cubecl::prelude::*;

/// Chunks that pass the final state on are bitwise equal to the whole sequence in the forward pass, and close
/// to its gradient in the backward pass.
#[test]
fn chunks_give_the_whole_sequence() {
    chunks(5);
}

#[test]
fn chunks_of_a_wide_filter_give_the_whole_sequence() {
    chunks(20);
}

fn chunks(w: usize) {
    let client = client();
    let limits = Limits::of(&client);
    let (b, c, t) = (2, 3, 23);
    let whole = problem(
        &Case { silu: true, initial: true, residual: true, ..Case::new("whole", [b, c, t], w) },
        FloatType::F32,
        FloatType::F32,
    );
    let tensors = tensors(&client, &whole, &[], true, &normal);
    for plans in plans(&whole, &limits) {
        let all = launch((&client, &limits), &whole, plans, &tensors);
        let mut results = read_results(&client, &[all]).remove(0);
        let expected = |name: &str| &results.iter().find(|(other, _)| *other == name).expect("a result").1;
        let steps = |values: &[f64], from: usize, to: usize| -> Vec<f32> {
            values.chunks(t).flat_map(|row| &row[from..to]).map(|value| *value as f32).collect()
        };
        let f32s = |values: &[f64]| -> Vec<f32> { values.iter().map(|value| *value as f32).collect() };
        // Chunks shorter and longer than the state, and one without steps.
        let bounds = [(0, 1), (1, 3), (3, 3), (3, 12), (12, 16), (16, 23)];
        let mut state = f32s(&tensors.state.as_ref().expect("a state").values());
        let chunk_of = |from: usize, to: usize, state: &[f32], dfinal: Option<&[f32]>| {
            let problem = CausalConv1dProblem { length: to - from, ..whole };
            let of = |buffer: &Buffer| {
                upload(&client, &steps(&buffer.values(), from, to), &problem.x_shape(), FloatType::F32)
            };
            let again = |buffer: &Buffer| {
                upload(&client, &f32s(&buffer.values()), &buffer.operand().shape, FloatType::F32)
            };
            let of_state = |values: &[f32]| upload(&client, values, &whole.state_shape(), FloatType::F32);
            let chunk = Tensors {
                x: of(&tensors.x),
                weight: again(&tensors.weight),
                bias: tensors.bias.as_ref().map(again),
                state: Some(of_state(state)),
                ids: None,
                dy: of(&tensors.dy),
                dfinal: dfinal.map(of_state),
                residual: tensors.residual.as_ref().map(of),
            };
            let plans = if from == to { [Plan::Empty, plans[1]] } else { plans };
            let results = launch((&client, &limits), &problem, plans, &chunk);
            read_results(&client, &[results]).remove(0)
        };
        let mut states = Vec::new();
        for (from, to) in bounds {
            let chunk = chunk_of(from, to, &state, None);
            assert_eq!(f32s(&chunk[0].1), steps(expected("y"), from, to), "y {from}..{to} {plans:?}");
            states.push(std::mem::replace(&mut state, f32s(&chunk[1].1)));
        }
        assert_eq!(state, f32s(expected("final state")));

        let mut dstate = f32s(&tensors.dfinal.as_ref().expect("a gradient").values());
        for ((from, to), state) in bounds.into_iter().zip(states).rev() {
            let chunk = chunk_of(from, to, &state, Some(&dstate));
            let (dx, want) = (f32s(&chunk[2].1), steps(expected("dx"), from, to));
            for (dx, want) in dx.iter().zip(&want) {
                // The state's gradient is rounded at each chunk boundary.
                assert!((dx - want).abs() <= 1e-5, "dx {from}..{to} {plans:?}: {dx}, whole {want}");
            }
            dstate = f32s(&chunk.iter().find(|(name, _)| *name == "dinitial").expect("dinitial").1);
        }
        for (got, want) in dstate.iter().zip(results.pop().expect("dinitial").1) {
            assert!((f64::from(*got) - want).abs() <= 1e-5, "dinitial {plans:?}: {got}, whole {want}");
        }
    }
}

pub(crate) fn check_update(
    (client, limits): (&Client, &Limits),
    case: &UpdateCase,
    activation: Activation,
    [dtype, weight_dtype]: [FloatType; 2],
) {
    let &UpdateCase { b, c, w, s, .. } = case;
    let bias_length = case.bias.then_some(c);
    let problem = UpdateProblem::new([b, c], [b, c, s], [c, w], bias_length, activation, dtype, weight_dtype)
        .unwrap_or_else(|error| panic!("{}: {error}", case.name));
    let weight = upload(client, &normal(1, c * w), &[c, w], weight_dtype);
    let bias = case.bias.then(|| upload(client, &normal(2, c), &[c], weight_dtype));
    // The first state in a permuted memory order, the later ones as the op wrote them.
    let first = upload_strided(client, &normal(3, b * c * s), &[b, c, s], &[1, b * s, b], dtype);
    let mut state_values = first.values();
    let mut states = vec![first];
    let mut launched = Vec::new();
    for step in 0..case.steps {
        let x = upload(client, &normal(10 + step as u64, b * c), &[b, c], dtype);
        let (y, new_state) = (output(client, &[b, c], dtype), output(client, &[b, c, s], dtype));
        let state = states.last().expect("a state").operand();
        let (weight, bias) = (weight.operand(), bias.as_ref().map(Buffer::operand));
        op::update(
            client,
            limits,
            &problem,
            x.operand(),
            state,
            weight,
            bias,
            y.operand(),
            new_state.operand(),
        )
        .unwrap_or_else(|error| panic!("{}: {error}", case.name));
        states.push(new_state);
        launched.push((x, y));
    }
    let outputs: Vec<&Buffer> = launched.iter().map(|(_, y)| y).chain(&states[1..]).collect();
    let got = read_all(client, &outputs);
    let absolute = |values: &[f64]| -> Vec<f64> { values.iter().map(|value| value.abs()).collect() };
    let (weight, bias) = (weight.values(), bias.as_ref().map(Buffer::values));
    for (step, (x, _)) in launched.iter().enumerate() {
        let x = x.values();
        let (y, next) = oracle::update(&problem, &x, &state_values, &weight, bias.as_deref());
        let linear = UpdateProblem { activation: Activation::None, ..problem };
        let abs_bias = bias.as_deref().map(absolute);
        let (magnitudes, _) = oracle::update(
            &linear,
            &absolute(&x),
            &absolute(&state_values),
            &absolute(&weight),
            abs_bias.as_deref(),
        );
        let silu = activation == Activation::Silu;
        let (terms, slope) = if silu { (w + 25, 1.1) } else { (w + 1, 1.0) };
        let expected = Expected { values: &y, magnitudes: &magnitudes, terms, dtype, slope };
        if let Err(error) = expected.check(&got[step], None) {
            panic!("{} step {step} {} {}: {error}", case.name, dtype.name(), weight_dtype.name());
        }
        assert_eq!(got[case.steps + step], next, "{} step {step}: the new state", case.name);
        state_values = next;
    }
}

#[test]
fn updates_match_the_reference() {
    let client = client();
    let limits = Limits::of(&client);
    let table = cases::update_cases();
    for (index, case) in table.iter().enumerate() {
        let activation = if case.silu { Activation::Silu } else { Activation::None };
        for &dtype in &limits.dtypes {
            check_update((&client, &limits), case, activation, super::dtype_pair(dtype, index));
        }
    }
    println!("{} cases", table.len());
}
