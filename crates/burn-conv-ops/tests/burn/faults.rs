//! Problems that these kernels were once wrong for, through Burn on every device: all shapes of
//! `conv_cases::conv3d::faults` in every pass, and problems whose results are known in advance.

use crate::conv3d::{assert_conforms, run};
use crate::support::{devices, gpu, loop_iterations, normal, upload, values};
use burn::tensor::{Device, Tensor};
use burn_conv_ops::{Algorithm, Conv3dOptions, PaddingMode, WinogradTile, conv3d, try_conv3d};

#[test]
fn shapes_that_were_wrong_conform_on_every_device() {
    let table = conv_cases::conv3d::faults();
    assert!(table.len() >= 23, "{} cases", table.len());
    for (on, device) in devices() {
        for case in &table {
            assert_conforms(case, on, run(case, &device));
        }
    }
}

fn ones<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::ones(shape, device)
}

fn replicate(padding: [(usize, usize); 3]) -> Conv3dOptions {
    Conv3dOptions::new().with_padding(padding).with_padding_mode(PaddingMode::Replicate)
}

/// y and, for dy, dx and dw.
fn gradients(
    [x, w]: [Tensor<5>; 2],
    dy: impl Fn(&Tensor<5>) -> Tensor<5>,
    options: Conv3dOptions,
) -> [Vec<f64>; 3] {
    let [x, w] = [x.require_grad(), w.require_grad()];
    let y = conv3d(x.clone(), w.clone(), None, options);
    let grads = (y.clone() * dy(&y)).sum().backward();
    let [dx, dw] = [x, w].map(|tensor| values(tensor.grad(&grads).expect("both are tracked")));
    [values(y), dx, dw]
}

/// Edge elements that tens of thousands of padded positions read: the gradient is right, or the tracked call
/// is refused before anything is launched. The forward pass has no such loop.
#[test]
fn gradients_of_much_replicate_padding_are_right_or_refused() {
    let cube = [(24, 24); 3];
    let width = |padding: usize| [(0, 0), (0, 0), (padding, 0)];
    // Input, taps per axis, padding, positions that read one edge element, its gradient.
    let cases = [
        ([1, 1, 1, 1, 4], 1, width(11_000), 11_001, 11_001.0),
        ([1, 1, 1, 1, 4], 1, width(70_000), 70_001, 70_001.0),
        ([1, 1, 1, 1, 1], 1, cube, 49 * 49 * 49, 117_649.0),
        ([1, 1, 4, 4, 4], 3, [(9, 9); 3], 10 * 10 * 10, 19_683.0),
    ];
    let algorithms = [Algorithm::Auto, Algorithm::NoWinograd, Algorithm::ImplicitGemm, Algorithm::Direct];
    for (on, device) in devices() {
        let most = loop_iterations(&device);
        let mut refused = 0;
        for (shape, taps, padding, positions, edge) in cases {
            for algorithm in algorithms {
                let what = format!("{on} {shape:?} {padding:?} {algorithm:?}");
                let options = || replicate(padding).with_algorithm(algorithm);
                let kernel = [1, 1, taps, taps, taps];
                let (x, w) = (ones(shape, &device), ones(kernel, &device));
                let y = try_conv3d(x, w, None, options()).unwrap_or_else(|error| panic!("{what}: {error}"));
                let count = (taps * taps * taps) as f64;
                assert!(values(y).iter().all(|value| *value == count), "{what}: y");

                let tracked = device.clone().autodiff();
                let [x, w] = [ones(shape, &tracked), ones(kernel, &tracked)].map(Tensor::require_grad);
                let result = try_conv3d(x.clone(), w, None, options());
                if let Some(most) = most.filter(|most| positions > *most) {
                    refused += 1;
                    let error = result.expect_err(&what).to_string();
                    let sentence =
                        format!("loop iterations per thread, this software device ends loops after {most}");
                    assert!(error.starts_with("conv3d: the input gradient by "), "{what}: {error}");
                    assert!(error.ends_with(&sentence), "{what}: {error}");
                    continue;
                }
                let grads = result.unwrap_or_else(|error| panic!("{what}: {error}")).sum().backward();
                let dx = values(x.grad(&grads).expect("x is tracked"));
                assert_eq!(dx[0], edge, "{what}: dx of the edge");
            }
        }
        let expected = cases.iter().filter(|case| most.is_some_and(|most| case.3 > most)).count();
        assert_eq!(refused, expected * algorithms.len(), "{on}");
    }
}

