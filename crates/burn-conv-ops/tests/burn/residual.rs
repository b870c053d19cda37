//! conv3d and causal conv3d with a residual: the bits of Burn's addition in fp32, values and gradients of
//! every tracked subset; one rounding in f16; clips in pieces; the modules; what is refused.

use crate::support::{bits, devices, gpu, normal, upload, values};
use burn::tensor::{DType, Device, Tensor};
use burn_conv_ops::nn::{CausalConv3dConfig, Conv3dConfig};
use burn_conv_ops::{
    Activation, Algorithm, CausalConv3dOptions, Conv3dOptions, WinogradTile, causal_conv3d,
    causal_conv3d_with_residual, conv3d, conv3d_with_residual, try_causal_conv3d_with_residual,
    try_conv3d_with_residual,
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
