//! conv3d and causal conv3d with a residual: the bits of Burn's addition in fp32, values and gradients of
//! every tracked subset; one rounding in f16; clips in pieces; the modules; what is refused. conv2d and
//! conv1d with one, next to Burn's own ops too.

use crate::support::{assert_close, bits, devices, gpu, normal, upload, values};
use burn::tensor::activation::{relu, silu};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Device, Tensor, module};
use burn_conv_ops::nn::{CausalConv3dConfig, Conv1dConfig, Conv2dConfig, Conv3dConfig};
use burn_conv_ops::{
    Activation, Algorithm, CausalConv3dOptions, Conv1dOptions, Conv2dOptions, Conv3dOptions, WinogradTile,
    causal_conv3d, causal_conv3d_with_residual, conv1d, conv1d_with_residual, conv2d, conv2d_with_residual,
    conv3d, conv3d_with_residual, try_causal_conv3d_with_residual, try_conv1d_with_residual,
    try_conv2d_with_residual, try_conv3d_with_residual,
};

const ACTIVATIONS: [Activation; 3] = [Activation::None, Activation::Relu, Activation::Silu];

/// y, and the gradients of (x, weight, bias, residual, cache), those that are tracked.
type Run = (Vec<u32>, [Option<Vec<u32>>; 5]);

/// A layer with its residual fused, or added by Burn. `cached`: the first two frames of x are in a cache.
struct Layer {
    options: Conv3dOptions,
    weight: [usize; 5],
    cached: bool,
    /// Whether the residual is one number for each channel, expanded.
    expanded: bool,
}

impl Layer {
    fn run(&self, device: &Device, tracked: [bool; 5], fused: bool) -> Run {
        let require = |tensor: Tensor<5>, tracked: bool| if tracked { tensor.require_grad() } else { tensor };
        let channels = self.weight[1] * self.options.groups;
        let held = if self.cached { 2 } else { 0 };
        let x = require(normal(1, [2, channels, 5 - held, 5, 6], device), tracked[0]);
        let weight = require(normal(2, self.weight, device), tracked[1]);
        let bias = normal(3, [self.weight[0]], device);
        let bias = if tracked[2] { bias.require_grad() } else { bias };
        let cache = require(normal(5, [2, channels, 2, 5, 6], device), tracked[4]);
        let causal = CausalConv3dOptions::new()
            .with_plane_padding(1)
            .with_groups(self.options.groups)
            .with_activation(self.options.activation);
        let plain = |x: Tensor<5>, cache: Tensor<5>| {
            let bias = Some(bias.clone());
            if self.cached {
                causal_conv3d(x, weight.clone(), bias, Some(cache), causal).0
            } else {
                conv3d(x, weight.clone(), bias, self.options)
            }
        };
        let shape = plain(x.clone().detach(), cache.clone().detach()).dims();
        let of_channels = [1, shape[1], 1, 1, 1];
        let residual =
            require(normal(4, if self.expanded { of_channels } else { shape }, device), tracked[3]);
        let added = residual.clone().expand(shape);
        let y = match (fused, self.cached) {
            (false, _) => plain(x.clone(), cache.clone()) + added,
            (true, false) => {
                conv3d_with_residual(x.clone(), weight.clone(), Some(bias.clone()), added, self.options)
            }
            (true, true) => {
                let (bias, cache) = (Some(bias.clone()), Some(cache.clone()));
                causal_conv3d_with_residual(x.clone(), weight.clone(), bias, cache, added, causal).0
            }
        };
        let value = bits(y.clone().inner());
        if tracked == [false; 5] {
            return (value, [const { None }; 5]);
        }
        let grads = (y * normal(6, shape, device)).sum().backward();
        let five = |tensor: &Tensor<5>| tensor.grad(&grads).map(bits);
        (value, [five(&x), five(&weight), bias.grad(&grads).map(bits), five(&residual), five(&cache)])
    }
}

