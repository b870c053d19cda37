//! An H x W slice cut into row segments, for kernels that keep a window of the source in shared memory. A
//! segment has the same columns of every row, each row followed by the halo that its windows share. Within a
//! segment a tap is one constant shift, whatever the position.
//!
//! ```text
//! row 0   | width positions | halo |       a tile: consecutive elements of a segment, halo included;
//! row 1   | width positions | halo |               its window: the tile, halo_rows rows and a halo more
//! ```

/// The row segments of an H x W slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowSegments {
    /// Segments that make up a row.
    pub(super) count: usize,
    /// Positions of a segment's row.
    pub(super) width: usize,
    /// Elements of a segment's row: the positions and the halo.
    pub(super) pitch: usize,
}

impl RowSegments {
    /// The widest segments of rows of `width` positions such that `capacity` elements hold the window of a
    /// tile of so many elements, whose taps reach `[rows, columns]` further. None where no window fits.
    pub(super) fn of(
        width: usize,
        [halo_rows, halo_columns]: [usize; 2],
        tile: usize,
        capacity: usize,
    ) -> Option<Self> {
        let room = capacity.checked_sub(tile + halo_columns)?;
        let max_pitch = room.checked_div(halo_rows).unwrap_or(width + halo_columns);
        let max_width = max_pitch.checked_sub(halo_columns).filter(|most| *most > 0 && width > 0)?;
        let count = width.div_ceil(max_width);
        let width = width.div_ceil(count);
        Some(Self { count, width, pitch: width + halo_columns })
    }

    /// Tiles of a segment of so many rows.
    pub(super) fn tiles(&self, rows: usize, tile: usize) -> usize {
        (rows * self.pitch).div_ceil(tile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_cover_a_row_and_their_windows_fit() {
        let mut served = 0;
        for width in 0..60 {
            for halo in [[0, 0], [2, 2], [4, 1], [9, 30]] {
                for (tile, capacity) in [(16, 48), (16, 64), (32, 160)] {
                    let Some(segments) = RowSegments::of(width, halo, tile, capacity) else { continue };
                    let RowSegments { count, width: part, pitch } = segments;
                    assert!(count * part >= width && (count - 1) * part < width, "{width} {segments:?}");
                    assert!(tile + halo[0] * pitch + halo[1] <= capacity, "{width} {halo:?} {segments:?}");
                    served += 1;
                }
            }
        }
        assert!(served > 300, "{served}");
    }
}
