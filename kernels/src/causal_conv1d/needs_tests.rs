//! Some plan serves every problem on every class of device and needs nothing that the device lacks.

use super::*;
use crate::causal_conv1d::plan::{check, eligible, plan};
use crate::causal_conv1d::problem::{Conv1dLayout, OptionalShapes, UpdateProblem};
use crate::causal_conv1d::{check_update_steps, update_needs};
use crate::device_classes::device_classes;
use crate::dtype::FloatType;
use crate::error::ConvError;
use proptest::prelude::*;

const PASSES: [Pass; 2] = [Pass::Forward, Pass::Backward];

fn dtypes() -> impl Strategy<Value = FloatType> {
    prop_oneof![Just(FloatType::F32), Just(FloatType::F16), Just(FloatType::Bf16)]
}

/// Widths on both sides of where the plans change.
fn widths() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..10, 1usize..300, Just(8192)]
}

/// Problems of `extents` with all options.
fn problems(extents: impl Strategy<Value = [usize; 3]>) -> impl Strategy<Value = CausalConv1dProblem> {
    let activation = prop_oneof![Just(Activation::None), Just(Activation::Relu), Just(Activation::Silu)];
    let options = (any::<[bool; 5]>(), activation, any::<bool>());
    (extents, widths(), options, dtypes(), dtypes()).prop_map(
        |([b, c, t], width, (given, activation, along_time), dtype, weight_dtype)| {
            let layout = if along_time { Conv1dLayout::Bct } else { Conv1dLayout::Btc };
            let x = if along_time { [b, c, t] } else { [b, t, c] };
            let [bias, initial, ids, residual, wide_state] = given;
            let optional = OptionalShapes {
                bias: bias.then_some(c),
                initial_state: initial.then_some([b, c, width - 1]),
                seq_idx: ids.then_some([b, t]),
                residual: residual.then_some(x),
            };
            let problem =
                CausalConv1dProblem::new(x, [c, width], optional, layout, activation, dtype, weight_dtype)
                    .expect("valid");
            let state_dtype = if wide_state { FloatType::F32 } else { dtype };
            problem.with_state_dtype(state_dtype).expect("x's type or fp32")
        },
    )
}

/// Whether the device has the problem's types.
fn has_types(problem: &CausalConv1dProblem, limits: &Limits) -> bool {
    let types = [problem.dtype, problem.weight_dtype, problem.state_dtype];
    types.iter().all(|dtype| limits.dtypes.contains(dtype))
}

/// Bytes of fp32 that every plan of the backward pass needs in one buffer: one partial sum for each tap and
/// bias, the gradient of one channel before the activation, ids and the ends of their rows.
fn least_workspace(problem: &CausalConv1dProblem) -> u64 {
    let steps = problem.batch * problem.length;
    let gradient = if problem.activation == Activation::None { 0 } else { steps };
    let ids = if problem.seq_idx { steps + problem.batch } else { 0 };
    4 * (problem.channels * (problem.width + 1)).max(gradient).max(ids) as u64
}

/// The choice and all other plans of a problem on a device.
fn planned(problem: &CausalConv1dProblem, limits: &Limits) -> Result<(), TestCaseError> {
    for pass in PASSES {
        let chosen = plan(problem, pass, limits);
        if !has_types(problem, limits) {
            let error = chosen.expect_err("a type that the device lacks");
            prop_assert!(error.message().contains("this device cannot hold"), "{error}");
            continue;
        }
        let listed = eligible(problem, pass, limits);
        prop_assert_eq!(chosen.clone().ok(), listed.first().copied());
        for plan in listed {
            let needs = plan.needs(problem, pass, limits);
            prop_assert!(needs.shared_bytes <= limits.shared_bytes, "{plan:?} {needs:?}");
            prop_assert!(needs.threads <= limits.units_per_cube as usize, "{plan:?} {needs:?}");
            prop_assert!(needs.bindings <= limits.bindings, "{plan:?} {needs:?}");
            prop_assert!(needs.buffer_bytes <= limits.buffer_bytes, "{plan:?} {needs:?}");
            prop_assert!(needs.loop_iterations <= limits.loop_iterations.unwrap_or(usize::MAX));
            prop_assert!(check(plan, problem, pass, limits).is_ok());
        }
        let Err(error) = chosen else { continue };
        // Only sums that no buffer holds and loops that a driver would end are left without a plan.
        let too_large = pass == Pass::Backward && least_workspace(problem) > limits.buffer_bytes;
        let too_long = limits.loop_iterations.is_some();
        prop_assert!(too_large || too_long, "{pass:?} {problem:?} {limits:?}: {error}");
        prop_assert!(matches!(error, ConvError::DeviceLimit { .. }), "{error:?}");
    }
    Ok(())
}

