//! Causal conv3d against PyTorch (golden/causal_conv3d.safetensors): whole clips and clips in pieces, caches,
//! gradients through them, the module, and what is refused.

use crate::golden::{self, Tensors};
use crate::padding::mode;
use crate::support::{assert_close, devices, normal, upload, values};
use burn::serde::Deserialize;
use burn::tensor::{DType, Device, Tensor};
use burn_conv_ops::nn::CausalConv3dConfig;
use burn_conv_ops::{
    Activation, Algorithm, CausalConv3dOptions, Conv3dOptions, FirstFrames, PaddingMode, causal_conv3d,
    conv3d, try_causal_conv3d,
};
use safetensors::SafeTensors;

#[derive(Deserialize)]
#[serde(crate = "burn::serde")]
struct Golden {
    depth_stride: usize,
    plane_padding: usize,
    chunks: Vec<usize>,
    first: String,
    plane_mode: String,
}

/// y of a clip in pieces of these numbers of frames, and the last cache.
fn in_pieces(
    x: Tensor<5>,
    weight: &Tensor<5>,
    bias: Option<&Tensor<1>>,
    options: CausalConv3dOptions,
    pieces: &[usize],
) -> (Tensor<5>, Tensor<5>) {
    let (mut cache, mut at, mut parts) = (None, 0, Vec::new());
    for frames in pieces {
        let piece = x.clone().narrow(2, at, *frames);
        let (y, next) = causal_conv3d(piece, weight.clone(), bias.cloned(), cache, options);
        (cache, at) = (Some(next), at + frames);
        parts.push(y);
    }
    (Tensor::cat(parts, 2), cache.expect("a piece"))
}

#[test]
fn clips_whole_and_in_pieces_and_their_gradients_are_pytorchs() {
    let (bytes, problems) = golden::read::<Golden>("causal_conv3d.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    for (on, device) in devices() {
        // A software device compiles for most of these: it gets four clips, in pieces.
        let quick = on == "gpu" && !conv_testing::is_full();
        for (problem, golden) in problems.iter().enumerate() {
            if quick && problem % 6 != 3 {
                continue;
            }
            let all = Tensors { file: &file, problem, device: device.clone().autodiff() };
            let first = if golden.first == "zeros" { FirstFrames::Zeros } else { FirstFrames::Replicate };
            let pad = golden.plane_padding;
            let options = CausalConv3dOptions::new()
                .with_depth_stride(golden.depth_stride)
                .with_plane_padding(pad)
                .with_plane_mode(mode(&golden.plane_mode))
                .with_first(first);
            let what = format!("causal_conv3d {problem} on {on}");
            let whole = [golden.chunks.iter().sum()];
            if !quick {
                all.check_op::<5>(&format!("{what} whole"), true, |x, w, b| {
                    in_pieces(x, &w, b.as_ref(), options, &whole).0
                });
            }
            all.check_op::<5>(&format!("{what} in pieces"), true, |x, w, b| {
                in_pieces(x, &w, b.as_ref(), options, &golden.chunks).0
            });
            // The golden cache holds the plane's padding too.
            let [_, _, kept, h, w] = all.tensor::<5>("cache").dims();
            let want = all.tensor::<5>("cache").narrow(3, pad, h - 2 * pad).narrow(4, pad, w - 2 * pad);
            for pieces in [&whole[..], &golden.chunks] {
                let (_, cache) = in_pieces(all.tensor("x"), &all.tensor("w"), None, options, pieces);
                assert_eq!(cache.dims()[2], kept, "{what}");
                let same = values(cache) == values(want.clone());
                assert!(same, "{what}: the cache after {pieces:?}");
            }
        }
    }
}

