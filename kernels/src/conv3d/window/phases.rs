//! The residue classes of a strided input gradient (its phases), all in one launch.
//!
//! ```text
//! element p = phase + stride * i of an axis receives tap k from window (p + begin - k * dilation) / stride
//! taps of a phase:  first, first + stride, ..        first * dilation = phase + begin  (mod stride)
//! position i:       tap last - j * stride from window i + origin + j * dilation
//! ```
//!
//! Each phase is a dense traversal ([`crate::conv3d::gemm::gather`]) without a stride, which the kernels
//! compute like a forward pass. The phases of a tile are neighbouring threadgroups: they load the same
//! windows and store interleaved results. Weights are packed once, in the order of an unstrided gradient; a
//! phase takes every `stride`-th tap. Every phase loads a whole window for its fraction of the taps, so that
//! window loads are the bottleneck. Declined: strides and dilations with a common divisor (gathered instead).

use super::config::WindowTile;
use super::tiling::{WindowTiling, WindowWork};
use crate::conv3d::gemm::index::GatherArgs;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// The phases along one axis.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct AxisPhases {
    pub(super) stride_divmod: FastDivmod<u32>,
    pub(super) stride: u32,
    /// Inverse of the dilation modulo the stride.
    pub(super) inverse: u32,
    pub(super) dilation: u32,
    pub(super) begin: u32,
    pub(super) input: u32,
    /// Taps along the axis.
    pub(super) kernel: u32,
}

/// The phases along the three axes. Phase index: width fastest.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Phases {
    pub(super) depth: AxisPhases,
    pub(super) height: AxisPhases,
    pub(super) width: AxisPhases,
    pub(super) count: FastDivmod<u32>,
    pub(super) heights: FastDivmod<u32>,
    pub(super) widths: FastDivmod<u32>,
}

/// Which packed taps a phase takes.
#[derive(CubeType, Clone, Copy)]
pub(super) struct PhaseTaps {
    /// The first depth tap, counted over all groups, and the distance to the next.
    pub(super) depth: u32,
    pub(super) depth_step: u32,
    /// Taps of a frame; of the phase, its first one, and the distances to its next row of taps and its next
    /// tap.
    pub(super) frame_taps: u32,
    pub(super) first: u32,
    pub(super) row_step: u32,
    pub(super) step: u32,
}

/// The work of a threadgroup: the traversal and the tiling of its phase, its work assignment, its taps.
#[derive(CubeType)]
pub(super) struct PhaseWork {
    pub(super) gather: GatherArgs,
    pub(super) tiling: WindowTiling,
    pub(super) work: WindowWork,
    pub(super) taps: ComptimeOption<PhaseTaps>,
}

/// One phase of an axis: its positions and taps, its first packed tap, and the window that the first position
/// reads with the first tap, as positive and negative part.
#[derive(CubeType, Clone, Copy)]
struct AxisPhase {
    positions: u32,
    taps: u32,
    packed: u32,
    origin_positive: u32,
    origin_negative: u32,
}

#[cube]
impl AxisPhases {
    fn phase(&self, phase: u32) -> AxisPhase {
        let stride = self.stride;
        let at = phase + self.begin;
        let first = self.stride_divmod.modulo(self.stride_divmod.modulo(at) * self.inverse);
        let taps = self.stride_divmod.div(max(self.kernel, first) - first + stride - 1u32);
        let last = first + max(taps, 1u32) * stride - stride;
        // `at` and `reach` differ by a multiple of the stride.
        let reach = last * self.dilation;
        AxisPhase {
            positions: self.stride_divmod.div(self.input - phase + stride - 1u32),
            taps,
            packed: max(self.kernel, last + 1u32) - last - 1u32,
            origin_positive: self.stride_divmod.div(max(at, reach) - reach),
            origin_negative: self.stride_divmod.div(max(reach, at) - at),
        }
    }
}

#[cube]
impl Phases {
    /// The work of a threadgroup.
    fn work(
        &self,
        gather: &GatherArgs,
        tiling: &WindowTiling,
        threadgroup: u32,
        #[comptime] tile: WindowTile,
    ) -> PhaseWork {
        let (rest, in_n) = tiling.tiles_n.div_mod(threadgroup);
        let (rest, phase) = self.count.div_mod(rest);
        let work = tiling.work(rest * (tiling.packed_n / tile.tile_n as u32) + in_n, tile);
        let (rest, in_width) = self.widths.div_mod(phase);
        let (in_depth, in_height) = self.heights.div_mod(rest);
        let depth = self.depth.phase(in_depth);
        let height = self.height.phase(in_height);
        let width = self.width.phase(in_width);
        // A phase with fewer frames stores nothing in the last one; without taps in the frame its sums are
        // zero.
        let rows = select(work.d < depth.positions, height.positions, 0u32);
        let frame_taps = height.taps * width.taps;
        let depth_taps = select(rows * frame_taps > 0u32, depth.taps, 0u32);
        let taps = PhaseTaps {
            depth: work.group * self.depth.kernel + depth.packed,
            depth_step: self.depth.stride,
            frame_taps: self.height.kernel * self.width.kernel,
            first: height.packed * self.width.kernel + width.packed,
            row_step: self.height.stride * self.width.kernel,
            step: self.width.stride,
        };
        PhaseWork {
            gather: gather.with_axes(
                gather.depth.phase(in_depth, depth_taps, depth.origin_positive, depth.origin_negative),
                gather.height.phase(in_height, height.taps, height.origin_positive, height.origin_negative),
                gather.width.phase(in_width, width.taps, width.origin_positive, width.origin_negative),
            ),
            tiling: tiling.phase(rows, width.positions, frame_taps, width.taps),
            work,
            taps: ComptimeOption::new_Some(taps),
        }
    }
}

/// The work of a threadgroup: of its phase where the pass has phases.
#[cube]
pub(super) fn work_of(
    phases: &ComptimeOption<Phases>,
    gather: GatherArgs,
    tiling: WindowTiling,
    threadgroup: u32,
    #[comptime] tile: WindowTile,
) -> PhaseWork {
    #[comptime]
    match phases {
        ComptimeOption::Some(phases) => phases.work(&gather, &tiling, threadgroup, tile),
        ComptimeOption::None => {
            let work = tiling.work(threadgroup, tile);
            PhaseWork { gather, tiling, work, taps: ComptimeOption::new_None() }
        }
    }
}
