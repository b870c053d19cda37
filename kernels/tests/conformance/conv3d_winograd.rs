//! What is specific to Winograd: its error compared with the direct sum's, prepared weights, the tiles of its
//! GEMM, mirrored depth taps, its notes.

use crate::conv3d::{Inputs, Oracle, PASSES, computed, inputs, problem};
use crate::device::MOST_WORK;
use crate::support::{client, output, upload};
use conv_cases::conv3d::Conv3dCase;
use conv_cases::fill;
use conv_kernels::conv3d::{
    Algorithm, Conv3dProblem, NonFinite, Pass, Plan, WinogradConfig, WinogradTile, plan, winograd,
};
use conv_kernels::tolerance::Guard;
use conv_kernels::{FloatType, Limits};

fn config(problem: &Conv3dProblem, pass: Pass, tile: WinogradTile, limits: &Limits) -> WinogradConfig {
    match plan(problem, pass, Algorithm::Winograd(tile), limits) {
        Ok(Plan::Winograd(config)) => config,
        other => panic!("{problem:?}: {other:?}"),
    }
}

/// The error of every tile, type and length of sum next to that of the direct sum on the same data, each
/// within its bounds. `--nocapture` prints the table.
#[test]
fn errors_of_every_tile_are_within_their_bounds() {
    let client = client();
    let limits = Limits::of(&client);
    println!("dtype channels*taps plan max_error/rms relative_rms");
    for &dtype in &limits.dtypes {
        for (c, kd) in [(64, 1), (256, 2), (1024, 4)] {
            let padding = [(0, 0), (1, 1), (1, 1)];
            let case = Conv3dCase {
                padding,
                bias: false,
                ..Conv3dCase::new("errors", [1, c, kd, 6, 6], 5, [kd, 3, 3])
            };
            let problem = problem(&case, dtype);
            let inputs = inputs(&client, &problem, &fill::normal);
            let gathered = plan(&problem, Pass::Forward, Algorithm::ImplicitGemm, &limits).expect("a plan");
            let mut plans = vec![gathered];
            let of = |tile| Plan::Winograd(config(&problem, Pass::Forward, tile, &limits));
            plans.extend(WinogradTile::ALL.map(of));
            let oracle = Oracle::new(&problem, Pass::Forward, &inputs, &plans);
            for plan in &plans {
                // A 64x64 tile for each of at least 16 points.
                if 16 * 64 * 64 * c * kd > MOST_WORK {
                    continue;
                }
                let got = computed((&client, &limits), &problem, (Pass::Forward, plan), &inputs);
                let guard = plan.notes(&problem, Pass::Forward, &limits).error.stored_as(dtype);
                let errors = oracle
                    .check(plan, Pass::Forward, dtype, &got, true)
                    .unwrap_or_else(|error| panic!("{} {}: {error}", dtype.name(), plan.name()));
                let rms = (oracle.values().iter().map(|v| v * v).sum::<f64>() / got.len() as f64).sqrt();
                println!(
                    "{} {} {} {:.1e} {:.1e}",
                    dtype.name(),
                    c * kd,
                    plan.name(),
                    errors.max / rms,
                    errors.relative_rms
                );
                assert!(errors.relative_rms <= guard.rms, "{}: {errors:?}", plan.name());
            }
        }
    }
}

