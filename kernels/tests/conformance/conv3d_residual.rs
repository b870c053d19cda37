//! conv3d with a residual: every plan against the reference, residuals of any layout between guard zones, one
//! rounding, and what is refused.

use crate::conv3d::{Inputs, Selection};
use crate::conv3d::{computed, inputs, one_tile_each, problem, run, run_with};
use crate::support::{Buffer, client, dtypes, output, upload, upload_strided};
use conv_cases::conv3d::{Activation, Conv3dCase, Padding};
use conv_cases::fill;
use conv_kernels::conv3d::{Added, Conv3dProblem, Pass, Plan, eligible, forward, forward_with_pre};
use conv_kernels::{FloatType, Limits};

/// Shapes that reach every plan, split-K among them; batches, channels and frames of several elements, so
/// that each stride of the residual matters.
fn cases() -> Vec<Conv3dCase> {
    let padding = [(1, 1); 3];
    let bases = [
        Conv3dCase { padding, ..Conv3dCase::new("volume", [2, 9, 3, 6, 7], 10, [3, 3, 3]) },
        Conv3dCase {
            padding,
            replicate: true,
            activation: Activation::Relu,
            ..Conv3dCase::new("edges", [2, 4, 3, 5, 8], 5, [3, 3, 3])
        },
        Conv3dCase {
            padding,
            modes: Some([Padding::Replicate, Padding::Zeros, Padding::Circular]),
            ..Conv3dCase::new("modes", [1, 5, 3, 5, 6], 9, [3, 3, 3])
        },
        Conv3dCase {
            padding,
            stride: [2, 2, 1],
            dilation: [1, 2, 1],
            groups: 2,
            ..Conv3dCase::new("strided", [2, 8, 6, 9, 7], 6, [3, 3, 2])
        },
        Conv3dCase { padding, groups: 8, ..Conv3dCase::new("depthwise", [2, 8, 4, 6, 8], 8, [3, 3, 3]) },
        Conv3dCase {
            padding,
            groups: 3,
            stride: [1, 2, 1],
            ..Conv3dCase::new("depthwise_strided", [2, 3, 4, 7, 5], 3, [3, 3, 3])
        },
        Conv3dCase { padding, ..Conv3dCase::new("head", [2, 5, 5, 9, 17], 3, [3, 3, 3]) },
        Conv3dCase { bias: false, ..Conv3dCase::new("pointwise", [2, 33, 3, 5, 5], 65, [1, 1, 1]) },
        Conv3dCase {
            padding: [(1, 1), (0, 0), (0, 0)],
            ..Conv3dCase::new("frames", [2, 33, 3, 4, 8], 65, [3, 1, 1])
        },
        // Sums too short to be split: stored in vectors.
        Conv3dCase {
            padding: [(1, 1), (0, 0), (0, 0)],
            ..Conv3dCase::new("short_frames", [2, 9, 3, 4, 8], 20, [3, 1, 1])
        },
        Conv3dCase { padding, bias: false, ..Conv3dCase::new("deep", [2, 70, 2, 3, 3], 5, [3, 3, 3]) },
        Conv3dCase::new("no_channels", [2, 0, 2, 3, 3], 4, [1, 1, 1]),
        Conv3dCase::new("empty", [0, 3, 2, 3, 3], 4, [1, 1, 1]),
    ];
    bases.into_iter().map(|base| Conv3dCase { residual: true, ..base }).collect()
}

/// The forward pass alone: gradients do not read a residual.
fn is_forward(_: &Conv3dProblem, pass: Pass, _: &Plan) -> bool {
    pass == Pass::Forward
}

#[test]
pub(crate) fn a_residual_is_added_after_the_activation_by_every_plan() {
    let client = client();
    let mut table = cases();
    table.push(Conv3dCase { activation: Activation::Silu, ..table[0].clone() });
    let limits = Limits::of(&client);
    run_with((&client, &limits), &table, &fill::normal, false, Selection::Launches(is_forward));
    run(&cases(), &|seed, length| fill::integers(seed, length, -4, 4), true);
}

