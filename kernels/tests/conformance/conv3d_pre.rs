//! `forward_with_pre`, which keeps the value before the activation: y has the bits of the fused call under
//! every plan, the value itself is fp32, and the activation's gradient is computed from it.

use crate::conv3d::{inputs, one_tile_each, problem};
use crate::support::{Buffer, client, output, read_all, upload};
use conv_cases::conv3d::{self as cases, Conv3dCase};
use conv_cases::fill;
use conv_kernels::conv3d::{
    Activation, Pass, Plan, activation_gradient, eligible, forward, forward_with_pre, reference,
};
use conv_kernels::tolerance::Expected;
use conv_kernels::{FloatType, Limits, Operand};
use cubecl::prelude::*;

/// Compares the two calls bit by bit under every eligible plan, and `pre` rounded by the reference's formula
/// with y.
pub(crate) fn check(
    (client, limits): (&Client, &Limits),
    table: &[Conv3dCase],
    pick: fn(Vec<Plan>, usize) -> Vec<Plan>,
) -> usize {
    let mut checks = 0;
    let calls = table.iter().flat_map(|case| limits.dtypes.iter().map(move |dtype| (case, *dtype)));
    for (round, (case, dtype)) in calls.enumerate() {
        let problem = problem(case, dtype);
        let inputs = inputs(client, &problem, &fill::normal);
        let (x, w) = (inputs.x.operand(), inputs.w.operand());
        let added = inputs.added();
        let shape = problem.y_shape();
        for plan in pick(eligible(&problem, Pass::Forward, limits), round) {
            let what = format!("{case} {} {}", dtype.name(), plan.name());
            let [fused, y] = [(); 2].map(|()| output(client, &shape, dtype));
            let pre = output(client, &shape, FloatType::F32);
            forward(client, limits, &problem, &plan, [x, w, fused.operand()], added).expect(&what);
            let operands = [x, w, y.operand()];
            forward_with_pre(client, limits, &problem, &plan, operands, pre.operand(), added).expect(&what);
            let [want, got, pre] = &read_all(client, &[&fused, &y, &pre])[..] else { unreachable!() };
            for (index, (got, want)) in got.iter().zip(want).enumerate() {
                assert!(
                    got.to_bits() == want.to_bits(),
                    "{what}: element {index} is {got}, fused {want}, of {}",
                    pre[index]
                );
            }
            let residual = inputs.residual.as_ref().map_or(vec![0.0; pre.len()], Buffer::values);
            let activate = |v: &f64| reference::activate(problem.window.activation, *v);
            let want: Vec<f64> = pre.iter().zip(&residual).map(|(v, added)| activate(v) + added).collect();
            let magnitudes: Vec<f64> =
                pre.iter().zip(&residual).map(|(v, added)| v.abs() + added.abs()).collect();
            let expected = Expected { values: &want, magnitudes: &magnitudes, terms: 24, dtype, slope: 1.1 };
            expected.check(got, None).unwrap_or_else(|error| panic!("{what}: {error}"));
            checks += 1;
        }
    }
    checks
}

/// SiLU and ReLU in shapes that reach every plan, split-K among them.
#[test]
fn y_has_the_bits_of_the_fused_call_by_every_plan() {
    let client = client();
    let padding = [(1, 1); 3];
    let bases = [
        Conv3dCase { padding, ..Conv3dCase::new("volume", [1, 9, 3, 6, 7], 10, [3, 3, 3]) },
        Conv3dCase { padding, replicate: true, ..Conv3dCase::new("edges", [1, 4, 3, 5, 6], 5, [3, 3, 3]) },
        Conv3dCase { padding, groups: 8, ..Conv3dCase::new("depthwise", [1, 8, 4, 6, 6], 8, [3, 3, 3]) },
        Conv3dCase { padding, groups: 2, ..Conv3dCase::new("staged", [1, 2, 3, 16, 15], 2, [3, 3, 3]) },
        Conv3dCase { padding, ..Conv3dCase::new("head", [1, 5, 5, 9, 17], 3, [3, 3, 3]) },
        Conv3dCase {
            padding: [(1, 1), (0, 0), (0, 0)],
            ..Conv3dCase::new("plane_run", [1, 33, 3, 4, 8], 65, [3, 1, 1])
        },
        Conv3dCase { padding, ..Conv3dCase::new("deep", [2, 70, 2, 3, 3], 5, [3, 3, 3]) },
        Conv3dCase { padding, bias: false, ..Conv3dCase::new("bare", [1, 20, 2, 4, 4], 20, [3, 3, 3]) },
        Conv3dCase::new("empty", [0, 3, 2, 3, 3], 4, [1, 1, 1]),
        Conv3dCase::new("no_channels", [2, 0, 2, 3, 3], 4, [1, 1, 1]),
    ];
    let silu = bases.iter().map(|base| Conv3dCase { activation: cases::Activation::Silu, ..base.clone() });
    let mut table: Vec<Conv3dCase> = silu.collect();
    table.push(Conv3dCase { activation: cases::Activation::Relu, ..bases[0].clone() });
    let residual = |base: &Conv3dCase, activation| Conv3dCase { residual: true, activation, ..base.clone() };
    table.push(residual(&bases[0], cases::Activation::Silu));
    table.push(residual(&bases[2], cases::Activation::Silu));
    table.push(residual(&bases[5], cases::Activation::Relu));
    let limits = Limits::of(&client);
    let checks = check((&client, &limits), &table, one_tile_each);
    println!("{checks} plans");
    assert!(checks >= 30 * limits.dtypes.len(), "{checks} plans");
}

