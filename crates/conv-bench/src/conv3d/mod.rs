//! The rows of conv3d.

mod burn;
pub(crate) mod truth;
mod winograd_truth;

use crate::bench::{Bench, Row, Work};
use crate::data::{Memory, Source, upload};
use crate::options::{Op, Options, Pass, Size};
use crate::peers;
use crate::scale;
use crate::verify::Truth;
use anyhow::Result;
use conv_cases::conv3d::Conv3dCase;
use conv_cases::workloads;
use conv_kernels::conv3d::winograd::{forward_prepared, prepare, prepared_shape};
use conv_kernels::conv3d::{
    self, Algorithm, Conv3dProblem, Pass as KernelPass, Plan, Window, WinogradConfig, WinogradTile, eligible,
    plan,
};
use conv_kernels::{ConvError, FloatType, Limits, Operand};
use cubecl::prelude::*;
use serde_json::json;
use std::cell::RefCell;
use std::rc::Rc;
use truth::Inputs;

const OP: &str = "conv3d";

/// The cases that are asked for.
pub(crate) fn cases(options: &Options, size: Size) -> Vec<Conv3dCase> {
    let table = workloads::conv3d().into_iter().map(|workload| workload.case);
    let table = table.filter(|case| options.wants_op(Op::Conv3d) && options.wants_case(&case.name));
    match size {
        Size::Full => table.collect(),
        Size::Small => table.map(|case| scale::conv3d(&case)).collect(),
    }
}

/// Measures every case.
pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    for case in cases(&bench.options, bench.size) {
        for dtype in bench.dtypes() {
            for channels_last in bench.options.layout.channels_last() {
                run_case(bench, &case, dtype, *channels_last)?;
                bench.clean_up();
            }
        }
        bench.report.end_case(&title(&case));
    }
    Ok(())
}

/// The case on one line.
fn title(case: &Conv3dCase) -> String {
    let join = |values: &[usize]| values.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
    let mut title = format!(
        "conv3d {}: {} -> {}, kernel {}",
        case.name,
        join(&case.input_shape()),
        join(&case.output_shape()),
        join(&case.kernel)
    );
    for (name, values) in [("stride", case.stride), ("dilation", case.dilation)] {
        if values != [1; 3] {
            title += &format!(", {name} {}", join(&values));
        }
    }
    if case.groups > 1 {
        title += &format!(", groups {}", case.groups);
    }
    title
}

/// One case in one storage type.
pub(crate) struct Subject {
    pub(crate) problem: Conv3dProblem,
    pub(crate) sources: Inputs,
    /// Activations and their gradients with channels last.
    channels_last: bool,
    /// What has been computed: whole results take a while.
    truths: RefCell<Vec<(TruthKey, Rc<Truth>)>>,
}

/// What a truth depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TruthKey {
    pub(crate) pass: KernelPass,
    /// Whose bound; none: a plain sum's.
    pub(crate) tile: Option<WinogradTile>,
    /// With dy all ones, which Burn's `backward` starts from.
    pub(crate) ones: bool,
}

/// N, D, H, W, C of N, C, D, H, W.
const NDHWC: Memory = Memory::Strided(&[0, 2, 3, 4, 1]);

impl Subject {
    /// A case with inputs of its own.
    pub(crate) fn new(problem: Conv3dProblem, channels_last: bool) -> Self {
        let source = |seed| Source::normal(seed, problem.dtype);
        let sources = Inputs { x: source(1), w: source(2), dy: source(3) };
        Self { problem, sources, channels_last, truths: RefCell::default() }
    }

    /// How activations lie in memory.
    fn memory(&self) -> Memory {
        if self.channels_last { NDHWC } else { Memory::RowMajor }
    }

    /// What a pass must give.
    pub(crate) fn truth(&self, key: TruthKey) -> Rc<Truth> {
        let known =
            self.truths.borrow().iter().find(|(other, _)| *other == key).map(|(_, truth)| truth.clone());
        if let Some(truth) = known {
            return truth;
        }
        let dy = if key.ones { Source::ones(self.problem.dtype) } else { self.sources.dy };
        let inputs = Inputs { dy, ..self.sources };
        let mut truth = match key.tile {
            None => truth::truth(&self.problem, key.pass, &inputs),
            Some(tile) => {
                let plain = self.truth(TruthKey { tile: None, ..key });
                winograd_truth::truth(&self.problem, key.pass, tile, &inputs, &plain)
            }
        };
        if key.pass != KernelPass::WeightGradient {
            truth.memory = self.memory();
        }
        let truth = Rc::new(truth);
        self.truths.borrow_mut().push((key, truth.clone()));
        truth
    }
}

