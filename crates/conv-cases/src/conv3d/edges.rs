//! Hand-picked conv3d edges, and the empty problems.

use super::{Activation::*, Conv3dCase};

/// The same padding on both sides of each axis.
fn pad(d: usize, h: usize, w: usize) -> [(usize, usize); 3] {
    [(d, d), (h, h), (w, w)]
}

fn case(name: &str, input: [usize; 5], o: usize, kernel: [usize; 3]) -> Conv3dCase {
    Conv3dCase::new(name, input, o, kernel)
}

/// The hand-picked conformance cases.
pub(super) fn cases() -> Vec<Conv3dCase> {
    let mut cases = extents();
    cases.extend(channels());
    cases.extend(winograd());
    cases
}

/// Kernel, stride, padding and dilation against the size of the input.
fn extents() -> Vec<Conv3dCase> {
    let mut cases = vec![
        case("all_sizes_one", [1, 1, 1, 1, 1], 1, [1, 1, 1]),
        Conv3dCase { bias: false, ..case("pointwise", [2, 5, 3, 4, 5], 7, [1, 1, 1]) },
        Conv3dCase { stride: [2, 3, 2], ..case("pointwise_strided", [1, 6, 5, 7, 6], 4, [1, 1, 1]) },
        Conv3dCase { padding: pad(1, 2, 1), ..case("pointwise_padded", [1, 3, 2, 2, 3], 4, [1, 1, 1]) },
        case("kernel_is_input", [2, 4, 3, 4, 5], 6, [3, 4, 5]),
        Conv3dCase { padding: pad(2, 2, 3), ..case("kernel_above_input", [1, 3, 2, 3, 1], 5, [5, 5, 6]) },
        Conv3dCase {
            padding: [(3, 0), (0, 4), (2, 2)],
            replicate: true,
            ..case("kernel_above_input_replicate", [1, 3, 2, 2, 3], 4, [5, 5, 5])
        },
        Conv3dCase { stride: [3, 4, 5], ..case("stride_above_kernel", [1, 3, 8, 9, 11], 4, [2, 2, 2]) },
        Conv3dCase { stride: [9, 9, 9], ..case("stride_above_input", [2, 3, 4, 5, 6], 4, [2, 3, 1]) },
        Conv3dCase {
            stride: [8, 8, 8],
            padding: pad(4, 4, 4),
            ..case("stride_above_input_padded", [1, 2, 3, 3, 3], 3, [3, 3, 3])
        },
        Conv3dCase { stride: [2, 4, 4], ..case("patch_embedding", [2, 3, 4, 8, 8], 10, [2, 4, 4]) },
        Conv3dCase { stride: [2, 2, 2], ..case("stride_leaves_a_remainder", [1, 3, 6, 8, 10], 4, [3, 3, 3]) },
        Conv3dCase { padding: pad(5, 4, 6), ..case("padding_above_kernel", [1, 2, 2, 3, 2], 3, [2, 2, 2]) },
        Conv3dCase {
            padding: [(7, 0), (0, 6), (9, 8)],
            replicate: true,
            activation: Relu,
            ..case("padding_above_input_replicate", [1, 2, 2, 1, 3], 3, [2, 3, 2])
        },
        Conv3dCase {
            dilation: [4, 3, 5],
            padding: pad(4, 3, 5),
            ..case("dilated_span_above_input", [1, 3, 3, 4, 5], 4, [3, 3, 3])
        },
        Conv3dCase {
            dilation: [3, 2, 4],
            stride: [2, 3, 2],
            padding: [(4, 3), (2, 5), (6, 4)],
            replicate: true,
            ..case("dilation_shares_no_factor_with_stride", [1, 4, 5, 6, 7], 3, [3, 3, 3])
        },
        Conv3dCase {
            dilation: [2, 2, 2],
            stride: [2, 2, 2],
            padding: pad(2, 2, 2),
            ..case("dilation_equals_stride", [1, 4, 7, 7, 7], 5, [3, 3, 3])
        },
        Conv3dCase {
            padding: [(2, 3); 3],
            stride: [2; 3],
            ..case("i3d_stem", [1, 3, 6, 10, 10], 8, [7, 7, 7])
        },
        Conv3dCase {
            padding: [(2, 0), (1, 1), (1, 1)],
            ..case("causal_depth", [1, 8, 3, 6, 5], 8, [3, 3, 3])
        },
        Conv3dCase {
            padding: [(2, 0), (1, 1), (1, 1)],
            replicate: true,
            activation: Silu,
            ..case("causal_depth_replicate", [2, 4, 4, 5, 6], 8, [3, 3, 3])
        },
        Conv3dCase { padding: pad(0, 0, 1), ..case("wide_512", [1, 2, 1, 1, 512], 3, [1, 1, 3]) },
        Conv3dCase { stride: [1, 1, 2], ..case("wide_512_strided", [1, 3, 1, 2, 512], 2, [1, 2, 4]) },
        Conv3dCase { padding: pad(0, 1, 0), ..case("tall_512", [1, 2, 1, 512, 1], 3, [1, 3, 1]) },
        Conv3dCase { padding: pad(1, 0, 0), ..case("deep_512", [1, 2, 512, 1, 1], 3, [3, 1, 1]) },
        Conv3dCase { bias: false, ..case("batch_33", [33, 3, 2, 2, 2], 4, [2, 2, 2]) },
        case("one_output_voxel_long_sum", [1, 33, 5, 5, 5], 2, [5, 5, 5]),
    ];
    for kd in 1..=7 {
        let shape = [1, 4, 5, 4, 4];
        cases.push(Conv3dCase {
            padding: pad(kd / 2, 1, 1),
            ..case(&format!("depth_taps_{kd}"), shape, 6, [kd, 3, 3])
        });
    }
    cases
}

