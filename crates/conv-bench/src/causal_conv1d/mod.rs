//! The rows of causal conv1d: forward and backward, and for sequences of one step the decoding update.

mod step;

use crate::bench::{Bench, Row, Work};
use crate::burn_peer::{self, CausalConv1d};
use crate::data::{Memory, Source, upload};
use crate::options::{Op, Options, Pass, Size};
use crate::peers;
use crate::scale;
use crate::verify::Truth;
use anyhow::Result;
use conv_cases::causal_conv1d::Case;
use conv_cases::workloads;
use conv_kernels::causal_conv1d::{
    self, CausalConv1dProblem, Conv1dLayout, Gradients, Inputs, OptionalShapes, Pass as KernelPass, eligible,
    reference,
};
use conv_kernels::conv3d::Activation;
use conv_kernels::tolerance::Guard;
use conv_kernels::{FloatType, Operand};
use serde_json::json;
use std::rc::Rc;

const OP: &str = "causal_conv1d";
/// Multiply-accumulates that the reference computes for one truth: whole channels, as many as that allows.
const REFERENCE_MACS: usize = 4_000_000;

/// The cases that are asked for.
pub(crate) fn cases(options: &Options, size: Size) -> Vec<Case> {
    let table = workloads::causal_conv1d().into_iter().map(|workload| workload.case);
    let table = table.filter(|case| options.wants_op(Op::CausalConv1d) && options.wants_case(&case.name));
    match size {
        Size::Full => table.collect(),
        Size::Small => table.map(|case| scale::causal_conv1d(&case)).collect(),
    }
}

/// Measures every case.
pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    for case in cases(&bench.options, bench.size) {
        for dtype in bench.dtypes() {
            if case.t == 1 {
                step::run(bench, &case, dtype)?;
                bench.clean_up();
                continue;
            }
            for channels_last in bench.options.layout.channels_last() {
                run_case(bench, &case, dtype, *channels_last)?;
                bench.clean_up();
            }
        }
        bench.report.end_case(&title(&case));
    }
    Ok(())
}

fn title(case: &Case) -> String {
    let Case { name, b, c, t, w, bias, silu, .. } = case;
    let with = |on: bool, word: &'static str| if on { word } else { "" };
    format!("{OP} {name}: {b}x{c}x{t}, width {w}{}{}", with(*bias, ", bias"), with(*silu, ", SiLU"))
}

/// The input tensors of a case.
#[derive(Clone, Copy)]
struct Sources {
    x: Source,
    weight: Source,
    bias: Source,
    dy: Source,
}

impl Sources {
    fn new(dtype: FloatType) -> Self {
        let source = |seed| Source::normal(seed, dtype);
        Self { x: source(1), weight: source(2), bias: source(3), dy: source(4) }
    }
}

fn activation(case: &Case) -> Activation {
    if case.silu { Activation::Silu } else { Activation::None }
}

fn run_case(bench: &mut Bench, case: &Case, dtype: FloatType, channels_last: bool) -> Result<()> {
    let shape = [case.b, case.c, case.t];
    let optional = OptionalShapes { bias: case.bias.then_some(case.c), ..OptionalShapes::default() };
    let layout = Conv1dLayout::Bct;
    let problem =
        CausalConv1dProblem::new(shape, [case.c, case.w], optional, layout, activation(case), dtype, dtype)?;
    let x_bytes = (case.b * case.c * case.t * dtype.size()) as u64;
    let names = ["x", "y", "dy", "dx"];
    if let Some(reason) = bench.misfit(&names.map(|name| (name, x_bytes))) {
        bench.report.skip(format!("{OP} {} {}: {reason}", case.name, dtype.name()));
        return Ok(());
    }
    let sources = Sources::new(dtype);
    run_ours(bench, case, &problem, &sources, channels_last)?;
    // Peers have their own order, whatever ours is.
    if channels_last {
        return Ok(());
    }
    bench.clean_up();
    run_peers(bench, case, &problem, &sources)?;
    if bench.options.no_burn {
        return Ok(());
    }
    run_burn(bench, case, &problem, &sources)
}

const PASSES: [Pass; 3] = [Pass::Fwd, Pass::Bwd, Pass::FwdBwd];