/// The kernel passes of a benchmark pass.
fn kernel_passes(pass: Pass) -> &'static [KernelPass] {
    use KernelPass::{Forward, InputGradient, WeightGradient};
    match pass {
        Pass::Fwd => &[Forward],
        Pass::Dx => &[InputGradient],
        Pass::Dw => &[WeightGradient],
        Pass::Db => &[],
        Pass::Bwd => &[InputGradient, WeightGradient],
        Pass::FwdBwd => &[Forward, InputGradient, WeightGradient],
    }
}

/// The tile of a Winograd plan.
pub(crate) fn tile(plan: &Plan) -> Option<WinogradTile> {
    if let Plan::Winograd(config) = plan { Some(config.tile) } else { None }
}

/// A workload as a problem, without bias and activation.
pub(crate) fn problem(case: &Conv3dCase, dtype: FloatType) -> Result<Conv3dProblem, ConvError> {
    let window = Window {
        stride: case.stride,
        padding: case.padding,
        dilation: case.dilation,
        groups: case.groups,
        ..Window::default()
    };
    Conv3dProblem::new(case.input_shape(), case.weight_shape(), None, window, dtype)
}

fn run_case(bench: &mut Bench, case: &Conv3dCase, dtype: FloatType, channels_last: bool) -> Result<()> {
    let problem = problem(case, dtype)?;
    let shapes = [problem.x_shape(), problem.weight_shape(), problem.y_shape()];
    let [x_bytes, w_bytes, y_bytes] = shapes.map(|shape| bytes(&shape, dtype));
    let tensors =
        [("x", x_bytes), ("w", w_bytes), ("y", y_bytes), ("dy", y_bytes), ("dx", x_bytes), ("dw", w_bytes)];
    if let Some(reason) = bench.misfit(&tensors) {
        bench.report.skip(format!("conv3d {} {}: {reason}", case.name, dtype.name()));
        return Ok(());
    }
    let subject = Subject::new(problem, channels_last);
    run_ours(bench, case, &subject)?;
    // Peers have their own order, whatever ours is.
    if channels_last {
        return Ok(());
    }
    bench.clean_up();
    run_peers(bench, case, &subject)?;
    if bench.options.no_burn {
        return Ok(());
    }
    let gflop = 2e-9 * problem.multiply_adds();
    if gflop > bench.options.burn_max_gflop {
        bench.report.skip(format!(
            "conv3d {} {}, Burn: {gflop:.0} GFLOP, --burn-max-gflop allows {}",
            case.name,
            dtype.name(),
            bench.options.burn_max_gflop
        ));
        return Ok(());
    }
    burn::run(bench, case, &subject)
}

/// Bytes of a tensor.
pub(crate) fn bytes(shape: &[usize], dtype: FloatType) -> u64 {
    shape.iter().product::<usize>() as u64 * dtype.size() as u64
}

/// What a pass does at least.
pub(crate) fn work(problem: &Conv3dProblem, pass: Pass) -> Work {
    let of = |shape: [usize; 5]| bytes(&shape, problem.dtype) as f64;
    let (x, w, y) = (of(problem.x_shape()), of(problem.weight_shape()), of(problem.y_shape()));
    let product = 2.0 * problem.multiply_adds();
    let (flops, bytes) = match pass {
        Pass::Fwd | Pass::Dx | Pass::Dw => (product, x + w + y),
        Pass::Db => (problem.positions() as f64 * problem.out_channels as f64, y),
        Pass::Bwd => (2.0 * product, 2.0 * (x + w) + y),
        Pass::FwdBwd => (3.0 * product, 3.0 * (x + w) + 2.0 * y),
    };
    let depthwise = problem.window.groups == problem.channels && problem.channels > 1;
    Work { flops, bytes, memory_bound: depthwise || pass == Pass::Db, moved: None }
}

/// Launches one kernel pass: operands x, w, dy, and the result.
fn launch(
    (client, limits): (&Client, &Limits),
    problem: &Conv3dProblem,
    pass: KernelPass,
    plan: &Plan,
    [x, w, dy]: [&Operand; 3],
    result: &Operand,
) -> Result<(), ConvError> {
    match pass {
        KernelPass::Forward => conv3d::forward(client, limits, problem, plan, [x, w, result], None),
        KernelPass::InputGradient => conv3d::input_gradient(client, limits, problem, plan, [dy, w, result]),
        KernelPass::WeightGradient => conv3d::weight_gradient(client, limits, problem, plan, [x, dy, result]),
    }
}

const PASSES: [Pass; 6] = [Pass::Fwd, Pass::Dx, Pass::Dw, Pass::Db, Pass::Bwd, Pass::FwdBwd];

