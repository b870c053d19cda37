//! The rows of causal conv3d: the layers of a video decoder that gets a clip in pieces, by ways to convolve
//! the frames of a cache and those of x.
//!
//! | whose, plan               | what is timed                                                              |
//! |---------------------------|----------------------------------------------------------------------------|
//! | ours, `causal, PLAN`      | `causal_conv3d`: y and the new cache                                       |
//! | ours, `pad+cat, PLAN`     | what published decoders do, with this project's conv3d                     |
//! | ours, `joined, PLAN`      | conv3d of frames that were joined before: y alone                          |
//! | burn, `pad+cat+conv3d`    | what published decoders do, with Burn's conv3d                             |
//! | peers, `pad+cat+conv3d`   | the same, and `cat+conv3d`, whose convolution pads                         |
//!
//! A layer whose windows have one frame has no cache: one row of each implementation. All rows go through
//! Burn's tensors, so that joining, padding and slicing are those of a user. Gradients of some layers: dx is
//! that of the cache and that of x.

mod layer;
mod moved;
mod total;
mod truths;

use crate::bench::{Bench, Row};
use crate::conv3d::{Subject, TruthKey, bytes, problem, tile, work};
use crate::options::{Op, Options, Pass, Size};
use crate::peers;
use crate::report::BURN;
use crate::scale;
use crate::verify::Truth;
use anyhow::Result;
use bench_record::record::OURS;
use conv_cases::workloads::{self, CausalConv3dWorkload};
use conv_kernels::conv3d::{
    Algorithm, Conv3dProblem, Pass as KernelPass, Plan, Window, gradient_plan, plan, predicted_seconds,
};
use conv_kernels::{ConvError, FloatType, Limits};
use layer::Layer;
use serde_json::json;
use std::rc::Rc;

const OP: &str = "causal_conv3d";

const PASSES: [Pass; 3] = [Pass::Fwd, Pass::Dx, Pass::Dw];

/// How cache and x are convolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// By the op.
    Causal,
    /// Joined and padded in memory, then by our conv3d.
    PadCat,
    /// Joined before, by our conv3d.
    Joined,
    /// Joined and padded in memory, then by Burn's conv3d.
    Burn,
}

/// The cases that are asked for.
pub(crate) fn cases(options: &Options, size: Size) -> Vec<CausalConv3dWorkload> {
    let wanted = |row: &CausalConv3dWorkload| {
        let pass = options.wants_pass(Pass::Fwd) || row.gradients;
        options.wants_op(Op::CausalConv3d) && options.wants_case(&row.case.name) && pass
    };
    let table = workloads::causal_conv3d().into_iter().filter(wanted);
    match size {
        Size::Full => table.collect(),
        Size::Small => {
            table.map(|row| CausalConv3dWorkload { case: scale::conv3d(&row.case), ..row }).collect()
        }
    }
}

/// Measures every case, and says what a step of a decoder takes.
pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let cases = cases(&bench.options, bench.size);
    for workload in &cases {
        for dtype in bench.dtypes() {
            run_case(bench, workload, dtype)?;
            bench.clean_up();
        }
        bench.report.end_case(&title(workload));
    }
    if let Some(table) = total::table(&bench.report.records(), &cases) {
        bench.report.note(&table);
    }
    Ok(())
}

/// The case on one line.
fn title(workload: &CausalConv3dWorkload) -> String {
    let case = &workload.case;
    let join = |values: &[usize]| values.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
    format!(
        "{OP} {}: {} ({} cached) -> {}, kernel {}, {} in a step",
        case.name,
        join(&case.input_shape()),
        workload.cached(),
        join(&case.output_shape()),
        join(&case.kernel),
        workload.calls
    )
}