/// In fp32 the fused sum is the one that Burn's addition gives: all bits are the same, tracked or not,
/// whatever is tracked, with and without gradient checkpointing.
#[test]
fn a_fused_residual_has_the_bits_and_gradients_of_burns_addition() {
    let padded = Conv3dOptions::new().with_padding([1; 3]);
    let layers = [
        (padded, [6, 4, 3, 3, 3], false, false),
        (padded.with_stride([1, 2, 1]).with_groups(2), [6, 2, 3, 3, 2], false, true),
        (padded.with_groups(4), [4, 1, 3, 3, 3], false, false),
        (padded.with_algorithm(Algorithm::Winograd(WinogradTile::F2x2)), [6, 4, 3, 3, 3], false, false),
        (padded, [6, 4, 3, 3, 3], true, false),
    ];
    for (on, device) in devices() {
        let plain = device.autodiff();
        for (index, (options, weight, cached, expanded)) in layers.into_iter().enumerate() {
            for activation in ACTIVATIONS {
                let layer = Layer { options: options.with_activation(activation), weight, cached, expanded };
                let what = format!("layer {index} {activation:?} on {on}");
                let all = [true, true, true, true, cached];
                let want = layer.run(&plain, all, false);
                assert!(want.1.iter().zip(all).all(|(grad, tracked)| grad.is_some() == tracked), "{what}");
                assert!(layer.run(&plain, all, true) == want, "{what}: all tracked");
                let checkpointing = plain.clone().gradient_checkpointing();
                assert!(layer.run(&checkpointing, all, true) == want, "{what}: checkpointing");
                assert!(layer.run(&plain, [false; 5], true).0 == want.0, "{what}: untracked y");
                // Only one, and all but one.
                for operand in (0..5).filter(|&operand| all[operand]) {
                    for one in [true, false] {
                        let tracked = [0, 1, 2, 3, 4].map(|at| all[at] && (at == operand) == one);
                        let (y, grads) = layer.run(&plain, tracked, true);
                        assert!(y == want.0, "{what} {tracked:?}: y");
                        for at in 0..5 {
                            let expected = if tracked[at] { want.1[at].clone() } else { None };
                            assert!(grads[at] == expected, "{what} {tracked:?}: gradient of operand {at}");
                        }
                    }
                }
            }
        }
    }
}

/// 2048 + 1 + 0.25 rounds up to 2050; rounded before, the sum would be 2048 and stay. Tracked or not.
#[test]
fn a_half_is_rounded_once() {
    for (on, device) in devices() {
        for (device, groups) in [(device.clone(), 1), (device.clone().autodiff(), 1), (device.clone(), 2)] {
            let same = |value: f32, shape: [usize; 5]| {
                let values = vec![value; shape.iter().product()];
                upload(&values, shape, &device).cast(DType::F16)
            };
            for activation in ACTIVATIONS {
                let (x, weight) =
                    (same(2048.0, [1, 2, 1, 4, 4]), same(0.5 * groups as f32, [2, 2 / groups, 1, 1, 1]));
                let bias = upload(&[1.0, 1.0], [2], &device).cast(DType::F16);
                let (weight, bias) = if device.is_autodiff() {
                    (weight.require_grad(), bias.require_grad())
                } else {
                    (weight, bias)
                };
                let options = Conv3dOptions::new().with_groups(groups).with_activation(activation);
                let residual = same(0.25, [1, 2, 1, 4, 4]);
                let y = values(conv3d_with_residual(x, weight, Some(bias), residual, options));
                assert!(y.iter().all(|y| *y == 2050.0), "{on} {activation:?} {groups} groups: {y:?}");
            }
        }
    }
}

#[test]
fn pieces_with_a_residual_have_the_bits_of_the_whole_clip() {
    let device = gpu();
    let options = CausalConv3dOptions::new().with_plane_padding(1).with_activation(Activation::Silu);
    let conv = CausalConv3dConfig::new([24, 17], [3; 3])
        .with_plane_padding(1)
        .with_activation(Activation::Silu)
        .init(&device);
    let x = normal(1, [2, 24, 7, 5, 8], &device);
    // Channels are adjacent in memory.
    let residual = normal(4, [2, 7, 5, 8, 17], &device).permute([0, 4, 1, 2, 3]);
    let bias = conv.bias.as_ref().map(|bias| bias.val());
    let (whole, _) =
        causal_conv3d_with_residual(x.clone(), conv.weight.val(), bias, None, residual.clone(), options);
    for pieces in [&[1, 1, 5][..], &[3, 4]] {
        let (mut cache, mut at, mut parts) = (None, 0, Vec::new());
        for frames in pieces {
            let part = |of: &Tensor<5>| of.clone().narrow(2, at, *frames);
            parts.push(conv.forward_streaming_with_residual(part(&x), part(&residual), &mut cache));
            at += frames;
        }
        assert!(bits(Tensor::cat(parts, 2)) == bits(whole.clone()), "{pieces:?}");
    }
    let module = values(conv.forward_with_residual(x, residual));
    crate::support::assert_close("whole clip", &module, &values(whole), 1e-5);
}