/// Whatever the pieces, integers come out as from the whole clip; with a depth stride, dilation and groups.
#[test]
fn pieces_of_any_lengths_give_the_whole_clip() {
    let base = CausalConv3dOptions::new().with_plane_padding(1);
    let cases = [
        ([3, 4, 3, 3, 3], base.with_activation(Activation::Relu), &[1, 1, 5][..]),
        (
            [6, 2, 3, 1, 2],
            base.with_groups(2).with_dilation([2, 1, 1]).with_first(FirstFrames::Replicate),
            &[2, 5],
        ),
        ([3, 4, 3, 3, 3], base.with_depth_stride(2).with_plane_mode(PaddingMode::Reflect), &[1, 4, 2]),
        ([3, 4, 2, 2, 2], base.with_depth_stride(2).with_stride(2), &[3, 2, 2]),
        ([3, 4, 1, 3, 3], base.with_plane_mode(PaddingMode::Circular), &[3, 4]),
    ];
    for (on, device) in devices() {
        for (index, (shape, options, pieces)) in cases.into_iter().enumerate() {
            let integers = |seed: u64, shape: [usize; 5]| (normal(seed, shape, &device) * 2.0).round();
            let (x, weight) = (integers(1, [2, 4, 7, 5, 4]), integers(2, shape));
            let whole = in_pieces(x.clone(), &weight, None, options, &[7]);
            let parts = in_pieces(x, &weight, None, options, pieces);
            assert!(values(whole.0) == values(parts.0), "case {index} on {on}");
            assert!(values(whole.1) == values(parts.1), "case {index} on {on}: the cache");
        }
    }
}

/// The plan does not depend on the number of frames: pieces have the bits of the whole clip. (The CPU
/// backend's sums are Burn's own.)
#[test]
fn pieces_have_the_bits_of_the_whole_clip() {
    let device = crate::support::gpu();
    let options = CausalConv3dOptions::new().with_plane_padding(1).with_activation(Activation::Silu);
    for (shape, options, pieces) in [
        ([5, 24, 3, 3, 3], options, &[1, 1, 5][..]),
        ([17, 24, 3, 3, 3], options.with_first(FirstFrames::Replicate), &[3, 4]),
        ([17, 24, 3, 1, 1], options.with_plane_padding(0), &[2, 2, 3]),
    ] {
        let (x, weight) = (normal(1, [2, 24, 7, 5, 8], &device), normal(2, shape, &device));
        let bias = normal(3, [shape[0]], &device);
        let whole = in_pieces(x.clone(), &weight, Some(&bias), options, &[7]);
        let parts = in_pieces(x, &weight, Some(&bias), options, pieces);
        assert!(values(whole.0) == values(parts.0), "{shape:?} in {pieces:?}");
    }
}

/// Winograd, where it is faster, is decided for one frame as well: pieces have the bits of the whole clip,
/// which are not those of the gathered GEMM.
#[test]
fn pieces_by_winograd_have_the_bits_of_the_whole_clip() {
    let device = crate::support::gpu();
    let options = CausalConv3dOptions::new().with_plane_padding(1);
    let (x, weight) = (normal(1, [1, 128, 2, 96, 96], &device), normal(2, [128, 128, 3, 3, 3], &device));
    let y = |options, pieces: &[usize]| values(in_pieces(x.clone(), &weight, None, options, pieces).0);
    for first in [FirstFrames::Zeros, FirstFrames::Replicate] {
        let options = options.with_first(first);
        let whole = y(options, &[2]);
        assert!(whole == y(options, &[1, 1]), "{first:?}");
        let gathered = y(options.with_algorithm(Algorithm::NoWinograd), &[2]);
        assert!(whole != gathered, "{first:?}: Winograd was not taken");
    }
}

