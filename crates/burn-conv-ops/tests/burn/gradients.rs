//! What the graph adds to the gradients: tracked subsets, shared operands, gradient checkpointing, views,
//! half types, and whole training steps. The gradients themselves are held to the f64 references in the
//! conformance tests.

use crate::support::{assert_close, bits, devices, int_upload, normal, tracking, values};
use burn::tensor::{DType, Device, Tensor};
use burn_conv_ops::{
    Activation, Algorithm, CausalConv1dOptions, Conv3dOptions, PaddingMode, Rope2dOptions, WinogradTile,
    causal_conv1d_update, causal_conv1d_with_state, conv3d, rope2d,
};

fn require<const D: usize>(tensor: Tensor<D>, tracked: bool) -> Tensor<D> {
    if tracked { tensor.require_grad() } else { tensor }
}

const ACTIVATIONS: [Activation; 3] = [Activation::None, Activation::Relu, Activation::Silu];

/// Gradients of (x, weight, bias), those that are tracked, and y.
type Conv3dRun = (Vec<f64>, [Option<Vec<u32>>; 3]);

fn conv3d_subset(device: &Device, activation: Activation, tracked: [bool; 3]) -> Conv3dRun {
    let x = require(normal(1, [2, 4, 3, 5, 6], device), tracked[0]);
    let w = require(normal(2, [6, 2, 3, 3, 2], device), tracked[1]);
    let b = require(normal(3, [6], device), tracked[2]);
    let options = Conv3dOptions::new()
        .with_groups(2)
        .with_stride([1, 2, 1])
        .with_padding([(1, 1), (0, 2), (1, 0)])
        .with_activation(activation);
    let y = conv3d(x.clone(), w.clone(), Some(b.clone()), options);
    let value = values(y.clone().inner());
    if tracked == [false; 3] {
        return (value, [None, None, None]);
    }
    let dy = normal(4, y.dims(), device);
    let grads = (y * dy).sum().backward();
    (value, [x.grad(&grads).map(bits), w.grad(&grads).map(bits), b.grad(&grads).map(bits)])
}

#[test]
fn conv3d_gives_each_tracked_subset_its_gradients() {
    for (on, device) in tracking() {
        for activation in ACTIVATIONS {
            let (y, all) = conv3d_subset(&device, activation, [true; 3]);
            assert!(all.iter().all(Option::is_some));
            for subset in 0..7 {
                let tracked = [0, 1, 2].map(|bit| subset >> bit & 1 == 1);
                let what = format!("{on} {activation:?} {tracked:?}");
                let (value, grads) = conv3d_subset(&device, activation, tracked);
                assert_close(&what, &value, &y, 1e-6);
                for (operand, tracked) in tracked.into_iter().enumerate() {
                    let want = if tracked { all[operand].clone() } else { None };
                    assert_eq!(grads[operand], want, "{what}: gradient of operand {operand}");
                }
            }
        }
    }
}

/// Gradients of (x, weight, bias, initial state), those that are tracked, through y and the final state.
fn causal_subset(device: &Device, tracked: [bool; 4]) -> [Option<Vec<u32>>; 4] {
    let x = require(normal(1, [2, 3, 7], device), tracked[0]);
    let w = require(normal(2, [3, 4], device), tracked[1]);
    let b = require(normal(3, [3], device), tracked[2]);
    let initial = require(normal(4, [2, 3, 3], device), tracked[3]);
    let ids = int_upload(&[0, 0, 0, -1, 2, 2, 2, 5, 5, 6, 6, 6, 6, 6], [2, 7], device);
    let options =
        CausalConv1dOptions::from(Activation::Silu).with_initial_state(initial.clone()).with_seq_idx(ids);
    let (y, last) = causal_conv1d_with_state(x.clone(), w.clone(), Some(b.clone()), options);
    let dy = normal(5, y.dims(), device);
    let grads = ((y * dy).sum() + (last * normal(6, [2, 3, 3], device)).sum()).backward();
    [
        x.grad(&grads).map(bits),
        w.grad(&grads).map(bits),
        b.grad(&grads).map(bits),
        initial.grad(&grads).map(bits),
    ]
}

#[test]
fn causal_conv1d_gives_each_tracked_subset_its_gradients() {
    for (on, device) in tracking() {
        let all = causal_subset(&device, [true; 4]);
        assert!(all.iter().all(Option::is_some));
        for subset in 1..15 {
            let tracked = [0, 1, 2, 3].map(|bit| subset >> bit & 1 == 1);
            let grads = causal_subset(&device, tracked);
            for (operand, tracked) in tracked.into_iter().enumerate() {
                let want = if tracked { all[operand].clone() } else { None };
                assert_eq!(grads[operand], want, "{on} {tracked}: gradient of operand {operand}");
            }
        }
    }
}

