//! Every RoPE2D case of the conformance table against the f64 reference, forward and backward, and what
//! follows from the rotation's being orthogonal.

use crate::support::{bits, check, devices, gpu, int_upload, normal, upload, values};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_conv_ops::nn::{Rope2d, Rope2dConfig};
use burn_conv_ops::{
    Rope2dOptions, Rope2dPositions, RopeGrid, RopeLayout, rope2d, rope2d_qk, try_rope2d, try_rope2d_qk,
};
use conv_cases::rope2d::{self as cases, Case};
use conv_kernels::FloatType;
use conv_kernels::rope::{RopeProblem, reference};
use conv_kernels::tolerance::Expected;

fn options(case: &Case) -> Rope2dOptions {
    let layout = if case.bnhd { RopeLayout::Bnhd } else { RopeLayout::Bhnd };
    Rope2dOptions::new().with_base(case.base).with_f0(case.f0).with_layout(layout)
}

fn shape(case: &Case) -> [usize; 4] {
    if case.bnhd { [case.b, case.n, case.h, case.d] } else { [case.b, case.h, case.n, case.d] }
}

#[test]
fn rope2d_conforms_on_every_device() {
    let mut table = cases::conformance();
    table.push(Case { name: "no_tokens".into(), n: 0, ..table[0].clone() });
    assert!(table.len() > 80, "{} cases", table.len());
    for (on, device) in devices() {
        let device = device.autodiff();
        for case in &table {
            let (shape, positions) = (shape(case), cases::positions(case));
            let Rope2dOptions { base, f0, layout, .. } = options(case);
            let problem = RopeProblem::rope2d(shape, layout, base, f0, FloatType::F32)
                .unwrap_or_else(|error| panic!("{}: {error}", case.name));
            let x = normal(1, shape, &device).require_grad();
            let at = int_upload(&positions, [case.b, case.n, 2], &device);
            let y = rope2d(x.clone(), at, options(case));
            assert_eq!(y.dims(), shape, "{on} {}", case.name);
            let grads = (y.clone() * normal(2, shape, &device)).sum().backward();
            let cpu = Device::flex();
            let (x64, dy64) = (values(normal(1, shape, &cpu)), values(normal(2, shape, &cpu)));
            for (what, got, from, inverse) in [
                ("y", values(y.inner()), &x64, false),
                ("dx", values(x.grad(&grads).expect("x is tracked")), &dy64, true),
            ] {
                // The cosine and sine carry an error of their own next to the two products.
                let expected = Expected {
                    values: &reference::rotate(&problem, from, &positions, inverse),
                    magnitudes: &reference::magnitude(&problem, from),
                    terms: 4,
                    dtype: FloatType::F32,
                    slope: 1.0,
                };
                check(&format!("{on} {what} {}", case.name), &expected, &got);
            }
        }
    }
}

#[test]
fn queries_and_keys_turn_by_their_own_positions() {
    for (on, device) in devices() {
        let (q, k) = (normal(1, [2, 3, 6, 16], &device), normal(2, [2, 3, 4, 16], &device));
        let (at_q, at_k) = (Rope2d::grid(2, 2, 3, &device), Rope2d::grid(2, 4, 1, &device));
        let rope = Rope2dConfig::new().with_base(50.0).init();
        let options = Rope2dOptions::new().with_base(50.0);
        let pair = rope2d_qk(q.clone(), k.clone(), at_q.clone(), at_k.clone(), options);
        let module = rope.forward_qk(q.clone(), k.clone(), at_q.clone(), at_k.clone());
        let (alone_q, alone_k) = (values(rope2d(q, at_q, options)), values(rope.forward(k, at_k)));
        for (got_q, got_k) in [pair, module] {
            assert_eq!(values(got_q), alone_q, "{on}");
            assert_eq!(values(got_k), alone_k, "{on}");
        }
    }
}