/// A cache is read like frames joined before x, also as a view, and its gradient is theirs.
#[test]
fn a_cache_is_read_like_joined_frames() {
    let base = CausalConv3dOptions::new().with_plane_padding(1);
    let cases = [
        (base, 1),
        (base.with_activation(Activation::Relu).with_plane_mode(PaddingMode::Reflect), 1),
        (base.with_activation(Activation::Silu), 2),
    ];
    for (on, device) in devices() {
        for (index, (options, groups)) in cases.into_iter().enumerate() {
            let options = options.with_groups(groups);
            let device = device.clone().autodiff();
            let integers = |seed: u64, shape: [usize; 5]| (normal(seed, shape, &device) * 2.0).round();
            let weight = integers(2, [6, 4 / groups, 3, 3, 3]).require_grad();
            let bias = normal(3, [6], &device).round().require_grad();
            let [cache, x] =
                [2, 3].map(|frames| integers(frames as u64, [2, 4, frames, 5, 4]).require_grad());
            // Channels are adjacent in memory: images are not evenly spaced.
            let view = cache.clone().permute([0, 2, 3, 4, 1]).mul_scalar(1.0).permute([0, 4, 1, 2, 3]);
            let dy = integers(5, [2, 6, 3, 5, 4]);
            let gradients = |y: Tensor<5>| {
                let grads = (y.clone() * dy.clone()).sum().backward();
                let five = [&x, &cache, &weight].map(|input| values(input.grad(&grads).expect("tracked")));
                (values(y.inner()), five, values(bias.grad(&grads).expect("tracked")))
            };
            let all = (weight.clone(), Some(bias.clone()));
            let (y, _) = causal_conv3d(x.clone(), all.0.clone(), all.1.clone(), Some(view), options);
            let got = gradients(y);
            let plane = [(0, 0), (1, 1), (1, 1)];
            let joined = Conv3dOptions::new()
                .with_padding(plane)
                .with_padding_modes([PaddingMode::Zeros, options.plane_mode[0], options.plane_mode[1]])
                .with_groups(groups)
                .with_activation(options.activation);
            let want =
                gradients(conv3d(Tensor::cat(vec![cache.clone(), x.clone()], 2), all.0, all.1, joined));
            let what = format!("case {index} on {on}");
            if options.activation == Activation::Silu {
                assert_close(&what, &got.0, &want.0, 1e-5);
                (0..3).for_each(|input| assert_close(&what, &got.1[input], &want.1[input], 1e-4));
                assert_close(&what, &got.2, &want.2, 1e-4);
            } else {
                assert!(got == want, "{what}");
            }
        }
    }
}

/// Wan's downsampling: one frame is kept, pieces of four frames give two.
#[test]
fn a_depth_stride_continues_from_one_cached_frame() {
    for (on, device) in devices() {
        let (x, weight) = (normal(3, [1, 2, 9, 2, 2], &device), normal(4, [2, 2, 3, 1, 1], &device));
        let options = CausalConv3dOptions::new().with_depth_stride(2);
        let mut cache = x.clone().narrow(2, 0, 1);
        let mut parts = Vec::new();
        for at in [1, 5] {
            let (y, next) =
                causal_conv3d(x.clone().narrow(2, at, 4), weight.clone(), None, Some(cache), options);
            assert_eq!((y.dims()[2], next.dims()[2]), (2, 1), "{on}");
            cache = next;
            parts.push(y);
        }
        let (whole, _) = causal_conv3d(x, weight, None, None, options);
        let whole = values(whole.narrow(2, 1, 4));
        crate::support::assert_close(on, &values(Tensor::cat(parts, 2)), &whole, 1e-6);
    }
}

#[test]
fn the_module_streams_and_has_a_record() {
    for (_, device) in devices() {
        let config = CausalConv3dConfig::new([2, 3], [3, 3, 3])
            .with_plane_padding(1)
            .with_first(FirstFrames::Replicate)
            .with_plane_modes([PaddingMode::Circular, PaddingMode::Reflect])
            .with_activation(Activation::Silu);
        let text = config.to_string();
        let read = |text: &str| serde_json::from_str::<CausalConv3dConfig>(text);
        // One name for both axes, as in files of earlier versions.
        let name = |modes: &str| {
            let mut value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            value["plane_mode"] = serde_json::from_str(modes).expect("JSON");
            value.to_string()
        };
        let both = read(&name("\"Circular\"")).expect("one name").plane_mode;
        assert_eq!(both, [PaddingMode::Circular; 2]);
        let error = read(&name("[\"Circular\"]")).expect_err("one of two").to_string();
        assert!(error.starts_with("invalid length 1, expected one padding mode, or 2"), "{error}");
        let read = read(&text).expect("its own text");
        assert_eq!(
            (read.plane_padding, read.first, read.plane_mode),
            ([(1, 1); 2], config.first, config.plane_mode)
        );
        let conv = read.init(&device);
        let x = normal(5, [1, 2, 5, 4, 4], &device);
        let mut cache = None;
        let parts = [(0, 1), (1, 4)]
            .map(|(at, frames)| conv.forward_streaming(x.clone().narrow(2, at, frames), &mut cache));
        let got = values(Tensor::cat(parts.to_vec(), 2));
        crate::support::assert_close("module", &got, &values(conv.forward(x)), 1e-6);
        assert!(format!("{conv}").contains("plane_mode: [Circular, Reflect]"), "{conv}");
    }
}