#[test]
fn an_operand_used_twice_gets_the_sum() {
    for (on, device) in tracking() {
        let leaf = |seed| normal(seed, [2, 2, 3, 3, 3], &device).require_grad();
        // As x of two convolutions.
        let (x, a, b, w, v) = (leaf(1), leaf(1), leaf(1), leaf(2), leaf(3));
        let options = Conv3dOptions::new().with_padding([1; 3]).with_activation(Activation::Silu);
        let y = conv3d(x.clone(), w.clone(), None, options) * conv3d(x.clone(), v.clone(), None, options);
        let apart = conv3d(a.clone(), w.clone(), None, options) * conv3d(b.clone(), v.clone(), None, options);
        let (grads, apart) = (y.sum().backward(), apart.sum().backward());
        let want = a.grad(&apart).expect("tracked") + b.grad(&apart).expect("tracked");
        assert_close(&on, &values(x.grad(&grads).expect("tracked")), &values(want), 1e-6);

        // As x and weight of one convolution.
        let y = conv3d(x.clone(), x.clone(), None, Conv3dOptions::new().with_padding([1; 3]));
        let apart = conv3d(a.clone(), b.clone(), None, Conv3dOptions::new().with_padding([1; 3]));
        let dy = normal(4, y.dims(), &device);
        let (grads, apart) = ((y * dy.clone()).sum().backward(), (apart * dy).sum().backward());
        let want = a.grad(&apart).expect("tracked") + b.grad(&apart).expect("tracked");
        assert_close(&on, &values(x.grad(&grads).expect("tracked")), &values(want), 1e-6);
    }
}

/// A graph in which every op's operands and result are needed again: cheap ops before and after each of ours.
fn mixed_graph(device: &Device) -> Vec<Vec<f64>> {
    let x = normal(1, [1, 2, 2, 4, 4], device).require_grad();
    let w = normal(2, [4, 2, 1, 3, 3], device).require_grad();
    let v = normal(3, [8, 3], device).require_grad();
    let options = Conv3dOptions::new().with_padding([0, 1, 1]).with_activation(Activation::Silu);
    // [1, 4, 2, 4, 4]
    let y = conv3d((x.clone() * 0.5 + 1.0).sin(), w.clone().tanh() * 0.3, None, options).tanh();
    // [B, H, N, D] = [1, 2, 16, 4]
    let tokens = y.clone().reshape([1, 2, 16, 4]).sin();
    let positions = int_upload(&(0..32).collect::<Vec<_>>(), [1, 16, 2], device);
    let turned = rope2d(tokens, positions, Rope2dOptions::new());
    let squared = turned.clone() * turned.exp();
    // [B, C, T] = [1, 8, 16]
    let sequence = squared.reshape([1, 8, 16]);
    let options = CausalConv1dOptions::new().with_activation(Activation::Silu);
    let (z, last) = causal_conv1d_with_state(sequence, v.clone(), None, options);
    let loss = (z.clone() * burn::tensor::activation::sigmoid(z)).sum() + (last.clone() * last).sum();
    let grads = loss.clone().backward();
    vec![
        values(loss.inner()),
        values(x.grad(&grads).expect("tracked")),
        values(w.grad(&grads).expect("tracked")),
        values(v.grad(&grads).expect("tracked")),
    ]
}

#[test]
fn gradient_checkpointing_and_the_device_change_nothing() {
    let want = mixed_graph(&Device::flex().autodiff());
    for (on, device) in tracking() {
        for (what, (got, want)) in mixed_graph(&device).iter().zip(&want).enumerate() {
            assert_close(&format!("{on} result {what}"), got, want, 1e-5);
        }
    }
}

