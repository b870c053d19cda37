//! Bad input: the error class and the exact sentence, before any launch.

use super::{problem, tensors};
use crate::support::{client, output};
use conv_cases::causal_conv1d::{Case, SeqIdx};
use conv_cases::fill;
use conv_kernels::causal_conv1d::{
    self as op, CausalConv1dProblem, Conv1dLayout, Gradients, Inputs, OptionalShapes, Plan, UpdateProblem,
};
use conv_kernels::conv3d::Activation;
use conv_kernels::{ConvError, FloatType, Limits};

fn refusal(x: [usize; 3], weight: [usize; 2], optional: OptionalShapes, layout: Conv1dLayout) -> ConvError {
    CausalConv1dProblem::new(x, weight, optional, layout, Activation::None, FloatType::F32, FloatType::F32)
        .expect_err("a refusal")
}

/// The class and the sentence, without the fields.
fn classed(error: &ConvError) -> String {
    let debug = format!("{error:?}");
    let class: String = debug.chars().take_while(|letter| letter.is_alphabetic()).collect();
    format!("{class}({:?})", error.message())
}

#[test]
fn shapes_are_refused() {
    let (none, bct) = (OptionalShapes::default(), Conv1dLayout::Bct);
    let huge = 1usize << 40;
    let rows = [
        (
            refusal([2, 3, 4], [3, 0], none, bct),
            "OutOfRange(\"causal_conv1d: the weight has width 0, it must be at least 1\")",
        ),
        (
            refusal([2, 3, 4], [5, 4], none, bct),
            "Shape(\"causal_conv1d: the weight has 5 channels, the input has 3\")",
        ),
        (
            refusal([2, 3, 4], [3, 4], none, Conv1dLayout::Btc),
            "Shape(\"causal_conv1d: the weight has 3 channels, the input has 4\")",
        ),
        (
            refusal([2, 3, 4], [3, 4], OptionalShapes { bias: Some(2), ..none }, bct),
            "Shape(\"causal_conv1d: the bias has 2 elements, the input has 3 channels\")",
        ),
        (
            refusal([2, 3, 4], [3, 4], OptionalShapes { initial_state: Some([2, 3, 4]), ..none }, bct),
            "Shape(\"causal_conv1d: the initial state has shape [2, 3, 4], input and weight need [2, 3, \
             3] (batch, \
             channels, width - 1)\")",
        ),
        (
            refusal([2, 3, 4], [3, 4], OptionalShapes { seq_idx: Some([4, 2]), ..none }, bct),
            "Shape(\"causal_conv1d: seq_idx has shape [4, 2], the input needs [2, 4] (batch, steps)\")",
        ),
        (
            refusal([huge, huge, 1], [huge, 4], none, bct),
            "TooLarge(\"causal_conv1d: the input [1099511627776, 1099511627776, 1] with width 4 has more \
             elements than \
             can be addressed\")",
        ),
        (
            refusal([1, 1, usize::MAX], [1, 4], none, bct),
            "TooLarge(\"causal_conv1d: the input [1, 1, 18446744073709551615] with width 4 has more \
             elements than can \
             be addressed\")",
        ),
        (
            refusal([0, huge, 1], [huge, huge], none, bct),
            "TooLarge(\"causal_conv1d: the weight [1099511627776, 1099511627776] has more elements than can \
             be \
             addressed\")",
        ),
    ];
    for (error, expected) in rows {
        assert_eq!(classed(&error), expected);
    }
}

