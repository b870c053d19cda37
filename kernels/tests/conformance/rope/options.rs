//! Prefix tokens, partial rotation, positions of a grid and between its places, queries and keys together, in
//! place.

use super::{random_tokens, upload_positions};
use crate::support::{Buffer, client, output, read_all, upload};
use conv_cases::fill;
use conv_kernels::rope::{
    Positions, RopeAngles, RopeGrid, RopeLayout, RopePairs, RopeProblem, RopeVolume, Rotation, reference,
    rotate_all,
};
use conv_kernels::tolerance::{Expected, Guard};
use conv_kernels::{FloatType, IndexType, Limits};
use cubecl::prelude::*;

fn problem(layout: RopeLayout, [b, h, n, d]: [usize; 4], dtype: FloatType) -> RopeProblem {
    let shape = if layout == RopeLayout::Bhnd { [b, h, n, d] } else { [b, n, h, d] };
    RopeProblem::rope2d(shape, layout, 100.0, 1.0, dtype).expect("sound shapes")
}

fn turn(client: &Client, rotations: &[Rotation], inverse: bool) {
    rotate_all(client, &Limits::of(client), rotations, inverse).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn prefixes_partial_rotations_and_grids_match_the_reference() {
    let client = client();
    let mut cases = 0;
    for layout in [RopeLayout::Bhnd, RopeLayout::Bnhd] {
        let heads = [(1, 4, 4), (3, 16, 16), (5, 32, 16), (4, 24, 8), (6, 64, 32), (2, 12, 4)];
        // Cells and heads of several threadgroups, and threads that have neither.
        let more = [(13, 64, 64), (30, 32, 16), (37, 12, 8)];
        for (heads, d, rotated) in heads.into_iter().chain(more) {
            for (prefix, rows, columns, first) in [(0, 3, 4, 0), (1, 2, 2, 1), (5, 4, 3, 1), (2, 1, 7, -3)] {
                cases += 1;
                let dtype = if cases % 3 == 0 { FloatType::F16 } else { FloatType::F32 };
                let tokens = prefix + rows * columns;
                let problem = problem(layout, [2, heads, tokens, d], dtype)
                    .with_rotated(rotated)
                    .and_then(|problem| problem.with_prefix(prefix))
                    .expect("sound options");
                let grid = RopeGrid { rows, columns, first };
                let positions = reference::grid_positions(&problem, grid);
                let indices = upload_positions(&client, &problem, &positions, IndexType::I32);
                let tokens = random_tokens(&client, &problem);
                let values = tokens.values();
                for inverse in [false, true] {
                    let outs = [(); 2].map(|()| output(&client, &problem.tokens_shape(), dtype));
                    let limits = Limits::of(&client);
                    // The second launch has NVIDIA's structure: first heads in flight across the barrier.
                    let launches =
                        [(Positions::Grid(grid), limits.unroll), (Positions::Index(&indices), true)];
                    for ((positions, unroll), out) in launches.into_iter().zip(&outs) {
                        let (tokens, out) = (tokens.operand(), out.operand());
                        let rotations = [Rotation { problem, tokens, positions, out }];
                        rotate_all(&client, &Limits { unroll, ..limits.clone() }, &rotations, inverse)
                            .unwrap_or_else(|error| panic!("{problem:?}: {error}"));
                    }
                    let got = read_all(&client, &[&outs[0], &outs[1]]);
                    assert_eq!(got[0], got[1], "{problem:?}: the grid's positions");
                    let want = reference::rotate(&problem, &values, &positions, inverse);
                    let magnitudes = reference::magnitude(&problem, &values);
                    let expected =
                        Expected { values: &want, magnitudes: &magnitudes, terms: 2, dtype, slope: 1.0 };
                    expected
                        .check(&got[0], Some(Guard::SUM.stored_as(dtype)))
                        .unwrap_or_else(|error| panic!("{problem:?} inverse {inverse}: {error}"));
                }
            }
        }
    }
    println!("{cases} cases");
    assert!(cases >= 48);
}

#[test]
fn positions_between_integers_are_interpolated() {
    let client = client();
    let problem = problem(RopeLayout::Bhnd, [1, 2, 40, 32], FloatType::F32);
    let mut positions: Vec<f32> = fill::normal(4, 80).into_iter().map(|value| 37.0 * value).collect();
    let edges = [0.0, -0.0, 0.5, -0.5, 1.0 / 4096.0, -1.0 / 4096.0, 2047.75, 123_456.5, f32::NAN, 3e9];
    positions[..edges.len()].copy_from_slice(&edges);
    let on_device = upload(&client, &positions, &problem.positions_shape(), FloatType::F32);
    let tokens = random_tokens(&client, &problem);
    let out = output(&client, &problem.tokens_shape(), FloatType::F32);
    let positions_of = Positions::Float(on_device.operand());
    let rotation =
        Rotation { problem, tokens: tokens.operand(), positions: positions_of, out: out.operand() };
    turn(&client, &[rotation], false);
    let values = tokens.values();
    let wide: Vec<f64> = positions.iter().map(|position| f64::from(*position)).collect();
    let want = reference::rotate_at(&problem, &values, &wide, false);
    let magnitudes = reference::magnitude(&problem, &values);
    for (index, got) in out.read(&client).into_iter().enumerate() {
        let position = wide[index / 32 % 40 * 2 + index % 32 / 16];
        if position.is_nan() || position > 2147483647.0 {
            assert!(got.is_nan(), "element {index} at {position}: {got}");
            continue;
        }
        let error = (got - want[index]).abs();
        assert!(
            error <= 5e-7 * magnitudes[index],
            "element {index} at {position}: {got}, reference {}",
            want[index]
        );
    }
}

/// Two tensors in one launch and a result in the tokens' own memory change no bit.
#[test]
fn queries_and_keys_turn_together_and_in_place() {
    let client = client();
    for (dtype, d) in [(FloatType::F32, 32), (FloatType::F16, 32), (FloatType::F32, 12)] {
        let q = problem(RopeLayout::Bhnd, [2, 5, 9, d], dtype);
        let k = problem(RopeLayout::Bnhd, [1, 3, 4, d], dtype);
        let of = |problem: &RopeProblem, seed: i64| {
            let count = problem.batch * problem.tokens * 2;
            let positions: Vec<i64> = (0..count as i64).map(|i| (i * seed) % 23 - 5).collect();
            upload_positions(&client, problem, &positions, IndexType::I32)
        };
        let (q_positions, k_positions) = (of(&q, 7), of(&k, 11));
        let run = |together: bool, in_place: bool| {
            let tokens = [random_tokens(&client, &q), random_tokens(&client, &k)];
            let apart = [&q, &k].map(|problem| output(&client, &problem.tokens_shape(), dtype));
            let outs = if in_place { &tokens } else { &apart };
            let rotation = |problem: RopeProblem, place: usize| Rotation {
                problem,
                tokens: tokens[place].operand(),
                positions: Positions::Index([&q_positions, &k_positions][place]),
                out: outs[place].operand(),
            };
            let both = [rotation(q, 0), rotation(k, 1)];
            if together {
                turn(&client, &both, false);
            } else {
                both.iter().for_each(|each| turn(&client, &[*each], false));
            }
            let outs: Vec<&Buffer> = outs.iter().collect();
            read_all(&client, &outs)
        };
        let want = run(false, false);
        assert_eq!(run(true, false), want, "together {}", dtype.name());
        assert_eq!(run(true, true), want, "in place {}", dtype.name());
    }
}

/// Queries and keys in one launch, forward and backward, 1,000 times (few times on a software device in the
/// quick tier).
#[test]
fn repeated_rotations_give_equal_bits() {
    let client = client();
    let limits = Limits::of(&client);
    let shapes = [(FloatType::F32, 32), (FloatType::F16, 32), (FloatType::F32, 12), (FloatType::F16, 20)];
    let shapes = shapes.into_iter().filter(|(dtype, _)| limits.dtypes.contains(dtype));
    for ((dtype, d), inverse) in shapes.flat_map(|shape| [(shape, false), (shape, true)]) {
        let problem = problem(RopeLayout::Bhnd, [2, 5, 33, d], dtype);
        let tokens = random_tokens(&client, &problem);
        let grid = Positions::Grid(RopeGrid { rows: 3, columns: 11, first: -4 });
        let mut first = None;
        let mut left = crate::device::repeats(&limits, 25);
        while left > 0 {
            let count = left.min(50);
            left -= count;
            let outs: Vec<_> =
                (0..2 * count).map(|_| output(&client, &problem.tokens_shape(), dtype)).collect();
            for pair in outs.chunks(2) {
                let both = [0, 1].map(|place| Rotation {
                    problem,
                    tokens: tokens.operand(),
                    positions: grid,
                    out: pair[place].operand(),
                });
                turn(&client, &both, inverse);
            }
            let outs: Vec<&Buffer> = outs.iter().collect();
            for got in read_all(&client, &outs) {
                let got: Vec<u64> = got.into_iter().map(f64::to_bits).collect();
                let first = first.get_or_insert_with(|| got.clone());
                assert!(got == *first, "{} {d} {inverse}: a repeated rotation differs", dtype.name());
            }
        }
    }
}

/// Devices that hold few threads give each of them further heads: the angles, and so the bits, are the same.
#[test]
fn rounds_give_the_bits_of_one_round() {
    let client = client();
    let many = Limits { cubes_in_flight: 1 << 20, ..Limits::of(&client) };
    let few = Limits { cubes_in_flight: 1, ..many.clone() };
    for &dtype in &many.dtypes {
        for heads in [1, 2, 5, 8, 13, 30] {
            let problem = problem(RopeLayout::Bhnd, [2, heads, 67, 32], dtype);
            let tokens = random_tokens(&client, &problem);
            let outs = [&many, &few].map(|limits| {
                let out = output(&client, &problem.tokens_shape(), dtype);
                let positions = Positions::Grid(RopeGrid { rows: 1, columns: 67, first: 3 });
                let rotation = Rotation { problem, tokens: tokens.operand(), positions, out: out.operand() };
                rotate_all(&client, limits, &[rotation], false).unwrap_or_else(|error| panic!("{error}"));
                out
            });
            let outs: Vec<&Buffer> = outs.iter().collect();
            let results = read_all(&client, &outs);
            assert!(results[0] == results[1], "{} {heads} heads", dtype.name());
        }
    }
}

#[test]
fn every_source_turns_one_tensor_and_two() {
    let client = client();
    for d in [16, 12] {
        check_sources((&client, &Limits::of(&client)), FloatType::F32, RopeAngles::rope2d(100.0, 1.0), d);
    }
    let neighbours = RopeAngles { pairs: RopePairs::Neighbours, ..RopeAngles::rope2d(100.0, 1.0) };
    check_sources((&client, &Limits::of(&client)), FloatType::F32, neighbours, 16);
}

/// Every source of positions along two axes, for one tensor and for two at once.
pub(crate) fn check_sources(
    (client, limits): (&Client, &Limits),
    dtype: FloatType,
    angles: RopeAngles,
    d: usize,
) {
    let sound = RopeProblem::new([1, 3, 6, d], RopeLayout::Bhnd, angles, dtype).expect("sound");
    let grid = RopeGrid { rows: 2, columns: 3, first: -1 };
    let whole = reference::grid_positions(&sound, grid);
    let line = reference::line_positions(&sound, 9);
    let halves: Vec<f32> = whole.iter().map(|position| *position as f32 / 2.0).collect();
    let [narrow, wide] = IndexType::ALL.map(|index| upload_positions(client, &sound, &whole, index));
    let floats = upload(client, &halves, &sound.positions_shape(), FloatType::F32);
    let sources = [
        (Positions::Index(&narrow), &whole, 1.0),
        (Positions::Index(&wide), &whole, 1.0),
        (Positions::Grid(grid), &whole, 1.0),
        (Positions::Float(floats.operand()), &whole, 0.5),
        (Positions::Offset(9), &line, 1.0),
    ];
    let served = |place: usize| place != 1 || IndexType::I64.served_by(client);
    for (place, (positions, at, factor)) in
        sources.into_iter().enumerate().filter(|(place, _)| served(*place))
    {
        let tokens = random_tokens(client, &sound);
        let values = tokens.values();
        let at: Vec<f64> = at.iter().map(|position| *position as f64 * factor).collect();
        let want = reference::rotate_at(&sound, &values, &at, true);
        let magnitudes = reference::magnitude(&sound, &values);
        let expected = Expected { values: &want, magnitudes: &magnitudes, terms: 2, dtype, slope: 1.0 };
        for count in [1, 2] {
            let outs = [(); 2].map(|()| output(client, &sound.tokens_shape(), dtype));
            let rotations: Vec<Rotation> = outs[..count]
                .iter()
                .map(|out| Rotation {
                    problem: sound,
                    tokens: tokens.operand(),
                    positions,
                    out: out.operand(),
                })
                .collect();
            rotate_all(client, limits, &rotations, true).unwrap_or_else(|error| panic!("{error}"));
            for out in &outs[..count] {
                expected
                    .check(&out.read(client), None)
                    .unwrap_or_else(|error| panic!("{angles:?} d {d} source {place} of {count}: {error}"));
            }
        }
    }
}

#[test]
fn bad_options_are_refused() {
    let client = client();
    let sound = problem(RopeLayout::Bhnd, [1, 2, 6, 8], FloatType::F32);
    let tokens = random_tokens(&client, &sound);
    let floats = upload(&client, &[0.0; 6], &[1, 3, 2], FloatType::F32);
    let halves = upload(&client, &[0.0; 12], &[1, 6, 2], FloatType::F16);
    let with = |positions: Positions| {
        let rotation =
            Rotation { problem: sound, tokens: tokens.operand(), positions, out: tokens.operand() };
        rotate_all(&client, &Limits::of(&client), &[rotation], false).expect_err("a refusal").to_string()
    };
    let of_five = random_tokens(&client, &problem(RopeLayout::Bhnd, [1, 2, 5, 8], FloatType::F32));
    let few = Rotation {
        problem: sound,
        tokens: of_five.operand(),
        positions: Positions::Offset(0),
        out: tokens.operand(),
    };
    let few = rotate_all(&client, &Limits::of(&client), &[few], false).expect_err("a refusal").to_string();
    let rows = [
        (
            sound.with_rotated(6).expect_err("a refusal").to_string(),
            "rope: 6 rotated elements of a head of 8, expected a positive multiple of 4 \
             and no more than the head has",
        ),
        (
            sound.with_prefix(7).expect_err("a refusal").to_string(),
            "rope: the prefix is 7 tokens, there are only 6",
        ),
        (
            with(Positions::Grid(RopeGrid { rows: 2, columns: 2, first: 0 })),
            "rope: a grid of 2 x 2 patches after 0 other tokens was given for 6 tokens",
        ),
        (
            with(Positions::Grid(RopeGrid { rows: 2, columns: 3, first: i32::MAX - 1 })),
            "rope: a grid of 2 x 3 patches from position 2147483646 on ends at 2147483648, the last position is 2147483647",
        ),
        (
            with(Positions::Volume(RopeVolume { frames: 1, rows: 2, columns: 3, first: [0; 3] })),
            "rope: a grid of 1 x 2 x 3 patches has 3 axes, the angles have 2",
        ),
        (
            with(Positions::Offset(i32::MAX - 4)),
            "rope: 6 tokens from position 2147483643 on end at 2147483648, the last position is 2147483647",
        ),
        (
            with(Positions::Float(floats.operand())),
            "rope: the positions have shape [1, 3, 2], tokens [1, 2, 6, 8] need [1, 6, 2] (batch, tokens, axes)",
        ),
        (
            with(Positions::Float(halves.operand())),
            "rope: the position tensor is f16, fractional positions must be f32",
        ),
        (few, "rope: the token tensor has shape [1, 2, 5, 8], the problem needs [1, 2, 6, 8]"),
    ];
    for (error, expected) in rows {
        assert_eq!(error, expected);
    }
}