/// A transformed weight serves problems of other extents and gives the same bits.
#[test]
fn prepared_weights_give_equal_bits() {
    let client = client();
    let limits = Limits::of(&client);
    let padding = [(1, 1); 3];
    let small =
        Conv3dCase { padding, residual: true, ..Conv3dCase::new("prepared", [1, 5, 2, 4, 5], 6, [3, 3, 3]) };
    let large = Conv3dCase { n: 2, d: 3, h: 7, w: 8, ..small.clone() };
    let tile = WinogradTile::F4x4;
    let first = problem(&small, FloatType::F32);
    let weight = inputs(&client, &first, &fill::normal).w;
    let prepared = output(&client, &winograd::prepared_shape(&first, tile), FloatType::F32);
    let u = prepared.operand();
    winograd::prepare(&client, &limits, &first, tile, [weight.operand(), u]).expect("a weight");
    for case in [&small, &large] {
        let problem = problem(case, FloatType::F32);
        let inputs = Inputs {
            w: upload(&client, &fill::normal(2, 6 * 5 * 27), &problem.weight_shape(), FloatType::F32),
            ..inputs(&client, &problem, &fill::normal)
        };
        let config = config(&problem, Pass::Forward, tile, &limits);
        let expected =
            computed((&client, &limits), &problem, (Pass::Forward, &Plan::Winograd(config)), &inputs);
        let out = output(&client, &problem.y_shape(), FloatType::F32);
        let operands = [inputs.x.operand(), u, out.operand()];
        let added = inputs.added();
        winograd::forward_prepared(&client, &limits, &problem, config, operands, added).expect("valid");
        assert_eq!(out.read(&client), expected, "{case}");
        let other = WinogradConfig { tile: WinogradTile::F2x2, ..config };
        let refused = winograd::forward_prepared(&client, &limits, &problem, other, operands, added);
        assert_eq!(
            refused.unwrap_err().message(),
            "conv3d: the prepared weight has shape [36, 3, 5, 8], winograd_2x2 needs [16, 3, 5, 8] here"
        );
    }
}

/// Rows and columns beyond one tile of the GEMM, several images in one region, taps in the depth padding:
/// within the bounds, and the same bits in regions of two images and of one.
#[test]
fn images_share_regions_without_changing_a_bit() {
    let client = client();
    let limits = Limits::of(&client);
    let padding = [(1, 1); 3];
    let case = Conv3dCase { padding, ..Conv3dCase::new("images", [3, 17, 3, 10, 15], 67, [3, 3, 3]) };
    let problem = problem(&case, FloatType::F32);
    let inputs = inputs(&client, &problem, &fill::normal);
    let config = config(&problem, Pass::Forward, WinogradTile::F4x4, &limits);
    assert_eq!(config.region.images, 3);
    let run = |images| {
        let region = winograd::RegionExtent { images, ..config.region };
        let plan = Plan::Winograd(WinogradConfig { region, ..config });
        computed((&client, &limits), &problem, (Pass::Forward, &plan), &inputs)
    };
    let plan = Plan::Winograd(config);
    let expected = run(3);
    let oracle = Oracle::new(&problem, Pass::Forward, &inputs, &[plan]);
    oracle.check(&plan, Pass::Forward, FloatType::F32, &expected, true).expect("inside the bounds");
    assert!(run(2) == expected && run(1) == expected);
}

/// A sum longer than one launch accumulates into the result, with and without matrix units: small integers
/// stay exact.
#[test]
fn sums_longer_than_a_launch_are_complete() {
    let client = client();
    let limits = Limits::of(&client);
    let case = Conv3dCase { bias: false, ..Conv3dCase::new("long", [1, 2100, 1, 4, 4], 2, [1, 3, 3]) };
    let problem = problem(&case, FloatType::F32);
    let inputs = inputs(&client, &problem, &|seed, length| fill::integers(seed, length, -4, 4));
    let config = config(&problem, Pass::Forward, WinogradTile::F2x2, &limits);
    let oracle = Oracle::new(&problem, Pass::Forward, &inputs, &[]);
    for mma_tile in [config.mma_tile, None] {
        let plan = Plan::Winograd(WinogradConfig { mma_tile, ..config });
        let got = computed((&client, &limits), &problem, (Pass::Forward, &plan), &inputs);
        assert_eq!(got, oracle.values(), "{}", plan.name());
    }
}

