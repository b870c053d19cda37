//! Some plan serves every problem on every class of device, and needs nothing that the device lacks.

use super::*;
use crate::conv3d::call::check;
use crate::conv3d::gemm::{GemmTile, RegisterTile};
use crate::conv3d::plan::{Algorithm, eligible, plan};
use crate::conv3d::problem::{PaddingMode, Window};
use crate::dtype::FloatType;
use proptest::prelude::*;

const PASSES: [Pass; 3] = [Pass::Forward, Pass::InputGradient, Pass::WeightGradient];

/// Devices that lack something: WebGPU's defaults, small integrated GPUs, Vulkan drivers without matrix
/// units, a software driver.
fn devices() -> Vec<Limits> {
    let m1 = Limits::apple_m1;
    let plain = || Limits { matrices: Vec::new(), ..m1() };
    vec![
        m1(),
        Limits { matrices: vec![(FloatType::F16, 16)], unroll: true, cubes_in_flight: 528, ..m1() },
        Limits {
            shared_bytes: 16 * 1024,
            units_per_cube: 256,
            bindings: 8,
            buffer_bytes: 128 << 20,
            ..plain()
        },
        // Matrix units, but little threadgroup memory for their stages.
        Limits { shared_bytes: 16 * 1024, units_per_cube: 256, ..m1() },
        Limits { wide_index: false, buffer_bytes: 128 << 20, ..plain() },
        Limits { wide_index: false, loop_iterations: Some(60_000), ..plain() },
        Limits { workspace_bytes: 1 << 20, buffer_bytes: 1 << 20, dtypes: vec![FloatType::F32], ..m1() },
    ]
}

fn problems() -> impl Strategy<Value = Conv3dProblem> {
    let axis = || (1usize..40, 1usize..14, 1usize..5, 1usize..3, 0usize..15, 0usize..15);
    let channels = (1usize..3, 1usize..80, 1usize..80, prop_oneof![Just(1usize), Just(2), Just(7), Just(0)]);
    ([axis(), axis(), axis()], channels, any::<bool>()).prop_filter_map(
        "the window fits",
        |(axes, (batch, c, o, groups), replicate)| {
            // 0 means depthwise.
            let (c, o, groups) = match groups {
                0 => (c, c, c),
                groups => (c * groups, o * groups, groups),
            };
            let window = Window {
                stride: axes.map(|axis| axis.2),
                dilation: axes.map(|axis| axis.3),
                padding: axes.map(|axis| (axis.4, axis.5)),
                groups,
                padding_mode: [if replicate { PaddingMode::Replicate } else { PaddingMode::Zeros }; 3],
                ..Window::default()
            };
            let [d, h, w] = axes.map(|axis| axis.0);
            let [kd, kh, kw] = axes.map(|axis| axis.1);
            let weight = [o, c / groups, kd, kh, kw];
            Conv3dProblem::new([batch, c, d, h, w], weight, None, window, FloatType::F32).ok()
        },
    )
}

proptest! {
    #[test]
    fn some_plan_serves_within_every_devices_limits(problem in problems()) {
        for limits in devices() {
            for pass in PASSES {
                for algorithm in [Algorithm::Auto, Algorithm::NoWinograd] {
                    let plan = plan(&problem, pass, algorithm, &limits);
                    prop_assert!(plan.is_ok(), "{:?} {limits:?}: {plan:?}", pass);
                    let plan = plan.unwrap();
                    let needs = plan.needs(&problem, pass, &limits);
                    let rewritten = PassProblem::of(&problem, pass);
                    prop_assert!(plan.check_needs(&rewritten, &limits).is_ok());
                    prop_assert!(needs.shared_bytes <= limits.shared_bytes);
                    prop_assert!(needs.threads <= limits.units_per_cube as usize);
                    prop_assert!(check(&plan, &rewritten, &limits).is_ok(), "{}", plan.name());
                }
                for plan in eligible(&problem, pass, &limits) {
                    let rewritten = PassProblem::of(&problem, pass);
                    prop_assert!(check(&plan, &rewritten, &limits).is_ok(), "{}", plan.name());
                }
            }
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
