//! conv3d: forward, both gradients, and the bias and activation gradients, under every eligible plan.

use crate::{IndexWidth, note_refusal, tensor, understated};
use conv_cases::conv3d::{self as cases, Conv3dCase};
use conv_kernels::conv3d::{
    Activation, Added, Conv3dProblem, Pass, Plan, activation_gradient, bias_gradient, eligible, forward,
    forward_cached, forward_with_pre, input_gradient, transposed_forward, transposed_forward_with_pre,
    weight_and_bias_gradient, weight_gradient, weight_gradient_cached,
};
use conv_kernels::{ConvError, FloatType, Limits, Operand};
use conv_testing::conv3d::problem;
use cubecl::prelude::Client;
use msl_host::{Label, Recorder};

/// Launches every pass and plan of the table in `dtype`.
pub(super) fn record(
    recorder: &Recorder,
    (limits, index): (&Limits, IndexWidth),
    dtype: FloatType,
    refused: &mut Vec<String>,
) {
    for case in &table(index) {
        record_case(recorder, limits, case, dtype, refused);
    }
    for case in &transposed(&table(index)) {
        record_transposed(recorder, limits, case, dtype, refused);
    }
    for stream in &streams() {
        record_stream(recorder, limits, stream, dtype, refused);
    }
    match problem(&levels(), dtype) {
        Ok(problem) => record_bias_gradient(recorder, limits, &problem, "levels", refused),
        Err(error) => refused.push(format!("conv3d levels: {error}")),
    }
}

/// A bias gradient with so many partial sums that they are added in several levels.
pub fn levels() -> Conv3dCase {
    Conv3dCase::new("levels", [1, 1, 1, 660, 800], 1, [1, 1, 1])
}

fn record_bias_gradient(
    recorder: &Recorder,
    limits: &Limits,
    problem: &Conv3dProblem,
    case: &str,
    refused: &mut Vec<String>,
) {
    let dtype = problem.dtype;
    let label = Label { what: format!("conv3d bias gradient {}", dtype.name()), options: "-".into() };
    let result = recorder.record(&label, |client| {
        let [_, _, dy] = operands(client, problem);
        bias_gradient(client, limits, problem, &dy, &tensor(client, &[problem.out_channels], dtype))
    });
    note_refusal(result, &label, case, refused);
}

