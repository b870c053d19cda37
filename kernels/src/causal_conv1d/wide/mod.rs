//! The plan for wide filters: columns and taps staged in shared memory, 16 sums per unit in registers.
//!
//! A wide filter is bound by its multiply-adds, W per element and sum: for 128 taps over 4096 x 8192 elements
//! 8.6 GFLOP, which take 0.14 ms at the 60 TFLOP/s that an H200 has in fp32, twice the time of a copy. What
//! is not a multiply-add is therefore kept away from the units: rows come and go as vectors of four, nothing
//! is moved between registers, and a tile is read while the one before it is multiplied. Measured there: 285
//! us forward, 598 us for the whole backward pass in `[B, C, T]`, 340 and 684 in `[B, T, C]`. The
//! multiply-adds and their loads of shared memory take 38 us per 32 taps of the forward pass (32, 64, 96, 128
//! taps: 231, 268, 310, 347 us without reading ahead), so that about 150 us are theirs and the rest is what
//! reading ahead does not hide. Also tried: 32 sums in a unit 441 us, cubes of 256 units 375.
//!
//! The tiles are those of [`along_time`] (y, dx) and [`weight`] (dw), built from [`stage`] and [`taps`]
//! (memory to shared memory), [`products`] and [`results`] (sums to memory).

mod forward;
mod products;
mod results;
mod stage;
mod taps;
mod weight;

use super::call::Call;
use super::problem::Conv1dLayout;
use crate::error::ConvError;
use crate::operand::Operand;
use forward::Sums;
pub(super) use forward::turns;
pub(super) use weight::{Cut, launch_partials, workspace};

/// How memory is read and written along a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    /// Elements, one by one.
    One,
    /// Vectors of four steps.
    Four,
}

impl Memory {
    /// The most that lies aligned in every tensor `[B, C, T]`. Where the layout is `[B, T, C]` neighbouring
    /// units have neighbouring channels, whatever a view's strides are.
    fn of(layout: Conv1dLayout, operands: &[&Operand]) -> Self {
        let aligned = |operand: &&Operand| {
            let start = operand.handle.offset_start.unwrap_or(0);
            operand.strides[2] == 1
                && [operand.shape[2], operand.strides[0], operand.strides[1]]
                    .iter()
                    .all(|each| each.is_multiple_of(4))
                && start.is_multiple_of(4 * operand.dtype.size() as u64)
        };
        if layout == Conv1dLayout::Bct && operands.iter().all(aligned) { Self::Four } else { Self::One }
    }

    /// Elements of a vector.
    fn elements(self) -> usize {
        match self {
            Self::One => 1,
            Self::Four => 4,
        }
    }

    /// Steps between the beginning of a vector and column `start` of a row of filters of width `width`.
    fn shift(self, start: usize, width: usize) -> usize {
        // Column W-1 is step 0.
        (start + 3 * (width - 1)) % self.elements()
    }
}

/// Channels `first..first + channels` of y, or with `dy` of the gradient before the activation:
/// `target[b, c - first, t]`.
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
    forward::launch(call, &sums)
}

/// Columns `start..` of those channels from `g[b, c - first, t]`: dx with `start = W-1`, or the gradient of
/// the initial state with `start = 0`, as `target[b, c, e - start]`.
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
    forward::launch(call, &sums)
}
