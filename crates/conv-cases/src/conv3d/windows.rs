//! Problems for the kernels with windows in shared memory, and for frames in launches of their own.

use super::{Activation, Conv3dCase};

/// Depthwise layers with tiles in shared memory: tiles that pass the frame on both sides, several tiles along
/// H and along W, chunks of depth, one-sided padding, halos along one axis, depth taps outside the input.
#[must_use]
pub fn depthwise_tiles() -> Vec<Conv3dCase> {
    let depthwise = |name: &str, [n, c, d, h, w]: [usize; 5], kernel, padding| Conv3dCase {
        groups: c,
        padding,
        ..Conv3dCase::new(name, [n, c, d, h, w], c, kernel)
    };
    vec![
        Conv3dCase {
            activation: Activation::Relu,
            ..depthwise("depthwise_17x13", [2, 3, 5, 17, 13], [3, 3, 3], [(1, 1); 3])
        },
        Conv3dCase {
            replicate: true,
            ..depthwise("depthwise_wide", [1, 2, 4, 9, 150], [3, 5, 5], [(0, 1), (2, 0), (0, 3)])
        },
        Conv3dCase {
            bias: false,
            ..depthwise("depthwise_deep", [1, 2, 19, 65, 16], [3, 3, 3], [(2, 0), (1, 1), (1, 1)])
        },
        depthwise("depthwise_row", [3, 2, 1, 40, 30], [1, 1, 7], [(0, 0), (0, 0), (3, 3)]),
        depthwise("depthwise_column", [1, 2, 2, 24, 24], [4, 4, 1], [(3, 3), (0, 0), (0, 0)]),
    ]
}

/// Windows at stride 1 in H and W: rows cut into segments, tiles that end inside rows, partial blocks and
/// tiles of channels, depth taps outside the input, groups, dilation, one tap in H and W, packed weights in
/// vectors and in several pieces.
#[must_use]
pub fn shared_windows() -> Vec<Conv3dCase> {
    let window = |name: &str, x: [usize; 5], o, kernel, padding| Conv3dCase {
        padding,
        ..Conv3dCase::new(name, x, o, kernel)
    };
    let same_frame = [(0, 0), (1, 1), (1, 1)];
    vec![
        Conv3dCase {
            activation: Activation::Relu,
            ..window("strips", [1, 17, 1, 5, 62], 66, [1, 3, 3], same_frame)
        },
        window("rows", [2, 5, 2, 8, 9], 3, [2, 3, 3], [(1, 1), (0, 1), (2, 0)]),
        Conv3dCase {
            replicate: true,
            ..window("replicated", [1, 4, 2, 9, 12], 9, [3, 3, 3], [(2, 0), (1, 1), (1, 1)])
        },
        Conv3dCase {
            stride: [2, 1, 1],
            dilation: [1, 2, 2],
            groups: 2,
            bias: false,
            ..window("dilated_groups", [1, 6, 4, 8, 9], 10, [2, 3, 3], [(1, 1), (2, 2), (2, 2)])
        },
        Conv3dCase {
            dilation: [3, 1, 1],
            ..window("missing_depths", [1, 3, 2, 6, 6], 4, [3, 2, 2], [(3, 3), (0, 0), (0, 0)])
        },
        Conv3dCase { stride: [2, 1, 1], ..window("one_frame", [1, 3, 1, 6, 6], 4, [3, 3, 3], [(1, 1); 3]) },
        Conv3dCase {
            stride: [3, 1, 1],
            replicate: true,
            ..window("one_frame_replicated", [1, 3, 1, 6, 7], 4, [3, 3, 3], [(1, 1); 3])
        },
        window("temporal", [1, 20, 4, 6, 7], 5, [3, 1, 1], [(1, 1), (0, 0), (0, 0)]),
        window("five_by_five", [1, 2, 1, 10, 9], 66, [1, 5, 5], [(0, 0), (2, 2), (2, 2)]),
        // Rows of weights that are whole vectors; more taps than one packing step.
        window("aligned_weights", [1, 24, 2, 6, 10], 16, [3, 3, 3], [(1, 1); 3]),
        window("many_taps", [1, 18, 3, 9, 12], 10, [2, 5, 5], [(1, 0), (2, 2), (2, 2)]),
    ]
}

/// Strided windows whose input gradient is computed by residue classes of the stride: classes of different
/// extents and taps, without taps, strides larger than the input, dilated taps, groups, partial blocks and
/// tiles of channels, several tiles.
#[must_use]
pub fn strided_windows() -> Vec<Conv3dCase> {
    let window = |name: &str, x: [usize; 5], o, kernel, stride| Conv3dCase {
        stride,
        padding: [(1, 1); 3],
        ..Conv3dCase::new(name, x, o, kernel)
    };
    vec![
        window("every_second", [2, 5, 5, 9, 12], 34, [3, 3, 3], [2, 2, 2]),
        Conv3dCase {
            padding: [(0, 0), (2, 1), (0, 3)],
            ..window("every_second_in_the_plane", [1, 66, 2, 21, 26], 4, [2, 5, 4], [1, 2, 2])
        },
        Conv3dCase {
            dilation: [2, 2, 3],
            padding: [(2, 0), (1, 3), (2, 2)],
            groups: 2,
            ..window("dilated", [1, 6, 5, 10, 13], 10, [2, 3, 2], [1, 3, 2])
        },
        window("without_taps", [1, 3, 4, 9, 10], 5, [2, 3, 2], [3, 4, 5]),
        Conv3dCase {
            padding: [(0, 0); 3],
            ..window("one_of_eight", [1, 18, 3, 6, 7], 3, [1, 1, 1], [2, 2, 2])
        },
        window("more_than_there_are", [1, 3, 2, 1, 6], 4, [3, 3, 3], [4, 2, 7]),
        Conv3dCase { replicate: true, ..window("folded", [1, 3, 4, 7, 8], 5, [3, 3, 3], [2, 2, 2]) },
        // Stride and dilation with a common divisor: half of the elements have no taps.
        Conv3dCase {
            dilation: [1, 2, 2],
            ..window("common_divisor", [1, 3, 3, 9, 8], 4, [2, 2, 2], [2, 2, 2])
        },
    ]
}

