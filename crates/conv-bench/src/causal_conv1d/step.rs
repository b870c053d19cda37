//! The row of a decoding step.

use super::{Sources, activation, row};
use crate::bench::{Bench, Work};
use crate::burn_peer::{self, CausalConv1d};
use crate::data::{Memory, Source, upload};
use crate::options::Pass;
use crate::peers;
use crate::verify::Truth;
use anyhow::Result;
use conv_cases::causal_conv1d::Case;
use conv_kernels::FloatType;
use conv_kernels::causal_conv1d::{self, UpdateProblem, reference};
use conv_kernels::conv3d::Activation;
use conv_kernels::tolerance::Guard;
use serde_json::json;
use std::rc::Rc;

/// One decoding step.
pub(super) fn run(bench: &mut Bench, case: &Case, dtype: FloatType) -> Result<()> {
    if !bench.options.wants_pass(Pass::Fwd) {
        return Ok(());
    }
    let (client, limits) = (bench.device.client.clone(), bench.device.limits.clone());
    let state_shape = [case.b, case.c, case.w - 1];
    let bias = case.bias.then_some(case.c);
    let problem = UpdateProblem::new(
        [case.b, case.c],
        state_shape,
        [case.c, case.w],
        bias,
        activation(case),
        dtype,
        dtype,
    )?;
    let sources = Sources::new(dtype);
    let values = |source: &Source, shape: &[usize]| source.values(shape.iter().product());
    let (x, weight) =
        (values(&sources.x, &problem.x_shape()), values(&sources.weight, &problem.weight_shape()));
    let (state, bias_values) = (values(&sources.dy, &state_shape), bias.map(|c| values(&sources.bias, &[c])));
    let absolute = |values: &[f64]| values.iter().map(|value| value.abs()).collect::<Vec<_>>();
    let (y, new_state) = reference::update(&problem, &x, &state, &weight, bias_values.as_deref());
    let plain = UpdateProblem { activation: Activation::None, ..problem };
    let abs_bias = bias_values.as_deref().map(absolute);
    let (magnitudes, _) =
        reference::update(&plain, &absolute(&x), &absolute(&state), &absolute(&weight), abs_bias.as_deref());
    let truth = |shape: &[usize], values: Vec<f64>, magnitudes: Vec<f64>| {
        let (shape, terms, guard) = (shape.to_vec(), case.w + 25, Guard::SUM);
        let memory = Memory::RowMajor;
        Rc::new(Truth { shape, memory, positions: None, values, magnitudes, terms, slope: 1.1, guard })
    };
    // The new state is a copy: no rounding is allowed for.
    let copy = vec![0.0; new_state.len()];
    let truths = [truth(&problem.x_shape(), y, magnitudes), truth(&state_shape, new_state, copy)];
    let elements = case.b * case.c * (2 + 2 * (case.w - 1)) + case.c * (case.w + usize::from(case.bias));
    let work = Work {
        flops: 2.0 * case.macs() as f64,
        bytes: (elements * dtype.size()) as f64,
        memory_bound: true,
        moved: None,
    };

    let x = upload(&client, &sources.x, &problem.x_shape(), Memory::RowMajor);
    let weight = upload(&client, &sources.weight, &problem.weight_shape(), Memory::RowMajor);
    let state = upload(&client, &sources.dy, &state_shape, Memory::RowMajor);
    let bias = bias.map(|c| upload(&client, &sources.bias, &[c], Memory::RowMajor));
    bench.ours(&row(case, dtype, Pass::Fwd, "update", true), work, &truths, &|out| {
        causal_conv1d::update(
            &client,
            &limits,
            &problem,
            &x,
            &state,
            &weight,
            bias.as_ref(),
            &out[0],
            &out[1],
        )
    })?;
    if bench.peers.is_some() {
        let mut job = peers::job(json!({
            "op": "causal_conv1d_update",
            "shapes": {"x": problem.x_shape(), "state": state_shape, "weight": problem.weight_shape(), "bias": [case.c]},
            "seeds": {"x": sources.x.seed(), "state": sources.dy.seed(), "weight": sources.weight.seed()},
            "silu": case.silu,
        }));
        if case.bias {
            job["seeds"]["bias"] = json!(sources.bias.seed());
        }
        bench.peers(&row(case, dtype, Pass::Fwd, "", true), work, &truths, job)?;
    }
    if bench.options.no_burn {
        return Ok(());
    }
    let device = bench.device.burn.clone();
    let x = burn_peer::tensor(&device, &sources.x, [case.b, case.c, 1], dtype);
    let weight = burn_peer::tensor(&device, &sources.weight, [case.c, 1, case.w], dtype);
    let state = burn_peer::tensor(&device, &sources.dy, state_shape, dtype);
    let bias = case.bias.then(|| burn_peer::tensor(&device, &sources.bias, [case.c], dtype));
    let peer = CausalConv1d { width: case.w, channels: case.c, silu: case.silu };
    bench.burn(&row(case, dtype, Pass::Fwd, peer.update_name(), true), work, &truths, &|| (), &|()| {
        let (y, state) = peer.update(x.clone(), state.clone(), weight.clone(), bias.clone());
        vec![burn_peer::read(y), burn_peer::read(state)]
    })
}
