//! Padding modes per axis against PyTorch (golden/padding_modes.safetensors), and what is refused.

use crate::golden::{self, Tensors};
use crate::support::devices;
use burn::serde::Deserialize;
use burn::tensor::{Device, Tensor};
use burn_conv_ops::{Conv3dOptions, PaddingMode, conv3d, try_conv3d};
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
