//! What holds for conv3d beyond the values of the conformance table: empty problems, named regressions of
//! other libraries, views, forced small limits, NaN.

use crate::conv3d::{
    Inputs, PASSES, Selection, computed, inputs, is_run_here, launch, problem, result_shape, run, run_table,
    run_with,
};
use crate::support::{Buffer, client, dtypes, output, read_all, upload, upload_strided};
use conv_cases::conv3d::{self as cases, Conv3dCase};
use conv_cases::fill;
use conv_kernels::conv3d::{
    Conv3dProblem, GemmTile, NonFinite, Pass, Plan, RegionExtent, Window, WinogradConfig, WinogradTile,
    eligible,
};
use conv_kernels::{FloatType, Limits};
use cubecl::prelude::*;

#[test]
pub(crate) fn empty_problems_give_empty_or_bias_only_results() {
    run(&cases::empty(), &fill::normal, false);
}

#[test]
pub(crate) fn shapes_that_broke_other_libraries() {
    run_table(&cases::regressions(), &fill::normal, false);
}

#[test]
pub(crate) fn shapes_that_broke_this_library() {
    let client = client();
    let limits = Limits { dtypes: dtypes(), ..Limits::of(&client) };
    run_with((&client, &limits), &cases::faults(), &fill::normal, false, Selection::RoundRobin);
}

/// A few cases that reach every plan, padding mode and epilogue.
pub(crate) fn sample() -> Vec<Conv3dCase> {
    let padding = [(1, 1), (1, 0), (2, 1)];
    let base = Conv3dCase { padding, ..Conv3dCase::new("sample_3x3x3", [2, 5, 4, 7, 9], 6, [3, 3, 3]) };
    vec![
        base.clone(),
        Conv3dCase { replicate: true, residual: true, activation: cases::Activation::Relu, ..base.clone() },
        Conv3dCase { bias: false, stride: [2, 1, 1], dilation: [2, 1, 1], ..base.clone() },
        Conv3dCase { o: 10, groups: 5, stride: [1, 2, 3], ..base },
        Conv3dCase {
            padding: [(1, 1), (0, 0), (0, 0)],
            ..Conv3dCase::new("sample_3x1x1", [2, 5, 4, 4, 8], 6, [3, 1, 1])
        },
    ]
}

pub(crate) fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn run_one(
    device: (&Client, &Limits),
    problem: &Conv3dProblem,
    work: (Pass, &Plan),
    inputs: &Inputs,
) -> Vec<u64> {
    bits(&computed(device, problem, work, inputs))
}

#[test]
fn views_give_the_bits_of_contiguous_tensors() {
    let checks = compare_views(&sample(), |_| true);
    assert!(checks >= 60, "{checks} views");
}

/// On devices with matrix units: weight gradients whose kernels have different numbers of threadgroups in
/// flight, and sums so long that their split-K slices would differ.
#[test]
fn views_split_long_sums_alike() {
    let long = Conv3dCase { groups: 16, ..Conv3dCase::new("long_runs", [1, 32, 4, 16, 16], 32, [1; 3]) };
    compare_views(&[long], |plan| matches!(plan, Plan::Gemm(GemmTile::Mma(_))));
}

