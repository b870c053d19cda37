//! The backward pass in steps, for plans that write the gradient before the activation to memory: that
//! gradient, dx and the gradient of the initial state from it, the parts of dw and db, their sums.

use super::args::canonical;
use super::call::Call;
use super::plan::{Plan, channels_at_a_time};
use super::problem::CausalConv1dProblem;
use super::{Gradients, forward, gradient, weight, wide};
use crate::Activation;
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::operand::Operand;
use cubecl::prelude::*;

pub(super) fn backward(
    call: &Call,
    plan: Plan,
    dy: &Operand,
    dfinal: Option<&Operand>,
    out: &Gradients,
) -> Result<(), ConvError> {
    let &Call { client, limits, problem, .. } = call;
    let dy = canonical(dy, problem.layout).bindable(client);
    let dx = canonical(out.x, problem.layout).bindable(client);
    let dfinal = dfinal.filter(|dfinal| !dfinal.is_empty());
    let dinitial = out.initial_state.filter(|dinitial| !dinitial.is_empty());
    let tiled = plan == Plan::Wide;
    let cut = wide::Cut::of(problem, limits);
    let (split, partials) = if tiled {
        (None, wide::workspace(client, problem, cut))
    } else {
        let (split, partials) = weight::workspace(client, limits, problem);
        (Some(split), partials)
    };
    // Without an activation dy is the gradient before it, and all channels are done at once.
    let step = match problem.activation {
        Activation::None => problem.channels,
        Activation::Relu | Activation::Silu => channels_at_a_time(problem, limits)?,
    };
    for first in (0..problem.channels).step_by(step) {
        let channels = (first, step.min(problem.channels - first));
        let g = if problem.activation == Activation::None {
            dy.clone()
        } else {
            let g = gradient_workspace(client, problem, channels.1);
            let pass = if tiled { wide::forward } else { forward::launch };
            pass(call, Some(&dy), channels, &g)?;
            g
        };
        let columns = [Some((problem.width - 1, &dx)), dinitial.map(|dinitial| (0, dinitial))];
        for target in columns.into_iter().flatten() {
            let pass = if tiled { wide::gradient } else { gradient::launch };
            pass(call, &g, dfinal, channels, target)?;
        }
        match split {
            Some(split) => weight::launch_partials(call, &g, channels, (split, &partials))?,
            None => wide::launch_partials(call, &g, channels, (cut, &partials))?,
        }
    }
    let partials = weight::fold(client, limits, partials, weight::FOLDED)?;
    weight::launch_sums(client, limits, &partials, (0, out.weight))?;
    let Some(db) = out.bias else { return Ok(()) };
    let db = Operand { shape: vec![problem.channels, 1], strides: vec![db.strides[0], 1], ..db.clone() };
    weight::launch_sums(client, limits, &partials, (problem.width, &db))
}

/// fp32 `[B, channels, T]` in the memory order of the layout.
fn gradient_workspace(client: &Client, problem: &CausalConv1dProblem, channels: usize) -> Operand {
    let chunk = CausalConv1dProblem { channels, ..*problem };
    canonical(&Operand::empty(client, &chunk.x_shape(), FloatType::F32), problem.layout)
}
