//! Tracking gradients changes no bit of a result: an op computes the same whether its inputs want gradients
//! or not.

use crate::support::{bits, devices, int_upload, normal};
use burn::tensor::{DType, Device, Tensor};
use burn_conv_ops::{
    Activation, CausalConv1dOptions, Conv1dLayout, Conv3dOptions, PaddingMode, Rope2dOptions,
    causal_conv1d_with_state, conv3d, conv3d_with_residual, rope2d,
};

const ACTIVATIONS: [Activation; 3] = [Activation::None, Activation::Relu, Activation::Silu];

/// The types that every device has.
const TYPES: [DType; 2] = [DType::F32, DType::F16];

/// Where, in which type, and whether gradients are tracked.
struct On {
    device: Device,
    dtype: DType,
    tracked: bool,
}

impl On {
    fn new(device: &Device, dtype: DType, tracked: bool) -> Self {
        let device = if tracked { device.clone().autodiff() } else { device.clone() };
        Self { device, dtype, tracked }
    }

    /// N(0, 1) data of a seed.
    fn normal<const D: usize>(&self, seed: u64, shape: [usize; D]) -> Tensor<D> {
        let tensor = normal(seed, shape, &self.device).cast(self.dtype);
        if self.tracked { tensor.detach().require_grad() } else { tensor }
    }
}

#[test]
fn conv3d_computes_the_same_bits_with_gradients() {
    for (name, device) in devices() {
        for dtype in TYPES {
            for activation in ACTIVATIONS {
                for (kernel, stride, mode) in [
                    ([3, 3, 3], [1, 1, 1], PaddingMode::Zeros),
                    ([1, 1, 1], [1, 1, 1], PaddingMode::Zeros),
                    ([3, 3, 2], [1, 2, 1], PaddingMode::Replicate),
                ] {
                    let options = Conv3dOptions::new()
                        .with_padding(kernel.map(|taps| taps / 2))
                        .with_stride(stride)
                        .with_padding_mode(mode)
                        .with_activation(activation);
                    let y = |tracked: bool, residual: bool| {
                        let on = On::new(&device, dtype, tracked);
                        let [d, h, w] = kernel;
                        let (x, weight) = (on.normal(1, [2, 5, 3, 6, 7]), on.normal(2, [6, 5, d, h, w]));
                        let bias = Some(on.normal(3, [6]));
                        if !residual {
                            return bits(conv3d(x, weight, bias, options));
                        }
                        let shape = conv3d(x.clone(), weight.clone(), None, options).dims();
                        bits(conv3d_with_residual(x, weight, bias, on.normal(4, shape), options))
                    };
                    for residual in [false, true] {
                        let what = format!("{name} {dtype:?} {activation:?} {kernel:?} residual {residual}");
                        assert_eq!(y(true, residual), y(false, residual), "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn causal_conv1d_computes_the_same_bits_with_gradients() {
    for (name, device) in devices() {
        for dtype in TYPES {
            for activation in ACTIVATIONS {
                for (width, layout, ids) in [
                    (4, Conv1dLayout::Bct, false),
                    (3, Conv1dLayout::Btc, true),
                    (12, Conv1dLayout::Bct, false),
                    (12, Conv1dLayout::Btc, true),
                ] {
                    let (b, c, t) = (2, 5, 19);
                    let shape = layout.swapped([b, c, t]);
                    let results = |tracked: bool| {
                        let on = On::new(&device, dtype, tracked);
                        let mut options = CausalConv1dOptions::from(activation)
                            .with_layout(layout)
                            .with_initial_state(on.normal(4, [b, c, width - 1]))
                            .with_residual(on.normal(5, shape));
                        if ids {
                            let ids: Vec<i64> = (0..b * t).map(|step| [0, 0, 1, -1][step % t / 5]).collect();
                            options = options.with_seq_idx(int_upload(&ids, [b, t], &on.device));
                        }
                        let (x, weight) = (on.normal(1, shape), on.normal(2, [c, width]));
                        let bias = on.normal(3, [c]);
                        let (y, last) = causal_conv1d_with_state(x, weight, Some(bias), options);
                        (bits(y), bits(last))
                    };
                    let what = format!("{name} {dtype:?} {activation:?} width {width} {layout:?} ids {ids}");
                    assert_eq!(results(true), results(false), "{what}");
                }
            }
        }
    }
}

#[test]
fn rope2d_computes_the_same_bits_with_gradients() {
    for (name, device) in devices() {
        for dtype in TYPES {
            let y = |tracked: bool| {
                let on = On::new(&device, dtype, tracked);
                let x = on.normal(1, [2, 3, 10, 16]);
                let places: Vec<i64> = (0..40).map(|place| place * 7 % 23 - 4).collect();
                bits(rope2d(x, int_upload(&places, [2, 10, 2], &on.device), Rope2dOptions::new()))
            };
            assert_eq!(y(true), y(false), "{name} {dtype:?}");
        }
    }
}