/// The full product of padding mode, activation and bias over shapes that reach every plan.
pub fn table(index: IndexWidth) -> Vec<Conv3dCase> {
    let padding = [(1, 1); 3];
    let many_taps = [(0, 0), (0, 0), (5, 5)];
    let bases = [
        // A 3x3 window at stride 1 in H and W, which Winograd serves; a kernel depth of 1 is the 2-D case.
        Conv3dCase { padding, ..Conv3dCase::new("volume", [1, 9, 3, 6, 7], 10, [3, 3, 3]) },
        Conv3dCase {
            padding: [(0, 0), (1, 1), (1, 1)],
            ..Conv3dCase::new("plane", [1, 8, 3, 8, 8], 8, [1, 3, 3])
        },
        Conv3dCase {
            padding,
            stride: [2, 2, 2],
            dilation: [1, 2, 1],
            groups: 2,
            ..Conv3dCase::new("strided", [1, 8, 6, 9, 7], 6, [3, 3, 2])
        },
        Conv3dCase { padding, groups: 8, ..Conv3dCase::new("depthwise", [1, 8, 4, 6, 6], 8, [3, 3, 3]) },
        Conv3dCase {
            padding,
            groups: 2,
            ..Conv3dCase::new("depthwise_staged", [1, 2, 3, 16, 15], 2, [3, 3, 3])
        },
        Conv3dCase { padding, ..Conv3dCase::new("head", [1, 5, 5, 9, 17], 3, [3, 3, 3]) },
        Conv3dCase { padding, ..Conv3dCase::new("pointwise", [1, 33, 3, 5, 5], 65, [1, 1, 1]) },
        // 1x1 windows in H and W: the H x W slices are contiguous.
        Conv3dCase {
            padding: [(1, 1), (0, 0), (0, 0)],
            ..Conv3dCase::new("plane_run", [1, 33, 3, 4, 8], 65, [3, 1, 1])
        },
        // Input gradients in which every residue class of the stride has taps.
        Conv3dCase { padding, stride: [2, 2, 2], ..Conv3dCase::new("phases", [1, 8, 4, 6, 7], 6, [3, 3, 2]) },
        Conv3dCase {
            padding: [(1, 1), (0, 0), (0, 0)],
            stride: [2, 1, 1],
            ..Conv3dCase::new("phases_of_runs", [1, 33, 3, 4, 8], 65, [3, 1, 1])
        },
        // Split-K with fp32 partial sums; K a multiple of the vector width, and not.
        Conv3dCase { padding, ..Conv3dCase::new("deep_even", [1, 20, 2, 4, 4], 20, [3, 3, 3]) },
        Conv3dCase { padding, ..Conv3dCase::new("deep_odd", [1, 21, 1, 3, 5], 21, [3, 3, 3]) },
        Conv3dCase { padding, ..Conv3dCase::new("long_even", [1, 4, 4, 8, 9], 5, [3, 3, 3]) },
        Conv3dCase { padding, ..Conv3dCase::new("long_odd", [1, 4, 3, 9, 11], 5, [3, 3, 3]) },
        // More taps along a padded axis than a mask has bits; K a multiple of the vector width, and not.
        Conv3dCase { padding: many_taps, ..Conv3dCase::new("taps_even", [1, 12, 1, 4, 8], 10, [1, 1, 11]) },
        Conv3dCase { padding: many_taps, ..Conv3dCase::new("taps_odd", [1, 9, 1, 3, 7], 10, [1, 1, 11]) },
    ];
    let mut table = Vec::new();
    for base in &bases {
        for replicate in [false, true] {
            for activation in [cases::Activation::None, cases::Activation::Relu, cases::Activation::Silu] {
                for bias in [true, false] {
                    let first = bias && activation == cases::Activation::None;
                    // Partial sums are before the activation.
                    let splits = base.name.starts_with("deep") || base.name.starts_with("long");
                    if index == IndexWidth::Wide && !first || splits && activation != cases::Activation::None
                    {
                        continue;
                    }
                    table.push(Conv3dCase { replicate, activation, bias, ..base.clone() });
                }
            }
        }
    }
    // Padding of each axis by itself: in the padding of causal clips and in every mode.
    let modes = [
        [cases::Padding::Replicate, cases::Padding::Zeros, cases::Padding::Zeros],
        [cases::Padding::Reflect, cases::Padding::Zeros, cases::Padding::Circular],
    ];
    for modes in modes {
        let name = format!("modes_{:?}", modes[0]).to_lowercase();
        let case = Conv3dCase {
            padding,
            modes: Some(modes),
            ..Conv3dCase::new(&name, [1, 20, 2, 4, 4], 20, [3, 3, 3])
        };
        table.push(Conv3dCase { bias: false, ..case.clone() });
        table.push(case);
    }
    table.extend(crate::residual::cases(&bases, index));
    table
}

/// The cases of the table that are launched as transposed forward passes too, and one whose windows tile the
/// result: there a channel has a GEMM column for each tap.
pub fn transposed(table: &[Conv3dCase]) -> Vec<Conv3dCase> {
    let tiled = Conv3dCase { stride: [2; 3], ..Conv3dCase::new("tiled", [1, 5, 4, 6, 8], 12, [2, 2, 2]) };
    // Padding elsewhere is what an input gradient folds.
    let zeros = |case: &&Conv3dCase| case.padding_modes() == [cases::Padding::Zeros; 3];
    let mut cases: Vec<_> = table.iter().filter(zeros).cloned().collect();
    cases.push(tiled);
    cases
}

/// Whether a launch of [`transposed`] may need kernels of its own: a bias at least, or an activation where it
/// is compiled in.
pub fn lists_transposed(problem: &Conv3dProblem, plan: &Plan) -> bool {
    let plain = problem.window.activation == Activation::None;
    let compiled_in = matches!(plan, Plan::Direct | Plan::Subpixel(_));
    if plain { problem.bias } else { compiled_in }
}

/// Clips in pieces: frames in a cache, and the joined input's case.
pub fn streams() -> Vec<(usize, Conv3dCase)> {
    let base = Conv3dCase {
        padding: [(0, 0), (1, 1), (1, 1)],
        ..Conv3dCase::new("stream", [1, 9, 4, 5, 6], 10, [3, 3, 3])
    };
    let even = Conv3dCase { c: 8, bias: false, ..base.clone() };
    let frames = Conv3dCase::new("stream_of_frames", [1, 8, 4, 4, 8], 10, [3, 1, 1]); // Whole vectors.
    let residual = Conv3dCase { residual: true, ..even.clone() };
    let few = Conv3dCase { o: 3, ..base.clone() };
    let few_residual = Conv3dCase { residual: true, bias: false, ..few.clone() }; // Its sums are fp32.
    let depthwise = Conv3dCase { c: 4, o: 4, groups: 4, h: 17, w: 24, ..base.clone() };
    let march = Conv3dCase { stride: [1, 2, 1], ..depthwise.clone() };
    let all = [base, even, frames, residual, few, few_residual, depthwise, march];
    all.into_iter().map(|case| (2, case)).collect()
}

