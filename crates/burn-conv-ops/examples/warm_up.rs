//! How long this device takes to compile what the layers of R3D-18 launch, forward and backward.

use burn::tensor::{DType, Device};
use burn_conv_ops::{ConvError, WarmUpLayer, warm_up};
use std::time::Duration;

/// Input channels, output channels, kernel, stride, and the input's extents.
type Layer = (usize, usize, [usize; 3], [usize; 3], [usize; 3]);

/// The distinct layers.
const LAYERS: [Layer; 11] = [
    (3, 64, [3, 7, 7], [1, 2, 2], [16, 112, 112]),
    (64, 64, [3; 3], [1; 3], [16, 56, 56]),
    (64, 128, [3; 3], [2; 3], [16, 56, 56]),
    (64, 128, [1; 3], [2; 3], [16, 56, 56]),
    (128, 128, [3; 3], [1; 3], [8, 28, 28]),
    (128, 256, [3; 3], [2; 3], [8, 28, 28]),
    (128, 256, [1; 3], [2; 3], [8, 28, 28]),
    (256, 256, [3; 3], [1; 3], [4, 14, 14]),
    (256, 512, [3; 3], [2; 3], [4, 14, 14]),
    (256, 512, [1; 3], [2; 3], [4, 14, 14]),
    (512, 512, [3; 3], [1; 3], [2, 7, 7]),
];

fn main() -> Result<(), ConvError> {
    let device = Device::default().autodiff();
    let dtype = if std::env::args().any(|argument| argument == "f16") { DType::F16 } else { DType::F32 };
    let layers = LAYERS.map(|(input, output, kernel, stride, [d, h, w])| {
        let [weight, x] = [[output, input, kernel[0], kernel[1], kernel[2]], [1, input, d, h, w]];
        let options = burn_conv_ops::Conv3dOptions::new().with_stride(stride);
        let options = options.with_padding(kernel.map(|taps| taps / 2));
        WarmUpLayer::conv3d(x, weight, false, options, (&device, dtype))
    });
    let steps = warm_up(&layers, |step| println!("{step}"))?;
    let kernels: usize = steps.iter().filter_map(|step| step.kernels).sum();
    println!(
        "{kernels} kernels, {:.1} s",
        steps.iter().map(|step| step.took).sum::<Duration>().as_secs_f64()
    );
    Ok(())
}
