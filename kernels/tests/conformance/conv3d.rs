//! conv3d: every case x dtype x pass x eligible plan against the f64 reference.

use crate::device::{EVERY, MOST_WORK};
use crate::support::{Buffer, client, output, read_all, upload};
use conv_cases::conv3d::{self as cases, Conv3dCase};
use conv_cases::fill;
use conv_kernels::conv3d::{
    self, Activation, Conv3dProblem, PaddingMode, Pass, Plan, Window, WinogradTile, eligible, reference,
};
use conv_kernels::tolerance::{Errors, Expected, Guard};
use conv_kernels::{FloatType, Limits};
use cubecl::prelude::*;

/// The problem of a case.
pub(crate) fn problem(case: &Conv3dCase, dtype: FloatType) -> Conv3dProblem {
    let window = Window {
        stride: case.stride,
        padding: case.padding,
        dilation: case.dilation,
        groups: case.groups,
        padding_mode: if case.replicate { PaddingMode::Replicate } else { PaddingMode::Zeros },
        activation: match case.activation {
            cases::Activation::None => Activation::None,
            cases::Activation::Relu => Activation::Relu,
            cases::Activation::Silu => Activation::Silu,
        },
    };
    Conv3dProblem::new(case.input_shape(), case.weight_shape(), case.bias.then_some(case.o), window, dtype)
        .unwrap_or_else(|error| panic!("{case}: {error}"))
}

/// Inputs of a problem on the device.
pub(crate) struct Inputs {
    pub(crate) x: Buffer,
    pub(crate) w: Buffer,
    pub(crate) bias: Option<Buffer>,
    pub(crate) dy: Buffer,
}

/// Uploads `fill(seed, length)` for each input.
pub(crate) fn inputs(
    client: &Client,
    problem: &Conv3dProblem,
    fill: &dyn Fn(u64, usize) -> Vec<f32>,
) -> Inputs {
    let tensor = |seed: u64, shape: &[usize]| {
        upload(client, &fill(seed, shape.iter().product()), shape, problem.dtype)
    };
    Inputs {
        x: tensor(1, &problem.x_shape()),
        w: tensor(2, &problem.weight_shape()),
        bias: problem.bias.then(|| tensor(3, &[problem.out_channels])),
        dy: tensor(4, &problem.y_shape()),
    }
}

/// Launches one pass into `out`.
pub(crate) fn launch(
    (client, limits): (&Client, &Limits),
    problem: &Conv3dProblem,
    (pass, plan): (Pass, &Plan),
    inputs: &Inputs,
    out: &Buffer,
) {
    let (x, w, dy, out) = (inputs.x.operand(), inputs.w.operand(), inputs.dy.operand(), out.operand());
    let bias = inputs.bias.as_ref().map(Buffer::operand);
    match pass {
        Pass::Forward => conv3d::forward(client, limits, problem, plan, [x, w, out], bias),
        Pass::InputGradient => conv3d::input_gradient(client, limits, problem, plan, [dy, w, out]),
        Pass::WeightGradient => conv3d::weight_gradient(client, limits, problem, plan, [x, dy, out]),
    }
    .unwrap_or_else(|error| panic!("{problem:?} {}: {error}", plan.name()));
}

/// Launches one pass under a plan and reads what it computes.
pub(crate) fn computed(
    (client, limits): (&Client, &Limits),
    problem: &Conv3dProblem,
    (pass, plan): (Pass, &Plan),
    inputs: &Inputs,
) -> Vec<f64> {
    let out = output(client, &result_shape(problem, pass), problem.dtype);
    launch((client, limits), problem, (pass, plan), inputs, &out);
    out.read(client)
}

/// Shape of what a pass computes.
pub(crate) fn result_shape(problem: &Conv3dProblem, pass: Pass) -> [usize; 5] {
    match pass {
        Pass::Forward => problem.y_shape(),
        Pass::InputGradient => problem.x_shape(),
        Pass::WeightGradient => problem.weight_shape(),
    }
}

pub(crate) const PASSES: [Pass; 3] = [Pass::Forward, Pass::InputGradient, Pass::WeightGradient];

/// Reference values and magnitudes of a pass under a plan.
pub(crate) struct Oracle {
    values: Vec<f64>,
    direct: Vec<f64>,
    winograd: Vec<(WinogradTile, Vec<f64>)>,
    terms: usize,
    slope: f64,
}

