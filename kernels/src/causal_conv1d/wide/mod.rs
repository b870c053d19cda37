//! The plan for wide filters: columns and taps staged in shared memory, 16 accumulators per thread.
//!
//! A wide filter is bound by FMA, W per element. The kernels therefore load and store rows as vectors of
//! four, move nothing between registers and prefetch the next tile during the products.
//!
//! [`forward`](mod@forward) computes y, the pre-activation gradient, dx and the gradient of the initial
//! state, [`weight`] the partial sums of dw and db. Both use [`stage`] and [`taps`] (DRAM to shared memory)
//! and [`products`] (the K loop); [`results`] is the epilogue of [`forward`](mod@forward).

mod forward;
mod products;
mod results;
mod stage;
mod taps;
mod weight;
mod weight_split;

use super::call::Conv1dCall;
use super::problem::{CausalConv1dProblem, Conv1dLayout};
use crate::error::ConvError;
use crate::operand::Operand;
use forward::FilterPass;
pub(super) use forward::{SHARED_BYTES as FORWARD_SHARED_BYTES, iterations};
pub(super) use weight::launch_partials;
pub(super) use weight_split::{WeightSplit, workspace};

/// How kernels access memory along a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AccessWidth {
    /// Single elements, any strides.
    Scalar,
    /// Vectors of four steps.
    Vec4,
}

impl AccessWidth {
    /// The widest access that is aligned in every tensor. In `[B, T, C]` consecutive threads have consecutive
    /// channels, whatever a view's strides are.
    fn of(layout: Conv1dLayout, operands: &[&Operand]) -> Self {
        let aligned = |operand: &&Operand| operand.has_vectors(2, operand.shape[2], 4);
        if layout == Conv1dLayout::Bct && operands.iter().all(aligned) { Self::Vec4 } else { Self::Scalar }
    }

    /// Elements of a vector.
    fn elements(self) -> usize {
        match self {
            Self::Scalar => 1,
            Self::Vec4 => 4,
        }
    }

    /// Steps from the start of a vector to column `start`, for filters of width `width`.
    fn shift(self, start: usize, width: usize) -> usize {
        // Column W-1 is step 0.
        (start + 3 * (width - 1)) % self.elements()
    }
}

/// Shared memory of the largest backward kernel.
pub(super) fn backward_shared_bytes(problem: &CausalConv1dProblem) -> usize {
    let tile = weight_split::WideWeightTile { layout: problem.layout, shift: 0, unroll: false };
    tile.shared_bytes().max(FORWARD_SHARED_BYTES)
}

/// Channels `first..first + channels` of y, or with `dy` of the pre-activation gradient, into
/// `target[b, c - first, t]`.
pub(super) fn forward(
    call: &Conv1dCall,
    dy: Option<&Operand>,
    channels: (usize, usize),
    target: &Operand,
) -> Result<(), ConvError> {
    let source = &call.views.x;
    let pass = FilterPass {
        source,
        source_first: channels.0,
        reversed: false,
        start: 0,
        dy,
        residual: call.views.residual.as_ref().filter(|_| dy.is_none()),
        dfinal: None,
        channels,
        target,
    };
    forward::launch(call, &pass)
}

/// Columns `start..` of these channels from `g[b, c - first, t]` into `target[b, c, e - start]`: dx for
/// `start = W-1`, the gradient of the initial state for `start = 0`.
pub(super) fn gradient(
    call: &Conv1dCall,
    g: &Operand,
    dfinal: Option<&Operand>,
    channels: (usize, usize),
    (start, target): (usize, &Operand),
) -> Result<(), ConvError> {
    let pass = FilterPass {
        source: g,
        source_first: 0,
        reversed: true,
        start,
        dy: None,
        residual: None,
        dfinal,
        channels,
        target,
    };
    forward::launch(call, &pass)
}
