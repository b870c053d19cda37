//! Causal conv3d on pieces of a clip: large frames, modes of padding, half precision.

use crate::support::{devices, normal, upload, values};
use burn::tensor::Tensor;
use burn_conv_ops::{CausalConv3dOptions, Conv3dOptions, PaddingMode, causal_conv3d, conv3d};
use conv_cases::fill;
use conv_kernels::FloatType;
use conv_kernels::conv3d::{Conv3dProblem, Window, reference};

/// pytorch #194922: rank-5 padding on MPS was wrong from 65,536 elements per frame on. A piece behind a
/// cache, against the f64 reference of the joined frames; integers are exact.
#[test]
fn pieces_of_large_frames_read_every_padding() {
    let modes = [PaddingMode::Zeros, PaddingMode::Replicate, PaddingMode::Reflect, PaddingMode::Circular];
    for (mode, size) in modes.into_iter().zip([256, 257, 257, 256]) {
        let padding_mode = [PaddingMode::Zeros, mode, mode];
        let window = Window { padding: [(0, 0), (1, 1), (1, 1)], padding_mode, ..Window::default() };
        let problem =
            Conv3dProblem::new([1, 1, 4, size, size], [1, 1, 3, 3, 3], None, window, FloatType::F32)
                .expect("a problem");
        let frames = 2 * size * size;
        let clip = fill::integers(1, 2 * frames, -4, 4);
        let (weight, dy) = (fill::integers(2, 27, -4, 4), fill::integers(3, frames, -4, 4));
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|value| f64::from(*value)).collect() };
        let [clip64, weight64, dy64] = [&clip, &weight, &dy].map(|values| wide(values));
        let want = [
            reference::forward(&problem, &clip64, &weight64, None),
            reference::input_gradient(&problem, &weight64, &dy64),
            reference::weight_gradient(&problem, &clip64, &dy64),
        ];
        for (on, device) in devices() {
            let device = device.autodiff();
            let of = |values: &[f32]| upload(values, [1, 1, 2, size, size], &device);
            let [cache, x] = [&clip[..frames], &clip[frames..]].map(|values| of(values).require_grad());
            let weight = upload(&weight, [1, 1, 3, 3, 3], &device).require_grad();
            let options = CausalConv3dOptions::new().with_plane_padding(1).with_plane_mode(mode);
            let (y, _) = causal_conv3d(x.clone(), weight.clone(), None, Some(cache.clone()), options);
            let grads = (y.clone() * of(&dy)).sum().backward();
            let [dcache, dx, dw] =
                [cache, x, weight].map(|tensor| values(tensor.grad(&grads).expect("tracked")));
            let got = [values(y.inner()), [dcache, dx].concat(), dw];
            for (index, name) in ["y", "dx", "dw"].into_iter().enumerate() {
                assert!(got[index] == want[index], "{name}, {mode:?} at {size}x{size} on {on}");
            }
        }
    }
}

/// x with one element more at either end of an axis.
fn padded(x: Tensor<5>, axis: usize, mode: PaddingMode) -> Tensor<5> {
    let last = x.dims()[axis] - 1;
    let at = |index| x.clone().narrow(axis, index, 1);
    let (before, after) = match mode {
        PaddingMode::Zeros => (at(0).zeros_like(), at(0).zeros_like()),
        PaddingMode::Replicate => (at(0), at(last)),
        PaddingMode::Reflect => (at(1), at(last - 1)),
        PaddingMode::Circular => (at(last), at(0)),
    };
    Tensor::cat(vec![before, x, after], axis)
}

/// Height and width are padded each in its own mode: as x that is padded first, with gradients, behind a
/// cache and at a clip's beginning.
#[test]
fn height_and_width_have_modes_of_their_own() {
    use PaddingMode::{Circular, Reflect, Replicate, Zeros};
    let cases = [([Zeros, Circular], true), ([Reflect, Replicate], false), ([Circular, Reflect], true)];
    for (on, device) in devices() {
        for (modes, cached) in cases {
            let device = device.clone().autodiff();
            let integers = |seed: u64, shape: [usize; 5]| (normal(seed, shape, &device) * 2.0).round();
            let weight = integers(2, [6, 4, 3, 3, 3]).require_grad();
            let [cache, x] =
                [2, 3].map(|frames| integers(frames as u64, [2, 4, frames, 5, 4]).require_grad());
            let dy = integers(5, [2, 6, 3, 5, 4]);
            let gradients = |y: Tensor<5>| {
                let grads = (y.clone() * dy.clone()).sum().backward();
                let of = [&x, &weight, &cache].map(|input| input.grad(&grads).map(values));
                (values(y.inner()), of)
            };
            let options = CausalConv3dOptions::new().with_plane_padding(1).with_plane_modes(modes);
            let (held, front) = if cached { (Some(cache.clone()), 0) } else { (None, 2) };
            let got = gradients(causal_conv3d(x.clone(), weight.clone(), None, held.clone(), options).0);
            let frames: Vec<_> = held.into_iter().chain([x.clone()]).collect();
            let clip = padded(padded(Tensor::cat(frames, 2), 4, modes[1]), 3, modes[0]);
            let explicit = Conv3dOptions::new().with_padding([(front, 0), (0, 0), (0, 0)]);
            let want = gradients(conv3d(clip, weight.clone(), None, explicit));
            assert!(got == want, "{modes:?} on {on}, behind a cache: {cached}");
            assert_eq!(got.1.map(|gradient| gradient.is_some()), [true, true, cached]);
        }
    }
}
