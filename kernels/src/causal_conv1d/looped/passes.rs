//! The backward pass of the plans `wide` and `looped`, by groups of channels: the pre-activation gradient
//! into a workspace, from it dx and the gradient of the initial state, then the partial sums of dw and db.
//! The partial sums are reduced at the end.

use super::{forward, gradient, weight};
use crate::Activation;
use crate::causal_conv1d::args::canonical;
use crate::causal_conv1d::call::Conv1dCall;
use crate::causal_conv1d::plan::{Plan, channels_at_a_time};
use crate::causal_conv1d::problem::CausalConv1dProblem;
use crate::causal_conv1d::{Gradients, wide};
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::operand::Operand;
use cubecl::prelude::*;

/// Launches every kernel of the pass.
pub(crate) fn backward(
    call: &Conv1dCall,
    plan: Plan,
    dy: &Operand,
    dfinal: Option<&Operand>,
    out: &Gradients,
) -> Result<(), ConvError> {
    let &Conv1dCall { client, limits, problem, .. } = call;
    let dy = canonical(dy, problem.layout).bindable(client);
    let dx = canonical(out.x, problem.layout).bindable(client);
    let dfinal = dfinal.filter(|dfinal| !dfinal.is_empty());
    let dinitial = out.initial_state.filter(|dinitial| !dinitial.is_empty());
    let is_wide = plan == Plan::Wide;
    let wide_split = wide::WeightSplit::of(problem, limits);
    let (split, partials) = if is_wide {
        (None, wide::workspace(client, problem, wide_split))
    } else {
        let (split, partials) = weight::workspace(client, limits, problem);
        (Some(split), partials)
    };
    // Without an activation dy is the pre-activation gradient: no workspace, all channels at once.
    let step = match problem.activation {
        Activation::None => problem.channels,
        Activation::Relu | Activation::Silu => channels_at_a_time(problem, limits),
    };
    for first in (0..problem.channels).step_by(step) {
        let channels = (first, step.min(problem.channels - first));
        let g = if problem.activation == Activation::None {
            dy.clone()
        } else {
            let g = gradient_workspace(client, problem, channels.1);
            let pass = if is_wide { wide::forward } else { forward::launch };
            pass(call, Some(&dy), channels, &g)?;
            g
        };
        let columns = [Some((problem.width - 1, &dx)), dinitial.map(|dinitial| (0, dinitial))];
        for target in columns.into_iter().flatten() {
            let pass = if is_wide { wide::gradient } else { gradient::launch };
            pass(call, &g, dfinal, channels, target)?;
        }
        match split {
            Some(split) => weight::launch_partials(call, &g, channels, (split, &partials))?,
            None => wide::launch_partials(call, &g, channels, (wide_split, &partials))?,
        }
    }
    let partials = weight::fold(client, limits, partials, weight::FOLDED)?;
    weight::launch_sums(client, limits, &partials, (0, out.weight))?;
    let Some(db) = out.bias else { return Ok(()) };
    let db = Operand { shape: vec![problem.channels, 1], strides: vec![db.strides[0], 1], ..db.clone() };
    weight::launch_sums(client, limits, &partials, (problem.width, &db))
}

/// An fp32 workspace `[B, channels, T]`, in memory in the layout's order.
fn gradient_workspace(client: &Client, problem: &CausalConv1dProblem, channels: usize) -> Operand {
    let chunk = CausalConv1dProblem { channels, ..*problem };
    canonical(&Operand::empty(client, &chunk.x_shape(), FloatType::F32), problem.layout)
}
