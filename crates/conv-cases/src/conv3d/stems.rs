//! Layers of few input channels.

use super::Conv3dCase;

/// Layers of few input channels, whose input gradient takes the positions between two windows together: every
/// stride, remainders at the input's end, positions that no window reads, padding before and behind, dilation
/// with and without a stride, groups, strips and tiles that do not come out even, tiles of columns, channels
/// of dy that do not fill a block.
#[must_use]
pub fn stems() -> Vec<Conv3dCase> {
    let stem = |name: &str, x: [usize; 5], o, kernel, stride: [usize; 3], padding| Conv3dCase {
        stride,
        padding,
        bias: false,
        ..Conv3dCase::new(name, x, o, kernel)
    };
    vec![
        stem("seven", [1, 3, 5, 15, 18], 5, [7, 7, 7], [2, 2, 2], [(2, 3), (2, 3), (3, 2)]),
        stem("plane_of_seven", [2, 3, 1, 17, 16], 9, [1, 7, 7], [1, 2, 2], [(0, 0), (3, 3), (3, 3)]),
        stem("three_apart", [1, 3, 4, 9, 11], 4, [3, 3, 3], [2, 2, 2], [(1, 1); 3]),
        stem("dense", [2, 3, 3, 9, 10], 6, [3, 3, 3], [1, 1, 1], [(1, 1); 3]),
        stem("four_channels", [1, 4, 2, 8, 9], 3, [2, 3, 2], [1, 1, 1], [(0, 1), (2, 0), (0, 2)]),
        stem("one_channel", [1, 1, 4, 7, 8], 5, [3, 5, 4], [2, 3, 1], [(1, 0), (0, 2), (1, 3)]),
        stem("gaps", [1, 2, 7, 9, 11], 3, [2, 2, 1], [3, 3, 4], [(0, 0), (1, 0), (0, 1)]),
        stem("padding_beyond_the_kernel", [1, 3, 3, 6, 5], 4, [2, 2, 3], [1, 2, 2], [(2, 3), (5, 4), (4, 6)]),
        stem("unread_end", [1, 3, 5, 10, 10], 4, [2, 3, 3], [4, 4, 4], [(0, 0); 3]),
        stem("stride_past_the_input", [1, 3, 2, 3, 3], 4, [2, 3, 2], [5, 7, 4], [(1, 0), (1, 1), (0, 1)]),
        stem("frames", [1, 3, 9, 4, 5], 4, [4, 1, 1], [3, 1, 1], [(1, 2), (0, 0), (0, 0)]),
        stem("rows_of_two_strips", [1, 3, 1, 6, 260], 4, [1, 5, 5], [1, 2, 2], [(0, 0), (2, 2), (2, 2)]),
        stem("several_tiles", [1, 2, 1, 70, 60], 2, [1, 3, 3], [1, 1, 1], [(0, 0), (1, 1), (1, 1)]),
        stem("several_stages", [1, 3, 2, 40, 44], 18, [3, 3, 3], [1, 2, 2], [(1, 1); 3]),
        stem("split_sum", [1, 3, 2, 6, 7], 33, [2, 3, 3], [1, 2, 2], [(1, 0), (1, 1), (1, 1)]),
        Conv3dCase {
            dilation: [2, 3, 2],
            ..stem("dilated", [1, 3, 5, 11, 12], 4, [2, 3, 3], [1, 1, 1], [(1, 1), (3, 2), (2, 2)])
        },
        Conv3dCase {
            dilation: [3, 3, 2],
            ..stem("dilated_strides", [1, 3, 7, 13, 12], 4, [2, 3, 3], [2, 2, 4], [(2, 1), (2, 3), (1, 2)])
        },
        Conv3dCase {
            groups: 3,
            ..stem("groups_of_two", [2, 6, 3, 7, 8], 15, [2, 4, 3], [1, 2, 2], [(0, 1), (1, 2), (1, 1)])
        },
        Conv3dCase {
            replicate: true,
            ..stem("replicated", [1, 3, 3, 9, 8], 5, [3, 3, 5], [1, 2, 2], [(1, 1), (1, 1), (2, 2)])
        },
    ]
}
