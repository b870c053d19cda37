//! Sequences that are packed into one row, each with a state of its own, against each alone.

use crate::support::{assert_close, bits, devices, int_upload, normal, upload, values};
use burn::tensor::{DType, Device, Tensor};
use burn_conv_ops::nn::CausalConv1dConfig;
use burn_conv_ops::{
    Activation, CausalConv1dOptions, Conv1dLayout, ConvError, causal_conv1d_packed, causal_conv1d_with_state,
    try_causal_conv1d_packed,
};

/// Padding at both ends, sequences longer and shorter than a state, one without steps.
const BOUNDS: [i64; 5] = [2, 9, 11, 11, 18];
const STEPS: usize = 20;
const CHANNELS: usize = 3;

fn options(layout: Conv1dLayout) -> CausalConv1dOptions {
    CausalConv1dOptions::new().with_activation(Activation::Silu).with_layout(layout)
}

/// `[1, C, T]` in the layout's order, and back.
fn order(x: Tensor<3>, layout: Conv1dLayout) -> Tensor<3> {
    if layout == Conv1dLayout::Bct { x } else { x.swap_dims(1, 2) }
}

fn require<const D: usize>(seed: u64, shape: [usize; D], device: &Device) -> Tensor<D> {
    normal(seed, shape, device).require_grad()
}

/// y, the states, and the gradients of x, weight, bias, residual and initial states.
type Run = (Tensor<3>, Tensor<3>, [Vec<f64>; 5]);

/// One packed call, or one call for each sequence, with the same losses.
fn run(device: &Device, layout: Conv1dLayout, w: usize, packed: bool) -> Run {
    let n = BOUNDS.len() - 1;
    let x = require(1, [1, CHANNELS, STEPS], device);
    let weight = require(2, [CHANNELS, w], device);
    let bias = require(3, [CHANNELS], device);
    let residual = require(4, [1, CHANNELS, STEPS], device);
    let initial = require(5, [n, CHANNELS, w - 1], device);
    let ordered = |x: &Tensor<3>| order(x.clone(), layout);
    let (y, states) = if packed {
        let options = options(layout).with_initial_state(initial.clone()).with_residual(ordered(&residual));
        let bounds = int_upload(&BOUNDS, [n + 1], device);
        let bias = Some(bias.clone());
        let (y, states) = causal_conv1d_packed(ordered(&x), weight.clone(), bias, bounds, options);
        (order(y, layout), states)
    } else {
        let padding = |steps| Tensor::<3>::zeros([1, CHANNELS, steps], device);
        let (mut y, mut states) = (vec![padding(BOUNDS[0] as usize)], Vec::new());
        for (sequence, bound) in BOUNDS.windows(2).enumerate() {
            let (start, length) = (bound[0] as usize, (bound[1] - bound[0]) as usize);
            let own = initial.clone().narrow(0, sequence, 1);
            if length == 0 {
                states.push(own);
                continue;
            }
            let part = |x: &Tensor<3>| order(x.clone().narrow(2, start, length), layout);
            let options = options(layout).with_initial_state(own).with_residual(part(&residual));
            let bias = Some(bias.clone());
            let (alone, next) = causal_conv1d_with_state(part(&x), weight.clone(), bias, options);
            y.push(order(alone, layout));
            states.push(next);
        }
        y.push(padding(STEPS - BOUNDS[n] as usize));
        (Tensor::cat(y, 2), Tensor::cat(states, 0))
    };
    let loss = (y.clone() * normal(6, y.dims(), device)).sum()
        + (states.clone() * normal(7, states.dims(), device)).sum();
    let grads = loss.backward();
    let gradients = [
        values(x.grad(&grads).expect("dx")),
        values(weight.grad(&grads).expect("dw")),
        values(bias.grad(&grads).expect("db")),
        values(residual.grad(&grads).expect("the residual's gradient")),
        values(initial.grad(&grads).expect("the gradient of the initial states")),
    ];
    (y, states, gradients)
}

#[test]
fn each_sequence_begins_with_its_state() {
    for (on, device) in devices() {
        for layout in [Conv1dLayout::Bct, Conv1dLayout::Btc] {
            for w in [2, 4, 9] {
                let name = format!("{on} {layout:?} width {w}");
                let (y, states, gradients) = run(&device.clone().autodiff(), layout, w, true);
                let (want_y, want_states, want) = run(&device.clone().autodiff(), layout, w, false);
                assert_close(&format!("{name}: y"), &values(y), &values(want_y), 1e-6);
                assert_eq!(values(states), values(want_states), "{name}: the states");
                for (got, (what, want)) in
                    gradients.iter().zip(["dx", "dw", "db", "dresidual", "dinitial"].iter().zip(&want))
                {
                    assert_close(&format!("{name}: {what}"), got, want, 1e-5);
                }
            }
        }
    }
}

