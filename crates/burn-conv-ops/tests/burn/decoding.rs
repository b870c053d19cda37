//! Several decoding steps in one call, rings and slots of states, and sequences that are packed into one row.

use crate::support::{assert_close, check, devices, int_upload, normal, values};
use burn::tensor::{Device, Tensor};
use burn_conv_ops::nn::CausalConv1dConfig;
use burn_conv_ops::{
    Activation, CausalConv1dOptions, CausalConv1dUpdateOptions, Conv1dLayout, causal_conv1d,
    causal_conv1d_last_states, causal_conv1d_seq_idx, causal_conv1d_update, causal_conv1d_update_steps,
    causal_conv1d_with_state,
};
use conv_kernels::FloatType::F32;
use conv_kernels::causal_conv1d::{UpdateProblem, reference};
use conv_kernels::tolerance::Expected;

fn silu() -> CausalConv1dUpdateOptions {
    CausalConv1dUpdateOptions::new().with_activation(Activation::Silu)
}

#[test]
fn several_decoding_steps_give_what_single_ones_give() {
    let ([b, c, t], w) = ([2, 5, 4], 4);
    for (on, device) in devices() {
        let (x, weight, bias) =
            (normal(1, [b, c, t], &device), normal(2, [c, w], &device), normal(3, [c], &device));
        // The shortest state, Mamba's, and one longer than the steps.
        for s in [w - 1, w, w + 3] {
            let start = normal(4, [b, c, s], &device);
            let (x, bias) = (x.clone(), Some(bias.clone()));
            let (y, last) =
                causal_conv1d_update_steps(x.clone(), start.clone(), weight.clone(), bias.clone(), silu());
            let mut state = start;
            let mut steps = Vec::new();
            for step in 0..t {
                let x = x.clone().narrow(2, step, 1).reshape([b, c]);
                let (y, next) = causal_conv1d_update(x, state, weight.clone(), bias.clone(), silu());
                steps.push(y.reshape([b, c, 1]));
                state = next;
            }
            assert_eq!(values(y), values(Tensor::cat(steps, 2)), "{on}: y with a state of {s}");
            assert_eq!(values(last), values(state), "{on}: the state of {s}");
        }
        let none = normal(1, [b, c, 0], &device);
        let start = normal(4, [b, c, w], &device);
        let (y, last) = causal_conv1d_update_steps(none, start.clone(), weight, None, silu());
        assert_eq!(y.dims(), [b, c, 0], "{on}");
        assert_eq!(values(last), values(start), "{on}: without steps the state stays");
    }
}

/// Rings that have been written over, slots out of order, padding by a negative slot and by one that does not
/// exist, in place and with the state held elsewhere, which then keeps its values.
#[test]
fn rings_and_slots_match_the_reference() {
    let (b, c, rows) = (3, 5, 7);
    let mut cases = 0;
    for (on, device) in devices() {
        for (w, s, length) in [(4, 3, 1), (4, 4, 5), (3, 6, 2), (2, 1, 3), (1, 2, 3), (4, 9, 11)] {
            for (ring, slotted) in [(false, true), (true, false), (true, true)] {
                cases += 1;
                let missing = if cases % 2 == 0 { rows as i64 } else { -2 };
                let (lengths, slots) = ([0i64, 5, 23], [5i64, missing, 2]);
                let state_shape = [if slotted { rows } else { b }, c, s];
                let of = |seed, shape: [usize; 3]| values(normal(seed, shape, &Device::flex()));
                let (x, state) = (of(1, [b, c, length]), of(4, state_shape));
                let weight = values(normal(2, [c, w], &Device::flex()));
                let problem = UpdateProblem::new([b, c], [b, c, s], [c, w], None, Activation::Silu, F32, F32)
                    .expect("sound");
                let known = slots.map(|slot| if slot < rows as i64 { slot } else { -1 });
                let reference = |problem: &UpdateProblem, of: &dyn Fn(&Vec<f64>) -> Vec<f64>| {
                    let (ring, slots) = (ring.then_some(&lengths[..]), slotted.then_some(&known[..]));
                    reference::update_steps(problem, &of(&x), &of(&state), &of(&weight), None, ring, slots)
                };
                let (want, want_state) = reference(&problem, &|values| values.clone());
                let linear = UpdateProblem { activation: Activation::None, ..problem };
                let (magnitudes, _) = reference(&linear, &|values| values.iter().map(|v| v.abs()).collect());
                let mut options = silu();
                if ring {
                    options = options.with_cache_seqlens(int_upload(&lengths, [b], &device));
                }
                if slotted {
                    options = options.with_state_indices(int_upload(&slots, [b], &device));
                }
                let name = format!("{on} w {w} s {s} steps {length} ring {ring} slots {slotted}");
                let run = |state: Tensor<3>| {
                    let (x, weight) = (normal(1, [b, c, length], &device), normal(2, [c, w], &device));
                    causal_conv1d_update_steps(x, state, weight, None, options.clone())
                };
                let expected = Expected {
                    values: &want,
                    magnitudes: &magnitudes,
                    terms: w + 25,
                    dtype: F32,
                    slope: 1.1,
                };
                let held = normal(4, state_shape, &device);
                for (y, next) in [run(normal(4, state_shape, &device)), run(held.clone())] {
                    check(&name, &expected, &values(y));
                    assert_eq!(values(next), want_state, "{name}: the new state");
                }
                assert_eq!(values(held), state, "{name}: a state that is held elsewhere");
            }
        }
    }
    assert_eq!(cases, devices().len() * 6 * 3);
}

