//! Shapes, prefixes, grids and offsets of a rotation, and what is refused.

use super::*;

fn problem(tokens: [usize; 4], layout: RopeLayout) -> Result<RopeProblem, ConvError> {
    RopeProblem::rope2d(tokens, layout, 100.0, 1.0, FloatType::F32)
}

#[test]
fn axes_are_named_by_the_layout() {
    for (layout, heads, tokens) in [(RopeLayout::Bhnd, 3, 5), (RopeLayout::Bnhd, 5, 3)] {
        let problem = problem([2, 3, 5, 8], layout).expect("valid");
        assert_eq!([problem.batch, problem.heads, problem.tokens, problem.head_dim], [2, heads, tokens, 8]);
        assert_eq!((problem.rotated, problem.prefix), (8, 0));
        assert_eq!(problem.tokens_shape(), [2, 3, 5, 8]);
        assert_eq!(problem.positions_shape(), [2, tokens, 2]);
    }
}

/// All tokens may belong to the prefix, and no more than there are.
#[test]
fn the_prefix_ends_with_the_last_token() {
    let problem = problem([1, 1, 6, 4], RopeLayout::Bhnd).expect("valid");
    assert_eq!(problem.with_prefix(6).map(|problem| problem.prefix), Ok(6));
    assert_eq!(
        problem.with_prefix(7).expect_err("six tokens").message(),
        "rope: the prefix is 7 tokens, there are only 6"
    );
}

/// 2^33 elements are the first that the kernel's 32-bit counts do not reach.
#[test]
fn the_number_of_elements_is_bounded() {
    assert!(problem([1 << 31, 1, 1, 4], RopeLayout::Bhnd).is_err());
    assert!(problem([(1 << 31) - 1, 1, 1, 4], RopeLayout::Bhnd).is_ok());
    assert_eq!(
        problem([1 << 15, 2, 1 << 13, 16], RopeLayout::Bhnd).expect_err("2^33").message(),
        "rope: tokens [32768, 2, 8192, 16] have 2^33 elements or more, too many for one launch"
    );
}

/// Bytes that no `isize` counts are refused as such, before the kernel's own limit.
#[test]
fn sizes_beyond_every_memory_are_refused() {
    for tokens in [[1 << 61, 1, 1, 1], [1 << 62, 1, 1, 2]] {
        assert_eq!(
            problem(tokens, RopeLayout::Bhnd).expect_err("2^63 bytes").message(),
            format!("rope: tokens {tokens:?} have more elements than can be addressed")
        );
    }
}

/// Axes that name their elements take these and no others; evenly shared ones any multiple of two each.
#[test]
fn the_rotated_part_of_a_head() {
    let of = |axes| {
        let angles = RopeAngles { axes, pairs: RopePairs::Halves, ..RopeAngles::rope2d(100.0, 1.0) };
        RopeProblem::new([1, 1, 6, 24], RopeLayout::Bhnd, angles, FloatType::F32).expect("valid")
    };
    let rotated = |axes, rotated| of(axes).with_rotated(rotated).map(|problem| problem.rotated).ok();
    let dims = RopeAxes::Dims([4, 8, 4]);
    assert_eq!([rotated(dims, 16), rotated(dims, 12), rotated(dims, 24)], [Some(16), None, None]);
    let even = RopeAxes::Even(2);
    assert_eq!([rotated(even, 8), rotated(even, 24)], [Some(8), Some(24)]);
    assert_eq!([rotated(even, 0), rotated(even, 6), rotated(even, 28)], [None; 3]);
}

/// The last position is 2^31 - 1: of tokens in a row, and of the longest axis of a grid.
#[test]
fn positions_end_with_those_of_32_bits() {
    let most = i32::MAX;
    let line = |prefix, offset| {
        problem([1, 1, 6, 4], RopeLayout::Bhnd)
            .and_then(|problem| problem.with_prefix(prefix))
            .expect("valid")
            .check_offset(offset)
            .is_ok()
    };
    assert_eq!([line(0, most - 5), line(0, most - 4)], [true, false]);
    assert_eq!([line(2, most - 3), line(2, most - 2)], [true, false]);
    assert_eq!([line(6, most), line(0, i32::MIN)], [true; 2]);
    let grid = |prefix, rows, columns, first| {
        problem([1, 1, 6, 4], RopeLayout::Bhnd)
            .and_then(|problem| problem.with_prefix(prefix))
            .expect("valid")
            .check_grid(RopeGrid { rows, columns, first })
            .is_ok()
    };
    assert_eq!([grid(0, 2, 3, most - 2), grid(0, 2, 3, most - 1)], [true, false]);
    assert_eq!([grid(2, 4, 1, most - 3), grid(2, 4, 1, most - 2)], [true, false]);
    assert!(grid(6, 0, 5, most), "no patches");
    assert!(!grid(0, 2, 2, 0) && !grid(1, 2, 3, 0), "other numbers of tokens");
}

/// u and v of each pair, and the blocks of halves.
#[test]
fn the_elements_of_pairs() {
    let of = |pairs| {
        let angles = RopeAngles { pairs, ..RopeAngles::rope2d(100.0, 1.0) };
        let problem = RopeProblem::new([1, 1, 6, 12], RopeLayout::Bhnd, angles, FloatType::F32);
        let problem = problem.and_then(|problem| problem.with_rotated(8)).expect("valid");
        (problem.elements(), problem.blocks())
    };
    let pairs = |pairs: [[usize; 2]; 4]| pairs.to_vec();
    assert_eq!(of(RopePairs::Neighbours), (pairs([[0, 1], [2, 3], [4, 5], [6, 7]]), [0, 4, 4, 4]));
    assert_eq!(of(RopePairs::Halves), (pairs([[0, 4], [1, 5], [2, 6], [3, 7]]), [0, 4, 4, 4]));
    assert_eq!(of(RopePairs::HalvesOfAxes), (pairs([[0, 2], [1, 3], [4, 6], [5, 7]]), [0, 2, 4, 4]));
}
