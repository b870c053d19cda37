//! Some plan serves every problem on every class of device, and needs nothing that the device lacks.

use super::*;
use crate::conv3d::call::check;
use crate::conv3d::choose::{eligible, plan, predicted_seconds};
use crate::conv3d::few_outputs;
use crate::conv3d::gemm::{self, GemmTile, RegisterTile};
use crate::conv3d::needs::stage_size;
use crate::conv3d::problem::{PaddingMode, Window};
use crate::device_classes::device_classes;
use crate::dtype::FloatType;
use proptest::prelude::*;

const PASSES: [Pass; 3] = [Pass::Forward, Pass::InputGradient, Pass::WeightGradient];

/// Extent, kernel, stride, dilation and padding of an axis.
type Axis = (usize, usize, usize, usize, usize, usize);

fn padding_modes() -> impl Strategy<Value = [PaddingMode; 3]> {
    use PaddingMode::{Circular, Reflect, Replicate, Zeros};
    let mode = || prop_oneof![Just(Zeros), Just(Replicate), Just(Reflect), Just(Circular)];
    prop_oneof![Just([Zeros; 3]), Just([Replicate; 3]), [mode(), mode(), mode()]]
}

/// Problems of such axes, plain and depthwise, of every type and padding mode, some of them streams. Modes
/// that the extents do not allow become replicate padding.
fn problems_of(
    axis: impl Strategy<Value = Axis> + Clone,
    most_channels: usize,
) -> impl Strategy<Value = Conv3dProblem> {
    let groups = prop_oneof![Just(1usize), Just(2), Just(7), Just(0)];
    let channels = (1usize..3, 1..most_channels, 1..most_channels, groups);
    let dtype = prop_oneof![Just(FloatType::F32), Just(FloatType::F16), Just(FloatType::Bf16)];
    let options = (padding_modes(), dtype, prop_oneof![3 => Just(false), 1 => Just(true)]);
    let axes = [axis.clone(), axis.clone(), axis];
    (axes, channels, options).prop_filter_map(
        "the window fits",
        |(axes, (batch, c, o, groups), (modes, dtype, streaming))| {
            // 0 means depthwise.
            let (c, o, groups) = match groups {
                0 => (c, c, c),
                groups => (c * groups, o * groups, groups),
            };
            let [d, h, w] = axes.map(|axis| axis.0);
            let [kd, kh, kw] = axes.map(|axis| axis.1);
            let weight = [o, c / groups, kd, kh, kw];
            let problem = |padding_mode| {
                let window = Window {
                    stride: axes.map(|axis| axis.2),
                    dilation: axes.map(|axis| axis.3),
                    padding: axes.map(|axis| (axis.4, axis.5)),
                    groups,
                    padding_mode,
                    ..Window::default()
                };
                Conv3dProblem::new([batch, c, d, h, w], weight, None, window, dtype)
            };
            let problem = problem(modes).or_else(|_| problem([PaddingMode::Replicate; 3])).ok()?;
            Some(Conv3dProblem { streaming, ..problem })
        },
    )
}

fn problems() -> impl Strategy<Value = Conv3dProblem> {
    problems_of((1usize..40, 1usize..14, 1usize..5, 1usize..3, 0usize..15, 0usize..15), 80)
}

/// Tensors on both sides of what 31 and 32 bits count, up to the most that a problem may have.
fn large_problems() -> impl Strategy<Value = Conv3dProblem> {
    let extent =
        prop_oneof![1usize..9, Just(64), Just(1025), Just(46_341), Just(1 << 20), Just((1 << 31) - 40)];
    problems_of((extent, 1usize..5, 1usize..5, 1usize..3, 0usize..4, 0usize..4), 600)
}