/// Launches the passes that read a cache.
fn record_stream(
    recorder: &Recorder,
    limits: &Limits,
    (held, case): &(usize, Conv3dCase),
    dtype: FloatType,
    refused: &mut Vec<String>,
) {
    let problem = match problem(case, dtype) {
        Ok(problem) => problem.for_streams(),
        Err(error) => return refused.push(format!("conv3d {}: {error}", case.name)),
    };
    for pass in [Pass::Forward, Pass::WeightGradient] {
        for plan in eligible(&problem, pass, limits) {
            let what = format!("conv3d {} of a stream {} {}", pass.name(), plan.name(), dtype.name());
            let label = Label { what, options: options(&problem, pass) };
            let first = recorder.log().launches.len();
            let result = recorder.record(&label, |client| {
                let [n, c, d, h, w] = problem.x_shape();
                let [cache, x] = [*held, d - held].map(|frames| tensor(client, &[n, c, frames, h, w], dtype));
                let [_, w, y] = operands(client, &problem);
                if pass == Pass::Forward {
                    let [bias, residual] = added(client, &problem);
                    let added = Added { bias: bias.as_ref(), residual: residual.as_ref() };
                    let others = (&cache, None, added);
                    forward_cached(client, limits, &problem, &plan, [&x, &w, &y], others)
                } else {
                    weight_gradient_cached(client, limits, &problem, &plan, [&x, &y, &w], &cache)
                }
            });
            note_refusal(result, &label, &case.name, refused);
            refused.extend(understated(&recorder.log(), first, &plan.needs(&problem, pass, limits), &label));
        }
    }
}

/// Launches the transposed forward pass, with and without the value before the activation.
fn record_transposed(
    recorder: &Recorder,
    limits: &Limits,
    case: &Conv3dCase,
    dtype: FloatType,
    refused: &mut Vec<String>,
) {
    let problem = match problem(case, dtype) {
        Ok(problem) => problem,
        Err(error) => return refused.push(format!("conv3d {}: {error}", case.name)),
    };
    let plans = eligible(&problem, Pass::InputGradient, limits).into_iter();
    for plan in plans.filter(|plan| lists_transposed(&problem, plan)) {
        let what = format!("conv3d transposed forward {} {}", plan.name(), dtype.name());
        let label = Label { what, options: options(&problem, Pass::Forward) };
        let first = recorder.log().launches.len();
        let result = recorder.record(&label, |client| {
            let [y, w, x] = operands(client, &problem);
            let bias = problem.bias.then(|| tensor(client, &[problem.channels], dtype));
            let pre = tensor(client, &problem.x_shape(), FloatType::F32);
            let (operands, bias) = ([&x, &w, &y], bias.as_ref());
            transposed_forward(client, limits, &problem, &plan, operands, bias)?;
            transposed_forward_with_pre(client, limits, &problem, &plan, operands, &pre, bias)
        });
        note_refusal(result, &label, &case.name, refused);
        let needs = plan.needs(&problem, Pass::InputGradient, limits);
        refused.extend(understated(&recorder.log(), first, &needs, &label));
    }
}

/// Whether a launch of the table may need kernels that no other one needs: gradients depend on neither
/// activation nor bias nor residual, and forward passes take the activation as a run-time argument.
pub fn lists(problem: &Conv3dProblem, pass: Pass) -> bool {
    let plain = problem.window.activation == Activation::None;
    match pass {
        Pass::Forward => plain || problem.residual,
        Pass::InputGradient | Pass::WeightGradient => plain && problem.bias && !problem.residual,
    }
}

/// The cases of the table that are launched again with the value before the activation saved: fp32 results of
/// inputs of another type, and the activation kernel by itself.
pub fn keeps_pre(case: &Conv3dCase) -> bool {
    case.activation != cases::Activation::None && case.bias && !case.replicate
}

