//! Sequences that are packed into one row, each with a state of its own, against each alone.

use crate::support::{assert_close, bits, devices, int_upload, normal, values};
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

#[test]
fn packed_calls_name_what_does_not_fit() {
    for (_, device) in devices() {
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
            "causal_conv1d_packed: seq_idx [1, 5] was given beside cu_seqlens [4], which already says what belongs \
             together",
        );
        let halves =
            CausalConv1dOptions::new().with_initial_state(normal(3, [3, 3, 3], &device).cast(DType::F16));
        says(
            call([1, 3, 5], 4, halves),
            "causal_conv1d_packed: x is f32 and the initial states is f16, they must have one dtype",
        );
        says(
            call([1, 5, 5], 4, with([3, 3, 3])),
            "causal_conv1d: the weight has 3 channels, the input has 5",
        );
    }
}
