//! Index arithmetic of a gathered GEMM on the device: offsets of output positions and of (channel, tap) pairs
//! in the tensors. The formulas are those of [`super::gather`].
//!
//! ```text
//! pass                      M index          K index
//! forward, input gradient   OutputPosition   ChannelTap
//! weight gradient           ChannelTap       OutputPosition
//!
//! a pair reads source[position.source + tap.source]   Masks: where position.mask holds all of tap.bits
//!                                                     Coordinates: where these are inside the source
//!                                                     Clamp, Map: at mapped coordinates
//! ```

use super::tap_check::{MASK_BITS, TapCheck};
use crate::conv3d::padding::source_of;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::PaddingMode;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// One axis of a gather, on the device.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct AxisGatherArgs {
    pub(super) positions: FastDivmod<u32>,
    pub(super) taps: FastDivmod<u32>,
    pub(crate) tap_count: u32,
    /// The bit of tap 0 in a mask; 0 where no tap needs one.
    pub(super) bit: u32,
    pub(crate) extent: u32,
    pub(super) scale: u32,
    /// `origin` split into its positive and negative part: offsets are unsigned and wrap.
    pub(super) origin_positive: u32,
    pub(super) origin_negative: u32,
    pub(crate) step: u32,
    /// Divides by `step`; by 1 where the step is 0 (one tap).
    pub(super) step_divisor: FastDivmod<u32>,
    pub(super) first_tap: u32,
    pub(super) tap_step: u32,
    pub(super) first_out: u32,
    pub(super) out_step: u32,
    pub(crate) source_stride: usize,
    pub(super) weight_stride: usize,
    pub(super) out_stride: usize,
}

/// A gather with the strides of the tensors that it reads and writes.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct GatherArgs {
    pub(crate) depth: AxisGatherArgs,
    pub(crate) height: AxisGatherArgs,
    pub(crate) width: AxisGatherArgs,
    /// Taps of one channel.
    pub(super) taps: FastDivmod<u32>,
    /// GEMM columns (N) per channel of the result, and along its heights and widths: 1, or all taps where
    /// windows do not overlap.
    pub(super) columns: FastDivmod<u32>,
    pub(super) column_heights: FastDivmod<u32>,
    pub(super) column_widths: FastDivmod<u32>,
    pub(crate) source_batch_stride: usize,
    pub(crate) source_channel_stride: usize,
    pub(super) out_batch_stride: usize,
    pub(super) out_channel_stride: usize,
    /// Strides of the weight along the channels of K and along the GEMM's columns.
    pub(super) weight_channel_stride: usize,
    pub(super) weight_column_stride: usize,
    pub(super) weight_group_stride: usize,
}

/// Bit 31 of a mask. Forward and input gradient: set in the bits of K indices past the end, never in a
/// position's mask. Weight gradient, inverted: set in the mask of positions that exist and required by every
/// channel tap.
pub(super) const RANGE_BIT: u32 = 1 << 31;

/// An output position: where its first tap reads and where its result goes.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct OutputPosition {
    /// Source offset of tap 0 of channel 0, which wraps in the padding; of the image alone where
    /// coordinates are mapped.
    pub(crate) source: usize,
    pub(crate) out: usize,
    /// One bit for each depth, height and width tap that reads inside the source; 0 without masks.
    pub(crate) mask: u32,
    /// Source coordinates of tap 0, negative in the padding.
    pub(crate) d: i32,
    pub(crate) h: i32,
    pub(crate) w: i32,
}

/// A (channel, tap) pair: what it adds to an output position's source offset and coordinates.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct ChannelTap {
    /// Of the channel alone where coordinates are mapped.
    pub(crate) source: usize,
    pub(crate) weight: usize,
    /// Bits that a position's mask must hold for the tap to read inside the source.
    pub(crate) bits: u32,
    pub(crate) d: u32,
    pub(crate) h: u32,
    pub(crate) w: u32,
}

#[cube]
impl AxisGatherArgs {
    pub(crate) fn coordinate(&self, position: u32) -> i32 {
        (position * self.scale + self.origin_positive) as i32 - self.origin_negative as i32
    }

    /// The mask of the valid taps at `coordinate`: consecutive bits.
    fn mask(&self, coordinate: i32) -> u32 {
        let first = self.first_tap_from(0i32 - coordinate);
        let end = self.first_tap_from(self.extent as i32 - coordinate);
        self.bit * (((1u32 << end) - 1u32) & !((1u32 << first) - 1u32))
    }

    /// The first tap at least `distance` elements after tap 0, at most [`MASK_BITS`].
    fn first_tap_from(&self, distance: i32) -> u32 {
        let taps = min(self.tap_count, comptime!(MASK_BITS as u32));
        let (tap, _) = self.step_divisor.div_mod(max(distance, 0i32) as u32 + max(self.step, 1u32) - 1u32);
        min(tap, taps)
    }

    /// The range of valid taps at `coordinate`, among the first [`MASK_BITS`].
    pub(crate) fn valid_taps(&self, coordinate: i32) -> (u32, u32) {
        (self.first_tap_from(0i32 - coordinate), self.first_tap_from(self.extent as i32 - coordinate))
    }

