//! conv3d: the inputs of a problem on the device, launches of every pass, and the expected results.

use crate::buffer::{Buffer, output, round, upload};
use conv_cases::conv3d::{self as cases, Conv3dCase};
use conv_kernels::conv3d::{
    self, Activation, Added, Conv3dProblem, PaddingMode, Pass, Plan, Window, WinogradTile, reference,
};
use conv_kernels::tolerance::{Errors, Expected, Guard};
use conv_kernels::{ConvError, FloatType, Limits};
use cubecl::prelude::*;

/// The problem of a case.
///
/// # Errors
/// The sentence of a case that is refused.
pub fn problem(case: &Conv3dCase, dtype: FloatType) -> Result<Conv3dProblem, ConvError> {
    let window = Window {
        stride: case.stride,
        padding: case.padding,
        dilation: case.dilation,
        groups: case.groups,
        padding_mode: case.padding_modes().map(|mode| match mode {
            cases::Padding::Zeros => PaddingMode::Zeros,
            cases::Padding::Replicate => PaddingMode::Replicate,
            cases::Padding::Reflect => PaddingMode::Reflect,
            cases::Padding::Circular => PaddingMode::Circular,
        }),
        activation: match case.activation {
            cases::Activation::None => Activation::None,
            cases::Activation::Relu => Activation::Relu,
            cases::Activation::Silu => Activation::Silu,
        },
    };
    let bias = case.bias.then_some(case.o);
    let problem = Conv3dProblem::new(case.input_shape(), case.weight_shape(), bias, window, dtype)?;
    Ok(Conv3dProblem { residual: case.residual, ..problem })
}

/// Inputs of a problem on the device.
pub struct Inputs {
    /// `[N, C, D, H, W]`.
    pub x: Buffer,
    /// `[O, C/groups, KD, KH, KW]`.
    pub w: Buffer,
    /// `[O]`.
    pub bias: Option<Buffer>,
    /// Of y's shape.
    pub residual: Option<Buffer>,
    /// Of y's shape: the gradient before the activation.
    pub dy: Buffer,
}

/// Uploads `fill(seed, length)` for each input.
pub fn inputs(client: &Client, problem: &Conv3dProblem, fill: &dyn Fn(u64, usize) -> Vec<f32>) -> Inputs {
    let tensor = |seed: u64, shape: &[usize]| {
        upload(client, &fill(seed, shape.iter().product()), shape, problem.dtype)
    };
    Inputs {
        x: tensor(1, &problem.x_shape()),
        w: tensor(2, &problem.weight_shape()),
        bias: problem.bias.then(|| tensor(3, &[problem.out_channels])),
        residual: problem.residual.then(|| tensor(5, &problem.y_shape())),
        dy: tensor(4, &problem.y_shape()),
    }
}

impl Inputs {
    /// What a forward pass adds.
    pub fn added(&self) -> Added<'_> {
        let [bias, residual] = [&self.bias, &self.residual].map(|added| added.as_ref().map(Buffer::operand));
        Added { bias, residual }
    }
}

/// Launches one pass into `out`.
pub fn launch(
    device: (&Client, &Limits),
    problem: &Conv3dProblem,
    (pass, plan): (Pass, &Plan),
    inputs: &Inputs,
    out: &Buffer,
) {
    try_launch(device, problem, (pass, plan), inputs, out)
        .unwrap_or_else(|error| panic!("{problem:?} {}: {error}", plan.name()));
}

/// [`launch`] with an error instead of a panic.
///
/// # Errors
/// Those of the pass.
pub fn try_launch(
    (client, limits): (&Client, &Limits),
    problem: &Conv3dProblem,
    (pass, plan): (Pass, &Plan),
    inputs: &Inputs,
    out: &Buffer,
) -> Result<(), ConvError> {
    let (x, w, dy, out) = (inputs.x.operand(), inputs.w.operand(), inputs.dy.operand(), out.operand());
    match pass {
        Pass::Forward => conv3d::forward(client, limits, problem, plan, [x, w, out], inputs.added()),
        Pass::InputGradient => conv3d::input_gradient(client, limits, problem, plan, [dy, w, out]),
        Pass::WeightGradient => conv3d::weight_gradient(client, limits, problem, plan, [x, dy, out]),
    }
}

/// The bias `[C]` of the transposed forward pass, for a problem that has one.
pub fn transposed_bias(
    client: &Client,
    problem: &Conv3dProblem,
    fill: &dyn Fn(u64, usize) -> Vec<f32>,
) -> Option<Buffer> {
    let shape = [problem.channels];
    problem.bias.then(|| upload(client, &fill(5, shape[0]), &shape, problem.dtype))
}

/// Launches the transposed forward pass of dy into `out`, which has x's shape.
///
/// # Errors
/// Those of the pass.
pub fn try_launch_transposed(
    (client, limits): (&Client, &Limits),
    problem: &Conv3dProblem,
    plan: &Plan,
    (inputs, bias): (&Inputs, Option<&Buffer>),
    out: &Buffer,
) -> Result<(), ConvError> {
    let operands = [inputs.dy.operand(), inputs.w.operand(), out.operand()];
    conv3d::transposed_forward(client, limits, problem, plan, operands, bias.map(Buffer::operand))
}

