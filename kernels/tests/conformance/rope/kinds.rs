//! Every kind of angles: axes, pairs, sections, scaling; large positions and factors; offsets of a cache.

use super::{random_tokens, upload_positions};
use crate::support::{client, output, read_all, upload};
use conv_cases::fill;
use conv_kernels::rope::{
    Positions, RopeAngles, RopeAxes, RopeLayout, RopePairs, RopeProblem, RopeScaling, RopeVolume, Rotation,
    reference, rotate_all,
};
use conv_kernels::tolerance::{Expected, Guard};
use conv_kernels::{FloatType, IndexType, Limits};

fn angles(axes: RopeAxes, pairs: RopePairs, base: f32) -> RopeAngles {
    RopeAngles { axes, pairs, ..RopeAngles::rope2d(base, 1.0) }
}

/// Models and, for each order of pairs, heads that move as single elements, as vectors and as packed vectors.
pub(crate) fn kinds() -> Vec<(usize, RopeAngles)> {
    use RopeAxes::{Dims, Even, Interleaved, Sections};
    use RopePairs::{Halves, HalvesOfAxes, Neighbours};
    vec![
        (2, angles(Even(1), Halves, 1e4)),
        (6, angles(Even(1), Neighbours, 1e4)),
        (24, angles(Even(1), Neighbours, 1e4)),
        (64, angles(Even(1), Halves, 5e5)),
        (40, angles(Even(1), Halves, 1e4)),
        (64, angles(Even(1), Neighbours, 1e4)),
        (24, angles(Even(2), Neighbours, 100.0)),
        (24, angles(Even(2), Halves, 100.0)),
        (24, angles(Even(3), HalvesOfAxes, 100.0)),
        (48, angles(Even(3), HalvesOfAxes, 100.0)),
        (36, angles(Dims([4, 12, 20]), HalvesOfAxes, 50.0)),
        (48, angles(Dims([16, 0, 32]), HalvesOfAxes, 50.0)),
        (128, angles(Dims([44, 42, 42]), Neighbours, 1e4)),
        (128, angles(Dims([16, 56, 56]), Neighbours, 256.0)),
        (140, angles(Dims([16, 56, 56]), Halves, 256.0)),
        (64, angles(Sections([8, 12, 12]), Halves, 1e6)),
        (40, angles(Sections([3, 8, 9]), Halves, 1e6)),
        (40, angles(Sections([3, 8, 9]), Neighbours, 1e6)),
        (64, angles(Interleaved([12, 10, 10]), Halves, 5e6)),
        (26, angles(Interleaved([5, 4, 4]), Neighbours, 5e6)),
        (32, RopeAngles { scaling: RopeScaling::Linear(8.0), ..angles(Even(1), Halves, 1e4) }),
        (32, RopeAngles { scaling: RopeScaling::Ntk(8.0), ..angles(Even(1), Halves, 1e4) }),
        (32, RopeAngles { f0: -0.3, base: [30.0, 1e3, 1e5], ..angles(Dims([8, 8, 16]), Halves, 1.0) }),
    ]
}

#[test]
fn every_kind_matches_the_reference_both_ways() {
    let client = client();
    let limits = Limits::of(&client);
    let mut compared = 0;
    for (case, (d, angles)) in kinds().into_iter().enumerate() {
        for (layout, dtype) in [(RopeLayout::Bhnd, FloatType::F32), (RopeLayout::Bnhd, FloatType::F16)] {
            let (heads, n) = ([1, 3, 5, 6][case % 4], 11);
            let shape = if layout == RopeLayout::Bhnd { [2, heads, n, d] } else { [2, n, heads, d] };
            let problem = RopeProblem::new(shape, layout, angles, dtype)
                .and_then(|problem| problem.with_prefix(case % 3))
                .unwrap_or_else(|error| panic!("{angles:?}: {error}"));
            let count: usize = problem.positions_shape().iter().product();
            let positions: Vec<i64> = (0..count as u64).map(|i| fill::integer(5, i, -100, 4000)).collect();
            let indices = upload_positions(&client, &problem, &positions, IndexType::I32);
            let tokens = random_tokens(&client, &problem);
            let outs = [false, true].map(|inverse| {
                let out = output(&client, &shape, dtype);
                let (tokens, positions) = (tokens.operand(), Positions::Index(&indices));
                let rotation = Rotation { problem, tokens, positions, out: out.operand() };
                rotate_all(&client, &limits, &[rotation], inverse).unwrap_or_else(|error| panic!("{error}"));
                out
            });
            let values = tokens.values();
            let magnitudes = reference::magnitude(&problem, &values);
            for (inverse, got) in [false, true].into_iter().zip(read_all(&client, &[&outs[0], &outs[1]])) {
                let want = reference::rotate(&problem, &values, &positions, inverse);
                let expected =
                    Expected { values: &want, magnitudes: &magnitudes, terms: 2, dtype, slope: 1.0 };
                expected
                    .check(&got, Some(Guard::SUM.stored_as(dtype)))
                    .unwrap_or_else(|error| panic!("{problem:?} inverse {inverse}: {error}"));
                compared += 1;
            }
        }
    }
    println!("{compared} compared");
    assert!(compared >= 80);
}