    fn source_offset(&self, position: u32) -> usize {
        (position * self.scale + self.origin_positive) as usize * self.source_stride
            - self.origin_negative as usize * self.source_stride
    }

    pub(crate) fn out_offset(&self, position: u32) -> usize {
        self.out_coordinate(position) as usize * self.out_stride
    }

    /// Where in the result a position is.
    pub(crate) fn out_coordinate(&self, position: u32) -> u32 {
        self.first_out + position * self.out_step
    }

    pub(crate) fn weight_offset(&self, tap: u32, #[comptime] pass: Pass) -> usize {
        let mut at = self.first_tap;
        if comptime!(pass == Pass::InputGradient) {
            at -= tap * self.tap_step;
        } else {
            at += tap * self.tap_step;
        }
        at as usize * self.weight_stride
    }
}

#[cube]
impl AxisGatherArgs {
    /// The source offset of coordinate `p` and whether it is in bounds; padding other than zeros maps it.
    pub(crate) fn load_offset(&self, p: i32, #[comptime] padding: PaddingMode) -> (usize, bool) {
        if comptime!(padding != PaddingMode::Zeros) {
            let p = source_of(p, self.extent as i32, padding);
            (p as usize * self.source_stride, true.runtime())
        } else {
            (p as usize * self.source_stride, (p as u32) < self.extent)
        }
    }

    /// The same axis for another residue class, with `taps` taps and the origin
    /// `origin_positive - origin_negative`.
    pub(crate) fn phase(
        &self,
        phase: u32,
        taps: u32,
        origin_positive: u32,
        origin_negative: u32,
    ) -> AxisGatherArgs {
        AxisGatherArgs {
            positions: self.positions,
            taps: self.taps,
            tap_count: taps,
            bit: self.bit,
            extent: self.extent,
            scale: self.scale,
            origin_positive,
            origin_negative,
            step: self.step,
            step_divisor: self.step_divisor,
            first_tap: self.first_tap,
            tap_step: self.tap_step,
            first_out: phase,
            out_step: self.out_step,
            source_stride: self.source_stride,
            weight_stride: self.weight_stride,
            out_stride: self.out_stride,
        }
    }
}

#[cube]
impl GatherArgs {
    /// The same tensors with other axes.
    pub(crate) fn with_axes(
        &self,
        depth: AxisGatherArgs,
        height: AxisGatherArgs,
        width: AxisGatherArgs,
    ) -> GatherArgs {
        GatherArgs {
            depth,
            height,
            width,
            taps: self.taps,
            columns: self.columns,
            column_heights: self.column_heights,
            column_widths: self.column_widths,
            source_batch_stride: self.source_batch_stride,
            source_channel_stride: self.source_channel_stride,
            out_batch_stride: self.out_batch_stride,
            out_channel_stride: self.out_channel_stride,
            weight_channel_stride: self.weight_channel_stride,
            weight_column_stride: self.weight_column_stride,
            weight_group_stride: self.weight_group_stride,
        }
    }

    /// Offset in the source of channel `c` of image `n`.
    pub(crate) fn source_at(&self, n: u32, c: u32) -> usize {
        n as usize * self.source_batch_stride + c as usize * self.source_channel_stride
    }

    /// Offset in the result of channel `c` of image `n`.
    pub(crate) fn out_at(&self, n: u32, c: u32) -> usize {
        n as usize * self.out_batch_stride + c as usize * self.out_channel_stride
    }

    /// The output position at a linear index, width fastest.
    pub(crate) fn position(&self, index: u32, #[comptime] check: TapCheck) -> OutputPosition {
        let (rest, w) = self.width.positions.div_mod(index);
        let (rest, h) = self.height.positions.div_mod(rest);
        let (n, d) = self.depth.positions.div_mod(rest);
        OutputPosition {
            source: self.position_source(n, d, h, w, check),
            out: n as usize * self.out_batch_stride
                + self.depth.out_offset(d)
                + self.height.out_offset(h)
                + self.width.out_offset(w),
            mask: self.position_mask(d, h, w, check),
            d: self.depth.coordinate(d),
            h: self.height.coordinate(h),
            w: self.width.coordinate(w),
        }
    }

    /// [`Self::position`] of a window with one tap within the frame, which never reads outside the frame.
    pub(crate) fn frame_position(&self, index: u32) -> OutputPosition {
        let (n, d, h, w) = self.position_coordinates(index);
        let depth = self.depth.coordinate(d);
        OutputPosition {
            source: self.position_source(n, d, h, w, TapCheck::Masks),
            out: self.position_out(index),
            mask: self.depth.mask(depth),
            d: depth,
            h: 0i32.runtime(),
            w: 0i32.runtime(),
        }
    }

    fn position_source(&self, n: u32, d: u32, h: u32, w: u32, #[comptime] check: TapCheck) -> usize {
        if comptime!(check.maps().is_some()) {
            n as usize * self.source_batch_stride
        } else {
            n as usize * self.source_batch_stride
                + self.depth.source_offset(d)
                + self.height.source_offset(h)
                + self.width.source_offset(w)
        }
    }

