//! Transposed convolutions with bias and activation: against their definition in f64, one rounding in half
//! types, gradients of what was not rounded, and elements that no window reaches. Of one axis against Burn's
//! own op.

use crate::support::{absolute, assert_close, bits, check, devices, normal, upload, values};
use burn::tensor::ops::ConvTransposeOptions;
use burn::tensor::{DType, Device, Tensor, module};
use burn_conv_ops::{
    Activation, ConvTranspose1dOptions, ConvTranspose2dOptions, ConvTranspose3dOptions, conv_transpose1d,
    conv_transpose2d, conv_transpose3d, nn,
};
use conv_kernels::FloatType;
use conv_kernels::conv3d::reference;
use conv_kernels::tolerance::Expected;

/// A transposed convolution.
struct Layer {
    x: [usize; 5],
    w: [usize; 5],
    options: ConvTranspose3dOptions,
}

impl Layer {
    fn out_channels(&self) -> usize {
        self.w[1] * self.options.groups
    }

    fn y(&self) -> [usize; 5] {
        let ConvTranspose3dOptions { stride, padding, padding_out, dilation, .. } = self.options;
        let [d, h, w] = [0, 1, 2].map(|axis| {
            let reach = (self.x[axis + 2] - 1) * stride[axis] + dilation[axis] * (self.w[axis + 2] - 1) + 1;
            reach + padding_out[axis] - 2 * padding[axis]
        });
        [self.x[0], self.out_channels(), d, h, w]
    }

    /// Calls `visit(x, w, y)` with the indices of every product, by the definition.
    fn products(&self, mut visit: impl FnMut(usize, usize, usize)) {
        let ConvTranspose3dOptions { stride, padding, dilation, groups, .. } = self.options;
        let (y, group_in, group_out) = (self.y(), self.x[1] / groups, self.w[1]);
        let count = |shape: &[usize]| shape.iter().product::<usize>();
        let at = |index: usize, extents: &[usize]| {
            [index / (extents[1] * extents[2]), index / extents[2] % extents[1], index % extents[2]]
        };
        for x_index in 0..count(&self.x) {
            let (channel, q) = (x_index / count(&self.x[2..]), x_index % count(&self.x[2..]));
            let (n, c) = (channel / self.x[1], channel % self.x[1]);
            let q = at(q, &self.x[2..]);
            for tap in 0..count(&self.w[2..]) {
                let k = at(tap, &self.w[2..]);
                let p = [0, 1, 2].map(|axis| {
                    (q[axis] * stride[axis] + k[axis] * dilation[axis]).wrapping_sub(padding[axis])
                });
                if (0..3).any(|axis| p[axis] >= y[axis + 2]) {
                    continue;
                }
                for o in 0..group_out {
                    let out = n * y[1] + c / group_in * group_out + o;
                    let y_index = ((out * y[2] + p[0]) * y[3] + p[1]) * y[4] + p[2];
                    visit(x_index, (c * group_out + o) * count(&self.w[2..]) + tap, y_index);
                }
            }
        }
    }

    fn channel(&self, y_index: usize) -> usize {
        y_index / self.y()[2..].iter().product::<usize>() % self.out_channels()
    }

    /// y before the activation.
    fn pre(&self, x: &[f64], w: &[f64], bias: &[f64]) -> Vec<f64> {
        let mut pre: Vec<_> = (0..self.y().iter().product()).map(|index| bias[self.channel(index)]).collect();
        self.products(|xi, wi, yi| pre[yi] += x[xi] * w[wi]);
        pre
    }

    /// dx, dw and db from the gradient before the activation.
    fn gradients(&self, x: &[f64], w: &[f64], dpre: &[f64]) -> [Vec<f64>; 3] {
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
        let mut db = vec![0.0; self.out_channels()];
        self.products(|xi, wi, yi| {
            dx[xi] += w[wi] * dpre[yi];
            dw[wi] += x[xi] * dpre[yi];
        });
        dpre.iter().enumerate().for_each(|(index, dpre)| db[self.channel(index)] += dpre);
        [dx, dw, db]
    }
}

