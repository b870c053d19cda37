//! The depth axis of the transform-domain products: its extents, and which input frame a tap of an output
//! frame reads.
//!
//! ```text
//! input frame of (frame, kd) = frame * stride + kd * dilation - begin       zero or the nearest outside
//! ```

use super::region::Correlation;
use cubecl::prelude::*;

/// The depth axis as a kernel argument.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct DepthAxis {
    /// Input frames.
    pub(crate) input: u32,
    /// Depth taps.
    pub(crate) kernel: u32,
    pub(crate) stride: u32,
    pub(crate) dilation: u32,
    begin: i32,
    /// 1 for replicate padding.
    pub(crate) replicate: u32,
}

/// The depth axis of a correlation.
pub(crate) fn depth_axis(correlation: &Correlation) -> DepthAxisLaunch {
    DepthAxisLaunch {
        input: correlation.input[0] as u32,
        kernel: correlation.kernel_depth as u32,
        stride: correlation.stride_depth as u32,
        dilation: correlation.dilation_depth as u32,
        begin: correlation.begin[0],
        replicate: u32::from(correlation.replicate_depth),
    }
}

#[cube]
impl DepthAxis {
    /// The input frame of an output frame's tap 0; negative in the padding.
    pub(crate) fn first_input(&self, frame: u32) -> i32 {
        (frame * self.stride) as i32 - self.begin
    }

    /// The input frame of an output frame and tap; outside the input in the padding.
    pub(crate) fn input_of(&self, frame: u32, kd: u32) -> i32 {
        (frame * self.stride + kd * self.dilation) as i32 - self.begin
    }
}