/// Channel counts around vector and tile widths, groups, and the wide pointwise products of public bugs.
fn channels() -> Vec<Conv3dCase> {
    let counts = [1, 2, 3, 5, 7, 15, 17, 31, 33, 63, 65];
    let mut cases: Vec<_> = counts
        .iter()
        // Small against large, so that each count appears on both sides.
        .zip(counts.iter().rev())
        .map(|(&c, &o)| {
            let name = format!("channels_{c}_to_{o}");
            Conv3dCase { padding: pad(1, 1, 1), ..case(&name, [1, c, 2, 3, 5], o, [2, 3, 3]) }
        })
        .collect();
    cases.extend([
        Conv3dCase { padding: pad(1, 1, 1), ..case("channels_65_to_65", [1, 65, 1, 3, 3], 65, [3, 3, 3]) },
        case("channels_128_to_130_pointwise", [1, 128, 1, 5, 7], 130, [1, 1, 1]),
        // burn #5626: the pointwise product had an odd number of stages along the channels.
        case("pointwise_104_to_208", [1, 104, 2, 4, 8], 208, [1, 1, 1]),
        case("pointwise_440_to_440", [1, 440, 1, 2, 3], 440, [1, 1, 1]),
        Conv3dCase { groups: 6, padding: pad(1, 1, 1), ..case("depthwise_6", [2, 6, 3, 5, 4], 6, [3, 3, 3]) },
        Conv3dCase {
            groups: 65,
            padding: pad(1, 2, 2),
            activation: Silu,
            ..case("depthwise_65", [1, 65, 3, 6, 7], 65, [3, 5, 5])
        },
        Conv3dCase {
            groups: 7,
            padding: pad(1, 1, 1),
            bias: false,
            ..case("depthwise_7_multiplier_3", [1, 7, 3, 4, 6], 21, [3, 3, 3])
        },
        Conv3dCase {
            groups: 33,
            stride: [1, 2, 2],
            padding: [(1, 0), (1, 1), (0, 1)],
            replicate: true,
            ..case("depthwise_33_multiplier_2_strided", [1, 33, 3, 5, 5], 66, [2, 3, 3])
        },
        Conv3dCase {
            groups: 3,
            padding: pad(0, 1, 1),
            ..case("groups_3_of_5_to_7", [1, 15, 2, 4, 4], 21, [2, 3, 3])
        },
        Conv3dCase {
            groups: 4,
            activation: Relu,
            ..case("groups_4_of_16_to_1", [2, 64, 1, 4, 4], 4, [1, 3, 3])
        },
        Conv3dCase { groups: 5, ..case("groups_5_of_1_to_17", [1, 5, 2, 3, 9], 85, [2, 2, 2]) },
    ]);
    cases
}