/// Sequences, frames, and where a cache ends: the bits of the positions that they stand for.
#[test]
fn offsets_and_volumes_are_the_positions_they_stand_for() {
    let client = client();
    let limits = Limits::of(&client);
    for (d, angles) in kinds().into_iter().filter(|(d, _)| d % 8 == 0) {
        let (prefix, n) = (2, 2 + 2 * 3 * 2);
        let problem = RopeProblem::new([2, 3, n, d], RopeLayout::Bhnd, angles, FloatType::F32)
            .and_then(|problem| problem.with_prefix(prefix))
            .expect("sound");
        let volume = RopeVolume { frames: 2, rows: 3, columns: 2, first: [5, -1, 700] };
        let mut sources: Vec<_> = [0, 1, 1_000_000, -7]
            .map(|offset| (Positions::Offset(offset), reference::line_positions(&problem, offset)))
            .into();
        if angles.count() == 3 {
            sources.push((Positions::Volume(volume), reference::volume_positions(&problem, volume)));
        }
        let tokens = random_tokens(&client, &problem);
        for (source, positions) in sources {
            let indices = upload_positions(&client, &problem, &positions, IndexType::I32);
            let outs = [source, Positions::Index(&indices)].map(|positions| {
                let out = output(&client, &problem.tokens_shape(), FloatType::F32);
                let rotation = Rotation { problem, tokens: tokens.operand(), positions, out: out.operand() };
                rotate_all(&client, &limits, &[rotation], false).expect("a launch");
                out
            });
            let read = read_all(&client, &[&outs[0], &outs[1]]);
            assert_eq!(read[0], read[1], "{angles:?} {source:?}");
            assert_ne!(read[0], tokens.values());
        }
    }
}

/// Positions up to 2^20 and beyond, integers and numbers, with any factor and base: the error does not grow.
#[test]
fn far_positions_and_large_factors_keep_the_error_below_a_millionth() {
    let client = client();
    let limits = Limits::of(&client);
    let (n, d) = (64, 64);
    let mut worst = 0.0f64;
    for (base, f0) in
        [(1e4, 1.0), (5e5, 1.0), (1e4, 100.0), (1e4, 1000.0), (1e6, 1e6), (2.0, -12345.678), (1e-3, 900.0)]
    {
        let angles = RopeAngles { f0, ..angles(RopeAxes::Even(1), RopePairs::Halves, base) };
        let problem =
            RopeProblem::new([1, 1, n, d], RopeLayout::Bhnd, angles, FloatType::F32).expect("sound");
        let unit = |i: u64| (fill::hash(3, i) >> 40) as f32 / 2f32.powi(24);
        let scales = [1.0, 100.0, 2f32.powi(16), 2f32.powi(20), 2f32.powi(20), 2f32.powi(30)];
        let numbers: Vec<f32> = (0..n as u64).map(|i| unit(i) * scales[i as usize % 6]).collect();
        let whole: Vec<i64> = numbers.iter().map(|number| *number as i64 + 1).collect();
        let floats = upload(&client, &numbers, &problem.positions_shape(), FloatType::F32);
        let indices = upload_positions(&client, &problem, &whole, IndexType::I32);
        let tokens = random_tokens(&client, &problem);
        let values = tokens.values();
        let wholes: Vec<f64> = whole.iter().map(|position| *position as f64).collect();
        let exact: Vec<f64> = numbers.iter().map(|position| f64::from(*position)).collect();
        for (positions, at) in
            [(Positions::Float(floats.operand()), exact), (Positions::Index(&indices), wholes)]
        {
            let out = output(&client, &problem.tokens_shape(), FloatType::F32);
            let rotation = Rotation { problem, tokens: tokens.operand(), positions, out: out.operand() };
            rotate_all(&client, &limits, &[rotation], false).expect("a launch");
            let (got, want) = (out.read(&client), reference::rotate_at(&problem, &values, &at, false));
            reference::for_each_pair(&problem, &at, |u, v, position, radians| {
                let error = (got[u] - want[u]).hypot(got[v] - want[v]) / values[u].hypot(values[v]);
                assert!(error < 4e-7, "base {base} f0 {f0}: {error:e} at {position} times {radians}");
                worst = worst.max(error);
            });
        }
    }
    println!("the largest error {worst:e}");
}
