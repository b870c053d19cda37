//! Packs the weights for the sub-pixel kernels.
//!
//! ```text
//! [group][column tile][depth tap][block of channels][window tap]   then, for a stage,
//!     [channel of dy][column]   in fp32, for FMAs
//!     [column][channel of dy]   in the stage's type, for MMA
//! ```
//!
//! A column is a channel of dx and a phase of a block. Channels, columns and taps that do not exist are zero.
//! One thread per element. Bytes: the weights once, the packed weights once.

use super::config::SubpixelTile;
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// Threads of a threadgroup.
pub(super) const THREADS: usize = 256;

/// One axis of the H x W slice: see [`super::blocks`].
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct PackedAxis {
    pub(super) taps: FastDivmod<u32>,
    pub(super) phases: FastDivmod<u32>,
    pub(super) origin: i32,
    pub(super) step: i32,
    pub(super) stride: i32,
    pub(super) dilation: i32,
    pub(super) begin: i32,
    pub(super) kernel: i32,
    pub(super) weight_stride: usize,
}

/// Extents of the packed weights, and strides of the weights.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct PackedExtents {
    pub(super) height: PackedAxis,
    pub(super) width: PackedAxis,
    /// Window taps.
    pub(super) taps: FastDivmod<u32>,
    /// Blocks of dy's channels.
    pub(super) chunks: FastDivmod<u32>,
    pub(super) depth_taps: FastDivmod<u32>,
    pub(super) column_tiles: FastDivmod<u32>,
    /// Columns and channels of one group.
    pub(super) columns: u32,
    pub(super) channels: u32,
    /// Elements of the packed weights.
    pub(super) elements: u32,
    pub(super) out_stride: usize,
    pub(super) channel_stride: usize,
    pub(super) depth_stride: usize,
}

#[cube]
impl PackedAxis {
    /// The tap that reaches a block's phase from its window `j`, times the dilation; negative or past the
    /// last if there is none.
    fn tap(&self, phase: u32, j: u32) -> i32 {
        phase as i32 + self.begin - (self.origin + j as i32 * self.step) * self.stride
    }

    fn exists(&self, tap: i32) -> bool {
        tap >= 0i32 && tap % self.dilation == 0i32 && tap / self.dilation < self.kernel
    }

    fn offset(&self, tap: i32) -> usize {
        (tap / self.dilation) as usize * self.weight_stride
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn pack_kernel<E: Float, S: Float>(
    weight: &[E],
    out: &mut [S],
    packed: PackedExtents,
    span: Span,
    #[comptime] tile: SubpixelTile,
    #[define(E)] _dtype: ElemType,
    #[define(S)] _stage_dtype: ElemType,
) {
    let index = span.index() as u32 * THREADS as u32 + UNIT_POS;
    if span.is_idle() || index >= packed.elements {
        terminate!();
    }
    let stage = comptime!((tile.channels * tile.columns) as u32);
    let (rest, tap) = packed.taps.div_mod(index / stage);
    let (rest, chunk) = packed.chunks.div_mod(rest);
    let (rest, depth_tap) = packed.depth_taps.div_mod(rest);
    let (group, column_tile) = packed.column_tiles.div_mod(rest);
    // Consecutive elements are columns for FMA, channels for MMA.
    let in_stage = index % stage;
    let mut channel = chunk * tile.channels as u32;
    let mut column = column_tile * tile.columns as u32;
    if comptime!(tile.fragment == 0) {
        channel += in_stage / tile.columns as u32;
        column += in_stage % tile.columns as u32;
    } else {
        channel += in_stage % tile.channels as u32;
        column += in_stage / tile.channels as u32;
    }
    let (h, w) = packed.width.taps.div_mod(tap);
    let (rest, phase_w) = packed.width.phases.div_mod(column);
    let (c, phase_h) = packed.height.phases.div_mod(rest);
    let h = packed.height.tap(phase_h, h);
    let w = packed.width.tap(phase_w, w);
    let exists = channel < packed.channels && column < packed.columns;
    let mut value = S::from_int(0);
    if exists && packed.height.exists(h) && packed.width.exists(w) {
        let at = (group * packed.channels + channel) as usize * packed.out_stride
            + depth_tap as usize * packed.depth_stride
            + c as usize * packed.channel_stride
            + packed.height.offset(h)
            + packed.width.offset(w);
        value = S::cast_from(weight[at]);
    }
    out[index as usize] = value;
}
