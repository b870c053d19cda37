//! Limits that are checked or must have no effect: slots shared by several rows, loops longer than a device
//! allows, very long sums.

use super::{launch, plans, problem, read_results, tensors};
use crate::device::EXECUTED;
use crate::support::{client, output, read_all, upload, upload_indices};
use conv_cases::causal_conv1d::{Case, SeqIdx};
use conv_cases::fill;
use conv_kernels::causal_conv1d::{self as op, CausalConv1dProblem, DecodingSteps, UpdateProblem, reference};
use conv_kernels::conv3d::Activation;
use conv_kernels::{FloatType, IndexType, Limits};

/// Of rows that share a slot the last has it; the others are padding. On every device, also with in-place
/// updates.
#[test]
fn the_last_row_of_a_slot_has_it() {
    let client = client();
    let limits = Limits::of(&client);
    // More channels than a threadgroup has threads, more rows than it searches per iteration.
    let many: Vec<i64> = (0..600).map(|row| row % 7 - 1).collect();
    let tables: [(&[i64], usize, usize); 5] = [
        (&[0, 0, 2], 4, 2),
        (&[1, 1, 1], 4, 2),
        (&[0, 2, 0], 4, 300),
        (&[3, -1, 3, -1, 9], 4, 5),
        (&many, 6, 3),
    ];
    for (slots, rows, c) in tables {
        for (steps, ring) in [(1, false), (3, false), (3, true)] {
            let (b, w, s) = (slots.len(), 3, 2);
            let f32 = FloatType::F32;
            let problem =
                UpdateProblem::with_slots([b, c], [rows, c, s], [c, w], None, Activation::None, f32, f32)
                    .expect("sound");
            let integers = |seed: u64, count: usize| fill::integers(seed, count, -9, 9);
            let x = upload(&client, &integers(1, b * c * steps), &[b, c, steps], f32);
            let state = upload(&client, &integers(2, rows * c * s), &[rows, c, s], f32);
            let weight = upload(&client, &integers(3, c * w), &[c, w], f32);
            let seen: Vec<i64> = (0..b as i64).collect();
            let on_device = |values: &[i64]| upload_indices(&client, values, &[b], &[1], IndexType::I32);
            let (slots_on, lengths_on) = (on_device(slots), on_device(&seen));
            let y = output(&client, &[b, c, steps], f32);
            let all = DecodingSteps {
                x: x.operand(),
                state: state.operand(),
                weight: weight.operand(),
                bias: None,
                lengths: ring.then_some(&lengths_on),
                slots: Some(&slots_on),
                y: y.operand(),
                new_state: state.operand(),
            };
            op::update_steps(&client, &limits, &problem, &all).expect("a launch");
            let got = read_all(&client, &[&y, &state]);
            let known: Vec<i64> =
                slots.iter().map(|slot| if *slot < rows as i64 { *slot } else { -1 }).collect();
            let (values, want) = reference::update_steps(
                &problem,
                &x.values(),
                &state.values(),
                &weight.values(),
                None,
                ring.then_some(&seen[..]),
                Some(&known),
            );
            assert_eq!(got[0], values, "y of slots {slots:?}, {steps} steps");
            assert_eq!(got[1], want, "states of slots {slots:?}, {steps} steps");
        }
    }
}

/// Many steps in a ring: right up to the device's limit on loop iterations; one step more is refused with the
/// exact number of iterations.
#[test]
fn many_steps_in_a_ring_are_right_or_refused() {
    let client = client();
    let limits = Limits::of(&client);
    let iterations = |steps: usize| 3 * steps + 12;
    let longest = limits.loop_iterations.map_or(30_000, |most| (most - 12) / 3);
    for steps in [6000, longest, longest + 1] {
        let f32 = FloatType::F32;
        let problem =
            UpdateProblem::new([1, 2], [1, 2, 7], [2, 1], None, Activation::None, f32, f32).expect("sound");
        let values: Vec<f32> = (0..2 * steps).map(|index| 1.0 + (index % steps % 5) as f32).collect();
        let x = upload(&client, &values, &[1, 2, steps], f32);
        let state = upload(&client, &[1.0; 14], &[1, 2, 7], f32);
        let weight = upload(&client, &[1.0; 2], &[2, 1], f32);
        let lengths = upload_indices(&client, &[3], &[1], &[1], IndexType::I32);
        let y = output(&client, &[1, 2, steps], f32);
        let all = DecodingSteps {
            x: x.operand(),
            state: state.operand(),
            weight: weight.operand(),
            bias: None,
            lengths: Some(&lengths),
            slots: None,
            y: y.operand(),
            new_state: state.operand(),
        };
        let launched = op::update_steps(&client, &limits, &problem, &all);
        assert_eq!(op::check_update_steps(&problem, steps, 1, &limits).is_ok(), launched.is_ok());
        if let Some(most) = limits.loop_iterations.filter(|_| steps > longest) {
            let message = format!(
                "causal_conv1d_update: a call with steps = {steps} takes {} loop iterations per thread, this \
                 software device ends loops after {most}",
                iterations(steps)
            );
            assert_eq!(launched.expect_err("a refusal").to_string(), message);
            continue;
        }
        launched.expect("a launch");
        let got = read_all(&client, &[&y, &state]);
        assert_eq!(got[0], x.values());
        // Column (3 + t) mod 7 holds step t.
        let of_step = |t: usize| 1.0 + (t % 5) as f64;
        let mut want = vec![0.0; 7];
        (steps - 7..steps).for_each(|t| want[(3 + t) % 7] = of_step(t));
        assert_eq!(got[1], [want.clone(), want].concat(), "{steps} steps");
    }
}