fn row(case: &Case, dtype: FloatType, pass: Pass, plan: &str, chosen: bool) -> Row {
    Row { op: OP, case: case.name.clone(), dtype, pass, plan: plan.into(), chosen }
}

/// Each tensor as long as x counted once: two for the forward pass, three for the backward pass.
fn work(case: &Case, dtype: FloatType, pass: Pass) -> Work {
    let (passes, tensors) = match pass {
        Pass::Fwd => (1.0, 2.0),
        Pass::FwdBwd => (3.0, 5.0),
        _ => (2.0, 3.0),
    };
    let elements = (case.b * case.c * case.t) as f64;
    Work {
        flops: passes * 2.0 * case.macs() as f64,
        bytes: tensors * elements * dtype.size() as f64,
        memory_bound: true,
        moved: None,
    }
}

/// B, T, C of B, C, T.
const BTC: Memory = Memory::Permuted(&[0, 2, 1]);

/// Measures our plans on a problem of [`Conv1dLayout::Bct`], with channels last where that is asked for.
fn run_ours(
    bench: &mut Bench,
    case: &Case,
    first: &CausalConv1dProblem,
    sources: &Sources,
    channels_last: bool,
) -> Result<()> {
    let (client, limits) = (bench.device.client.clone(), bench.device.limits.clone());
    let (layout, memory, suffix) =
        if channels_last { (Conv1dLayout::Btc, BTC, "_btc") } else { (first.layout, Memory::RowMajor, "") };
    let problem = &CausalConv1dProblem { layout, ..*first };
    let case = &Case { name: format!("{}{suffix}", case.name), ..case.clone() };
    let x = upload(&client, &sources.x, &first.x_shape(), memory);
    let weight = upload(&client, &sources.weight, &problem.weight_shape(), Memory::RowMajor);
    let bias = problem.bias.then(|| upload(&client, &sources.bias, &[problem.channels], Memory::RowMajor));
    let dy = upload(&client, &sources.dy, &first.x_shape(), memory);
    let inputs = Inputs {
        x: &x,
        weight: &weight,
        bias: bias.as_ref(),
        initial_state: None,
        seq_idx: None,
        residual: None,
    };
    let [y, gradients] = truths(first, sources).map(|truths| with_memory(truths, first, memory));
    for pass in bench.options.passes(&PASSES) {
        let forwards = eligible(problem, KernelPass::Forward, &limits);
        let backwards = eligible(problem, KernelPass::Backward, &limits);
        // Both passes have the same plans, the automatic one first.
        for (index, (forward, backward)) in forwards.iter().zip(&backwards).enumerate() {
            if !bench.options.wants_plan(forward.name(), index == 0) {
                continue;
            }
            let run_forward =
                |y: &Operand| causal_conv1d::forward(&client, &limits, problem, forward, &inputs, y);
            let run_backward = |out: &[Operand]| {
                let out = Gradients { x: &out[0], weight: &out[1], bias: out.get(2), initial_state: None };
                causal_conv1d::backward(&client, &limits, problem, backward, &inputs, &dy, None, &out)
            };
            let row = row(case, problem.dtype, pass, forward.name(), index == 0);
            let work = work(case, problem.dtype, pass);
            match pass {
                Pass::Fwd => bench.ours(&row, work, &y, &|out| run_forward(&out[0]))?,
                Pass::FwdBwd => {
                    let all: Vec<_> = y.iter().chain(&gradients).cloned().collect();
                    bench.ours(&row, work, &all, &|out| {
                        run_forward(&out[0])?;
                        run_backward(&out[1..])
                    })?;
                }
                _ => bench.ours(&row, work, &gradients, &|out| run_backward(out))?,
            }
        }
    }
    Ok(())
}

