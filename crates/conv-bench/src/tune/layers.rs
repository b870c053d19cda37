//! The rows of a record as layers with their plans, predicted for a device.

use super::statistics::{Layer, Timed};
use crate::conv3d::{cases, problem};
use crate::options::{Options, Size};
use anyhow::Result;
use bench_record::Record;
use bench_record::record::OURS;
use conv_kernels::conv3d::{
    Algorithm, Conv3dProblem, GemmTile, Pass, Plan, WindowKernel, eligible, plan, predicted_seconds,
};
use conv_kernels::{FloatType, Limits};

/// Passes under the names of records.
pub(super) const PASSES: [(&str, Pass); 3] =
    [("fwd", Pass::Forward), ("dx", Pass::InputGradient), ("dw", Pass::WeightGradient)];

/// Memory orders, as suffixes of a case's name.
const ORDERS: [&str; 2] = ["", "_ndhwc"];

/// The layers of a record's rows, and how many rows of these passes have a plan that the device does not
/// list.
///
/// # Errors
/// For a workload that is no valid problem.
pub(crate) fn layers(records: &[Record], options: &Options, limits: &Limits) -> Result<(Vec<Layer>, usize)> {
    let (mut layers, mut unknown) = (Vec::new(), 0);
    let ours = |record: &&Record| record.op == "conv3d" && record.implementation == OURS;
    let records: Vec<_> = records.iter().filter(ours).collect();
    let mut cases: Vec<_> =
        [Size::Full, Size::Small].into_iter().flat_map(|size| cases(options, size)).collect();
    // A layer that is small already is in both.
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases.dedup_by(|a, b| a.name == b.name);
    for case in cases {
        for (order, dtype) in ORDERS.iter().flat_map(|order| FloatType::ALL.map(|dtype| (order, dtype))) {
            let name = format!("{}{order}", case.name);
            for (pass_name, pass) in PASSES {
                let of_layer = |record: &&&Record| {
                    record.case == name && record.dtype == dtype.name() && record.pass == pass_name
                };
                let rows: Vec<_> = records.iter().filter(of_layer).copied().collect();
                if rows.is_empty() {
                    continue;
                }
                let problem = problem(&case, dtype)?;
                let Ok(chosen) = plan(&problem, pass, Algorithm::Auto, limits) else {
                    unknown += rows.len();
                    continue;
                };
                let (plans, others) = timed(&rows, &problem, pass, &chosen, limits);
                unknown += others;
                if !plans.is_empty() {
                    let (dtype, pass) = (dtype.name(), pass_name);
                    layers.push(Layer { name: name.clone(), dtype, pass, plans, chosen: chosen.name() });
                }
            }
        }
    }
    Ok((layers, unknown))
}

/// The rows whose plans the device lists, by the better clock, and how many there are of others.
fn timed(
    rows: &[&Record],
    problem: &Conv3dProblem,
    pass: Pass,
    chosen: &Plan,
    limits: &Limits,
) -> (Vec<Timed>, usize) {
    let listed: Vec<Plan> = std::iter::once(*chosen).chain(eligible(problem, pass, limits)).collect();
    let (mut plans, mut unknown): (Vec<Timed>, usize) = (Vec::new(), 0);
    let has_device_clock = rows.iter().any(|row| !row.is_wall());
    for row in rows.iter().filter(|row| !has_device_clock || !row.is_wall()) {
        let Some(measured_ms) = row.median_ms else { continue };
        // Not a plan of its own: the transformed weights were there before.
        if row.plan.ends_with("_kept_filters") {
            continue;
        }
        let Some(plan) = listed.iter().find(|plan| plan.name() == row.plan) else {
            unknown += 1;
            continue;
        };
        let predicted_ms = 1e3 * predicted_seconds(problem, pass, plan, limits);
        plans.push(Timed { plan: row.plan.clone(), family: family(plan), predicted_ms, measured_ms });
    }
    (plans, unknown)
}

/// The family that a plan's constants belong to.
fn family(plan: &Plan) -> &'static str {
    match plan {
        Plan::Empty => "empty",
        Plan::Direct => "direct",
        Plan::Depthwise(_) => "depthwise",
        Plan::Gemm(GemmTile::Fma(_)) => "gemm, multiply-adds",
        Plan::Gemm(GemmTile::Mma(_)) => "gemm, matrix units",
        Plan::Window(WindowKernel::Gemm(_)) => "window gemm",
        Plan::Window(WindowKernel::Weight(_)) => "window weight",
        Plan::FewOutputs(_) => "few outputs",
        Plan::Subpixel(tile) if tile.fragment > 0 => "sub-pixel, matrix units",
        Plan::Subpixel(_) => "sub-pixel, multiply-adds",
        Plan::Winograd(config) if config.mma_tile.is_some() => "winograd, matrix units",
        Plan::Winograd(_) => "winograd, multiply-adds",
        _ => "another",
    }
}
