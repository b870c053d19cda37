//! States of a causal conv1d next to sequence ids and padding: inputs that gave wrong results.

use crate::support::{devices, gpu, int_upload, normal, upload, values};
use burn::tensor::{DType, Device, Int, Tensor};
use burn_conv_ops::{
    CausalConv1dOptions, CausalConv1dUpdateOptions, Conv1dLayout, causal_conv1d_last_seq_idx,
    causal_conv1d_update, causal_conv1d_with_state, try_causal_conv1d_last_seq_idx,
    try_causal_conv1d_with_state,
};

const LAYOUTS: [Conv1dLayout; 2] = [Conv1dLayout::Bct, Conv1dLayout::Btc];

fn options(layout: Conv1dLayout) -> CausalConv1dOptions {
    CausalConv1dOptions::new().with_layout(layout)
}

/// One row of one channel.
fn row(x: &[f32], layout: Conv1dLayout, device: &Device) -> Tensor<3> {
    let shape = layout.swapped([1, 1, x.len()]);
    upload(x, shape, device)
}

fn ids(ids: &[i64], device: &Device) -> Tensor<2, Int> {
    int_upload(ids, [1, ids.len()], device)
}

/// x, ids, taps, initial state, gradient of the final state; final state, dx and gradient of the initial
/// state.
struct Case {
    x: &'static [f32],
    ids: &'static [i64],
    taps: &'static [f32],
    initial: Option<&'static [f32]>,
    dstate: &'static [f32],
    state: &'static [f64],
    dx: &'static [f64],
    dinitial: &'static [f64],
}

const CASES: [Case; 6] = [
    // Padding behind the sequence, and before it.
    Case {
        x: &[1.0, 2.0, 3.0, 4.0, 99.0, 99.0],
        ids: &[0, 0, 0, 0, -1, -1],
        taps: &[1.0, 10.0, 100.0, 1000.0],
        initial: None,
        dstate: &[4.0, 5.0, 6.0],
        state: &[2.0, 3.0, 4.0],
        dx: &[1111.0, 1114.0, 1105.0, 1006.0, 0.0, 0.0],
        dinitial: &[],
    },
    Case {
        x: &[99.0, 99.0, 1.0, 2.0],
        ids: &[-1, -1, 0, 0],
        taps: &[1.0, 10.0, 100.0, 1000.0],
        initial: None,
        dstate: &[4.0, 5.0, 6.0],
        state: &[0.0, 1.0, 2.0],
        dx: &[0.0, 0.0, 1105.0, 1006.0],
        dinitial: &[],
    },
    // Shorter than the state, with and without one to begin with.
    Case {
        x: &[5.0, 9.0, 9.0, 9.0],
        ids: &[0, -1, -1, -1],
        taps: &[1.0; 4],
        initial: Some(&[1.0, 2.0, 3.0]),
        dstate: &[1.0, 2.0, 3.0],
        state: &[2.0, 3.0, 5.0],
        dx: &[4.0, 0.0, 0.0, 0.0],
        dinitial: &[1.0, 2.0, 3.0],
    },
    Case {
        x: &[5.0, 9.0, 9.0, 9.0],
        ids: &[0, -1, -1, -1],
        taps: &[1.0; 4],
        initial: None,
        dstate: &[1.0, 2.0, 3.0],
        state: &[0.0, 0.0, 5.0],
        dx: &[4.0, 0.0, 0.0, 0.0],
        dinitial: &[],
    },
    // Another sequence shortly before the end.
    Case {
        x: &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0],
        ids: &[0, 0, 0, 0, 0, 0, 0, 1],
        taps: &[1.0; 4],
        initial: None,
        dstate: &[4.0, 5.0, 6.0],
        state: &[0.0, 0.0, 128.0],
        dx: &[4.0, 4.0, 4.0, 4.0, 3.0, 2.0, 1.0, 7.0],
        dinitial: &[],
    },
    // Padding only.
    Case {
        x: &[9.0, 9.0],
        ids: &[-1, -2],
        taps: &[1.0; 4],
        initial: Some(&[1.0, 2.0, 3.0]),
        dstate: &[4.0, 5.0, 6.0],
        state: &[1.0, 2.0, 3.0],
        dx: &[0.0, 0.0],
        dinitial: &[4.0, 5.0, 6.0],
    },
];