/// Launches one pass under a plan and reads what it computes.
pub fn computed(
    (client, limits): (&Client, &Limits),
    problem: &Conv3dProblem,
    (pass, plan): (Pass, &Plan),
    inputs: &Inputs,
) -> Vec<f64> {
    let out = output(client, &result_shape(problem, pass), problem.dtype);
    launch((client, limits), problem, (pass, plan), inputs, &out);
    out.read(client)
}

/// Shape of the result of a pass.
pub fn result_shape(problem: &Conv3dProblem, pass: Pass) -> [usize; 5] {
    match pass {
        Pass::Forward => problem.y_shape(),
        Pass::InputGradient => problem.x_shape(),
        Pass::WeightGradient => problem.weight_shape(),
    }
}

/// Every pass.
pub const PASSES: [Pass; 3] = [Pass::Forward, Pass::InputGradient, Pass::WeightGradient];

/// Reference values and magnitudes of a pass under a plan.
pub struct Oracle {
    values: Vec<f64>,
    direct: Vec<f64>,
    winograd: Vec<(WinogradTile, Vec<f64>)>,
    terms: usize,
    slope: f64,
}

impl Oracle {
    /// The f64 results of a pass, with the magnitudes that its plans are bounded by.
    pub fn new(problem: &Conv3dProblem, pass: Pass, inputs: &Inputs, plans: &[Plan]) -> Self {
        let (x, w, dy) = (inputs.x.values(), inputs.w.values(), inputs.dy.values());
        let bias = inputs.bias.as_ref().map(Buffer::values);
        let absolute = |values: &[f64]| -> Vec<f64> { values.iter().map(|value| value.abs()).collect() };
        let evaluate = |x: &[f64], w: &[f64], bias: Option<&[f64]>, dy: &[f64]| match pass {
            Pass::Forward => reference::pre_activation(problem, x, w, bias),
            Pass::InputGradient => reference::input_gradient(problem, w, dy),
            Pass::WeightGradient => reference::weight_gradient(problem, x, dy),
        };
        let activation = if pass == Pass::Forward { problem.window.activation } else { Activation::None };
        let mut values = evaluate(&x, &w, bias.as_deref(), &dy);
        values.iter_mut().for_each(|value| *value = reference::activate(activation, *value));
        let abs_bias = bias.as_deref().map(absolute);
        let mut direct = evaluate(&absolute(&x), &absolute(&w), abs_bias.as_deref(), &absolute(&dy));
        if let (Pass::Forward, Some(residual)) = (pass, &inputs.residual) {
            let residual = residual.values();
            values.iter_mut().zip(&residual).for_each(|(value, added)| *value += added);
            direct.iter_mut().zip(&residual).for_each(|(sum, added)| *sum += added.abs());
        }
        let winograd = plans
            .iter()
            .filter_map(|plan| match plan {
                Plan::Winograd(config) => Some(config.tile),
                _ => None,
            })
            .map(|tile| {
                let source = if pass == Pass::Forward { &x } else { &dy };
                let folded = problem.window.padding_mode != [PaddingMode::Zeros; 3];
                let mut magnitude = if pass == Pass::WeightGradient {
                    conv3d::winograd::reference::weight_gradient(problem, tile, &x, &dy, true)
                } else if folded && pass == Pass::InputGradient {
                    folded_winograd_magnitude(problem, tile, source, &w)
                } else {
                    conv3d::winograd::reference::evaluate(problem, pass, tile, source, &w, true)
                };
                // Bias and residual are added after the transform; the direct magnitude includes them.
                magnitude.iter_mut().zip(&direct).for_each(|(sum, direct)| *sum += direct);
                (tile, magnitude)
            })
            .collect();
        let [forward, input, windows] = reference::longest_sums(problem);
        let terms = match pass {
            Pass::Forward => forward,
            Pass::InputGradient => input,
            Pass::WeightGradient => windows,
        };
        let (slope, extra) = of_activation(activation);
        Self { values, direct, winograd, terms: terms + extra, slope }
    }

    /// Those of the transposed forward pass, whose plans are the input gradient's.
    pub fn transposed(
        problem: &Conv3dProblem,
        (inputs, bias): (&Inputs, Option<&Buffer>),
        plans: &[Plan],
    ) -> Self {
        let of_sum = Self::new(problem, Pass::InputGradient, inputs, plans);
        let bias = bias.map(Buffer::values);
        let (dy, w) = (inputs.dy.values(), inputs.w.values());
        let values = reference::transposed_forward(problem, &dy, &w, bias.as_deref());
        let positions = problem.input.iter().product::<usize>();
        let with_bias = |mut magnitudes: Vec<f64>| {
            for (index, magnitude) in magnitudes.iter_mut().enumerate() {
                *magnitude +=
                    bias.as_ref().map_or(0.0, |bias| bias[index / positions % problem.channels].abs());
            }
            magnitudes
        };
        let (slope, extra) = of_activation(problem.window.activation);
        Self {
            values,
            direct: with_bias(of_sum.direct),
            winograd: of_sum.winograd.into_iter().map(|(tile, sums)| (tile, with_bias(sums))).collect(),
            terms: of_sum.terms + extra,
            slope,
        }
    }