/// The choice and all other plans of a problem on a device: within the device's limits or, on a device for
/// which it is too large, refused for that.
fn planned(problem: &Conv3dProblem, limits: &Limits, small: bool) -> Result<(), TestCaseError> {
    let elements = |shape: [usize; 5]| shape.iter().product::<usize>() as u64;
    let largest = [problem.explicitly_padded().x_shape(), problem.weight_shape()].map(elements);
    let fits = 4 * largest[0].max(largest[1]) <= limits.buffer_bytes && limits.loop_iterations.is_none();
    for pass in PASSES {
        let rewritten = PassProblem::of(problem, pass);
        for algorithm in [Algorithm::Auto, Algorithm::NoWinograd] {
            let plan = plan(problem, pass, algorithm, limits);
            if !limits.dtypes.contains(&problem.dtype) {
                let error = plan.expect_err("a type that the device lacks");
                prop_assert!(error.message().contains("this device cannot hold"), "{error}");
                continue;
            }
            if let (Err(error), false) = (&plan, small || fits) {
                prop_assert!(
                    matches!(error, ConvError::DeviceLimit { .. } | ConvError::TooLarge(_)),
                    "{error:?}"
                );
                continue;
            }
            prop_assert!(plan.is_ok(), "{pass:?} {limits:?}: {plan:?}");
            let plan = plan.unwrap();
            let needs = plan.needs(problem, pass, limits);
            prop_assert!(plan.check_needs(&rewritten, limits).is_ok());
            prop_assert!(needs.shared_bytes <= limits.shared_bytes);
            prop_assert!(needs.threads <= limits.units_per_cube as usize);
            prop_assert!(needs.bindings <= limits.bindings);
            prop_assert!(needs.buffer_bytes <= limits.buffer_bytes);
            prop_assert!(check(&plan, &rewritten, limits).is_ok(), "{}", plan.name());
            prop_assert!(predicted_seconds(problem, pass, &plan, limits) < 1e9, "{}", plan.name());
        }
        for plan in eligible(problem, pass, limits) {
            prop_assert!(check(&plan, &rewritten, limits).is_ok(), "{}", plan.name());
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn some_plan_serves_within_every_devices_limits(problem in problems()) {
        for limits in device_classes() {
            planned(&problem, &limits, true)?;
        }
    }

    #[test]
    fn problems_beyond_32_bits_are_planned_too(problem in large_problems()) {
        for limits in device_classes() {
            planned(&problem, &limits, false)?;
        }
    }
}

fn layer(x: [usize; 5], weight: [usize; 5], window: Window) -> Conv3dProblem {
    Conv3dProblem::new(x, weight, None, window, FloatType::F32).expect("a valid layer")
}

/// The padded input's gradient exceeds a binding: `Direct` gathers without it.
#[test]
fn a_padded_gradient_beyond_a_binding_is_gathered_directly() {
    let window = Window {
        stride: [8; 3],
        padding: [(30, 30); 3],
        padding_mode: [PaddingMode::Replicate; 3],
        ..Window::default()
    };
    let problem = layer([1, 1, 100, 480, 480], [1, 1, 3, 3, 3], window);
    let limits = Limits { buffer_bytes: 128 << 20, ..Limits::apple_m1() };
    assert_eq!(plan(&problem, Pass::InputGradient, Algorithm::Auto, &limits), Ok(Plan::Direct));
    assert_ne!(plan(&problem, Pass::InputGradient, Algorithm::Auto, &Limits::apple_m1()), Ok(Plan::Direct));
}

/// The loops of the fold and of `Direct` over aliases are counted before anything is launched.
#[test]
fn loops_over_aliases_are_counted() {
    let limits = Limits { loop_iterations: Some(60_000), matrices: Vec::new(), ..Limits::apple_m1() };
    let replicate =
        |padding| Window { padding, padding_mode: [PaddingMode::Replicate; 3], ..Window::default() };
    let none = (0, 0);
    for (input, kernel, padding) in [
        ([1, 1, 1, 1, 4], [1, 1, 1, 1, 1], [none, none, (70_000, 0)]),
        ([1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [(24, 24); 3]),
        ([1, 1, 4, 4, 4], [1, 1, 3, 3, 3], [(50, 50); 3]),
    ] {
        let problem = layer(input, kernel, replicate(padding));
        let error =
            plan(&problem, Pass::InputGradient, Algorithm::Auto, &limits).expect_err("too many aliases");
        assert!(
            error
                .message()
                .contains("loop iterations per thread, this software device ends loops after 60000"),
            "{error}"
        );
        assert!(plan(&problem, Pass::InputGradient, Algorithm::Auto, &Limits::apple_m1()).is_ok());
        assert!(plan(&problem, Pass::Forward, Algorithm::Auto, &limits).is_ok());
    }
    // Within the limit for the fold, beyond it for `Direct`.
    let problem = layer([1, 1, 4, 4, 4], [1, 1, 3, 3, 3], replicate([(9, 9); 3]));
    assert!(plan(&problem, Pass::InputGradient, Algorithm::Auto, &limits).is_ok());
    assert!(plan(&problem, Pass::InputGradient, Algorithm::Direct, &limits).is_err());
}

/// Sizes whose product exceeds 64 bits are refused with the tensor's name, not by an overflow.
#[test]
fn sizes_beyond_every_memory_are_refused() {
    let window = |padding| Window { padding: [(padding, padding); 3], ..Window::default() };
    let refused = |x, weight, window| {
        Conv3dProblem::new(x, weight, None, window, FloatType::F32).expect_err("too large").to_string()
    };
    assert_eq!(
        refused([1, 1, 1, 1, 1], [1, 1, 1, 1, 1], window(400_000)),
        "conv3d: the output [1, 1, 800001, 800001, 800001] has more elements than can be addressed"
    );
    assert_eq!(
        refused([1, 1, 0, 0, 0], [0, 1, 1 << 20, 1 << 20, 1 << 20], window(1 << 20)),
        "conv3d: the weight [0, 1, 1048576, 1048576, 1048576] has more elements than can be addressed"
    );
    let strided =
        Window { stride: [1 << 20; 3], padding_mode: [PaddingMode::Replicate; 3], ..window(1 << 20) };
    assert_eq!(
        refused([1, 1, 1, 1, 1], [1, 1, 1, 1, 1], strided),
        "conv3d: the padded input [1, 1, 2097153, 2097153, 2097153] has more elements than can be addressed"
    );
    // A stride whose number of phases exceeds 64 bits.
    let strided = Window { stride: [(1 << 31) - 1; 3], ..Window::default() };
    let problem = layer([1, 3, 2, 2, 2], [4, 3, 2, 2, 2], strided);
    for pass in PASSES {
        assert!(plan(&problem, pass, Algorithm::Auto, &Limits::apple_m1()).is_ok());
    }
}

/// Patches and phases of a stride split their sums into different slices; the longer loop counts.
#[test]
fn the_loops_of_patches_and_of_phases_are_counted() {
    let stride = [2, 16, 16];
    let problem = layer([1, 3, 16, 224, 224], [768, 3, 2, 16, 16], Window { stride, ..Window::default() });
    let tile = RegisterTile::M64N64;
    let iterations =
        gemm::k_iterations(&problem, Pass::InputGradient, GemmTile::Fma(tile), &Limits::apple_m1());
    assert_eq!(iterations, 768 / tile.tile_k + 1);
}

/// A piece of a stream with more positions than the gathered GEMM counts is refused when it is planned:
/// `Direct` would give other bits than shorter pieces have.
#[test]
fn pieces_of_a_stream_that_are_too_large_are_refused() {
    let stream =
        |frames: usize| layer([1, 1, frames, 64, 46_341], [5, 1, 1, 1, 1], Window::default()).for_streams();
    let piece = |frames| plan(&stream(frames), Pass::Forward, Algorithm::Auto, &Limits::apple_m1());
    assert_eq!(piece(2).map(|plan| plan.name()), Ok("gemm_128x8x16".into()));
    assert_eq!(
        piece(1025).expect_err("2^31 positions").message(),
        "conv3d: gemm_128x8x16 cannot count the positions of a piece of a stream [1, 1, 1025, 64, 46341], pass \
         fewer frames at a time"
    );
    let listed = |frames| eligible(&stream(frames), Pass::Forward, &Limits::apple_m1());
    assert_eq!(listed(1025), [Plan::Direct]);
    assert!(listed(2).len() > 1);
}

/// A stream's cache and a residual are one binding each, where the pass has them. A residual that no epilogue
/// adds, and the gradient of a padded input, are fp32 buffers.
#[test]
fn options_add_bindings_and_buffers() {
    let limits = Limits::apple_m1();
    let gemm = Plan::Gemm(GemmTile::Fma(RegisterTile::M64N64));
    let stages = RegisterTile::M64N64.shared_bytes();
    let plain = layer([1, 2, 4, 5, 6], [3, 2, 1, 1, 3], Window::default());
    let (stream, added) = (plain.for_streams(), plain.with_residual());
    for (problem, bindings) in
        [(plain, [5, 5, 5]), (stream, [6, 5, 6]), (added, [6, 5, 5]), (stream.with_residual(), [7, 5, 6])]
    {
        for (pass, bindings) in PASSES.into_iter().zip(bindings) {
            let needs = gemm.needs(&problem, pass, &limits);
            assert_eq!(
                (needs.bindings, needs.threads, needs.shared_bytes),
                (bindings, 256, stages),
                "{pass:?}"
            );
            assert!(needs.loop_iterations > 0);
        }
    }
    // Of y, 3 * 4 * 5 * 4 elements, where no epilogue adds the residual.
    let few = few_outputs::tiles(&added, Pass::Forward, &limits);
    let few = Plan::FewOutputs(*few.first().expect("three outputs"));
    let bytes = |plan: Plan, problem: &Conv3dProblem, pass| plan.needs(problem, pass, &limits).buffer_bytes;
    assert_eq!(bytes(few, &added, Pass::Forward), 4 * 240);
    assert_eq!(bytes(few, &plain, Pass::Forward), 0);
    assert_eq!(bytes(few, &added, Pass::WeightGradient), bytes(few, &plain, Pass::WeightGradient));
    assert_eq!(bytes(gemm, &added, Pass::Forward), 0);
    // Of dx with its padding, 2 * 4 * 5 * 50 elements: more than the partials of split-K.
    let window = Window {
        padding: [(0, 0), (0, 0), (22, 22)],
        padding_mode: [PaddingMode::Replicate; 3],
        ..Window::default()
    };
    let replicate = layer([1, 2, 4, 5, 6], [3, 2, 1, 1, 3], window);
    assert_eq!(bytes(gemm, &replicate, Pass::InputGradient), 4 * 2000);
    assert!(bytes(Plan::Direct, &replicate, Pass::InputGradient) < 4 * 2000);
}

/// Stages hold what matrix units read: bf16 as fp32 where there are none for it.
#[test]
fn stages_are_as_wide_as_what_matrix_units_read() {
    let m1 = Limits::apple_m1();
    let halves = Limits { matrices: vec![(FloatType::F16, 16)], ..m1.clone() };
    let none = Limits { matrices: Vec::new(), ..m1.clone() };
    let size = |dtype, limits: &Limits| {
        let layer = layer([1, 1, 1, 1, 1], [1, 1, 1, 1, 1], Window::default());
        stage_size(&Conv3dProblem { dtype, ..layer }, limits)
    };
    for limits in [&m1, &halves, &none] {
        assert_eq!(size(FloatType::F32, limits), 4);
    }
    assert_eq!(size(FloatType::F16, &halves), 2);
    assert_eq!(size(FloatType::F16, &none), 4);
    assert_eq!(size(FloatType::Bf16, &m1), 4);
}