/// The weight gradient's sums are cut into split-K slices, consecutive launches and regions: exact for
/// integers under F(2x2), within the bounds under F(4x4). A stage may span frames and images, and is padded
/// at the end.
#[test]
fn weight_gradients_sum_slices_launches_and_regions() {
    let client = client();
    let all = Limits::of(&client);
    let padding = [(1, 0), (1, 1), (0, 1)];
    let base = Conv3dCase { padding, bias: false, ..Conv3dCase::new("dw", [1; 5], 1, [2, 3, 3]) };
    let long = Conv3dCase { n: 2, c: 2, d: 5, h: 31, w: 34, o: 3, kernel: [1, 3, 3], ..base.clone() };
    let small = Conv3dCase { n: 3, c: 5, d: 4, h: 5, w: 7, o: 6, stride: [2, 1, 1], ..base.clone() };
    // More channels than a tile of the GEMM, one more than whole fragments of 8.
    let wide = Conv3dCase { n: 1, c: 65, d: 2, h: 6, w: 5, o: 73, replicate: true, ..base };
    let one_slice = Limits { cubes_in_flight: 1, ..all.clone() };
    let many_slices = Limits { cubes_in_flight: 4096, ..all.clone() };
    let regions = |bytes: u64| Limits { workspace_bytes: bytes, ..all.clone() };
    for (case, limits, tile, whole) in [
        (&long, &one_slice, WinogradTile::F2x2, true),
        (&long, &many_slices, WinogradTile::F2x2, true),
        (&long, &regions(200_000), WinogradTile::F2x2, false),
        (&small, &all, WinogradTile::F4x4, true),
        (&small, &regions(60_000), WinogradTile::F4x4, false),
        (&wide, &all, WinogradTile::F2x2, true),
        (&wide, &all, WinogradTile::F4x4, true),
    ] {
        let problem = problem(case, FloatType::F32);
        let config = config(&problem, Pass::WeightGradient, tile, limits);
        let extent = (config.region.images, config.region.rows, config.region.frames);
        let out = problem.output();
        let rows = out[1].div_ceil(tile.outputs());
        assert_eq!(extent == (case.n, rows, out[0]), whole, "{case}: {config:?}");
        let exact = tile == WinogradTile::F2x2;
        let fill = |seed, length| {
            if exact { fill::integers(seed, length, -4, 4) } else { fill::normal(seed, length) }
        };
        let inputs = inputs(&client, &problem, &fill);
        let pass = Pass::WeightGradient;
        let oracle = Oracle::new(&problem, pass, &inputs, &[Plan::Winograd(config)]);
        // With and without matrix units.
        for mma_tile in [config.mma_tile, None] {
            let plan = Plan::Winograd(WinogradConfig { mma_tile, ..config });
            let got = computed((&client, limits), &problem, (pass, &plan), &inputs);
            if exact {
                assert_eq!(got, oracle.values(), "{case}: {plan:?}");
            } else {
                oracle
                    .check(&plan, pass, FloatType::F32, &got, true)
                    .unwrap_or_else(|error| panic!("{case}: {plan:?}: {error}"));
            }
        }
    }
}

/// The weight gradient's error next to that of the gathered implicit GEMM, over more windows than a slice
/// holds. `--nocapture` prints it.
#[test]
fn errors_of_weight_gradients_are_within_their_bounds() {
    let client = client();
    let limits = Limits { cubes_in_flight: 1, ..Limits::of(&client) };
    let padding = [(0, 0), (1, 1), (1, 1)];
    let case = Conv3dCase { padding, bias: false, ..Conv3dCase::new("dw", [1, 4, 9, 64, 64], 4, [1, 3, 3]) };
    println!("dtype windows plan max_error/rms relative_rms");
    for &dtype in &limits.dtypes {
        let problem = problem(&case, dtype);
        let inputs = inputs(&client, &problem, &fill::normal);
        let pass = Pass::WeightGradient;
        let mut plans = vec![plan(&problem, pass, Algorithm::ImplicitGemm, &limits).expect("a plan")];
        let tiles = [WinogradTile::F2x2, WinogradTile::F4x4];
        plans.extend(tiles.map(|tile| Plan::Winograd(config(&problem, pass, tile, &limits))));
        let oracle = Oracle::new(&problem, pass, &inputs, &plans);
        for plan in &plans {
            let most = 2.0 * MOST_WORK as f64;
            if matches!(plan, Plan::Winograd(config) if config.cost(&problem, pass).operations > most) {
                continue;
            }
            let got = computed((&client, &limits), &problem, (pass, plan), &inputs);
            let errors = oracle
                .check(plan, pass, dtype, &got, true)
                .unwrap_or_else(|error| panic!("{} {}: {error}", dtype.name(), plan.name()));
            let rms = (oracle.values().iter().map(|v| v * v).sum::<f64>() / got.len() as f64).sqrt();
            let (max, relative) = (errors.max / rms, errors.relative_rms);
            println!("{} {} {} {max:.1e} {relative:.1e}", dtype.name(), problem.positions(), plan.name());
            let guard = plan.notes(&problem, pass, &limits).error.stored_as(dtype);
            assert!(relative <= guard.rms, "{} {}: {errors:?}", dtype.name(), plan.name());
        }
    }
}