/// Pieces of packed sequences, each begun with the states of the ones before, have the bits of the whole.
#[test]
fn pieces_of_packed_sequences_give_the_whole() {
    let (first, second) = ([4usize, 1, 0, 6], [3usize, 5, 2, 1]);
    for (on, device) in devices() {
        let conv = CausalConv1dConfig::new(CHANNELS, 4).with_activation(Activation::Silu).init(&device);
        let bounds = |lengths: [usize; 4]| {
            let ends = lengths.iter().scan(0, |end, length| {
                *end += *length as i64;
                Some(*end)
            });
            let bounds: Vec<i64> = [0].into_iter().chain(ends).collect();
            int_upload(&bounds, [5], &device)
        };
        let sequences =
            [0, 1, 2, 3].map(|i| normal(10 + i as u64, [1, CHANNELS, first[i] + second[i]], &device));
        let pack = |part: &dyn Fn(usize) -> (usize, usize)| {
            let parts = (0..4).filter(|i| part(*i).1 > 0);
            Tensor::cat(parts.map(|i| sequences[i].clone().narrow(2, part(i).0, part(i).1)).collect(), 2)
        };
        let whole = [0, 1, 2, 3].map(|i| first[i] + second[i]);
        let none = CausalConv1dOptions::new;
        let (want, want_states) = conv.forward_packed(pack(&|i| (0, whole[i])), bounds(whole), none());
        let (begun, states) = conv.forward_packed(pack(&|i| (0, first[i])), bounds(first), none());
        let (ended, states) = conv.forward_packed(pack(&|i| (first[i], second[i])), bounds(second), states);
        assert_eq!(bits(states), bits(want_states), "{on}: the states");
        let (mut at, mut of_begun, mut of_ended) = (0, 0, 0);
        for i in 0..4 {
            for (piece, place, length) in
                [(&begun, &mut of_begun, first[i]), (&ended, &mut of_ended, second[i])]
            {
                if length > 0 {
                    let got = bits(piece.clone().narrow(2, *place, length));
                    assert_eq!(got, bits(want.clone().narrow(2, at, length)), "{on}: sequence {i}");
                }
                *place += length;
                at += length;
            }
        }
    }
}

/// A filter of one step has no state, a row without steps hands the states on, and no sequences are none.
#[test]
fn packed_sequences_may_be_nothing() {
    for (on, device) in devices() {
        let call = |steps: usize, bounds: &[i64], w: usize| {
            let n = bounds.len() - 1;
            let (x, weight) = (normal(1, [1, CHANNELS, steps], &device), normal(2, [CHANNELS, w], &device));
            let initial = normal(3, [n, CHANNELS, w - 1], &device);
            let options = options(Conv1dLayout::Bct).with_initial_state(initial.clone());
            let bounds = int_upload(bounds, [n + 1], &device);
            let (y, states) = causal_conv1d_packed(x.clone(), weight.clone(), None, bounds, options);
            (x, weight, y, initial, states)
        };
        let (_, _, y, initial, states) = call(0, &[0, 0, 0], 4);
        assert_eq!((y.dims(), values(states)), ([1, CHANNELS, 0], values(initial)), "{on}: no steps");
        let (_, _, y, _, states) = call(5, &[0], 4);
        assert_eq!(
            (values(y), states.dims()),
            (vec![0.0; 5 * CHANNELS], [0, CHANNELS, 3]),
            "{on}: no sequences"
        );
        let (x, weight, y, _, states) = call(5, &[0, 2, 5], 1);
        assert_eq!(states.dims(), [2, CHANNELS, 0], "{on}: width 1");
        let alone = burn_conv_ops::causal_conv1d(x, weight, None, options(Conv1dLayout::Bct));
        assert_close(on, &values(y), &values(alone), 1e-6);
    }
}