/// The gradients of several steps from a state of W-1 are those of the forward pass with that initial state,
/// also when the state is in a slot; other slots get the gradient of the new state.
#[test]
fn several_decoding_steps_have_gradients() {
    let ([b, c, t], w) = ([2, 5, 6], 3);
    for (on, device) in devices() {
        let device = device.autodiff();
        let slots = [3i64, 1];
        let gradients = |form: usize| {
            let x = normal(1, [b, c, t], &device).require_grad();
            let weight = normal(2, [c, w], &device).require_grad();
            let start = normal(4, [b, c, w - 1], &device).require_grad();
            let options = CausalConv1dOptions::new().with_activation(Activation::Silu);
            let (y, next) = match form {
                0 => {
                    let options = options.clone().with_initial_state(start.clone());
                    causal_conv1d_with_state(x.clone(), weight.clone(), None, options)
                }
                1 => causal_conv1d_update_steps(x.clone(), start.clone(), weight.clone(), None, silu()),
                _ => {
                    // Rows 0 and 2 of the state belong to nobody.
                    let row = |row: usize| start.clone().narrow(0, row, 1);
                    let other = Tensor::zeros([1, c, w - 1], &device);
                    let all = Tensor::cat(vec![other.clone(), row(1), other, row(0)], 0);
                    let options = silu().with_state_indices(int_upload(&slots, [b], &device));
                    let (y, next) = causal_conv1d_update_steps(x.clone(), all, weight.clone(), None, options);
                    (y, Tensor::cat(vec![next.clone().narrow(0, 3, 1), next.narrow(0, 1, 1)], 0))
                }
            };
            let loss =
                (y * normal(5, [b, c, t], &device)).sum() + (next * normal(6, [b, c, w - 1], &device)).sum();
            let grads = loss.backward();
            [
                values(x.grad(&grads).expect("dx")),
                values(weight.grad(&grads).expect("dw")),
                values(start.grad(&grads).expect("the state's gradient")),
            ]
        };
        let want = gradients(0);
        for form in [1, 2] {
            for (got, want) in gradients(form).iter().zip(&want) {
                assert_close(&format!("{on} form {form}"), got, want, 1e-5);
            }
        }
    }
}

