//! Trains one conv3d layer to blur a clip: forward, gradients, an optimizer's step.

use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Distribution, Tensor};
use burn_conv_ops::nn::Conv3dConfig;
use burn_conv_ops::{Conv3dOptions, conv3d};

fn main() {
    let device = Device::default().autodiff();
    let clip = Tensor::<5>::random([1, 1, 8, 16, 16], Distribution::Normal(0.0, 1.0), &device); // [N, C, D, H, W]
    let blur = Tensor::<5>::full([1, 1, 3, 3, 3], 1.0 / 27.0, &device);
    let target = conv3d(clip.clone(), blur, None, Conv3dOptions::new().with_padding(1)).detach();

    let mut layer = Conv3dConfig::new([1, 1], [3, 3, 3]).with_padding(1).init(&device);
    let mut optimizer = SgdConfig::new().init();
    let mut losses = Vec::new();
    for step in 0..=20 {
        let loss = (layer.forward(clip.clone()) - target.clone()).square().mean();
        losses.push(loss.clone().into_scalar::<f32>());
        if step % 4 == 0 {
            println!("step {step:2}: loss {:.1e}", losses[step]);
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &layer);
        layer = optimizer.step(0.2, layer, gradients);
    }
    assert!(losses[20] < 1e-4 * losses[0], "the layer does not become the blur");
}
