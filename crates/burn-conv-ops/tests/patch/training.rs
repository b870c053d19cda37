//! Steps of training, patched and unpatched: the same losses and gradients, and every convolution served.

use crate::alike::{Comparison, train};
use crate::models::{Network, ResNet3d, ResidualUNet2d, Sequence, UNet3d};
use crate::support::{assert_all_served, assert_close, counted, cube, gpu, normal, owned, set_patched};
use burn::module::Module;
use burn::nn::conv::{Conv3dConfig, ConvTranspose1dConfig, ConvTranspose2dConfig, ConvTranspose3dConfig};
use burn::tensor::Device;
use cubecl_runtime::memory_management::MemoryScope;

/// Three steps from the same weights. `convolutions` are recorded for one step.
pub(crate) fn trains_alike<M: Network>(new: impl Fn(&Device) -> M, convolutions: u64) {
    const STEPS: u64 = 3;
    let (device, flex) = (gpu().autodiff(), Device::flex().autodiff());
    device.seed(1);
    let model = new(&device);
    let comparison = Comparison {
        what: "training",
        convolutions: STEPS * convolutions,
        products: false,
        device: &device,
        flex: Some(&flex),
    };
    comparison.check(&|device| {
        train(model.clone().fork(device), STEPS, 0.05, |model, seed| model.loss(seed, device))
    });
}

pub(crate) fn a_conv3d_resnet_trains_alike() {
    // Four convolutions, their input gradients without the stem's, weight gradients, two bias gradients.
    trains_alike(ResNet3d::new, 4 + 3 + 4 + 2);
}

pub(crate) fn a_residual_conv2d_unet_trains_alike() {
    // Four convolutions, three input gradients, four weight gradients, two bias gradients. The transposed
    // convolution's input and weight gradients are recorded as convolutions, its bias' as a sum.
    trains_alike(ResidualUNet2d::new, 4 + 3 + 4 + 2);
}

pub(crate) fn a_conv3d_unet_trains_alike() {
    // Eleven convolutions, ten input gradients, eleven weight gradients. Two transposed convolutions, whose
    // input and weight gradients are recorded as convolutions.
    trains_alike(UNet3d::new, 11 + 10 + 11 + 3 * 2);
}

pub(crate) fn a_conv1d_network_trains_alike() {
    trains_alike(Sequence::new, 2 + 1 + 2 + 2);
}

/// y and the gradients of a transposed convolution with these sizes along each of its axes.
macro_rules! transposed {
    ($config:ident, $axes:literal, $size:expr, $taps:expr, $stride:expr, $padding:expr, $padding_out:expr, $dilation:expr,
     $groups:expr) => {{
        let device = gpu().autodiff();
        device.seed(3);
        let layer = $config::new([4, 6], $taps)
            .with_stride($stride)
            .with_padding($padding)
            .with_padding_out($padding_out)
            .with_dilation($dilation)
            .with_groups($groups)
            .init(&device);
        let mut shape = [2; $axes + 2];
        shape[1] = 4;
        shape[2..].copy_from_slice(&$size);
        let run = |device: &Device| {
            let layer = layer.clone().fork(device);
            let x = normal(5, shape, device).require_grad();
            let y = layer.forward(x.clone());
            let dy = normal(6, y.dims(), device);
            let gradients = (y.clone() * dy).sum().backward();
            let (weight, bias) = (layer.weight.val(), layer.bias.as_ref().expect("the default").val());
            [
                owned(y.inner()),
                owned(x.grad(&gradients).expect("it is tracked")),
                owned(weight.grad(&gradients).expect("it is tracked")),
                owned(bias.grad(&gradients).expect("it is tracked")),
            ]
        };
        let (ours, report) = counted(|| run(&device));
        // y, the input gradient, and one weight gradient for each group.
        assert_all_served(stringify!($config), &report, 2 + $groups);
        let flexs = run(&Device::flex().autodiff());
        for ((ours, flexs), what) in ours.iter().zip(&flexs).zip(["y", "dx", "dw", "db"]) {
            assert_close(&format!("{} {what}", stringify!($config)), ours, flexs, 1e-4);
        }
    }};
}

pub(crate) fn transposed_convolutions_agree() {
    set_patched(true);
    transposed!(
        ConvTranspose3dConfig,
        3,
        [3, 4, 5],
        [2, 3, 3],
        [1, 2, 2],
        [0, 1, 1],
        [0, 1, 0],
        [1, 1, 2],
        1
    );
    transposed!(ConvTranspose2dConfig, 2, [4, 5], [3, 2], [2, 3], [1, 0], [1, 2], [2, 1], 2);
    transposed!(ConvTranspose1dConfig, 1, [13], 4, 2, 1, 1, 1, 1);
}

pub(crate) fn a_thousand_steps_leak_nothing() {
    let device = gpu().autodiff();
    set_patched(true);
    let layer = Conv3dConfig::new([2, 2], [3; 3]).init(&device);
    let client = cube().client();
    let mut usage = Vec::new();
    let ((), report) = counted(|| {
        for index in 0..1020 {
            let x = normal(1, [1, 2, 3, 4, 5], &device).require_grad();
            let gradients = layer.forward(x.clone()).sum().backward();
            x.grad(&gradients).expect("it is tracked").into_data();
            if index % 500 == 19 {
                gpu().sync().expect("the device works");
                let now = client.memory_report(MemoryScope::Device).usage();
                usage.push((now.number_allocs, now.bytes_in_use));
            }
        }
    });
    assert_all_served("1020 steps", &report, 1020 * 4);
    assert_eq!(usage.len(), 3);
    assert!(usage.windows(2).all(|pair| pair[0] == pair[1]), "(allocations, bytes in use): {usage:?}");
}

/// Burn 0.22.1's own kernel leaves some elements of this gradient wrong, so what is compared with is Flex's.
pub(crate) fn a_strided_shortcut_has_its_gradient() {
    let device = gpu().autodiff();
    device.seed(3);
    let config = Conv3dConfig::new([4, 8], [1; 3]).with_stride([1, 2, 2]);
    let layer = config.init(&device);
    layer.weight.val();
    let run = |device: &Device| {
        let layer = layer.clone().fork(device);
        let x = normal(1, [2, 4, 3, 8, 8], device).require_grad();
        let y = layer.forward(x.clone());
        let dy = normal(2, y.dims(), device);
        let gradients = (y * dy).sum().backward();
        owned(x.grad(&gradients).expect("x is tracked"))
    };
    set_patched(true);
    let (ours, report) = counted(|| run(&device));
    // Nobody asked for the bias' gradient; Burn computes it.
    assert_all_served("shortcut", &report, 4);
    assert_close("dx", &ours, &run(&Device::flex().autodiff()), 1e-5);
}
