//! The rows of RoPE in language and video models: forward, and backward, which is the same rotation the other
//! way. Positions are offsets and grids, without a tensor; those of Qwen2-VL are a tensor.

use crate::bench::{Bench, Row, Work};
use crate::burn_peer;
use crate::data::{Memory, Source, upload};
use crate::options::{Op, Options, Pass, Size};
use crate::peers;
use crate::rope2d::{burn_rows, index_operand, truth};
use anyhow::Result;
use conv_cases::workloads::{self, RopeWorkload};
use conv_kernels::FloatType;
use conv_kernels::rope::{
    Positions, RopeAngles, RopeAxes, RopeLayout, RopePairs, RopeProblem, RopeVolume, Rotation, reference,
    rotate_all,
};
use serde_json::json;

const OP: &str = "rope";

const PASSES: [Pass; 2] = [Pass::Fwd, Pass::Bwd];

/// Where the sequences begin.
const OFFSET: i32 = 1000;

/// The cases that are asked for; on a software device with few heads and patches.
pub(crate) fn cases(options: &Options, size: Size) -> Vec<RopeWorkload> {
    let table = workloads::rope().into_iter();
    let mut table: Vec<_> =
        table.filter(|row| options.wants_op(Op::Rope) && options.wants_case(&row.name)).collect();
    if size == Size::Small {
        for row in &mut table {
            (row.b, row.heads) = (row.b.min(2), row.heads.min(3));
            [row.frames, row.rows, row.columns] = [row.frames, row.rows, row.columns].map(|each| each.min(4));
            let patches = row.frames * row.rows * row.columns;
            row.tokens = if patches > 0 { patches } else { row.tokens.min(64) };
            row.name += "_small";
        }
    }
    table
}

/// Measures every case.
pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    for workload in cases(&bench.options, bench.size) {
        for dtype in bench.dtypes() {
            run_case(bench, &workload, dtype)?;
            bench.clean_up();
        }
        let RopeWorkload { name, b, heads, tokens, head_dim, .. } = &workload;
        bench.report.end_case(&format!("{OP} {name}: {b} x {heads} heads x {tokens} tokens x {head_dim}"));
    }
    Ok(())
}

/// What turns by which angle.
fn angles(workload: &RopeWorkload) -> RopeAngles {
    let dim = workload.head_dim;
    let side = 2 * (dim / 6);
    let (axes, pairs, base) = match workload.model.as_str() {
        "gpt_j" => (RopeAxes::Even(1), RopePairs::Neighbours, 1e4),
        "qwen2_vl" => {
            let side = dim / 16 * 3;
            (RopeAxes::Sections([dim / 2 - 2 * side, side, side]), RopePairs::Halves, 1e6)
        }
        "video" => (RopeAxes::Dims([dim - 2 * side, side, side]), RopePairs::Neighbours, 1e4),
        _ => (RopeAxes::Even(1), RopePairs::Halves, 1e4),
    };
    RopeAngles { axes, pairs, ..RopeAngles::rope2d(base, 1.0) }
}

fn run_case(bench: &mut Bench, workload: &RopeWorkload, dtype: FloatType) -> Result<()> {
    let &RopeWorkload { b, heads, tokens, head_dim, frames, rows, columns, .. } = workload;
    let shape = [b, heads, tokens, head_dim];
    let problem = RopeProblem::new(shape, RopeLayout::Bhnd, angles(workload), dtype)?;
    let elements: usize = shape.iter().product();
    let bytes = (elements * dtype.size()) as u64;
    if let Some(reason) = bench.misfit(&[("tokens", bytes), ("result", bytes)]) {
        bench.report.skip(format!("{OP} {} {}: {reason}", workload.name, dtype.name()));
        return Ok(());
    }
    let volume = RopeVolume { frames, rows, columns, first: [0; 3] };
    let positions = if frames > 0 {
        reference::volume_positions(&problem, volume)
    } else {
        reference::line_positions(&problem, OFFSET)
    };
    let client = bench.device.client.clone();
    let limits = bench.device.limits.clone();
    let source = Source::normal(1, dtype);
    let work =
        Work { flops: 3.0 * elements as f64, bytes: 2.0 * bytes as f64, memory_bound: true, moved: None };
    let from = upload(&client, &source, &shape, Memory::RowMajor);
    let index = index_operand(&client, &positions, &problem.positions_shape());
    let places = match workload.model.as_str() {
        "qwen2_vl" => Positions::Index(&index),
        "video" => Positions::Volume(volume),
        _ => Positions::Offset(OFFSET),
    };
    let row = |pass, plan: &str| Row {
        op: OP,
        case: workload.name.clone(),
        dtype,
        pass,
        plan: plan.into(),
        chosen: true,
    };
    for pass in bench.options.passes(&PASSES) {
        let inverse = pass == Pass::Bwd;
        bench.ours(&row(pass, "rotate"), work, &[truth(&problem, &source, &positions, inverse)], &|out| {
            let rotation = Rotation { problem, tokens: &from, positions: places, out: &out[0] };
            rotate_all(&client, &limits, &[rotation], inverse)
        })?;
    }
    run_peers(bench, &problem, (&source, &positions), work, &|pass| row(pass, ""))?;
    // Burn's module rotates neighbours along one axis, by fp32 tables that 16-bit tokens cannot meet.
    if bench.options.no_burn || workload.model != "gpt_j" || dtype != FloatType::F32 {
        return Ok(());
    }
    let peer = burn_peer::Rope::new(&bench.device.burn, head_dim, tokens, OFFSET as usize);
    let truth = |seen: &Source, inverse| truth(&problem, seen, &positions, inverse);
    burn_rows(bench, &|pass| row(pass, peer.name()), work, (source, shape), &truth, &|tokens| {
        peer.forward(tokens)
    })
}

/// The same rotations for peers in other processes.
fn run_peers(
    bench: &mut Bench,
    problem: &RopeProblem,
    (source, positions): (&Source, &[i64]),
    work: Work,
    row: &dyn Fn(Pass) -> Row,
) -> Result<()> {
    let Some(peers) = &bench.peers else { return Ok(()) };
    let frequencies = problem.frequencies();
    let mut job = peers::job(json!({
        "op": OP,
        "shapes": {"x": [problem.batch, problem.heads, problem.tokens, problem.head_dim]},
        "seeds": {"x": source.seed()},
        "tokens": peers.integers("tokens.bin", positions)?,
        "frequencies": frequencies.iter().map(|each| each.radians).collect::<Vec<_>>(),
        "axes": frequencies.iter().map(|each| each.axis).collect::<Vec<_>>(),
        "neighbours": problem.angles.pairs == RopePairs::Neighbours,
    }));
    // One axis: a peer may have a kernel for it.
    if problem.angles.count() == 1 {
        job.insert("base".into(), json!(problem.angles.base[0]));
        job.insert("offset".into(), json!(OFFSET));
    }
    bench.clean_up();
    for pass in bench.options.passes(&PASSES) {
        let truth = truth(problem, source, positions, pass == Pass::Bwd);
        bench.peers(&row(pass), work, &[truth], job.clone())?;
    }
    Ok(())
}