/// The module gives the function's bits, with kept filters too.
#[test]
fn the_module_takes_a_residual() {
    let device = gpu();
    let config = Conv3dConfig::new([3, 5], [3; 3])
        .with_padding(1)
        .with_activation(Activation::Relu)
        .with_algorithm(Algorithm::Winograd(WinogradTile::F4x4));
    let mut conv = config.init(&device);
    let (x, residual) = (normal(1, [1, 3, 2, 6, 7], &device), normal(2, [1, 5, 2, 6, 7], &device));
    let bias = conv.bias.as_ref().map(|bias| bias.val());
    let want = conv3d_with_residual(x.clone(), conv.weight.val(), bias, residual.clone(), conv.options());
    let want = bits(want);
    assert!(bits(conv.forward_with_residual(x.clone(), residual.clone())) == want);
    assert!(bits(conv.forward(x.clone())) != want);
    conv.reuse_filters = true;
    for _ in 0..2 {
        assert!(bits(conv.forward_with_residual(x.clone(), residual.clone())) == want);
        assert!(conv.holds_filters());
    }
}

#[test]
fn residuals_that_do_not_fit_are_refused() {
    let (cpu, gpu) = (Device::flex(), gpu());
    let zeros = |shape: [usize; 5], device: &Device| Tensor::<5>::zeros(shape, device);
    let refused = |residual: Tensor<5>| {
        let (x, weight) = (zeros([1, 4, 3, 5, 5], &cpu), zeros([6, 4, 1, 3, 3], &cpu));
        let refusal = try_conv3d_with_residual(x, weight, None, residual, Conv3dOptions::new());
        refusal.expect_err("a refusal").to_string()
    };
    assert_eq!(
        refused(zeros([1, 6, 3, 5, 5], &cpu)),
        "conv3d: the residual has shape [1, 6, 3, 5, 5], y has [1, 6, 3, 3, 3]"
    );
    assert_eq!(
        refused(zeros([1, 6, 3, 3, 3], &cpu).cast(DType::F16)),
        "conv3d: x is f32 and the residual is f16, they must have one dtype"
    );
    let other = refused(zeros([1, 6, 3, 3, 3], &gpu));
    assert!(other.starts_with("conv3d: x is on ") && other.contains(" and the residual is on "), "{other}");
    let (x, weight) = (zeros([1, 4, 3, 5, 5], &cpu), zeros([6, 4, 3, 3, 3], &cpu));
    let residual = zeros([1, 6, 2, 3, 3], &cpu);
    let refusal =
        try_causal_conv3d_with_residual(x, weight, None, None, residual, CausalConv3dOptions::new());
    assert_eq!(
        refusal.expect_err("a refusal").to_string(),
        "causal_conv3d (as conv3d of the cache and x): the residual has shape [1, 6, 2, 3, 3], y has [1, 6, 3, 3, 3]"
    );
}

/// y and the gradients of x, weight, bias and residual, all tracked. The last axes of the residual are first
/// in memory, or it is one number for each channel, expanded.
fn flat<const D: usize>(
    device: &Device,
    (x, weight): ([usize; D], [usize; D]),
    expanded: bool,
    op: impl Fn(Tensor<D>, Tensor<D>, Option<Tensor<1>>, Tensor<D>) -> Tensor<D>,
    y: [usize; D],
) -> [Tensor<D>; 5] {
    let device = device.clone().autodiff();
    let x = normal(1, x, &device).require_grad();
    let b = normal(3, [weight[0]], &device).require_grad();
    let weight = normal(2, weight, &device).require_grad();
    let mut channels = [1; D];
    channels[1] = y[1];
    let mut last_first = y;
    last_first.swap(1, D - 1);
    let residual = normal(4, if expanded { channels } else { last_first }, &device).require_grad();
    let added = if expanded { residual.clone().expand(y) } else { residual.clone().swap_dims(1, D - 1) };
    let result = op(x.clone(), weight.clone(), Some(b.clone()), added);
    assert_eq!(result.dims(), y);
    let grads = (result.clone() * normal(5, y, &device)).sum().backward();
    let db = b.grad(&grads).expect("tracked").reshape(channels);
    let [dx, dw, dr] = [x, weight, residual].map(|tensor| tensor.grad(&grads).expect("tracked"));
    [result.inner(), dx, dw, db, dr]
}

/// The bits of Burn's addition to this crate's result, and Burn's own op within rounding.
fn same<const D: usize>(what: &str, fused: [Tensor<D>; 5], added: [Tensor<D>; 5], burns: [Tensor<D>; 5]) {
    let names = ["y", "dx", "dw", "db", "the residual's gradient"];
    for (((name, fused), added), burns) in names.into_iter().zip(fused).zip(added).zip(burns) {
        assert_eq!(bits(fused.clone()), bits(added), "{what}: {name}");
        assert_close(&format!("{what}: {name}"), &values(fused), &values(burns), 1e-5);
    }
}

