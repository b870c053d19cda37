//! Digits add up to positions, and the table's angles keep the error bound of `table.rs`.

use super::*;
use crate::FloatType;
use crate::rope2d::{MAX_RADIANS, RopeLayout};

fn problem(frequencies: usize, base: f32, f0: f32) -> Rope2dProblem {
    let tokens = [1, 1, 1, 4 * frequencies];
    Rope2dProblem::new(tokens, [1, 1, 2], RopeLayout::Bhnd, base, f0, FloatType::F32).expect("sound")
}

fn position_of(row: Row) -> f64 {
    match row {
        Row::Position(position) => position,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_position_is_the_sum_of_the_positions_of_its_digits() {
    for frequencies in [1usize, 16, 128, 129, 1024, 1025] {
        let problem = problem(frequencies, 100.0, 1.0);
        let digits = Digits::of(&problem, false);
        for position in [0u32, 1, 15, 16, 255, 256, 2047, 2048, 4_194_303, 4_194_304, (1 << 31) - 1, 1 << 31]
        {
            let mut sum = 0.0;
            for level in 0..digits.levels() {
                let rest = position >> (digits.bits * level);
                let digit = if level + 1 < digits.levels() { rest % digits.radix() } else { rest };
                sum += position_of(digits.row(level * digits.radix() + digit));
            }
            assert_eq!(sum, f64::from(position), "{digits:?}");
        }
        assert_eq!(digits.row(digits.nan_row()), Row::Nan);
        let bytes = digits.table_shape(&problem).iter().product::<usize>() * 4;
        assert!(bytes <= 8 << 20, "{bytes} bytes for {frequencies} frequencies");
    }
}

/// The kernel's digits and rotations on the host: the rows that a position loads, and cos and sin at
/// frequency `i`.
fn rotate(
    position: f32,
    digits: Digits,
    table: &[f32],
    frequencies: usize,
    i: usize,
) -> (Vec<u32>, f32, f32) {
    let size = position.abs();
    let whole = size.floor();
    let (magnitude, mut rest) = (whole as u32, size - whole);
    let mut rows = Vec::new();
    for level in 0..digits.levels() {
        let digit = magnitude >> (digits.bits * level);
        let digit = if level + 1 < digits.levels() { digit % digits.radix() } else { digit };
        rows.push(level * digits.radix() + digit);
    }
    let mut first = digits.nan_row() + 1;
    for _ in 0..digits.fraction_levels {
        let scaled = rest * digits.radix() as f32;
        let digit = scaled as u32;
        assert!(digit < digits.radix(), "{position}");
        rest = scaled - digit as f32;
        rows.push(first + digit);
        first += digits.radix();
    }
    let entry = |row: u32| {
        let at = row as usize * 2 * frequencies + i;
        (table[at], table[at + frequencies])
    };
    let (mut cos, mut sin) = entry(rows[0]);
    let mut on = |c: f32, s: f32| (cos, sin) = (cos * c - sin * s, sin * c + cos * s);
    for row in &rows[1..] {
        let (c, s) = entry(*row);
        on(c, s);
    }
    let s = entry(first).1 * rest;
    rows.push(first);
    on(1.0 - s * s * 0.5, s);
    (rows, cos, if position < 0.0 { -sin } else { sin })
}

/// For every accepted fp32 position, factor and base: rows are inside the table, angles right to 1e-6.
#[test]
fn fp32_positions_rotate_by_their_angles() {
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    let (mut worst, mut compared) = (0.0f64, 0usize);
    for frequencies in [4usize, 129, 1025] {
        for (base, f0) in [
            (100.0, 1.0),
            (100.0, std::f32::consts::TAU),
            (1e4, -37.0),
            (100.0, 1000.0),
            (0.01, 1.0),
            (2.0, MAX_RADIANS as f32),
            (1e-3, 1048.0),
            (1e30, 1e-30),
        ] {
            let problem = problem(frequencies, base, f0);
            let digits = Digits::of(&problem, true);
            let table = values(&problem, digits);
            assert_eq!(table.len(), digits.table_shape(&problem).iter().product::<usize>());
            let fixed =
                [0.0f32, -0.0, -1e-9, -2.9e-8, -3.1e-8, -1e-45, 0.999, -0.75, 1.0 - f32::EPSILON / 2.0];
            let far = [2_147_483_520.0f32, -2_147_483_648.0, 8_388_607.5, -4_194_303.5];
            for number in 0..4000 {
                let position = match number {
                    _ if number < fixed.len() => fixed[number],
                    _ if number < fixed.len() + far.len() => far[number - fixed.len()],
                    _ if number % 2 == 0 => (random() as f32 / 2f32.powi(31)) - 1.0,
                    _ => f32::from_bits(random()),
                };
                // The kernel gives NaN outside i32.
                if !(-2_147_483_648.0..2_147_483_648.0).contains(&position) {
                    continue;
                }
                let i = random() as usize % frequencies;
                let (rows, cos, sin) = rotate(position, digits, &table, frequencies, i);
                assert!(
                    rows.iter().all(|row| *row < digits.rows() && *row != digits.nan_row()),
                    "{position}"
                );
                let theta = f64::from(f0) * f64::from(position) * frequency(&problem, i);
                let error = (f64::from(cos) - theta.cos()).hypot(f64::from(sin) - theta.sin());
                let error = error - theta.abs() * 2f64.powi(-52);
                assert!(error < 1e-6, "base {base} f0 {f0} Q {frequencies} position {position}: {error}");
                (worst, compared) = (worst.max(error), compared + 1);
            }
        }
    }
    println!("{compared} angles, the largest error {worst:e}");
    assert!(compared > 50_000);
}