fn run_case(bench: &mut Bench, workload: &CausalConv3dWorkload, dtype: FloatType) -> Result<()> {
    let problem = problem(&workload.case, dtype)?;
    let held = workload.cached();
    let padded = padded(&problem)?;
    let of = |shape: [usize; 5]| bytes(&shape, dtype);
    let tensors = [
        ("x", of(problem.x_shape())),
        ("the joined frames", of(padded.x_shape())),
        ("w", of(problem.weight_shape())),
        ("y", of(problem.y_shape())),
    ];
    if let Some(reason) = bench.misfit(&tensors) {
        bench.report.skip(format!("{OP} {} {}: {reason}", workload.case.name, dtype.name()));
        return Ok(());
    }
    let subject = Subject::new(problem, false);
    let layer = Layer::upload(&bench.device.burn, &subject, held);
    let limits = bench.device.limits.clone();
    for pass in bench.options.passes(&PASSES) {
        if pass != Pass::Fwd && !workload.gradients {
            continue;
        }
        let kernel_pass = kernel_pass(pass);
        for way in ways(held, pass) {
            let (name, plan) = named_plan(way, &problem, held, kernel_pass, &limits)?;
            let row = row(workload, dtype, pass, name, way == ways(held, pass)[0]);
            if bench.options.wants_plan(&row.plan, true) {
                let key = TruthKey {
                    pass: kernel_pass,
                    tile: tile(&plan),
                    ones: kernel_pass != KernelPass::Forward,
                };
                measure(bench, &row, (&layer, way, &plan), &subject.truth(key))?;
            }
        }
        run_peers(bench, workload, &subject, pass)?;
        if !bench.options.no_burn && burn_serves(bench, workload, &problem) {
            let row = row(workload, dtype, pass, layer.burn_name().into(), true);
            let key = TruthKey { pass: kernel_pass, tile: None, ones: kernel_pass != KernelPass::Forward };
            let (_, plan) = named_plan(Way::Burn, &problem, held, kernel_pass, &limits)?;
            measure(bench, &row, (&layer, Way::Burn, &plan), &subject.truth(key))?;
        }
    }
    Ok(())
}

fn row(workload: &CausalConv3dWorkload, dtype: FloatType, pass: Pass, plan: String, chosen: bool) -> Row {
    Row { op: OP, case: workload.case.name.clone(), dtype, pass, plan, chosen }
}

fn kernel_pass(pass: Pass) -> KernelPass {
    match pass {
        Pass::Dx => KernelPass::InputGradient,
        Pass::Dw => KernelPass::WeightGradient,
        _ => KernelPass::Forward,
    }
}

/// Our rows, the first of them what a user of the op gets. Gradients through a padded copy would be compared
/// with those of another problem.
fn ways(held: usize, pass: Pass) -> Vec<Way> {
    match (held, pass) {
        (0, _) => vec![Way::Joined],
        (_, Pass::Fwd) => vec![Way::Causal, Way::PadCat, Way::Joined],
        _ => vec![Way::Causal, Way::Joined],
    }
}

/// The plan that a way of ours takes, and the name of its row.
fn named_plan(
    way: Way,
    problem: &Conv3dProblem,
    held: usize,
    pass: KernelPass,
    limits: &Limits,
) -> Result<(String, Plan), ConvError> {
    let choose = |problem: &Conv3dProblem, algorithm| match pass {
        KernelPass::Forward => plan(problem, pass, algorithm, limits),
        _ => gradient_plan(problem, pass, algorithm, limits),
    };
    let (prefix, plan) = match way {
        Way::Causal => ("causal, ", choose(&problem.for_streams(), Algorithm::Auto)?),
        Way::PadCat => ("pad+cat, ", choose(&padded(problem)?, Algorithm::Auto)?),
        Way::Joined | Way::Burn if held == 0 => ("", choose(problem, Algorithm::Auto)?),
        Way::Joined | Way::Burn => ("joined, ", choose(problem, Algorithm::Auto)?),
    };
    Ok((format!("{prefix}{}", plan.name()), plan))
}