/// Compares results of views with those of contiguous tensors; how many there were.
fn compare_views(cases: &[Conv3dCase], compared: impl Fn(&Plan) -> bool) -> usize {
    let client = client();
    let limits = Limits::of(&client);
    // Axis orders from outermost to innermost in memory, and a gap after every row: channels-last, everything
    // reversed, sliced.
    let layouts: [([usize; 5], usize); 3] =
        [([0, 2, 3, 4, 1], 0), ([4, 3, 2, 1, 0], 0), ([0, 1, 2, 3, 4], 3)];
    let strided = |shape: &[usize], (order, gap): ([usize; 5], usize)| {
        let mut strides = vec![0; 5];
        let mut next = 1;
        for axis in order.into_iter().rev() {
            strides[axis] = next;
            next = next * shape[axis] + gap;
        }
        strides
    };
    let mut checks = 0;
    for case in cases {
        for dtype in dtypes() {
            let problem = problem(case, dtype);
            let contiguous = inputs(&client, &problem, &fill::normal);
            let view = |buffer: &Buffer, layout| {
                let shape = buffer.operand().shape.clone();
                let values: Vec<f32> = buffer.values().iter().map(|value| *value as f32).collect();
                upload_strided(&client, &values, &shape, &strided(&shape, layout), dtype)
            };
            let views: Vec<_> = layouts
                .into_iter()
                .map(|layout| Inputs {
                    x: view(&contiguous.x, layout),
                    w: view(&contiguous.w, layout),
                    dy: view(&contiguous.dy, layout),
                    bias: problem.bias.then(|| {
                        let values = fill::normal(3, problem.out_channels);
                        upload_strided(&client, &values, &[problem.out_channels], &[3], dtype)
                    }),
                    residual: contiguous.residual.as_ref().map(|residual| view(residual, layout)),
                })
                .collect();
            for pass in PASSES {
                let shape = result_shape(&problem, pass);
                let nan = vec![f32::NAN; shape.iter().product()];
                let here = |plan: &Plan| compared(plan) && is_run_here(&problem, pass, plan);
                for plan in eligible(&problem, pass, &limits).into_iter().filter(here) {
                    let mut outputs = vec![output(&client, &shape, dtype)];
                    launch((&client, &limits), &problem, (pass, &plan), &contiguous, &outputs[0]);
                    // Contiguous H x W slices use vector loads and stores: there a view of the result alone
                    // is tested as well.
                    let one_tap = case.kernel[1..] == [1, 1];
                    let alone = layouts.iter().filter(|_| one_tap).map(|layout| (&contiguous, *layout));
                    let views = || views.iter().zip(layouts).chain(alone.clone());
                    for (inputs, layout) in views() {
                        let out = upload_strided(&client, &nan, &shape, &strided(&shape, layout), dtype);
                        launch((&client, &limits), &problem, (pass, &plan), inputs, &out);
                        outputs.push(out);
                    }
                    let results = read_all(&client, &outputs.iter().collect::<Vec<_>>());
                    for (result, (_, layout)) in results[1..].iter().zip(views()) {
                        assert!(
                            bits(result) == bits(&results[0]),
                            "{case} {} {} {layout:?}",
                            pass.name(),
                            plan.name()
                        );
                        checks += 1;
                    }
                }
            }
        }
    }
    checks
}

#[test]
fn expanded_tensors_are_read_in_place() {
    let client = client();
    let limits = Limits::of(&client);
    let problem = problem(&sample()[0], FloatType::F32).with_residual();
    let full = inputs(&client, &problem, &|seed, length| vec![seed as f32 + 0.5; length]);
    let expanded = |shape: &[usize], value: f32| {
        upload_strided(
            &client,
            &vec![value; shape.iter().product()],
            shape,
            &vec![0; shape.len()],
            problem.dtype,
        )
    };
    let views = Inputs {
        x: expanded(&problem.x_shape(), 1.5),
        w: expanded(&problem.weight_shape(), 2.5),
        bias: Some(expanded(&[problem.out_channels], 3.5)),
        residual: Some(expanded(&problem.y_shape(), 5.5)),
        dy: expanded(&problem.y_shape(), 4.5),
    };
    for pass in PASSES {
        for plan in eligible(&problem, pass, &limits) {
            let [a, b] =
                [&full, &views].map(|inputs| run_one((&client, &limits), &problem, (pass, &plan), inputs));
            assert!(a == b, "{} {}", pass.name(), plan.name());
        }
    }
}

#[test]
fn small_dispatches_and_folded_grids_change_no_bit() {
    let client = client();
    let limits = Limits::of(&client);
    let small = Limits { cubes_per_axis: 3, dispatch_operations: 6_000.0, ..limits.clone() };
    for case in sample() {
        let problem = problem(&case, FloatType::F32);
        let inputs = inputs(&client, &problem, &fill::normal);
        for pass in PASSES {
            for plan in eligible(&problem, pass, &limits) {
                let expected = run_one((&client, &limits), &problem, (pass, &plan), &inputs);
                let got = run_one((&client, &small), &problem, (pass, &plan), &inputs);
                assert!(got == expected, "{case} {} {}", pass.name(), plan.name());
                // The weight gradient's sums depend on the region.
                if let (Plan::Winograd(config), Pass::Forward | Pass::InputGradient) = (plan, pass) {
                    let whole = config.region;
                    let regions = [
                        RegionExtent { images: 1, rows: 1, ..whole },
                        RegionExtent { images: 1, frames: 1, ..whole },
                        RegionExtent { images: 1, frames: whole.frames.min(2), rows: 1 },
                    ];
                    for region in regions {
                        let plan = Plan::Winograd(WinogradConfig { region, ..config });
                        let got = run_one((&client, &limits), &problem, (pass, &plan), &inputs);
                        assert!(got == expected, "{case} {} {region:?}", pass.name());
                    }
                }
            }
        }
    }
}

