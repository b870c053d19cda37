//! The rows of RoPE2D: forward, and backward, which is the same rotation the other way.

use crate::bench::{Bench, Row, Work};
use crate::burn_peer::{self, Rope2d};
use crate::data::{Memory, Source, upload};
use crate::options::{Op, Options, Pass, Size};
use crate::peers;
use crate::scale;
use crate::verify::Truth;
use anyhow::Result;
use burn::tensor::Tensor;
use conv_cases::rope2d::Case;
use conv_cases::workloads::{self, Rope2dWorkload};
use conv_kernels::rope::{self, RopeLayout, RopeProblem, reference};
use conv_kernels::tolerance::Guard;
use conv_kernels::{FloatType, IndexOperand, IndexType};
use serde_json::json;
use std::rc::Rc;

const OP: &str = "rope2d";
/// Elements that the reference computes.
const REFERENCE_ELEMENTS: usize = 1_000_000;

/// The cases that are asked for.
pub(crate) fn cases(options: &Options, size: Size) -> Vec<Rope2dWorkload> {
    let table = workloads::rope2d().into_iter();
    let table = table.filter(|row| options.wants_op(Op::Rope2d) && options.wants_case(&row.case.name));
    match size {
        Size::Full => table.collect(),
        Size::Small => table
            .map(|workload| {
                let (case, grid) = scale::rope2d(&workload.case, workload.grid);
                Rope2dWorkload { case, grid }
            })
            .collect(),
    }
}

/// Measures every case.
pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    for workload in cases(&bench.options, bench.size) {
        for dtype in bench.dtypes() {
            for heads_inside in bench.options.layout.channels_last() {
                run_case(bench, &workload, dtype, *heads_inside)?;
                bench.clean_up();
            }
        }
        let Case { name, b, h, n, d, .. } = &workload.case;
        bench.report.end_case(&format!("{OP} {name}: {b} x {h} heads x {n} tokens x {d}"));
    }
    Ok(())
}

/// B, N, H, D of B, H, N, D.
const BNHD: Memory = Memory::Permuted(&[0, 2, 1, 3]);

const PASSES: [Pass; 2] = [Pass::Fwd, Pass::Bwd];

fn run_case(
    bench: &mut Bench,
    workload: &Rope2dWorkload,
    dtype: FloatType,
    heads_inside: bool,
) -> Result<()> {
    let case = &workload.case;
    let (shape, positions_shape) = ([case.b, case.h, case.n, case.d], [case.b, case.n, 2]);
    let problem = RopeProblem::rope2d(shape, RopeLayout::Bhnd, case.base, case.f0, dtype)?;
    let elements: usize = shape.iter().product();
    let bytes = (elements * dtype.size()) as u64;
    if let Some(reason) = bench.misfit(&[("tokens", bytes), ("result", bytes)]) {
        bench.report.skip(format!("{OP} {} {}: {reason}", case.name, dtype.name()));
        return Ok(());
    }
    let positions = workload.positions();
    let client = bench.device.client.clone();
    let limits = bench.device.limits.clone();
    let source = Source::normal(1, dtype);
    // Two operations for each of the two products of an element.
    let work =
        Work { flops: 3.0 * elements as f64, bytes: 2.0 * bytes as f64, memory_bound: true, moved: None };
    let passes = bench.options.passes(&PASSES);
    let (layout, memory, suffix) = if heads_inside {
        (RopeLayout::Bnhd, BNHD, "_bnhd")
    } else {
        (RopeLayout::Bhnd, Memory::RowMajor, "")
    };
    let row = |pass, plan: &str| Row {
        op: OP,
        case: format!("{}{suffix}", case.name),
        dtype,
        pass,
        plan: plan.into(),
        chosen: true,
    };

    let own = RopeProblem { layout, ..problem };
    let tokens = upload(&client, &source, &shape, memory);
    let index = index_operand(&client, &positions, &positions_shape);
    for pass in &passes {
        let inverse = *pass == Pass::Bwd;
        let truth = Truth { memory, ..(*truth(&problem, &source, &positions, inverse)).clone() };
        bench.ours(&row(*pass, "rotate"), work, &[Rc::new(truth)], &|out| {
            rope::rotate(&client, &limits, &own, &tokens, &index, &out[0], inverse)
        })?;
    }
    drop(tokens);
    // Peers have their own order, whatever ours is.
    if heads_inside {
        return Ok(());
    }
    bench.clean_up();
    if let Some(peers) = &bench.peers {
        let frequencies: Vec<f64> =
            problem.frequencies()[..problem.head_dim / 4].iter().map(|each| each.radians).collect();
        let job = peers::job(json!({
            "op": OP,
            "shapes": {"x": shape},
            "seeds": {"x": source.seed()},
            "tokens": peers.integers("tokens.bin", &positions)?,
            "frequencies": frequencies,
            "f0": 1.0,
        }));
        for pass in &passes {
            let truth = truth(&problem, &source, &positions, *pass == Pass::Bwd);
            bench.peers(&row(*pass, ""), work, &[truth], job.clone())?;
        }
    }
    if bench.options.no_burn {
        return Ok(());
    }

    let peer = Rope2d::new(&bench.device.burn, &problem, &positions);
    let truth = |seen: &Source, inverse| truth(&problem, seen, &positions, inverse);
    burn_rows(bench, &|pass| row(pass, peer.name()), work, (source, shape), &truth, &|tokens| {
        peer.forward(tokens)
    })
}