/// A prefix that stays and heads that are rotated in part: the same as rotating the slice, with gradients,
/// for one tensor and for a pair in one launch. Tensors that are used again keep their values.
#[test]
fn prefixes_and_the_rest_of_partly_rotated_heads_stay() {
    for (on, device) in devices() {
        let device = device.autodiff();
        let upload = |seed| normal(seed, [2, 3, 5, 16], &device).require_grad();
        let at = Rope2d::grid(2, 5, 1, &device);
        let options = Rope2dOptions::new().with_prefix(1).with_rotated(8);
        let sliced = |x: Tensor<4>| {
            let turned = rope2d(
                x.clone().slice([0..2, 0..3, 1..5, 0..8]),
                at.clone().slice([0..2, 1..5, 0..2]),
                Rope2dOptions::new(),
            );
            let tokens = Tensor::cat(vec![turned, x.clone().slice([0..2, 0..3, 1..5, 8..16])], 3);
            Tensor::cat(vec![x.slice([0..2, 0..3, 0..1, 0..16]), tokens], 2)
        };
        let weigh = |y: Tensor<4>, seed| (y * normal(seed, [2, 3, 5, 16], &device)).sum();
        let (q, k) = (upload(1), upload(2));
        let (before_q, before_k) = (values(q.clone().inner()), values(k.clone().inner()));
        let (got_q, got_k) = rope2d_qk(q.clone(), k.clone(), at.clone(), at.clone(), options);
        let (want_q, want_k) = (sliced(q.clone()), sliced(k.clone()));
        assert_eq!(values(got_q.clone().inner()), values(want_q.clone().inner()), "{on}");
        assert_eq!(values(got_k.clone().inner()), values(want_k.clone().inner()), "{on}");
        assert_eq!(
            values(rope2d(q.clone(), at.clone(), options).inner()),
            values(want_q.clone().inner()),
            "{on}"
        );
        assert_eq!((values(q.clone().inner()), values(k.clone().inner())), (before_q, before_k), "{on}");
        let got = (weigh(got_q, 3) + weigh(got_k, 4)).backward();
        let want = (weigh(want_q, 3) + weigh(want_k, 4)).backward();
        for tensor in [&q, &k] {
            let [got, want] = [&got, &want].map(|grads| values(tensor.grad(grads).expect("tracked")));
            assert_eq!(got, want, "{on}");
        }
    }
}

/// A grid is its positions in a tensor, whole fp32 numbers are the integers they are, and halves turn by half
/// of the angle: for one tensor, for two in one launch and backwards. VGGT's case: special tokens first,
/// patches counted from 1.
#[test]
fn grids_and_numbers_turn_like_the_positions_they_stand_for() {
    let grid = RopeGrid { rows: 2, columns: 3, first: 1 };
    let (b, h, d, prefix) = (2, 3, 16, 2);
    let n = prefix + 6;
    for (on, device) in devices() {
        let device = device.autodiff();
        let mut positions = vec![0i64; 2 * prefix];
        positions.extend((1..3).flat_map(|y| (1..4).flat_map(move |x| [y, x])));
        let integers = int_upload(&positions.repeat(b), [b, n, 2], &device);
        for layout in [RopeLayout::Bhnd, RopeLayout::Bnhd] {
            let rope = Rope2dConfig::new().with_layout(layout).with_prefix(prefix).init();
            let shape = if layout == RopeLayout::Bhnd { [b, h, n, d] } else { [b, n, h, d] };
            let turn = |positions: Rope2dPositions, rope: &Rope2d| {
                let x = normal(1, shape, &device).require_grad();
                let y = rope.forward(x.clone(), positions.clone());
                let grads = (y.clone() * normal(2, shape, &device)).sum().backward();
                let (q, k) = rope.forward_qk(
                    normal(1, shape, &device),
                    normal(3, shape, &device),
                    positions.clone(),
                    positions,
                );
                [y.inner(), x.grad(&grads).expect("tracked"), q.inner(), k.inner()].map(values)
            };
            let want = turn(integers.clone().into(), &rope);
            assert_ne!(want[0], values(normal(1, shape, &device)), "{on}: something turns");
            assert_eq!(turn(grid.into(), &rope), want, "{on} {layout:?}: the grid");
            let doubled = integers.clone().float() * 2.0;
            let half = Rope2dConfig::new().with_f0(0.5).with_layout(layout).with_prefix(prefix);
            for (numbers, rope) in [(integers.clone().float(), &rope), (doubled, &half.init())] {
                for (got, want) in turn(numbers.into(), rope).iter().zip(&want) {
                    crate::support::assert_close(on, got, want, 1e-6);
                }
            }
        }
    }
}