/// The plan itself tiles when the workspace is small, and says so when nothing fits.
#[test]
fn a_small_workspace_tiles_winograd_or_refuses_it() {
    let problem = problem(&sample()[0], FloatType::F32);
    let whole = Limits::apple_m1();
    let mut seen = Vec::new();
    for workspace_bytes in [whole.workspace_bytes, 150_000, 80_000, 40_000] {
        let limits = Limits { workspace_bytes, ..whole.clone() };
        for plan in eligible(&problem, Pass::Forward, &limits) {
            if let Plan::Winograd(config) = plan {
                assert!(config.workspace_bytes <= workspace_bytes, "{config:?}");
                seen.push(config.region);
            }
        }
    }
    let all =
        |images, frames| move |region: &RegionExtent| (region.images, region.frames) == (images, frames);
    assert!(seen.iter().any(all(2, 4)), "{seen:?}");
    assert!(seen.iter().any(all(1, 4)), "{seen:?}");
    assert!(seen.iter().any(|region| region.frames < 4 && region.rows == 1), "{seen:?}");
    let limits = Limits { workspace_bytes: 1000, ..whole };
    assert!(eligible(&problem, Pass::Forward, &limits).iter().all(|plan| !matches!(plan, Plan::Winograd(_))));
}

/// One NaN in x reaches the outputs whose window holds it and no others; zero padding is a select, not a
/// product with zero. Winograd spreads it over a tile, no further.
#[test]
fn nan_and_infinity_stay_in_their_receptive_field() {
    let client = client();
    let limits = Limits::of(&client);
    let cases = [
        Conv3dCase { padding: [(1, 1); 3], ..Conv3dCase::new("nan", [1, 2, 4, 9, 13], 3, [3, 3, 3]) },
        // One tap along H and W, and channels that do not fill a stage.
        Conv3dCase {
            padding: [(1, 1), (0, 0), (0, 0)],
            ..Conv3dCase::new("nan_in_a_run", [1, 33, 4, 4, 8], 3, [3, 1, 1])
        },
    ];
    for (case, dtype) in cases.iter().flat_map(|case| dtypes().into_iter().map(move |dtype| (case, dtype))) {
        let problem = problem(case, dtype);
        let reach = problem.kernel.map(|taps| taps / 2);
        let [_, _, _, height, width] = problem.x_shape();
        for value in [f32::NAN, f32::INFINITY] {
            let (d, h, w) = (1usize, height / 2, 5usize);
            let mut inputs = inputs(&client, &problem, &fill::normal);
            let mut x: Vec<f32> = inputs.x.values().iter().map(|value| *value as f32).collect();
            x[(d * height + h) * width + w] = value;
            inputs.x = upload(&client, &x, &problem.x_shape(), dtype);
            for plan in eligible(&problem, Pass::Forward, &limits) {
                let out = output(&client, &problem.y_shape(), dtype);
                launch((&client, &limits), &problem, (Pass::Forward, &plan), &inputs, &out);
                let tile = match plan.notes(&problem, Pass::Forward, &limits).non_finite {
                    NonFinite::Tile(size) => size,
                    _ => 1,
                };
                for (index, y) in out.read(&client).iter().enumerate() {
                    let at = [index / (height * width) % 4, index / width % height, index % width];
                    let near = |q: usize, p: usize, axis: usize| q.abs_diff(p) <= reach[axis];
                    // Whether any output of this one's tile reads the element.
                    let tile_near = |q: usize, p: usize, axis| {
                        (q / tile * tile..q / tile * tile + tile).any(|q| near(q, p, axis))
                    };
                    let reached = near(at[0], d, 0) && tile_near(at[1], h, 1) && tile_near(at[2], w, 2);
                    if tile == 1 {
                        assert_eq!(!y.is_finite(), reached, "{} at {at:?}: {y}", plan.name());
                    } else {
                        assert!(y.is_finite() || reached, "{} at {at:?}: {y}", plan.name());
                    }
                }
            }
        }
    }
}

