//! Final states of rows with sequence ids and padding, chunks of such rows, isolation of padding, and fp32
//! states with 16-bit x.

use super::{check, launch, normal, plans, problem, read_results, tensors};
use crate::device::EXECUTED;
use crate::support::{client, output, read_all, upload, upload_indices};
use conv_cases::causal_conv1d::{self as cases, Case, SeqIdx};
use conv_cases::fill;
use conv_kernels::causal_conv1d::{self as op, DecodingSteps, UpdateProblem, reference};
use conv_kernels::conv3d::Activation;
use conv_kernels::{FloatType, IndexType, Limits};
use conv_testing::is_full;
use cubecl::prelude::*;

/// A row of one channel, and expected results by name.
struct Row {
    name: &'static str,
    x: &'static [f32],
    ids: &'static [i32],
    taps: &'static [f32],
    initial: Option<&'static [f32]>,
    dfinal: Option<&'static [f32]>,
    expected: &'static [(&'static str, &'static [f64])],
}

/// Regressions: inputs for which the state was not the sequence's own.
const ROWS: [Row; 7] = [
    Row {
        name: "padding behind",
        x: &[1.0, 2.0, 3.0, 4.0, 99.0, 99.0],
        ids: &[0, 0, 0, 0, -1, -1],
        taps: &[1.0, 10.0, 100.0, 1000.0],
        initial: None,
        dfinal: Some(&[4.0, 5.0, 6.0]),
        expected: &[("final state", &[2.0, 3.0, 4.0]), ("dx", &[1111.0, 1114.0, 1105.0, 1006.0, 0.0, 0.0])],
    },
    Row {
        name: "shorter than the state",
        x: &[5.0, 9.0, 9.0, 9.0],
        ids: &[0, -1, -1, -1],
        taps: &[1.0; 4],
        initial: Some(&[1.0, 2.0, 3.0]),
        dfinal: Some(&[1.0, 2.0, 3.0]),
        expected: &[
            ("final state", &[2.0, 3.0, 5.0]),
            ("dx", &[4.0, 0.0, 0.0, 0.0]),
            ("dinitial", &[1.0, 2.0, 3.0]),
        ],
    },
    Row {
        name: "shorter, without an initial state",
        x: &[5.0, 9.0, 9.0, 9.0],
        ids: &[0, -1, -1, -1],
        taps: &[1.0; 4],
        initial: None,
        dfinal: None,
        expected: &[("final state", &[0.0, 0.0, 5.0])],
    },
    Row {
        name: "padding in front",
        x: &[99.0, 99.0, 1.0, 2.0],
        ids: &[-1, -1, 0, 0],
        taps: &[1.0, 10.0, 100.0, 1000.0],
        initial: None,
        dfinal: Some(&[4.0, 5.0, 6.0]),
        expected: &[("final state", &[0.0, 1.0, 2.0]), ("dx", &[0.0, 0.0, 1105.0, 1006.0])],
    },
    Row {
        name: "a boundary near the end",
        x: &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0],
        ids: &[0, 0, 0, 0, 0, 0, 0, 1],
        taps: &[1.0; 4],
        initial: None,
        dfinal: Some(&[4.0, 5.0, 6.0]),
        expected: &[("final state", &[0.0, 0.0, 128.0]), ("dx", &[4.0, 4.0, 4.0, 4.0, 3.0, 2.0, 1.0, 7.0])],
    },
    Row {
        name: "padding only",
        x: &[9.0, 9.0],
        ids: &[-1, -2],
        taps: &[1.0; 4],
        initial: Some(&[1.0, 2.0, 3.0]),
        dfinal: Some(&[4.0, 5.0, 6.0]),
        expected: &[
            ("y", &[0.0, 0.0]),
            ("final state", &[1.0, 2.0, 3.0]),
            ("dx", &[0.0, 0.0]),
            ("dinitial", &[4.0, 5.0, 6.0]),
        ],
    },
    Row {
        name: "a state of another sequence than the last",
        x: &[1.0, 9.0, 2.0],
        ids: &[3, -1, 5],
        taps: &[1.0; 4],
        initial: Some(&[10.0, 20.0, 30.0]),
        dfinal: Some(&[4.0, 5.0, 6.0]),
        expected: &[
            ("y", &[61.0, 0.0, 2.0]),
            ("final state", &[0.0, 0.0, 2.0]),
            ("dx", &[1.0, 0.0, 7.0]),
            ("dinitial", &[1.0, 1.0, 1.0]),
        ],
    },
];

