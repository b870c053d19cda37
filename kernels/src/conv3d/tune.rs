//! [`fastest_plan`]: the plan of a call by measurement. What `choose/` takes and the plans that its model
//! ranks next are timed by CubeCL's tuner on the call's own operands, once for each problem; the fastest is
//! kept.
//!
//! ```text
//! settled in this process -> the plan
//! else                       candidates -> CubeCL's tuner: kept on disk, or timed -> the plan, remembered
//! ```
//!
//! The tuner's cache, its folder and its environment variables are CubeCL's: `CUBECL_AUTOTUNE_CACHE`,
//! `cubecl.toml`. Results are kept on disk where CubeCL is built with its feature `persistence` (Burn's of
//! the same name). An entry is valid for the adapter, the candidates and this crate's version.
//!
//! The choice is then no pure function: two processes may take different plans, which round differently.

use super::call::Conv3dCall;
use super::check::check_pass;
use super::choose::model::is_on_matrices;
use super::choose::{eligible, plan, predicted_seconds};
use super::pass::Pass;
use super::plan::{Algorithm, Plan};
use super::problem::Conv3dProblem;
use super::winograd::WinogradTile;
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::limits::Limits;
use crate::operand::Operand;
use cubecl::prelude::*;
use cubecl::tune::{LocalTuner, Tunable, TunableSet};
use std::collections::HashMap;
use std::mem::{Discriminant, discriminant};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Plans that are timed at most.
const MOST: usize = 4;

/// A plan that the model predicts to take this many times as long as the best one is not timed: measured over
/// predicted time differs by as much between kinds of plans on an H200.
const MOST_SLOWER: f64 = 8.0;

/// CubeCL's tuner, by adapter.
static TUNER: LocalTuner<String, String> = LocalTuner::new("conv3d");

/// What was found for each key, with the limits that it holds under.
type Settled = HashMap<Key, Vec<(Limits, Plan)>>;

static SETTLED: LazyLock<Mutex<Settled>> = LazyLock::new(Mutex::default);

/// What a measurement is valid for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// Adapter and compiler.
    device: String,
    /// Without its bias and residual, which nearly every plan adds in its epilogue.
    problem: Conv3dProblem,
    pass: Pass,
    layouts: [Layout; 3],
}

/// The axes of more than one element, the one with the largest stride first; then zeros.
type Layout = [u8; 5];

/// The fastest of a few plans that may serve `pass`: those are timed at the first call of a problem, on these
/// operands (x, w, y; dy, w, dx; x, dy, dw). The result is written and has to be computed again.
///
/// # Errors
/// As [`super::forward`] and the gradients under the automatic choice.
///
/// # Panics
/// When the device runs none of the plans.
pub fn fastest_plan(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    pass: Pass,
    operands: [&Operand; 3],
) -> Result<Plan, ConvError> {
    let problem = Conv3dProblem { bias: false, ..*problem };
    check_pass(&problem, pass, operands)?;
    let identity = &client.properties().identity;
    let device = format!("{} {}", identity.name, client.name());
    let key = Key {
        device,
        problem,
        pass,
        layouts: operands.map(|operand| layout(&operand.shape, &operand.strides)),
    };
    if let Some(plan) = settled(&key, limits) {
        return Ok(plan);
    }
    let plans = candidates(&problem, pass, limits)?;
    let plan = if plans.len() > 1 { tune(client, limits, &key, &plans, operands) } else { plans[0] };
    let mut all = SETTLED.lock().unwrap_or_else(PoisonError::into_inner);
    all.entry(key).or_default().push((limits.clone(), plan));
    Ok(plan)
}

fn settled(key: &Key, limits: &Limits) -> Option<Plan> {
    let all = SETTLED.lock().unwrap_or_else(PoisonError::into_inner);
    all.get(key)?.iter().find(|(of, _)| of == limits).map(|(_, plan)| *plan)
}

