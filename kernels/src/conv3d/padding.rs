//! Padding on the device, one axis at a time: the element that a coordinate outside the input reads, and, for
//! gradients, the coordinates that read an element.
//!
//! ```text
//! mode        coordinate p outside 0..n reads        n = 4, padding 2 and 3
//! zeros       nothing                                . . | a b c d | . . .
//! replicate   clamp(p, 0, n - 1)                     a a | a b c d | d d d
//! reflect     |p|, or 2(n - 1) - p from n on         c b | a b c d | c b a      padding < n
//! circular    p + n, or p - n from n on              c d | a b c d | a b c      padding <= n
//! ```
//!
//! Coordinates before and after an element that read it, besides its own: under replicate padding all of the
//! padding next to an edge; under the last two modes at most one on either side.

use super::args::{Axis, AxisExpand};
use super::problem::PaddingMode;
use cubecl::prelude::*;

/// Whether padding repeats inner elements, not only the edges.
pub(crate) fn moves(mode: PaddingMode) -> bool {
    matches!(mode, PaddingMode::Reflect | PaddingMode::Circular)
}

/// The element that coordinate `p` of an axis' padded input reads. Zeros: `p` itself, inside or not.
#[cube]
pub(crate) fn source_of(p: i32, extent: i32, #[comptime] mode: PaddingMode) -> i32 {
    if comptime!(mode == PaddingMode::Replicate) {
        clamp(p, 0i32, extent - 1i32)
    } else if comptime!(mode == PaddingMode::Reflect) {
        let p = max(p, 0i32 - p);
        min(p, 2i32 * extent - 2i32 - p)
    } else if comptime!(mode == PaddingMode::Circular) {
        select(p < 0i32, p + extent, select(p < extent, p, p - extent))
    } else {
        p
    }
}

#[cube]
impl Axis {
    /// The first index of the coordinates that read `p`: see [`alias`](Self::alias).
    pub(crate) fn first_alias(&self, p: u32, #[comptime] mode: PaddingMode) -> i32 {
        let mut first = p as i32;
        if comptime!(mode == PaddingMode::Replicate) {
            first = select(p == 0u32, 0i32 - self.begin, first);
        }
        if comptime!(moves(mode)) {
            first = -1i32;
        }
        first
    }

    /// The last index of the coordinates that read `p`.
    pub(crate) fn last_alias(&self, p: u32, #[comptime] mode: PaddingMode) -> i32 {
        let mut last = p as i32;
        if comptime!(mode == PaddingMode::Replicate) {
            last = select(p + 1u32 == self.input, p as i32 + self.end, last);
        }
        if comptime!(moves(mode)) {
            last = 1i32;
        }
        last
    }

    /// The coordinate at an index. Zeros and replicate: the index itself. Reflect and circular: before the
    /// input for -1, `p` for 0, behind the input for 1; -1 and 1 may be outside the padding too.
    pub(crate) fn alias(&self, p: u32, index: i32, #[comptime] mode: PaddingMode) -> i32 {
        if comptime!(mode == PaddingMode::Reflect) {
            let mirrored = select(index < 0i32, 0i32, 2i32 * self.input as i32 - 2i32) - p as i32;
            select(index == 0i32, p as i32, mirrored)
        } else if comptime!(mode == PaddingMode::Circular) {
            p as i32 + index * self.input as i32
        } else {
            index
        }
    }

    /// Whether the coordinate at an index is in the padded input and reads `p`.
    pub(crate) fn is_alias(&self, p: u32, index: i32, #[comptime] mode: PaddingMode) -> bool {
        if comptime!(moves(mode)) {
            let at = self.alias(p, index, mode);
            let before = at < 0i32 && at >= 0i32 - self.begin;
            let behind = at >= self.input as i32 && at < self.input as i32 + self.end;
            index == 0i32 || before || behind
        } else {
            true.runtime()
        }
    }

    /// The window whose tap `k` reads the coordinate at an index, or `output` where there is none.
    pub(crate) fn window_at_alias(&self, p: u32, index: i32, k: u32, #[comptime] mode: PaddingMode) -> u32 {
        if comptime!(moves(mode)) {
            let window = self.window_at(self.alias(p, index, mode), k);
            select(self.is_alias(p, index, mode), window, self.output)
        } else {
            self.window_at(index, k)
        }
    }

    /// Where a coordinate is in a tensor that holds the padding of every mode but zeros.
    pub(crate) fn in_padded(&self, p: i32, #[comptime] mode: PaddingMode) -> u32 {
        if comptime!(mode == PaddingMode::Zeros) { p as u32 } else { (p + self.begin) as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reflect_and_circular_padding_repeat_inner_elements() {
        for (mode, inner) in [
            (PaddingMode::Zeros, false),
            (PaddingMode::Replicate, false),
            (PaddingMode::Reflect, true),
            (PaddingMode::Circular, true),
        ] {
            assert_eq!(moves(mode), inner, "{mode:?}");
        }
    }
}