/// The input gradient reads the depth taps mirrored: the last tap carries an output frame's gradient to the
/// last input frame of its window. (Taking the taps in order passes every test with filters that are
/// symmetric in depth.)
#[test]
fn the_input_gradient_mirrors_depth_taps() {
    let client = client();
    let limits = Limits::of(&client);
    let case = Conv3dCase { bias: false, ..Conv3dCase::new("mirror", [1, 1, 5, 4, 4], 1, [3, 3, 3]) };
    let problem = problem(&case, FloatType::F32);
    let one_at = |length: usize, index: usize| -> Vec<f32> {
        (0..length).map(|each| if each == index { 1.0 } else { 0.0 }).collect()
    };
    let mut inputs = inputs(&client, &problem, &fill::normal);
    // dy is 1 at frame 1, row 0, column 1; w is 1 at tap (2, 1, 0): dx is 1 at frame 3, row 1, column 1.
    inputs.dy = upload(&client, &one_at(12, 5), &problem.y_shape(), FloatType::F32);
    inputs.w = upload(&client, &one_at(27, 21), &problem.weight_shape(), FloatType::F32);
    for tile in WinogradTile::ALL {
        let plan = Plan::Winograd(config(&problem, Pass::InputGradient, tile, &limits));
        let dx = computed((&client, &limits), &problem, (Pass::InputGradient, &plan), &inputs);
        for (index, value) in dx.iter().enumerate() {
            let expected = f64::from(u8::from(index == (3 * 4 + 1) * 4 + 1));
            assert!((value - expected).abs() < 1e-5, "{} at {index}: {value}", tile.name());
        }
    }
}

/// Transforms add inputs, so values near fp32's maximum are scaled down first: 3e38 under the identity comes
/// out unchanged, and results of 1e37 are as exact as those of 1.
#[test]
fn values_near_the_maximum_of_fp32_stay_finite() {
    let client = client();
    let limits = Limits::of(&client);
    let padding = [(0, 0), (1, 1), (1, 1)];
    let case = |name: &str, shape, o, kernel| Conv3dCase {
        padding,
        bias: false,
        ..Conv3dCase::new(name, shape, o, kernel)
    };
    let one = case("one", [1, 16, 1, 8, 8], 16, [1, 3, 3]);
    let identity = |length: usize| -> Vec<f32> {
        (0..length).map(|at| f32::from(u8::from(at % 9 == 4 && at / 9 / 16 == at / 9 % 16))).collect()
    };
    let single = |length: usize| -> Vec<f32> {
        (0..length).map(|at| if at == 2 * 8 + 2 { 3e38 } else { 0.0 }).collect()
    };
    let uniform = |seed, length| -> Vec<f32> {
        fill::integers(seed, length, -1000, 1000).into_iter().map(|value| value * 1e35).collect()
    };
    let small = |seed, length| -> Vec<f32> {
        fill::normal(seed, length).into_iter().map(|value| value * 1e-2).collect()
    };
    let many = case("many", [1, 20, 2, 10, 11], 18, [2, 3, 3]);
    for pass in PASSES {
        for data in ["one", "large x and dy", "large w", "large dy"] {
            let case = if data == "one" { &one } else { &many };
            let problem = problem(case, FloatType::F32);
            let inputs = inputs(&client, &problem, &|seed, length| match (data, seed) {
                // The input (x or dy) holds the large value; in the weight gradient dy holds a single 1
                // instead.
                ("one", 2) => identity(length),
                ("one", 4) if pass == Pass::WeightGradient => {
                    single(length).iter().map(|v| v / 3e38).collect()
                }
                ("one", _) => single(length),
                ("large x and dy", 1) => uniform(seed, length),
                ("large x and dy", 4) if pass == Pass::InputGradient => uniform(seed, length),
                ("large w", 2) | ("large dy", 4) => uniform(seed, length),
                _ => small(seed, length),
            });
            let tiles = WinogradTile::ALL
                .into_iter()
                .filter(|tile| pass != Pass::WeightGradient || *tile != WinogradTile::F6x6);
            let plans: Vec<_> =
                tiles.map(|tile| Plan::Winograd(config(&problem, pass, tile, &limits))).collect();
            let oracle = Oracle::new(&problem, pass, &inputs, &plans);
            for plan in &plans {
                let got = computed((&client, &limits), &problem, (pass, plan), &inputs);
                oracle
                    .check(plan, pass, FloatType::F32, &got, data != "one")
                    .unwrap_or_else(|error| panic!("{data}, {} {}: {error}", pass.name(), plan.name()));
            }
        }
    }
}

