//! Shared by the kernels of the op: run-time arguments, and access to columns and sequence ids.
//!
//! A row is one sequence of *columns* `[initial state | x]`: column e is state e for `e < W-1`, else step
//! `e - (W-1)` of x. Tap k of output step t reads column `t + k`, so no index is negative. All tensors are
//! addressed in `[B, C, T]` order; the layout decides only along which axis consecutive threads run.
//!
//! # Safety
//! Every kernel of the op is launched unchecked, under this contract:
//! - The public functions check that each operand has the problem's shape and dtype and that the plan serves
//!   the problem; extents reach the kernels from that problem or from the operands' own shapes.
//! - `address_type` gets the largest operands and the largest linear index, so that no offset overflows.
//! - Kernels mask what their last threadgroup and tile exceed: rows, channels, steps, columns and taps.
//! - An absent optional tensor is replaced by a bound placeholder that its [`Present`] bit keeps from being
//!   read.
//! - Each output element has one writer. Outputs alias no input, except a decoding step's new state, which a
//!   thread writes after its last read of the old one.
//!
//! The conformance tests surround every buffer with guard elements. `SAFETY` comments name only the bounds of
//! their launch.

use super::problem::{CausalConv1dProblem, Conv1dLayout};
use crate::operand::Operand;
use cubecl::prelude::*;

/// Threads per threadgroup. 256 is what WebGPU guarantees.
pub(crate) const THREADS: u32 = 256;

/// Flags for the optional tensors of a launch. An absent tensor is replaced by a placeholder that is bound
/// but not accessed.
pub(crate) struct Present;

impl Present {
    pub(crate) const BIAS: u32 = 1;
    pub(crate) const INITIAL: u32 = 2;
    pub(crate) const DFINAL: u32 = 4;
    pub(crate) const DINITIAL: u32 = 8;
    pub(crate) const DBIAS: u32 = 16;
    /// dw and db are written directly, without partial sums.
    pub(crate) const DIRECT: u32 = 32;
    pub(crate) const DY: u32 = 64;
    pub(crate) const RESIDUAL: u32 = 128;

    /// The bits whose flag is set.
    pub(crate) fn bits(flags: &[(bool, u32)]) -> u32 {
        flags.iter().filter(|(on, _)| *on).map(|(_, bit)| bit).sum()
    }
}

/// Extents of `[B, C, T]`, the range of channels that a launch covers, and its flags.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct ConvParams {
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

#[cube]
impl ConvParams {
    /// Columns of the initial state.
    pub(crate) fn history(&self) -> usize {
        self.width - 1
    }

    pub(crate) fn has(&self, #[comptime] what: u32) -> bool {
        self.present & what != 0u32
    }
}

/// Strides in elements of a tensor in `[B, C, T]` order.
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

/// Strides of a tensor in `[B, C, T]` order, as a kernel argument.
pub(crate) fn strides(operand: &Operand) -> StridesLaunch {
    StridesLaunch { b: operand.strides[0], c: operand.strides[1], t: operand.strides[2] }
}

/// Element offset of `(i, j, k)` in a three-axis tensor.
#[cube]
pub(crate) fn offset3<E: CubePrimitive>(tensor: &Tensor<E>, i: usize, j: usize, k: usize) -> usize {
    i * tensor.stride(0) + j * tensor.stride(1) + k * tensor.stride(2)
}

/// Element offset of `(i, j)` in a two-axis tensor.
#[cube]
pub(crate) fn offset2<E: CubePrimitive>(tensor: &Tensor<E>, i: usize, j: usize) -> usize {
    i * tensor.stride(0) + j * tensor.stride(1)
}

/// Column `e` of a row; 0 past the row's end and if there is no initial state.
#[cube]
pub(crate) fn column<X: Float, H: Float>(
    x: &Tensor<X>,
    initial: &Tensor<H>,
    params: &ConvParams,
    b: usize,
    c: usize,
    e: usize,
) -> f32 {
    let history = params.history();
    let mut value = 0.0f32;
    if e >= history {
        if e - history < params.length {
            value = f32::cast_from(x[offset3(x, b, c, e - history)]);
        }
    } else if params.has(Present::INITIAL) {
        value = f32::cast_from(initial[offset3(initial, b, c, e)]);
    }
    value
}

/// Id of the sequence of column `e`. Columns of the initial state have the id of the first step, columns past
/// the row's end that of the last. Needs at least one step.
#[cube]
pub(crate) fn sequence_id<I: Int>(seq_idx: &Tensor<I>, params: &ConvParams, b: usize, e: usize) -> I {
    let t = max(e, params.history()) - params.history();
    seq_idx[offset2(seq_idx, b, min(t, params.length - 1))]
}

impl CausalConv1dProblem {
    /// Run-time arguments of a launch for channels `first..first + channels`.
    pub(crate) fn params(&self, first: usize, channels: usize, present: u32) -> ConvParamsLaunch {
        ConvParamsLaunch {
            batch: self.batch,
            first,
            channels,
            length: self.length,
            width: self.width,
            present,
            activation: self.activation.code(),
        }
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
