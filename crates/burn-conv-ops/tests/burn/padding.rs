//! Padding modes per axis against PyTorch (golden/padding_modes.safetensors), those and `Same` padding of
//! conv2d and conv1d against Burn's own ops, and what is refused.

use crate::golden::{self, Tensors};
use crate::support::{assert_close, devices, normal, values};
use burn::nn::{PaddingConfig1d, PaddingConfig2d, conv as of_burn};
use burn::serde::Deserialize;
use burn::tensor::ops::{ConvOptions, PadMode};
use burn::tensor::{Device, Tensor, module};
use burn_conv_ops::nn::{Conv1dConfig, Conv2dConfig};
use burn_conv_ops::{
    Conv1dOptions, Conv1dPadding, Conv2dOptions, Conv2dPadding, Conv3dOptions, ConvPadding, PaddingMode,
    conv1d, conv2d, conv3d, try_conv3d,
};
use safetensors::SafeTensors;

#[derive(Deserialize)]
#[serde(crate = "burn::serde")]
struct Golden {
    stride: [usize; 3],
    padding: [(usize, usize); 3],
    modes: [String; 3],
}

pub(crate) fn mode(name: &str) -> PaddingMode {
    match name {
        "zeros" => PaddingMode::Zeros,
        "replicate" => PaddingMode::Replicate,
        "reflect" => PaddingMode::Reflect,
        "circular" => PaddingMode::Circular,
        other => panic!("no padding mode is named {other}"),
    }
}

#[test]
fn every_mode_on_every_axis_and_its_gradients_are_pytorchs() {
    let (bytes, problems) = golden::read::<Golden>("padding_modes.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    for (on, device) in devices() {
        for (problem, golden) in problems.iter().enumerate().step_by(golden::step(on)) {
            let all = Tensors { file: &file, problem, device: device.clone().autodiff() };
            let options = Conv3dOptions::new()
                .with_stride(golden.stride)
                .with_padding(golden.padding)
                .with_padding_modes([0, 1, 2].map(|axis| mode(&golden.modes[axis])));
            let what = format!("padding_modes {problem} on {on}");
            all.check_op::<5>(&what, false, |x, w, _| conv3d(x, w, None, options));
        }
    }
}

#[test]
fn padding_that_has_nothing_to_read_is_refused() {
    let device = Device::flex();
    let error = |modes: [PaddingMode; 3], padding: [(usize, usize); 3]| {
        let x = Tensor::<5>::zeros([1, 1, 3, 4, 5], &device);
        let weight = Tensor::<5>::zeros([1, 1, 1, 1, 1], &device);
        let options = Conv3dOptions::new().with_padding(padding).with_padding_modes(modes);
        try_conv3d(x, weight, None, options).map(|y| y.dims()).map_err(|error| error.to_string())
    };
    let (zeros, reflect, circular) = (PaddingMode::Zeros, PaddingMode::Reflect, PaddingMode::Circular);
    assert_eq!(
        error([zeros, reflect, zeros], [(9, 9), (3, 4), (0, 0)]).expect_err("reflect"),
        "conv3d: reflect padding of (3, 4) must be below the input's height, which is 4"
    );
    assert_eq!(
        error([circular, zeros, zeros], [(4, 0), (0, 0), (0, 0)]).expect_err("circular"),
        "conv3d: circular padding of (4, 0) must be at most the input's depth, which is 3"
    );
    let most = error([circular, reflect, circular], [(3, 3), (3, 3), (5, 0)]);
    assert_eq!(most, Ok([1, 1, 9, 10, 10]));
}

/// y, dx and dw of an op.
fn results<const D: usize>(
    x: &Tensor<D>,
    weight: &Tensor<D>,
    op: impl FnOnce(Tensor<D>, Tensor<D>) -> Tensor<D>,
) -> [Vec<f64>; 3] {
    let [x, weight] = [x, weight].map(|tensor| tensor.clone().require_grad());
    let y = op(x.clone(), weight.clone());
    let dy = normal(3, y.dims(), &y.device());
    let gradients = (y.clone() * dy).sum().backward();
    let [dx, dw] = [x, weight].map(|tensor| values(tensor.grad(&gradients).expect("it is tracked")));
    [values(y.inner()), dx, dw]
}

fn same(what: &str, got: [Vec<f64>; 3], want: [Vec<f64>; 3]) {
    for ((name, got), want) in ["y", "dx", "dw"].into_iter().zip(got).zip(want) {
        assert_close(&format!("{what} {name}"), &got, &want, 1e-5);
    }
}

fn plain<const D: usize>() -> ConvOptions<D> {
    ConvOptions::new([1; D], [0; D], [1; D], 1)
}

