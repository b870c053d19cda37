//! RoPE of published models against the f64 reference, forward and backward, one tensor and two; positions of
//! every kind; modules and sentences. `rope2d.rs` has the case of rows and columns.

use crate::support::{check, devices, int_upload, normal, upload, values};
use burn::config::Config;
use burn::tensor::{Device, Int, Tensor};
use burn_conv_ops::nn::RopeConfig;
use burn_conv_ops::{
    RopeAxes, RopeGrid, RopeLayout, RopeOptions, RopePairs, RopePositions, RopeScaling, RopeVolume, rope,
    rope_qk, try_rope,
};
use conv_kernels::FloatType;
use conv_kernels::rope::{RopeAngles, RopeProblem, reference};
use conv_kernels::tolerance::Expected;

fn models() -> Vec<(&'static str, usize, RopeOptions)> {
    let of_axes = |axes, pairs| RopeOptions::new().with_axes(axes).with_pairs(pairs);
    vec![
        ("llama", 16, RopeOptions::llama()),
        ("llama, linear", 16, RopeOptions::llama().with_base(5e5).with_scaling(RopeScaling::Linear(4.0))),
        ("llama, NTK", 16, RopeOptions::llama().with_scaling(RopeScaling::Ntk(4.0))),
        ("gpt_j", 68, RopeOptions::gpt_j()),
        ("gpt_j, part", 20, RopeOptions::gpt_j().with_rotated(8)),
        ("croco", 16, RopeOptions::croco()),
        ("qwen2_vl", 32, RopeOptions::qwen2_vl([4, 6, 6])),
        ("qwen3_vl", 32, RopeOptions::qwen3_vl([6, 5, 5]).with_layout(RopeLayout::Bnhd)),
        ("wan", 32, RopeOptions::wan(32).with_prefix(1)),
        ("hunyuan_video", 48, RopeOptions::hunyuan_video([8, 20, 20])),
        ("cog_video_x", 16, RopeOptions::cog_video_x(16)),
        ("thirds", 36, of_axes(RopeAxes::Even(3), RopePairs::HalvesOfAxes).with_base([10.0, 100.0, 1e3])),
    ]
}

