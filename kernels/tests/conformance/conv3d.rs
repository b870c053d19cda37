//! conv3d: every case x dtype x pass x eligible plan against the f64 reference.

use crate::device::{EXECUTED, MOST_WORK};
use crate::support::{client, output, read_all};
use conv_cases::conv3d::{self as cases, Conv3dCase};
use conv_cases::fill;
use conv_kernels::conv3d::{Conv3dProblem, DepthwiseKernel, GemmTile, Pass, Plan, WinogradTile, eligible};
use conv_kernels::{FloatType, Limits};
pub(crate) use conv_testing::conv3d::*;
use conv_testing::is_full;
use cubecl::prelude::*;
use std::cell::RefCell;
use std::collections::HashSet;
use std::mem::{Discriminant, discriminant};

/// The problem of a case.
pub(crate) fn problem(case: &Conv3dCase, dtype: FloatType) -> Conv3dProblem {
    conv_testing::conv3d::problem(case, dtype).unwrap_or_else(|error| panic!("{case}: {error}"))
}

/// Which of the eligible plans a case runs.
#[derive(Clone, Copy)]
pub(crate) enum Selection {
    /// One tile of each kind of plan, the next tile for the next case of a table.
    RoundRobin,
    /// The plans that a function picks, regardless of cost.
    Only(fn(&Plan) -> bool),
    /// The launches that a function picks.
    Launches(fn(&Conv3dProblem, Pass, &Plan) -> bool),
    /// Of [`Selection::RoundRobin`] the launches with a new pair of plan kind and case option, per pass and
    /// type; at least one launch per case.
    Covering,
}

/// All plans, but only one tile of each kind: the next one in the next round.
pub(crate) fn one_tile_each(mut plans: Vec<Plan>, round: usize) -> Vec<Plan> {
    let kinds: [fn(&Plan) -> bool; 5] = [
        |plan| matches!(plan, Plan::Gemm(GemmTile::Fma(_))),
        |plan| matches!(plan, Plan::Gemm(GemmTile::Mma(_))),
        |plan| matches!(plan, Plan::Window(_)),
        |plan| matches!(plan, Plan::Subpixel(_)),
        |plan| matches!(plan, Plan::FewOutputs(_)),
    ];
    for kind in kinds {
        let (tiles, others): (Vec<_>, Vec<_>) = plans.into_iter().partition(kind);
        plans = others;
        plans.extend(tiles.get(round % tiles.len().max(1)));
    }
    plans
}

/// The options of a case that kernels branch on or are specialized by.
fn case_options(case: &Conv3dCase) -> Vec<String> {
    let groups = match case.groups {
        1 => "one group",
        groups if groups == case.c => "depthwise",
        _ => "groups",
    };
    let mut options = vec![
        groups.to_string(),
        format!("{:?}", case.padding_modes()),
        format!("bias {}", case.bias),
        format!("{:?}", case.activation),
        // Which axes, not which sizes: every case has a launch anyway, and each depthwise window is another
        // kernel.
        format!("kernel {:?}", case.kernel.map(|taps| taps > 1)),
        format!("stride {:?}", case.stride.map(|step| step > 1)),
        format!("dilation {:?}", case.dilation.map(|step| step > 1)),
        format!("batch {}", case.n.min(2)),
    ];
    for axis in 0..3 {
        let (before, after) = case.padding[axis];
        options.push(format!("padding of axis {axis}: {} {}", before > 0, before == after));
    }
    options
}

/// What [`Selection::Covering`] has covered so far: options of cases by plan kind, pass and type.
#[derive(Default)]
struct Covered(HashSet<(String, Kind, Pass, FloatType)>);

/// A plan without its tile, but with what else tells kernels apart: what multiplies, a Winograd plan's F(m x
/// m), a depthwise plan's kernel.
type Kind =
    (Discriminant<Plan>, Option<Discriminant<GemmTile>>, Option<WinogradTile>, Option<DepthwiseKernel>);

fn kind(plan: &Plan) -> Kind {
    let family = discriminant(plan);
    match plan {
        Plan::Gemm(tile) => (family, Some(discriminant(tile)), None, None),
        Plan::Winograd(config) => (family, None, Some(config.tile), None),
        Plan::Depthwise(kernel) => (family, None, None, Some(*kernel)),
        _ => (family, None, None, None),
    }
}

impl Covered {
    /// The case's launches that cover something new; if none does, one of them, by round robin. Kernels of
    /// half types differ from those of f32 by conversions at either end: each plan and pass runs them once.
    fn pick(&mut self, case: &Conv3dCase, launches: &mut Vec<(FloatType, Pass, Plan)>, round: usize) {
        let options = case_options(case);
        let any = [String::new()];
        let one = launches.get(round % launches.len().max(1)).copied();
        launches.retain(|(dtype, pass, plan)| {
            let options = if *dtype == FloatType::F32 { &options[..] } else { &any[..] };
            let pairs = options.iter().map(|option| (option.clone(), kind(plan), *pass, *dtype));
            pairs.filter(|pair| self.0.insert(pair.clone())).count() > 0
        });
        if launches.is_empty() {
            launches.extend(one);
        }
    }
}

