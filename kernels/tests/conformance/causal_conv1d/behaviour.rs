//! Behaviour beyond the conformance table: empty problems, named regressions of other libraries, ids, NaN,
//! extreme values, omitted gradients.

use super::views::bits;
use super::{Tensors, launch, normal, plans, problem, read_results, run, sample, tensors};
use crate::support::{Buffer, client, output, read_all, upload, upload_indices};
use conv_cases::causal_conv1d::{self as cases, Case, SeqIdx};
use conv_kernels::causal_conv1d::{self as op, CausalConv1dProblem, UpdateProblem};
use conv_kernels::conv3d::Activation;
use conv_kernels::{FloatType, IndexOperand, IndexType, Limits, Operand};

#[test]
pub(crate) fn empty_problems_give_empty_or_zero_results() {
    let base = Case { initial: true, silu: true, seq_idx: SeqIdx::Sequences, ..Case::new("", [2, 3, 5], 4) };
    let named = |name: &str, case: Case| Case { name: name.into(), ..case };
    let mut table = vec![
        named("no_steps", Case { t: 0, ..base.clone() }),
        named("no_rows", Case { b: 0, ..base.clone() }),
        named("no_channels", Case { c: 0, ..base.clone() }),
        named("no_state", Case { w: 1, ..base.clone() }),
        named("no_steps_no_state", Case { t: 0, w: 1, seq_idx: SeqIdx::None, ..base.clone() }),
        named("no_steps_linear", Case { t: 0, silu: false, initial: false, w: 9, ..base }),
    ];
    let channels_last: Vec<_> = table.iter().map(|case| Case { btc: true, ..case.clone() }).collect();
    table.extend(channels_last);
    // Cases at even indices have a gradient of the final state, those at odd indices have none.
    table = table.into_iter().flat_map(|case| [case.clone(), case]).collect();
    run(&table, FloatType::F32, false);
    run(&table, FloatType::F16, false);
}

/// Tensors without elements may have no memory.
#[test]
fn nothing_is_bound_for_tensors_without_elements() {
    let client = client();
    let limits = Limits::of(&client);
    let case =
        Case { silu: true, initial: true, seq_idx: SeqIdx::Sequences, ..Case::new("none", [2, 3, 0], 4) };
    for activation in [Activation::Silu, Activation::None] {
        let problem = CausalConv1dProblem { activation, ..problem(&case, FloatType::F32, FloatType::F32) };
        let tensors = tensors(&client, &problem, &[], true, &normal);
        let nothing = Operand::contiguous(client.empty(0), &problem.x_shape(), FloatType::F32);
        let no_ids = IndexOperand::contiguous(client.empty(0), &problem.seq_idx_shape(), IndexType::I32);
        let inputs = op::Inputs { x: &nothing, seq_idx: Some(&no_ids), ..tensors.inputs() };
        let [last, dinitial] = [(); 2].map(|()| output(&client, &problem.state_shape(), FloatType::F32));
        let dw = output(&client, &problem.weight_shape(), FloatType::F32);
        let db = output(&client, &[3], FloatType::F32);
        let gradients = op::Gradients {
            x: &nothing,
            weight: dw.operand(),
            bias: Some(db.operand()),
            initial_state: Some(dinitial.operand()),
        };
        let dfinal = tensors.dfinal.as_ref().map(Buffer::operand);
        op::forward(&client, &limits, &problem, &op::Plan::Empty, &inputs, &nothing)
            .and_then(|()| {
                let (initial, ids) = (inputs.initial_state, inputs.seq_idx);
                op::final_state(&client, &limits, &problem, &nothing, initial, ids, last.operand())
            })
            .and_then(|()| {
                let plan = op::Plan::Narrow;
                op::backward(&client, &limits, &problem, &plan, &inputs, &nothing, dfinal, &gradients)
            })
            .expect("launches");
        let got = read_all(&client, &[&last, &dinitial, &dw, &db]);
        assert_eq!(got[0], tensors.state.as_ref().expect("a state").values());
        assert_eq!(got[1], tensors.dfinal.as_ref().expect("a gradient").values());
        assert_eq!((&got[2], &got[3]), (&vec![0.0; 12], &vec![0.0; 3]));
    }
    // W = 1 has no state.
    let f32 = FloatType::F32;
    let problem =
        UpdateProblem::new([1, 2], [1, 2, 0], [2, 1], None, Activation::None, f32, f32).expect("sound");
    let state = Operand::contiguous(client.empty(0), &[1, 2, 0], f32);
    let (x, weight) =
        (upload(&client, &[3.0, 5.0], &[1, 2], f32), upload(&client, &[2.0, 7.0], &[2, 1], f32));
    let y = output(&client, &[1, 2], f32);
    op::update(&client, &limits, &problem, x.operand(), &state, weight.operand(), None, y.operand(), &state)
        .expect("a launch");
    assert_eq!(y.read(&client), [6.0, 35.0]);
}

