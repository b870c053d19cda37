//! Decoding steps and magnitudes of the reference, worked out by hand.

use super::*;
use crate::activation::Activation;
use crate::causal_conv1d::problem::OptionalShapes;
use crate::dtype::FloatType;

/// Two rows of two channels, W = 2, on three slots of S columns.
fn problem(columns: usize) -> UpdateProblem {
    let f32 = FloatType::F32;
    UpdateProblem::with_slots([2, 2], [3, 2, columns], [2, 2], None, Activation::None, f32, f32)
        .expect("valid")
}

const WEIGHT: [f64; 4] = [1.0, 10.0, 2.0, 20.0];

#[test]
fn rows_take_their_slots() {
    let state = [0.5, 1.5, 2.5, 3.5, 4.5, 5.5];
    let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
    let (y, next) = update_steps(&problem(1), &x, &state, &WEIGHT, None, None, Some(&[2, 0]));
    assert_eq!(y, [14.5, 21.0, 71.0, 86.0, 50.5, 65.0, 143.0, 174.0]);
    assert_eq!(next, [6.0, 8.0, 2.5, 3.5, 2.0, 4.0]);
    // Of rows that share a slot the last has it; a negative slot is none.
    let (y, next) = update_steps(&problem(1), &x, &state, &WEIGHT, None, None, Some(&[1, 1]));
    assert_eq!(y, [0.0, 0.0, 0.0, 0.0, 52.5, 65.0, 147.0, 174.0]);
    assert_eq!(next, [0.5, 1.5, 6.0, 8.0, 4.5, 5.5]);
    let (y, next) = update_steps(&problem(1), &x, &state, &WEIGHT, None, None, Some(&[-1, 1]));
    assert_eq!((y[0], y[4], next[2]), (0.0, 52.5, 6.0));
}

/// Step t is in column t mod 2: after three steps the last one is in column 0 and the next goes to column 1.
#[test]
fn rings_begin_at_their_lengths() {
    let state = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 0.0, 0.0, 0.0, 0.0];
    let x = [0.1, 0.2, 0.3, 0.4];
    let (y, next) = update_steps(&problem(2), &x, &state, &WEIGHT, None, Some(&[3, 4]), None);
    assert_eq!(y, [1.0 + 1.0, 6.0 + 4.0, 6.0 + 3.0, 16.0 + 8.0]);
    assert_eq!(next[..8], [1.0, 0.1, 3.0, 0.2, 0.3, 6.0, 0.4, 8.0]);
}

/// One channel of two steps, two taps: magnitudes of the sums before the activation are 4 and 11.
fn two_steps(activation: Activation) -> CausalConv1dProblem {
    let (layout, f32) = (Conv1dLayout::Bct, FloatType::F32);
    let optional = OptionalShapes::default();
    CausalConv1dProblem::new([1, 1, 2], [1, 2], optional, layout, activation, f32, f32).expect("valid")
}

fn two_inputs() -> Inputs<'static> {
    Inputs {
        x: &[-1.0, 2.0],
        weight: &[3.0, -4.0],
        bias: None,
        initial_state: None,
        seq_idx: None,
        residual: None,
    }
}

/// SiLU's slope is below 1.1; a residual adds its magnitude, except at padding.
#[test]
fn magnitudes_of_the_forward_pass() {
    let of = |activation, inputs: Inputs| forward_magnitude(&two_steps(activation), &inputs);
    assert_eq!(of(Activation::None, two_inputs()), [4.0, 11.0]);
    assert_eq!(of(Activation::Relu, two_inputs()), [4.0, 11.0]);
    assert_eq!(of(Activation::Silu, two_inputs()), [1.1 * 4.0, 1.1 * 11.0]);
    let added = Inputs { bias: Some(&[-0.5]), residual: Some(&[-7.0, 1.0]), ..two_inputs() };
    assert_eq!(of(Activation::None, added), [11.5, 12.5]);
}

/// Under SiLU a gradient counts `1.1 + sum / 2` times: 6.2 and 19.8. At padding it counts nothing.
#[test]
fn magnitudes_of_the_backward_pass() {
    let dy = [-2.0, 3.0];
    let near = |got: &[f64], want: &[f64]| {
        let close = got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-12);
        assert!(got.len() == want.len() && close, "{got:?} {want:?}");
    };
    for activation in [Activation::None, Activation::Relu] {
        let linear = backward_magnitude(&two_steps(activation), &two_inputs(), &dy, None);
        near(&linear.x, &[17.0, 12.0]);
        near(&linear.weight, &[3.0, 8.0]);
        near(&linear.bias, &[5.0]);
    }
    let silu = two_steps(Activation::Silu);
    let of_silu = backward_magnitude(&silu, &two_inputs(), &dy, None);
    near(&of_silu.x, &[84.2, 79.2]);
    near(&of_silu.weight, &[19.8, 45.8]);
    near(&of_silu.bias, &[26.0]);
    let padded = Inputs { seq_idx: Some(&[0, -1]), ..two_inputs() };
    near(&backward_magnitude(&silu, &padded, &dy, None).bias, &[6.2]);
}