/// Layouts of a residual next to contiguous tensors: channels last, everything reversed, gaps after every
/// row, one image for the whole batch, one frame for all.
#[test]
fn a_residual_of_any_layout_is_read_in_place() {
    let client = client();
    let limits = Limits::of(&client);
    let mut checks = 0;
    for (round, case) in cases().iter().filter(|case| case.n > 0).enumerate() {
        for dtype in dtypes() {
            let problem = problem(case, dtype);
            let shape = problem.y_shape();
            let mut inputs = inputs(&client, &problem, &fill::normal);
            let values = inputs.residual.as_ref().map(Buffer::values).expect("a residual");
            for plan in one_tile_each(eligible(&problem, Pass::Forward, &limits), round) {
                for strides in layouts(shape) {
                    // Elements that share their place have the first one's value.
                    let repeated = |index: usize| {
                        let mut at = coordinates(shape, index);
                        (0..5).filter(|&axis| strides[axis] == 0).for_each(|axis| at[axis] = 0);
                        values[(0..5).fold(0, |index, axis| index * shape[axis] + at[axis])] as f32
                    };
                    let values: Vec<f32> = (0..values.len()).map(repeated).collect();
                    let [strided, contiguous] = [strides, row_major(shape)].map(|strides| {
                        inputs.residual = Some(upload_strided(&client, &values, &shape, &strides, dtype));
                        computed((&client, &limits), &problem, (Pass::Forward, &plan), &inputs)
                    });
                    let same = strided.iter().zip(&contiguous).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{case} {} {} {strides:?}", dtype.name(), plan.name());
                    checks += 1;
                }
            }
        }
    }
    assert!(checks >= 100, "{checks} layouts");
}

fn row_major(shape: [usize; 5]) -> [usize; 5] {
    let mut strides = [1; 5];
    (0..4).rev().for_each(|axis| strides[axis] = strides[axis + 1] * shape[axis + 1]);
    strides
}

fn coordinates(shape: [usize; 5], mut index: usize) -> [usize; 5] {
    let mut at = [0; 5];
    for axis in (0..5).rev() {
        at[axis] = index % shape[axis];
        index /= shape[axis];
    }
    at
}

fn layouts(shape: [usize; 5]) -> [[usize; 5]; 5] {
    let ordered = |order: [usize; 5], gap: usize| {
        let (mut strides, mut next) = ([0; 5], 1);
        for axis in order.into_iter().rev() {
            strides[axis] = next;
            next = next * shape[axis] + gap;
        }
        strides
    };
    let [_, channel, _, row, column] = row_major(shape);
    let [_, channels, frames, ..] = shape;
    [
        ordered([0, 2, 3, 4, 1], 0),
        ordered([4, 3, 2, 1, 0], 0),
        ordered([0, 1, 2, 3, 4], 3),
        [0, channel, channel / frames, row, column],
        [channels * channel / frames, channel / frames, 0, row, column],
    ]
}