#[test]
fn updates_are_refused() {
    let new = |x, state, weight, bias| {
        UpdateProblem::new(x, state, weight, bias, Activation::None, FloatType::F32, FloatType::F32)
            .expect_err("a refusal")
    };
    let with_slots = |x, state| {
        let (none, f32) = (Activation::None, FloatType::F32);
        UpdateProblem::with_slots(x, state, [3, 4], None, none, f32, f32).expect_err("a refusal")
    };
    let rows = [
        (
            new([2, 3], [2, 3, 2], [3, 4], None),
            "Invalid(\"causal_conv1d_update: the state [2, 3, 2] holds 2 steps, a weight of width 4 needs \
             3\")",
        ),
        (
            new([2, 3], [2, 4, 3], [3, 4], None),
            "Invalid(\"causal_conv1d_update: the state [2, 4, 3] belongs to 2 rows of 4 channels, the input \
             is [2, 3]\")",
        ),
        (
            new([2, 3], [2, 3, 3], [4, 4], None),
            "Shape(\"causal_conv1d_update: the weight has 4 channels, the input has 3\")",
        ),
        (
            new([2, 3], [2, 3, 3], [3, 0], None),
            "OutOfRange(\"causal_conv1d_update: the weight has width 0, it must be at least 1\")",
        ),
        (
            new([2, 3], [2, 3, 3], [3, 4], Some(1)),
            "Shape(\"causal_conv1d_update: the bias has 1 elements, the input has 3 channels\")",
        ),
        (
            new([2, 3], [2, 3, usize::MAX], [3, 4], None),
            "TooLarge(\"causal_conv1d_update: the state [2, 3, 18446744073709551615] has more elements than \
             can be \
             addressed\")",
        ),
        (
            with_slots([2, 3], [9, 3, 2]),
            "Invalid(\"causal_conv1d_update: the state [9, 3, 2] holds 2 steps, a weight of width 4 needs \
             3\")",
        ),
        (
            with_slots([2, 3], [9, 4, 3]),
            "Invalid(\"causal_conv1d_update: the state [9, 4, 3] has 9 slots of 4 channels, the input is \
             [2, 3]\")",
        ),
        (
            with_slots([2, 3], [0, 3, 3]),
            "Invalid(\"causal_conv1d_update: the state [0, 3, 3] has no slots for 2 rows\")",
        ),
        (
            with_slots([2, 3], [usize::MAX, 3, 3]),
            "TooLarge(\"causal_conv1d_update: the state [18446744073709551615, 3, 3] has more elements than \
             can be \
             addressed\")",
        ),
    ];
    for (error, expected) in rows {
        assert_eq!(classed(&error), expected);
    }
}