    fn position_mask(&self, d: u32, h: u32, w: u32, #[comptime] check: TapCheck) -> u32 {
        if comptime!(check == TapCheck::Masks) {
            self.depth.mask(self.depth.coordinate(d))
                | self.height.mask(self.height.coordinate(h))
                | self.width.mask(self.width.coordinate(w))
        } else {
            0u32.runtime()
        }
    }

    /// Image, depth, height and width of the output position at a linear index.
    pub(crate) fn position_coordinates(&self, index: u32) -> (u32, u32, u32, u32) {
        let (rest, w) = self.width.positions.div_mod(index);
        let (rest, h) = self.height.positions.div_mod(rest);
        let (n, d) = self.depth.positions.div_mod(rest);
        (n, d, h, w)
    }

    /// Offset in the result of the output position at a linear index.
    pub(crate) fn position_out(&self, index: u32) -> usize {
        let (n, d, h, w) = self.position_coordinates(index);
        n as usize * self.out_batch_stride
            + self.depth.out_offset(d)
            + self.height.out_offset(h)
            + self.width.out_offset(w)
    }

    /// The (channel, tap) pair at a linear index: channels slowest, taps in the weight's order. One that does
    /// not exist is out of bounds at every position.
    pub(crate) fn channel_tap(
        &self,
        index: u32,
        exists: bool,
        #[comptime] pass: Pass,
        #[comptime] check: TapCheck,
    ) -> ChannelTap {
        let (c, rest) = self.taps.div_mod(index);
        let (rest, w) = self.width.taps.div_mod(rest);
        let (d, h) = self.height.taps.div_mod(rest);
        let step_d = d * self.depth.step;
        let step_h = h * self.height.step;
        let step_w = w * self.width.step;
        ChannelTap {
            source: self.tap_source(c, step_d, step_h, step_w, check),
            weight: c as usize * self.weight_channel_stride
                + self.depth.weight_offset(d, pass)
                + self.height.weight_offset(h, pass)
                + self.width.weight_offset(w, pass),
            bits: self.tap_bits(d, h, w, exists, check),
            d: step_d,
            h: step_h,
            w: step_w,
        }
    }

    fn tap_source(&self, c: u32, d: u32, h: u32, w: u32, #[comptime] check: TapCheck) -> usize {
        if comptime!(check.maps().is_some()) {
            c as usize * self.source_channel_stride
        } else {
            c as usize * self.source_channel_stride
                + d as usize * self.depth.source_stride
                + h as usize * self.height.source_stride
                + w as usize * self.width.source_stride
        }
    }

    fn tap_bits(&self, d: u32, h: u32, w: u32, exists: bool, #[comptime] check: TapCheck) -> u32 {
        if comptime!(check == TapCheck::Masks) {
            select(exists, 0u32, RANGE_BIT)
                | (self.depth.bit << d)
                | (self.height.bit << h)
                | (self.width.bit << w)
        } else {
            select(exists, 0u32, RANGE_BIT)
        }
    }

    /// The weight gradient's M index: a (channel, tap) pair that is valid only at positions that exist.
    pub(crate) fn weight_gradient_tap(&self, index: u32, #[comptime] check: TapCheck) -> ChannelTap {
        let mut tap = self.channel_tap(index, true.runtime(), Pass::Forward, check);
        tap.bits |= RANGE_BIT;
        tap
    }

    /// Offset of a group in the weight.
    pub(crate) fn weight_group(&self, group: u32) -> usize {
        group as usize * self.weight_group_stride
    }

    /// Offset of a source channel in the weight.
    pub(crate) fn weight_channel(&self, channel: u32) -> usize {
        channel as usize * self.weight_channel_stride
    }

    /// Offset of a GEMM column (N index) in the weight.
    pub(crate) fn weight_column(&self, column: u32) -> usize {
        column as usize * self.weight_column_stride
    }

    /// Offset of a channel in the source.
    pub(crate) fn source_channel(&self, channel: u32) -> usize {
        channel as usize * self.source_channel_stride
    }

    /// Offset of a GEMM column (N index) in the result: its channel, and its tap where windows do not
    /// overlap.
    pub(crate) fn out_column(&self, column: u32) -> usize {
        let (c, rest) = self.columns.div_mod(column);
        let (rest, w) = self.column_widths.div_mod(rest);
        let (d, h) = self.column_heights.div_mod(rest);
        self.out_channel(c)
            + d as usize * self.depth.out_stride
            + h as usize * self.height.out_stride
            + w as usize * self.width.out_stride
    }

    /// The channel of a GEMM column: [`Self::out_column`]'s.
    pub(super) fn column_channel(&self, column: u32, #[comptime] patches: bool) -> u32 {
        if comptime!(patches) { self.columns.div(column) } else { column }
    }

    /// Offset of a channel in the result.
    pub(crate) fn out_channel(&self, channel: u32) -> usize {
        channel as usize * self.out_channel_stride
    }
}