/// 2048 + 1 + 0.25 in f16 and 256 + 1 + 0.25 in bf16 round up; rounded before the residual is added, the sum
/// would be even and stay.
#[test]
fn the_sum_is_rounded_once_behind_the_residual() {
    let client = client();
    let limits = Limits::of(&client);
    let halves = [(FloatType::F16, 2048.0, 2050.0), (FloatType::Bf16, 256.0, 258.0)];
    let padding = [(1, 1); 3];
    let cases = [
        Conv3dCase::new("pointwise", [1, 2, 1, 4, 4], 2, [1, 1, 1]),
        Conv3dCase { padding, ..Conv3dCase::new("volume", [1, 2, 1, 4, 4], 2, [3, 3, 3]) },
        Conv3dCase { padding, groups: 2, ..Conv3dCase::new("depthwise", [1, 2, 1, 4, 4], 2, [3, 3, 3]) },
        // Split-K.
        Conv3dCase { padding, ..Conv3dCase::new("deep", [1, 70, 1, 4, 4], 2, [3, 3, 3]) },
    ];
    let mut checks = 0;
    for (dtype, x, want) in halves.into_iter().filter(|half| limits.dtypes.contains(&half.0)) {
        for case in &cases {
            let problem = problem(&Conv3dCase { residual: true, ..case.clone() }, dtype);
            let taps = problem.taps();
            // Only the middle tap of each output's first channel is 1.
            let w: Vec<f32> = (0..problem.weight_shape().iter().product::<usize>())
                .map(|index| f32::from(u8::from(index % (problem.group_channels() * taps) == taps / 2)))
                .collect();
            let same = |shape: &[usize], value: f32| {
                upload(&client, &vec![value; shape.iter().product()], shape, dtype)
            };
            let inputs = Inputs {
                x: same(&problem.x_shape(), x),
                w: upload(&client, &w, &problem.weight_shape(), dtype),
                bias: Some(same(&[2], 1.0)),
                residual: Some(same(&problem.y_shape(), 0.25)),
                dy: same(&problem.y_shape(), 0.0),
            };
            for plan in one_tile_each(eligible(&problem, Pass::Forward, &limits), 0) {
                let what = format!("{case} {} {}", dtype.name(), plan.name());
                let y = computed((&client, &limits), &problem, (Pass::Forward, &plan), &inputs);
                assert!(y.iter().all(|y| *y == want), "{what}: {y:?}");
                let [y, pre] = [dtype, FloatType::F32].map(|of| output(&client, &problem.y_shape(), of));
                let operands = [inputs.x.operand(), inputs.w.operand(), y.operand()];
                let pre = pre.operand();
                forward_with_pre(&client, &limits, &problem, &plan, operands, pre, inputs.added())
                    .expect(&what);
                let y = y.read(&client);
                assert!(y.iter().all(|y| *y == want), "{what}, with pre: {y:?}");
                checks += 1;
            }
        }
    }
    assert!(checks > 0 || limits.dtypes == [FloatType::F32], "no half type was checked");
}

#[test]
fn residuals_that_do_not_fit_are_refused() {
    let client = client();
    let limits = Limits::of(&client);
    let case = Conv3dCase { bias: false, ..Conv3dCase::new("small", [1, 2, 3, 4, 5], 2, [1, 1, 1]) };
    let plain = problem(&case, FloatType::F32);
    let inputs = inputs(&client, &plain, &fill::normal);
    let y = output(&client, &plain.y_shape(), FloatType::F32);
    let refusal = |problem: &Conv3dProblem, residual: Option<(&[usize], FloatType)>| {
        let residual =
            residual.map(|(shape, dtype)| upload(&client, &vec![0.0; shape.iter().product()], shape, dtype));
        let added = Added { residual: residual.as_ref().map(Buffer::operand), bias: None };
        let operands = [inputs.x.operand(), inputs.w.operand(), y.operand()];
        let result = forward(&client, &limits, problem, &Plan::Direct, operands, added);
        result.expect_err("a refusal").to_string()
    };
    let residual = plain.with_residual();
    assert_eq!(
        refusal(&residual, None),
        "conv3d: the problem has a residual of shape [1, 2, 3, 4, 5], none was given"
    );
    assert_eq!(
        refusal(&plain, Some((&[1, 2, 3, 4, 5], FloatType::F32))),
        "conv3d: the problem has no residual, one of shape [1, 2, 3, 4, 5] was given"
    );
    assert_eq!(
        refusal(&residual, Some((&[1, 2, 3, 1, 5], FloatType::F32))),
        "conv3d: the residual has shape [1, 2, 3, 1, 5], the problem needs [1, 2, 3, 4, 5]"
    );
    assert_eq!(
        refusal(&residual, Some((&[1, 2, 3, 4, 5], FloatType::F16))),
        "conv3d: the residual is f16, the problem is f32"
    );
}
