//! Activations of tracked convolutions: y has the bits of the untracked call, and gradients follow the f64
//! derivative of what was not rounded.

use crate::support::{absolute, bits, devices, gpu, normal, tracking, upload, values};
use burn::tensor::{DType, Device, Tensor};
use burn_conv_ops::{
    Activation, Algorithm, CausalConv1dOptions, Conv3dOptions, PaddingMode, WinogradTile, causal_conv1d,
    conv3d,
};
use conv_kernels::FloatType;
use conv_kernels::conv3d::{Conv3dProblem, Window, reference};

/// The half types that a device holds.
fn halves(on: &str) -> &'static [(DType, FloatType)] {
    let both = &[(DType::F16, FloatType::F16), (DType::BF16, FloatType::Bf16)];
    if on.starts_with("flex") { both } else { &both[..1] }
}

/// y, dx, dw and db of one output site whose channels are summed, for dy = 1; y of the untracked call.
fn site(device: &Device, x: &[f32], w: &[f32], bias: bool, dtype: DType) -> (f64, f64, [Vec<f64>; 3]) {
    let shape = [1, x.len(), 1, 1, 1];
    let options = Conv3dOptions::new().with_activation(Activation::Silu);
    let [x, w] = [x, w].map(|values| upload(values, shape, device).cast(dtype));
    let b = bias.then(|| Tensor::<1>::zeros([1], (device, dtype)));
    let untracked = values(conv3d(x.clone(), w.clone(), b.clone(), options))[0];
    let (x, w, b) = (x.require_grad(), w.require_grad(), b.map(Tensor::require_grad));
    let y = conv3d(x.clone(), w.clone(), b.clone(), options);
    let grads = y.clone().sum().backward();
    let db = b.map_or(Vec::new(), |b| values(b.grad(&grads).expect("tracked")));
    let of = |tensor: &Tensor<5>| values(tensor.grad(&grads).expect("tracked"));
    (untracked, values(y.inner())[0], [of(&x), of(&w), db])
}

/// Right to a rounding of the type, and what fp32 adds for an exponential.
fn close(got: f64, want: f64, dtype: FloatType, roundings: f64) -> bool {
    let bound = (roundings * dtype.unit_roundoff() + 5e-7) * want.abs() * 1.001 + dtype.subnormal_roundoff();
    (got - want).abs() <= bound
}

#[test]
fn a_value_that_no_half_holds_is_activated_before_it_is_rounded() {
    for (on, device) in tracking() {
        let (untracked, y, gradients) = site(&device, &[-100.0; 16], &[100.0; 16], true, DType::F16);
        assert_eq!((untracked, y), (0.0, 0.0), "{on}");
        assert!(gradients.iter().flatten().all(|gradient| *gradient == 0.0), "{on}: {gradients:?}");

        let (untracked, y, [dx, dw, _]) =
            site(&device, &[-10.0, -3.0 / 1024.0], &[1.0, 1.0], false, DType::F16);
        assert_eq!(untracked, y, "{on}");
        assert!(close(y, -4.527_568_8e-4, FloatType::F16, 1.0), "{on}: y {y}");
        assert!(close(dx[0], -4.075_0e-4, FloatType::F16, 1.0), "{on}: dx {}", dx[0]);
        assert!(close(dw[0], 4.075_0e-3, FloatType::F16, 2.0), "{on}: dw {}", dw[0]);
        if on.starts_with("flex") {
            let (untracked, y, [dx, _, _]) =
                site(&device, &[-80.0, -15.0 / 64.0], &[1.0, 1.0], false, DType::BF16);
            assert_eq!(untracked, y);
            assert!(close(y, -1.143_52e-33, FloatType::Bf16, 1.0), "y {y}");
            assert!(close(dx[0], -1.131_27e-33, FloatType::Bf16, 1.0), "dx {}", dx[0]);
        }
    }
}