#[test]
fn final_states_know_their_sequences() {
    for (on, device) in devices() {
        for (dtype, layout) in [DType::F32, DType::F16].into_iter().flat_map(|d| LAYOUTS.map(|l| (d, l))) {
            for case in &CASES {
                let what = format!("{on} {dtype:?} {layout:?} {:?} {:?}", case.x, case.ids);
                let run = |device: &Device, track: bool| {
                    let of = |tensor: Tensor<3>| if track { tensor.require_grad() } else { tensor };
                    let x = of(row(case.x, layout, device).cast(dtype));
                    let weight = upload(case.taps, [1, case.taps.len()], device).cast(dtype);
                    let initial =
                        case.initial.map(|state| of(upload(state, [1, 1, state.len()], device).cast(dtype)));
                    let mut options = options(layout).with_seq_idx(ids(case.ids, device));
                    options.initial_state = initial.clone();
                    let (y, next) = causal_conv1d_with_state(x.clone(), weight, None, options);
                    (x, initial, y, next)
                };
                let (.., next) = run(&device, false);
                assert_eq!(next.dtype(), dtype, "{what}");
                assert_eq!(values(next), case.state, "{what}");

                let tracked = device.clone().autodiff();
                let (x, initial, y, next) = run(&tracked, true);
                assert_eq!(values(next.clone()), case.state, "{what}: tracked");
                let dstate = upload(case.dstate, [1, 1, case.dstate.len()], &tracked).cast(dtype);
                let grads = (y.sum() + (next * dstate).sum()).backward();
                assert_eq!(values(x.grad(&grads).expect("dx")), case.dx, "{what}: dx");
                if let Some(initial) = initial {
                    let dinitial = values(initial.grad(&grads).expect("dinitial"));
                    assert_eq!(dinitial, case.dinitial, "{what}: gradient of the initial state");
                }
            }
        }
    }
}

/// A padded prompt, then one step.
#[test]
fn decoding_goes_on_from_padded_prompts() {
    let taps = [1.0f32, 10.0, 100.0, 1000.0];
    let prompts: [(&[f32], &[i64], f32, f64); 2] = [
        (&[1.0, 2.0, 3.0, 4.0, 99.0, 99.0], &[0, 0, 0, 0, -1, -1], 7.0, 7432.0),
        (&[99.0, 99.0, 1.0, 2.0], &[-1, -1, 0, 0], 3.0, 3210.0),
    ];
    for (on, device) in devices() {
        for (layout, (x, of, step, y)) in LAYOUTS.into_iter().flat_map(|l| prompts.map(|p| (l, p))) {
            let weight = upload(&taps, [1, 4], &device);
            let x = row(x, layout, &device);
            let options = options(layout).with_seq_idx(ids(of, &device));
            let (_, next) = causal_conv1d_with_state(x, weight.clone(), None, options);
            let x = upload(&[step], [1, 1], &device);
            let (got, _) = causal_conv1d_update(x, next, weight, None, CausalConv1dUpdateOptions::new());
            assert_eq!(values(got), [y], "{on} {layout:?}");
        }
    }
}

/// Rows with ids in two pieces give y and dx of one call, wherever they are cut.
#[test]
fn pieces_of_rows_with_ids_give_the_whole() {
    let x = [1.0f32, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];
    let wholes: [(&[i64], &[f64], &[f64]); 3] = [
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
            &[-1, -1, -1, 3, -1, 4, 4, 4],
            &[0.0, 0.0, 0.0, 8.0, 0.0, 32.0, 96.0, 224.0],
            &[0.0, 0.0, 0.0, 1.0, 0.0, 3.0, 2.0, 1.0],
        ),
    ];
    for (on, device) in devices() {
        let device = device.autodiff();
        let weight = upload(&[1.0; 4], [1, 4], &device);
        for (layout, (of, y, dx)) in LAYOUTS.into_iter().flat_map(|l| wholes.map(|whole| (l, whole))) {
            for cuts in [vec![], vec![1], vec![2], vec![3], vec![4], vec![5], vec![6], vec![7], vec![2, 5]] {
                let what = format!("{on} {layout:?} {of:?} cut at {cuts:?}");
                let x = row(&x, layout, &device).require_grad();
                let axis = layout.step_axis();
                let bounds = [vec![0], cuts, vec![8]].concat();
                let (mut state, mut owner) = (None, None);
                let mut pieces = Vec::new();
                for bound in bounds.windows(2) {
                    let (from, to) = (bound[0], bound[1]);
                    let of = ids(&of[from..to], &device);
                    let mut options = options(layout).with_seq_idx(of.clone());
                    options.initial_state = state;
                    options.initial_seq_idx = owner.clone();
                    let piece = x.clone().narrow(axis, from, to - from);
                    let (y, next) = causal_conv1d_with_state(piece, weight.clone(), None, options);
                    pieces.push(y);
                    (state, owner) = (Some(next), Some(causal_conv1d_last_seq_idx(of, owner)));
                }
                let whole = Tensor::cat(pieces, axis);
                assert_eq!(values(whole.clone()), y, "{what}: y");
                let grads = whole.sum().backward();
                assert_eq!(values(x.grad(&grads).expect("dx")), dx, "{what}: dx");
            }
        }
    }
}

