//! Layers with few input channels.

use super::Conv3dCase;

/// Layers with few input channels, whose input gradient is a sub-pixel convolution: every stride, remainders
/// at the input's end, positions that no window reads, padding before and after, dilation with and without a
/// stride, groups, partial row segments and tiles, several tiles of columns, partial blocks of dy channels.
#[must_use]
pub fn few_input_layers() -> Vec<Conv3dCase> {
    let layer = |name: &str, x: [usize; 5], o, kernel, stride: [usize; 3], padding| Conv3dCase {
        stride,
        padding,
        bias: false,
        ..Conv3dCase::new(name, x, o, kernel)
    };
    vec![
        layer("seven", [1, 3, 5, 15, 18], 5, [7, 7, 7], [2, 2, 2], [(2, 3), (2, 3), (3, 2)]),
        layer("plane_of_seven", [2, 3, 1, 17, 16], 9, [1, 7, 7], [1, 2, 2], [(0, 0), (3, 3), (3, 3)]),
        layer("three_apart", [1, 3, 4, 9, 11], 4, [3, 3, 3], [2, 2, 2], [(1, 1); 3]),
        layer("dense", [2, 3, 3, 9, 10], 6, [3, 3, 3], [1, 1, 1], [(1, 1); 3]),
        layer("four_channels", [1, 4, 2, 8, 9], 3, [2, 3, 2], [1, 1, 1], [(0, 1), (2, 0), (0, 2)]),
        layer("one_channel", [1, 1, 4, 7, 8], 5, [3, 5, 4], [2, 3, 1], [(1, 0), (0, 2), (1, 3)]),
        layer("gaps", [1, 2, 7, 9, 11], 3, [2, 2, 1], [3, 3, 4], [(0, 0), (1, 0), (0, 1)]),
        layer(
            "padding_beyond_the_kernel",
            [1, 3, 3, 6, 5],
            4,
            [2, 2, 3],
            [1, 2, 2],
            [(2, 3), (5, 4), (4, 6)],
        ),
        layer("unread_end", [1, 3, 5, 10, 10], 4, [2, 3, 3], [4, 4, 4], [(0, 0); 3]),
        layer("stride_past_the_input", [1, 3, 2, 3, 3], 4, [2, 3, 2], [5, 7, 4], [(1, 0), (1, 1), (0, 1)]),
        layer("frames", [1, 3, 9, 4, 5], 4, [4, 1, 1], [3, 1, 1], [(1, 2), (0, 0), (0, 0)]),
        layer("rows_of_two_strips", [1, 3, 1, 6, 260], 4, [1, 5, 5], [1, 2, 2], [(0, 0), (2, 2), (2, 2)]),
        layer("several_tiles", [1, 2, 1, 70, 60], 2, [1, 3, 3], [1, 1, 1], [(0, 0), (1, 1), (1, 1)]),
        layer("several_stages", [1, 3, 2, 40, 44], 18, [3, 3, 3], [1, 2, 2], [(1, 1); 3]),
        layer("split_sum", [1, 3, 2, 6, 7], 33, [2, 3, 3], [1, 2, 2], [(1, 0), (1, 1), (1, 1)]),
        Conv3dCase {
            dilation: [2, 3, 2],
            ..layer("dilated", [1, 3, 5, 11, 12], 4, [2, 3, 3], [1, 1, 1], [(1, 1), (3, 2), (2, 2)])
        },
        Conv3dCase {
            dilation: [3, 3, 2],
            ..layer("dilated_strides", [1, 3, 7, 13, 12], 4, [2, 3, 3], [2, 2, 4], [(2, 1), (2, 3), (1, 2)])
        },
        Conv3dCase {
            groups: 3,
            ..layer("groups_of_two", [2, 6, 3, 7, 8], 15, [2, 4, 3], [1, 2, 2], [(0, 1), (1, 2), (1, 1)])
        },
        Conv3dCase {
            replicate: true,
            ..layer("replicated", [1, 3, 3, 9, 8], 5, [3, 3, 5], [1, 2, 2], [(1, 1), (1, 1), (2, 2)])
        },
    ]
}