/// Calls with operands that are not those of the problem.
#[test]
fn operands_of_another_problem_are_refused() {
    let client = client();
    let limits = Limits::of(&client);
    let case = Case { initial: true, seq_idx: SeqIdx::Sequences, ..Case::new("errors", [2, 3, 4], 4) };
    let full = problem(&case, FloatType::F32, FloatType::F16);
    let bare = problem(&Case::new("bare", [2, 3, 4], 4), FloatType::F32, FloatType::F16);
    let bare = CausalConv1dProblem { bias: false, ..bare };
    let tensors = tensors(&client, &full, &[0; 8], true, &|seed, length| fill::normal(seed, length));
    let good = tensors.inputs();
    let y = output(&client, &[2, 3, 4], FloatType::F32);
    let wrong_dtype = output(&client, &[2, 3, 4], FloatType::F16);
    let wrong_shape = output(&client, &[2, 4, 3], FloatType::F32);
    let state_f16 = output(&client, &[2, 3, 3], FloatType::F16);
    let bias_f32 = output(&client, &[3], FloatType::F32);
    let ids =
        crate::support::upload_indices(&client, &[0; 8], &[4, 2], &[2, 1], conv_kernels::IndexType::I32);

    let forward = |problem: &CausalConv1dProblem, plan: Plan, inputs: Inputs, y: &crate::support::Buffer| {
        op::forward(&client, &limits, problem, &plan, &inputs, y.operand())
            .expect_err("a refusal")
            .to_string()
    };
    let narrow = Plan::Narrow;
    let wide = problem(&Case::new("wide", [2, 3, 4], 9), FloatType::F32, FloatType::F16);
    let wide_weight = output(&client, &[3, 9], FloatType::F16);
    let added = CausalConv1dProblem { residual: true, ..full };
    let y_operand = y.operand().clone();
    let wide_inputs = Inputs { weight: wide_weight.operand(), initial_state: None, seq_idx: None, ..good };
    let rows = [
        (
            forward(&full, narrow, Inputs { residual: Some(&y_operand), ..good }, &y),
            "causal_conv1d: residual was given, the problem has none",
        ),
        (
            forward(&added, narrow, good, &y),
            "causal_conv1d: the problem needs residual [2, 3, 4], none was given",
        ),
        (
            forward(&added, narrow, Inputs { residual: Some(wrong_shape.operand()), ..good }, &y),
            "causal_conv1d: residual has shape [2, 4, 3], the problem needs [2, 3, 4]",
        ),
        (
            forward(&added, narrow, Inputs { residual: Some(wrong_dtype.operand()), ..good }, &y),
            "causal_conv1d: residual is f16, the problem needs f32",
        ),
        (
            forward(&full, narrow, Inputs { x: wrong_shape.operand(), ..good }, &y),
            "causal_conv1d: x has shape [2, 4, 3], the problem needs [2, 3, 4]",
        ),
        (
            forward(&full, narrow, Inputs { x: wrong_dtype.operand(), ..good }, &y),
            "causal_conv1d: x is f16, the problem needs f32",
        ),
        (
            forward(&full, narrow, Inputs { weight: y.operand(), ..good }, &y),
            "causal_conv1d: weight has shape [2, 3, 4], the problem needs [3, 4]",
        ),
        (
            forward(&full, narrow, Inputs { bias: None, ..good }, &y),
            "causal_conv1d: the problem needs bias [3], none was given",
        ),
        (
            forward(&full, narrow, Inputs { bias: Some(bias_f32.operand()), ..good }, &y),
            "causal_conv1d: bias is f32, the problem needs f16",
        ),
        (
            forward(&full, narrow, Inputs { initial_state: Some(y.operand()), ..good }, &y),
            "causal_conv1d: initial state has shape [2, 3, 4], the problem needs [2, 3, 3]",
        ),
        (
            forward(&full, narrow, Inputs { initial_state: Some(state_f16.operand()), ..good }, &y),
            "causal_conv1d: initial state is f16, the problem needs f32",
        ),
        (
            forward(&full, narrow, Inputs { initial_state: None, ..good }, &y),
            "causal_conv1d: the problem needs initial state [2, 3, 3], none was given",
        ),
        (
            forward(&full, narrow, Inputs { seq_idx: Some(&ids), ..good }, &y),
            "causal_conv1d: seq_idx has shape [4, 2], the problem needs [2, 4]",
        ),
        (
            forward(&full, narrow, Inputs { seq_idx: None, ..good }, &y),
            "causal_conv1d: the problem needs seq_idx [2, 4], none was given",
        ),
        (
            forward(&bare, narrow, Inputs { initial_state: None, seq_idx: None, ..good }, &y),
            "causal_conv1d: bias was given, the problem has none",
        ),
        (
            forward(&bare, narrow, Inputs { bias: None, initial_state: None, ..good }, &y),
            "causal_conv1d: seq_idx was given, the problem has none",
        ),
        (
            forward(&full, narrow, good, &wrong_shape),
            "causal_conv1d: y has shape [2, 4, 3], the problem needs [2, 3, 4]",
        ),
        (
            forward(&full, Plan::Empty, good, &y),
            "causal_conv1d: the plan `empty` was given for a forward pass that has results",
        ),
        (
            forward(&wide, narrow, wide_inputs, &y),
            "causal_conv1d: the plan `narrow` serves widths up to 8, the weight has width 9",
        ),
    ];
    for (error, expected) in rows {
        assert_eq!(error, expected);
    }

    let dw = output(&client, &[3, 4], FloatType::F16);
    let gradients = Gradients { x: y.operand(), weight: dw.operand(), bias: None, initial_state: None };
    let backward = |problem, inputs: Inputs, dy: &crate::support::Buffer, dfinal, out: Gradients| {
        op::backward(&client, &limits, problem, &Plan::Looped, &inputs, dy.operand(), dfinal, &out)
            .expect_err("a refusal")
            .to_string()
    };
    let bare_inputs = Inputs { bias: None, initial_state: None, seq_idx: None, ..good };
    let rows = [
        (
            backward(&full, good, &wrong_dtype, None, gradients),
            "causal_conv1d: dy is f16, the problem needs f32",
        ),
        (
            backward(&full, good, &y, Some(y.operand()), gradients),
            "causal_conv1d: the gradient of the final state has shape [2, 3, 4], the problem needs [2, 3, 3]",
        ),
        (
            backward(&full, good, &y, None, Gradients { x: dw.operand(), ..gradients }),
            "causal_conv1d: dx has shape [3, 4], the problem needs [2, 3, 4]",
        ),
        (
            backward(&full, good, &y, None, Gradients { bias: Some(bias_f32.operand()), ..gradients }),
            "causal_conv1d: bias gradient is f32, the problem needs f16",
        ),
        (
            backward(&bare, bare_inputs, &y, None, Gradients { bias: Some(bias_f32.operand()), ..gradients }),
            "causal_conv1d: bias gradient was given, the problem has none",
        ),
        (
            backward(
                &bare,
                bare_inputs,
                &y,
                None,
                Gradients { initial_state: Some(y.operand()), ..gradients },
            ),
            "causal_conv1d: gradient of the initial state was given, the problem has none",
        ),
    ];
    for (error, expected) in rows {
        assert_eq!(error, expected);
    }
}

