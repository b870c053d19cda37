//! Operands of every form: views, dtypes, long filters, empty tensors, devices.

use crate::support::{
    assert_all_served, assert_close, counted, cube_devices, gpu, normal, owned, set_patched, values,
};
use burn::backend::DispatchDevice;
use burn::nn::PaddingConfig3d;
use burn::nn::conv::Conv3dConfig;
use burn::tensor::module::{conv_transpose2d, conv1d, conv3d};
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_conv_ops::Conv3dOptions;

/// x `[2, 4, 3, 6, 5]` and a weight `[6, 2, 2, 3, 3]` for two groups, as views of other tensors.
fn views(device: &Device) -> [(&'static str, DType, [Tensor<5>; 2]); 2] {
    let x = |shape: [usize; 5]| normal(1, shape, device);
    let weight = |shape: [usize; 5]| normal(2, shape, device);
    [
        (
            "channels last, part of a wider weight",
            DType::F32,
            [
                x([2, 3, 6, 5, 4]).permute([0, 4, 1, 2, 3]),
                weight([8, 3, 2, 3, 5]).narrow(0, 1, 6).narrow(1, 1, 2).narrow(4, 2, 3),
            ],
        ),
        (
            "part of a longer clip, one filter for all",
            DType::F16,
            [
                x([2, 4, 5, 6, 8]).narrow(2, 2, 3).narrow(4, 1, 5),
                weight([1, 2, 2, 3, 3]).expand([6, 2, 2, 3, 3]),
            ],
        ),
    ]
}

/// y and the gradients of x, weight and bias for a dy that is a view too: one value for all elements (`sum`),
/// or channels last.
fn results(
    conv: impl FnOnce(Tensor<5>, Tensor<5>, Option<Tensor<1>>) -> Tensor<5>,
    [x, weight]: &[Tensor<5>; 2],
    bias: &Tensor<1>,
    sum: bool,
) -> Vec<TensorData> {
    let (x, weight) = (x.clone().detach().require_grad(), weight.clone().detach().require_grad());
    let bias = bias.clone().detach().require_grad();
    let y = conv(x.clone(), weight.clone(), Some(bias.clone()));
    let loss = if sum {
        y.clone().sum()
    } else {
        let [n, o, d, h, w] = y.dims();
        let dy = normal(4, [n, d, h, w, o], &y.device()).cast(y.dtype()).permute([0, 4, 1, 2, 3]);
        (y.clone() * dy).sum()
    };
    let gradients = loss.backward();
    let tracked = "it is tracked";
    vec![
        owned(y.inner()),
        owned(x.grad(&gradients).expect(tracked)),
        owned(weight.grad(&gradients).expect(tracked)),
        owned(bias.grad(&gradients).expect(tracked)),
    ]
}

pub(crate) fn views_and_dtypes_give_the_bits_of_a_direct_call() {
    let device = gpu().autodiff();
    set_patched(true);
    let options = ConvOptions::new([1, 2, 1], [1, 1, 2], [1, 1, 2], 2);
    let bias = normal::<1>(3, [9], &device).narrow(0, 2, 6);
    for (index, (name, dtype, operands)) in views(&device).into_iter().enumerate() {
        let operands = &operands.map(|tensor| tensor.cast(dtype));
        let (bias, sum) = (bias.clone().cast(dtype), index == 1);
        let (got, report) =
            counted(|| results(|x, w, b| conv3d(x, w, b, options.clone()), operands, &bias, sum));
        let what = format!("{dtype:?}, {name}");
        assert_all_served(&what, &report, 4);
        let options = Conv3dOptions::from(options.clone());
        let (want, report) =
            counted(|| results(|x, w, b| burn_conv_ops::conv3d(x, w, b, options), operands, &bias, sum));
        assert_eq!(report.recorded(), 0, "{what}: a call of this crate's own is not Burn's");
        for ((got, want), name) in got.iter().zip(&want).zip(["y", "dx", "dw", "db"]) {
            assert_eq!(got, want, "{what}: {name}");
        }
    }
}

/// Burn may cut a forward call out of a transposed one's weight gradient (`run/transposed`); a filter that is
/// longer than the result is taken for one.
pub(crate) fn a_filter_longer_than_its_result_is_a_convolution() {
    set_patched(true);
    let options = |stride, padding| ConvOptions::new([stride], [padding], [1], 1);
    for (length, taps, stride, padding) in [(17, 15, 1, 0), (23, 15, 2, 1), (24, 15, 2, 1), (30, 16, 3, 2)] {
        let run = |device: &Device| {
            let (x, weight) = (normal(1, [2, 3, length], device), normal(2, [4, 3, taps], device));
            owned(conv1d(x, weight, None, options(stride, padding)))
        };
        let (ours, report) = counted(|| run(&gpu()));
        assert_all_served("a long filter", &report, 1);
        let what = format!("{taps} taps over {length}, stride {stride}, padding {padding}");
        assert_close(&what, &ours, &run(&Device::flex()), 1e-5);
    }
}

/// Burn runs both layers by one cached block, since their shapes are alike. The plan of two result channels
/// does not serve twenty.
pub(crate) fn another_shape_has_its_own_plan() {
    let device = gpu();
    set_patched(true);
    let layer = |channels, shape: [usize; 5]| {
        let config = Conv3dConfig::new(channels, [3; 3]).with_padding(PaddingConfig3d::Same);
        (config.init(&device), normal(1, shape, &device))
    };
    let layers = [layer([6, 2], [5, 6, 4, 8, 9]), layer([5, 20], [4, 5, 2, 9, 8])];
    for index in [0, 1, 0, 0, 1, 1] {
        let (layer, x) = &layers[index];
        let (y, report) = counted(|| owned(layer.forward(x.clone())));
        assert_all_served(&format!("layer {index}"), &report, 1);
        let bias = layer.bias.as_ref().map(|bias| bias.val());
        let options = Conv3dOptions::new().with_padding([1; 3]);
        let direct = burn_conv_ops::conv3d(x.clone(), layer.weight.val(), bias, options);
        assert_eq!(y, owned(direct), "layer {index}");
    }
}

pub(crate) fn an_empty_batch_is_served() {
    set_patched(true);
    let (x, weight) = (normal(1, [0, 2, 3, 4, 5], &gpu()), normal(2, [3, 2, 2, 2, 2], &gpu()));
    let options = ConvOptions::new([1; 3], [1; 3], [1; 3], 1);
    let (y, report) = counted(|| conv3d(x, weight, None, options).into_data());
    assert_all_served("no images", &report, 1);
    assert_eq!(y.shape()[..], [0, 3, 4, 5, 6]);
}

pub(crate) fn a_bias_of_another_length_is_refused() {
    set_patched(true);
    let device = gpu();
    let (x, weight) = (normal(1, [1, 2, 3, 3], &device), normal(2, [2, 4, 2, 2], &device));
    let options = ConvTransposeOptions::new([1; 2], [0; 2], [0; 2], [1; 2], 1);
    let bias = normal(3, [3], &device);
    let ((), report) = counted(|| drop(conv_transpose2d(x, weight, Some(bias), options)));
    assert_eq!((report.recorded(), report.declined()), (1, 1), "{report}");
}

/// One rounding of sum and bias: 1 + 2^-11 would be rounded to 1, and so would its sum with 2^-12.
pub(crate) fn a_transposed_bias_is_fused() {
    set_patched(true);
    let device = gpu();
    let half = |values: &[f32], shape: [usize; 4]| {
        let data = TensorData::new(values.to_vec(), shape);
        Tensor::<4>::from_data(data, (&device, DType::F32)).cast(DType::F16)
    };
    let x = half(&[1.0; 4], [1, 2, 1, 2]);
    let weight = half(&[1.0, 2f32.powi(-11)], [2, 1, 1, 1]);
    let bias = half(&[0.0, 2f32.powi(-12)], [1, 1, 1, 2]).reshape([2]).narrow(0, 1, 1);
    let options = ConvTransposeOptions::new([1; 2], [0; 2], [0; 2], [1; 2], 1);
    let (y, report) = counted(|| owned(conv_transpose2d(x, weight, Some(bias), options)));
    assert_all_served("a bias", &report, 1);
    assert_eq!(values(&y), [1.0 + 2f64.powi(-10); 2]);
}

pub(crate) fn devices_have_their_own_tensors() {
    set_patched(true);
    let devices: Vec<_> =
        cube_devices().into_iter().map(|device| Device::new(DispatchDevice::Cube(device))).collect();
    let run = |device: &Device| {
        let (x, weight) = (normal(1, [1, 2, 3, 4, 5], device), normal(2, [3, 2, 2, 2, 2], device));
        conv3d(x, weight, None, ConvOptions::new([1; 3], [1; 3], [1; 3], 1))
    };
    let want = owned(run(&Device::flex()));
    let (results, report) = counted(|| {
        // Recorded on all before any runs.
        let results: Vec<_> = devices.iter().map(run).collect();
        results.into_iter().map(owned).collect::<Vec<_>>()
    });
    assert_all_served("each device", &report, devices.len() as u64);
    for result in &results {
        assert_close("y", result, &want, 1e-5);
    }
}