/// Every algorithm, in every type: the bits do not tell whether a call was tracked.
#[test]
fn tracking_changes_no_bit_of_y() {
    let shapes = [
        ([2, 5, 3, 7, 9], [6, 5, 3, 3, 3], Conv3dOptions::new().with_padding([1; 3])),
        ([1, 64, 2, 3, 3], [5, 64, 3, 3, 3], Conv3dOptions::new().with_padding([1; 3])),
        ([1, 6, 3, 8, 8], [6, 1, 3, 3, 3], Conv3dOptions::new().with_padding([1; 3]).with_groups(6)),
        (
            [1, 4, 3, 6, 5],
            [4, 4, 1, 3, 3],
            Conv3dOptions::new().with_padding([0, 1, 1]).with_padding_mode(PaddingMode::Replicate),
        ),
    ];
    let algorithms = [
        Algorithm::Auto,
        Algorithm::Direct,
        Algorithm::ImplicitGemm,
        Algorithm::Winograd(WinogradTile::F2x2),
        Algorithm::Winograd(WinogradTile::F4x4),
    ];
    let mut compared = 0;
    for (on, plain) in devices() {
        let device = plain.clone().autodiff();
        let dtypes = [DType::F32].into_iter().chain(halves(on).iter().map(|(dtype, _)| *dtype));
        for (dtype, (x, w, options)) in dtypes.flat_map(|dtype| shapes.map(|shape| (dtype, shape))) {
            for algorithm in algorithms {
                let winograd = matches!(algorithm, Algorithm::Winograd(_));
                if on == "flex" && algorithm != Algorithm::Auto || winograd && options.groups > 1 {
                    continue;
                }
                let all = [Activation::Silu, Activation::Relu];
                let activations = if algorithm == Algorithm::Auto { &all[..] } else { &all[..1] };
                for &activation in activations {
                    let options = options.with_algorithm(algorithm).with_activation(activation);
                    let run = |device: &Device, tracked: bool| {
                        let x = normal(1, x, device).cast(dtype);
                        let weight = normal(2, w, device).cast(dtype);
                        let bias = normal(3, [w[0]], device).cast(dtype);
                        let x = if tracked { x.require_grad() } else { x };
                        bits(conv3d(x, weight, Some(bias), options))
                    };
                    let want = run(&plain, false);
                    let what = format!("{on} {dtype:?} {x:?} {w:?} {algorithm:?} {activation:?}");
                    assert_eq!(run(&device, true), want, "{what}");
                    assert_eq!(run(&device, false), want, "{what}");
                    compared += 1;
                }
            }
        }
    }
    // 22 in each type on the GPU.
    assert!(compared >= 22, "{compared} calls");
}

/// dx, dw and db against the f64 derivative at the value in f64. The gradient before the activation is a
/// tensor of the storage type: one rounding of it, then sums in fp32 and one of the result.
#[test]
fn gradients_of_halves_follow_the_derivative() {
    let (x_shape, w_shape) = ([2, 3, 2, 5, 6], [4, 3, 2, 3, 3]);
    let options = Conv3dOptions::new().with_padding([1; 3]).with_activation(Activation::Silu);
    for (on, device) in tracking() {
        for &(dtype, storage) in halves(&on) {
            let half = |tensor: Tensor<5>| tensor.cast(dtype);
            let x = half(normal(1, x_shape, &device)).require_grad();
            let w = half(normal(2, w_shape, &device)).require_grad();
            let b = normal(3, [4], &device).cast(dtype).require_grad();
            let y = conv3d(x.clone(), w.clone(), Some(b.clone()), options);
            let dy = half(normal(4, y.dims(), &device));
            let grads = (y * dy.clone()).sum().backward();

            let window = Window { padding: [(1, 1); 3], activation: Activation::Silu, ..Window::default() };
            let problem = Conv3dProblem::new(x_shape, w_shape, Some(4), window, storage).expect("sound");
            let [x64, w64, dy64] = [&x, &w, &dy].map(|tensor| values(tensor.clone().inner()));
            let b64 = values(b.clone().inner());
            let pre = reference::pre_activation(&problem, &x64, &w64, Some(&b64));
            let slope = |v: &f64| reference::activation_derivative(Activation::Silu, *v);
            let dpre: Vec<f64> = pre.iter().zip(&dy64).map(|(v, dy)| slope(v) * dy).collect();
            // What the rounding of dpre leaves, and of fp32: the slope's error and the sum's.
            let left: Vec<f64> = dpre
                .iter()
                .map(|v| v.abs() * storage.unit_roundoff() + storage.subnormal_roundoff())
                .zip(&dy64)
                .map(|(rounding, dy)| rounding + 100.0 * FloatType::F32.unit_roundoff() * dy.abs())
                .collect();
            let compare = |what: &str, got: Vec<f64>, want: Vec<f64>, slack: Vec<f64>, sum: Vec<f64>| {
                for (index, (got, want)) in got.iter().zip(&want).enumerate() {
                    let bound = storage.unit_roundoff() * (want.abs() + slack[index])
                        + slack[index]
                        + 400.0 * FloatType::F32.unit_roundoff() * sum[index]
                        + storage.subnormal_roundoff();
                    let error = (got - want).abs();
                    assert!(error <= bound, "{on} {dtype:?} {what} {index}: {got}, {want} expected");
                }
            };
            let (abs_x, abs_w, abs_dpre) = (absolute(&x64), absolute(&w64), absolute(&dpre));
            compare(
                "dx",
                values(x.grad(&grads).expect("tracked")),
                reference::input_gradient(&problem, &w64, &dpre),
                reference::input_gradient(&problem, &abs_w, &left),
                reference::input_gradient(&problem, &abs_w, &abs_dpre),
            );
            compare(
                "dw",
                values(w.grad(&grads).expect("tracked")),
                reference::weight_gradient(&problem, &x64, &dpre),
                reference::weight_gradient(&problem, &abs_x, &left),
                reference::weight_gradient(&problem, &abs_x, &abs_dpre),
            );
            compare(
                "db",
                values(b.grad(&grads).expect("tracked")),
                reference::bias_gradient(&problem, &dpre),
                reference::bias_gradient(&problem, &left),
                reference::bias_gradient(&problem, &abs_dpre),
            );
        }
    }
}