/// The same problems for peers in other processes.
fn run_peers(bench: &mut Bench, case: &Case, problem: &CausalConv1dProblem, sources: &Sources) -> Result<()> {
    if bench.peers.is_none() {
        return Ok(());
    }
    let [y, gradients] = truths(problem, sources);
    for pass in bench.options.passes(&PASSES) {
        let truths: Vec<_> = match pass {
            Pass::Fwd => y.clone(),
            Pass::FwdBwd => y.iter().chain(&gradients).cloned().collect(),
            _ => gradients.clone(),
        };
        let (x, weight) = (problem.x_shape(), problem.weight_shape());
        let mut job = peers::job(json!({
            "op": OP,
            "shapes": {"x": x, "weight": weight, "bias": [problem.channels], "dy": x},
            "seeds": {"x": sources.x.seed(), "weight": sources.weight.seed(), "dy": sources.dy.seed()},
            "width": problem.width,
            "silu": case.silu,
        }));
        if problem.bias {
            job["seeds"]["bias"] = json!(sources.bias.seed());
        }
        bench.peers(
            &row(case, problem.dtype, pass, "", true),
            work(case, problem.dtype, pass),
            &truths,
            job,
        )?;
    }
    Ok(())
}

/// Truths of tensors like x with results that lie in memory as `memory` says.
fn with_memory(truths: Vec<Rc<Truth>>, problem: &CausalConv1dProblem, memory: Memory) -> Vec<Rc<Truth>> {
    let moved = |truth: Rc<Truth>| {
        let like_x = truth.shape == problem.x_shape();
        if like_x { Rc::new(Truth { memory, ..(*truth).clone() }) } else { truth }
    };
    truths.into_iter().map(moved).collect()
}

fn run_burn(bench: &mut Bench, case: &Case, problem: &CausalConv1dProblem, sources: &Sources) -> Result<()> {
    let (device, dtype) = (bench.device.burn.clone(), problem.dtype);
    let x = burn_peer::tensor(&device, &sources.x, problem.x_shape(), dtype);
    let weight = burn_peer::tensor(&device, &sources.weight, [case.c, 1, case.w], dtype);
    let bias = case.bias.then(|| burn_peer::tensor(&device, &sources.bias, [case.c], dtype));
    let peer = CausalConv1d { width: case.w, channels: case.c, silu: case.silu };
    let [y, gradients] = truths(problem, &Sources { dy: Source::ones(dtype), ..*sources });
    let graph = || {
        let x = x.clone().autodiff().require_grad();
        let weight = weight.clone().autodiff().require_grad();
        let bias = bias.clone().map(|bias| bias.autodiff().require_grad());
        let y = peer.forward(x.clone(), weight.clone(), bias.clone());
        (x, weight, bias, y)
    };
    type Graph = (
        burn::tensor::Tensor<3>,
        burn::tensor::Tensor<3>,
        Option<burn::tensor::Tensor<1>>,
        burn::tensor::Tensor<3>,
    );
    let backward = |(x, weight, bias, y): Graph| {
        let mut gradients = y.backward();
        let mut results = Vec::new();
        results.extend(x.grad_remove(&mut gradients).map(burn_peer::read));
        results.extend(weight.grad_remove(&mut gradients).map(burn_peer::read));
        results.extend(bias.and_then(|bias| bias.grad_remove(&mut gradients)).map(burn_peer::read));
        results
    };
    for pass in bench.options.passes(&PASSES) {
        let row = row(case, dtype, pass, peer.name(), true);
        let work = work(case, dtype, pass);
        match pass {
            Pass::Fwd => bench.burn(&row, work, &y, &|| (), &|()| {
                vec![burn_peer::read(peer.forward(x.clone(), weight.clone(), bias.clone()))]
            })?,
            Pass::FwdBwd => {
                let all: Vec<_> = y.iter().chain(&gradients).cloned().collect();
                bench.burn(&row, work, &all, &|| (), &|()| {
                    let graph = graph();
                    let mut results = vec![burn_peer::read(graph.3.clone().inner())];
                    results.extend(backward(graph));
                    results
                })?;
            }
            _ => bench.burn(&row, work, &gradients, &graph, &backward)?,
        }
    }
    Ok(())
}

/// Channels on which the reference runs: all, or the first, the last and some between.
fn checked_channels(case_channels: usize, macs_per_channel: usize) -> Vec<usize> {
    let count = (REFERENCE_MACS / macs_per_channel.max(1)).clamp(2, case_channels.max(2));
    if count >= case_channels {
        return (0..case_channels).collect();
    }
    let mut channels: Vec<usize> = (0..count).map(|i| i * (case_channels - 1) / (count - 1)).collect();
    channels.dedup();
    channels
}