/// The plan's name and the seconds that the model predicts for the op, and for conv3d of frames that were
/// joined before.
pub(crate) fn predicted(
    problem: &Conv3dProblem,
    held: usize,
    limits: &Limits,
) -> Result<[(String, f64); 2], ConvError> {
    let pass = KernelPass::Forward;
    let of = |way: Way| {
        let (name, plan) = named_plan(way, problem, held, pass, limits)?;
        let seconds = predicted_seconds(problem, pass, &plan, limits);
        Ok((name, seconds))
    };
    Ok([of(if held == 0 { Way::Joined } else { Way::Causal })?, of(Way::Joined)?])
}

/// The problem of frames whose plane was padded in memory.
fn padded(problem: &Conv3dProblem) -> Result<Conv3dProblem, ConvError> {
    let [n, c, d, h, w] = problem.x_shape();
    let [_, height, width] = problem.window.padding;
    let shape = [n, c, d, h + height.0 + height.1, w + width.0 + width.1];
    let window = Window { padding: [(0, 0); 3], ..problem.window };
    Conv3dProblem::new(shape, problem.weight_shape(), None, window, problem.dtype)
}

/// Measures a way by a plan of ours; `truth` is that of the frames joined along depth.
fn measure(
    bench: &mut Bench,
    row: &Row,
    (layer, way, plan): (&Layer, Way, &Plan),
    truth: &Rc<Truth>,
) -> Result<()> {
    let implementation = if way == Way::Burn { BURN } else { OURS };
    let problem = &layer.problem;
    // Frames that were joined before have no cache to give on.
    let held = if way == Way::Joined { 0 } else { layer.held };
    let truths = truths::of(truth, problem, row.pass, held);
    let mut work = work(problem, row.pass);
    work.moved = Some(moved::bytes_of(way, problem, layer.held, kernel_pass(row.pass), plan)?);
    if row.pass == Pass::Fwd {
        work.bytes += truths[1..].iter().map(|kept| bytes(&kept.shape, problem.dtype) as f64).sum::<f64>();
    }
    match row.pass {
        Pass::Fwd => bench.tensors(row, work, &truths, implementation, &|| (), &|()| layer.forward(way)),
        pass => {
            bench.tensors(row, work, &truths, implementation, &|| layer.graph(way, pass), &Layer::backward)
        }
    }
}

/// Whether Burn's op is timed; says so where it is not.
fn burn_serves(bench: &mut Bench, workload: &CausalConv3dWorkload, problem: &Conv3dProblem) -> bool {
    let gflop = 2e-9 * problem.multiply_adds();
    let most = bench.options.burn_max_gflop;
    if gflop > most {
        bench.report.skip(format!(
            "{OP} {} {}, Burn: {gflop:.0} GFLOP, --burn-max-gflop allows {most}",
            workload.case.name,
            problem.dtype.name()
        ));
    }
    gflop <= most
}

/// The same layer for peers in other processes.
fn run_peers(
    bench: &mut Bench,
    workload: &CausalConv3dWorkload,
    subject: &Subject,
    pass: Pass,
) -> Result<()> {
    if bench.peers.is_none() {
        return Ok(());
    }
    let Subject { problem, sources, .. } = subject;
    let held = workload.cached();
    let truth = subject.truth(TruthKey { pass: kernel_pass(pass), tile: None, ones: false });
    let truths = truths::of(&truth, problem, pass, held);
    // Padded in memory, as published decoders do, and by the convolution.
    let pads: &[bool] = if held > 0 && pass == Pass::Fwd { &[true, false] } else { &[held > 0] };
    for pad in pads {
        let job = peers::job(json!({
            "op": OP,
            "shapes": {"x": problem.x_shape(), "w": problem.weight_shape(), "dy": problem.y_shape()},
            "seeds": {"x": sources.x.seed(), "w": sources.w.seed(), "dy": sources.dy.seed()},
            "padding": problem.window.padding,
            "cached": held,
            "pad": pad,
        }));
        let row = row(workload, problem.dtype, pass, String::new(), true);
        bench.peers(&row, work(problem, pass), &truths, job)?;
    }
    Ok(())
}