/// An infinite weight makes its channel infinite and changes no other result: tiles, stages and blocks past
/// the last channel do not multiply a weight by the zeros there.
#[test]
fn an_infinite_weight_stays_in_its_channel() {
    let client = client();
    let limits = Limits::of(&client);
    for (c, kernel) in [(16, [1, 1, 1]), (33, [3, 1, 1]), (17, [1, 3, 3])] {
        let case =
            Conv3dCase { bias: false, ..Conv3dCase::new("infinite_weight", [1, c, 5, 6, 8], 5, kernel) };
        for dtype in dtypes() {
            let problem = problem(&case, dtype);
            let mut inputs = inputs(&client, &problem, &|_, length| vec![1.0; length]);
            let mut w = vec![1.0; problem.weight_shape().iter().product()];
            w[c * problem.taps() - 1] = f32::INFINITY;
            inputs.w = upload(&client, &w, &problem.weight_shape(), dtype);
            let positions = problem.positions();
            for plan in eligible(&problem, Pass::Forward, &limits) {
                if matches!(plan, Plan::Winograd(_)) {
                    continue;
                }
                let y = computed((&client, &limits), &problem, (Pass::Forward, &plan), &inputs);
                assert!(y[..positions].iter().all(|y| *y == f64::INFINITY), "{case} {}", plan.name());
                let finite = (c * problem.taps()) as f64;
                assert!(y[positions..].iter().all(|y| *y == finite), "{case} {}", plan.name());
            }
        }
    }
}

/// 1 + 2^-13 is lost by a product in reduced precision (TF32 and half keep 10 bits) and kept by fp32.
#[test]
fn products_are_true_fp32() {
    let client = client();
    let limits = Limits::of(&client);
    let case = Conv3dCase { bias: false, ..Conv3dCase::new("canary", [1, 64, 3, 8, 8], 40, [3, 3, 3]) };
    let problem = problem(&case, FloatType::F32);
    let inputs = inputs(&client, &problem, &|seed, length| {
        vec![if seed == 1 { 1.0 + 2f32.powi(-13) } else { 1.0 }; length]
    });
    let expected = 64.0 * 27.0 * (1.0 + 2f64.powi(-13));
    for plan in eligible(&problem, Pass::Forward, &limits) {
        let out = output(&client, &problem.y_shape(), FloatType::F32);
        launch((&client, &limits), &problem, (Pass::Forward, &plan), &inputs, &out);
        for y in out.read(&client) {
            assert!((y / expected - 1.0).abs() < 2f64.powi(-16), "{}: {y}, expected {expected}", plan.name());
        }
    }
}

/// A plan made for one problem is refused for another, before any launch.
#[test]
fn plans_of_other_problems_are_refused() {
    let client = client();
    let limits = Limits::of(&client);
    let problem = problem(&sample()[3], FloatType::F32);
    let inputs = inputs(&client, &problem, &fill::normal);
    let out = output(&client, &problem.y_shape(), FloatType::F32);
    let config = WinogradConfig {
        tile: WinogradTile::F2x2,
        mma_tile: None,
        region: RegionExtent { images: 1, frames: 1, rows: 1 },
        workspace_bytes: 0,
    };
    let (x, w, y) = (inputs.x.operand(), inputs.w.operand(), out.operand());
    let bias = inputs.bias.as_ref().map(Buffer::operand);
    for (plan, message) in [
        (Plan::Empty, "conv3d: the plan `empty` was given for a forward whose result is not empty"),
        (
            Plan::Winograd(config),
            "conv3d: winograd_2x2 needs stride 1 and dilation 1 in H and W, got stride 2x3, dilation 1x1",
        ),
    ] {
        let result = conv_kernels::conv3d::forward(&client, &limits, &problem, &plan, [x, w, y], bias);
        assert_eq!(result.unwrap_err().message(), message);
    }
    let other = Conv3dProblem { window: Window { groups: 1, ..problem.window }, ..problem };
    let result = conv_kernels::conv3d::forward(&client, &limits, &other, &Plan::Direct, [x, w, y], bias);
    assert_eq!(
        result.unwrap_err().message(),
        "conv3d: w has shape [10, 1, 3, 3, 3], the problem needs [10, 5, 3, 3, 3]"
    );
    let result = conv_kernels::conv3d::forward(&client, &limits, &problem, &Plan::Direct, [x, w, y], None);
    assert_eq!(
        result.unwrap_err().message(),
        "conv3d: the problem has a bias of 10 elements, none was given"
    );
}