/// The rows of a rotation made of Burn's ops: forward of normal tokens, and the gradient of the results' sum.
pub(crate) fn burn_rows(
    bench: &mut Bench,
    row: &dyn Fn(Pass) -> Row,
    work: Work,
    (source, shape): (Source, [usize; 4]),
    truth: &dyn Fn(&Source, bool) -> Rc<Truth>,
    rotate: &dyn Fn(Tensor<4>) -> Tensor<4>,
) -> Result<()> {
    for pass in bench.options.passes(&PASSES) {
        let row = row(pass);
        let tokens = burn_peer::tensor(&bench.device.burn, &source, shape, row.dtype);
        if pass == Pass::Fwd {
            let run = |()| vec![burn_peer::read(rotate(tokens.clone()))];
            bench.burn(&row, work, &[truth(&source, false)], &|| (), &run)?;
            continue;
        }
        let graph = || {
            let tokens = tokens.clone().autodiff().require_grad();
            (tokens.clone(), rotate(tokens))
        };
        bench.burn(&row, work, &[truth(&Source::ones(row.dtype), true)], &graph, &|(tokens, y)| {
            let mut gradients = y.backward();
            tokens.grad_remove(&mut gradients).map(burn_peer::read).into_iter().collect()
        })?;
    }
    Ok(())
}

/// The positions on the device, in 64 bits where kernels can read them.
pub(crate) fn index_operand(
    client: &cubecl::prelude::Client,
    positions: &[i64],
    shape: &[usize],
) -> IndexOperand {
    let (bytes, dtype): (Vec<u8>, _) = if IndexType::I64.served_by(client) {
        (positions.iter().flat_map(|position| position.to_le_bytes()).collect(), IndexType::I64)
    } else {
        (positions.iter().flat_map(|position| (*position as i32).to_le_bytes()).collect(), IndexType::I32)
    };
    IndexOperand::contiguous(client.create_from_slice(&bytes), shape, dtype)
}

/// The truth of some heads: rows do not see each other, so the reference on some of them is exact.
pub(crate) fn truth(problem: &RopeProblem, source: &Source, positions: &[i64], inverse: bool) -> Rc<Truth> {
    let (tokens, dim, axes) = (problem.tokens, problem.head_dim, problem.angles.count());
    let heads = problem.batch * problem.heads;
    let count = (REFERENCE_ELEMENTS / (tokens * dim)).clamp(2, heads.max(2)).min(heads);
    // The first, the last and some between.
    let mut checked: Vec<usize> = (0..count).map(|i| i * (heads - 1) / (count - 1).max(1)).collect();
    checked.dedup();
    let (mut places, mut values, mut magnitudes) = (Vec::new(), Vec::new(), Vec::new());
    for head in &checked {
        let batch = head / problem.heads;
        let single = RopeProblem { batch: 1, heads: 1, ..*problem };
        let own: Vec<usize> = (head * tokens * dim..(head + 1) * tokens * dim).collect();
        let input: Vec<f64> = own.iter().map(|index| source.get(*index)).collect();
        let positions = &positions[batch * tokens * axes..(batch + 1) * tokens * axes];
        values.extend(reference::rotate(&single, &input, positions, inverse));
        magnitudes.extend(reference::magnitude(&single, &input));
        places.extend(own);
    }
    let positions = (checked.len() < heads).then_some(places);
    let (shape, guard) = (problem.tokens_shape().to_vec(), Guard::SUM);
    let memory = Memory::RowMajor;
    Rc::new(Truth { shape, memory, positions, values, magnitudes, terms: 2, slope: 1.0, guard })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_heads_have_the_truth_of_all() {
        let layout = RopeLayout::Bhnd;
        let problem = RopeProblem::rope2d([8, 16, 200, 64], layout, 100.0, 1.0, FloatType::F32).unwrap();
        let source = Source::normal(1, FloatType::F32);
        let positions: Vec<i64> = (0..8 * 200 * 2).map(|i| i % 37).collect();
        let whole = reference::rotate(&problem, &source.values(8 * 16 * 200 * 64), &positions, true);
        let some = truth(&problem, &source, &positions, true);
        let places = some.positions.as_ref().expect("a part");
        assert!(places.len() >= 2 * 200 * 64 && places.len() < whole.len());
        assert!(places.iter().zip(&some.values).all(|(index, value)| whole[*index] == *value));
        assert_eq!(places.last(), Some(&(whole.len() - 1)));
    }
}