/// Where the gradient of the padded input does not fit a buffer, another plan computes that of the input.
#[test]
fn a_padded_gradient_beyond_the_largest_buffer_gives_way() {
    for (on, device) in devices() {
        let device = device.autodiff();
        // 35 frames of 4 MB after padding; software devices have buffers of 128 MiB, Flex has no limit.
        let padding = if on == "flex" { 2 } else { 17 };
        let frames = 2 * padding + 1;
        let inputs = [ones([1, 1, 1, 1000, 1000], &device), ones([1; 5], &device) * 2.0];
        let options = replicate([(padding, padding), (0, 0), (0, 0)]).with_stride([1, 100, 100]);
        if on != "flex" && !conv_testing::is_full() {
            // The gradient takes a software device a minute; a tracked call plans it.
            let [x, w] = inputs.map(Tensor::require_grad);
            let y = try_conv3d(x, w, None, options).unwrap_or_else(|error| panic!("{on}: {error}"));
            assert_eq!(values(y), vec![2.0; frames * 10 * 10], "{on}: y");
            continue;
        }
        let [y, dx, dw] = gradients(inputs, Tensor::ones_like, options);
        assert_eq!(y, vec![2.0; frames * 10 * 10], "{on}: y");
        let wrong = (0..dx.len()).find(|at| {
            let read = at % 100 == 0 && at / 1000 % 100 == 0;
            dx[*at] != if read { 2.0 * frames as f64 } else { 0.0 }
        });
        assert_eq!(wrong.map(|at| (at, dx[at])), None, "{on}: dx");
        assert_eq!(dw, [frames as f64 * 100.0], "{on}: dw");
    }
}

/// A forced plan that a device's loops serve forward only: the gradients come from other plans.
#[test]
fn gradients_that_a_forced_plan_cannot_compute_come_from_another() {
    let taps = 9900;
    for (on, device) in devices() {
        let device = device.autodiff();
        let inputs = [ones([1, 1, taps + 3, 1, 1], &device), ones([1, 1, taps, 1, 1], &device)];
        let options = Conv3dOptions::new().with_algorithm(Algorithm::Direct);
        let [y, dx, dw] = gradients(inputs, Tensor::ones_like, options);
        assert_eq!(y, [taps as f64; 4], "{on}: y");
        let windows = |at: usize| (at + 1).min(4).min(taps + 3 - at) as f64;
        assert_eq!(dx, (0..taps + 3).map(windows).collect::<Vec<_>>(), "{on}: dx");
        assert_eq!(dw, vec![4.0; taps], "{on}: dw");
    }
}

/// An element near the end of fp32 under the identity, whatever Winograd's transforms add up.
#[test]
fn values_near_the_end_of_fp32_stay_finite() {
    let tiles = [WinogradTile::F2x2, WinogradTile::F4x4, WinogradTile::F6x6].map(Algorithm::Winograd);
    let algorithms = [Algorithm::Auto, Algorithm::NoWinograd, Algorithm::Direct].into_iter().chain(tiles);
    let algorithms: Vec<_> = algorithms.collect();
    for (on, device) in devices() {
        let device = device.autodiff();
        let identity: Vec<f32> = (0..16 * 16 * 9)
            .map(|at| f32::from(u8::from(at % 9 == 4 && at / 9 / 16 == at / 9 % 16)))
            .collect();
        for (largest, algorithm) in
            [2e37, 1e38, 3e38].into_iter().flat_map(|v| algorithms.iter().map(move |a| (v, *a)))
        {
            let one: Vec<f32> = (0..16 * 64).map(|at| if at == 2 * 8 + 2 { largest } else { 0.0 }).collect();
            let one = || upload(&one, [1, 16, 1, 8, 8], &device);
            let zeros = || one() * 0.0;
            let w = || upload(&identity, [16, 16, 1, 3, 3], &device);
            let options = || {
                let padding = [(0, 0), (1, 1), (1, 1)];
                Conv3dOptions::new().with_padding(padding).with_algorithm(algorithm)
            };
            // Once x has the element, once dy.
            let [y, _, _] = gradients([one(), w()], Tensor::zeros_like, options());
            let [_, dx, dw] = gradients([zeros(), w()], |_| one(), options());
            let what = format!("{on} {algorithm:?} {largest}");
            for (name, got) in [("y", y), ("dx", dx)] {
                for (at, got) in got.iter().enumerate() {
                    // Of the largest element, as Winograd mixes a tile's.
                    let want = f64::from(u8::from(at == 2 * 8 + 2));
                    let error = (got / f64::from(largest) - want).abs();
                    assert!(error < 1e-5, "{what}: {name} at {at} is {got}");
                }
            }
            assert!(dw.iter().all(|value| *value == 0.0), "{what}: dw");
        }
    }
}

/// The same where the automatic choice takes Winograd: finite, and the direct sums.
#[test]
fn the_automatic_choice_stays_finite_near_the_end_of_fp32() {
    let device = gpu();
    let x = normal(1, [1, 128, 4, 28, 28], &device).clamp(-3.0, 3.0) * 3e37;
    let w = normal(2, [128, 128, 3, 3, 3], &device) * 1e-3;
    let [auto, direct] = [Algorithm::Auto, Algorithm::NoWinograd].map(|algorithm| {
        let options = Conv3dOptions::new().with_padding([(1, 1); 3]).with_algorithm(algorithm);
        values(conv3d(x.clone(), w.clone(), None, options))
    });
    let rms = (direct.iter().map(|value| value * value).sum::<f64>() / direct.len() as f64).sqrt();
    assert!(rms.is_finite() && rms > 1e36, "{rms}");
    let worst = auto.iter().zip(&direct).map(|(auto, direct)| (auto - direct).abs() / rms);
    assert!(worst.clone().all(|error| error < 1e-4), "{:?}", worst.fold(0.0, f64::max));
}
