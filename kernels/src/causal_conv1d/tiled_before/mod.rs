//! The plan for wide filters: columns and taps staged in shared memory, 16 sums per unit in registers.
//!
//! A wide filter is bound by its multiply-adds, W per element and sum: for 128 taps over 4096 x 8192 elements 8.6 GFLOP, which
//! take 0.14 ms at the 60 TFLOP/s that an H200 has in fp32, twice the time of a copy. The tiles are those of
//! [`along_time`] (y, dx) and [`weight`] (dw).

mod along_time;
mod products;
mod weight;

use super::call::Call;
use crate::error::ConvError;
use crate::operand::Operand;
use along_time::Sums;
pub(super) use weight::{Cut, launch_partials};

/// Channels `first..first + channels` of y, or with `dy` of the gradient before the activation: `target[b, c - first, t]`.
pub(super) fn forward(
    call: &Call,
    dy: Option<&Operand>,
    channels: (usize, usize),
    target: &Operand,
) -> Result<(), ConvError> {
    let source = &call.views.x;
    let sums = Sums {
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
    along_time::launch(call, &sums)
}

/// Columns `start..` of those channels from `g[b, c - first, t]`: dx with `start = W-1`, or the gradient of the initial state
/// with `start = 0`, as `target[b, c, e - start]`.
pub(super) fn gradient(
    call: &Call,
    g: &Operand,
    dfinal: Option<&Operand>,
    channels: (usize, usize),
    (start, target): (usize, &Operand),
) -> Result<(), ConvError> {
    let sums = Sums {
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
    along_time::launch(call, &sums)
}
