//! RoPE: every case x dtype x direction against the f64 reference, and what holds beyond the table.

mod errors;
mod goldens;
pub(crate) mod kinds;
mod numbers;
pub(crate) mod options;

use crate::support::{Buffer, client, dtypes, output, read_all, upload, upload_indices, upload_strided};
use conv_cases::fill;
use conv_cases::rope2d::{self as cases, Case};
use conv_kernels::rope::{RopeLayout, RopeProblem, reference, rotate};
use conv_kernels::tolerance::{Expected, Guard};
use conv_kernels::{FloatType, IndexOperand, IndexType, Limits, row_major};
use cubecl::prelude::*;

fn problem(case: &Case, dtype: FloatType) -> RopeProblem {
    let &Case { b, h, n, d, .. } = case;
    let (layout, tokens) =
        if case.bnhd { (RopeLayout::Bnhd, [b, n, h, d]) } else { (RopeLayout::Bhnd, [b, h, n, d]) };
    RopeProblem::rope2d(tokens, layout, case.base, case.f0, dtype)
        .unwrap_or_else(|error| panic!("{}: {error}", case.name))
}

fn upload_positions(
    client: &Client,
    problem: &RopeProblem,
    positions: &[i64],
    dtype: IndexType,
) -> IndexOperand {
    let shape = problem.positions_shape();
    upload_indices(client, positions, &shape, &row_major(&shape), dtype)
}

fn random_tokens(client: &Client, problem: &RopeProblem) -> Buffer {
    let shape = problem.tokens_shape();
    upload(client, &fill::normal(7, shape.iter().product()), &shape, problem.dtype)
}

/// `tokens` rotated into a new tensor.
fn rotated(
    (client, limits): (&Client, &Limits),
    problem: &RopeProblem,
    tokens: &Buffer,
    positions: &IndexOperand,
    inverse: bool,
) -> Buffer {
    let out = output(client, &problem.tokens_shape(), problem.dtype);
    rotate(client, limits, problem, tokens.operand(), positions, out.operand(), inverse)
        .unwrap_or_else(|error| panic!("{problem:?}: {error}"));
    out
}

