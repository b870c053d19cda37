//! Pairs of axes, and what is refused.

use super::*;

fn of(axes: RopeAxes, f0: f32) -> RopeAngles {
    RopeAngles { axes, pairs: RopePairs::Halves, ..RopeAngles::rope2d(100.0, f0) }
}

#[test]
fn axes_share_the_pairs_evenly() {
    for (count, pairs) in [(1, [12, 0, 0]), (2, [6, 6, 0]), (3, [4, 4, 4])] {
        let angles = of(RopeAxes::Even(count), 1.0);
        assert_eq!(angles.pairs_of_axes(24), pairs);
        assert_eq!((angles.count(), angles.named()), (count, None));
    }
    let angles = of(RopeAxes::Dims([4, 8, 12]), 1.0);
    assert_eq!((angles.pairs_of_axes(24), angles.count(), angles.named()), ([2, 4, 6], 3, Some(24)));
    let angles = of(RopeAxes::Sections([2, 4, 0]), 1.0);
    assert_eq!((angles.pairs_of_axes(12), angles.count(), angles.named()), ([2, 4, 0], 2, Some(12)));
}

/// Axis a has pair 3i + a as long as there is one. An axis without pairs is none.
#[test]
fn pairs_are_dealt_in_turn() {
    for (parts, served) in [
        ([8, 0, 0], true),
        ([5, 2, 0], true),
        ([4, 0, 2], true),
        ([1, 1, 1], true),
        ([1, 2, 1], false),
        ([0, 1, 2], false),
        ([2, 0, 2], false),
    ] {
        assert_eq!(of(RopeAxes::Interleaved(parts), 1.0).check().is_ok(), served, "{parts:?}");
    }
    assert!(of(RopeAxes::Interleaved([1, usize::MAX, 0]), 1.0).check().is_err());
}

/// 2^20 radians from one position to the next are served, in either direction, and no more.
#[test]
fn the_fastest_rotation() {
    let most = (1u32 << 20) as f32;
    for (f0, served) in
        [(most, true), (-most, true), (most.next_up(), false), (-most.next_up(), false), (0.0, true)]
    {
        assert_eq!(of(RopeAxes::Even(1), f0).check_speed(8).is_ok(), served, "{f0}");
    }
}