/// Positions between integers against the reference.
#[test]
fn numbers_between_integers_turn_by_angles_between() {
    let ([b, h, n, d], at) = ([1, 2, 3, 8], [0.5f32, -0.25, 3.125, 1000.75, -7.0, 0.0]);
    let problem =
        RopeProblem::rope2d([b, h, n, d], RopeLayout::Bhnd, 100.0, 1.0, FloatType::F32).expect("sound");
    for (on, device) in devices() {
        let positions = upload(&at, [b, n, 2], &device);
        let got = values(rope2d(normal(1, [b, h, n, d], &device), positions, Rope2dOptions::new()));
        let x = values(normal(1, [b, h, n, d], &Device::flex()));
        let want = reference::rotate_at(&problem, &x, &at.map(f64::from), false);
        crate::support::assert_close(on, &got, &want, 1e-6);
    }
}

#[test]
fn products_depend_on_relative_positions_only() {
    let device = gpu();
    let (q, k) = (normal(1, [1, 1, 1, 32], &device), normal(2, [1, 1, 1, 32], &device));
    let product = |q_at: [i64; 2], k_at: [i64; 2]| {
        let q = rope2d(q.clone(), int_upload(&q_at, [1, 1, 2], &device), Rope2dOptions::new());
        let k = rope2d(k.clone(), int_upload(&k_at, [1, 1, 2], &device), Rope2dOptions::new());
        values((q * k).sum())[0]
    };
    let near = product([3, 5], [1, 9]);
    assert!((near - product([43, -2], [41, 2])).abs() < 1e-4, "{near}");
    assert!((near - product([3, 5], [1, 8])).abs() > 1e-2, "{near}");
}

#[test]
fn the_origin_is_not_turned_and_norms_are_kept() {
    for (on, device) in devices() {
        let x = normal(1, [1, 2, 3, 8], &device);
        let at = int_upload(&[0, 0, 7, -3, 500, 40], [1, 3, 2], &device);
        let (before, after) = (values(x.clone()), values(rope2d(x, at, Rope2dOptions::new())));
        for (token, (before, after)) in before.chunks(8).zip(after.chunks(8)).enumerate() {
            let norm = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>().sqrt();
            assert!((norm(before) - norm(after)).abs() < 1e-5, "{on} token {token}");
            assert_eq!(before == after, token % 3 == 0, "{on} token {token}");
        }
    }
}

/// Coordinates in -1..1 with large factors, positions next to whole numbers, and those without an angle: y
/// and dx.
#[test]
fn numbers_turn_by_their_angles_whatever_the_factor() {
    let (n, d) = (64, 64);
    let mut at: Vec<f32> = (0..14).flat_map(|i| [i, 13 - i]).map(|i| (i as f32 + 0.5) / 7.0 - 1.0).collect();
    at.extend([-1e-9f32, 0.5, 0.25, 5.0, 1.0, -2.5, 0.999, -0.001, -2.9e-8, -1e-45, -3.1e-8, -0.75]);
    at.extend([f32::NAN, 0.5, f32::INFINITY, 0.25, -f32::INFINITY, 3e9, -2_147_483_904.0, 2_147_483_648.0]);
    at.extend((at.len()..2 * n).map(|i| (i as f32 * 0.618_034).fract() * 2.0 - 1.0));
    let angle = |position: f32| {
        let inside = (-2_147_483_648.0..2_147_483_648.0).contains(&position);
        if inside { f64::from(position) } else { f64::NAN }
    };
    let wide: Vec<f64> = at.iter().map(|position| angle(*position)).collect();
    for (on, device) in devices() {
        let device = device.autodiff();
        let positions = upload(&at, [1, n, 2], &device);
        for (base, f0) in [1.0, std::f32::consts::TAU, 37.0, -628.0, 1000.0]
            .map(|f0| (100.0, f0))
            .into_iter()
            .chain([(0.01, 1.0)])
        {
            let problem =
                RopeProblem::rope2d([1, 1, n, d], RopeLayout::Bhnd, base, f0, FloatType::F32).expect("sound");
            let options = Rope2dOptions::new().with_base(base).with_f0(f0);
            let x = normal(1, [1, 1, n, d], &device).require_grad();
            let y = rope2d(x.clone(), positions.clone(), options);
            let dy = normal(2, [1, 1, n, d], &device);
            let grads = (y.clone() * dy.clone()).sum().backward();
            let q = problem.rotated / 4;
            for (got, from, inverse) in [
                (values(y.inner()), values(x.clone().inner()), false),
                (values(x.grad(&grads).expect("tracked")), values(dy.inner()), true),
            ] {
                let want = reference::rotate_at(&problem, &from, &wide, inverse);
                for u in (0..from.len()).filter(|index| (index / q).is_multiple_of(2)) {
                    let position = wide[u / d * 2 + u % d / (2 * q)];
                    if position.is_nan() {
                        assert!(got[u].is_nan() && got[u + q].is_nan(), "{on} {u}: {}", got[u]);
                        continue;
                    }
                    let error = (got[u] - want[u]).hypot(got[u + q] - want[u + q]);
                    let length = from[u].hypot(from[u + q]);
                    assert!(
                        error < 1e-6 * length,
                        "{on} base {base} f0 {f0}: {error} of {length} at {position}"
                    );
                }
            }
        }
    }
}

