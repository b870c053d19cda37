//! Layers with few output channels.

use super::{Activation, Conv3dCase};

/// Layers with few output channels per group, forward or backward, at stride 1: one to four of them; one
/// input channel, and many with and without split-K; tiles that pass the frame on both sides, several along
/// every axis; frames past the last; depth taps outside the input; one-sided padding; halos along one axis;
/// groups.
#[must_use]
pub fn few_output_layers() -> Vec<Conv3dCase> {
    let layer = |name: &str, x: [usize; 5], o, kernel, padding| Conv3dCase {
        padding,
        ..Conv3dCase::new(name, x, o, kernel)
    };
    let same_frame = [(0, 0), (1, 1), (1, 1)];
    vec![
        Conv3dCase {
            activation: Activation::Silu,
            ..layer("colours", [2, 5, 6, 19, 21], 3, [3; 3], same_frame)
        },
        layer("one_result", [1, 3, 5, 17, 35], 1, [3; 3], [(1, 1); 3]),
        layer("two_results", [1, 6, 2, 20, 42], 2, [1, 7, 7], [(0, 0), (3, 3), (3, 3)]),
        Conv3dCase {
            activation: Activation::Relu,
            ..layer("four_results", [1, 7, 7, 18, 10], 4, [2, 3, 2], [(1, 2), (0, 1), (2, 0)])
        },
        Conv3dCase {
            replicate: true,
            activation: Activation::Silu,
            ..layer("replicated", [1, 4, 4, 18, 34], 3, [3; 3], [(2, 0), (1, 1), (0, 2)])
        },
        Conv3dCase { groups: 2, bias: false, ..layer("groups", [2, 6, 5, 16, 17], 6, [3; 3], [(1, 0); 3]) },
        Conv3dCase {
            groups: 4,
            activation: Activation::Relu,
            ..layer("multiplier", [2, 4, 3, 17, 16], 8, [3, 3, 2], [(1, 1); 3])
        },
        layer("frames", [1, 5, 9, 8, 16], 3, [3, 1, 1], [(1, 1), (0, 0), (0, 0)]),
        layer("frames_of_padding", [1, 3, 2, 9, 15], 2, [5, 2, 1], [(3, 4), (1, 0), (0, 0)]),
        layer("rows", [1, 3, 1, 5, 150], 3, [1, 1, 5], [(0, 0), (0, 0), (2, 2)]),
        layer("pointwise", [1, 9, 3, 16, 17], 3, [1; 3], [(0, 0); 3]),
        layer("five_by_five", [1, 2, 4, 20, 24], 2, [3, 5, 5], [(1, 1), (2, 2), (2, 2)]),
        Conv3dCase {
            activation: Activation::Relu,
            ..layer("split", [1, 35, 3, 9, 10], 3, [3; 3], same_frame)
        },
        layer("many_tiles", [3, 9, 1, 40, 70], 3, [1, 3, 3], same_frame),
        Conv3dCase { bias: false, ..layer("stem", [1, 3, 6, 17, 18], 9, [3; 3], [(1, 1); 3]) },
        Conv3dCase {
            replicate: true,
            bias: false,
            ..layer("stem_replicated", [1, 4, 3, 9, 16], 5, [2, 3, 3], [(1, 0), (1, 1), (2, 1)])
        },
        Conv3dCase { groups: 2, ..layer("stem_groups", [1, 2, 4, 16, 16], 18, [3; 3], same_frame) },
    ]
}
