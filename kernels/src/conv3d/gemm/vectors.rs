//! How wide the vector loads and stores of each operand of a GEMM may be: `width` elements where all vectors
//! are contiguous, aligned and within one row, else 1.

use super::gather::{AxisGather, Gather};
use crate::operand::Operand;

/// Elements of a row of the weight: one index of its first axis.
pub(super) fn row_length(weight: &Operand) -> usize {
    weight.shape[1..].iter().product()
}

/// Elements per load along the weight's rows: `width` where they are whole contiguous and aligned vectors.
pub(in crate::conv3d) fn weight_vector_width(weight: &Operand, width: usize) -> usize {
    let contiguous = weight.is_row_major() && row_length(weight).is_multiple_of(width);
    if contiguous && weight.is_aligned(width) { width } else { 1 }
}

/// Elements per load of dy along output positions: `width` where every vector is within one channel of one
/// image, contiguous and aligned.
pub(super) fn dy_vector_width(dy: &Operand, width: usize) -> usize {
    let positions: usize = dy.shape[2..].iter().product();
    let contiguous = dy.is_row_major() && positions.is_multiple_of(width);
    if contiguous && dy.is_aligned(width) { width } else { 1 }
}

/// Elements per load of the source along output positions: `width` for pointwise-in-frame windows (1x1x1,
/// 3x1x1) that cover the frame element by element, where every vector is within one frame and aligned.
pub(in crate::conv3d) fn source_vector_width(gather: &Gather, source: &Operand, width: usize) -> usize {
    let covers = |axis: &AxisGather| {
        axis.taps == 1 && axis.scale == 1 && axis.origin == 0 && axis.positions == axis.extent
    };
    let covered = gather[1..].iter().all(covers);
    if covered && frames_are_contiguous(gather, source, width) { width } else { 1 }
}

/// [`source_vector_width`] of all tensors that hold frames of the source.
pub(in crate::conv3d) fn joined_vector_width<'a>(
    gather: &Gather,
    sources: impl Iterator<Item = &'a Operand>,
    width: usize,
) -> usize {
    sources.map(|source| source_vector_width(gather, source, width)).min().unwrap_or(1)
}

/// Elements per store of the result along output positions: `width` where the positions of a gather cover the
/// result's frames element by element, and every vector is within one frame and aligned. Not for a residue
/// class of a strided input gradient, whose positions are apart.
pub(in crate::conv3d) fn out_vector_width(gather: &Gather, out: &Operand, width: usize) -> usize {
    let covers = |axis: usize| {
        let gather = &gather[axis];
        [gather.first_out, gather.out_step, gather.columns] == [0, 1, 1]
            && gather.positions == out.shape[axis + 2]
    };
    if covers(1) && covers(2) && frames_are_contiguous(gather, out, width) { width } else { 1 }
}

/// Whether a tensor's frames have the extents of a gather's positions, are contiguous, and are whole aligned
/// vectors.
fn frames_are_contiguous(gather: &Gather, operand: &Operand, width: usize) -> bool {
    let [_, height, columns] = gather.map(|axis| axis.positions);
    let [batch, channel, frame, row, column] = operand.strides[..] else { return false };
    let vectors = |distance: &usize| distance.is_multiple_of(width);
    let contiguous = column == 1 && row == columns;
    contiguous && [batch, channel, frame, height * columns].iter().all(vectors) && operand.is_aligned(width)
}
