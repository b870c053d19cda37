//! The geometry of a conv3d problem as kernel arguments, and the coordinate arithmetic of the direct
//! kernels. Extents are run-time values: one compiled kernel serves every shape.

use super::padding::source_of;
use super::problem::{Conv3dProblem, PaddingMode};
use crate::geometry::AxisGeometry;
use cubecl::prelude::*;

/// One spatial axis: see [`AxisGeometry`].
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Axis {
    pub(crate) input: u32,
    pub(crate) output: u32,
    pub(crate) kernel: u32,
    pub(crate) stride: u32,
    pub(crate) dilation: u32,
    /// Padding before the first element.
    pub(crate) begin: i32,
    /// Padding after the last element.
    pub(crate) end: i32,
}

/// The three axes and the channel structure.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) batch: u32,
    pub(crate) depth: Axis,
    pub(crate) height: Axis,
    pub(crate) width: Axis,
    /// C / groups.
    pub(crate) group_channels: u32,
    /// O / groups.
    pub(crate) group_out: u32,
}

/// An output or input position: image, depth, height and width.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Position {
    pub(crate) n: u32,
    pub(crate) d: u32,
    pub(crate) h: u32,
    pub(crate) w: u32,
}

/// A channel inside its group and a tap of its filter: what an element of `w[o]` belongs to.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct ChannelTap {
    pub(crate) c: u32,
    pub(crate) d: u32,
    pub(crate) h: u32,
    pub(crate) w: u32,
}

#[cube]
impl Axis {
    /// Where tap `k` of window `q` reads; outside `0..input` in the padding.
    pub(crate) fn source(&self, q: u32, k: u32) -> i32 {
        (q * self.stride + k * self.dilation) as i32 - self.begin
    }

    /// The element that tap `k` of window `q` reads, inside or in padding that repeats elements.
    pub(crate) fn element(&self, q: u32, k: u32, #[comptime] mode: PaddingMode) -> i32 {
        source_of(self.source(q, k), self.input as i32, mode)
    }

    /// The window whose tap `k` reads position `p`, or `output` (one past the last) where there is none.
    pub(crate) fn window_at(&self, p: i32, k: u32) -> u32 {
        let t = p + self.begin - (k * self.dilation) as i32;
        let stride = self.stride as i32;
        let q = t / stride;
        let hit = t >= 0i32 && q * stride == t && q < self.output as i32;
        select(hit, q as u32, self.output)
    }
}

#[cube]
impl Geometry {
    /// Output positions of one channel: N * OD * OH * OW.
    pub(crate) fn output_positions(&self) -> usize {
        self.batch as usize
            * self.depth.output as usize
            * self.height.output as usize
            * self.width.output as usize
    }

    /// KD * KH * KW.
    pub(crate) fn taps(&self) -> u32 {
        self.depth.kernel * self.height.kernel * self.width.kernel
    }

    /// The output position at a linear index, width fastest.
    pub(crate) fn output_position(&self, index: usize) -> Position {
        decode(index, self.depth.output, self.height.output, self.width.output)
    }

    /// The input position at a linear index, width fastest.
    pub(crate) fn input_position(&self, index: usize) -> Position {
        decode(index, self.depth.input, self.height.input, self.width.input)
    }

    /// Channel and tap at a linear index in the weight's order, KW fastest.
    pub(crate) fn channel_tap(&self, index: u32) -> ChannelTap {
        let w = index % self.width.kernel;
        let rest = index / self.width.kernel;
        let h = rest % self.height.kernel;
        let rest = rest / self.height.kernel;
        ChannelTap { c: rest / self.depth.kernel, d: rest % self.depth.kernel, h, w }
    }
}

#[cube]
fn decode(index: usize, d: u32, h: u32, w: u32) -> Position {
    let row = index / w as usize;
    let frame = row / h as usize;
    let image = frame / d as usize;
    Position {
        n: image as u32,
        d: (frame - image * d as usize) as u32,
        h: (row - frame * h as usize) as u32,
        w: (index - row * w as usize) as u32,
    }
}

/// Element offset of `(n, c, d, h, w)` in a five-axis tensor.
#[cube]
pub(crate) fn offset<E: CubePrimitive>(tensor: &Tensor<E>, n: u32, c: u32, d: u32, h: u32, w: u32) -> usize {
    n as usize * tensor.stride(0)
        + c as usize * tensor.stride(1)
        + d as usize * tensor.stride(2)
        + h as usize * tensor.stride(3)
        + w as usize * tensor.stride(4)
}

/// An element of [cache, x], joined along depth.
#[cube]
pub(crate) fn read_joined<E: Float>(
    x: &Tensor<E>,
    cache: ComptimeOption<&Tensor<E>>,
    n: u32,
    channel: u32,
    d: u32,
    h: u32,
    w: u32,
) -> f32 {
    #[comptime]
    match cache {
        ComptimeOption::Some(cache) => {
            let frames = cache.shape(2) as u32;
            let mut value = 0.0f32;
            if d < frames {
                value += f32::cast_from(cache[offset(cache, n, channel, d, h, w)]);
            } else {
                value += f32::cast_from(x[offset(x, n, channel, d - frames, h, w)]);
            }
            value
        }
        ComptimeOption::None => f32::cast_from(x[offset(x, n, channel, d, h, w)]),
    }
}

/// An axis as a kernel argument. `Conv3dProblem::validate` keeps every number below 2^31.
fn axis_launch(axis: AxisGeometry) -> AxisLaunch {
    AxisLaunch {
        input: axis.input as u32,
        output: axis.output() as u32,
        kernel: axis.kernel as u32,
        stride: axis.stride as u32,
        dilation: axis.dilation as u32,
        begin: axis.padding.0 as i32,
        end: axis.padding.1 as i32,
    }
}

impl Conv3dProblem {
    /// The problem's geometry as a kernel argument.
    pub(crate) fn geometry(&self) -> GeometryLaunch {
        GeometryLaunch {
            batch: self.batch as u32,
            depth: axis_launch(self.axis(0)),
            height: axis_launch(self.axis(1)),
            width: axis_launch(self.axis(2)),
            group_channels: self.group_channels() as u32,
            group_out: self.group_out_channels() as u32,
        }
    }
}

/// A padding or span that `Conv3dProblem::validate` has found below 2^31.
pub(crate) fn clamp_to_i32(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}