/// States in fp32 next to x in 16 bits: none of them is rounded to 16 bits, y is rounded once, and gradients
/// have the dtypes of their tensors.
#[test]
fn packed_states_of_halves_may_be_fp32() {
    let fine = 1.0 + 1.0 / 4096.0;
    for (on, device) in devices() {
        let device = device.autodiff();
        for layout in [Conv1dLayout::Bct, Conv1dLayout::Btc] {
            // A sequence of one step and one of two.
            let x = upload(&[4.0, 8.0, 16.0], [1, 1, 3], &device).cast(DType::F16).require_grad();
            let residual = upload(&[0.5, 0.25, 0.125], [1, 1, 3], &device).cast(DType::F16);
            let weight = upload(&[1.0, 0.5, 0.25, 2.0], [1, 4], &device).cast(DType::F16);
            let initial = upload(&[fine, 2.0, 3.0, 5.0, fine, 7.0], [2, 1, 3], &device).require_grad();
            let options = CausalConv1dOptions::new()
                .with_layout(layout)
                .with_initial_state(initial.clone())
                .with_residual(order(residual, layout));
            let bounds = int_upload(&[0, 1, 3], [3], &device);
            let (y, last) = causal_conv1d_packed(order(x.clone(), layout), weight, None, bounds, options);
            let what = format!("{on} {layout:?}");
            assert_eq!((y.dtype(), last.dtype()), (DType::F16, DType::F32), "{what}");
            let fine = f64::from(fine);
            // The sums are 11.25 + 1/4096, 23.5 + 1/8192 and 38.625 + 1/4096, each rounded to a half.
            assert_eq!(values(order(y.clone(), layout)), [11.25, 23.5, 38.625], "{what}: y");
            assert_eq!(values(last.clone()), [2.0, 3.0, 4.0, 7.0, 8.0, 16.0], "{what}: the states");
            let grads = (y.cast(DType::F32).sum() + (last * fine as f32).sum()).backward();
            let (dx, dinitial) = (x.grad(&grads).expect("dx"), initial.grad(&grads).expect("dinitial"));
            assert_eq!((dx.dtype(), dinitial.dtype()), (DType::F16, DType::F32), "{what}");
            assert_eq!(values(dx), [3.0, 3.25, 3.0], "{what}: dx");
            let first = [1.0, 0.5 + fine, 0.25 + fine];
            let second = [1.0, 1.5, 0.75 + fine];
            assert_eq!(values(dinitial), [first, second].concat(), "{what}: dinitial");

            // Without sequences, and with a filter of one step, the states keep their dtype.
            let none = Tensor::<3>::zeros([0, 1, 3], &device);
            let x = upload(&[4.0], [1, 1, 1], &device).cast(DType::F16);
            let weight = upload(&[1.0; 4], [1, 4], &device).cast(DType::F16);
            let bounds = int_upload(&[0], [1], &device);
            let options = CausalConv1dOptions::new().with_layout(layout).with_initial_state(none);
            let (_, last) = causal_conv1d_packed(x, weight, None, bounds, options);
            assert_eq!((last.dims(), last.dtype()), ([0, 1, 3], DType::F32), "{what}");
        }
    }
}

#[test]
fn packed_calls_name_what_does_not_fit() {
    for (on, device) in devices() {
        let call = |x: [usize; 3], bounds: usize, options: CausalConv1dOptions| {
            let weight = normal(2, [CHANNELS, 4], &device);
            let bounds = int_upload(&vec![0; bounds], [bounds], &device);
            let result = try_causal_conv1d_packed(normal(1, x, &device), weight, None, bounds, options);
            result.map(|_| ()).expect_err("a refusal")
        };
        let with =
            |shape: [usize; 3]| CausalConv1dOptions::new().with_initial_state(normal(3, shape, &device));
        let says = |error: ConvError, message: &str| assert_eq!(error.message(), message);
        says(
            call([1, 3, 5], 4, with([1, 3, 3])),
            "causal_conv1d_packed: the initial states have shape [1, 3, 3], 3 sequences and the weight need [3, 3, 3] \
             (sequences, channels, width - 1)",
        );
        says(
            call([2, 3, 5], 4, CausalConv1dOptions::new()),
            "causal_conv1d_packed: x has shape [2, 3, 5], sequences are packed into one row [1, C, T] or [1, T, C]",
        );
        says(
            call([1, 3, 5], 0, CausalConv1dOptions::new()),
            "causal_conv1d_packed: cu_seqlens has shape [0], it must be [sequences + 1]",
        );
        says(
            call([1, 3, 5], 4, CausalConv1dOptions::new().with_seq_idx(int_upload(&[0; 5], [1, 5], &device))),
            "causal_conv1d_packed: seq_idx [1, 5] was given next to cu_seqlens [4], which already says what belongs \
             together",
        );
        let halves =
            CausalConv1dOptions::new().with_initial_state(normal(3, [3, 3, 3], &device).cast(DType::F16));
        says(
            call([1, 3, 5], 4, halves),
            "causal_conv1d: x is f32 and the state is f16, a state is of x's dtype or f32",
        );
        if on == "flex" {
            let mut doubles = with([3, 3, 3]);
            doubles.initial_state = doubles.initial_state.map(|state| state.cast(DType::F64));
            says(
                call([1, 3, 5], 4, doubles),
                "causal_conv1d_packed: the initial state is f64, the op serves f32, f16 and bf16",
            );
        }
        says(
            call([1, 5, 5], 4, with([3, 3, 3])),
            "causal_conv1d: the weight has 3 channels, the input has 5",
        );
    }
}
