//! Relations between problems, without a reference, under every plan: rows are independent, a packed row
//! equals its sequences, an initial state equals preceding steps, gradients are adjoint. Data are small
//! integers, so every sum is exact.

use super::{Tensors, launch, plans, problem, read_results, tensors_with};
use crate::support::client;
use conv_cases::causal_conv1d::{Case, SeqIdx};
use conv_cases::fill;
use conv_kernels::causal_conv1d::CausalConv1dProblem;
use conv_kernels::{FloatType, IndexType, Limits};
use cubecl::prelude::*;

const F32: FloatType = FloatType::F32;

/// The values of a tensor, by the seed and length that [`tensors_with`] passes.
type Fill<'a> = &'a dyn Fn(u64, usize) -> Vec<f32>;

fn integers(seed: u64, length: usize) -> Vec<f32> {
    fill::integers(seed, length, -3, 3)
}

/// `[B, C, T]`, odd and even, shorter than a filter and longer than a tile; narrow filters and wide ones.
fn cases() -> Vec<Case> {
    [([2, 5, 37], 4), ([2, 3, 3], 5), ([2, 8, 64], 3), ([2, 2, 23], 12), ([2, 3, 5], 20)]
        .into_iter()
        .flat_map(|(extents, w)| {
            [false, true].map(|btc| Case { btc, bias: false, ..Case::new("law", extents, w) })
        })
        .collect()
}

/// y, the final state, dx, dw and those of the options, under each pair of plans.
fn results(client: &Client, problem: &CausalConv1dProblem, ids: &[i32], fill: Fill) -> Vec<Vec<Vec<f64>>> {
    let tensors = tensors_with(client, problem, (ids, IndexType::I32), false, fill);
    of_plans(client, problem, &tensors, usize::MAX)
}

/// [`results`] under the automatic plans.
fn automatic(client: &Client, problem: &CausalConv1dProblem, fill: Fill) -> Vec<Vec<f64>> {
    let tensors = tensors_with(client, problem, (&[], IndexType::I32), false, fill);
    of_plans(client, problem, &tensors, 1).remove(0)
}

fn of_plans(
    client: &Client,
    problem: &CausalConv1dProblem,
    tensors: &Tensors,
    most: usize,
) -> Vec<Vec<Vec<f64>>> {
    let limits = Limits::of(client);
    let launched: Vec<_> = plans(problem, &limits)
        .into_iter()
        .take(most)
        .map(|plans| launch((client, &limits), problem, plans, tensors))
        .collect();
    let read = read_results(client, &launched);
    read.into_iter().map(|results| results.into_iter().map(|(_, values)| values).collect()).collect()
}

/// The steps `from..to` of each row of `values`, which are in x's layout.
fn steps<T: Copy>(problem: &CausalConv1dProblem, values: &[T], from: usize, to: usize) -> Vec<T> {
    let inside = |index: &usize| (from..to).contains(&problem.x_element(*index)[2]);
    (0..values.len()).filter(inside).map(|index| values[index]).collect()
}

#[test]
fn rows_of_a_batch_are_independent() {
    let client = client();
    for case in cases() {
        let whole = problem(&Case { initial: case.w > 1, ..case.clone() }, F32, F32);
        let one = CausalConv1dProblem { batch: 1, ..whole };
        let rows = [0, 1].map(|row| {
            let half = |seed: u64, length: usize| {
                // The rows share the weight; everything else has a batch axis.
                if seed == 2 {
                    integers(seed, length)
                } else {
                    integers(seed, 2 * length)[row * length..][..length].to_vec()
                }
            };
            automatic(&client, &one, &half)
        });
        for got in results(&client, &whole, &[], &integers) {
            for (index, got) in got.iter().enumerate() {
                let want: Vec<f64> = if index == 3 {
                    rows[0][3].iter().zip(&rows[1][3]).map(|(a, b)| a + b).collect()
                } else {
                    [&rows[0][index][..], &rows[1][index][..]].concat()
                };
                assert!(*got == want, "{case}: result {index}");
            }
        }
    }
}

