//! `warm_up`, in a process of its own: launched kernels are counted.

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device, Distribution, Tensor};
use burn_conv_ops::nn::{CausalConv1dConfig, Conv2dConfig, Conv3dConfig, ConvTranspose3dConfig};
use burn_conv_ops::{Activation, Algorithm, Conv3dOptions, WarmUpLayer, warm_up};
use burn_cubecl::{CubeDevice, cubecl::device::WgpuDeviceKind};
use cubecl_runtime::launched::LaunchedKernels;
use std::collections::HashSet;

fn gpu() -> Device {
    let kinds = [WgpuDeviceKind::DefaultDevice, WgpuDeviceKind::Cpu];
    let device = kinds.into_iter().find_map(|kind| CubeDevice::wgpu(kind).ok());
    Device::new(DispatchDevice::Cube(device.expect("an adapter (docs/testing.md)")))
}

/// The kernels that `run` launches.
fn launched(device: &Device, run: impl FnOnce()) -> HashSet<u128> {
    device.sync().expect("the device runs");
    let kernels = LaunchedKernels::new();
    run();
    device.sync().expect("the device runs");
    kernels.finish().into_iter().collect()
}

/// The kernels of a training step of one layer: forward, a loss against a target, and every gradient.
fn step<const D: usize>(
    (x, device): ([usize; D], &Device),
    forward: impl Fn(Tensor<D>) -> Tensor<D>,
) -> HashSet<u128> {
    let x = Tensor::<D>::random(x, Distribution::Default, device).require_grad();
    let y = forward(x.clone());
    let target = Tensor::<D>::random(y.dims(), Distribution::Default, device);
    // The kernels of the loss are Burn's and are part of the warm-up as well.
    launched(device, || {
        let y = forward(x.clone());
        let gradients = (y * target.clone()).sum().backward();
        x.grad(&gradients).expect("tracked");
    })
}

/// One test: launches of another thread would be counted.
#[test]
fn a_step_after_it_compiles_nothing_new() {
    let plain = gpu();
    let device = plain.clone().autodiff();
    let (volume, image, sequence) = ([2, 12, 3, 9, 10], [2, 6, 9, 10], [2, 16, 33]);
    let padded = Conv3dConfig::new([12, 20], [3; 3]).with_padding(1);
    let conv3d = padded.clone().with_activation(Activation::Silu).init(&device);
    let conv2d = Conv2dConfig::new([6, 10], [3; 2]).init(&device);
    let up = ConvTranspose3dConfig::new([12, 8], [2; 3]).with_stride(2);
    let direct = up.clone().with_algorithm(Algorithm::Direct).init(&device);
    let up = up.init(&device);
    let causal = CausalConv1dConfig::new(16, 4).init(&device);

    let mut texts = Vec::new();
    let mut steps = Vec::new();
    let layers = [
        conv3d.warm_up_layer(volume),
        conv2d.warm_up_layer(image),
        up.warm_up_layer(volume),
        causal.warm_up_layer(sequence),
    ];
    let compiled = launched(&device, || {
        steps = warm_up(&layers, |step| texts.push(step.to_string())).expect("valid layers");
    });
    assert_eq!(steps.len(), 8);
    assert_eq!(texts.len(), 8);
    assert!(
        texts[0].starts_with("1/8 Conv3d [2, 12, 3, 9, 10] by [20, 12, 3, 3, 3], forward: "),
        "{texts:?}"
    );
    assert!(texts[7].starts_with("8/8 CausalConv1d [2, 16, 33] by [16, 1, 4], gradients: "), "{texts:?}");
    for step in &steps {
        println!("{step}");
        assert!(step.kernels.is_some_and(|kernels| kernels >= 1), "{step}");
    }
    let later = [
        step((volume, &device), |x| conv3d.forward(x)),
        step((image, &device), |x| conv2d.forward(x)),
        step((volume, &device), |x| up.forward(x)),
        step((sequence, &device), |x| causal.forward(x)),
    ];
    // Burn's kernels of the loss differ from those of the warm-up behind the transposed layer: they are those
    // behind the same layer with other kernels of ours.
    let burns = step((volume, &device), |x| direct.forward(x));
    let known: HashSet<u128> = compiled.union(&burns).copied().collect();
    for (layer, later) in layers.iter().zip(later) {
        let known = if format!("{layer:?}").contains("Transpose") { &known } else { &compiled };
        let new = later.difference(known).count();
        assert_eq!(new, 0, "{layer:?}: {new} of {} kernels are new", later.len());
    }
    // A layer of another kind compiles something.
    let other = Conv3dConfig::new([12, 12], [3; 3]).with_groups(12).init(&device);
    assert!(step((volume, &device), |x| other.forward(x)).difference(&compiled).count() > 0);
    // Until it is warmed up by itself, or as a problem.
    let like = (&device, DType::F32);
    let options = Conv3dOptions::new().with_groups(12);
    let problem = WarmUpLayer::conv3d(volume, [12, 1, 3, 3, 3], true, options, like);
    let problem = launched(&device, || {
        warm_up(&[problem], |_| {}).expect("a valid problem");
    });
    assert_eq!(step((volume, &device), |x| other.forward(x)).difference(&problem).count(), 0);

    // Without gradients the forward pass alone, and a layer that refuses its input says so.
    let steps = padded.init(&plain).warm_up(volume, |_| {}).expect("a valid layer");
    assert_eq!(steps.iter().map(|step| (step.pass, step.of)).collect::<Vec<_>>(), [("forward", 1)]);
    let error = conv3d.warm_up([2, 11, 3, 9, 10], |_| {}).expect_err("11 channels");
    assert!(error.to_string().contains("the weight expects 12 channels per group"), "{error}");
    let steps = padded.init(&Device::flex().autodiff()).warm_up(volume, |_| {}).expect("a valid layer");
    assert!(steps.len() == 2 && steps.iter().all(|step| step.kernels.is_none()));
}