/// What may be timed, in the order of preference: the automatic choice, the best plan of each other kind by
/// the model, then the best of all others. At least one.
fn candidates(problem: &Conv3dProblem, pass: Pass, limits: &Limits) -> Result<Vec<Plan>, ConvError> {
    let choice = plan(problem, pass, Algorithm::Auto, limits)?;
    let rank = |plan: &Plan| {
        // Where bytes bind, all tiles are predicted alike: those that compute less come first.
        let products = plan.tiles(problem, pass).map_or(f64::INFINITY, |tiles| tiles.products());
        (predicted_seconds(problem, pass, plan, limits), products)
    };
    let others = eligible(problem, pass, limits)
        .into_iter()
        .filter(|plan| *plan != choice && *plan != Plan::Direct && keeps_rounding(plan, problem.dtype, pass));
    let mut others: Vec<_> = others.map(|plan| (rank(&plan), plan)).collect();
    others.sort_by(|(a, _), (b, _)| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let best = others.iter().map(|((seconds, _), _)| *seconds).fold(rank(&choice).0, f64::min);
    others.retain(|((seconds, _), _)| *seconds <= MOST_SLOWER * best);
    let mut plans = vec![choice];
    let mut kinds = vec![kind(&choice)];
    let mut same_kind = Vec::new();
    for (_, plan) in others {
        if kinds.contains(&kind(&plan)) {
            same_kind.push(plan);
        } else {
            kinds.push(kind(&plan));
            plans.push(plan);
        }
    }
    plans.extend(same_kind);
    plans.truncate(MOST);
    Ok(plans)
}

/// Plans whose predictions share their constants: the model errs on all of them alike.
fn kind(plan: &Plan) -> (Discriminant<Plan>, bool) {
    (discriminant(plan), is_on_matrices(plan))
}

/// Whether the automatic choice would let the plan round its results: F(6x6) only where they have 16 bits.
fn keeps_rounding(plan: &Plan, dtype: FloatType, pass: Pass) -> bool {
    match plan {
        Plan::Winograd(config) => {
            config.tile != WinogradTile::F6x6 || dtype != FloatType::F32 && pass != Pass::WeightGradient
        }
        _ => true,
    }
}

/// The layout of a tensor.
fn layout(shape: &[usize], strides: &[usize]) -> Layout {
    let mut axes: Vec<usize> = (0..shape.len()).filter(|&axis| shape[axis] > 1).collect();
    axes.sort_by_key(|&axis| std::cmp::Reverse(strides[axis]));
    let mut layout = [0; 5];
    layout.iter_mut().zip(axes).for_each(|(place, axis)| *place = 1 + axis as u8);
    layout
}

/// A call that the tuner repeats under each plan.
#[derive(Clone)]
struct Trial {
    client: Client,
    limits: Arc<Limits>,
    problem: Conv3dProblem,
    pass: Pass,
    operands: [Operand; 3],
}

impl Trial {
    fn run(&self, plan: &Plan) -> Result<(), String> {
        let call = Conv3dCall::new(&self.client, &self.limits, &self.problem, self.pass, plan);
        let launched = call.and_then(|call| call.launch(self.operands.each_ref()));
        launched.map_err(|error| error.to_string())
    }
}

/// What CubeCL's tuner finds, or has found before.
fn tune(client: &Client, limits: &Limits, key: &Key, plans: &[Plan], operands: [&Operand; 3]) -> Plan {
    let names: Vec<_> = plans.iter().map(Plan::name).collect();
    let (version, problem) = (env!("CARGO_PKG_VERSION"), &key.problem);
    // The tuner keeps the place of a plan in this list.
    let name = format!("{version} {:?} {problem:?} {:?} {}", key.pass, key.layouts, names.join(" "));
    let generated = name.clone();
    let mut set: TunableSet<String, Trial, (), Plan> =
        TunableSet::new_cloning_inputs(move |_: &Trial| generated.clone());
    for plan in plans {
        let plan = *plan;
        set = set.with(Tunable::identified(plan, move |trial: Trial| trial.run(&plan)));
    }
    let set = Arc::new(set);
    let trial = Trial {
        client: client.clone(),
        limits: Arc::new(limits.clone()),
        problem: Conv3dProblem { residual: false, ..key.problem },
        pass: key.pass,
        operands: operands.map(Operand::clone),
    };
    TUNER.execute(&key.device, client, set.clone(), trial);
    // A browser measures later: until then the choice.
    TUNER.fastest_identity(&key.device, &set, &name).unwrap_or(plans[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv3d::problem::Window;

    fn problem(
        x: [usize; 5],
        o: usize,
        kernel: [usize; 3],
        groups: usize,
        dtype: FloatType,
    ) -> Conv3dProblem {
        let padding = kernel.map(|taps| (taps / 2, taps / 2));
        let window = Window { padding, groups, ..Window::default() };
        let weight = [o, x[1] / groups, kernel[0], kernel[1], kernel[2]];
        Conv3dProblem::new(x, weight, None, window, dtype).expect("a valid layer")
    }

    #[test]
    fn a_few_listed_plans_are_timed_and_the_choice_is_one_of_them() {
        let layers = [
            ([1, 64, 16, 56, 56], 192, [3; 3], 1),
            ([2, 3, 16, 112, 112], 64, [3, 7, 7], 1),
            ([1, 96, 6, 120, 208], 3, [3; 3], 1),
            ([1, 128, 8, 28, 28], 128, [1; 3], 1),
            ([1, 64, 8, 28, 28], 64, [3; 3], 64),
            ([0, 4, 2, 3, 3], 4, [1; 3], 1),
        ];
        let devices = [Limits::apple("Apple M3 Max"), Limits::h200()];
        let mut most = 0;
        for (x, o, kernel, groups) in layers {
            for (limits, dtype) in
                devices.iter().flat_map(|limits| limits.dtypes.iter().map(move |d| (limits, *d)))
            {
                let problem = problem(x, o, kernel, groups, dtype);
                for pass in [Pass::Forward, Pass::InputGradient, Pass::WeightGradient] {
                    let plans = candidates(&problem, pass, limits).expect("plans");
                    let what = format!("{problem:?} {pass:?}: {plans:?}");
                    assert_eq!(plans[0], plan(&problem, pass, Algorithm::Auto, limits).expect("a plan"));
                    assert!(plans.len() <= MOST, "{what}");
                    let listed = eligible(&problem, pass, limits);
                    assert!(plans[1..].iter().all(|plan| listed.contains(plan)), "{what}");
                    // The tuner and its cache tell plans apart by name.
                    let mut names: Vec<_> = plans.iter().map(Plan::name).collect();
                    names.sort();
                    names.dedup();
                    assert_eq!(names.len(), plans.len(), "{what}");
                    // Both kinds of GEMM and Winograd are tried before a second tile of one.
                    let kinds: Vec<_> = plans.iter().map(kind).collect();
                    let repeated = (1..kinds.len()).find(|&at| kinds[..at].contains(&kinds[at]));
                    let rest = &kinds[repeated.unwrap_or(kinds.len())..];
                    let first = &kinds[..kinds.len() - rest.len()];
                    assert!(rest.iter().all(|kind| first.contains(kind)), "{what}");
                    let large = plans.iter().any(|plan| plan.name().starts_with("winograd_6x6"));
                    assert!(!large || dtype != FloatType::F32 && pass != Pass::WeightGradient, "{what}");
                    most = most.max(plans.len());
                }
            }
        }
        assert_eq!(most, MOST);
    }

    #[test]
    fn an_order_of_axes_is_a_problem_of_its_own() {
        let shape = [2, 3, 4, 5, 6];
        let of = |strides: [usize; 5]| layout(&shape, &strides);
        assert_eq!(of([360, 120, 30, 6, 1]), [1, 2, 3, 4, 5]);
        // A slice of a larger tensor has the same order.
        assert_eq!(of([720, 240, 60, 12, 2]), [1, 2, 3, 4, 5]);
        assert_eq!(of([360, 1, 90, 18, 3]), [1, 3, 4, 5, 2]);
        // Strides of single elements mean nothing.
        assert_eq!(layout(&[1, 3, 1, 5, 6], &[7, 30, 9, 6, 1]), [2, 4, 5, 0, 0]);
    }
}