#[test]
fn every_case_matches_the_reference_both_ways() {
    let client = client();
    let limits = Limits::of(&client);
    let table = cases::conformance();
    let (mut failures, mut compared) = (Vec::new(), 0);
    for case in &table {
        let wide = case.int64 && IndexType::I64.served_by(&client);
        let index_type = if wide { IndexType::I64 } else { IndexType::I32 };
        for &dtype in &limits.dtypes {
            failures.extend(check((&client, &limits), case, dtype, index_type));
            compared += 1;
        }
    }
    println!("{compared} cases");
    assert!(compared >= 200 * limits.dtypes.len(), "{compared} cases were compared");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Checks a case in both directions: a line for each that failed.
pub(crate) fn check(
    (client, limits): (&Client, &Limits),
    case: &Case,
    dtype: FloatType,
    index_type: IndexType,
) -> Vec<String> {
    let positions = cases::positions(case);
    let problem = problem(case, dtype);
    let indices = upload_positions(client, &problem, &positions, index_type);
    let tokens = random_tokens(client, &problem);
    let values = tokens.values();
    let magnitudes = reference::magnitude(&problem, &values);
    let outputs =
        [false, true].map(|inverse| rotated((client, limits), &problem, &tokens, &indices, inverse));
    let mut failures = Vec::new();
    for (inverse, got) in [false, true].into_iter().zip(read_all(client, &[&outputs[0], &outputs[1]])) {
        let values = reference::rotate(&problem, &values, &positions, inverse);
        let expected = Expected { values: &values, magnitudes: &magnitudes, terms: 2, dtype, slope: 1.0 };
        if let Err(error) = expected.check(&got, Some(Guard::SUM.stored_as(dtype))) {
            failures.push(format!("{} {} inverse {inverse}: {error}", case.name, dtype.name()));
        }
    }
    failures
}

/// The rotation is orthogonal: its inverse gives the tokens back, and no pair changes its length.
#[test]
fn the_inverse_undoes_the_rotation() {
    let client = client();
    for case in cases::conformance().iter().step_by(7) {
        let problem = problem(case, FloatType::F32);
        let indices = upload_positions(&client, &problem, &cases::positions(case), IndexType::I32);
        let tokens = random_tokens(&client, &problem);
        let forward = rotated((&client, &Limits::of(&client)), &problem, &tokens, &indices, false);
        let back = rotated((&client, &Limits::of(&client)), &problem, &forward, &indices, true);
        let read = read_all(&client, &[&forward, &back]);
        let values = tokens.values();
        let q = problem.rotated / 4;
        for u in (0..values.len()).filter(|index| (index / q).is_multiple_of(2)) {
            let norm = |values: &[f64]| values[u].hypot(values[u + q]);
            let ulp = 2f64.powi(-23) * norm(&values);
            assert!((norm(&read[0]) - norm(&values)).abs() <= 2.0 * ulp, "{}: length of pair {u}", case.name);
            for index in [u, u + q] {
                let error = (read[1][index] - values[index]).abs();
                assert!(error <= 2.0 * ulp, "{}: element {index} is off by {} ulp", case.name, error / ulp);
            }
        }
    }
}

/// Tokens are independent: turned in another order, together with their positions, they give the same bits;
/// so do the two rows of a batch alone.
#[test]
fn tokens_are_independent() {
    let client = client();
    let limits = Limits::of(&client);
    let (b, h, n, d) = (2, 3, 13, 12);
    let of = |b: usize| {
        RopeProblem::rope2d([b, h, n, d], RopeLayout::Bhnd, 100.0, 0.5, FloatType::F32).expect("sound shapes")
    };
    let positions: Vec<i64> = (0..2 * b * n).map(|i| (i as i64 * 31) % 57 - 20).collect();
    let values = fill::normal(3, b * h * n * d);
    let turned = |problem: &RopeProblem, values: &[f32], positions: &[i64]| {
        let tokens = upload(&client, values, &problem.tokens_shape(), FloatType::F32);
        let indices = upload_positions(&client, problem, positions, IndexType::I32);
        rotated((&client, &limits), problem, &tokens, &indices, false).read(&client)
    };
    let whole = turned(&of(b), &values, &positions);
    let half = values.len() / 2;
    let rows =
        [0, 1].map(|row| turned(&of(1), &values[row * half..][..half], &positions[row * 2 * n..][..2 * n]));
    assert_eq!(whole, rows.concat());
    // Token n takes the place of token n - 1 - n.
    let backwards = |values: &[f32]| -> Vec<f32> {
        values.chunks(n * d).flat_map(|head| head.chunks(d).rev().flatten().copied()).collect()
    };
    let reversed: Vec<i64> =
        positions.chunks(2 * n).flat_map(|row| row.chunks(2).rev().flatten().copied()).collect();
    let got: Vec<f32> = turned(&of(b), &backwards(&values), &reversed).iter().map(|v| *v as f32).collect();
    let whole: Vec<f32> = whole.iter().map(|value| *value as f32).collect();
    assert_eq!(got, backwards(&whole));
}

/// Positions around powers of two, to the edges of i32.
#[test]
fn every_i32_position_is_served() {
    let client = client();
    let edges =
        [1i64, 15, 16, 255, 256, 257, 2047, 2048, 2049, 65_535, 65_536, 1 << 22, (1 << 22) - 1, 123_456_789];
    let mut positions: Vec<i64> = edges.iter().flat_map(|p| [*p, -p]).collect();
    positions.extend([0, i64::from(i32::MAX), i64::from(i32::MIN), i64::from(i32::MIN) + 1]);
    let n = positions.len() / 2;
    for d in [8, 4 * 129, 4 * 1025] {
        let problem = RopeProblem::rope2d([1, 1, n, d], RopeLayout::Bhnd, 100.0, 1.0, FloatType::F32)
            .expect("sound shapes");
        let indices = upload_positions(&client, &problem, &positions, IndexType::I32);
        let tokens = random_tokens(&client, &problem);
        let got = rotated((&client, &Limits::of(&client)), &problem, &tokens, &indices, false).read(&client);
        let values = tokens.values();
        let want = reference::rotate(&problem, &values, &positions, false);
        let magnitude = reference::magnitude(&problem, &values);
        for (index, got) in got.iter().enumerate() {
            let position = positions[index / d * 2 + index % d / (d / 2)];
            let bound = magnitude[index] * 5e-7;
            let error = (got - want[index]).abs();
            assert!(error <= bound, "d {d} element {index} at {position}: {got}, reference {}", want[index]);
        }
    }
}

#[test]
fn positions_beyond_i32_give_nan_and_no_wrong_angle() {
    let client = client();
    if !IndexType::I64.served_by(&client) {
        return;
    }
    let far = 1i64 << 31;
    let positions = [0, far, -far - 1, 3, far - 1, -far, 1 << 32, i64::MIN];
    let problem = RopeProblem::rope2d([1, 1, 4, 4], RopeLayout::Bhnd, 100.0, 1.0, FloatType::F32)
        .expect("sound shapes");
    let tokens = upload(&client, &[1.0; 16], &[1, 1, 4, 4], FloatType::F32);
    let wide = upload_positions(&client, &problem, &positions, IndexType::I64);
    let got = rotated((&client, &Limits::of(&client)), &problem, &tokens, &wide, false).read(&client);
    for (index, value) in got.iter().enumerate() {
        let position = positions[index / 2];
        assert_eq!(value.is_nan(), i32::try_from(position).is_err(), "{value} at position {position}");
    }
}

#[test]
fn position_zero_copies_the_tokens() {
    let client = client();
    for dtype in dtypes() {
        let problem = RopeProblem::rope2d([2, 3, 5, 20], RopeLayout::Bhnd, 10_000.0, -3.0, dtype)
            .expect("sound shapes");
        let tokens = random_tokens(&client, &problem);
        let zeros = upload_positions(&client, &problem, &[0; 20], IndexType::I32);
        for inverse in [false, true] {
            assert_eq!(
                rotated((&client, &Limits::of(&client)), &problem, &tokens, &zeros, inverse).read(&client),
                tokens.values()
            );
        }
    }
}

/// Permuted, sliced and expanded tokens, positions and results.
#[test]
fn views_give_the_bits_of_contiguous_tensors() {
    let client = client();
    let limits = Limits::of(&client);
    let case = Case { b: 2, h: 3, n: 10, d: 12, ..cases::conformance()[0].clone() };
    for (bnhd, dtype) in [(false, FloatType::F32), (true, FloatType::F32), (false, FloatType::F16)] {
        let problem = problem(&Case { bnhd, ..case.clone() }, dtype);
        let shape = problem.tokens_shape();
        let values = fill::normal(3, shape.iter().product());
        // The rows of both batch entries have the same positions, so that they can be expanded.
        let mut positions: Vec<i64> = (0..20).map(|i| i * 7 % 23 - 9).collect();
        positions.extend(positions.clone());
        let tokens = upload(&client, &values, &shape, dtype);
        let indices = upload_positions(&client, &problem, &positions, IndexType::I32);
        let want = rotated((&client, &Limits::of(&client)), &problem, &tokens, &indices, false).read(&client);
        for order in [[0, 1, 2, 3], [0, 2, 1, 3], [3, 2, 1, 0], [1, 3, 0, 2]] {
            let mut strides = [0; 4];
            let mut stride = 2;
            for axis in order.into_iter().rev() {
                strides[axis] = stride;
                stride = stride * shape[axis] + 3;
            }
            let view = upload_strided(&client, &values, &shape, &strides, dtype);
            let nan = vec![f32::NAN; values.len()];
            let out = upload_strided(&client, &nan, &shape, &strides, dtype);
            let expanded = upload_indices(&client, &positions, &[2, 10, 2], &[0, 1, 11], IndexType::I32);
            rotate(&client, &limits, &problem, view.operand(), &expanded, out.operand(), false)
                .expect("a launch");
            assert_eq!(out.read(&client), want, "{order:?} bnhd {bnhd} {}", dtype.name());
        }
    }
}

/// More combinations than the cache holds, twice in turn, and then all limits small: work in many dispatches.
#[test]
fn evicted_tables_are_made_again_and_dispatches_are_split() {
    let client = client();
    let small = Limits { cubes_per_axis: 2, dispatch_operations: 1.0, ..Limits::of(&client) };
    let positions: Vec<i64> = (0..180).map(|i| i * 31 % 97 - 40).collect();
    let mut first = Vec::new();
    for turn in 0..40 {
        let base = 2.0 + (turn % 20) as f32;
        let problem = RopeProblem::rope2d([1, 2, 90, 8], RopeLayout::Bhnd, base, 1.0, FloatType::F32)
            .expect("sound shapes");
        let tokens = random_tokens(&client, &problem);
        let indices = upload_positions(&client, &problem, &positions, IndexType::I32);
        let out = output(&client, &problem.tokens_shape(), FloatType::F32);
        let limits = if turn < 20 { Limits::of(&client) } else { small.clone() };
        rotate(&client, &limits, &problem, tokens.operand(), &indices, out.operand(), false)
            .expect("a launch");
        let got = out.read(&client);
        let want = reference::rotate(&problem, &tokens.values(), &positions, false);
        for (index, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got - want).abs() <= 4e-6, "base {base} element {index}: {got}, reference {want}");
        }
        if turn < 20 {
            first.push(got);
        } else {
            assert_eq!(got, first[turn - 20], "base {base}");
        }
    }
}