/// Extents from nothing to more elements than 32 bits count, with axes as long as the narrow plan's
/// coordinates allow and longer.
fn large_extents() -> impl Strategy<Value = [usize; 3]> {
    let axis =
        || prop_oneof![1usize..5, Just(1 << 12), Just((1 << 20) + 1), Just((1 << 30) - 1), Just(1 << 31)];
    [axis(), axis(), axis()].prop_filter("addressable with the widest filter", |extents| {
        extents
            .iter()
            .try_fold(8192usize, |product, extent| product.checked_mul(*extent))
            .is_some_and(|all| all < 1 << 60)
    })
}

proptest! {
    #[test]
    fn some_plan_serves_within_every_devices_limits(
        problem in problems([0usize..6, 0usize..300, 0usize..3000]),
    ) {
        for limits in device_classes() {
            planned(&problem, &limits)?;
            // Tensors as small as these are served everywhere.
            for pass in PASSES {
                let small = least_workspace(&problem) <= limits.buffer_bytes;
                prop_assert!(!has_types(&problem, &limits) || !small || plan(&problem, pass, &limits).is_ok());
            }
        }
    }

    #[test]
    fn problems_beyond_32_bits_are_planned_too(problem in problems(large_extents())) {
        for limits in device_classes() {
            planned(&problem, &limits)?;
        }
    }

    /// Steps of decoding, with rings and slots: what one call needs is stated, and refused only for what the
    /// device lacks.
    #[test]
    fn decoding_steps_are_refused_only_for_what_the_device_lacks(
        rows in 0usize..2000, channels in 0usize..3000, width in widths(), longer in 0usize..9,
        steps in 1usize..40, bias in any::<bool>(), indices in 0usize..3, dtype in dtypes(),
    ) {
        let state = [rows, channels, width - 1 + longer];
        let problem = UpdateProblem::with_slots(
            [rows, channels], [rows.max(1), state[1], state[2]], [channels, width], bias.then_some(channels),
            Activation::Silu, dtype, dtype,
        ).expect("valid");
        for limits in device_classes() {
            let needs = update_needs(&problem, steps, indices);
            // x, state, weight, bias, y, new state, arguments.
            prop_assert_eq!(needs.bindings, 7 + indices);
            let loops = (steps * (width + 2) + state[2] + rows.div_ceil(256) + 4) as f64;
            prop_assert_eq!(needs.loop_iterations as f64, loops);
            let short = limits.loop_iterations.is_none_or(|most| needs.loop_iterations <= most);
            let result = check_update_steps(&problem, steps, indices, &limits);
            prop_assert_eq!(result.is_ok(), short && needs.bindings <= limits.bindings, "{:?}", result);
        }
    }
}

/// What each plan says of one problem, with and without ids, by the kernels' arguments and shared arrays.
#[test]
fn needs_of_every_plan() {
    let limits = Limits { loop_iterations: Some(60_000), ..Limits::apple_m1() };
    let of = |plan: Plan, pass, width: usize, ids: bool, activation| {
        let optional = OptionalShapes { seq_idx: ids.then_some([2, 3000]), ..OptionalShapes::default() };
        let (layout, f32) = (Conv1dLayout::Bct, FloatType::F32);
        let problem =
            CausalConv1dProblem::new([2, 5, 3000], [5, width], optional, layout, activation, f32, f32)
                .expect("valid");
        let needs = plan.needs(&problem, pass, &limits);
        assert_eq!(needs.threads, if plan == Plan::Empty { 0 } else { 256 });
        (needs.bindings, needs.shared_bytes, needs.loop_iterations, needs.buffer_bytes)
    };
    let [none, silu] = [Activation::None, Activation::Silu];
    // The search for the rows' ends has 1 KiB and two iterations.
    assert_eq!(of(Plan::Narrow, Pass::Forward, 4, false, silu), (7, 0, 0, 0));
    assert_eq!(of(Plan::Narrow, Pass::Forward, 4, true, silu), (8, 1024, 3, 0));
    let (bindings, shared, ..) = of(Plan::Narrow, Pass::Backward, 4, false, silu);
    assert_eq!((bindings, shared), (12, 128 * (32 + 16 + 36)));
    assert_eq!(of(Plan::Narrow, Pass::Backward, 4, true, silu).0, 13);
    for pass in PASSES {
        assert_eq!(of(Plan::Wide, pass, 40, false, none).0, 8);
        assert_eq!(of(Plan::Empty, pass, 40, false, none), (0, 0, 0, 0));
    }
    // A partial sum for each of two tiles of 2048 steps in two rows, or the gradient of a channel.
    assert_eq!(of(Plan::Wide, Pass::Forward, 40, false, silu).3, 0);
    assert_eq!(of(Plan::Wide, Pass::Backward, 40, false, none).3, 4 * 5 * 41 * 4);
    assert_eq!(of(Plan::Wide, Pass::Backward, 40, false, silu).3, 4 * 6000);
    // 64 K elements a thread: 6,000 in one slice of 16,384. Workspace: sums, or the gradient of a channel.
    assert_eq!(of(Plan::Looped, Pass::Forward, 40, false, silu), (7, 1024, 41, 0));
    assert_eq!(of(Plan::Looped, Pass::Forward, 40, true, silu), (8, 1024, 41, 0));
    assert_eq!(of(Plan::Looped, Pass::Backward, 40, false, none), (7, 1024, 41, 4 * 5 * 41));
    assert_eq!(of(Plan::Looped, Pass::Backward, 4, false, none), (7, 1024, 25, 4 * 5 * 5));
    assert_eq!(of(Plan::Looped, Pass::Backward, 40, false, silu), (7, 1024, 41, 4 * 6000));
    assert_eq!(of(Plan::Looped, Pass::Backward, 40, true, none), (8, 1024, 41, 4 * 6002));
    // Without steps `narrow` runs the kernels of `looped`.
    let optional = OptionalShapes::default();
    let (layout, f32) = (Conv1dLayout::Bct, FloatType::F32);
    let none = CausalConv1dProblem::new([2, 5, 0], [5, 4], optional, layout, silu, f32, f32).expect("valid");
    assert_eq!(Plan::Narrow.needs(&none, Pass::Backward, &limits).buffer_bytes, 4 * 5 * 5);
}