/// 3x3 windows with stride and dilation 1, at frame sizes at, below and above multiples of the tiles 2, 4 and
/// 6.
fn winograd() -> Vec<Conv3dCase> {
    let mut cases: Vec<_> = (1..=13)
        .map(|h| {
            let w = 14 - h;
            let name = format!("plane_{h}x{w}");
            Conv3dCase { padding: pad(0, 1, 1), ..case(&name, [1, 5, 2, h, w], 6, [1 + h % 3, 3, 3]) }
        })
        // Without depth padding there can be no more depth taps than frames.
        .map(|case| Conv3dCase { d: case.d.max(case.kernel[0]), ..case })
        .collect();
    for size in [3, 4, 5, 6, 8, 12] {
        let name = format!("plane_{size}x{size}_same");
        cases.push(Conv3dCase { padding: pad(1, 1, 1), ..case(&name, [1, 8, 2, size, size], 8, [3, 3, 3]) });
    }
    cases.extend([
        case("plane_valid_one_output", [1, 4, 3, 3, 3], 4, [3, 3, 3]),
        case("plane_valid_10x7", [2, 4, 3, 12, 9], 5, [2, 3, 3]),
        Conv3dCase {
            padding: [(1, 1), (2, 0), (0, 2)],
            ..case("plane_asymmetric", [1, 4, 3, 6, 7], 4, [3, 3, 3])
        },
        Conv3dCase {
            padding: pad(1, 3, 4),
            ..case("plane_padding_above_kernel", [1, 3, 2, 4, 3], 4, [2, 3, 3])
        },
        Conv3dCase {
            padding: pad(1, 1, 1),
            replicate: true,
            activation: Relu,
            ..case("plane_replicate", [2, 4, 3, 7, 6], 5, [3, 3, 3])
        },
        Conv3dCase {
            padding: pad(1, 1, 1),
            activation: Silu,
            bias: false,
            ..case("plane_batch_3", [3, 5, 3, 5, 6], 7, [3, 3, 3])
        },
        Conv3dCase {
            stride: [2, 1, 1],
            padding: pad(1, 1, 1),
            ..case("plane_depth_stride_2", [2, 4, 6, 5, 5], 6, [3, 3, 3])
        },
        Conv3dCase {
            dilation: [2, 1, 1],
            padding: [(3, 1), (1, 1), (1, 1)],
            ..case("plane_depth_dilation_2", [1, 4, 5, 6, 5], 6, [3, 3, 3])
        },
        Conv3dCase {
            stride: [3, 1, 1],
            dilation: [2, 1, 1],
            padding: [(4, 5), (1, 1), (1, 1)],
            replicate: true,
            ..case("plane_depth_stride_3_dilation_2", [2, 3, 5, 4, 7], 4, [4, 3, 3])
        },
        Conv3dCase {
            padding: pad(1, 1, 1),
            ..case("plane_channels_33_to_17", [1, 33, 2, 7, 5], 17, [3, 3, 3])
        },
        Conv3dCase {
            padding: pad(0, 1, 1),
            ..case("plane_channels_64_to_64", [1, 64, 1, 6, 6], 64, [1, 3, 3])
        },
        Conv3dCase { padding: pad(3, 1, 1), ..case("plane_depth_taps_7", [1, 3, 4, 5, 4], 4, [7, 3, 3]) },
    ]);
    cases
}

/// Problems without work: the output is empty, or the bias alone.
pub(super) fn empty() -> Vec<Conv3dCase> {
    let padded = |case: Conv3dCase| Conv3dCase { padding: pad(1, 1, 1), ..case };
    vec![
        padded(case("batch_0", [0, 3, 4, 5, 6], 4, [3, 3, 3])),
        Conv3dCase { groups: 4, ..padded(case("batch_0_depthwise", [0, 4, 3, 3, 3], 4, [3, 3, 3])) },
        padded(case("channels_0", [2, 0, 4, 5, 6], 4, [3, 3, 3])),
        Conv3dCase { bias: false, ..padded(case("channels_0_no_bias", [1, 0, 3, 3, 3], 4, [1, 1, 1])) },
        Conv3dCase { activation: Silu, ..padded(case("channels_0_silu", [1, 0, 3, 3, 3], 5, [3, 3, 3])) },
        padded(case("outputs_0", [2, 3, 4, 5, 6], 0, [3, 3, 3])),
        case("outputs_0_pointwise", [1, 3, 2, 2, 2], 0, [1, 1, 1]),
        case("batch_0_and_channels_0", [0, 0, 3, 3, 3], 2, [3, 3, 3]),
    ]
}
