//! Burn's own conv3d on the same problems.

use super::{OP, PASSES, Subject, TruthKey, kernel_passes, truth, work};
use crate::bench::{Bench, Row};
use crate::burn_peer;
use crate::options::Pass;
use anyhow::Result;
use burn::tensor::Tensor;
use conv_cases::conv3d::Conv3dCase;
use conv_kernels::conv3d::Pass as KernelPass;
use std::rc::Rc;

/// Measures Burn's own op.
pub(super) fn run(bench: &mut Bench, case: &Conv3dCase, subject: &Subject) -> Result<()> {
    let problem = &subject.problem;
    let device = bench.device.burn.clone();
    let peer = burn_peer::Conv3d::of(problem);
    let x = burn_peer::tensor(&device, &subject.sources.x, problem.x_shape(), problem.dtype);
    let w = burn_peer::tensor(&device, &subject.sources.w, problem.weight_shape(), problem.dtype);
    for pass in bench.options.passes(&PASSES) {
        let row = Row {
            op: OP,
            case: case.name.clone(),
            dtype: problem.dtype,
            pass,
            plan: peer.name().into(),
            chosen: true,
        };
        let work = work(problem, pass);
        let key =
            |pass: &KernelPass| TruthKey { pass: *pass, tile: None, ones: *pass != KernelPass::Forward };
        let truths: Vec<_> = kernel_passes(pass).iter().map(|pass| subject.truth(key(pass))).collect();
        // Tensors of a fresh graph; only the gradients that are asked for are tracked, so only they are
        // computed.
        let [track_x, track_w] = [pass != Pass::Dw, pass != Pass::Dx];
        let leaf = |tensor: &Tensor<5>, track: bool| {
            let tensor = tensor.clone().autodiff();
            if track { tensor.require_grad() } else { tensor }
        };
        let graph = || {
            let (x, w) = (leaf(&x, track_x), leaf(&w, track_w));
            let y = peer.forward(x.clone(), w.clone());
            (x, w, y)
        };
        let backward = |(x, w, y): (Tensor<5>, Tensor<5>, Tensor<5>)| {
            let mut gradients = y.backward();
            let tracked = [(x, track_x), (w, track_w)].into_iter().filter(|(_, track)| *track);
            tracked
                .filter_map(|(leaf, _)| leaf.grad_remove(&mut gradients))
                .map(burn_peer::read)
                .collect::<Vec<_>>()
        };
        match pass {
            Pass::Fwd => bench.burn(&row, work, &truths, &|| (), &|()| {
                vec![burn_peer::read(peer.forward(x.clone(), w.clone()))]
            })?,
            Pass::Db => {
                let dy = burn_peer::tensor(&device, &subject.sources.dy, problem.y_shape(), problem.dtype);
                let truth = Rc::new(truth::bias_truth(problem, &subject.sources.dy));
                let row = Row { plan: "sum".into(), ..row };
                let run = |()| vec![burn_peer::read(burn_peer::bias_gradient(dy.clone()))];
                bench.burn(&row, work, &[truth], &|| (), &run)?;
            }
            Pass::Dx | Pass::Dw | Pass::Bwd => bench.burn(&row, work, &truths, &graph, &backward)?,
            Pass::FwdBwd => bench.burn(&row, work, &truths, &|| (), &|()| {
                let (x, w, y) = graph();
                let mut results = vec![burn_peer::read(y.clone().inner())];
                results.extend(backward((x, w, y)));
                results
            })?,
        }
    }
    Ok(())
}