/// The same where the automatic choice takes Winograd, compared with the direct sums.
#[test]
fn the_automatic_choice_is_right_near_the_maximum_of_fp32() {
    let client = client();
    let limits = Limits::of(&client);
    let padding = [(1, 1); 3];
    let case =
        Conv3dCase { padding, bias: false, ..Conv3dCase::new("auto", [1, 128, 4, 28, 28], 128, [3, 3, 3]) };
    let problem = problem(&case, FloatType::F32);
    let scaled = |values: Vec<f32>, by: f32| values.into_iter().map(|value| value * by).collect::<Vec<_>>();
    for pass in PASSES {
        let inputs = inputs(&client, &problem, &|seed, length| match (seed, pass) {
            (1, Pass::Forward | Pass::WeightGradient) | (4, Pass::InputGradient) => {
                scaled(fill::integers(seed, length, -1000, 1000), 1e35)
            }
            _ => scaled(fill::normal(seed, length), 1e-3),
        });
        let [auto, other] = [Algorithm::Auto, Algorithm::NoWinograd].map(|algorithm| {
            let plan = plan(&problem, pass, algorithm, &limits).expect("a plan");
            // More takes the CPU executor longer than a minute.
            let operations = match plan {
                Plan::Winograd(config) => config.cost(&problem, pass).operations,
                _ => 0.0,
            };
            (plan, operations <= 3.0 * MOST_WORK as f64)
        });
        let winograd = matches!(auto.0, Plan::Winograd(_));
        let has_faster = pass == Pass::WeightGradient || !limits.matrices.is_empty();
        assert!(winograd || has_faster, "{}: {}", pass.name(), auto.0.name());
        if !(winograd && auto.1) {
            continue;
        }
        let [got, want] =
            [auto.0, other.0].map(|plan| computed((&client, &limits), &problem, (pass, &plan), &inputs));
        let rms = (want.iter().map(|value| value * value).sum::<f64>() / want.len() as f64).sqrt();
        assert!(rms > 1e36, "{}: {rms}", pass.name());
        for (index, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got - want).abs() <= 1e-4 * rms, "{} at {index}: {got}, {want}", pass.name());
        }
    }
}

#[test]
fn notes_say_what_a_plan_does() {
    let limits = Limits::apple_m1();
    let padding = [(1, 1); 3];
    let case = Conv3dCase { padding, ..Conv3dCase::new("notes", [1, 8, 4, 8, 8], 8, [3, 3, 3]) };
    let problem = problem(&case, FloatType::Bf16);
    let notes = |algorithm| {
        plan(&problem, Pass::Forward, algorithm, &limits).expect("a plan").notes(
            &problem,
            Pass::Forward,
            &limits,
        )
    };
    let forced = notes(Algorithm::Winograd(WinogradTile::F4x4));
    assert_eq!(forced.non_finite, NonFinite::Tile(4));
    assert_eq!(forced.error, Guard::WINOGRAD_4X4);
    assert_eq!(
        forced.to_string(),
        "winograd_4x4, products in f32, error 1e-5 RMS and 8e-5 at most of the results' RMS, workspace \
         64512 bytes, a NaN reaches whole tiles of 4x4 results"
    );
    let direct_sums = notes(Algorithm::NoWinograd);
    let seen = (direct_sums.non_finite, direct_sums.tile, direct_sums.workspace_bytes);
    assert_eq!(seen, (NonFinite::Window, None, 0));
}
