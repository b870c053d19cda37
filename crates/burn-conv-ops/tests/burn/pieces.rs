//! Causal conv3d on pieces of a clip: large frames, modes of padding, half precision.

use crate::support::{devices, normal, upload, values};
use burn::module::Param;
use burn::tensor::{DType, Device, Tensor};
use burn_conv_ops::nn::CausalConv3dConfig;
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
        other => panic!("{other:?}"),
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

/// y, the cache behind it and the gradients of x, of the first cache (of the function), weight and bias.
type Results = (Tensor<5>, Tensor<5>, Vec<Tensor<5>>, Tensor<1>);

/// A clip of five frames in two pieces, by the function behind a cache or by the module from the clip's
/// beginning.
fn two_pieces(by_module: bool, dtype: DType, device: &Device) -> Results {
    let integers = |seed: u64, shape: [usize; 5]| {
        upload(&fill::integers(seed, shape.iter().product(), -2, 2), shape, device).cast(dtype)
    };
    let x = integers(1, [1, 2, 5, 5, 4]).require_grad();
    let cache = integers(2, [1, 2, 2, 5, 4]).require_grad();
    let weight = integers(3, [4, 2, 3, 3, 3]);
    let bias = upload(&[-1.0, 0.0, 1.0, 2.0], [4], device).cast(dtype);
    let mut conv = CausalConv3dConfig::new([2, 4], [3; 3]).with_plane_padding(1).init(device);
    (conv.weight, conv.bias) = (Param::from_tensor(weight), Some(Param::from_tensor(bias)));
    let (weight, bias) = (conv.weight.val(), conv.bias.as_ref().expect("it has one").val());
    let mut held = (!by_module).then(|| cache.clone());
    let parts = [(0, 1), (1, 4)].map(|(at, frames)| {
        let piece = x.clone().narrow(2, at, frames);
        if by_module {
            return conv.forward_streaming(piece, &mut held);
        }
        let (y, next) = causal_conv3d(piece, weight.clone(), Some(bias.clone()), held.take(), conv.options());
        held = Some(next);
        y
    });
    let y = Tensor::cat(parts.to_vec(), 2);
    let dy = integers(4, y.dims());
    let grads = (y.clone() * dy).sum().backward();
    let fives = [Some(x), (!by_module).then_some(cache), Some(weight)].into_iter().flatten();
    let fives = fives.map(|tensor| tensor.grad(&grads).expect("tracked")).collect();
    (y.inner(), held.expect("a cache").inner(), fives, bias.grad(&grads).expect("tracked"))
}

/// Sums of small integers are exact in f16: pieces, caches and gradients are those of f32.
#[test]
fn pieces_in_f16_and_their_gradients_are_exact() {
    for (on, device) in devices() {
        let device = device.autodiff();
        for by_module in [false, true] {
            let what = format!("{on}, by the module: {by_module}");
            let half = two_pieces(by_module, DType::F16, &device);
            let full = two_pieces(by_module, DType::F32, &device);
            let dtypes = |results: &Results| {
                let (y, cache, fives, bias) = results;
                let fives = fives.iter().map(Tensor::dtype);
                fives.chain([y.dtype(), cache.dtype(), bias.dtype()]).collect::<Vec<_>>()
            };
            assert!(dtypes(&half).iter().all(|dtype| *dtype == DType::F16), "{what}: {:?}", dtypes(&half));
            let all = |(y, cache, fives, bias): Results| {
                let mut all = vec![values(y), values(cache), values(bias)];
                all.extend(fives.into_iter().map(values));
                all
            };
            let (half, full) = (all(half), all(full));
            assert!(full.iter().all(|values| values.iter().any(|value| *value != 0.0)), "{what}");
            assert!(half == full, "{what}");
        }
    }
}
