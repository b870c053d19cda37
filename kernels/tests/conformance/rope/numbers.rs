//! fp32 positions: every one of them, with any factor and base that are accepted, against the f64 reference.

use super::random_tokens;
use crate::support::{client, output, read_all, upload};
use conv_cases::fill;
use conv_kernels::rope::{MAX_RADIANS, Positions, RopeLayout, RopeProblem, Rotation, reference, rotate_all};
use conv_kernels::{FloatType, Limits};
use cubecl::prelude::*;

/// Whether a position turns by an angle; the others give NaN.
fn turns(position: f32) -> bool {
    (-2_147_483_648.0..2_147_483_648.0).contains(&position)
}

/// Turns random tokens `[1, H, N, D]` by these positions (y, x) of N tokens, both ways; returns the largest
/// error of a pair over the pair's length.
fn worst_error(client: &Client, [heads, d]: [usize; 2], (base, f0): (f32, f32), positions: &[f32]) -> f64 {
    let n = positions.len() / 2;
    let problem =
        RopeProblem::rope2d([1, heads, n, d], RopeLayout::Bhnd, base, f0, FloatType::F32).expect("sound");
    let tokens = random_tokens(client, &problem);
    let on_device = upload(client, positions, &problem.positions_shape(), FloatType::F32);
    let outs = [false, true].map(|inverse| {
        let out = output(client, &problem.tokens_shape(), FloatType::F32);
        let positions = Positions::Float(on_device.operand());
        let rotation = Rotation { problem, tokens: tokens.operand(), positions, out: out.operand() };
        rotate_all(client, &Limits::of(client), &[rotation], inverse).expect("a launch");
        out
    });
    let values = tokens.values();
    let wide: Vec<f64> =
        positions.iter().map(|&position| if turns(position) { position.into() } else { f64::NAN }).collect();
    let q = problem.rotated / 4;
    let mut worst = 0.0f64;
    for (inverse, got) in [false, true].into_iter().zip(read_all(client, &[&outs[0], &outs[1]])) {
        let want = reference::rotate_at(&problem, &values, &wide, inverse);
        for u in (0..values.len()).filter(|index| (index / q).is_multiple_of(2)) {
            let position = wide[u / d % n * 2 + u % d / (2 * q)];
            if position.is_nan() {
                assert!(got[u].is_nan() && got[u + q].is_nan(), "element {u}: {} {}", got[u], got[u + q]);
                continue;
            }
            let error = (got[u] - want[u]).hypot(got[u + q] - want[u + q]) / values[u].hypot(values[u + q]);
            assert!(
                error < 1e-6,
                "base {base} f0 {f0} d {d} inverse {inverse}: pair {u} at {position} is off by {error:e}"
            );
            worst = worst.max(error);
        }
    }
    worst
}

/// `p - floor(p)` of a small negative number is 1 in fp32: one row behind the table. On the executed Metal
/// text an access outside stops the test.
#[test]
fn small_negative_numbers_read_inside_the_table() {
    let client = client();
    for first in [-1e-9f32, -2.9e-8, -1e-45, -3.1e-8, -0.001, -0.75, 0.999] {
        let positions = [first, 0.5, 0.25, 5.0, 1.0, -2.5, 0.999, -0.001];
        worst_error(&client, [1, 32], (100.0, 1.0), &positions);
        worst_error(&client, [1, 32], (100.0, 1.0), &[positions[1], positions[0]]);
    }
    worst_error(&client, [1, 4096], (100.0, 1.0), &[-1e-9, -1e-9]);
}

/// Coordinates in -1..1 with large factors: the error must not grow with the factor.
#[test]
fn normalised_coordinates_turn_by_their_angles_whatever_the_factor() {
    let client = client();
    let uniform = |seed| (0..64).map(move |i| (fill::hash(seed, i) >> 40) as f32 / 2f32.powi(23) - 1.0);
    let centres = (0..14).flat_map(|y| [y, 13 - y]).map(|i| (i as f32 + 0.5) / 14.0 * 2.0 - 1.0);
    let positions: Vec<f32> = uniform(1).chain(centres).collect();
    let factors = [1.0, std::f32::consts::TAU, 37.0, 100.0, 256.0, 628.0, 1000.0, 1e5, MAX_RADIANS as f32];
    for (base, f0) in factors.map(|f0| (100.0, f0)).into_iter().chain([(0.01, 1.0), (0.01, -37.0)]) {
        let worst = worst_error(&client, [1, 64], (base, f0), &positions);
        println!("base {base} f0 {f0}: {worst:e}");
    }
}

/// Random bits for positions, random factors and bases, heads of each width of digits.
#[test]
fn random_numbers_factors_and_bases_match_the_reference() {
    let client = client();
    let mut worst = 0.0f64;
    for case in 0..36u64 {
        let random = |index: u64| fill::hash(100 + case, index);
        let unit = |index: u64| (random(index) >> 11) as f64 / (1u64 << 53) as f64;
        let base = 10f64.powf(unit(0) * 8.0 - 3.0) as f32;
        let limit = (MAX_RADIANS / f64::from(base).recip().max(1.0)).log10();
        let sign = if random(1) % 2 == 0 { 1.0 } else { -1.0 };
        let f0 = (sign * 10f64.powf(limit - 9.0 * unit(2) - 1e-6)) as f32;
        let (heads, d, n) = [(3, 12, 40), (2, 64, 40), (1, 4 * 129, 12), (1, 4 * 1025, 6)][case as usize % 4];
        let positions: Vec<f32> = (0..2 * n as u64)
            .map(|i| match i % 3 {
                0 => f32::from_bits(random(10 + i) as u32),
                1 => (unit(10 + i) * 2.0 - 1.0) as f32,
                _ => (unit(10 + i) * 300.0 - 100.0) as f32,
            })
            .collect();
        worst = worst.max(worst_error(&client, [heads, d], (base, f0), &positions));
    }
    println!("the largest error {worst:e}");
}

#[test]
fn numbers_without_an_angle_give_nan() {
    let client = client();
    let none =
        [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 2_147_483_648.0, -2_147_483_904.0, 3e38];
    let edges = [2_147_483_520.0f32, -2_147_483_648.0, -2_147_483_520.0];
    assert!(none.iter().all(|position| !turns(*position)) && edges.iter().all(|position| turns(*position)));
    let signalling = [0x7F80_0001u32, 0xFFBF_FFFF].map(f32::from_bits);
    let positions: Vec<f32> =
        none.iter().chain(&edges).chain(&signalling).flat_map(|position| [*position, 0.5]).collect();
    for d in [16, 12] {
        worst_error(&client, [2, d], (100.0, 1.0), &positions);
    }
}