/// i64 positions beyond i32 have no angle on any device that takes them.
#[test]
fn integers_beyond_i32_give_nan() {
    let far = 1i64 << 31;
    let at = [0, far, -far - 1, 3, far - 1, -far];
    let device = Device::flex();
    let y = values(rope2d(
        upload(&[1.0; 12], [1, 1, 3, 4], &device),
        Tensor::<3, Int>::from_data(TensorData::new(at.to_vec(), [1, 3, 2]), (&device, DType::I64)),
        Rope2dOptions::new(),
    ));
    for (index, value) in y.iter().enumerate() {
        assert_eq!(value.is_nan(), i32::try_from(at[index / 2]).is_err(), "{value} at {}", at[index / 2]);
    }
}

#[test]
fn factors_and_grids_that_no_table_serves_are_refused() {
    for (_, device) in devices() {
        let x = || normal(1, [1, 1, 2, 4], &device);
        let at = || int_upload(&[0, 0, 1, 1], [1, 2, 2], &device);
        let says = |options: Rope2dOptions, positions: Rope2dPositions| {
            try_rope2d(x(), positions, options).expect_err("a refusal").to_string()
        };
        assert_eq!(
            says(Rope2dOptions::new().with_f0(2e6), at().into()),
            "rope: f0 2000000 with base 100 rotates by up to 2000000 radians from one position \
             to the next, the limit is 1048576"
        );
        let grid = RopeGrid { rows: 1, columns: 2, first: i32::MAX };
        assert_eq!(
            says(Rope2dOptions::new(), grid.into()),
            "rope: a grid of 1 x 2 patches from position 2147483647 on ends at 2147483648, the last position is \
             2147483647"
        );
    }
}

/// Queries and keys of two checkpointing strategies are two calls.
#[test]
fn queries_and_keys_may_differ_in_their_checkpointing() {
    for (on, device) in devices() {
        let plain = device.clone().autodiff();
        let checkpointing = plain.clone().gradient_checkpointing();
        let at = |device: &Device| int_upload(&[1, 2, 3, 4], [1, 2, 2], device);
        let x = |seed, device: &Device| normal(seed, [1, 1, 2, 8], device).require_grad();
        let (q, k) = (x(1, &plain), x(2, &checkpointing));
        let (out_q, out_k) =
            try_rope2d_qk(q.clone(), k.clone(), at(&device), at(&device), Rope2dOptions::new())
                .expect("served");
        let want = [1, 2]
            .map(|seed| bits(rope2d(normal(seed, [1, 1, 2, 8], &device), at(&device), Rope2dOptions::new())));
        assert_eq!([bits(out_q.clone().inner()), bits(out_k.clone().inner())], want, "{on}");
        assert!(q.grad(&out_q.sum().backward()).is_some(), "{on}");
        assert!(k.grad(&out_k.sum().backward()).is_some(), "{on}");
    }
}

#[test]
fn a_grid_without_rows_or_batch_has_no_tokens() {
    for (on, device) in devices() {
        for ([batch, tokens], rows, columns) in [([2, 0], 0, 3), ([2, 0], 3, 0), ([0, 6], 2, 3)] {
            let grid = Rope2d::grid(batch, rows, columns, &device);
            assert_eq!(grid.dims(), [batch, tokens, 2], "{on}");
            let y = Rope2dConfig::new().init().forward(normal(1, [batch, 1, tokens, 4], &device), grid);
            assert_eq!(y.dims(), [batch, 1, tokens, 4], "{on}");
        }
    }
}
