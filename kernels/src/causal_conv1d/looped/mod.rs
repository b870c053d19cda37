//! The plan for any filter width: one step per thread, the taps in a loop. It also serves packed sequences
//! under a wide filter.
//!
//! [`forward`](mod@forward) computes y and the pre-activation gradient, [`gradient`] dx and the gradient of
//! the initial state, [`weight`] dw and db. [`passes`] runs the backward pass, for [`super::wide`] too.

mod forward;
mod gradient;
mod passes;
pub(super) mod weight;

pub(super) use forward::launch as forward;
pub(super) use passes::backward;

use super::args::{ConvParams, ConvParamsExpand};
use super::problem::Conv1dLayout;
use cubecl::prelude::*;

/// A step of a row.
#[derive(CubeType, Clone, Copy)]
struct Position {
    b: usize,
    /// Relative to [`ConvParams::first`].
    c: usize,
    t: usize,
}

#[cube]
impl ConvParams {
    /// The position of a linear index over rows of `steps`, the layout's contiguous axis fastest. For indices
    /// past the end, `b` is at least the batch size.
    fn position(&self, index: usize, steps: usize, #[comptime] layout: Conv1dLayout) -> Position {
        if comptime!(layout == Conv1dLayout::Bct) {
            let row = index / steps;
            let b = row / self.channels;
            Position { b, c: row - b * self.channels, t: index - row * steps }
        } else {
            let group = index / self.channels;
            let b = group / steps;
            Position { b, c: index - group * self.channels, t: group - b * steps }
        }
    }
}