/// Windows that tile the result, overlap, leave gaps between and behind them, in groups and depthwise; the
/// last two have elements that no conv3d reaches, on one axis and on all.
fn layers() -> Vec<Layer> {
    let new = ConvTranspose3dOptions::new;
    let layer = |x, w, options| Layer { x, w, options };
    vec![
        layer([2, 5, 2, 3, 4], [5, 4, 2, 2, 2], new().with_stride(2)),
        layer([1, 6, 3, 4, 3], [6, 2, 3, 3, 3], new().with_stride([1, 2, 2]).with_padding(1).with_groups(2)),
        layer([1, 4, 2, 3, 3], [4, 5, 1, 2, 2], new().with_stride(3).with_padding_out([2, 1, 0])),
        layer([1, 4, 2, 5, 4], [4, 1, 3, 3, 3], new().with_padding(1).with_groups(4)),
        layer([1, 3, 2, 3, 2], [3, 4, 2, 1, 2], new().with_dilation([3, 1, 1]).with_padding_out([2, 0, 0])),
        layer([2, 3, 1, 2, 2], [3, 2, 2, 2, 1], new().with_dilation([2, 3, 4]).with_padding_out([1, 2, 3])),
    ]
}

#[test]
fn results_and_gradients_follow_the_definition() {
    let activations = [Activation::Silu, Activation::Relu, Activation::None];
    for (on, plain) in devices() {
        for (place, layer) in layers().into_iter().enumerate() {
            let activation = activations[place % 3];
            let device = plain.clone().autodiff();
            let options = layer.options.with_activation(activation);
            let x = normal(1, layer.x, &device).require_grad();
            let w = normal(2, layer.w, &device).require_grad();
            let b = normal(3, [layer.out_channels()], &device).require_grad();
            let y = conv_transpose3d(x.clone(), w.clone(), Some(b.clone()), options);
            assert_eq!(y.dims(), layer.y(), "{on} {place}");
            let dy = normal(4, layer.y(), &device);
            let grads = (y.clone() * dy.clone()).sum().backward();

            let [x64, w64, dy64] = [&x, &w, &dy].map(|tensor| values(tensor.clone().inner()));
            let b64 = values(b.clone().inner());
            let pre = layer.pre(&x64, &w64, &b64);
            let sums = layer.pre(&absolute(&x64), &absolute(&w64), &absolute(&b64));
            let apply = |value: &f64| reference::activate(activation, *value);
            let slope = |(value, dy): (&f64, &f64)| reference::activation_derivative(activation, *value) * dy;
            let dpre: Vec<f64> = pre.iter().zip(&dy64).map(slope).collect();
            // The slope is as wrong as the value that it is taken at.
            let left: Vec<f64> = sums.iter().zip(&dy64).map(|(sum, dy)| dy.abs() * (1.0 + sum)).collect();
            let compare = |name: &str, got: Vec<f64>, want: &[f64], magnitudes: &[f64]| {
                let terms = w64.len().max(dy64.len()) + 24;
                let expected =
                    Expected { values: want, magnitudes, terms, dtype: FloatType::F32, slope: 1.1 };
                check(&format!("{on} {place} {activation:?} {name}"), &expected, &got);
            };
            compare("y", values(y.inner()), &pre.iter().map(apply).collect::<Vec<_>>(), &sums);
            let want = layer.gradients(&x64, &w64, &dpre);
            let magnitudes = layer.gradients(&absolute(&x64), &absolute(&w64), &left);
            compare("dx", values(x.grad(&grads).expect("tracked")), &want[0], &magnitudes[0]);
            compare("dw", values(w.grad(&grads).expect("tracked")), &want[1], &magnitudes[1]);
            compare("db", values(b.grad(&grads).expect("tracked")), &want[2], &magnitudes[2]);

            // Of the tracked call, and of one without anything tracked, in both types.
            for dtype in [DType::F32, DType::F16] {
                let run = |device: &Device, tracked: bool| {
                    let x = normal(1, layer.x, device).cast(dtype);
                    let x = if tracked { x.require_grad() } else { x };
                    let [w, b] = [
                        normal(2, layer.w, device).cast(dtype).reshape([-1]),
                        normal(3, [layer.out_channels()], device).cast(dtype),
                    ];
                    bits(conv_transpose3d(x, w.reshape(layer.w), Some(b), options))
                };
                assert_eq!(run(&device, true), run(&plain, false), "{on} {place} {dtype:?}");
            }
        }
    }
}

