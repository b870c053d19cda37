//! Feature `cpu`: on CubeCL's CPU runtime the ops are composed from Burn's own, as on Flex, and agree with
//! it.

use crate::support::{assert_close, normal, values};
use burn::tensor::Device;
use burn_conv_ops::{
    Activation, CausalConv1dOptions, Conv3dOptions, ConvTranspose3dOptions, PaddingMode, RopeGrid,
    RopeOptions, causal_conv1d, conv_transpose3d, conv3d_with_residual, rope, try_conv3d,
};

/// Fails where results of the same op differ by more than the rounding of their sums.
fn agree(what: &str, run: impl Fn(&Device) -> Vec<Vec<f64>>) {
    let (cpu, flex) = (run(&Device::cpu().autodiff()), run(&Device::flex().autodiff()));
    assert_eq!(cpu.len(), flex.len(), "{what}");
    for (index, (cpu, flex)) in cpu.iter().zip(&flex).enumerate() {
        let what = format!("{what} {index}");
        assert!(flex.iter().any(|value| *value != 0.0), "{what}: nothing was computed");
        assert_close(&what, cpu, flex, 1e-5);
    }
}

/// y and the gradients of the operands.
macro_rules! gradients {
    ($y:expr, $($operand:expr),+) => {{
        let y = $y;
        let dy = normal(9, y.dims(), &y.device());
        let gradients = (y.clone() * dy).sum().backward();
        vec![values(y), $(values($operand.grad(&gradients).expect("it is tracked"))),+]
    }};
}

#[test]
fn conv3d_and_its_gradients() {
    agree("conv3d", |device| {
        let x = normal(1, [2, 4, 5, 8, 9], device).require_grad();
        let weight = normal(2, [6, 2, 3, 3, 3], device).require_grad();
        let bias = normal(3, [6], device).require_grad();
        let options = Conv3dOptions::new()
            .with_stride([1, 2, 1])
            .with_padding([(2, 0), (1, 1), (1, 1)])
            .with_padding_mode(PaddingMode::Replicate)
            .with_groups(2)
            .with_activation(Activation::Silu);
        let residual = normal(4, [2, 6, 5, 4, 9], device).require_grad();
        let y =
            conv3d_with_residual(x.clone(), weight.clone(), Some(bias.clone()), residual.clone(), options);
        gradients!(y, x, weight, bias, residual)
    });
}

#[test]
fn transposed_conv3d_and_its_gradients() {
    agree("conv_transpose3d", |device| {
        let x = normal(1, [2, 4, 3, 4, 5], device).require_grad();
        let weight = normal(2, [4, 3, 2, 2, 2], device).require_grad();
        let bias = normal(3, [3], device).require_grad();
        let options = ConvTranspose3dOptions::new().with_stride([2; 3]);
        let y = conv_transpose3d(x.clone(), weight.clone(), Some(bias.clone()), options);
        gradients!(y, x, weight, bias)
    });
}

#[test]
fn causal_conv1d_and_its_gradients() {
    agree("causal_conv1d", |device| {
        let x = normal(1, [2, 6, 20], device).require_grad();
        let weight = normal(2, [6, 4], device).require_grad();
        let bias = normal(3, [6], device).require_grad();
        let options = CausalConv1dOptions::new().with_activation(Activation::Silu);
        gradients!(causal_conv1d(x.clone(), weight.clone(), Some(bias.clone()), options), x, weight, bias)
    });
}

#[test]
fn rope_and_its_gradient() {
    agree("rope", |device| {
        let tokens = normal(1, [1, 2, 12, 16], device).require_grad();
        let grid = RopeGrid { rows: 3, columns: 4, first: 0 };
        gradients!(rope(tokens.clone(), grid, RopeOptions::croco()), tokens)
    });
}

#[test]
fn bad_input_is_refused() {
    let device = Device::cpu();
    let (x, weight) = (normal(1, [1, 2, 3, 4, 5], &device), normal(2, [1, 3, 1, 1, 1], &device));
    let error = try_conv3d(x, weight, None, Conv3dOptions::new()).expect_err("2 channels and 3");
    assert!(error.to_string().contains("channels"), "{error}");
}