impl Oracle {
    pub(crate) fn new(problem: &Conv3dProblem, pass: Pass, inputs: &Inputs, plans: &[Plan]) -> Self {
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
        let direct = evaluate(&absolute(&x), &absolute(&w), abs_bias.as_deref(), &absolute(&dy));
        let winograd = plans
            .iter()
            .filter_map(|plan| match plan {
                Plan::Winograd(config) => Some(config.tile),
                _ => None,
            })
            .map(|tile| {
                let source = if pass == Pass::Forward { &x } else { &dy };
                let replicate = problem.window.padding_mode == PaddingMode::Replicate;
                let mut magnitude = if pass == Pass::WeightGradient {
                    conv3d::winograd::reference::weight_gradient(problem, tile, &x, &dy, true)
                } else if replicate && pass == Pass::InputGradient {
                    reference_extended(problem, tile, source, &w)
                } else {
                    conv3d::winograd::reference::evaluate(problem, pass, tile, source, &w, true)
                };
                // The bias joins after the transform, inside the direct magnitude.
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
        // exp and the division of SiLU add a few units in the last place of a value below the magnitude.
        let (slope, extra) = if activation == Activation::Silu { (1.1, 24) } else { (1.0, 0) };
        Self { values, direct, winograd, terms: terms + extra, slope }
    }

    pub(crate) fn check(
        &self,
        plan: &Plan,
        pass: Pass,
        dtype: FloatType,
        got: &[f64],
        random: bool,
    ) -> Result<Errors, String> {
        let (magnitudes, rounds, guard) = match plan {
            Plan::Winograd(config) => {
                let magnitude =
                    &self.winograd.iter().find(|(tile, _)| *tile == config.tile).expect("computed").1;
                let guard = config.tile.guard();
                // Two transforms of t terms on the way in, one on the way out, two stages each.
                (magnitude, 6 * config.tile.inputs(), guard)
            }
            _ => (
                &self.direct,
                0,
                if pass == Pass::WeightGradient { Guard::WEIGHT_GRADIENT } else { Guard::SUM },
            ),
        };
        let expected = Expected {
            values: &self.values,
            magnitudes,
            terms: self.terms + rounds,
            dtype,
            slope: self.slope,
        };
        expected.check(got, random.then_some(guard.stored_as(dtype)))
    }

    pub(crate) fn values(&self) -> &[f64] {
        &self.values
    }
}

/// Magnitudes of a Winograd input gradient under replicate padding: that of the padded input, folded.
fn reference_extended(problem: &Conv3dProblem, tile: WinogradTile, dy: &[f64], w: &[f64]) -> Vec<f64> {
    let padding = problem.window.padding;
    let extended = Conv3dProblem {
        input: [0, 1, 2].map(|axis| problem.input[axis] + padding[axis].0 + padding[axis].1),
        window: Window { padding: [(0, 0); 3], padding_mode: PaddingMode::Zeros, ..problem.window },
        ..*problem
    };
    let values = conv3d::winograd::reference::evaluate(&extended, Pass::InputGradient, tile, dy, w, true);
    let mut folded = vec![0.0; problem.x_shape().iter().product()];
    let [d, h, w] = extended.input;
    let inner = problem.input;
    for (index, value) in values.iter().enumerate() {
        let at = [index / (h * w) % d, index / w % h, index % w];
        let p = [0, 1, 2].map(|axis| at[axis].saturating_sub(padding[axis].0).min(inner[axis] - 1));
        folded[((index / (d * h * w) * inner[0] + p[0]) * inner[1] + p[1]) * inner[2] + p[2]] += value;
    }
    folded
}

fn padded_work(problem: &Conv3dProblem, pass: Pass, plan: &Plan) -> usize {
    match plan {
        // A cube per channel, however little there is of it.
        Plan::Depthwise => problem.channels * 256 * problem.taps(),
        Plan::Winograd(config) => (config.cost(problem, pass).operations / 2.0) as usize,
        plan => plan
            .tiles(problem, pass)
            .map_or(0, |tiles| tiles.count * tiles.rows * tiles.columns * tiles.terms),
    }
}

/// Which tiles of the engine a case runs.
#[derive(Clone, Copy)]
pub(crate) enum Tiles {
    All,
    /// One of each kind; the cases of a table take turns.
    InTurn,
    /// The plans that a function picks, whatever they cost.
    Only(fn(&Plan) -> bool),
}

/// All plans, but of those that differ by nothing but the tile one, another at every turn.
pub(crate) fn one_tile_each(mut plans: Vec<Plan>, turn: usize) -> Vec<Plan> {
    let kinds: [fn(&Plan) -> bool; 5] = [
        |plan| matches!(plan, Plan::Gemm(_)),
        |plan| matches!(plan, Plan::MatrixGemm(_)),
        |plan| matches!(plan, Plan::ShiftedGemm(_) | Plan::ShiftedWeight(_)),
        |plan| matches!(plan, Plan::Stem(_)),
        |plan| matches!(plan, Plan::Head(_)),
    ];
    for kind in kinds {
        let (tiles, others): (Vec<_>, Vec<_>) = plans.into_iter().partition(kind);
        plans = others;
        plans.extend(tiles.get(turn % tiles.len().max(1)));
    }
    plans
}

pub(crate) fn run(table: &[Conv3dCase], fill: &dyn Fn(u64, usize) -> Vec<f32>, exact: bool) {
    let client = client();
    run_with((&client, &Limits::of(&client)), table, fill, exact, Tiles::InTurn);
}

/// [`run`] with every tile of the engine for every case.
pub(crate) fn run_all_tiles(table: &[Conv3dCase], fill: &dyn Fn(u64, usize) -> Vec<f32>, exact: bool) {
    let client = client();
    run_with((&client, &Limits::of(&client)), table, fill, exact, Tiles::All);
}

/// Checks a table under every eligible plan of `limits`; with `exact`, integer data and no tolerance.
pub(crate) fn run_with(
    (client, limits): (&Client, &Limits),
    table: &[Conv3dCase],
    fill: &dyn Fn(u64, usize) -> Vec<f32>,
    exact: bool,
    tiles: Tiles,
) {
    let mut failures = Vec::new();
    let mut checks = 0usize;
    for (turn, case) in table.iter().enumerate() {
        for &dtype in &limits.dtypes {
            let problem = problem(case, dtype);
            let inputs = inputs(client, &problem, fill);
            let mut launched = Vec::new();
            for pass in PASSES {
                let mut plans = eligible(&problem, pass, limits);
                match tiles {
                    Tiles::All => (),
                    Tiles::InTurn => plans = one_tile_each(plans, turn),
                    Tiles::Only(picks) => plans.retain(picks),
                }
                if !matches!(tiles, Tiles::Only(_)) {
                    plans.retain(|plan| padded_work(&problem, pass, plan) <= MOST_WORK);
                }
                let oracle = Oracle::new(&problem, pass, &inputs, &plans);
                let outputs: Vec<_> = plans
                    .iter()
                    .map(|plan| {
                        let out = output(client, &result_shape(&problem, pass), dtype);
                        launch((client, limits), &problem, (pass, plan), &inputs, &out);
                        out
                    })
                    .collect();
                launched.push((pass, plans, oracle, outputs));
            }
            for (pass, plans, oracle, outputs) in launched {
                for (plan, got) in plans.iter().zip(read_all(client, &outputs.iter().collect::<Vec<_>>())) {
                    checks += 1;
                    let inexact = matches!(plan, Plan::Winograd(config) if config.tile != WinogradTile::F2x2);
                    let result = if exact && !inexact {
                        check_exact(&got, oracle.values(), dtype)
                    } else {
                        oracle.check(plan, pass, dtype, &got, !exact).map(|_| ())
                    };
                    if let Err(error) = result {
                        failures.push(format!(
                            "{case}\n  {} {} {}: {error}",
                            dtype.name(),
                            pass.name(),
                            plan.name()
                        ));
                    }
                }
            }
        }
    }
    println!("{} cases, {checks} checks", table.len());
    assert!(failures.is_empty(), "{} of {checks} checks failed:\n{}", failures.len(), failures.join("\n"));
}

/// The reference of integer inputs is an integer below 2^24, exact in fp32; a half type rounds it once.
fn check_exact(got: &[f64], want: &[f64], dtype: FloatType) -> Result<(), String> {
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let want = f64::from(crate::support::round(*want as f32, dtype));
        if *got != want {
            return Err(format!("element {index}: got {got}, exactly {want} expected"));
        }
    }
    Ok(())
}

/// A third of the conformance table, so that the thirds can run beside each other.
fn third(part: usize) -> Vec<Conv3dCase> {
    cases::conformance().into_iter().skip(part).step_by(3).collect()
}

fn normal_data(part: usize) {
    let table: Vec<_> = third(part).into_iter().step_by(EVERY).collect();
    run(&table, &fill::normal, false);
}

fn integers(part: usize) {
    let table = third(part).into_iter().skip(EVERY - 1).step_by(EVERY);
    let table: Vec<_> = table.filter(|case| case.activation != cases::Activation::Silu).collect();
    run(&table, &|seed, length| fill::integers(seed, length, -4, 4), true);
}

macro_rules! tests {
    ($($name:ident: $run:ident($part:literal);)*) => { $(#[test] fn $name() { $run($part); })* };
}

tests! {
    every_plan_matches_the_reference_on_normal_data_first_third: normal_data(0);
    every_plan_matches_the_reference_on_normal_data_second_third: normal_data(1);
    every_plan_matches_the_reference_on_normal_data_last_third: normal_data(2);
    integer_inputs_are_exact_first_third: integers(0);
    integer_inputs_are_exact_second_third: integers(1);
    integer_inputs_are_exact_last_third: integers(2);
}

#[test]
fn tile_boundaries_are_exact() {
    run_all_tiles(&cases::tile_boundaries(), &|seed, length| fill::integers(seed, length, -4, 4), true);
}