/// The state is what the next step of the row's last sequence reads, in every layout and plan.
#[test]
fn final_states_know_their_sequences() {
    let client = client();
    let limits = Limits::of(&client);
    for dtype in [FloatType::F32, FloatType::F16].into_iter().filter(|dtype| limits.dtypes.contains(dtype)) {
        for (btc, row) in [false, true].into_iter().flat_map(|btc| ROWS.iter().map(move |row| (btc, row))) {
            let case = Case {
                btc,
                bias: false,
                initial: row.initial.is_some(),
                seq_idx: SeqIdx::WithPadding,
                ..Case::new(row.name, [1, 1, row.x.len()], row.taps.len())
            };
            let problem = problem(&case, dtype, dtype);
            let fill = |seed: u64, length: usize| match seed {
                1 => row.x.to_vec(),
                2 => row.taps.to_vec(),
                4 => row.initial.expect("a state").to_vec(),
                6 => row.dfinal.expect("a gradient").to_vec(),
                _ => vec![1.0; length],
            };
            let all = tensors(&client, &problem, row.ids, row.dfinal.is_some(), &fill);
            for plans in plans(&problem, &limits) {
                let results = launch((&client, &limits), &problem, plans, &all);
                let results = read_results(&client, &[results]).remove(0);
                for (name, want) in row.expected {
                    let got = &results.iter().find(|(other, _)| other == name).expect("a result").1;
                    assert_eq!(got, want, "{} btc {btc} {plans:?} {}: {name}", row.name, dtype.name());
                }
            }
        }
    }
}