/// 1 + 2^-11 is half of a unit above 1 and would be rounded to 1: the bias decides, where it is added before.
#[test]
fn sum_and_bias_are_rounded_once() {
    let (half_unit, quarter) = (2f32.powi(-11), 2f32.powi(-12));
    for (on, device) in devices() {
        for activation in [Activation::None, Activation::Relu] {
            let x = upload(&[1.0, 1.0], [1, 2, 1, 1, 1], &device).cast(DType::F16);
            let w = upload(&[1.0, half_unit], [2, 1, 1, 1, 1], &device).cast(DType::F16);
            let b = upload(&[quarter], [1], &device).cast(DType::F16);
            let options = ConvTranspose3dOptions::new().with_activation(activation);
            let y = values(conv_transpose3d(x.clone(), w.clone(), Some(b.clone()), options))[0];
            assert_eq!(y, 1.0 + 2.0 * f64::from(half_unit), "{on} {activation:?}");
            let flat = |tensor: Tensor<5>| {
                let dims = tensor.dims();
                tensor.reshape([dims[0], dims[1], 1, 1])
            };
            let options = ConvTranspose2dOptions::new().with_activation(activation);
            assert_eq!(values(conv_transpose2d(flat(x), flat(w), Some(b), options))[0], y, "{on}");
        }
    }
}

/// SiLU keeps the value before it in fp32: as in `silu.rs`, a sum that no f16 holds.
#[test]
fn silu_of_a_half_and_its_gradients_see_the_fp32_sum() {
    for (on, device) in devices() {
        let device = device.autodiff();
        let x = upload(&[-10.0, -3.0 / 1024.0], [1, 2, 1, 1, 1], &device).cast(DType::F16).require_grad();
        let w = upload(&[1.0, 1.0], [2, 1, 1, 1, 1], &device).cast(DType::F16).require_grad();
        let b = upload(&[0.0], [1], &device).cast(DType::F16).require_grad();
        let options = ConvTranspose3dOptions::new().with_activation(Activation::Silu);
        let y = conv_transpose3d(x.clone(), w.clone(), Some(b.clone()), options);
        let grads = y.clone().sum().backward();
        let close = |name: &str, got: f64, want: f64, roundings: f64| {
            let bound = (roundings * FloatType::F16.unit_roundoff() + 5e-7) * want.abs() * 1.001;
            let bound = bound + FloatType::F16.subnormal_roundoff();
            assert!((got - want).abs() <= bound, "{on} {name}: {got}, {want} expected");
        };
        close("y", values(y.inner())[0], -4.527_568_8e-4, 1.0);
        close("dx", values(x.grad(&grads).expect("tracked"))[0], -4.075_0e-4, 1.0);
        close("dw", values(w.grad(&grads).expect("tracked"))[0], 4.075_0e-3, 2.0);
        close("db", values(b.grad(&grads).expect("tracked"))[0], -4.075_0e-4, 1.0);
    }
}

#[test]
fn a_module_applies_its_activation() {
    for (on, device) in devices() {
        let config = nn::ConvTranspose3dConfig::new([3, 4], [2; 3]).with_stride(2);
        let plain = config.init(&device);
        let mut layer = config.clone().with_activation(Activation::Relu).init(&device);
        assert_eq!(layer.options().activation, Activation::Relu);
        (layer.weight, layer.bias) = (plain.weight.clone(), plain.bias.clone());
        let x = normal(1, [1, 3, 2, 3, 2], &device);
        let (y, before) = (values(layer.forward(x.clone())), values(plain.forward(x)));
        assert!(before.iter().any(|value| *value < 0.0));
        assert_eq!(y, before.iter().map(|value| value.max(0.0)).collect::<Vec<_>>(), "{on}");
    }
    // A file of before has no activation.
    let config = nn::ConvTranspose2dConfig::new([3, 4], [2; 2]).with_activation(Activation::Silu);
    let mut text: serde_json::Value = serde_json::to_value(&config).expect("a configuration");
    let back: nn::ConvTranspose2dConfig = serde_json::from_value(text.clone()).expect("the same");
    assert_eq!(back.activation, Activation::Silu);
    text.as_object_mut().expect("fields").remove("activation");
    let older: nn::ConvTranspose2dConfig = serde_json::from_value(text).expect("without the field");
    assert_eq!(older.activation, Activation::None);
}