/// The truths of \[y\] and of \[dx, dw, db\]: channels do not see each other, so the reference on some of
/// them is exact.
fn truths(problem: &CausalConv1dProblem, sources: &Sources) -> [Vec<Rc<Truth>>; 2] {
    let CausalConv1dProblem { batch, length, width, .. } = *problem;
    let channels = checked_channels(problem.channels, batch * length * width);
    let part = CausalConv1dProblem { channels: channels.len(), ..*problem };
    // Index into the whole tensor for every element of the part.
    let x_positions: Vec<usize> = (0..batch)
        .flat_map(|b| channels.iter().map(move |c| (b, c)))
        .flat_map(|(b, c)| (0..length).map(move |t| (b * problem.channels + c) * length + t))
        .collect();
    let w_positions: Vec<usize> =
        channels.iter().flat_map(|c| (0..width).map(move |k| c * width + k)).collect();
    let at = |source: &Source, positions: &[usize]| -> Vec<f64> {
        positions.iter().map(|index| source.get(*index)).collect()
    };
    let (x, weight, dy) =
        (at(&sources.x, &x_positions), at(&sources.weight, &w_positions), at(&sources.dy, &x_positions));
    let bias = problem.bias.then(|| at(&sources.bias, &channels));
    let inputs = reference::Inputs {
        x: &x,
        weight: &weight,
        bias: bias.as_deref(),
        initial_state: None,
        seq_idx: None,
        residual: None,
    };
    // exp and the division of SiLU add a few units in the last place.
    let extra = if problem.activation == Activation::Silu { 24 } else { 0 };
    let truth = |shape: &[usize], positions: &[usize], values, magnitudes, terms, guard| {
        let all = positions.len() == shape.iter().product::<usize>();
        let positions = (!all).then(|| positions.to_vec());
        let (shape, memory) = (shape.to_vec(), Memory::RowMajor);
        Rc::new(Truth { shape, memory, positions, values, magnitudes, terms, slope: 1.0, guard })
    };
    let forward = truth(
        &problem.x_shape(),
        &x_positions,
        reference::forward(&part, &inputs),
        reference::forward_magnitude(&part, &inputs),
        width + 1 + extra,
        Guard::SUM,
    );
    let values = reference::backward(&part, &inputs, &dy, None);
    let magnitudes = reference::backward_magnitude(&part, &inputs, &dy, None);
    let short = 2 * (width + 1 + extra);
    let mut gradients =
        vec![truth(&problem.x_shape(), &x_positions, values.x, magnitudes.x, short, Guard::SUM)];
    let long = batch * length + short;
    let sum = Guard::WEIGHT_GRADIENT;
    gradients.push(truth(&problem.weight_shape(), &w_positions, values.weight, magnitudes.weight, long, sum));
    if problem.bias {
        gradients.push(truth(&[problem.channels], &channels, values.bias, magnitudes.bias, long, sum));
    }
    [vec![forward], gradients]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_channels_have_the_truth_of_all() {
        let f32 = FloatType::F32;
        let optional = OptionalShapes { bias: Some(6), ..OptionalShapes::default() };
        let (layout, silu) = (Conv1dLayout::Bct, Activation::Silu);
        // So long that the reference takes two channels of six.
        let problem =
            CausalConv1dProblem::new([2, 6, 250_000], [6, 4], optional, layout, silu, f32, f32).unwrap();
        let sources = Sources::new(f32);
        let [y, gradients] = truths(&problem, &sources);
        assert_eq!(y[0].positions.as_ref().unwrap().len(), 2 * 2 * 250_000);
        assert_eq!(gradients[2].positions.as_ref().unwrap(), &[0, 5]);
        // y of the last channel at the end of the last row, from its definition.
        let at = (2 * 6 - 1) * 250_000 + 249_999;
        let pre: f64 = (0..4).map(|k| sources.weight.get(20 + k) * sources.x.get(at - 3 + k)).sum();
        let pre = pre + sources.bias.get(5);
        let place = y[0].positions().iter().position(|index| *index == at).unwrap();
        assert!((y[0].values[place] - pre / (1.0 + (-pre).exp())).abs() < 1e-12);
    }
}