#[test]
fn gradients_pass_through_views() {
    for (on, device) in tracking() {
        let w = normal(2, [5, 4, 2, 2, 2], &device);
        let run = |x: Tensor<5>| {
            let y = conv3d(x, w.clone(), None, Conv3dOptions::new());
            let dy = normal(3, y.dims(), &device);
            (y * dy).sum().backward()
        };
        // [N, D, H, W, C] in memory.
        let base = normal(1, [2, 3, 4, 5, 4], &device).require_grad();
        let grads = run(base.clone().permute([0, 4, 1, 2, 3]));
        let plain = normal(1, [2, 3, 4, 5, 4], &device).permute([0, 4, 1, 2, 3]).require_grad();
        let want = plain.grad(&run(plain.clone())).expect("tracked").permute([0, 2, 3, 4, 1]);
        assert_eq!(bits(base.grad(&grads).expect("tracked")), bits(want), "{on}: permuted");

        let base = normal(1, [2, 6, 5, 4, 5], &device).require_grad();
        let grads = run(base.clone().narrow(1, 1, 4).narrow(2, 2, 3));
        let got = base.grad(&grads).expect("tracked");
        let plain = normal(1, [2, 6, 5, 4, 5], &device).narrow(1, 1, 4).narrow(2, 2, 3).require_grad();
        let want = plain.grad(&run(plain.clone())).expect("tracked");
        assert_eq!(bits(got.clone().narrow(1, 1, 4).narrow(2, 2, 3)), bits(want), "{on}: sliced");
        let elsewhere =
            values(got.clone().narrow(1, 0, 1)).iter().chain(&values(got.narrow(2, 0, 2))).sum::<f64>();
        assert_eq!(elsewhere, 0.0, "{on}: outside the slice");

        let base = normal(1, [1, 1, 3, 4, 5], &device).require_grad();
        let grads = run(base.clone().expand([2, 4, 3, 4, 5]));
        let plain = normal(1, [1, 1, 3, 4, 5], &device).expand([2, 4, 3, 4, 5]).require_grad();
        let want = plain.grad(&run(plain.clone())).expect("tracked").sum_dim(0).sum_dim(1);
        let got = values(base.grad(&grads).expect("tracked"));
        assert_close(&format!("{on}: expanded"), &got, &values(want), 1e-5);
    }
}

/// y, dx, dw, db of a convolution on inputs rounded to `dtype`, computed in `dtype` or, as the oracle, in
/// f32.
fn half_run(device: &Device, dtype: DType, compute: DType, activation: Activation) -> Vec<Tensor<1>> {
    fn leaf<const D: usize>(seed: u64, shape: [usize; D], device: &Device, dtypes: [DType; 2]) -> Tensor<D> {
        // Rounded by the CPU: a GPU's compiler may leave out a rounding between two casts that Burn fuses.
        let rounded = normal(seed, shape, &Device::flex()).cast(dtypes[0]).into_data();
        Tensor::from_data(rounded, (device, dtypes[1]))
    }
    let dtypes = [dtype, compute];
    let x = leaf(1, [2, 3, 3, 5, 5], device, dtypes).require_grad();
    let w = leaf(2, [4, 3, 2, 3, 3], device, dtypes).require_grad();
    let b = leaf(3, [4], device, dtypes).require_grad();
    let options = Conv3dOptions::new().with_padding([1; 3]).with_activation(activation);
    let y = conv3d(x.clone(), w.clone(), Some(b.clone()), options);
    let dy = leaf(4, y.dims(), device, dtypes);
    let grads = (y.clone() * dy).sum().backward();
    vec![
        y.inner().flatten(0, 4),
        x.grad(&grads).expect("tracked").flatten(0, 4),
        w.grad(&grads).expect("tracked").flatten(0, 4),
        b.grad(&grads).expect("tracked"),
    ]
}

#[test]
fn half_types_sum_in_fp32() {
    for (on, device) in tracking() {
        let served: &[DType] =
            if on.starts_with("flex") { &[DType::F16, DType::BF16] } else { &[DType::F16] };
        for &dtype in served {
            for activation in ACTIVATIONS {
                let got = half_run(&device, dtype, dtype, activation);
                let want = half_run(&device, dtype, DType::F32, activation);
                // A few roundings of 2^-11 and 2^-8: y, what the activation saved, dpre, and the result. Sums
                // in half precision would be ten times as far off.
                let tolerance = if dtype == DType::F16 { 1.5e-3 } else { 1.2e-2 };
                for (which, (got, want)) in got.into_iter().zip(want).enumerate() {
                    assert_eq!(got.dtype(), dtype, "{on} {activation:?} result {which}");
                    let what = format!("{on} {dtype:?} {activation:?} result {which}");
                    assert_close(&what, &values(got), &values(want), tolerance);
                }
            }
        }
    }
}

#[test]
fn a_causal_weight_may_be_wider_than_x() {
    for (on, device) in tracking() {
        let x = normal(1, [2, 3, 9], &device).cast(DType::F16).require_grad();
        let w = normal(2, [3, 4], &device).require_grad();
        let options = CausalConv1dOptions::new().with_activation(Activation::Silu);
        let (y, last) = causal_conv1d_with_state(x.clone(), w.clone(), None, options);
        assert_eq!((y.dtype(), last.dtype()), (DType::F16, DType::F16), "{on}");
        let grads = y.sum().backward();
        let (dx, dw) = (x.grad(&grads).expect("tracked"), w.grad(&grads).expect("tracked"));
        assert_eq!((dx.dtype(), dw.dtype()), (DType::F16, DType::F32), "{on}");
        // Read, so that no process ends while a driver still works for it.
        assert!(values(dx).iter().chain(&values(dw)).all(|value| value.is_finite()), "{on}");
    }
}

