//! Types and shapes of states, and what is refused.

use super::*;

const F32: FloatType = FloatType::F32;
const F16: FloatType = FloatType::F16;

/// A step of two rows on `slots` slots of three channels and `columns` columns; the weight has width 4.
fn step(rows: usize, slots: usize, columns: usize) -> Result<UpdateProblem, ConvError> {
    UpdateProblem::with_slots([rows, 3], [slots, 3, columns], [3, 4], None, Activation::None, F16, F16)
}

/// A state is of x's type unless told otherwise, and then fp32.
#[test]
fn states_have_the_type_of_x_or_fp32() {
    let optional = OptionalShapes::default();
    let (layout, silu) = (Conv1dLayout::Bct, Activation::Silu);
    let problem =
        CausalConv1dProblem::new([2, 3, 5], [3, 4], optional, layout, silu, F16, F32).expect("valid");
    let update = step(2, 2, 3).expect("valid");
    assert_eq!([problem.state_dtype, update.state_dtype], [F16; 2]);
    for dtype in [F16, F32] {
        assert_eq!(problem.with_state_dtype(dtype).map(|problem| problem.state_dtype), Ok(dtype));
        assert_eq!(update.with_state_dtype(dtype).map(|problem| problem.state_dtype), Ok(dtype));
    }
    assert_eq!(
        problem.with_state_dtype(FloatType::Bf16).expect_err("bf16").to_string(),
        "causal_conv1d: x is f16 and the state is bf16, a state is of x's dtype or f32"
    );
    assert!(update.with_state_dtype(FloatType::Bf16).is_err());
}

/// No slots are enough for no rows.
#[test]
fn rows_need_slots() {
    assert!(step(0, 0, 3).is_ok());
    assert!(step(0, 1, 3).is_ok());
    assert_eq!(
        step(1, 0, 3).expect_err("no slots").to_string(),
        "causal_conv1d_update: the state [0, 3, 3] has no slots for 1 rows"
    );
    assert!(step(2, 2, 2).is_err(), "width 4 needs three columns");
}

#[test]
fn shapes_of_a_step() {
    let update = UpdateProblem::new([2, 3], [2, 3, 5], [3, 4], None, Activation::None, F32, F32);
    let update = update.expect("valid");
    assert_eq!(update.x_shape(), [2, 3]);
    assert_eq!(update.weight_shape(), [3, 4]);
    assert_eq!(update.state_shape(), [2, 3, 5]);
}

/// A row's state and its newest step, in fp32, are addressable together.
#[test]
fn the_largest_state() {
    let of = |columns| {
        UpdateProblem::with_slots([1, 1], [1, 1, columns], [1, 1], None, Activation::None, F32, F32)
    };
    assert!(of((1 << 61) - 2).is_ok());
    for columns in [(1 << 61) - 1, usize::MAX] {
        assert!(matches!(of(columns), Err(ConvError::TooLarge(_))), "{columns}");
    }
}
