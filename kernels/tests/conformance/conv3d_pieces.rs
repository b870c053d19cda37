//! conv3d of clips in pieces of any lengths against the whole clip, bit for bit.

use crate::conv3d::{inputs, problem};
use crate::conv3d_streams::frames;
use crate::support::{Buffer, client, output};
use conv_cases::conv3d::{Conv3dCase, Padding};
use conv_cases::fill;
use conv_kernels::conv3d::{
    self, Added, Algorithm, Conv3dProblem, Pass, Plan, WinogradTile, forward, forward_cached,
};
use conv_kernels::{FloatType, Limits};

/// Chunks of any lengths, their caches and the whole clip under the automatic plan and Winograd: the same
/// bits, because the plan and its sums do not depend on the number of frames.
#[test]
fn pieces_of_any_lengths_have_the_bits_of_the_whole_clip() {
    let client = client();
    // Few threadgroups in flight: sums of pieces would be split, those of the whole clip would not.
    let limits = Limits { cubes_in_flight: 8, ..Limits::of(&client) };
    let plane = [(2, 0), (1, 1), (1, 1)];
    // Small frames, whose sums would be split, and more frames than some tiles have rows.
    let cases = [
        Conv3dCase {
            padding: plane,
            residual: true,
            ..Conv3dCase::new("small", [1, 40, 7, 3, 4], 20, [3; 3])
        },
        Conv3dCase {
            padding: plane,
            modes: Some([Padding::Zeros, Padding::Replicate, Padding::Zeros]),
            ..Conv3dCase::new("wide", [1, 40, 7, 12, 20], 12, [3; 3])
        },
        Conv3dCase {
            padding: plane,
            modes: Some([Padding::Replicate, Padding::Zeros, Padding::Zeros]),
            ..Conv3dCase::new("winograd", [1, 40, 7, 6, 9], 12, [3; 3])
        },
        // Full tiles of a window kernel, where there are matrix units.
        Conv3dCase {
            padding: [(2, 0), (1, 1), (1, 0)],
            ..Conv3dCase::new("window", [1, 16, 7, 15, 16], 64, [3, 3, 2])
        },
        // Later pieces have no padding that differs from the plane's.
        Conv3dCase {
            padding: [(2, 0), (1, 1), (1, 0)],
            modes: Some([Padding::Replicate, Padding::Zeros, Padding::Zeros]),
            ..Conv3dCase::new("window_first", [1, 16, 7, 15, 16], 64, [3, 3, 2])
        },
        // Tiles of as many frames as a piece has; channels of pieces would be split.
        Conv3dCase {
            padding: plane,
            modes: Some([Padding::Replicate, Padding::Zeros, Padding::Zeros]),
            ..Conv3dCase::new("few_outputs", [1, 40, 7, 16, 32], 3, [3; 3])
        },
        // Frames that fill tiles of shared memory, and frames that do not.
        Conv3dCase {
            padding: plane,
            modes: Some([Padding::Replicate, Padding::Zeros, Padding::Zeros]),
            groups: 4,
            ..Conv3dCase::new("depthwise", [1, 4, 7, 17, 24], 4, [3; 3])
        },
        Conv3dCase {
            padding: plane,
            groups: 4,
            ..Conv3dCase::new("depthwise_march", [1, 4, 7, 3, 4], 4, [3; 3])
        },
    ];
    for case in cases {
        // Window kernels, those of few outputs and depthwise ones read a cache whose frames have x's layout.
        let few = case.name == "few_outputs";
        let depthwise = case.name.starts_with("depthwise");
        let strided = !few && !depthwise && !case.name.starts_with("window");
        let algorithm = match case.name.as_str() {
            "winograd" => Algorithm::Winograd(WinogradTile::F4x4),
            _ => Algorithm::Auto,
        };
        let whole = problem(&case, FloatType::F32).for_streams();
        let inputs = inputs(&client, &whole, &fill::normal);
        let plan = |problem: &Conv3dProblem| {
            conv3d::plan(problem, Pass::Forward, algorithm, &limits).expect("a plan")
        };
        let windows = matches!(plan(&whole), Plan::Window(_));
        assert!(strided || few || depthwise || windows != limits.matrices.is_empty(), "{}", plan(&whole));
        assert_eq!(matches!(plan(&whole), Plan::FewOutputs(_)), few, "{}", plan(&whole));
        assert_eq!(matches!(plan(&whole), Plan::Depthwise(_)), depthwise, "{}", plan(&whole));
        let y = output(&client, &whole.y_shape(), whole.dtype);
        let operands = [inputs.x.operand(), inputs.w.operand(), y.operand()];
        forward(&client, &limits, &whole, &plan(&whole), operands, inputs.added()).expect("the whole clip");
        let want = y.read(&client);
        for pieces in [&[1, 1, 5][..], &[3, 4], &[2, 2, 2, 1]] {
            let mut at = 0;
            for piece in pieces {
                let held = at.min(2);
                let first = at - held;
                // Before the clip's third frame padding is left.
                let mut part = case.clone();
                part.d = held + piece;
                part.padding[0].0 = 2 - held;
                let problem = problem(&part, FloatType::F32).for_streams();
                // The extent of Winograd's regions and the tile of few outputs may differ, which changes no
                // bit.
                match plan(&problem) {
                    Plan::FewOutputs(_) => assert!(few, "{part}"),
                    other => assert_eq!(other.name(), plan(&whole).name(), "{part}"),
                }
                let x = frames(&client, &inputs.x, (at, at + piece), false, whole.dtype);
                let cache = frames(&client, &inputs.x, (first, at.max(1)), strided, whole.dtype);
                let y = output(&client, &problem.y_shape(), whole.dtype);
                let operands = [x.operand(), inputs.w.operand(), y.operand()];
                let residual = inputs
                    .residual
                    .as_ref()
                    .map(|residual| frames(&client, residual, (at, at + piece), true, whole.dtype));
                let residual = residual.as_ref().map(Buffer::operand);
                let added = Added { residual, ..inputs.added() };
                if held == 0 {
                    forward(&client, &limits, &problem, &plan(&problem), operands, added)
                } else {
                    let others = (cache.operand(), None, added);
                    forward_cached(&client, &limits, &problem, &plan(&problem), operands, others)
                }
                .unwrap_or_else(|error| panic!("{part}: {error}"));
                let [_, channels, frames, height, width] = problem.y_shape();
                let all = whole.y_shape()[2];
                let got = y.read(&client);
                for (index, got) in got.iter().enumerate() {
                    let (frame, rest) = (height * width, index % (height * width));
                    let (channel, depth) = (index / frame / frames, index / frame % frames);
                    let want = want[(channel * all + at + depth) * frame + rest];
                    assert!(channel < channels);
                    assert_eq!(got.to_bits(), want.to_bits(), "{part}, pieces {pieces:?}, element {index}");
                }
                at += piece;
            }
        }
    }
}
