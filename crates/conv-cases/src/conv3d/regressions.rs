//! Shapes of public bugs in other libraries, as far as they fit the memory and time of a software GPU.
//!
//! Where the original is too large, the part that mattered (channels, reduction length, grid width) is kept
//! and the rest is shrunk; the comment says so. Bugs that need more memory are not here: burn #3524 (a 4096 x
//! 4096 frame, tested by grids with forced small limits) and those beyond 2^31 elements.

use super::{Activation::*, Conv3dCase, Padding};

fn case(name: String, input: [usize; 5], o: usize, kernel: [usize; 3]) -> Conv3dCase {
    Conv3dCase::new(&name, input, o, kernel)
}

/// The regression cases.
pub(super) fn cases() -> Vec<Conv3dCase> {
    let mut cases = wrong_channels();
    cases.extend(pointwise_products());
    cases.extend(long_axes());
    cases.extend(large_frames());
    cases.extend(winograd());
    cases
}

/// Shapes that these kernels were once wrong for.
pub(super) fn faults() -> Vec<Conv3dCase> {
    let mut cases = contiguous_results();
    cases.extend(padded_problems());
    cases
}

/// Input gradients whose H x W slices are read contiguously but written with gaps: windows of one tap,
/// strided in H or W.
fn contiguous_results() -> Vec<Conv3dCase> {
    vec![
        Conv3dCase {
            stride: [1, 2, 1],
            bias: false,
            ..case("strided_rows_3x1x1".into(), [1, 64, 4, 16, 16], 64, [3, 1, 1])
        },
        // A single column at stride 5.
        Conv3dCase {
            stride: [4, 1, 5],
            padding: [(2, 2), (0, 0), (1, 3)],
            bias: false,
            ..case("one_column_of_five".into(), [1, 16, 2, 4, 1], 16, [2, 1, 5])
        },
    ]
}

/// Replicate padding: its input gradient is computed as another problem, and windows have more taps than the
/// bits of a tap mask.
fn padded_problems() -> Vec<Conv3dCase> {
    let replicate = |name: &str, input, o, kernel| Conv3dCase {
        replicate: true,
        bias: false,
        ..case(name.into(), input, o, kernel)
    };
    let mut cases = vec![
        Conv3dCase {
            padding: [(10, 10), (0, 0), (0, 0)],
            ..replicate("replicate_11_depth_taps", [1, 8, 6, 3, 3], 8, [11, 1, 1])
        },
        Conv3dCase {
            padding: [(0, 0), (0, 0), (6, 6)],
            ..replicate("replicate_12_width_taps", [1, 8, 1, 1, 6], 4, [1, 1, 12])
        },
        Conv3dCase {
            padding: [(0, 0), (5, 5), (5, 5)],
            stride: [1, 2, 1],
            ..replicate("replicate_stem_below_the_stride", [1, 1, 1, 1, 1], 16, [1, 11, 11])
        },
    ];
    // Around the ten taps per axis of a mask and its 31 bits. Too many channels for the plans whose kernels
    // are compiled for one window.
    for taps in [10, 11, 33] {
        for axis in 0..3 {
            for replicate in [false, true] {
                let on_axis = |value: usize, other: usize| {
                    let mut extents = [other; 3];
                    extents[axis] = value;
                    extents
                };
                let [d, h, w] = on_axis(5, 2);
                let name = format!("{taps}_taps_of_axis_{axis}{}", if replicate { "_replicate" } else { "" });
                cases.push(Conv3dCase {
                    replicate,
                    padding: on_axis(taps / 2 + 1, 0).map(|padding| (padding, padding + 2)),
                    ..case(name, [1, 8, d, h, w], 6, on_axis(taps, 1))
                });
            }
        }
    }
    cases
}

/// pytorch #197114: Conv3d on MPS was silently wrong for most of these channel counts at 8x8x8, kernel 3,
/// padding 1.
fn wrong_channels() -> Vec<Conv3dCase> {
    // The volume is 8^3 up to 16 channels; above, it is shrunk to stay within the time of a software GPU, and
    // the two widest lose depth taps, then all taps.
    let small = [1, 3, 3];
    [
        (1, 1, [8, 8, 8], [3, 3, 3]),
        (4, 4, [8, 8, 8], [3, 3, 3]),
        (8, 8, [8, 8, 8], [3, 3, 3]),
        (16, 16, [8, 8, 8], [3, 3, 3]),
        (32, 32, [4, 4, 8], [3, 3, 3]),
        (8, 512, [2, 4, 4], [3, 3, 3]),
        (512, 512, [1, 1, 2], small),
        (512, 1024, [2, 2, 2], [1, 1, 1]),
        (32, 1, [8, 8, 8], [3, 3, 3]),
    ]
    .into_iter()
    .map(|(c, o, [d, h, w], kernel)| Conv3dCase {
        padding: kernel.map(|k| (k / 2, k / 2)),
        ..case(format!("pytorch_197114_{c}_to_{o}"), [1, c, d, h, w], o, kernel)
    })
    .collect()
}