fn problem(shape: [usize; 4], options: &RopeOptions) -> RopeProblem {
    let RopeOptions { axes, pairs, base, f0, scaling, .. } = *options;
    let angles = RopeAngles { axes, pairs, base, f0, scaling };
    let problem = RopeProblem::new(shape, options.layout, angles, FloatType::F32);
    let problem = problem.and_then(|problem| problem.with_prefix(options.prefix));
    let problem = problem.and_then(|problem| match options.rotated {
        Some(rotated) => problem.with_rotated(rotated),
        None => Ok(problem),
    });
    problem.unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn models_turn_as_the_reference_says_on_every_device() {
    for (on, device) in devices() {
        let device = device.autodiff();
        for (name, d, options) in models() {
            let (b, h, n) = (2, 3, 4);
            let shape = if options.layout == RopeLayout::Bhnd { [b, h, n, d] } else { [b, n, h, d] };
            let problem = problem(shape, &options);
            let axes = problem.angles.count();
            let positions: Vec<i64> = (0..(b * n * axes) as i64).map(|i| i * 37 % 101 - 20).collect();
            let at = int_upload(&positions, [b, n, axes], &device);
            let x = normal(1, shape, &device).require_grad();
            let y = rope(x.clone(), at.clone(), options);
            let grads = (y.clone() * normal(2, shape, &device)).sum().backward();
            let (q, k) =
                rope_qk(normal(1, shape, &device), normal(2, shape, &device), at.clone(), at, options);
            let cpu = Device::flex();
            let (x64, dy64) = (values(normal(1, shape, &cpu)), values(normal(2, shape, &cpu)));
            for (what, got, from, inverse) in [
                ("y", values(y.inner()), &x64, false),
                ("dx", values(x.grad(&grads).expect("x is tracked")), &dy64, true),
                ("q", values(q.inner()), &x64, false),
                ("k", values(k.inner()), &dy64, false),
            ] {
                let expected = Expected {
                    values: &reference::rotate(&problem, from, &positions, inverse),
                    magnitudes: &reference::magnitude(&problem, from),
                    terms: 4,
                    dtype: FloatType::F32,
                    slope: 1.0,
                };
                check(&format!("{on} {what} {name}"), &expected, &got);
            }
        }
    }
}

/// A prompt and decoding steps behind it are the whole sequence; grids equal the positions of their patches.
#[test]
fn offsets_and_volumes_are_the_positions_they_stand_for() {
    for (on, device) in devices() {
        let x = normal(1, [1, 2, 6, 16], &device);
        let part = |from: usize, to: usize| x.clone().slice([0..1, 0..2, from..to, 0..16]);
        for options in [RopeOptions::llama(), RopeOptions::gpt_j().with_rotated(8)] {
            let whole = values(rope(x.clone(), 1_000_000, options));
            let parts = vec![
                rope(part(0, 4), 1_000_000, options),
                rope(part(4, 5), 1_000_004, options),
                rope(part(5, 6), 1_000_005, options),
            ];
            assert_eq!(values(Tensor::cat(parts, 2)), whole, "{on}");
            let at = Tensor::<1, Int>::arange(1_000_000..1_000_006, &device).unsqueeze::<2>();
            assert_eq!(values(rope(x.clone(), at, options)), whole, "{on}");
        }
        let options = RopeOptions::wan(16);
        let places: Vec<i64> =
            (0..3).flat_map(|frame| (0..2).flat_map(move |column| [frame + 7, 0, column - 1])).collect();
        let volume = RopeVolume { frames: 3, rows: 1, columns: 2, first: [7, 0, -1] };
        let want = values(rope(x.clone(), int_upload(&places, [1, 6, 3], &device), options));
        assert_eq!(values(rope(x.clone(), volume, options)), want, "{on}");
        let module = RopeConfig::wan(16).init();
        assert_eq!(values(module.forward(x.clone(), volume)), want, "{on}");
        let (q, k) = module.forward_qk(x.clone(), x.clone(), volume, volume);
        assert_eq!((values(q), values(k)), (want.clone(), want), "{on}");
    }
}

/// Numbers up to 2^20 with a large factor.
#[test]
fn far_numbers_turn_by_their_angles() {
    let at = [1_048_575.9f32, -524_288.3, 1e-3, 77.77, 1e6];
    let wide: Vec<f64> = at.iter().map(|position| f64::from(*position)).collect();
    let options = RopeOptions::llama().with_f0(1000.0);
    let problem = problem([1, 1, 5, 32], &options);
    for (on, device) in devices() {
        let got = values(rope(normal(1, [1, 1, 5, 32], &device), upload(&at, [1, 5], &device), options));
        let x = values(normal(1, [1, 1, 5, 32], &Device::flex()));
        let want = reference::rotate_at(&problem, &x, &wide, false);
        crate::support::assert_close(on, &got, &want, 1e-6);
    }
}

#[test]
fn configurations_are_read_back_and_name_their_model() {
    let config = RopeConfig::qwen2_vl([16, 24, 24]).with_base(5e5).with_scaling(RopeScaling::Ntk(2.0));
    let read = RopeConfig::load_binary(config.to_string().as_bytes()).expect("its own text");
    assert_eq!(read.init().options, config.init().options);
    assert_eq!(RopeConfig::new(RopeOptions::llama()).init().options, RopeConfig::llama().init().options);
    let (axes, pairs) = (RopeAxes::Even(3), RopePairs::Neighbours);
    let config = RopeConfig::llama().with_axes(axes).with_pairs(pairs).with_rotated(12);
    let options = RopeOptions::llama().with_axes(axes).with_pairs(pairs).with_rotated(12);
    assert_eq!(config.init().options, options);
    assert_eq!(RopeOptions::wan(128).axes, RopeAxes::Dims([44, 42, 42]));
    assert_eq!(RopeOptions::wan(64).axes, RopeAxes::Dims([24, 20, 20]));
    assert_eq!(RopeOptions::cog_video_x(64).axes, RopeAxes::Dims([16, 24, 24]));
    let hunyuan = RopeConfig::hunyuan_video([16, 56, 56]).init().options;
    assert_eq!((hunyuan.axes, hunyuan.base), (RopeAxes::Dims([16, 56, 56]), [256.0; 3]));
}

#[test]
fn rope_names_what_does_not_fit() {
    for (_, device) in devices() {
        let says = |d: usize, positions: RopePositions, options: RopeOptions| {
            try_rope(normal(1, [1, 2, 6, d], &device), positions, options).expect_err("a refusal").to_string()
        };
        let volume = RopeVolume { frames: 2, rows: 2, columns: 2, first: [0; 3] };
        let places = || int_upload(&[0; 12], [1, 6, 2], &device);
        for (got, want) in [
            (says(7, 0.into(), RopeOptions::llama()), "rope: the head dimension 7 is not a multiple of 2"),
            (
                says(8, 0.into(), RopeOptions::wan(12)),
                "rope: the axes take 12 elements of a head (Dims([4, 4, 4])), it has 8",
            ),
            (
                says(12, volume.into(), RopeOptions::wan(12)),
                "rope: a grid of 2 x 2 x 2 patches after 0 other tokens was given for 6 tokens",
            ),
            (
                says(12, RopeGrid { rows: 2, columns: 3, first: 0 }.into(), RopeOptions::wan(12)),
                "rope: a grid of 2 x 3 patches has 2 axes, the angles have 3",
            ),
            (
                says(12, places().into(), RopeOptions::wan(12)),
                "rope: the positions have shape [1, 6, 2], tokens [1, 2, 6, 12] need [1, 6, 3] (batch, tokens, axes)",
            ),
            (
                says(8, i32::MAX.into(), RopeOptions::llama()),
                "rope: 6 tokens from position 2147483647 on end at 2147483652, the last position is 2147483647",
            ),
            (
                says(8, 0.into(), RopeOptions::llama().with_scaling(RopeScaling::Linear(-2.0))),
                "rope: the scaling factor is -2, it must be positive and finite",
            ),
        ] {
            assert_eq!(got, want);
        }
    }
}