/// A plan whose loops are too long for the device gives way to another, in either pass; if there is none, the
/// call is refused before anything is launched.
#[test]
fn plans_with_long_loops_give_way() {
    let limits = Limits { loop_iterations: Some(60), ..Limits::apple_m1() };
    let of = |w: usize, seq_idx: SeqIdx, t: usize| {
        problem(&Case { seq_idx, ..Case::new("long", [1, 1, t], w) }, FloatType::F32, FloatType::F32)
    };
    let planned = |problem: &CausalConv1dProblem, pass| op::plan(problem, pass, &limits);
    let wide = of(50, SeqIdx::None, 100);
    for pass in [op::Pass::Forward, op::Pass::Backward] {
        assert_eq!(planned(&wide, pass), Ok(op::Plan::Looped));
        assert_eq!(op::eligible(&wide, pass, &limits), [op::Plan::Looped]);
    }
    let wider = of(70, SeqIdx::Sequences, 100);
    for pass in [op::Pass::Forward, op::Pass::Backward] {
        assert_eq!(op::eligible(&wider, pass, &limits), []);
        assert_eq!(
            planned(&wider, pass).expect_err("a refusal").to_string(),
            format!(
                "causal_conv1d: the {} pass by looped takes 71 loop iterations per thread, this software \
                 device ends loops after 60",
                pass.name()
            )
        );
    }
    // With ids a search for the end of each row comes first, one iteration for 2,048 steps.
    let long = of(4, SeqIdx::Sequences, 60 * 2048);
    let short = of(4, SeqIdx::Sequences, 59 * 2048);
    assert_eq!(planned(&short, op::Pass::Forward), Ok(op::Plan::Narrow));
    let error = planned(&long, op::Pass::Forward).expect_err("a refusal").to_string();
    assert!(error.contains("takes 61 loop iterations per thread"), "{error}");
    assert!(planned(&long, op::Pass::Backward).is_err());
}

/// dw and db of many equal elements: the error does not grow with their number.
#[test]
fn long_sums_stay_exact() {
    let client = client();
    let limits = Limits::of(&client);
    let third = 1.0f32 / 3.0;
    let mut cases: Vec<_> = [(false, 300_000), (false, 3_000_000), (true, 300_000)]
        .into_iter()
        .map(|(btc, t)| Case { btc, ..Case::new("sums", [1, 1, t], 4) })
        .collect();
    // Many short rows.
    cases.extend([false, true].map(|btc| Case { btc, ..Case::new("rows", [20_000, 2, 8], 4) }));
    cases.extend([false, true].map(|btc| Case { btc, ..Case::new("wide", [1, 1, 300_000], 9) }));
    // Only the smaller ones if threads are executed on the CPU.
    cases.retain(|case| !EXECUTED || case.b * case.c * case.t * case.w <= 1_300_000);
    for case in cases {
        let problem = problem(&case, FloatType::F32, FloatType::F32);
        let fill = |seed: u64, length: usize| vec![if seed == 5 { third } else { 1.0 }; length];
        let all = tensors(&client, &problem, &[], false, &fill);
        for plans in plans(&problem, &limits) {
            let results = launch((&client, &limits), &problem, plans, &all);
            let results = read_results(&client, &[results]).remove(0);
            for (name, got) in results.iter().filter(|(name, _)| matches!(*name, "dw" | "db")) {
                for (index, got) in got.iter().enumerate() {
                    // Tap k misses the first W-1-k steps of every row.
                    let missed = if *name == "dw" { case.w - 1 - index % case.w } else { 0 };
                    let want = f64::from(third) * (case.b * (case.t - missed)) as f64;
                    let error = (got - want).abs() / want;
                    assert!(
                        error < 4e-6,
                        "{case} {plans:?} {name} {index}: {got}, expected {want}, off by {error:e}"
                    );
                }
            }
        }
    }
}
