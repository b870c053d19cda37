//! A walk on the device: where a site's tap reads and where its result goes. The arithmetic is
//! [`super::walk`]'s.

use super::walk::MASK_BITS;
use crate::conv3d::pass::Pass;
use crate::conv3d::problem::PaddingMode;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// One axis of a walk, on the device.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct AxisWalkArgs {
    sites: FastDivmod<u32>,
    taps: FastDivmod<u32>,
    tap_count: u32,
    /// The bit of tap 0 in a mask; 0 where no tap lies outside the source.
    bit: u32,
    extent: u32,
    scale: u32,
    /// `origin` as its positive and its negative part: offsets are unsigned and wrap.
    ahead: u32,
    behind: u32,
    pub(crate) step: u32,
    /// Divides by `step`, or by 1 where there is one tap and the step is 0.
    step_divisor: FastDivmod<u32>,
    first_tap: u32,
    tap_step: u32,
    first_out: u32,
    out_step: u32,
    source_stride: usize,
    weight_stride: usize,
    out_stride: usize,
}

/// A walk with the strides of what it reads and writes.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Walk {
    pub(crate) depth: AxisWalkArgs,
    pub(crate) height: AxisWalkArgs,
    pub(crate) width: AxisWalkArgs,
    /// Taps of one channel.
    taps: FastDivmod<u32>,
    /// The product's columns of one channel of the result, and of one of its depths and heights: one, but all
    /// taps where windows do not overlap.
    columns: FastDivmod<u32>,
    column_heights: FastDivmod<u32>,
    column_widths: FastDivmod<u32>,
    source_batch_stride: usize,
    source_channel_stride: usize,
    out_batch_stride: usize,
    out_channel_stride: usize,
    /// Distance in the weight between neighbours along K's channel and along the product's columns.
    weight_channel_stride: usize,
    weight_column_stride: usize,
    weight_group_stride: usize,
}

/// The bit of a term that does not exist; no site's mask holds it but that of a window of the weight gradient
/// that exists, whose terms all ask for it.
pub(super) const ABSENT: u32 = 1 << 31;

/// What a gathered row is: where its first tap reads and where its result goes.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Site {
    /// Offset of tap 0 of channel 0; wraps where tap 0 lies in the padding.
    pub(crate) source: usize,
    pub(crate) out: usize,
    /// A bit for every depth, height and width tap that lies inside the source.
    pub(crate) mask: u32,
    /// Coordinates of tap 0, negative in the padding.
    pub(crate) d: i32,
    pub(crate) h: i32,
    pub(crate) w: i32,
}

/// What one term of a sum adds to a site's place in the source.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Tap {
    pub(crate) source: usize,
    pub(crate) weight: usize,
    /// What a site's mask must hold for the tap to lie inside.
    pub(crate) bits: u32,
    pub(crate) d: u32,
    pub(crate) h: u32,
    pub(crate) w: u32,
}

#[cube]
impl AxisWalkArgs {
    pub(crate) fn coordinate(&self, site: u32) -> i32 {
        (site * self.scale + self.ahead) as i32 - self.behind as i32
    }

    /// The bits of the taps that lie inside for a site at `coordinate`: a run of them.
    fn mask(&self, coordinate: i32) -> u32 {
        let first = self.first_not_below(0i32 - coordinate);
        let end = self.first_not_below(self.extent as i32 - coordinate);
        self.bit * (((1u32 << end) - 1u32) & !((1u32 << first) - 1u32))
    }

    /// The first tap that lies `distance` or more behind tap 0, at most the number of taps a mask holds.
    fn first_not_below(&self, distance: i32) -> u32 {
        let taps = min(self.tap_count, comptime!(MASK_BITS as u32));
        let (tap, _) = self.step_divisor.div_mod(max(distance, 0i32) as u32 + max(self.step, 1u32) - 1u32);
        min(tap, taps)
    }

    /// The first tap of a site at `coordinate` that lies inside the source, and the one behind the last; of
    /// ten taps at most.
    pub(crate) fn inside(&self, coordinate: i32) -> (u32, u32) {
        (self.first_not_below(0i32 - coordinate), self.first_not_below(self.extent as i32 - coordinate))
    }

    fn source_offset(&self, site: u32) -> usize {
        (site * self.scale + self.ahead) as usize * self.source_stride
            - self.behind as usize * self.source_stride
    }

