//! Decoding steps of the reference, worked out by hand.

use super::*;
use crate::activation::Activation;
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
