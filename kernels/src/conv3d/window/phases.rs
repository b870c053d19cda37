//! The residue classes of a strided input gradient (its phases), all in one launch.
//!
//! ```text
//! element p = phase + stride * i of an axis receives tap k from window (p + begin - k * dilation) / stride
//! phase:  the taps first, first + stride, ..             first * dilation = phase + begin  (mod stride)
//! site i: tap last - j * stride, window i + origin + j * dilation
//! ```
//!
//! So each phase is a dense walk of its own ([`crate::conv3d::gemm::gather`]), whose windows move by one
//! element, and its cubes work as a forward pass' do. Cubes of all phases of a tile lie beside each other:
//! they read the same windows and write between each other's results. Weights are packed once, in the order
//! of an unstrided gradient, of whose taps a phase takes every `stride`-th. Phases that take taps of a plane
//! read a window as often as a plane has phases, for as many taps fewer: what limits them is the way of
//! windows to shared memory. (H200, f16, 64 <- 128, 8x16x56x56, every second: 0.33 ms; a launch and packed
//! weights for each phase 0.40, the engine 0.48. 32 <- 64, 128x128x128: 1.04, the engine 2.06. In one plane
//! of 56x56: 0.066 and 0.224.) Declined: strides and dilations with a common divisor (the engine's).

use super::config::WindowTile;
use super::tiling::{Share, Tiling};
use crate::conv3d::gemm::index::GatherArgs;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// One axis.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct AxisPhases {
    pub(super) stride: FastDivmod<u32>,
    pub(super) stride_count: u32,
    /// The factor that divides by the dilation, modulo the stride.
    pub(super) inverse: u32,
    pub(super) dilation: u32,
    pub(super) begin: u32,
    pub(super) input: u32,
    /// Taps of the kernel.
    pub(super) kernel: u32,
}

/// The three axes. A phase's index: width fastest.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Phases {
    pub(super) depth: AxisPhases,
    pub(super) height: AxisPhases,
    pub(super) width: AxisPhases,
    pub(super) count: FastDivmod<u32>,
    pub(super) heights: FastDivmod<u32>,
    pub(super) widths: FastDivmod<u32>,
}

/// Which of the packed taps a phase multiplies by.
#[derive(CubeType, Clone, Copy)]
pub(super) struct PhaseTaps {
    /// The first depth tap among those of all groups, and the distance to the next.
    pub(super) depth: u32,
    pub(super) depth_step: u32,
    /// Taps of a plane, and of the phase its first, the distance to the next row of taps and to the next in
    /// it.
    pub(super) plane: u32,
    pub(super) first: u32,
    pub(super) row_step: u32,
    pub(super) step: u32,
}

/// What a cube does: where its phase walks, how the phase is shared out, and the cube's share.
#[derive(CubeType)]
pub(super) struct Work {
    pub(super) walk: GatherArgs,
    pub(super) tiling: Tiling,
    pub(super) share: Share,
    pub(super) taps: ComptimeOption<PhaseTaps>,
}

/// A phase of an axis: its sites, its taps, the first of the packed taps among them, and where the first
/// site's first tap reads, as its positive and its negative part.
#[derive(CubeType, Clone, Copy)]
struct AxisPhase {
    sites: u32,
    taps: u32,
    packed: u32,
    ahead: u32,
    behind: u32,
}

#[cube]
impl AxisPhases {
    fn phase(&self, phase: u32) -> AxisPhase {
        let stride = self.stride_count;
        let at = phase + self.begin;
        let first = self.stride.modulo(self.stride.modulo(at) * self.inverse);
        let taps = self.stride.div(max(self.kernel, first) - first + stride - 1u32);
        let last = first + max(taps, 1u32) * stride - stride;
        // The two differ by a multiple of the stride.
        let reach = last * self.dilation;
        AxisPhase {
            sites: self.stride.div(self.input - phase + stride - 1u32),
            taps,
            packed: max(self.kernel, last + 1u32) - last - 1u32,
            ahead: self.stride.div(max(at, reach) - reach),
            behind: self.stride.div(max(reach, at) - at),
        }
    }
}

#[cube]
impl Phases {
    /// The work of a cube.
    fn work(&self, walk: &GatherArgs, tiling: &Tiling, cube: u32, #[comptime] tile: WindowTile) -> Work {
        let (rest, in_n) = tiling.tiles_n.div_mod(cube);
        let (rest, phase) = self.count.div_mod(rest);
        let share = tiling.share(rest * (tiling.packed_n / tile.tile_n as u32) + in_n, tile);
        let (rest, in_width) = self.widths.div_mod(phase);
        let (in_depth, in_height) = self.heights.div_mod(rest);
        let depth = self.depth.phase(in_depth);
        let height = self.height.phase(in_height);
        let width = self.width.phase(in_width);
        // A phase of fewer frames has nothing to write in the last; one without taps in the plane sums
        // nothing.
        let rows = select(share.d < depth.sites, height.sites, 0u32);
        let plane_taps = height.taps * width.taps;
        let depth_taps = select(rows * plane_taps > 0u32, depth.taps, 0u32);
        let taps = PhaseTaps {
            depth: share.group * self.depth.kernel + depth.packed,
            depth_step: self.depth.stride_count,
            plane: self.height.kernel * self.width.kernel,
            first: height.packed * self.width.kernel + width.packed,
            row_step: self.height.stride_count * self.width.kernel,
            step: self.width.stride_count,
        };
        Work {
            walk: walk.with_axes(
                walk.depth.phase(in_depth, depth_taps, depth.ahead, depth.behind),
                walk.height.phase(in_height, height.taps, height.ahead, height.behind),
                walk.width.phase(in_width, width.taps, width.ahead, width.behind),
            ),
            tiling: tiling.phase(rows, width.sites, plane_taps, width.taps),
            share,
            taps: ComptimeOption::new_Some(taps),
        }
    }
}

/// The work of a cube: of a pass in phases that of one of them.
#[cube]
pub(super) fn work_of(
    phases: &ComptimeOption<Phases>,
    walk: GatherArgs,
    tiling: Tiling,
    cube: u32,
    #[comptime] tile: WindowTile,
) -> Work {
    #[comptime]
    match phases {
        ComptimeOption::Some(phases) => phases.work(&walk, &tiling, cube, tile),
        ComptimeOption::None => {
            let share = tiling.share(cube, tile);
            Work { walk, tiling, share, taps: ComptimeOption::new_None() }
        }
    }
}