/// Rows with ids in two chunks, the second with the state of the first if its first step belongs to the
/// state's sequence, give y and dx of the whole, wherever they are split: within a sequence, at its end,
/// within padding.
#[test]
fn chunks_of_rows_with_ids_give_the_whole() {
    let client = client();
    let limits = Limits::of(&client);
    let x = [1.0f32, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];
    let wholes: [(&[i32], &[f64], &[f64]); 3] = [
        (
            &[0, 0, 0, 1, 1, 1, 1, 1],
            &[1.0, 3.0, 7.0, 8.0, 24.0, 56.0, 120.0, 240.0],
            &[3.0, 2.0, 1.0, 4.0, 4.0, 3.0, 2.0, 1.0],
        ),
        (
            &[0, 0, -1, -1, 7, 7, 7, -1],
            &[1.0, 3.0, 0.0, 0.0, 16.0, 48.0, 112.0, 0.0],
            &[2.0, 1.0, 0.0, 0.0, 3.0, 2.0, 1.0, 0.0],
        ),
        (
            &[-1, -1, -1, -1, -1, -1, -1, 2],
            &[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 128.0],
            &[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        ),
    ];
    let mut cuts = 0;
    for (btc, (ids, y, dx)) in [false, true].into_iter().flat_map(|btc| wholes.map(|whole| (btc, whole))) {
        for cut in 1..x.len() {
            let piece = |from: usize, to: usize, state: &[f32], dfinal: &[f32]| {
                let case = Case {
                    btc,
                    bias: false,
                    initial: true,
                    seq_idx: SeqIdx::WithPadding,
                    ..Case::new("piece", [1, 1, to - from], 4)
                };
                let problem = problem(&case, FloatType::F32, FloatType::F32);
                let fill = |seed: u64, length: usize| match seed {
                    1 => x[from..to].to_vec(),
                    4 => state.to_vec(),
                    6 => dfinal.to_vec(),
                    _ => vec![1.0; length],
                };
                let all = tensors(&client, &problem, &ids[from..to], true, &fill);
                let mut results = Vec::new();
                for plans in plans(&problem, &limits) {
                    results.push(launch((&client, &limits), &problem, plans, &all));
                }
                read_results(&client, &results)
            };
            let f32s = |values: &[f64]| values.iter().map(|value| *value as f32).collect::<Vec<_>>();
            let named = |results: &[(&str, Vec<f64>)], name: &str| {
                results.iter().find(|(other, _)| *other == name).expect("a result").1.clone()
            };
            // The sequence of the first chunk's final state.
            let owner = ids[..cut].iter().rev().find(|id| **id >= 0);
            let own = ids[cut] < 0 || owner == Some(&ids[cut]);
            let state = piece(0, cut, &[0.0; 3], &[0.0; 3]).remove(0);
            let state = if own { f32s(&named(&state, "final state")) } else { vec![0.0; 3] };
            for second in piece(cut, x.len(), &state, &[0.0; 3]) {
                let dstate = f32s(&named(&second, "dinitial"));
                let dstate = if own { dstate } else { vec![0.0; 3] };
                for first in piece(0, cut, &[0.0; 3], &dstate) {
                    let joined = |name: &str| [named(&first, name), named(&second, name)].concat();
                    assert_eq!(joined("y"), y, "{ids:?} cut at {cut}, btc {btc}");
                    assert_eq!(joined("dx"), dx, "{ids:?} cut at {cut}, btc {btc}");
                    cuts += 1;
                }
            }
        }
    }
    assert_eq!(cuts, 2 * 3 * 7 * 4);
}

/// Long padding at a row's end: the search for the last step starts from the end.
#[test]
fn the_last_step_before_long_padding_is_found() {
    let client = client();
    let limits = Limits::of(&client);
    for (t, last) in [(3000, 0), (5000, 4999), (9000, 13), (2049, 2047), (70_000, 40_000)] {
        let case = Case { seq_idx: SeqIdx::WithPadding, ..Case::new("long", [1, 1, t], 4) };
        let problem = problem(&case, FloatType::F32, FloatType::F32);
        let ids: Vec<i32> = (0..t).map(|step| if step <= last { 4 } else { -1 }).collect();
        let all = tensors(&client, &problem, &ids, false, &normal);
        let out = output(&client, &problem.state_shape(), FloatType::F32);
        let inputs = all.inputs();
        op::final_state(&client, &limits, &problem, inputs.x, None, inputs.seq_idx, out.operand())
            .expect("a launch");
        let (x, got) = (all.x.values(), out.read(&client));
        let want: Vec<f64> = (0..3).map(|m| (last + m).checked_sub(2).map_or(0.0, |step| x[step])).collect();
        assert_eq!(got, want, "{t} steps, the last is {last}");
    }
}

/// NaN and infinities at padding, in x, dy and the residual, reach no result, and an infinite weight does not
/// reach padding.
#[test]
fn nothing_at_padding_reaches_a_result() {
    let client = client();
    let limits = Limits::of(&client);
    let ids = [0, 0, 0, -1, -1, 5, 5, -1];
    for (btc, w) in [(false, 2), (true, 2), (false, 4), (true, 4), (false, 9), (true, 9)] {
        let case = Case {
            btc,
            residual: true,
            initial: true,
            seq_idx: SeqIdx::WithPadding,
            ..Case::new("dirty", [1, 2, 8], w)
        };
        let problem = problem(&case, FloatType::F32, FloatType::F32);
        let with = |dirt: Option<f32>| {
            let fill = |seed: u64, length: usize| {
                let mut values = normal(seed, length);
                if let (1 | 5 | 7, Some(dirt)) = (seed, dirt) {
                    for (index, value) in values.iter_mut().enumerate() {
                        let t = if btc { index / 2 } else { index % 8 };
                        *value = if ids[t] < 0 { dirt } else { *value };
                    }
                }
                values
            };
            tensors(&client, &problem, &ids, true, &fill)
        };
        for plans in plans(&problem, &limits) {
            let launched = [None, Some(f32::NAN), Some(f32::INFINITY)]
                .map(|dirt| launch((&client, &limits), &problem, plans, &with(dirt)));
            let results = read_results(&client, &launched);
            assert_eq!(results[1], results[0], "{case} {plans:?}: NaN");
            assert_eq!(results[2], results[0], "{case} {plans:?}: infinite");
            let infinite = |seed: u64, length: usize| match seed {
                2 => vec![f32::INFINITY; length],
                _ => normal(seed, length),
            };
            let all = tensors(&client, &problem, &ids, true, &infinite);
            let results = read_results(&client, &[launch((&client, &limits), &problem, plans, &all)]);
            let (y, dx) = (&results[0][0].1, &results[0][2].1);
            for index in 0..16 {
                let t = if btc { index / 2 } else { index % 8 };
                if ids[t] < 0 {
                    assert_eq!((y[index], dx[index]), (0.0, 0.0), "{case} {plans:?} step {t}");
                }
            }
        }
    }
}

/// fp32 states with 16-bit x are read and written without rounding to x's dtype, in every plan.
#[test]
fn states_stay_in_fp32_with_16_bit_x() {
    let client = client();
    let limits = Limits::of(&client);
    for dtype in [FloatType::F16, FloatType::Bf16].into_iter().filter(|dtype| limits.dtypes.contains(dtype)) {
        check_fp32_states((&client, &limits), dtype);
    }
    let f32 = problem(&Case::new("f32", [1, 1, 1], 2), FloatType::F32, FloatType::F32);
    assert_eq!(
        f32.with_state_dtype(FloatType::F16).expect_err("a refusal").to_string(),
        "causal_conv1d: x is f32 and the state is f16, a state is of x's dtype or f32"
    );
}

fn check_fp32_states((client, limits): (&Client, &Limits), dtype: FloatType) {
    let all = [(4, SeqIdx::None), (3, SeqIdx::WithPadding), (12, SeqIdx::None), (12, SeqIdx::Sequences)];
    let calls = [false, true].into_iter().flat_map(|btc| all.map(|each| (btc, each)));
    // A software device takes seconds to compile a kernel: half of them in the quick tier, with every layout,
    // width and kind of ids. The executor runs all.
    let every = if is_full() || EXECUTED { 1 } else { 2 };
    let calls = calls.enumerate().filter(|(index, (btc, _))| (index + usize::from(*btc)) % every == 0);
    for (btc, (w, seq_idx)) in calls.map(|(_, call)| call) {
        for t in [2, 40] {
            let case = Case { btc, initial: true, seq_idx, ..Case::new("kept", [2, 8, t], w) };
            let problem = problem(&case, dtype, dtype).with_state_dtype(FloatType::F32).expect("allowed");
            let ids = cases::seq_idx(&case);
            let (checks, failures) = check((client, limits), &problem, (&ids, IndexType::I32), true, false);
            assert!(checks > 0 && failures.is_empty(), "{case} {}: {failures:?}", dtype.name());
        }
    }
    // Steps of a state of four columns, of other lengths, and in a ring.
    for (s, steps, ring) in [(4, 1, false), (3, 1, false), (6, 3, false), (5, 7, true)] {
        let (b, c, w) = (2, 5, 4);
        let problem = UpdateProblem::new([b, c], [b, c, s], [c, w], None, Activation::None, dtype, dtype)
            .and_then(|problem| problem.with_state_dtype(FloatType::F32))
            .expect("sound");
        let integers = |seed: u64, count: usize| fill::integers(seed, count, -3, 3);
        let x = upload(client, &integers(1, b * c * steps), &[b, c, steps], dtype);
        // No 16-bit type holds these.
        let fine: Vec<f32> = integers(2, b * c * s).into_iter().map(|value| value + 1.0 / 4096.0).collect();
        let state = upload(client, &fine, &[b, c, s], FloatType::F32);
        let weight = upload(client, &integers(3, c * w), &[c, w], dtype);
        let lengths = upload_indices(client, &[3, 8], &[b], &[1], IndexType::I32);
        let y = output(client, &[b, c, steps], dtype);
        let steps_of = DecodingSteps {
            x: x.operand(),
            state: state.operand(),
            weight: weight.operand(),
            bias: None,
            lengths: ring.then_some(&lengths),
            slots: None,
            y: y.operand(),
            new_state: state.operand(),
        };
        op::update_steps(client, limits, &problem, &steps_of).expect("a launch");
        let got = read_all(client, &[&y, &state]);
        let lengths = ring.then_some(&[3i64, 8][..]);
        let (values, want) = reference::update_steps(
            &problem,
            &x.values(),
            &state.values(),
            &weight.values(),
            None,
            lengths,
            None,
        );
        assert_eq!(got[1], want, "{s} columns, {steps} steps of {}", dtype.name());
        let rounded: Vec<f64> =
            values.iter().map(|value| f64::from(crate::support::round(*value as f32, dtype))).collect();
        assert_eq!(got[0], rounded, "{s} columns, {steps} steps of {}", dtype.name());
    }
}
