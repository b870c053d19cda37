//! Which neighbours in memory an operand's reader takes as one vector.

use super::walk::{AxisWalk, Walks};
use crate::operand::{Operand, row_major};

/// How many neighbouring weights are read at once: `width` where every run of so many terms lies in as many aligned elements.
pub(in crate::conv3d) fn weights_together(weight: &Operand, k: usize, width: usize) -> usize {
    let runs = weight.strides == row_major(&weight.shape) && k.is_multiple_of(width);
    if runs && aligned(weight, width) { width } else { 1 }
}

/// How many neighbouring windows of dy are read at once: `width` where every run of so many lies in one channel of one image
/// and in as many aligned elements.
pub(super) fn windows_together(dy: &Operand, width: usize) -> usize {
    let windows: usize = dy.shape[2..].iter().product();
    let runs = dy.strides == row_major(&dy.shape) && windows.is_multiple_of(width);
    if runs && aligned(dy, width) { width } else { 1 }
}

/// Whether a tensor begins at a multiple of `width` elements.
fn aligned(operand: &Operand, width: usize) -> bool {
    let start = operand.handle.offset_start.unwrap_or(0);
    start.is_multiple_of((width * operand.dtype.size()) as u64)
}

/// How many neighbouring sites (of a weight gradient: windows) of the source are read at once: `width` where a window has one
/// tap in the plane and covers it element by element (1x1x1, 3x1x1), so that planes of the source are runs of sites, and every run
/// of so many lies in one frame and in as many aligned elements.
pub(in crate::conv3d) fn sites_together(walks: &Walks, source: &Operand, width: usize) -> usize {
    let [_, height, columns] = walks;
    let covers =
        |axis: &&AxisWalk| axis.taps == 1 && axis.scale == 1 && axis.origin == 0 && axis.sites == axis.extent;
    let covered = [height, columns].iter().all(covers);
    let [batch, channel, frame, row, column] = source.strides[..] else { return 1 };
    let runs = column == 1
        && row == columns.extent
        && [batch, channel, frame, height.sites * columns.sites]
            .iter()
            .all(|distance| distance.is_multiple_of(width));
    if covered && runs && aligned(source, width) { width } else { 1 }
}