    pub(crate) fn out_offset(&self, site: u32) -> usize {
        (self.first_out + site * self.out_step) as usize * self.out_stride
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
impl AxisWalkArgs {
    /// The offset of coordinate `p` and whether it lies inside the source; replicate padding moves it there.
    pub(crate) fn place(&self, p: i32, #[comptime] padding: PaddingMode) -> (usize, bool) {
        if comptime!(padding == PaddingMode::Replicate) {
            let p = clamp(p, 0i32, self.extent as i32 - 1i32);
            (p as usize * self.source_stride, true.runtime())
        } else {
            (p as usize * self.source_stride, (p as u32) < self.extent)
        }
    }

    /// The axis of another residue class: so many taps, of which the first site's first reads at
    /// `ahead - behind`.
    pub(crate) fn phase(&self, phase: u32, taps: u32, ahead: u32, behind: u32) -> AxisWalkArgs {
        AxisWalkArgs {
            sites: self.sites,
            taps: self.taps,
            tap_count: taps,
            bit: self.bit,
            extent: self.extent,
            scale: self.scale,
            ahead,
            behind,
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
impl Walk {
    /// The same tensors along other axes.
    pub(crate) fn along(&self, depth: AxisWalkArgs, height: AxisWalkArgs, width: AxisWalkArgs) -> Walk {
        Walk {
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

    /// Offset of a channel of an image in the source.
    pub(crate) fn source_at(&self, n: u32, c: u32) -> usize {
        n as usize * self.source_batch_stride + c as usize * self.source_channel_stride
    }

    /// Offset of a channel of an image in the result.
    pub(crate) fn out_at(&self, n: u32, c: u32) -> usize {
        n as usize * self.out_batch_stride + c as usize * self.out_channel_stride
    }

    /// The site at a linear index, width fastest.
    pub(crate) fn site(&self, index: u32) -> Site {
        let (rest, w) = self.width.sites.div_mod(index);
        let (rest, h) = self.height.sites.div_mod(rest);
        let (n, d) = self.depth.sites.div_mod(rest);
        Site {
            source: n as usize * self.source_batch_stride
                + self.depth.source_offset(d)
                + self.height.source_offset(h)
                + self.width.source_offset(w),
            out: n as usize * self.out_batch_stride
                + self.depth.out_offset(d)
                + self.height.out_offset(h)
                + self.width.out_offset(w),
            mask: self.depth.mask(self.depth.coordinate(d))
                | self.height.mask(self.height.coordinate(h))
                | self.width.mask(self.width.coordinate(w)),
            d: self.depth.coordinate(d),
            h: self.height.coordinate(h),
            w: self.width.coordinate(w),
        }
    }

    /// Where a site's results go.
    pub(crate) fn site_out(&self, index: u32) -> usize {
        let (rest, w) = self.width.sites.div_mod(index);
        let (rest, h) = self.height.sites.div_mod(rest);
        let (n, d) = self.depth.sites.div_mod(rest);
        n as usize * self.out_batch_stride
            + self.depth.out_offset(d)
            + self.height.out_offset(h)
            + self.width.out_offset(w)
    }

    /// The term at a linear index of K: channels slowest, taps in the weight's order. One that does not exist
    /// lies outside for every site.
    pub(crate) fn tap(&self, index: u32, exists: bool, #[comptime] pass: Pass) -> Tap {
        let (c, rest) = self.taps.div_mod(index);
        let (rest, w) = self.width.taps.div_mod(rest);
        let (d, h) = self.height.taps.div_mod(rest);
        let step_d = d * self.depth.step;
        let step_h = h * self.height.step;
        let step_w = w * self.width.step;
        Tap {
            source: c as usize * self.source_channel_stride
                + step_d as usize * self.depth.source_stride
                + step_h as usize * self.height.source_stride
                + step_w as usize * self.width.source_stride,
            weight: c as usize * self.weight_channel_stride
                + self.depth.weight_offset(d, pass)
                + self.height.weight_offset(h, pass)
                + self.width.weight_offset(w, pass),
            bits: select(exists, 0u32, ABSENT)
                | (self.depth.bit << d)
                | (self.height.bit << h)
                | (self.width.bit << w),
            d: step_d,
            h: step_h,
            w: step_w,
        }
    }

    /// The weight gradient's column at a linear index: a term that reads at windows that exist.
    pub(crate) fn column(&self, index: u32) -> Tap {
        let mut tap = self.tap(index, true.runtime(), Pass::Forward);
        tap.bits |= ABSENT;
        tap
    }

    /// Offset of a group's channels in the weight.
    pub(crate) fn weight_group(&self, group: u32) -> usize {
        group as usize * self.weight_group_stride
    }

    /// Offset of a channel of the source in the weight.
    pub(crate) fn weight_channel(&self, channel: u32) -> usize {
        channel as usize * self.weight_channel_stride
    }

    /// Offset of a product's column in the weight.
    pub(crate) fn weight_column(&self, column: u32) -> usize {
        column as usize * self.weight_column_stride
    }

    /// Offset of a channel in the source.
    pub(crate) fn source_channel(&self, channel: u32) -> usize {
        channel as usize * self.source_channel_stride
    }

    /// Offset of a product's column in the result: of its channel, and of its tap where windows do not
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

    /// Offset of a channel in the result.
    pub(crate) fn out_channel(&self, channel: u32) -> usize {
        channel as usize * self.out_channel_stride
    }

    /// Where the term reads for the site, and whether that is inside the source. Replicate padding moves the
    /// place to the nearest element.
    pub(crate) fn place(&self, site: &Site, tap: &Tap, #[comptime] padding: PaddingMode) -> (usize, bool) {
        let mut at = site.source + tap.source;
        let mut inside = (site.mask & tap.bits) == tap.bits;
        if comptime!(padding == PaddingMode::Replicate) {
            let d = site.d + tap.d as i32;
            let h = site.h + tap.h as i32;
            let w = site.w + tap.w as i32;
            // Both kinds of shared entries say so in the same bit: terms that do not exist have it, windows
            // that do.
            inside = tap.bits < ABSENT || site.mask >= ABSENT;
            at += excess(d, self.depth.extent, self.depth.source_stride);
            at += excess(h, self.height.extent, self.height.source_stride);
            at += excess(w, self.width.extent, self.width.source_stride);
        }
        (at, inside)
    }
}

/// What brings coordinate `p` back into `0..extent`, as an offset that wraps.
#[cube]
fn excess(p: i32, extent: u32, stride: usize) -> usize {
    let last = extent as i32 - 1i32;
    let below = max(0i32 - p, 0i32) as u32;
    let above = max(p - last, 0i32) as u32;
    below as usize * stride - above as usize * stride
}
