//! Padding modes per axis: every mode on every axis, alone and together, up to the most padding that a mode
//! allows. Also with strides, dilation, groups and more taps than the masks of a gathered GEMM have bits.

use super::{Activation, Conv3dCase, Padding};

/// The table.
pub(super) fn cases() -> Vec<Conv3dCase> {
    use Padding::{Circular, Reflect, Replicate, Zeros};
    let case = |name: &str, x, o, kernel, padding, modes| Conv3dCase {
        padding,
        modes: Some(modes),
        ..Conv3dCase::new(&format!("padding_{name}"), x, o, kernel)
    };
    let ones = [(1, 1); 3];
    vec![
        case("reflect", [2, 5, 4, 5, 6], 9, [3; 3], [(2, 1), (1, 3), (3, 2)], [Reflect; 3]),
        case("circular", [1, 4, 3, 5, 4], 17, [3; 3], [(3, 3), (1, 2), (4, 0)], [Circular; 3]),
        case(
            "causal_replicate",
            [1, 9, 3, 6, 5],
            10,
            [3; 3],
            [(2, 0), (1, 1), (1, 1)],
            [Replicate, Zeros, Zeros],
        ),
        case(
            "causal_reflect",
            [1, 16, 2, 4, 8],
            16,
            [3; 3],
            [(2, 0), (1, 1), (1, 1)],
            [Zeros, Reflect, Reflect],
        ),
        Conv3dCase {
            stride: [2, 1, 2],
            dilation: [1, 2, 2],
            groups: 2,
            activation: Activation::Relu,
            ..case(
                "strided",
                [2, 4, 5, 6, 7],
                6,
                [3, 2, 3],
                [(3, 4), (2, 2), (6, 1)],
                [Reflect, Zeros, Circular],
            )
        },
        // Frames are contiguous: whole vectors of positions.
        case("frames", [1, 17, 3, 4, 8], 33, [3, 1, 1], [(2, 2), (0, 0), (0, 0)], [Reflect, Zeros, Zeros]),
        case(
            "many_taps",
            [1, 4, 2, 3, 13],
            9,
            [1, 1, 12],
            [(1, 0), (0, 0), (11, 12)],
            [Circular, Zeros, Reflect],
        ),
        // One element along an axis repeats; reflect padding needs two.
        case("one_element", [1, 2, 1, 2, 1], 3, [3; 3], ones, [Circular, Reflect, Replicate]),
        Conv3dCase {
            groups: 4,
            ..case("depthwise", [1, 4, 4, 5, 6], 4, [3; 3], ones, [Zeros, Circular, Replicate])
        },
    ]
}