#[test]
fn shapes_that_broke_other_libraries() {
    run(&cases::regressions(), FloatType::F32, false);
}

/// 64-bit ids if the device has them: ids that differ only above bit 31 are different.
#[test]
fn wide_ids_are_compared_in_full() {
    let client = client();
    let limits = Limits::of(&client);
    let case = Case { seq_idx: SeqIdx::Sequences, ..Case::new("ids", [1, 2, 8], 4) };
    let problem = problem(&case, FloatType::F32, FloatType::F32);
    let narrow = [5, 5, 5, 9, 9, -1, -1, 7];
    let wide = [5, 5, 5, 5 + (1i64 << 32), 5 + (1 << 32), -1 << 40, -1 << 40, 7];
    let with = |ids: &[i64], dtype: IndexType| {
        let all = tensors(&client, &problem, &narrow, true, &normal);
        let operand = upload_indices(&client, ids, &[1, 8], &[8, 1], dtype);
        Tensors { ids: Some((ids.to_vec(), operand)), ..all }
    };
    let reference = with(&narrow.map(i64::from), IndexType::I32);
    for plans in plans(&problem, &limits) {
        if !IndexType::I64.served_by(&client) {
            let ids = with(&wide, IndexType::I64);
            let y = output(&client, &problem.x_shape(), FloatType::F32);
            let error = op::forward(&client, &limits, &problem, &plans[0], &ids.inputs(), y.operand());
            let message = "causal_conv1d: this device cannot read i64 indices, convert them to i32";
            assert_eq!(error.expect_err("a refusal").to_string(), message);
            continue;
        }
        let launched = [&reference, &with(&wide, IndexType::I64)]
            .map(|tensors| launch((&client, &limits), &problem, plans, tensors));
        let bits = bits(&client, launched.into());
        assert_eq!(bits[1], bits[0], "{plans:?}");
    }
}

/// NaN at padding and in other sequences reaches nothing; NaN in a sequence reaches exactly the steps that
/// read it.
#[test]
fn nan_stays_where_it_is_read() {
    let client = client();
    let limits = Limits::of(&client);
    let ids = [-1, 4, 4, 4, 4, 4, 2, 2, -1, -1];
    for (btc, silu) in [(false, true), (true, true), (false, false), (true, false)] {
        let case = Case { btc, silu, seq_idx: SeqIdx::WithPadding, ..Case::new("nan", [1, 2, 10], 3) };
        let problem = problem(&case, FloatType::F32, FloatType::F32);
        let at = |c: usize, t: usize| if btc { t * 2 + c } else { c * 10 + t };
        let with = |positions: &[(usize, usize)], dirty_dy: bool| {
            let fill = |seed: u64, length: usize| {
                let mut values = normal(seed, length);
                if seed == 1 || (seed == 5 && dirty_dy) {
                    positions.iter().for_each(|(c, t)| values[at(*c, *t)] = f32::NAN);
                }
                values
            };
            tensors(&client, &problem, &ids, false, &fill)
        };
        let padding: Vec<_> =
            (0..2).flat_map(|c| (0..10).map(move |t| (c, t))).filter(|(_, t)| ids[*t] < 0).collect();
        for plans in plans(&problem, &limits) {
            let launched = [with(&[], false), with(&padding, true), with(&[(1, 4)], false)]
                .map(|tensors| launch((&client, &limits), &problem, plans, &tensors));
            let [clean, padded, one] =
                <[_; 3]>::try_from(read_results(&client, &launched)).expect("three results");
            for ((name, padded), (_, clean)) in padded.iter().zip(&clean) {
                assert!(padded == clean, "{case} {plans:?} {name}: {padded:?}, {clean:?}");
            }
            // Step 4 of channel 1 is read by steps 4 and 5; step 6 begins another sequence.
            for t in 0..10 {
                assert!(!one[0].1[at(0, t)].is_nan(), "{case} {plans:?} channel 0 step {t}");
                assert_eq!(one[0].1[at(1, t)].is_nan(), t == 4 || t == 5, "{case} {plans:?} step {t}");
            }
        }
    }
}