#[test]
fn the_owner_of_a_state_is_known() {
    for (on, device) in devices() {
        let seq_idx = int_upload(&[4, 4, -1, -1, -1, -1, 2, 3, 9], [3, 3], &device);
        let owner = |before| values(causal_conv1d_last_seq_idx(seq_idx.clone(), before).float());
        assert_eq!(owner(None), [4.0, -1.0, 9.0], "{on}");
        assert_eq!(owner(Some(int_upload(&[7, 8, 9], [3], &device))), [4.0, 8.0, 9.0], "{on}");
        let none = int_upload(&[], [3, 0], &device);
        assert_eq!(values(causal_conv1d_last_seq_idx(none, None).float()), [-1.0; 3], "{on}");

        let (x, weight) = (normal(1, [3, 2, 3], &device), normal(2, [2, 4], &device));
        let refused = |options: CausalConv1dOptions| {
            let result = try_causal_conv1d_with_state(x.clone(), weight.clone(), None, options);
            result.expect_err("a refusal").to_string()
        };
        let of_state = CausalConv1dOptions::new().with_initial_seq_idx(int_upload(&[1, 2], [2], &device));
        assert_eq!(refused(of_state.clone()), "causal_conv1d: initial_seq_idx [2] was given without seq_idx");
        assert!(
            refused(of_state.with_seq_idx(seq_idx.clone())).contains("needs one of its kind for each row")
        );
    }
}

#[test]
fn owners_that_do_not_fit_are_refused() {
    let (cpu, gpu) = (Device::flex(), gpu());
    let zeros = |shape: [usize; 2], dtype| Tensor::<2, Int>::zeros(shape, (&cpu, dtype));
    let refused = |seq_idx, before| {
        let result = try_causal_conv1d_last_seq_idx(seq_idx, before);
        result.expect_err("a refusal").to_string()
    };
    for (before, kind) in
        [(zeros([1, 2], DType::I32), "i32 of shape [2]"), (zeros([1, 3], DType::I64), "i64 of shape [3]")]
    {
        assert_eq!(
            refused(zeros([3, 4], DType::I32), Some(before.flatten(0, 1))),
            format!(
                "causal_conv1d_last_seq_idx: before is {kind}, seq_idx i32 of shape [3, 4] needs one of its kind for \
                 each row"
            )
        );
    }
    assert_eq!(
        refused(zeros([3, 4], DType::U8), None),
        "causal_conv1d_last_seq_idx: seq_idx is u8, the op reads i32 and i64"
    );
    let elsewhere = Tensor::<1, Int>::zeros([3], (&gpu, DType::I32));
    assert_eq!(
        refused(zeros([3, 4], DType::I32), Some(elsewhere)),
        format!(
            "causal_conv1d_last_seq_idx: seq_idx is on {cpu:?} and before is on {gpu:?}, they must be on one device"
        )
    );
    let long = zeros([1, 1], DType::I32).expand([1usize, 1 << 31]);
    assert_eq!(
        refused(long, None),
        "causal_conv1d_last_seq_idx: x has 2147483648 steps, at most 2147483647 are counted"
    );
}

/// A NaN or an infinity at padding reaches no gradient.
#[test]
fn nothing_at_padding_reaches_a_gradient() {
    for (on, device) in devices() {
        let device = device.autodiff();
        for (dirt, layout) in [f32::NAN, f32::INFINITY].into_iter().flat_map(|d| LAYOUTS.map(|l| (d, l))) {
            let rows: [(&[f32], &[i64], &[f64]); 2] = [
                (&[1.0, 2.0, dirt, dirt], &[0, 0, -1, -1], &[1.0, 3.0]),
                (&[1.0, 2.0, 3.0, dirt], &[0, 0, 0, -1], &[3.0, 6.0]),
            ];
            for (x, of, dw) in rows {
                let x = row(x, layout, &device).require_grad();
                let weight = upload(&[1.0, 10.0], [1, 2], &device).require_grad();
                let options = options(layout).with_seq_idx(ids(of, &device));
                let (y, next) = causal_conv1d_with_state(x.clone(), weight.clone(), None, options);
                let grads = (y.sum() + next.clone().sum()).backward();
                assert_eq!(values(weight.grad(&grads).expect("dw")), dw, "{on} {layout:?} {dirt} {of:?}");
                assert!(values(x.grad(&grads).expect("dx")).iter().all(|dx| dx.is_finite()), "{on} {of:?}");
                assert!(values(next).iter().all(|state| state.is_finite()), "{on} {of:?}");
            }
        }
    }
}
