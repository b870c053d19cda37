//! What the kernels of the op share: extents as run-time arguments, which steps a unit works on, columns,
//! ids.
//!
//! A row is written as one sequence of *columns* `[initial state | x]`: column e is state e for `e < W-1`,
//! else step `e - (W-1)` of x. Tap k of output step t reads column `t + k`, so no index is ever negative. All
//! tensors are seen in `[B, C, T]` order; the layout only decides which axis neighbouring units run along.

use super::problem::{CausalConv1dProblem, Conv1dLayout};
use crate::operand::Operand;
use cubecl::prelude::*;

/// Units of a cube. 256 is what WebGPU guarantees.
pub(crate) const UNITS: u32 = 256;

/// Which optional tensors there are, as bits; others stand in for the absent ones and are not touched.
pub(crate) struct Present;

impl Present {
    pub(crate) const BIAS: u32 = 1;
    pub(crate) const INITIAL: u32 = 2;
    pub(crate) const DFINAL: u32 = 4;
    pub(crate) const DINITIAL: u32 = 8;
    pub(crate) const DBIAS: u32 = 16;
    /// The sums of dw and db are whole: no partial sums follow.
    pub(crate) const DIRECT: u32 = 32;
    pub(crate) const DY: u32 = 64;
    pub(crate) const RESIDUAL: u32 = 128;

    /// The bits of those that are there.
    pub(crate) fn bits(flags: &[(bool, u32)]) -> u32 {
        flags.iter().filter(|(on, _)| *on).map(|(_, bit)| bit).sum()
    }
}

/// Rows of `[B, C, T]` and the channels of them that a launch covers.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) batch: usize,
    /// First channel.
    pub(crate) first: usize,
    /// Number of channels.
    pub(crate) channels: usize,
    /// T.
    pub(crate) length: usize,
    /// W.
    pub(crate) width: usize,
    /// [`Present`] as bits.
    pub(crate) present: u32,
    /// [`Activation::code`](crate::activation::Activation::code).
    pub(crate) activation: u32,
}

/// A step of a row.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) b: usize,
    /// Counted from [`Rows::first`].
    pub(crate) c: usize,
    pub(crate) t: usize,
}

#[cube]
impl Rows {
    /// Steps of state before x.
    pub(crate) fn history(&self) -> usize {
        self.width - 1
    }

    pub(crate) fn has(&self, #[comptime] what: u32) -> bool {
        self.present & what != 0u32
    }

    /// The place of a linear index in rows of `steps`, the layout's contiguous axis fastest. `b` passes the
    /// batch for indices in excess.
    pub(crate) fn place(&self, index: usize, steps: usize, #[comptime] layout: Conv1dLayout) -> Place {
        if comptime!(layout == Conv1dLayout::Bct) {
            let row = index / steps;
            let b = row / self.channels;
            Place { b, c: row - b * self.channels, t: index - row * steps }
        } else {
            let group = index / self.channels;
            let b = group / steps;
            Place { b, c: index - group * self.channels, t: group - b * steps }
        }
    }
}

/// Distances in elements between neighbours of a `[B, C, T]` tensor.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Strides {
    pub(crate) b: usize,
    pub(crate) c: usize,
    pub(crate) t: usize,
}

#[cube]
impl Strides {
    pub(crate) fn row(&self, b: u32, c: u32) -> usize {
        b as usize * self.b + c as usize * self.c
    }
}

/// Strides of a tensor in `[B, C, T]` order.
pub(crate) fn strides(operand: &Operand) -> StridesLaunch {
    StridesLaunch::new(operand.strides[0], operand.strides[1], operand.strides[2])
}

/// Element offset of `(i, j, k)` in a three-axis tensor.
#[cube]
pub(crate) fn at3<E: CubePrimitive>(tensor: &Tensor<E>, i: usize, j: usize, k: usize) -> usize {
    i * tensor.stride(0) + j * tensor.stride(1) + k * tensor.stride(2)
}

/// Element offset of `(i, j)` in a two-axis tensor.
#[cube]
pub(crate) fn at2<E: CubePrimitive>(tensor: &Tensor<E>, i: usize, j: usize) -> usize {
    i * tensor.stride(0) + j * tensor.stride(1)
}

/// Column `e` of a row; 0 beyond the row and where no initial state is given.
#[cube]
pub(crate) fn column<X: Float, H: Float>(
    x: &Tensor<X>,
    initial: &Tensor<H>,
    rows: &Rows,
    b: usize,
    c: usize,
    e: usize,
) -> f32 {
    let history = rows.history();
    let mut value = 0.0f32;
    if e >= history {
        if e - history < rows.length {
            value = f32::cast_from(x[at3(x, b, c, e - history)]);
        }
    } else if rows.has(Present::INITIAL) {
        value = f32::cast_from(initial[at3(initial, b, c, e)]);
    }
    value
}

/// Id of the sequence that column `e` belongs to. The initial state belongs to the sequence of the first
/// step; beyond the row the id is that of the last step. For rows with at least one step.
#[cube]
pub(crate) fn id_of<I: Int>(seq_idx: &Tensor<I>, rows: &Rows, b: usize, e: usize) -> I {
    let t = max(e, rows.history()) - rows.history();
    seq_idx[at2(seq_idx, b, min(t, rows.length - 1))]
}

/// Whether the final state holds column `e` of a row, and as which of its columns: the first is the one that
/// has as many columns before it as there are steps up to the row's last that is no padding. With ids that
/// number is at step T of them, see [`super::state::with_ends`]; columns of another sequence than that step's
/// are not in the state.
#[cube]
pub(crate) fn in_final<I: Int>(
    seq_idx: ComptimeOption<&Tensor<I>>,
    rows: &Rows,
    b: usize,
    e: usize,
) -> (usize, bool) {
    let mut end = rows.length;
    let mut held = true;
    if comptime!(seq_idx.is_some()) {
        let ids = seq_idx.unwrap();
        end = usize::cast_from(ids[at2(ids, b, rows.length)]);
        // Where there is only padding the final state is the initial one.
        let last = id_of(ids, rows, b, max(end, 1usize) - 1 + rows.history());
        held = end == 0 || id_of(ids, rows, b, e) == last;
    }
    (max(e, end) - end, held && e >= end && e < end + rows.history())
}

impl CausalConv1dProblem {
    /// Extents as a kernel argument, for `channels` channels from `first` on.
    pub(crate) fn rows(&self, first: usize, channels: usize, present: u32) -> RowsLaunch {
        let activation = self.activation.code();
        RowsLaunch::new(self.batch, first, channels, self.length, self.width, present, activation)
    }
}

/// `operand` with its axes in `[B, C, T]` order.
pub(crate) fn canonical(operand: &Operand, layout: Conv1dLayout) -> Operand {
    let mut view = operand.clone();
    if layout == Conv1dLayout::Btc {
        view.shape.swap(1, 2);
        view.strides.swap(1, 2);
    }
    view
}