/// Sequences in one row give what each gives alone, and so do their last states; a sequence without steps has
/// zeros. Steps before the first bound and from the last on are padding.
#[test]
fn packed_sequences_give_what_each_gives_alone() {
    let (c, t, w) = (3, 20, 4);
    let bounds = [2i64, 9, 11, 11, 18];
    for (on, device) in devices() {
        let cu_seqlens = || int_upload(&bounds, [5], &device);
        let ids = values(causal_conv1d_seq_idx(cu_seqlens(), t).float());
        let want: Vec<f64> = (0..t as i64)
            .map(|step| match bounds.iter().filter(|bound| **bound <= step).count() {
                0 | 5 => -1.0,
                reached => reached as f64 - 1.0,
            })
            .collect();
        assert_eq!(ids, want, "{on}");
        for layout in [Conv1dLayout::Bct, Conv1dLayout::Btc] {
            let conv = CausalConv1dConfig::new(c, w)
                .with_activation(Activation::Silu)
                .with_layout(layout)
                .init(&device);
            let columns = normal(1, [1, c, t], &device);
            let order = |x: Tensor<3>| if layout == Conv1dLayout::Bct { x } else { x.swap_dims(1, 2) };
            let (y, last) =
                conv.forward_packed(order(columns.clone()), cu_seqlens(), CausalConv1dOptions::new());
            let y = order(y);
            assert_eq!(last.dims(), [4, c, w - 1], "{on}");
            for (sequence, bound) in bounds.windows(2).enumerate() {
                let (start, length) = (bound[0] as usize, (bound[1] - bound[0]) as usize);
                let name = format!("{on} {layout:?} sequence {sequence}");
                let got = last.clone().narrow(0, sequence, 1);
                if length == 0 {
                    assert_eq!(values(got), vec![0.0; c * (w - 1)], "{name}");
                    continue;
                }
                let own = columns.clone().narrow(2, start, length);
                let (alone, state) = conv.forward_with_state(order(own), CausalConv1dOptions::new());
                assert_eq!(values(got), values(state), "{name}: the last state");
                let got = values(y.clone().narrow(2, start, length));
                assert_close(&name, &got, &values(order(alone)), 1e-6);
            }
            for padding in [y.clone().narrow(2, 0, 2), y.narrow(2, 18, 2)] {
                assert_eq!(values(padding), vec![0.0; 2 * c], "{on} {layout:?}: padding");
            }
        }
    }
}

/// What padding of packed sequences gets from above reaches no gradient, and a step's gradient stays in its
/// sequence.
#[test]
fn packed_sequences_have_gradients_of_their_own() {
    let (c, t, w) = (2, 12, 3);
    let bounds = [0i64, 5, 9];
    for (on, device) in devices() {
        let device = device.autodiff();
        let weight = normal(2, [c, w], &device).require_grad();
        let x = normal(1, [1, c, t], &device).require_grad();
        let options = CausalConv1dOptions::new().with_activation(Activation::Silu);
        let packed = options.clone().with_cu_seqlens(int_upload(&bounds, [3], &device), t);
        let dy = normal(3, [1, c, t], &device);
        let last =
            causal_conv1d_last_states(x.clone(), int_upload(&bounds, [3], &device), 2, Conv1dLayout::Bct);
        let dlast = normal(4, [2, c, 2], &device);
        let (y, _) = causal_conv1d_with_state(x.clone(), weight.clone(), None, packed);
        let grads = ((y * dy.clone()).sum() + (last * dlast.clone()).sum()).backward();
        let (dx, dw) = (x.grad(&grads).expect("dx"), weight.grad(&grads).expect("dw"));

        // The same from each sequence alone.
        let mut want_dw = Tensor::zeros([c, w], &device);
        let mut want_dx = Vec::new();
        for (sequence, bound) in bounds.windows(2).enumerate() {
            let (start, length) = (bound[0] as usize, (bound[1] - bound[0]) as usize);
            let own = x.clone().inner().narrow(2, start, length).autodiff().require_grad();
            let taps = weight.clone().inner().autodiff().require_grad();
            let y = causal_conv1d(own.clone(), taps.clone(), None, options.clone());
            let tail = own.clone().narrow(2, length - 2, 2);
            let loss = (y * dy.clone().narrow(2, start, length)).sum()
                + (tail * dlast.clone().narrow(0, sequence, 1)).sum();
            let grads = loss.backward();
            want_dx.push(own.grad(&grads).expect("dx"));
            want_dw = want_dw + Tensor::from_inner(taps.grad(&grads).expect("dw"));
        }
        want_dx.push(Tensor::zeros([1, c, 3], &device).inner());
        assert_close(on, &values(dx), &values(Tensor::cat(want_dx, 2)), 1e-5);
        assert_close(on, &values(dw), &values(want_dw), 1e-5);
    }
}
