//! conv3d: every case x dtype x pass x eligible plan against the f64 reference.

use crate::device::{EVERY, MOST_WORK};
use crate::support::{client, output, read_all};
use conv_cases::conv3d::{self as cases, Conv3dCase};
use conv_cases::fill;
use conv_kernels::conv3d::{Activation, Conv3dProblem, PaddingMode, Plan, Window, WinogradTile, eligible};
use conv_kernels::{FloatType, Limits};
pub(crate) use conv_testing::conv3d::*;
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