/// Strides, groups, dilation, depthwise, and elements that no window reaches.
#[test]
fn one_axis_is_burns_with_its_gradients() {
    let layers = [
        ([2, 4, 9], [4, 3, 4], ConvTransposeOptions::new([2], [1], [1], [1], 1)),
        ([1, 6, 7], [6, 2, 3], ConvTransposeOptions::new([3], [0], [2], [2], 2)),
        ([2, 4, 8], [4, 1, 3], ConvTransposeOptions::new([1], [1], [0], [1], 4)),
        ([2, 3, 5], [3, 2, 3], ConvTransposeOptions::new([1], [1], [2], [3], 1)),
    ];
    type Op<'a> = &'a dyn Fn(Tensor<3>, Tensor<3>, Option<Tensor<1>>) -> Tensor<3>;
    let run = |device: &Device, (x, w): ([usize; 3], [usize; 3]), channels: usize, op: Op| {
        let [x, w] = [(1, x), (2, w)].map(|(seed, shape)| normal(seed, shape, device).require_grad());
        let b = normal(3, [channels], device).require_grad();
        let y = op(x.clone(), w.clone(), Some(b.clone()));
        let dy = normal(4, y.dims(), device);
        let gradients = (y.clone() * dy).sum().backward();
        let [dx, dw] = [x, w].map(|tensor| values(tensor.grad(&gradients).expect("tracked")));
        [values(y.inner()), dx, dw, values(b.grad(&gradients).expect("tracked"))]
    };
    for (on, device) in devices() {
        for (place, (x, w, options)) in layers.clone().into_iter().enumerate() {
            let channels = w[1] * options.groups;
            let ours = ConvTranspose1dOptions::from(options.clone());
            let got =
                run(&device.clone().autodiff(), (x, w), channels, &|x, w, b| conv_transpose1d(x, w, b, ours));
            let burns = |x, w, b| module::conv_transpose1d(x, w, b, options.clone());
            let want = run(&Device::flex().autodiff(), (x, w), channels, &burns);
            for ((name, got), want) in ["y", "dx", "dw", "db"].into_iter().zip(&got).zip(&want) {
                assert_close(&format!("{place} {name} on {on}"), got, want, 1e-5);
            }

            // A view, with an activation.
            let relu = ours.with_activation(Activation::Relu);
            let columns = normal(1, [x[0], x[2], x[1]], &device).swap_dims(1, 2);
            let copy: Vec<_> = values(columns.clone()).into_iter().map(|value| value as f32).collect();
            let w = normal(2, w, &device);
            let y = conv_transpose1d(upload(&copy, x, &device), w.clone(), None, ours);
            assert_eq!(
                bits(conv_transpose1d(columns, w, None, relu)),
                bits(y.clamp_min(0.0)),
                "{place} on {on}"
            );
        }
    }
}

/// Burn's configuration is read from its file.
#[test]
fn a_file_of_burns_configuration_is_read() {
    let burns = burn::nn::conv::ConvTranspose1dConfig::new([4, 6], 3).with_stride(2).with_padding_out(1);
    let ours: nn::ConvTranspose1dConfig = serde_json::from_str(&burns.to_string()).expect("its fields");
    let layer = ours.init(&Device::flex());
    assert_eq!(layer.options(), ConvTranspose1dOptions::new().with_stride(2).with_padding_out(1));
    assert_eq!(layer.weight.dims(), [4, 6, 3]);
}