#[test]
fn empty_tokens_are_served() {
    let client = client();
    for tokens in [[0, 2, 3, 8], [2, 0, 3, 8], [2, 2, 0, 8], [2, 2, 3, 0]] {
        let [b, _, n, _] = tokens;
        let problem =
            RopeProblem::rope2d(tokens, RopeLayout::Bhnd, 100.0, 1.0, FloatType::F32).expect("empty");
        let buffer = random_tokens(&client, &problem);
        let indices = upload_positions(&client, &problem, &vec![1; b * n * 2], IndexType::I32);
        assert!(
            rotated((&client, &Limits::of(&client)), &problem, &buffer, &indices, false)
                .read(&client)
                .is_empty()
        );
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn normal(seed: u64, length: usize) -> Vec<f64> {
    fill::normal(seed, length).into_iter().map(f64::from).collect()
}

/// `<rotate(x), g> = <x, inverse(g)>`.
#[test]
fn the_inverse_of_the_reference_is_its_adjoint() {
    for case in cases::conformance().iter().step_by(5) {
        let problem = problem(case, FloatType::F32);
        let positions = cases::positions(case);
        let length = problem.tokens_shape().iter().product();
        let (x, g) = (normal(1, length), normal(2, length));
        let forward = dot(&reference::rotate(&problem, &x, &positions, false), &g);
        let backward = dot(&x, &reference::rotate(&problem, &g, &positions, true));
        assert!((forward - backward).abs() <= 1e-9 * length as f64, "{}: {forward}, {backward}", case.name);
    }
}

/// The product of two rotated tokens depends on the difference of their positions only, and does depend on
/// it.
#[test]
fn the_reference_is_relative() {
    for layout in [RopeLayout::Bhnd, RopeLayout::Bnhd] {
        let shape = if layout == RopeLayout::Bhnd { [1, 1, 2, 24] } else { [1, 2, 1, 24] };
        let problem = RopeProblem::rope2d(shape, layout, 100.0, 0.5, FloatType::F32).expect("sound shapes");
        let x = normal(5, 48);
        let product = |positions: [i64; 4]| {
            let rotated = reference::rotate(&problem, &x, &positions, false);
            dot(&rotated[..24], &rotated[24..])
        };
        let here = product([3, -2, 7, 11]);
        assert!((here - product([103, 98, 107, 111])).abs() <= 1e-12 * 48.0);
        assert!(
            (here - product([3, -2, 7, 12])).abs() > 1e-3 && (here - product([3, -2, 8, 11])).abs() > 1e-3
        );
    }
}
