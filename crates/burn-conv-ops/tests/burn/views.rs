//! Tensors that are not contiguous give the same bits as their contiguous copies.

use crate::support::{assert_close, bits, devices, int_upload, normal, values};
use burn::tensor::{Device, Int, Tensor};
use burn_conv_ops::{
    Activation, CausalConv1dOptions, Conv1dLayout, Conv3dOptions, Rope2dOptions, RopeLayout,
    causal_conv1d_update, causal_conv1d_with_state, conv3d, rope2d,
};

/// A fresh contiguous tensor of the same elements.
fn copy<const D: usize>(view: &Tensor<D>) -> Tensor<D> {
    Tensor::from_data(view.clone().into_data(), &view.device())
}

fn int_copy<const D: usize>(view: &Tensor<D, Int>) -> Tensor<D, Int> {
    Tensor::from_data(view.clone().into_data(), &view.device())
}

type Views<const D: usize> = Vec<(&'static str, Tensor<D>)>;

/// `[2, 4, 3, 6, 5]`.
fn inputs(device: &Device) -> Views<5> {
    let base = |shape: [usize; 5]| normal(1, shape, device);
    vec![
        ("channels last", base([2, 3, 6, 5, 4]).permute([0, 4, 1, 2, 3])),
        ("axes reversed", base([5, 6, 3, 4, 2]).permute([4, 3, 2, 1, 0])),
        ("depth and width swapped", base([2, 4, 5, 6, 3]).swap_dims(2, 4)),
        ("part of the batch", base([4, 4, 3, 6, 5]).narrow(0, 1, 2)),
        ("part of the channels", base([2, 9, 3, 6, 5]).narrow(1, 3, 4)),
        ("part of the frames", base([2, 4, 5, 6, 5]).narrow(2, 2, 3)),
        ("part of the rows", base([2, 4, 3, 7, 5]).narrow(3, 1, 6)),
        ("part of the columns", base([2, 4, 3, 6, 8]).narrow(4, 3, 5)),
        ("part of channels last", base([2, 3, 6, 5, 7]).narrow(4, 2, 4).permute([0, 4, 1, 2, 3])),
        ("one image for all", base([1, 4, 3, 6, 5]).expand([2, 4, 3, 6, 5])),
        ("one channel for all", base([2, 1, 3, 6, 5]).expand([2, 4, 3, 6, 5])),
        ("one value per channel", base([1, 4, 1, 1, 1]).expand([2, 4, 3, 6, 5])),
        ("one value", base([1; 5]).expand([2, 4, 3, 6, 5])),
    ]
}

/// `[6, 4, 2, 3, 3]`.
fn weights(device: &Device) -> Views<5> {
    let base = |shape: [usize; 5]| normal(2, shape, device);
    vec![
        ("O and C swapped", base([4, 6, 2, 3, 3]).swap_dims(0, 1)),
        ("taps first", base([2, 3, 3, 4, 6]).permute([4, 3, 0, 1, 2])),
        ("part of a wider weight", base([8, 6, 2, 3, 5]).narrow(0, 1, 6).narrow(1, 2, 4).narrow(4, 1, 3)),
        ("one filter for all", base([1, 4, 2, 3, 3]).expand([6, 4, 2, 3, 3])),
        ("one value per filter", base([6, 1, 1, 1, 1]).expand([6, 4, 2, 3, 3])),
    ]
}

#[test]
fn conv3d_reads_views_in_place() {
    for (on, device) in devices() {
        let biases = [normal::<1>(3, [9], &device).narrow(0, 2, 6), normal::<1>(3, [1], &device).expand([6])];
        let mut checks = 0;
        for (x_name, x) in inputs(&device) {
            for (w_name, w) in weights(&device) {
                let bias = biases[checks % 2].clone();
                let options = Conv3dOptions::new().with_padding([1, 1, 0]).with_activation(Activation::Relu);
                let got = conv3d(x.clone(), w.clone(), Some(bias.clone()), options);
                let want = conv3d(copy(&x), copy(&w), Some(copy(&bias)), options);
                assert_eq!(bits(got), bits(want), "{on}: x {x_name}, weight {w_name}");
                checks += 1;
            }
        }
        assert!(checks >= 60, "{checks} checks");
    }
}

#[test]
fn conv3d_reads_gradients_in_place() {
    for (on, device) in devices() {
        let device = device.autodiff();
        // [N, O, OD, OH, OW] = [2, 6, 2, 4, 3]
        let seeds: Views<5> = vec![
            ("channels last", normal(5, [2, 2, 4, 3, 6], &device).permute([0, 4, 1, 2, 3])),
            ("part", normal(5, [2, 9, 2, 4, 5], &device).narrow(1, 2, 6).narrow(4, 1, 3)),
            ("one value per channel", normal(5, [1, 6, 1, 1, 1], &device).expand([2, 6, 2, 4, 3])),
        ];
        for (name, dy) in seeds {
            for (x_name, view) in inputs(&device) {
                let run = |x: Tensor<5>, dy: &Tensor<5>| {
                    let x = x.detach().require_grad();
                    let w = normal(2, [6, 4, 2, 3, 3], &device).require_grad();
                    let y = conv3d(x.clone(), w.clone(), None, Conv3dOptions::new());
                    // The gradient of a product is the other factor itself.
                    let grads = (y * dy.clone()).sum().backward();
                    (bits(x.grad(&grads).expect("tracked")), bits(w.grad(&grads).expect("tracked")))
                };
                let contiguous = run(copy(&view), &copy(&dy));
                assert_eq!(run(view, &dy), contiguous, "{on}: dy {name}, x {x_name}");
            }
        }
    }
}

#[test]
fn causal_conv1d_reads_views_in_place() {
    for (on, device) in devices() {
        // [B, C, T] = [2, 3, 9], or [B, T, C].
        let base = |shape: [usize; 3]| normal(1, shape, &device);
        let bct: Views<3> = vec![
            ("transposed", base([2, 9, 3]).swap_dims(1, 2)),
            ("part of the channels", base([2, 8, 9]).narrow(1, 3, 3)),
            ("part of the steps", base([2, 3, 13]).narrow(2, 3, 9)),
            ("batch last", base([3, 9, 2]).permute([2, 0, 1])),
            ("one row for all", base([1, 3, 9]).expand([2, 3, 9])),
            ("one channel for all", base([2, 1, 9]).expand([2, 3, 9])),
        ];
        let weights: Views<2> = vec![
            ("transposed", normal(2, [4, 3], &device).transpose()),
            ("part", normal(2, [5, 7], &device).narrow(0, 1, 3).narrow(1, 2, 4)),
            ("one filter for all", normal(2, [1, 4], &device).expand([3, 4])),
        ];
        let initial = normal(3, [3, 5, 2], &device).permute([2, 0, 1]).narrow(2, 1, 3);
        let ids = int_upload(&[0, 1, 1, 1, 1, 4, 4, 4, -1, -1, 7], [1, 11], &device);
        let ids = ids.narrow(1, 1, 9).expand([2, 9]);
        for layout in [Conv1dLayout::Bct, Conv1dLayout::Btc] {
            let options = CausalConv1dOptions::new().with_layout(layout).with_activation(Activation::Silu);
            for (x_name, x) in &bct {
                let x = if layout == Conv1dLayout::Bct { x.clone() } else { x.clone().swap_dims(1, 2) };
                for (w_name, w) in &weights {
                    let bias = normal::<1>(4, [5], &device).narrow(0, 1, 3);
                    let views = options.clone().with_initial_state(initial.clone()).with_seq_idx(ids.clone());
                    let plain =
                        options.clone().with_initial_state(copy(&initial)).with_seq_idx(int_copy(&ids));
                    let got = causal_conv1d_with_state(x.clone(), w.clone(), Some(bias.clone()), views);
                    let want = causal_conv1d_with_state(copy(&x), copy(w), Some(copy(&bias)), plain);
                    let what = format!("{on} {layout:?}: x {x_name}, weight {w_name}");
                    assert_eq!(bits(got.0), bits(want.0), "{what}");
                    assert_eq!(bits(got.1), bits(want.1), "{what}, final state");
                }
            }
        }
        let (x, state) = (normal(5, [3, 2], &device).transpose(), initial);
        let (_, w) = weights[0].clone();
        let got = causal_conv1d_update(x.clone(), state.clone(), w.clone(), None, Activation::None);
        let want = causal_conv1d_update(copy(&x), copy(&state), copy(&w), None, Activation::None);
        assert_eq!((bits(got.0), bits(got.1)), (bits(want.0), bits(want.1)), "{on}: update");
    }
}

#[test]
fn rope2d_reads_views_in_place() {
    for (on, device) in devices() {
        // [B, H, N, D] = [2, 3, 5, 8]
        let base = |shape: [usize; 4]| normal(1, shape, &device);
        let tokens: Views<4> = vec![
            ("heads and tokens swapped", base([2, 5, 3, 8]).swap_dims(1, 2)),
            ("part of packed q, k, v", base([2, 3, 5, 24]).narrow(3, 8, 8)),
            ("part of the tokens", base([2, 3, 7, 8]).narrow(2, 2, 5)),
            ("head dimension first", base([8, 5, 3, 2]).permute([3, 2, 1, 0])),
            ("one head for all", base([2, 1, 5, 8]).expand([2, 3, 5, 8])),
        ];
        let at = |shape| int_upload(&(0..40).map(|i| i * 7 % 23 - 9).collect::<Vec<_>>(), shape, &device);
        let positions: [Tensor<3, Int>; 3] = [
            at([2, 10, 2]).narrow(1, 3, 5),
            at([1, 20, 2]).narrow(1, 1, 5).expand([2, 5, 2]),
            at([2, 2, 10]).swap_dims(1, 2).narrow(1, 0, 5),
        ];
        for (name, x) in &tokens {
            for (index, at) in positions.iter().enumerate() {
                for layout in [RopeLayout::Bhnd, RopeLayout::Bnhd] {
                    let x = if layout == RopeLayout::Bhnd { x.clone() } else { x.clone().swap_dims(1, 2) };
                    let options = Rope2dOptions::new().with_layout(layout);
                    let got = rope2d(x.clone(), at.clone(), options);
                    let want = rope2d(copy(&x), int_copy(at), options);
                    assert_eq!(bits(got), bits(want), "{on} {layout:?}: tokens {name}, positions {index}");
                }
            }
        }
    }
}

/// The sum of Burn's CPU backend reads outside a tensor whose axes of size one have strides of another order,
/// where the order of the others says that nothing needs to be copied: what comes back when a one-pixel y is
/// permuted before the loss.
#[test]
fn the_bias_gradient_takes_axes_of_size_one_in_any_order() {
    for (on, device) in devices() {
        let device = device.autodiff();
        let x = normal(1, [1, 3, 2, 1, 1], &device).require_grad();
        let w = normal(2, [8, 3, 1, 1, 1], &device).require_grad();
        let b = normal(3, [8], &device).require_grad();
        for order in [[4, 1, 2, 0, 3], [4, 3, 1, 0, 2], [0, 1, 3, 4, 2]] {
            let y = conv3d(x.clone(), w.clone(), Some(b.clone()), Conv3dOptions::new()).permute(order);
            // Channels before frames in each order.
            let dy = normal(4, y.dims(), &device);
            let grads = (y * dy.clone()).sum().backward();
            let got = values(b.grad(&grads).expect("tracked"));
            let want: Vec<f64> = values(dy.clone().inner()).chunks(2).map(|pair| pair.iter().sum()).collect();
            assert_close(on, &got, &want, 1e-6);
        }
    }
}