#[test]
fn a_packed_row_equals_its_sequences() {
    let client = client();
    for case in cases().into_iter().filter(|case| case.t > 4) {
        let packed = problem(&Case { b: 1, seq_idx: SeqIdx::Sequences, ..case.clone() }, F32, F32);
        let t = packed.length;
        let bounds = [0, 1, t / 3 + 1, t - 1, t];
        let id = |step: usize| bounds.iter().filter(|bound| **bound <= step).count() as i32;
        let ids: Vec<i32> = (0..t).map(id).collect();
        let x = integers(1, t * packed.channels);
        let dy = integers(5, t * packed.channels);
        let sequences: Vec<Vec<Vec<f64>>> = bounds
            .windows(2)
            .map(|ends| {
                let (from, to) = (ends[0], ends[1]);
                let alone = CausalConv1dProblem { length: to - from, seq_idx: false, ..packed };
                let part = |seed: u64, length: usize| match seed {
                    1 => steps(&packed, &x, from, to),
                    5 => steps(&packed, &dy, from, to),
                    _ => integers(seed, length),
                };
                automatic(&client, &alone, &part)
            })
            .collect();
        for got in results(&client, &packed, &ids, &integers) {
            let mut dw = vec![0.0; got[3].len()];
            for (ends, alone) in bounds.windows(2).zip(&sequences) {
                for index in [0, 2] {
                    let part = steps(&packed, &got[index], ends[0], ends[1]);
                    assert!(part == alone[index], "{case}: result {index} of steps {ends:?}");
                }
                dw.iter_mut().zip(&alone[3]).for_each(|(sum, dw)| *sum += dw);
            }
            assert!(got[3] == dw, "{case}: dw");
        }
    }
}

#[test]
fn an_initial_state_equals_preceding_steps() {
    let client = client();
    for case in cases().into_iter().filter(|case| !case.btc) {
        let with_state = problem(&Case { initial: true, ..case.clone() }, F32, F32);
        let before = with_state.width - 1;
        let longer =
            CausalConv1dProblem { length: with_state.length + before, initial_state: false, ..with_state };
        let rows = with_state.batch * with_state.channels;
        let (x, state) = (integers(1, rows * with_state.length), integers(4, rows * before));
        let joined: Vec<f32> = state
            .chunks(before)
            .zip(x.chunks(with_state.length))
            .flat_map(|(state, x)| [state, x].concat())
            .collect();
        let dy = integers(5, rows * with_state.length);
        let zeros = vec![0.0; before];
        let spread: Vec<f32> =
            dy.chunks(with_state.length).flat_map(|dy| [&zeros[..], dy].concat()).collect();
        let fill = |seed: u64, length: usize| match seed {
            1 => joined.clone(),
            5 => spread.clone(),
            _ => integers(seed, length),
        };
        let want = automatic(&client, &longer, &fill);
        for got in results(&client, &with_state, &[], &integers) {
            assert!(got[0] == steps(&longer, &want[0], before, longer.length), "{case}: y");
            assert!(got[1] == want[1], "{case}: the final state");
            assert!(got[2] == steps(&longer, &want[2], before, longer.length), "{case}: dx");
            assert!(got[3] == want[3], "{case}: dw");
            assert!(got[4] == steps(&longer, &want[2], 0, before), "{case}: the gradient of the state");
        }
    }
}

/// `<y, g> = <x, dx> + <state, dstate> = <w, dw>`.
#[test]
fn gradients_are_adjoint() {
    let client = client();
    for case in cases() {
        for seq_idx in [SeqIdx::None, SeqIdx::WithPadding] {
            let case = Case { initial: true, seq_idx, ..case.clone() };
            let problem = problem(&case, F32, F32);
            let ids = conv_cases::causal_conv1d::seq_idx(&case);
            let tensors = tensors_with(&client, &problem, (&ids, IndexType::I32), false, &integers);
            let dot = |a: &[f64], b: Vec<f64>| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
            for got in of_plans(&client, &problem, &tensors, usize::MAX) {
                let forward = dot(&got[0], tensors.dy.values());
                let state = tensors.state.as_ref().expect("a state").values();
                assert_eq!(forward, dot(&got[2], tensors.x.values()) + dot(&got[4], state), "{case}: dx");
                assert_eq!(forward, dot(&got[3], tensors.weight.values()), "{case}: dw");
            }
        }
    }
}
