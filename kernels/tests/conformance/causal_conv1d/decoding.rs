//! Several decoding steps at once: shifted states and rings, rows with and without a slot, in-place updates;
//! and the last states of packed sequences.

use super::normal;
use crate::support::{Buffer, client, output, read_all, upload, upload_indices};
use conv_cases::fill;
use conv_kernels::causal_conv1d::{
    Conv1dLayout, DecodingSteps, UpdateProblem, last_states, reference, sequence_ids, update_steps,
};
use conv_kernels::conv3d::Activation;
use conv_kernels::tolerance::Expected;
use conv_kernels::{FloatType, IndexOperand, IndexType, Limits};
use cubecl::prelude::*;

#[test]
fn several_steps_rings_and_slots_match_the_reference() {
    let client = client();
    let limits = Limits::of(&client);
    let mut cases = check_steps((&client, &limits), FloatType::F32, IndexType::I32, 1..=9);
    cases += check_steps((&client, &limits), FloatType::F16, IndexType::I32, 3..=4);
    println!("{cases} cases");
    assert!(cases >= 400);
}

/// Runs widths with states of several lengths, shifted and as rings, with and without slots; returns the
/// number of cases.
pub(crate) fn check_steps(
    (client, limits): (&Client, &Limits),
    dtype: FloatType,
    index_type: IndexType,
    widths: std::ops::RangeInclusive<usize>,
) -> u64 {
    let (b, c, rows) = (3, 5, 7);
    let mut cases = 0u64;
    for (w, extra, length) in
        widths.flat_map(|w| (0..3).flat_map(move |extra| [1, 2, 5, 11].map(move |l| (w, extra, l))))
    {
        for (ring, slotted) in [(false, false), (true, false), (false, true), (true, true)] {
            let s = w - 1 + [0, 1, 4][extra];
            if ring && s == 0 {
                continue;
            }
            cases += 1;
            let activation = if cases.is_multiple_of(2) { Activation::Silu } else { Activation::None };
            let problem = UpdateProblem::new([b, c], [b, c, s], [c, w], Some(c), activation, dtype, dtype)
                .expect("sound");
            let state_rows = if slotted { rows } else { b };
            let of = |seed: u64, shape: &[usize]| {
                upload(client, &normal(100 * cases + seed, shape.iter().product()), shape, dtype)
            };
            let (x, weight, bias) = (of(1, &[b, c, length]), of(2, &[c, w]), of(3, &[c]));
            let state = of(4, &[state_rows, c, s]);
            // The middle row is padding: its slot is negative or past the last.
            let missing = if cases.is_multiple_of(5) { rows as i64 } else { -1 };
            let slots = [5, missing, 2];
            let lengths = [0, 1, 2].map(|row| fill::integer(cases, row, 0, 3 * s as i64 + 2));
            let index = |values: &[i64]| upload_indices(client, values, &[b], &[1], index_type);
            let (lengths_on, slots_on) = (index(&lengths), index(&slots));
            let y = output(client, &[b, c, length], dtype);
            let apart = output(client, &[state_rows, c, s], dtype);
            let in_place = ring || slotted || cases.is_multiple_of(7);
            let new_state = if in_place { &state } else { &apart };
            let steps = DecodingSteps {
                x: x.operand(),
                state: state.operand(),
                weight: weight.operand(),
                bias: Some(bias.operand()),
                lengths: ring.then_some(&lengths_on),
                slots: slotted.then_some(&slots_on),
                y: y.operand(),
                new_state: new_state.operand(),
            };
            let name = format!("w {w} s {s} steps {length} ring {ring} slots {slotted} {}", dtype.name());
            update_steps(client, limits, &problem, &steps).unwrap_or_else(|error| panic!("{name}: {error}"));
            let got = read_all(client, &[&y, new_state]);
            let known = slots.map(|slot| if slot < rows as i64 { slot } else { -1 });
            let run = |problem: &UpdateProblem, of: &dyn Fn(&Buffer) -> Vec<f64>| {
                let (ring, slots) = (ring.then_some(&lengths[..]), slotted.then_some(&known[..]));
                let bias = of(&bias);
                reference::update_steps(problem, &of(&x), &of(&state), &of(&weight), Some(&bias), ring, slots)
            };
            let (values, want) = run(&problem, &|buffer| buffer.values());
            let linear = UpdateProblem { activation: Activation::None, ..problem };
            let (magnitudes, _) = run(&linear, &|buffer| buffer.values().into_iter().map(f64::abs).collect());
            let silu = activation == Activation::Silu;
            let (terms, slope) = if silu { (w + 25, 1.1) } else { (w + 1, 1.0) };
            let expected = Expected { values: &values, magnitudes: &magnitudes, terms, dtype, slope };
            expected.check(&got[0], None).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(got[1], want, "{name}: the new state");
        }
    }
    cases
}