    /// The expected result under a plan and the RMS guard for normally distributed data.
    ///
    /// # Panics
    /// For the tile of a Winograd plan that was not given to [`Oracle::new`].
    pub fn expected(&self, plan: &Plan, pass: Pass, dtype: FloatType) -> (Expected<'_>, Guard) {
        let (magnitudes, stage_terms, guard) = match plan {
            Plan::Winograd(config) => {
                let magnitude =
                    &self.winograd.iter().find(|(tile, _)| *tile == config.tile).expect("computed").1;
                let guard = config.tile.guard();
                // Two input transforms and one output transform of t terms, two stages each.
                (magnitude, 6 * config.tile.inputs(), guard)
            }
            _ => (
                &self.direct,
                0,
                if pass == Pass::WeightGradient { Guard::WEIGHT_GRADIENT } else { Guard::SUM },
            ),
        };
        let values = &self.values;
        let expected =
            Expected { values, magnitudes, terms: self.terms + stage_terms, dtype, slope: self.slope };
        (expected, guard.stored_as(dtype))
    }

    /// Compares the result of a plan; for `random` data also with the RMS guard.
    ///
    /// # Errors
    /// A report with the worst element.
    pub fn check(
        &self,
        plan: &Plan,
        pass: Pass,
        dtype: FloatType,
        got: &[f64],
        random: bool,
    ) -> Result<Errors, String> {
        let (expected, guard) = self.expected(plan, pass, dtype);
        expected.check(got, random.then_some(guard))
    }

    /// The f64 results.
    pub fn values(&self) -> &[f64] {
        &self.values
    }
}

/// An activation's largest slope, and the terms that it counts as: exp and the division of SiLU add a few
/// units in the last place of a value below the magnitude.
fn of_activation(activation: Activation) -> (f64, usize) {
    if activation == Activation::Silu { (1.1, 24) } else { (1.0, 0) }
}

/// Magnitudes of a Winograd input gradient under padding that repeats elements: those of the padded input,
/// folded.
fn folded_winograd_magnitude(problem: &Conv3dProblem, tile: WinogradTile, dy: &[f64], w: &[f64]) -> Vec<f64> {
    let Window { padding, padding_mode, .. } = problem.window;
    let held =
        [0, 1, 2].map(|axis| if padding_mode[axis] == PaddingMode::Zeros { (0, 0) } else { padding[axis] });
    let zeros = [0, 1, 2].map(|axis| (padding[axis].0 - held[axis].0, padding[axis].1 - held[axis].1));
    let extended = Conv3dProblem {
        input: [0, 1, 2].map(|axis| problem.input[axis] + held[axis].0 + held[axis].1),
        window: Window { padding: zeros, padding_mode: [PaddingMode::Zeros; 3], ..problem.window },
        ..*problem
    };
    let values = conv3d::winograd::reference::evaluate(&extended, Pass::InputGradient, tile, dy, w, true);
    let mut folded = vec![0.0; problem.x_shape().iter().product()];
    let [d, h, w] = extended.input;
    let inner = problem.input;
    for (index, value) in values.iter().enumerate() {
        let at = [index / (h * w) % d, index / w % h, index % w];
        let p = [0, 1, 2].map(|axis| {
            let read = reference::source(problem, axis, at[axis] as i64 - held[axis].0 as i64);
            read.expect("an element or its copy")
        });
        folded[((index / (d * h * w) * inner[0] + p[0]) * inner[1] + p[1]) * inner[2] + p[2]] += value;
    }
    folded
}

/// Multiply-accumulates that a plan executes, padding of its tiles included.
pub fn padded_work(problem: &Conv3dProblem, pass: Pass, plan: &Plan) -> usize {
    match plan {
        // At least one threadgroup per channel, however small.
        Plan::Depthwise(_) => problem.channels * 256 * problem.taps(),
        Plan::Winograd(config) => (config.cost(problem, pass).operations / 2.0) as usize,
        plan => plan
            .tiles(problem, pass)
            .map_or(0, |tiles| tiles.count * tiles.rows * tiles.columns * tiles.terms),
    }
}

/// Compares results of integer data: integers below 2^24, exact in fp32, rounded to the storage type.
///
/// # Errors
/// The first element that differs.
pub fn check_exact(got: &[f64], want: &[f64], dtype: FloatType) -> Result<(), String> {
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let want = f64::from(round(*want as f32, dtype));
        if *got != want {
            return Err(format!("element {index}: got {got}, exactly {want} expected"));
        }
    }
    Ok(())
}