fn run_ours(bench: &mut Bench, case: &Conv3dCase, subject: &Subject) -> Result<()> {
    let (client, limits) = (bench.device.client.clone(), bench.device.limits.clone());
    let problem = &subject.problem;
    let x = upload(&client, &subject.sources.x, &problem.x_shape(), subject.memory());
    let w = upload(&client, &subject.sources.w, &problem.weight_shape(), Memory::RowMajor);
    let dy = upload(&client, &subject.sources.dy, &problem.y_shape(), subject.memory());
    for pass in bench.options.passes(&PASSES) {
        let row = |plan: String, chosen: bool| {
            let suffix = if subject.channels_last { "_ndhwc" } else { "" };
            Row { op: OP, case: format!("{}{suffix}", case.name), dtype: problem.dtype, pass, plan, chosen }
        };
        let work = work(problem, pass);
        if pass == Pass::Db {
            let truth = Rc::new(truth::bias_truth(problem, &subject.sources.dy));
            let launch = |out: &[Operand]| conv3d::bias_gradient(&client, &limits, problem, &dy, &out[0]);
            bench.ours(&row("reduce".into(), true), work, &[truth], &launch)?;
            continue;
        }
        let passes = kernel_passes(pass);
        let automatic: Vec<Plan> = passes
            .iter()
            .map(|pass| plan(problem, *pass, Algorithm::Auto, &limits))
            .collect::<Result<_, _>>()?;
        let mut choices = vec![automatic];
        // A pass of several kernels is timed with the plans a user gets; its parts show what the others are
        // worth.
        if passes.len() == 1 {
            let others =
                eligible(problem, passes[0], &limits).into_iter().filter(|plan| *plan != choices[0][0]);
            choices.extend(others.map(|plan| vec![plan]).collect::<Vec<_>>());
        }
        for (index, plans) in choices.iter().enumerate() {
            let parts: Vec<_> = passes.iter().copied().zip(plans).collect();
            let key =
                |(pass, plan): &(KernelPass, &Plan)| TruthKey { pass: *pass, tile: tile(plan), ones: false };
            let truths: Vec<_> = parts.iter().map(|part| subject.truth(key(part))).collect();
            let launch = |out: &[Operand]| {
                parts.iter().zip(out).try_for_each(|((pass, plan), out)| {
                    launch((&client, &limits), problem, *pass, plan, [&x, &w, &dy], out)
                })
            };
            let mut names: Vec<_> = plans.iter().map(Plan::name).collect();
            names.dedup();
            let row = row(names.join("+"), index == 0);
            if bench.options.wants_plan(&row.plan, row.chosen) {
                bench.ours(&row, work, &truths, &launch)?;
            }
            if let ([Plan::Winograd(config)], Pass::Fwd) = (&plans[..], pass) {
                let name = format!("{}_kept_filters", row.plan);
                if bench.options.wants_plan(&name, false) {
                    let row = Row { plan: name, chosen: false, ..row };
                    kept_filters(bench, &row, work, problem, *config, [&x, &w], truths[0].clone())?;
                }
            }
        }
    }
    Ok(())
}

/// A forward pass whose filters were transformed before, as a layer that keeps them has it.
fn kept_filters(
    bench: &mut Bench,
    row: &Row,
    work: Work,
    problem: &Conv3dProblem,
    config: WinogradConfig,
    [x, w]: [&Operand; 2],
    truth: Rc<Truth>,
) -> Result<()> {
    let (client, limits) = (bench.device.client.clone(), bench.device.limits.clone());
    let shape = prepared_shape(problem, config.tile);
    let buffer = client.empty(shape.iter().product::<usize>() * FloatType::F32.size());
    let filters = Operand::contiguous(buffer, &shape, FloatType::F32);
    prepare(&client, &limits, problem, config.tile, [w, &filters])?;
    bench.ours(row, work, &[truth], &|out| {
        forward_prepared(&client, &limits, problem, config, [x, &filters, &out[0]], None)
    })
}

/// The same problems for peers in other processes.
fn run_peers(bench: &mut Bench, case: &Conv3dCase, subject: &Subject) -> Result<()> {
    if bench.peers.is_none() {
        return Ok(());
    }
    let Subject { problem, sources, .. } = subject;
    for pass in bench.options.passes(&PASSES) {
        let row = Row {
            op: OP,
            case: case.name.clone(),
            dtype: problem.dtype,
            pass,
            plan: String::new(),
            chosen: true,
        };
        let truths: Vec<_> = if pass == Pass::Db {
            vec![Rc::new(truth::bias_truth(problem, &sources.dy))]
        } else {
            let key = |pass: &KernelPass| TruthKey { pass: *pass, tile: None, ones: false };
            kernel_passes(pass).iter().map(|pass| subject.truth(key(pass))).collect()
        };
        let job = peers::job(json!({
            "op": OP,
            "shapes": {"x": problem.x_shape(), "w": problem.weight_shape(), "dy": problem.y_shape()},
            "seeds": {"x": sources.x.seed(), "w": sources.w.seed(), "dy": sources.dy.seed()},
            "stride": problem.window.stride,
            "padding": problem.window.padding,
            "dilation": problem.window.dilation,
            "groups": problem.window.groups,
        }));
        bench.peers(&row, work(problem, pass), &truths, job)?;
    }
    Ok(())
}