#[test]
fn the_last_states_of_packed_sequences_are_copied() {
    let client = client();
    check_last_states((&client, &Limits::of(&client)), FloatType::F32, IndexType::I32);
}

pub(crate) fn check_last_states(
    (client, limits): (&Client, &Limits),
    dtype: FloatType,
    index_type: IndexType,
) {
    let (c, t, s) = (3, 20, 4);
    // Longer than the state, shorter, empty, and one to the end.
    let bounds = [0i64, 7, 9, 9, 20];
    for (layout, shape) in [(Conv1dLayout::Bct, [1, c, t]), (Conv1dLayout::Btc, [1, t, c])] {
        let x = upload(client, &normal(1, c * t), &shape, dtype);
        let on_device = upload_indices(client, &bounds, &[5], &[1], index_type);
        let out = output(client, &[4, c, s], dtype);
        last_states(client, limits, layout, x.operand(), &on_device, out.operand()).expect("a launch");
        let (values, got) = (x.values(), out.read(client));
        for (index, got) in got.into_iter().enumerate() {
            let (sequence, channel, m) = (index / s / c, index / s % c, index % s);
            let step = bounds[sequence + 1] - s as i64 + m as i64;
            let at = step as usize;
            let want = match layout.step_axis() {
                _ if step < bounds[sequence] => 0.0,
                1 => values[at * c + channel],
                _ => values[channel * t + at],
            };
            assert_eq!(got, want, "{layout:?} sequence {sequence} channel {channel} column {m}");
        }
    }
    check_sequence_ids((client, limits), index_type);
}

/// The ids of packed sequences, with padding before the first and after the last, a sequence without steps,
/// and more steps than a threadgroup has threads.
fn check_sequence_ids((client, limits): (&Client, &Limits), index_type: IndexType) {
    for (bounds, t) in [(vec![0i64, 7, 9, 9, 20], 20), (vec![3, 290, 300, 301], 600), (vec![5], 9)] {
        let on_device = upload_indices(client, &bounds, &[bounds.len()], &[2], index_type);
        let out = IndexOperand::contiguous(client.empty(t * index_type.size()), &[1, t], index_type);
        sequence_ids(client, limits, &on_device, &out).expect("a launch");
        let bytes = client.read_one(out.handle.clone()).expect("the launch succeeds");
        let got: Vec<i64> = bytes
            .chunks_exact(index_type.size())
            .map(|bytes| match *bytes {
                [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
                _ => i64::from_le_bytes(bytes.try_into().expect("8 bytes")),
            })
            .collect();
        let id = |step: i64| match bounds.iter().filter(|bound| **bound <= step).count() {
            reached if reached == bounds.len() => -1,
            reached => reached as i64 - 1,
        };
        assert_eq!(got[..t], (0..t as i64).map(id).collect::<Vec<_>>(), "{bounds:?} {index_type:?}");
    }
}

#[test]
fn bad_bounds_of_packed_sequences_are_refused() {
    let client = client();
    let limits = Limits::of(&client);
    let of = |shape: &[usize], index| IndexOperand::contiguous(client.empty(256), shape, index);
    let refusal = |bounds: &IndexOperand, out: &IndexOperand| {
        sequence_ids(&client, &limits, bounds, out).expect_err("a refusal").to_string()
    };
    let (i32, i64) = (IndexType::I32, IndexType::I64);
    assert_eq!(
        refusal(&of(&[0], i32), &of(&[1, 4], i32)),
        "causal_conv1d_seq_idx: cu_seqlens has shape [0], it must be [sequences + 1]"
    );
    assert_eq!(
        refusal(&of(&[3], i32), &of(&[2, 4], i32)),
        "causal_conv1d_seq_idx: seq_idx has shape [2, 4], the problem needs [1, 4]"
    );
    if i64.served_by(&client) {
        assert_eq!(
            refusal(&of(&[3], i32), &of(&[1, 4], i64)),
            "causal_conv1d_seq_idx: cu_seqlens is i32 and seq_idx is i64, their dtypes must match"
        );
    }
}