/// Eight bindings hold a ring or slots, both do not fit.
#[test]
fn rings_with_slots_need_nine_bindings() {
    let f32 = FloatType::F32;
    let problem =
        UpdateProblem::new([2, 3], [2, 3, 3], [3, 4], Some(3), Activation::None, f32, f32).expect("valid");
    let webgpu = Limits { bindings: 8, ..Limits::apple_m1() };
    assert_eq!(check_update_steps(&problem, 2, 0, &webgpu), Ok(()));
    assert_eq!(check_update_steps(&problem, 2, 1, &webgpu), Ok(()));
    assert_eq!(
        check_update_steps(&problem, 2, 2, &webgpu).expect_err("nine").message(),
        "causal_conv1d_update: a call with steps = 2 needs 9 buffer bindings, the device has 8"
    );
}

/// Rows of one step in `[B, T, C]` have a partial sum per few rows: more than x's elements.
#[test]
fn partial_sums_beyond_a_buffer_are_left_to_a_plan_with_longer_sums() {
    let (layout, f16) = (Conv1dLayout::Btc, FloatType::F16);
    let shape = [4096, 1, 4096];
    let optional = OptionalShapes::default();
    let problem = CausalConv1dProblem::new(shape, [4096, 8], optional, layout, Activation::None, f16, f16)
        .expect("valid");
    let x_bytes = 2 << 24;
    let limits = Limits { buffer_bytes: x_bytes, workspace_bytes: 1 << 20, ..Limits::apple_m1() };
    let needs = Plan::Narrow.needs(&problem, Pass::Backward, &limits);
    assert!(needs.buffer_bytes > x_bytes, "{needs:?}");
    assert_eq!(plan(&problem, Pass::Backward, &limits), Ok(Plan::Looped));
    assert_eq!(plan(&problem, Pass::Backward, &Limits::apple_m1()), Ok(Plan::Narrow));
}

/// The gradient before the activation is fp32: of a single channel of f16 it may be larger than any buffer.
#[test]
fn a_gradient_beyond_a_buffer_is_refused_when_planning() {
    let (layout, f16) = (Conv1dLayout::Bct, FloatType::F16);
    let problem = |activation| {
        let optional = OptionalShapes::default();
        CausalConv1dProblem::new([7, 1, 143], [1, 9], optional, layout, activation, f16, f16).expect("valid")
    };
    let limits = Limits { buffer_bytes: 4000, ..Limits::apple_m1() };
    assert_eq!(plan(&problem(Activation::None), Pass::Backward, &limits), Ok(Plan::Wide));
    assert_eq!(
        plan(&problem(Activation::Silu), Pass::Backward, &limits).expect_err("4004 bytes").message(),
        "causal_conv1d: the backward pass by looped needs an intermediate buffer of 4004 bytes, this device's \
         largest has 4000"
    );
}