/// One output position whose sum a half type rounds by more than y's own rounding, or cannot hold at all.
struct OnePosition {
    x: Vec<f32>,
    w: Vec<f32>,
    bias: bool,
    dtype: FloatType,
    /// y and dx of the first channel for dy = 1.
    y: f64,
    dx: f64,
}

/// SiLU and its gradient act on the fp32 sum, before any rounding.
#[test]
fn silu_of_a_half_is_rounded_once() {
    let client = client();
    let limits = Limits::of(&client);
    let position = |x: &[f32], w: &[f32], dtype, y, dx| OnePosition {
        x: x.to_vec(),
        w: w.to_vec(),
        bias: x.len() == 16,
        dtype,
        y,
        dx,
    };
    let positions = [
        position(&[-100.0; 16], &[100.0; 16], FloatType::F16, 0.0, 0.0),
        position(&[-10.0, -3.0 / 1024.0], &[1.0; 2], FloatType::F16, -4.527_568_8e-4, -4.075_0e-4),
        position(&[-80.0, -15.0 / 64.0], &[1.0; 2], FloatType::Bf16, -1.143_52e-33, -1.131_27e-33),
    ];
    for OnePosition { x, w, bias, dtype, y, dx } in
        positions.into_iter().filter(|position| limits.dtypes.contains(&position.dtype))
    {
        let channels = x.len();
        let case = Conv3dCase {
            bias,
            activation: cases::Activation::Silu,
            ..Conv3dCase::new("site", [1, channels, 1, 1, 1], 1, [1, 1, 1])
        };
        let problem = problem(&case, dtype);
        let [x, w] = [x, w].map(|values| upload(&client, &values, &[1, channels, 1, 1, 1], dtype));
        let bias = bias.then(|| upload(&client, &[0.0], &[1], dtype));
        let one = upload(&client, &[1.0], &[1; 5], dtype);
        for plan in one_tile_each(eligible(&problem, Pass::Forward, &limits), 0) {
            let [got, dpre] = [(); 2].map(|()| output(&client, &[1; 5], dtype));
            let pre = output(&client, &[1; 5], FloatType::F32);
            let operands = [x.operand(), w.operand(), got.operand()];
            let bias = bias.as_ref().map(Buffer::operand);
            forward_with_pre(&client, &limits, &problem, &plan, operands, pre.operand(), bias)
                .expect("valid");
            let operands = [pre.operand(), one.operand(), dpre.operand()];
            activation_gradient(&client, &limits, Activation::Silu, operands).expect("valid");
            let close = |got: f64, want: f64| {
                // One rounding, and five units of fp32 for the exponential.
                let bound = (dtype.unit_roundoff() + 5e-7) * want.abs() * 1.001 + dtype.subnormal_roundoff();
                (got - want).abs() <= bound
            };
            let (got, dpre) = (got.read(&client)[0], dpre.read(&client)[0]);
            assert!(close(got, y) && close(dpre, dx), "{} {channels}: {got} {dpre}", plan.name());
        }
    }
}

#[test]
fn other_tensors_for_the_value_before_the_activation_are_refused() {
    let client = client();
    let limits = Limits::of(&client);
    let problem = problem(&Conv3dCase::new("small", [1, 2, 1, 2, 2], 2, [1, 1, 1]), FloatType::F16);
    let inputs = inputs(&client, &problem, &fill::normal);
    let shape = problem.y_shape();
    let y = output(&client, &shape, FloatType::F16);
    let pre = output(&client, &shape, FloatType::F32);
    let bias = inputs.bias.as_ref().map(Buffer::operand);
    let call = |y: &Operand, pre: &Operand| {
        let operands = [inputs.x.operand(), inputs.w.operand(), y];
        forward_with_pre(&client, &limits, &problem, &Plan::Direct, operands, pre, bias)
            .expect_err("a refusal")
            .to_string()
    };
    let permuted = Operand { strides: vec![8, 4, 4, 1, 2], ..pre.operand().clone() };
    assert_eq!(
        call(y.operand(), y.operand()),
        "conv3d: y [1, 2, 1, 2, 2] with strides [8, 4, 4, 2, 1] needs the value before the activation as \
         f32, both row-major, got f16 [1, 2, 1, 2, 2] with strides [8, 4, 4, 2, 1]"
    );
    assert_eq!(
        call(y.operand(), &permuted),
        "conv3d: y [1, 2, 1, 2, 2] with strides [8, 4, 4, 2, 1] needs the value before the activation as \
         f32, both row-major, got f32 [1, 2, 1, 2, 2] with strides [8, 4, 4, 1, 2]"
    );
}
