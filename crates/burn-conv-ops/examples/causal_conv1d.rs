//! A sequence at once, in pieces, and step by step: the same numbers.

use burn::tensor::{Device, Distribution, Tensor};
use burn_conv_ops::nn::CausalConv1dConfig;
use burn_conv_ops::{Activation, CausalConv1dOptions};

fn main() {
    let device = Device::default();
    let conv = CausalConv1dConfig::new(64, 4).with_activation(Activation::Silu).init(&device); // C, W
    let x = Tensor::<3>::random([2, 64, 100], Distribution::Default, &device); // [B, C, T]
    let whole = conv.forward(x.clone());

    // Each piece continues with the state of the one before: the last W - 1 inputs.
    let (first, state) = conv.forward_with_state(x.clone().narrow(2, 0, 60), CausalConv1dOptions::new());
    let (second, state) = conv.forward_with_state(x.clone().narrow(2, 60, 39), state);
    let (last, _) = conv.step(x.narrow(2, 99, 1).squeeze_dim::<2>(2), state);

    let pieces = Tensor::cat(vec![first, second, last.unsqueeze_dim::<3>(2)], 2);
    let difference = (pieces - whole).abs().max().into_scalar::<f32>();
    println!("largest difference between pieces and whole: {difference:e}");
    assert!(difference < 1e-5);
}