fn record_case(
    recorder: &Recorder,
    limits: &Limits,
    case: &Conv3dCase,
    dtype: FloatType,
    refused: &mut Vec<String>,
) {
    let problem = match problem(case, dtype) {
        Ok(problem) => problem,
        Err(error) => return refused.push(format!("conv3d {}: {error}", case.name)),
    };
    let plain = problem.window.activation == Activation::None;
    let passes = [Pass::Forward, Pass::InputGradient, Pass::WeightGradient];
    for pass in passes.into_iter().filter(|pass| lists(&problem, *pass)) {
        for plan in eligible(&problem, pass, limits) {
            let what = format!("conv3d {} {} {}", pass.name(), plan.name(), dtype.name());
            let label = Label { what, options: options(&problem, pass) };
            let first = recorder.log().launches.len();
            let result = recorder.record(&label, |client| launch(client, limits, &problem, pass, &plan));
            note_refusal(result, &label, &case.name, refused);
            let [count, said] =
                [recorder.log().launches.len() - first, plan.launches(&problem, pass, limits)];
            if count != said {
                refused.push(format!("{label} ({}): {count} launches where the plan says {said}", case.name));
            }
            refused.extend(understated(&recorder.log(), first, &plan.needs(&problem, pass, limits), &label));
        }
    }
    if problem.bias {
        record_bias_gradient(recorder, limits, &problem, &case.name, refused);
        let depthwise = eligible(&problem, Pass::WeightGradient, limits)
            .into_iter()
            .find(|plan| matches!(plan, Plan::Depthwise(_)));
        if let Some(plan) = depthwise.filter(|_| plain) {
            let what = format!("conv3d weight and bias gradient {} {}", plan.name(), dtype.name());
            let label = Label { what, options: options(&problem, Pass::WeightGradient) };
            let result = recorder.record(&label, |client| {
                let [x, w, dy] = operands(client, &problem);
                let db = tensor(client, &[problem.out_channels], dtype);
                weight_and_bias_gradient(client, limits, &problem, &plan, [&x, &dy, &w], &db)
            });
            note_refusal(result, &label, &case.name, refused);
        }
    }
    if keeps_pre(case) {
        for plan in eligible(&problem, Pass::Forward, limits) {
            let what = format!("conv3d forward with pre {} {}", plan.name(), dtype.name());
            let label = Label { what, options: options(&problem, Pass::Forward) };
            let result = recorder.record(&label, |client| {
                let [x, w, y] = operands(client, &problem);
                let pre = tensor(client, &problem.y_shape(), FloatType::F32);
                let [bias, residual] = added(client, &problem);
                let added = Added { bias: bias.as_ref(), residual: residual.as_ref() };
                forward_with_pre(client, limits, &problem, &plan, [&x, &w, &y], &pre, added)
            });
            note_refusal(result, &label, &case.name, refused);
        }
    }
    let activation = problem.window.activation;
    let options = format!("{activation:?}").to_lowercase();
    let label = Label { what: format!("conv3d activation gradient {}", dtype.name()), options };
    let result = recorder.record(&label, |client| {
        let y = problem.y_shape();
        let [dy, dpre] = [(); 2].map(|()| tensor(client, &y, dtype));
        // SiLU saves fp32, ReLU its output.
        let saved_dtype = if activation == Activation::Silu { FloatType::F32 } else { dtype };
        let saved = tensor(client, &y, saved_dtype);
        activation_gradient(client, limits, activation, [&saved, &dy, &dpre])
    });
    note_refusal(result, &label, &case.name, refused);
}

/// Launches one pass on tensors with undefined contents.
pub(crate) fn launch(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    pass: Pass,
    plan: &Plan,
) -> Result<(), ConvError> {
    let [x, w, y] = operands(client, problem);
    match pass {
        Pass::Forward => {
            let [bias, residual] = added(client, problem);
            let added = Added { bias: bias.as_ref(), residual: residual.as_ref() };
            forward(client, limits, problem, plan, [&x, &w, &y], added)
        }
        Pass::InputGradient => input_gradient(client, limits, problem, plan, [&y, &w, &x]),
        Pass::WeightGradient => weight_gradient(client, limits, problem, plan, [&x, &y, &w]),
    }
}

/// The bias and the residual of a problem.
fn added(client: &Client, problem: &Conv3dProblem) -> [Option<Operand>; 2] {
    let bias = problem.bias.then(|| tensor(client, &[problem.out_channels], problem.dtype));
    [bias, problem.residual.then(|| tensor(client, &problem.y_shape(), problem.dtype))]
}

fn operands(client: &Client, problem: &Conv3dProblem) -> [Operand; 3] {
    [problem.x_shape(), problem.weight_shape(), problem.y_shape()]
        .map(|shape| tensor(client, &shape, problem.dtype))
}

/// The options that kernels of a pass are specialized by, beyond plan and dtype.
fn options(problem: &Conv3dProblem, pass: Pass) -> String {
    let modes = problem.window.padding_mode;
    let mut words = vec![format!("{:?}", modes[0])];
    if modes != [modes[0]; 3] {
        words = vec![modes.map(|mode| format!("{mode:?}")).join("-")];
    }
    if pass == Pass::Forward && problem.window.activation != Activation::None {
        words.push(format!("{:?}", problem.window.activation));
    }
    if pass == Pass::Forward && problem.bias {
        words.push("bias".into());
    }
    if pass == Pass::Forward && problem.residual {
        words.push("residual".into());
    }
    words.join(" ").to_lowercase()
}
