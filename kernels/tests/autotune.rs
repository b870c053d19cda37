//! `fastest_plan` on a device, in a process of its own: what it launches is counted.

use conv_kernels::conv3d::{Conv3dProblem, Pass, Plan, Window, eligible, fastest_plan};
use conv_kernels::{FloatType, Limits, Operand};
use conv_testing::buffer::{Buffer, output, upload_strided};
use conv_testing::conv3d::{Inputs, Oracle, PASSES, inputs, launch, result_shape};
use cubecl::launched::LaunchedKernels;
use cubecl::prelude::*;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Launches are counted in the whole process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn client() -> Client {
    use cubecl::device::WgpuDeviceKind::{Cpu, DefaultDevice};
    #[cfg(feature = "vulkan")]
    let open = cubecl::Device::vulkan;
    #[cfg(not(feature = "vulkan"))]
    let open = cubecl::Device::wgpu;
    let device = std::panic::catch_unwind(|| open(DefaultDevice).or_else(|_| open(Cpu)));
    device.ok().and_then(Result::ok).expect("an adapter (docs/testing.md)").client()
}

fn problem(batch: usize) -> Conv3dProblem {
    let window = Window { padding: [(1, 1); 3], ..Window::default() };
    let (x, weight) = ([batch, 20, 3, 10, 9], [18, 20, 3, 3, 3]);
    Conv3dProblem::new(x, weight, Some(18), window, FloatType::F32).expect("a layer")
}

/// The plan, and how many kernels were launched to find it.
fn found(
    (client, limits): (&Client, &Limits),
    problem: &Conv3dProblem,
    pass: Pass,
    operands: [&Operand; 3],
) -> (Plan, usize) {
    let launched = LaunchedKernels::new();
    let plan = fastest_plan(client, limits, problem, pass, operands).expect("a plan");
    (plan, launched.finish().len())
}

fn operands<'a>(inputs: &'a Inputs, pass: Pass, out: &'a Buffer) -> [&'a Operand; 3] {
    let (x, w, dy, out) = (inputs.x.operand(), inputs.w.operand(), inputs.dy.operand(), out.operand());
    match pass {
        Pass::Forward => [x, w, out],
        Pass::InputGradient => [dy, w, out],
        Pass::WeightGradient => [x, dy, out],
    }
}

#[test]
fn a_problem_is_timed_once_and_gets_a_listed_plan_with_right_results() {
    let _alone = alone();
    let client = client();
    let limits = Limits::of(&client);
    let device = (&client, &limits);
    let fill = &conv_cases::fill::normal;
    for pass in PASSES {
        let problem = problem(1);
        let inputs = inputs(&client, &problem, fill);
        let out = output(&client, &result_shape(&problem, pass), problem.dtype);
        let (plan, launched) = found(device, &problem, pass, operands(&inputs, pass, &out));
        let listed = eligible(&problem, pass, &limits);
        assert!(listed.contains(&plan), "{plan}");
        // Several plans, of a kernel or more each.
        assert!(launched >= 2, "{pass:?}: {launched} kernels");
        // Only the operands of the call were written, and by a plan that computes it.
        let guarded = out.read(&client);
        assert!(guarded.iter().all(|value| value.is_finite()));
        launch(device, &problem, (pass, &plan), &inputs, &out);
        let oracle = Oracle::new(&problem, pass, &inputs, &[plan]);
        oracle.check(&plan, pass, problem.dtype, &out.read(&client), true).expect("within the bound");

        assert_eq!(found(device, &problem, pass, operands(&inputs, pass, &out)), (plan, 0));
        // The bias is no part of it.
        let bare = Conv3dProblem { bias: false, ..problem };
        assert_eq!(found(device, &bare, pass, operands(&inputs, pass, &out)), (plan, 0));
    }
}

#[test]
fn another_size_and_another_order_of_axes_are_problems_of_their_own() {
    let _alone = alone();
    let client = client();
    let limits = Limits::of(&client);
    let problem = problem(2);
    let inputs = inputs(&client, &problem, &conv_cases::fill::normal);
    let out = output(&client, &problem.y_shape(), problem.dtype);
    let ask = |x: &Operand| {
        let launched = LaunchedKernels::new();
        let operands = [x, inputs.w.operand(), out.operand()];
        fastest_plan(&client, &limits, &problem, Pass::Forward, operands).expect("a plan");
        launched.finish().len()
    };
    assert!(ask(inputs.x.operand()) >= 2);
    let [_, c, d, h, w] = problem.x_shape();
    let values = conv_cases::fill::normal(1, problem.x_shape().iter().product());
    let strides = [c * d * h * w, 1, h * w * c, w * c, c];
    let last = upload_strided(&client, &values, &problem.x_shape(), &strides, problem.dtype);
    assert!(ask(last.operand()) >= 2);
    assert_eq!((ask(inputs.x.operand()), ask(last.operand())), (0, 0));
}

#[test]
fn operands_that_do_not_fit_are_refused_before_anything_is_launched() {
    let _alone = alone();
    let client = client();
    let limits = Limits::of(&client);
    let problem = problem(1);
    let inputs = inputs(&client, &problem, &conv_cases::fill::normal);
    let (x, w) = (inputs.x.operand(), inputs.w.operand());
    let launched = LaunchedKernels::new();
    let error = fastest_plan(&client, &limits, &problem, Pass::Forward, [x, w, x]).expect_err("y is x");
    assert!(error.to_string().contains("y has shape [1, 20, 3, 10, 9], the problem needs"), "{error}");
    assert_eq!(launched.finish().len(), 0);
}
