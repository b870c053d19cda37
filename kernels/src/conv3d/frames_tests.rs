//! Tiles of frames by hand: the pitch of their rows, bank conflicts, loads, reductions.

use super::*;

fn tile(rows: usize, columns: usize, threads: usize) -> FrameTile {
    FrameTile { taps: [2, 3, 3], rows, columns, threads }
}

/// The least padding, up to 7, with which the next row block begins `columns` banks further. Whole subgroups
/// of one row block have no conflicts.
#[test]
fn rows_are_padded_against_bank_conflicts() {
    for (rows, columns, pitch, passes) in [
        (4, 8, 10, 1),  // 40 = 8 (mod 32)
        (8, 8, 13, 1),  // 104 = 8
        (2, 16, 24, 1), // 48 = 16
        (4, 24, 30, 1), // 120 = 24
        (4, 40, 42, 1), // 168 = 40
        (1, 16, 18, 2), // 14 more would be too many
        (4, 32, 34, 1), // one row block per subgroup
        (1, 64, 66, 1), // two subgroups per row block
    ] {
        let tile = tile(rows, columns, 256);
        assert_eq!((tile.row_pitch(), tile.bank_passes()), (pitch, passes), "{tile:?}");
    }
}

/// 10 rows of 34 elements are 6 for each of 64 threads.
#[test]
fn a_frame_has_the_rows_that_its_windows_read() {
    let tile = tile(4, 32, 64);
    assert_eq!((tile.height(), tile.frame_elements(), tile.loads()), (8, 340, 6));
    assert_eq!(tile.tiles(17, 64), [3, 2]);
}

/// Six sums a round in ten segments of seven threads; every loop counts one more.
#[test]
fn reductions_count_segments_of_threads() {
    let tile = tile(4, 32, 64);
    assert_eq!(tile.reduction_iterations(27), 5 * (8 + 11));
    assert_eq!(tile.reduction_iterations(6), 8 + 11);
    // At most sixteen segments: 256 threads in 16 and 16.
    let large = FrameTile { threads: 256, ..tile };
    assert_eq!(large.loads(), 5);
    assert_eq!(large.reduction_iterations(1), 17 + 17);
}

#[test]
fn a_weight_gradient_sums_every_tap_of_every_output() {
    let sums = |outputs, bias| {
        let layout = ReductionLayout::of(&tile(4, 32, 64), outputs, bias);
        (layout.tap_sums(), layout.sum_count())
    };
    assert_eq!(sums(1, false), (18, 18));
    assert_eq!(sums(3, true), (54, 55));
}