#[test]
fn a_dtype_the_device_lacks_is_refused() {
    let client = client();
    let limits = Limits { dtypes: vec![FloatType::F32], ..Limits::of(&client) };
    let problem = problem(&Case::new("half", [1, 1, 1], 1), FloatType::F32, FloatType::Bf16);
    let message = "causal_conv1d: this device cannot hold bf16 tensors, it serves f32";
    assert_eq!(op::plan(&problem, op::Pass::Forward, &limits).expect_err("a refusal").to_string(), message);
    let [x, w] = [(&[1, 1, 1][..], FloatType::F32), (&[1, 1], FloatType::Bf16)]
        .map(|(shape, dtype)| output(&client, shape, dtype));
    let bias = output(&client, &[1], FloatType::Bf16);
    let inputs = Inputs {
        x: x.operand(),
        weight: w.operand(),
        bias: Some(bias.operand()),
        initial_state: None,
        seq_idx: None,
        residual: None,
    };
    let error = op::forward(&client, &limits, &problem, &Plan::Looped, &inputs, x.operand());
    assert_eq!(error.expect_err("a refusal").to_string(), message);
}

#[test]
fn offsets_beyond_the_index_type_are_refused() {
    let client = client();
    let limits = Limits { wide_index: false, ..Limits::of(&client) };
    let problem = problem(&Case::new("expanded", [70_000, 1, 70_000], 1), FloatType::F32, FloatType::F32);
    // Expanded from one element: no memory is needed to describe it.
    let one = output(&client, &[1, 1], FloatType::F32);
    let mut x = one.operand().clone();
    (x.shape, x.strides) = (vec![70_000, 1, 70_000], vec![0, 0, 0]);
    let bias = output(&client, &[1], FloatType::F32);
    let inputs = Inputs {
        x: &x,
        weight: one.operand(),
        bias: Some(bias.operand()),
        initial_state: None,
        seq_idx: None,
        residual: None,
    };
    let error = op::forward(&client, &limits, &problem, &Plan::Looped, &inputs, &x).expect_err("a refusal");
    assert_eq!(
        error.to_string(),
        "causal_conv1d: 4900000256 elements pass the 32-bit index range of this device (2147483647)"
    );
}

/// On a device that ends long loops, such loops are refused instead of giving wrong sums.
#[test]
fn loops_longer_than_the_device_allows_are_refused() {
    let client = client();
    let limits = Limits { loop_iterations: Some(4), ..Limits::of(&client) };
    let most = "loop iterations per thread, this software device ends loops after 4";
    let wide = problem(&Case::new("wide", [1, 1, 4], 9), FloatType::F32, FloatType::F32);
    let all = tensors(&client, &wide, &[], false, &|seed, length| fill::normal(seed, length));
    let error = op::forward(&client, &limits, &wide, &Plan::Looped, &all.inputs(), all.x.operand());
    assert_eq!(
        error.expect_err("a refusal").to_string(),
        format!("causal_conv1d: the forward pass by looped takes 10 {most}")
    );

    // A segment of 4 iterations and one for the halo.
    let long = problem(&Case::new("long", [1, 1, 16_384], 4), FloatType::F32, FloatType::F32);
    let all = tensors(&client, &long, &[], false, &|seed, length| fill::normal(seed, length));
    let (x, weight) = (all.x.operand(), all.weight.operand());
    let out = Gradients { x, weight, bias: None, initial_state: None };
    let error = op::backward(&client, &limits, &long, &Plan::Narrow, &all.inputs(), x, None, &out);
    assert_eq!(
        error.expect_err("a refusal").to_string(),
        format!("causal_conv1d: the backward pass by narrow takes 5 {most}")
    );

    let f32 = FloatType::F32;
    let update =
        UpdateProblem::new([1, 1], [1, 1, 5], [1, 4], None, Activation::None, f32, f32).expect("sound");
    let [x, state, weight] = [&[1, 1][..], &[1, 1, 5], &[1, 4]].map(|shape| output(&client, shape, f32));
    let (x, state) = (x.operand(), state.operand());
    let error = op::update(&client, &limits, &update, x, state, weight.operand(), None, x, state);
    assert_eq!(
        error.expect_err("a refusal").to_string(),
        format!("causal_conv1d_update: a call with steps = 1 takes 16 {most}")
    );
}