/// Products M x N x K as pointwise convolutions: M voxels, N output channels, K input channels.
fn pointwise_products() -> Vec<Conv3dCase> {
    // burn #5626: a double-buffered product rounded an odd number of stages along K up and read out of
    // bounds.
    let mut cases: Vec<_> = [8, 16, 24, 31, 32, 33, 40, 48, 56, 72, 88, 104, 136]
        .into_iter()
        .map(|k| case(format!("burn_5626_k_{k}"), [1, k, 1, 4, 9], 20, [1, 1, 1]))
        .collect();
    cases.extend([
        case("burn_5626_104_to_208".into(), [1, 104, 1, 7, 7], 208, [1, 1, 1]),
        case("burn_5626_440_to_440".into(), [1, 440, 1, 4, 4], 440, [1, 1, 1]),
        // cubecl #1636: rows 4 to 7 of an 8x8 tile were corrupt with threadgroups of a single simdgroup.
        case("cubecl_1636_382_10_1".into(), [1, 1, 1, 2, 191], 10, [1, 1, 1]),
        case("cubecl_1636_382_10_3".into(), [1, 3, 1, 2, 191], 10, [1, 1, 1]),
        case("cubecl_1636_4096_14_5".into(), [1, 5, 1, 64, 64], 14, [1, 1, 1]),
    ]);
    // pytorch #195163: from K 32,767 on, the product read past its operands. K = C x taps.
    let reductions = [(5461, [1, 2, 3]), (4681, [1, 1, 7]), (4096, [2, 2, 2]), (10_923, [3, 1, 1])];
    cases.extend(reductions.into_iter().map(|(c, kernel)| {
        let [d, h, w] = kernel;
        let k = c * d * h * w;
        case(format!("pytorch_195163_k_{k}"), [1, c, d, h, w + 1], 3, kernel)
    }));
    cases.push(case("pytorch_195163_k_32767_pointwise".into(), [1, 32_767, 1, 1, 2], 2, [1, 1, 1]));
    cases
}

/// One axis beyond 65,535, where dispatch grids and 16-bit counters end.
fn long_axes() -> Vec<Conv3dCase> {
    let mut cases = vec![
        // pytorch #129207: more than 65,536 output channels gave wrong results.
        case("pytorch_129207_o_65537".into(), [1, 2, 1, 1, 3], 65_537, [1, 1, 2]),
        Conv3dCase {
            groups: 65_537,
            ..case("pytorch_129207_depthwise_65537".into(), [1, 65_537, 1, 1, 3], 65_537, [1, 1, 2])
        },
        case("grid_batch_65537".into(), [65_537, 1, 1, 1, 2], 2, [1, 1, 2]),
        case("grid_depth_65537".into(), [1, 1, 65_537, 1, 1], 2, [2, 1, 1]),
        case("grid_height_65537".into(), [1, 1, 1, 65_537, 1], 2, [1, 2, 1]),
    ];
    // burn #4445: the backward pass of a wide input panicked. mlx-swift #424: wrong beyond 32,768.
    for w in [512, 4096, 32_767, 32_768, 32_769, 65_535, 65_536, 65_537] {
        let bug = if (30_000..40_000).contains(&w) { "mlx_swift_424" } else { "burn_4445" };
        let name = format!("{bug}_w_{w}");
        cases.push(Conv3dCase {
            padding: [(0, 0), (0, 0), (1, 1)],
            ..case(name, [1, 1, 1, 1, w], 2, [1, 1, 3])
        });
    }
    cases
}

/// pytorch #194922: rank-5 padding on MPS overwrote the input from 65,536 elements per frame on.
fn large_frames() -> Vec<Conv3dCase> {
    use Padding::{Circular, Reflect, Replicate, Zeros};
    let modes = [("zeros", Zeros), ("replicate", Replicate), ("reflect", Reflect), ("circular", Circular)];
    let cases = [256, 257].into_iter().flat_map(|size| {
        modes.map(|(name, mode)| Conv3dCase {
            padding: [(1, 1); 3],
            modes: Some([mode; 3]),
            ..case(format!("pytorch_194922_{size}x{size}_{name}"), [1, 1, 2, size, size], 1, [3; 3])
        })
    });
    cases.collect()
}

/// Bugs of Winograd convolutions.
fn winograd() -> Vec<Conv3dCase> {
    let padding = [(0, 0), (1, 1), (1, 1)];
    vec![
        // rocm-libraries #7024, #12334: half precision F(2,3) doubled the error of a depthwise convolution.
        Conv3dCase {
            padding,
            groups: 32,
            ..case("rocm_7024_depthwise".into(), [2, 32, 1, 14, 14], 32, [1, 3, 3])
        },
        // mlx #4242: the product ran with 10 mantissa bits. The original frame is 64 x 64.
        Conv3dCase { padding, ..case("mlx_4242_352_to_352".into(), [1, 352, 1, 2, 2], 352, [1, 3, 3]) },
        // mlx #995: one dtype of the Winograd kernel was missing at run time.
        Conv3dCase {
            padding,
            activation: Silu,
            ..case("mlx_995_32_to_32".into(), [1, 32, 2, 8, 8], 32, [1, 3, 3])
        },
    ]
}