/// SiLU of large values neither overflows nor loses its sign, and ReLU passes NaN on.
#[test]
fn extreme_values_pass_the_activations() {
    let client = client();
    let limits = Limits::of(&client);
    let values = [-1e30f32, -200.0, -90.0, -50.0, -1e-30, 0.0, 1e-30, 50.0, 90.0, 200.0, 1e30, f32::NAN];
    let case = Case { bias: false, ..Case::new("extreme", [1, 1, values.len()], 1) };
    let problem = problem(&case, FloatType::F32, FloatType::F32);
    let fill = |seed: u64, length: usize| if seed == 1 { values.to_vec() } else { vec![1.0; length] };
    let tensors = tensors(&client, &problem, &[], false, &fill);
    for activation in [Activation::Silu, Activation::Relu] {
        let problem = CausalConv1dProblem { activation, ..problem };
        for plans in plans(&problem, &limits) {
            let results =
                read_results(&client, &[launch((&client, &limits), &problem, plans, &tensors)]).remove(0);
            for (index, x) in values.iter().map(|x| f64::from(*x)).enumerate() {
                let (y, dx) = (results[0].1[index], results[2].1[index]);
                if x.is_nan() {
                    assert!(y.is_nan(), "{activation:?} of NaN is {y}");
                    continue;
                }
                let want = conv_kernels::conv3d::reference::activate(activation, x);
                let slope = conv_kernels::conv3d::reference::activation_derivative(activation, x);
                assert!(
                    (y - want).abs() <= 1e-5 * want.abs() + 1e-30,
                    "{activation:?} of {x} is {y}, not {want}"
                );
                assert!(
                    (dx - slope).abs() <= 1e-5 * slope.abs() + 1e-30,
                    "{activation:?}'({x}) is {dx}, not {slope}"
                );
            }
        }
    }
}

/// Omitting a gradient changes no other.
#[test]
fn optional_gradients_may_be_left_out() {
    let client = client();
    let limits = Limits::of(&client);
    let case = &sample()[0];
    let problem = problem(case, FloatType::F32, FloatType::F32);
    let tensors = tensors(&client, &problem, &cases::seq_idx(case), true, &normal);
    for plans in plans(&problem, &limits) {
        let all = bits(&client, vec![launch((&client, &limits), &problem, plans, &tensors)]).remove(0);
        let dx = output(&client, &problem.x_shape(), FloatType::F32);
        let dw = output(&client, &problem.weight_shape(), FloatType::F32);
        let out = op::Gradients { x: dx.operand(), weight: dw.operand(), bias: None, initial_state: None };
        let dfinal = tensors.dfinal.as_ref().map(Buffer::operand);
        let (inputs, dy) = (tensors.inputs(), tensors.dy.operand());
        op::backward(&client, &limits, &problem, &plans[1], &inputs, dy, dfinal, &out).expect("a launch");
        for (got, (name, want)) in read_all(&client, &[&dx, &dw]).into_iter().zip(&all[2..4]) {
            assert_eq!(got.into_iter().map(f64::to_bits).collect::<Vec<_>>(), *want, "{name} {plans:?}");
        }
    }
}
