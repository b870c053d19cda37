//! Which neighbours in memory an operand's reader takes as one vector.

use super::walk::{AxisWalk, Walks};
use crate::operand::{Operand, row_major};

/// How many neighbouring weights are read at once: `width` where every run of so many terms lies in as many
/// aligned elements.
pub(in crate::conv3d) fn weights_together(weight: &Operand, k: usize, width: usize) -> usize {
    let runs = weight.strides == row_major(&weight.shape) && k.is_multiple_of(width);
    if runs && aligned(weight, width) { width } else { 1 }
}

/// How many neighbouring windows of dy are read at once: `width` where every run of so many lies in one
/// channel of one image and in as many aligned elements.
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

/// How many neighbouring sites (of a weight gradient: windows) of the source are read at once: `width` where
/// a window has one tap in the plane and covers it element by element (1x1x1, 3x1x1), so that planes of the
/// source are runs of sites, and every run of so many lies in one frame and in as many aligned elements.
pub(in crate::conv3d) fn sites_together(walks: &Walks, source: &Operand, width: usize) -> usize {
    let covers =
        |axis: &AxisWalk| axis.taps == 1 && axis.scale == 1 && axis.origin == 0 && axis.sites == axis.extent;
    let covered = walks[1..].iter().all(covers);
    if covered && slices_are_contiguous(walks, source, width) { width } else { 1 }
}

/// How many neighbouring sites of the result are written at once: `width` where the sites of a walk cover the
/// result's H x W slices element by element, so that they are contiguous, and every run of so many lies in
/// one frame and in as many aligned elements. A walk of one residue class, or of all of them in turn, leaves
/// gaps.
pub(in crate::conv3d) fn results_together(walks: &Walks, out: &Operand, width: usize) -> usize {
    let covers = |axis: usize| {
        let walk = &walks[axis];
        [walk.first_out, walk.out_step, walk.columns] == [0, 1, 1] && walk.sites == out.shape[axis + 2]
    };
    if covers(1) && covers(2) && slices_are_contiguous(walks, out, width) { width } else { 1 }
}

/// Whether the H x W slices of a tensor, as large as a walk's sites, are contiguous and whole aligned
/// vectors.
fn slices_are_contiguous(walks: &Walks, operand: &Operand, width: usize) -> bool {
    let [_, height, columns] = walks.map(|walk| walk.sites);
    let [batch, channel, frame, row, column] = operand.strides[..] else { return false };
    let vectors = |distance: &usize| distance.is_multiple_of(width);
    let contiguous = column == 1 && row == columns;
    contiguous && [batch, channel, frame, height * columns].iter().all(vectors) && aligned(operand, width)
}