/// Few frames with depth taps outside the input, large enough that ranges of frames get launches of their
/// own.
#[must_use]
pub fn few_frames() -> Vec<Conv3dCase> {
    let frames = |name: &str, x, o, kernel, depth| Conv3dCase {
        padding: [depth, (0, 0), (0, 0)],
        ..Conv3dCase::new(name, x, o, kernel)
    };
    vec![
        frames("frames_unpadded", [1, 3, 3, 32, 33], 4, [3, 1, 1], (0, 0)),
        frames("frames_padded", [1, 2, 2, 33, 32], 3, [3, 1, 2], (1, 1)),
        // Windows that lie entirely in the padding.
        Conv3dCase {
            dilation: [2, 1, 1],
            activation: Activation::Relu,
            ..frames("frames_of_padding", [2, 2, 1, 24, 25], 3, [2, 1, 1], (5, 3))
        },
    ]
}

/// Windows of one tap in H and W, whose H x W slices are contiguous, in whole vectors of four and of eight:
/// tiles that end inside a frame and past the last, partial blocks of channels and K, padded, strided and
/// missing depth taps, groups, and slices that allow only shorter vectors.
#[must_use]
pub fn contiguous_slices() -> Vec<Conv3dCase> {
    let depth = |name: &str, x: [usize; 5], o, taps, padding| Conv3dCase {
        padding: [padding, (0, 0), (0, 0)],
        ..Conv3dCase::new(name, x, o, [taps, 1, 1])
    };
    vec![
        Conv3dCase { activation: Activation::Relu, ..depth("runs_of_eight", [2, 9, 3, 5, 8], 7, 1, (0, 0)) },
        depth("runs_of_four", [1, 5, 2, 6, 6], 34, 1, (0, 0)),
        depth("runs_of_two", [2, 5, 2, 3, 6], 5, 1, (0, 0)),
        depth("runs_with_depth_taps", [2, 17, 4, 4, 8], 66, 3, (1, 1)),
        Conv3dCase {
            replicate: true,
            bias: false,
            ..depth("runs_replicated", [1, 3, 3, 6, 8], 5, 3, (2, 0))
        },
        Conv3dCase {
            stride: [2, 1, 1],
            dilation: [2, 1, 1],
            groups: 2,
            ..depth("runs_strided_in_depth", [1, 6, 7, 8, 4], 10, 3, (3, 1))
        },
        Conv3dCase { stride: [2, 1, 1], ..depth("runs_of_phases", [2, 6, 7, 8, 4], 18, 3, (1, 1)) },
        Conv3dCase {
            stride: [3, 1, 1],
            dilation: [2, 1, 1],
            groups: 2,
            ..depth("runs_of_dilated_phases", [1, 6, 8, 4, 4], 40, 2, (2, 1))
        },
        // Two frames, each of a tile and one vector.
        depth("runs_past_a_tile", [1, 2, 2, 17, 8], 3, 2, (1, 0)),
        // Strided or padded 1x1 windows: the slices are not contiguous, or windows read outside them.
        Conv3dCase { stride: [1, 2, 2], ..depth("no_runs_strided", [1, 4, 2, 4, 8], 5, 1, (0, 0)) },
        Conv3dCase {
            padding: [(0, 0), (0, 0), (2, 2)],
            ..depth("no_runs_padded", [1, 4, 2, 4, 4], 5, 1, (0, 0))
        },
    ]
}

/// More taps along a zero-padded axis than the gathered GEMM's masks have bits: every axis, two at once,
/// strides whose residue classes have many taps or few, dilation, groups, and contiguous slices.
#[must_use]
pub fn many_taps() -> Vec<Conv3dCase> {
    let window = |name: &str, x: [usize; 5], o, kernel, padding| Conv3dCase {
        padding,
        ..Conv3dCase::new(name, x, o, kernel)
    };
    let none = (0, 0);
    vec![
        window("taps_of_width", [2, 12, 1, 5, 19], 36, [1, 3, 11], [none, (1, 0), (5, 6)]),
        Conv3dCase {
            activation: Activation::Relu,
            ..window("taps_of_height_and_width", [1, 5, 1, 14, 13], 7, [1, 11, 12], [none, (5, 5), (6, 11)])
        },
        window("taps_of_contiguous_slices", [2, 33, 12, 4, 8], 34, [11, 1, 1], [(5, 5), none, none]),
        Conv3dCase {
            stride: [1, 2, 1],
            bias: false,
            ..window("taps_of_phases", [1, 10, 2, 25, 5], 9, [1, 23, 2], [none, (11, 12), (1, 1)])
        },
        Conv3dCase {
            stride: [3, 1, 1],
            ..window("few_taps_of_phases", [1, 9, 13, 3, 4], 40, [12, 1, 2], [(7, 3), none, none])
        },
        Conv3dCase {
            dilation: [1, 1, 2],
            groups: 3,
            ..window("taps_of_dilated_groups", [1, 18, 1, 4, 30], 15, [1, 2, 13], [none, none, (12, 13)])
        },
        Conv3dCase {
            replicate: true,
            ..window("taps_replicated", [1, 6, 3, 12, 4], 12, [2, 13, 1], [(1, 0), (6, 6), none])
        },
    ]
}