/// Where a positive value is so small that y is 0, ReLU's slope is 0: it is that of y as stored, as in
/// PyTorch.
#[test]
fn relu_of_a_half_has_the_slope_of_what_is_stored() {
    let tiny = 2f32.powi(-13);
    for (on, device) in tracking() {
        let options = Conv3dOptions::new().with_activation(Activation::Relu);
        let of = |value: f32| upload(&[value], [1; 5], &device).cast(DType::F16).require_grad();
        for (factor, y, slope) in [(1.0, 0.0, 0.0), (4.0, 2f64.powi(-24), 1.0), (-1.0, 0.0, 0.0)] {
            let (x, w) = (of(tiny), of(factor * tiny));
            let out = conv3d(x.clone(), w.clone(), None, options);
            let grads = out.clone().sum().backward();
            assert_eq!(values(out.inner())[0], y, "{on}");
            let got = values(x.grad(&grads).expect("tracked"))[0];
            assert_eq!(got, f64::from(factor * tiny) * slope, "{on} {factor}");
        }
    }
}

/// Causal conv1d computes the value before the activation again in its backward pass: it is right there
/// already.
#[test]
fn causal_conv1d_rounds_once_as_well() {
    for (on, device) in tracking() {
        let options = CausalConv1dOptions::new().with_activation(Activation::Silu);
        let x = upload(&[-10.0f32, -3.0 / 1024.0], [1, 1, 2], &device).cast(DType::F16).require_grad();
        let w = upload(&[1.0f32, 1.0], [1, 2], &device).cast(DType::F16).require_grad();
        let y = causal_conv1d(x.clone(), w, None, options);
        let dy = upload(&[0.0f32, 1.0], [1, 1, 2], &device).cast(DType::F16);
        let grads = (y.clone() * dy).sum().backward();
        assert!(close(values(y.inner())[1], -4.527_568_8e-4, FloatType::F16, 1.0), "{on}");
        let dx = values(x.grad(&grads).expect("tracked"))[0];
        assert!(close(dx, -4.075_0e-4, FloatType::F16, 1.0), "{on}: {dx}");
    }
}

/// The same through Fusion's queue, where shapes and types are declared before anything is computed: an op on
/// y and its gradient in one graph.
#[test]
fn what_follows_a_tracked_silu_sees_its_shape_and_type() {
    let device = gpu().autodiff();
    let x = normal(1, [1, 3, 2, 5, 6], &device).cast(DType::F16).require_grad();
    let w = normal(2, [4, 3, 1, 3, 3], &device).cast(DType::F16).require_grad();
    let y = conv3d(x.clone(), w.clone(), None, Conv3dOptions::new().with_activation(Activation::Silu));
    assert_eq!((y.dims(), y.dtype()), ([1, 4, 2, 3, 4], DType::F16));
    let grads = (y.clone() * y.tanh()).sum().backward();
    for (tensor, dims) in [(&x, [1, 3, 2, 5, 6]), (&w, [4, 3, 1, 3, 3])] {
        let gradient = tensor.grad(&grads).expect("tracked");
        assert_eq!((gradient.dims(), gradient.dtype()), (dims, DType::F16));
        assert!(values(gradient).iter().all(|value| value.is_finite()));
    }
}