#[test]
fn conv2d_and_conv1d_take_a_residual() {
    fn activate<const D: usize>(activation: Activation, y: Tensor<D>) -> Tensor<D> {
        match activation {
            Activation::Relu => relu(y),
            Activation::Silu => silu(y),
            _ => y,
        }
    }
    for (on, device) in devices() {
        for (activation, expanded) in ACTIVATIONS.into_iter().zip([false, true, false]) {
            let what = format!("{activation:?} on {on}");
            let options = Conv2dOptions::new().with_padding(1).with_stride([2, 1]).with_groups(2);
            let options = options.with_activation(activation);
            let (shapes, y) = (([2, 4, 5, 6], [6, 2, 3, 3]), [2, 6, 3, 6]);
            let fused =
                flat(&device, shapes, expanded, |x, w, b, r| conv2d_with_residual(x, w, b, r, options), y);
            let added = flat(&device, shapes, expanded, |x, w, b, r| conv2d(x, w, b, options) + r, y);
            let of_burn = ConvOptions::new([2, 1], [1, 1], [1, 1], 2);
            let burns = |x, w, b, r| activate(activation, module::conv2d(x, w, b, of_burn.clone())) + r;
            same(&format!("conv2d {what}"), fused, added, flat(&device, shapes, expanded, burns, y));

            let options = Conv1dOptions::new().with_padding(2).with_dilation(2).with_activation(activation);
            let (shapes, y) = (([2, 4, 9], [6, 4, 3]), [2, 6, 9]);
            let fused =
                flat(&device, shapes, expanded, |x, w, b, r| conv1d_with_residual(x, w, b, r, options), y);
            let added = flat(&device, shapes, expanded, |x, w, b, r| conv1d(x, w, b, options) + r, y);
            let of_burn = ConvOptions::new([1], [2], [2], 1);
            let burns = |x, w, b, r| activate(activation, module::conv1d(x, w, b, of_burn.clone())) + r;
            same(&format!("conv1d {what}"), fused, added, flat(&device, shapes, expanded, burns, y));
        }

        // One rounding: as `a_half_is_rounded_once`.
        let same = |value: f32, shape: [usize; 3]| {
            upload(&vec![value; shape.iter().product()], shape, &device).cast(DType::F16)
        };
        let bias = upload(&[1.0, 1.0], [2], &device).cast(DType::F16);
        let (x, w, r) = (same(2048.0, [1, 2, 4]), same(0.5, [2, 2, 1]), same(0.25, [1, 2, 4]));
        let y = values(conv1d_with_residual(x, w, Some(bias), r, Conv1dOptions::new()));
        assert!(y.iter().all(|y| *y == 2050.0), "{on}: {y:?}");

        let conv = Conv2dConfig::new([3, 4], [3, 3]).with_activation(Activation::Silu).init(&device);
        let (x, r) = (normal(1, [1, 3, 5, 6], &device), normal(2, [1, 4, 3, 4], &device));
        let bias = conv.bias.as_ref().map(|bias| bias.val());
        let want = conv2d_with_residual(x.clone(), conv.weight.val(), bias, r.clone(), conv.options());
        assert_eq!(bits(conv.forward_with_residual(x, r)), bits(want), "{on}");
        let conv = Conv1dConfig::new(3, 4, 3).init(&device);
        let (x, r) = (normal(1, [1, 3, 5], &device), normal(2, [1, 4, 3], &device));
        let bias = conv.bias.as_ref().map(|bias| bias.val());
        let want = conv1d_with_residual(x.clone(), conv.weight.val(), bias, r.clone(), conv.options());
        assert_eq!(bits(conv.forward_with_residual(x, r)), bits(want), "{on}");
    }
    let cpu = Device::flex();
    let (x, w) = (Tensor::<4>::zeros([1, 4, 5, 5], &cpu), Tensor::<4>::zeros([6, 4, 3, 3], &cpu));
    let r = Tensor::<4>::zeros([1, 6, 5, 3], &cpu);
    assert_eq!(
        try_conv2d_with_residual(x, w, None, r, Conv2dOptions::new()).expect_err("a refusal").to_string(),
        "conv2d (as conv3d of depth 1): the residual has shape [1, 6, 1, 5, 3], y has [1, 6, 1, 3, 3]"
    );
    let (x, w) = (Tensor::<3>::zeros([1, 4, 5], &cpu), Tensor::<3>::zeros([6, 4, 3], &cpu));
    let r = Tensor::<3>::zeros([1, 6, 5], &cpu);
    assert_eq!(
        try_conv1d_with_residual(x, w, None, r, Conv1dOptions::new()).expect_err("a refusal").to_string(),
        "conv1d (as conv3d of depth and height 1): the residual has shape [1, 6, 1, 1, 5], y has [1, 6, 1, 1, 3]"
    );
}