#[test]
fn decoding_steps_can_be_tracked() {
    for (on, device) in tracking() {
        let leaf = |seed, shape| normal::<2>(seed, shape, &device).require_grad();
        let (x, w) = (leaf(1, [2, 3]), leaf(2, [3, 4]));
        let state = normal(3, [2, 3, 3], &device).require_grad();
        let (y, next) = causal_conv1d_update(x.clone(), state.clone(), w.clone(), None, Activation::None);
        let grads = (y.sum() + (next.clone() * next).sum()).backward();
        // y = sum over k of w[c,k] * [state | x][b,c,k]; the next state drops its first column.
        let dx = w.clone().inner().narrow(1, 3, 1).reshape([1, 3]) + x.clone().inner() * 2.0;
        assert_close(&on, &values(x.grad(&grads).expect("tracked")), &values(dx), 1e-6);
        let dw = values(state.clone().inner().sum_dim(0));
        let got = values(w.grad(&grads).expect("tracked").narrow(1, 0, 3));
        assert_close(&on, &got, &dw, 1e-6);
        assert!(state.grad(&grads).is_some(), "{on}");
    }
}

fn inner_product<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> (f64, f64) {
    let products: Vec<f64> = values(a).iter().zip(values(b)).map(|(a, b)| a * b).collect();
    (products.iter().sum(), products.iter().map(|product| product * product).sum::<f64>().sqrt())
}

/// `<conv(x, w), dy> = <x, dx> = <w, dw>`, at sizes for which the f64 reference is too slow.
#[test]
fn forward_and_gradients_are_adjoint() {
    let shapes = [
        ([2, 16, 4, 18, 17], [24, 16, 3, 3, 3], Conv3dOptions::new().with_padding([1; 3])),
        ([1, 16, 7, 21, 17], [12, 4, 3, 5, 2], Conv3dOptions::new().with_groups(4).with_stride([2, 3, 1])),
        (
            [2, 8, 4, 12, 14],
            [8, 8, 2, 3, 3],
            Conv3dOptions::new().with_padding([3, 2, 1]).with_padding_mode(PaddingMode::Replicate),
        ),
        ([1, 32, 5, 10, 12], [32, 1, 3, 3, 3], Conv3dOptions::new().with_groups(32).with_dilation([1, 2, 2])),
    ];
    let algorithms = [
        Algorithm::Auto,
        Algorithm::Direct,
        Algorithm::ImplicitGemm,
        Algorithm::Winograd(WinogradTile::F2x2),
        Algorithm::Winograd(WinogradTile::F4x4),
    ];
    for (on, device) in devices() {
        let device = device.autodiff();
        for (x, w, options) in shapes {
            let winograd = options.groups == 1 && w[3..] == [3, 3] && options.stride == [1; 3];
            let mut first: Option<Vec<f64>> = None;
            for algorithm in algorithms {
                if on == "flex" && algorithm != Algorithm::Auto {
                    continue;
                }
                if matches!(algorithm, Algorithm::Winograd(_)) && !winograd {
                    continue;
                }
                let what = format!("{on} {x:?} {w:?} {algorithm:?}");
                let (x, w) = (normal(1, x, &device).require_grad(), normal(2, w, &device).require_grad());
                let y = conv3d(x.clone(), w.clone(), None, options.with_algorithm(algorithm));
                let dy = normal(3, y.dims(), &device);
                let grads = (y.clone() * dy.clone()).sum().backward();
                let (forward, scale) = inner_product(y.clone().inner(), dy.inner());
                let (by_x, _) = inner_product(x.clone().inner(), x.grad(&grads).expect("tracked"));
                let (by_w, _) = inner_product(w.clone().inner(), w.grad(&grads).expect("tracked"));
                assert!((forward - by_x).abs() <= 1e-5 * scale, "{what}: <y,dy> {forward} <x,dx> {by_x}");
                assert!((forward - by_w).abs() <= 1e-5 * scale, "{what}: <y,dy> {forward} <w,dw> {by_w}");
                let y = values(y.inner());
                match &first {
                    Some(first) => assert_close(&what, &y, first, 2e-5),
                    None => first = Some(y),
                }
            }
        }
    }
}