#[test]
fn bad_calls_are_refused_in_one_sentence() {
    let device = Device::flex();
    let zeros = |shape: [usize; 5]| Tensor::<5>::zeros(shape, &device);
    let refused = |x, weight, cache: Option<[usize; 5]>, options| {
        let cache = cache.map(zeros);
        try_causal_conv3d(zeros(x), zeros(weight), None, cache, options).expect_err("a refusal").to_string()
    };
    let new = CausalConv3dOptions::new();
    assert_eq!(
        refused([1, 4, 2, 5, 5], [6, 4, 3, 3, 3], Some([1, 4, 3, 5, 5]), new),
        "causal_conv3d: the cache is [1, 4, 3, 5, 5], with x [1, 4, 2, 5, 5], KD 3, depth dilation 1 and depth \
         stride 1 it must be [1, 4, 2, 5, 5]"
    );
    assert_eq!(
        refused([1, 4, 2, 5, 5], [6, 4, 3, 3, 3], Some([1, 4, 0, 5, 5]), new.with_depth_stride(2)),
        "causal_conv3d: the cache is [1, 4, 0, 5, 5], with x [1, 4, 2, 5, 5], KD 3, depth dilation 1 and depth \
         stride 2 it must be [1, 4, 1 to 2, 5, 5]"
    );
    assert_eq!(
        refused([1, 4, 1, 5, 5], [6, 4, 3, 3, 3], Some([1, 4, 1, 5, 5]), new.with_depth_stride(2)),
        "causal_conv3d: 1 frames of the cache and 1 of x hold no window of 3 frames"
    );
    assert_eq!(
        refused([1, 4, 3, 5, 5], [6, 4, 1, 3, 3], None, new.with_depth_stride(2)),
        "causal_conv3d: with 3 frames of x the next window begins 1 frames behind them, with depth stride 2 and \
         windows of 1 frames their number must keep that distance at 0"
    );
    assert_eq!(
        refused([1, 4, 0, 5, 5], [6, 4, 1, 3, 3], None, new),
        "causal_conv3d: depth stride 1, depth dilation 1, KD 1 and x's 0 frames must not be 0"
    );
    assert_eq!(
        refused([1, 4, 2, 5, 5], [6, 3, 3, 3, 3], None, new),
        "causal_conv3d (as conv3d of the cache and x): the weight expects 3 channels per group, the input has 4 \
         channels in 1 groups (4 per group)"
    );
    let cache = Some(zeros([1, 4, 2, 5, 5]).cast(DType::F16));
    let error = try_causal_conv3d(zeros([1, 4, 2, 5, 5]), zeros([6, 4, 3, 3, 3]), None, cache, new);
    assert_eq!(
        error.expect_err("two dtypes").to_string(),
        "causal_conv3d: x is f32 and the cache is f16, they must have one dtype"
    );
    let cache = Some(upload(&[0.0; 8], [1, 1, 2, 2, 2], &crate::support::gpu()));
    let error = try_causal_conv3d(zeros([1, 1, 2, 2, 2]), zeros([1, 1, 3, 1, 1]), None, cache, new);
    let error = error.expect_err("two devices").to_string();
    assert!(
        error.starts_with("causal_conv3d: x is on ") && error.contains(" and the cache is on "),
        "{error}"
    );
}