/// A launch of a table.
type Launch = (FloatType, Pass, Plan);

thread_local! {
    /// While there is a set, [`run_with`] notes what it would launch in it, and launches nothing.
    static NOTED: RefCell<Option<HashSet<Launch>>> = const { RefCell::new(None) };
}

/// What `tests` would launch through [`run_with`].
pub(crate) fn noted(tests: impl FnOnce()) -> HashSet<Launch> {
    NOTED.set(Some(HashSet::new()));
    tests();
    NOTED.take().expect("it was set")
}

/// Notes launches where they are not to be launched; whether it did.
fn note(launches: &[Launch]) -> bool {
    NOTED
        .with_borrow_mut(|noted| noted.as_mut().map(|noted| noted.extend(launches.iter().copied())).is_some())
}

pub(crate) fn run(table: &[Conv3dCase], fill: &dyn Fn(u64, usize) -> Vec<f32>, exact: bool) {
    let client = client();
    run_with((&client, &Limits::of(&client)), table, fill, exact, Selection::RoundRobin);
}

/// [`run`] with every tile for every case.
pub(crate) fn run_all_tiles(table: &[Conv3dCase], fill: &dyn Fn(u64, usize) -> Vec<f32>, exact: bool) {
    let client = client();
    run_with((&client, &Limits::of(&client)), table, fill, exact, Selection::Launches(is_run_here));
}

/// Whether a plan's tables run on this device. In the quick tier the Metal executor on the CPU runs the plans
/// that need matrix units, the software device all others (docs/testing.md).
pub(crate) fn is_run_here(problem: &Conv3dProblem, pass: Pass, plan: &Plan) -> bool {
    if !EXECUTED || is_full() {
        return true;
    }
    let without_matrices = Limits { matrices: Vec::new(), ..Limits::apple_m1() };
    !eligible(problem, pass, &without_matrices).contains(plan)
}

/// Checks a table under every eligible plan of `limits`; with `exact`, integer data and no tolerance.
pub(crate) fn run_with(
    (client, limits): (&Client, &Limits),
    table: &[Conv3dCase],
    fill: &dyn Fn(u64, usize) -> Vec<f32>,
    exact: bool,
    selection: Selection,
) {
    let mut failures = Vec::new();
    let mut checks = 0usize;
    let mut covered = Covered::default();
    for (round, case) in table.iter().enumerate() {
        let mut launches = Vec::new();
        for (&dtype, pass) in limits.dtypes.iter().flat_map(|dtype| PASSES.map(|pass| (dtype, pass))) {
            let problem = problem(case, dtype);
            let mut plans = eligible(&problem, pass, limits);
            match selection {
                Selection::RoundRobin => plans = one_tile_each(plans, round),
                // A software device compiles each kernel for seconds: change tiles rarely.
                Selection::Covering if !EXECUTED => plans = one_tile_each(plans, 1 + round / 64),
                Selection::Covering => plans = one_tile_each(plans, round),
                Selection::Only(picks) => plans.retain(picks),
                Selection::Launches(picks) => plans.retain(|plan| picks(&problem, pass, plan)),
            }
            if !matches!(selection, Selection::Only(_)) {
                plans.retain(|plan| padded_work(&problem, pass, plan) <= MOST_WORK);
            }
            launches.extend(plans.into_iter().map(|plan| (dtype, pass, plan)));
        }
        if matches!(selection, Selection::Covering) {
            launches.retain(|(dtype, pass, plan)| is_run_here(&problem(case, *dtype), *pass, plan));
            covered.pick(case, &mut launches, round);
        }
        if note(&launches) {
            continue;
        }
        for &dtype in &limits.dtypes {
            if launches.iter().all(|launch| launch.0 != dtype) {
                continue;
            }
            let problem = problem(case, dtype);
            let inputs = inputs(client, &problem, fill);
            let mut launched = Vec::new();
            for pass in PASSES {
                let of_pass = launches.iter().filter(|launch| (launch.0, launch.1) == (dtype, pass));
                let plans: Vec<_> = of_pass.map(|launch| launch.2).collect();
                if plans.is_empty() {
                    continue;
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

/// Checks a table of cases: every launch in the full tier, else a covering subset.
pub(crate) fn run_table(table: &[Conv3dCase], fill: &dyn Fn(u64, usize) -> Vec<f32>, exact: bool) {
    let client = client();
    let selection = if is_full() { Selection::RoundRobin } else { Selection::Covering };
    run_with((&client, &Limits::of(&client)), table, fill, exact, selection);
}

#[test]
pub(crate) fn every_plan_matches_the_reference_on_normal_data() {
    run_table(&cases::conformance(), &fill::normal, false);
}

#[test]
pub(crate) fn integer_inputs_are_exact() {
    let cases = cases::conformance().into_iter().filter(|case| case.activation != cases::Activation::Silu);
    run_table(&cases.collect::<Vec<_>>(), &|seed, length| fill::integers(seed, length, -4, 4), true);
}

#[test]
pub(crate) fn tile_boundaries_are_exact() {
    run_all_tiles(&cases::tile_boundaries(), &|seed, length| fill::integers(seed, length, -4, 4), true);
}