/// Burn pads a copy.
#[test]
fn two_axes_and_one_have_modes_of_their_own() {
    let sides = [(1, 2), (2, 1)];
    for (on, device) in devices() {
        let device = device.autodiff();
        let (x, w) = (normal(1, [2, 3, 5, 6], &device), normal(2, [4, 3, 2, 3], &device));
        let padded = |x: Tensor<4>, w: Tensor<4>| {
            let last = x.clone().narrow(2, 4, 1);
            let around = Tensor::cat(vec![last, x.clone(), x.narrow(2, 0, 2)], 2);
            module::conv2d(around.pad([sides[1]], PadMode::Edge), w, None, plain())
        };
        let want = results(&x, &w, padded);
        let options = Conv2dOptions::new().with_padding(sides);
        let modes = [PaddingMode::Circular, PaddingMode::Replicate];
        let got = results(&x, &w, |x, w| conv2d(x, w, None, options.with_padding_modes(modes)));
        same(&format!("conv2d, two modes, on {on}"), got, want);
        let all = |x: Tensor<4>, w: Tensor<4>| module::conv2d(x.pad(sides, PadMode::Edge), w, None, plain());
        let want = results(&x, &w, all);
        let options = options.with_padding_mode(PaddingMode::Replicate);
        let got = results(&x, &w, |x, w| conv2d(x, w, None, options));
        same(&format!("conv2d, one mode, on {on}"), got, want);

        let (x, w) = (normal(1, [2, 3, 9], &device), normal(2, [4, 3, 3], &device));
        let want =
            results(&x, &w, |x, w| module::conv1d(x.pad([(2, 1)], PadMode::Reflect), w, None, plain()));
        let options = Conv1dOptions::new().with_padding([(2, 1)]).with_padding_mode(PaddingMode::Reflect);
        let got = results(&x, &w, |x, w| conv1d(x, w, None, options));
        same(&format!("conv1d on {on}"), got, want);
    }
}

/// Functions and modules, of odd and even kernels, with and without a stride.
#[test]
fn same_padding_of_two_axes_and_one_is_burns() {
    for (on, device) in devices() {
        let device = device.autodiff();
        for (kernel, stride) in [([3, 4], [1, 1]), ([4, 3], [2, 3])] {
            let what = format!("{kernel:?} by {stride:?} on {on}");
            let config = of_burn::Conv2dConfig::new([3, 4], kernel).with_stride(stride).with_bias(false);
            let mut theirs = config.with_padding(PaddingConfig2d::Same).init(&device);
            let x = normal(1, [2, 3, 7, 8], &device);
            let weight = normal(2, [4, 3, kernel[0], kernel[1]], &device);
            let want = results(&x, &weight, |x, w| {
                theirs.weight = burn::module::Param::from_tensor(w);
                theirs.forward(x)
            });
            let options = Conv2dOptions::new().with_stride(stride).with_padding(ConvPadding::Same);
            same(&what, results(&x, &weight, |x, w| conv2d(x, w, None, options)), want.clone());
            let config = Conv2dConfig::new([3, 4], kernel).with_stride(stride).with_bias(false);
            let mut ours = config.with_padding(ConvPadding::Same).init(&device);
            let got = results(&x, &weight, |x, w| {
                ours.weight = burn::module::Param::from_tensor(w);
                ours.forward(x)
            });
            same(&format!("module, {what}"), got, want);
            assert_eq!(ours.options(), options, "{what}");

            let (kernel, stride) = (kernel[0], stride[0]);
            let options = Conv1dOptions::new().with_stride(stride).with_padding(PaddingConfig1d::Same);
            let x = normal(1, [2, 3, 7], &device);
            let weight = normal(2, [4, 3, kernel], &device);
            let config = of_burn::Conv1dConfig::new(3, 4, kernel).with_stride(stride).with_bias(false);
            let mut theirs = config.with_padding(PaddingConfig1d::Same).init(&device);
            let want = results(&x, &weight, |x, w| {
                theirs.weight = burn::module::Param::from_tensor(w);
                theirs.forward(x)
            });
            same(&what, results(&x, &weight, |x, w| conv1d(x, w, None, options)), want);
        }
    }
}

#[test]
fn padding_is_given_in_one_way_for_all_ranks() {
    let sides = [(1, 2), (3, 4)];
    assert_eq!(Conv2dPadding::from(PaddingConfig2d::Explicit(1, 3, 2, 4)), sides.into());
    assert_eq!(Conv2dPadding::from(PaddingConfig2d::Valid), 0.into());
    assert_eq!(Conv1dPadding::from(PaddingConfig1d::Explicit(1, 2)), [(1, 2)].into());
    let config = || Conv2dConfig::new([2, 2], [3, 3]);
    assert_eq!(config().with_padding(sides).padding, PaddingConfig2d::Explicit(1, 3, 2, 4));
    assert_eq!(config().with_padding(1).padding, PaddingConfig2d::Explicit(1, 1, 1, 1));
    assert_eq!(config().with_padding(PaddingConfig2d::Same).padding, PaddingConfig2d::Same);
    let config_1d = Conv1dConfig::new(2, 2, 3).with_padding(2).with_stride(3).with_dilation([2]);
    assert_eq!(config_1d.padding, PaddingConfig1d::Explicit(2, 2));
    assert_eq!((config_1d.stride, config_1d.dilation), (3, 2));

    // In a file: modes for each axis, one name for both, and Burn's configuration, which has none.
    let modes = [PaddingMode::Reflect, PaddingMode::Circular];
    let mut text = serde_json::to_value(config().with_padding_modes(modes)).expect("a configuration");
    let read = |text: &serde_json::Value| -> [PaddingMode; 2] {
        let read: Conv2dConfig = serde_json::from_value(text.clone()).expect("it is readable");
        read.init(&Device::flex()).options().padding_mode
    };
    assert_eq!(read(&text), modes);
    text["padding_mode"] = "Circular".into();
    assert_eq!(read(&text), [PaddingMode::Circular; 2]);
    let burns = of_burn::Conv2dConfig::new([2, 2], [3, 3]).with_padding(PaddingConfig2d::Same).to_string();
    let text = serde_json::from_str(&burns).expect("a file of Burn's");
    assert_eq!(read(&text), [PaddingMode::Zeros; 2]);
}
