//! Bad input: the class and the exact sentence, before any launch.

use conv_kernels::conv3d::{Algorithm, Conv3dProblem, PaddingMode, Pass, Window, WinogradTile, plan};
use conv_kernels::{ConvError, FloatType, Limits};

const X: [usize; 5] = [1, 4, 5, 6, 7];
const W: [usize; 5] = [8, 4, 3, 3, 3];

fn refusal(x: [usize; 5], w: [usize; 5], bias: Option<usize>, window: Window) -> ConvError {
    Conv3dProblem::new(x, w, bias, window, FloatType::F32).expect_err("a refusal")
}

fn window() -> Window {
    Window::default()
}

#[test]
fn conv3d_shapes_and_options() {
    let huge = 1usize << 40;
    let rows: Vec<(ConvError, &str, &str)> = vec![
        (
            refusal(X, W, None, Window { groups: 0, ..window() }),
            "OutOfRange",
            "conv3d: groups is 0, it must be at least 1",
        ),
        (
            refusal(X, W, None, Window { groups: 3, ..window() }),
            "Invalid",
            "conv3d: 4 input channels cannot be split into 3 groups",
        ),
        (
            refusal([1, 6, 5, 6, 7], W, None, Window { groups: 3, ..window() }),
            "Invalid",
            "conv3d: 8 output channels cannot be split into 3 groups",
        ),
        (
            refusal([1, 5, 5, 6, 7], W, None, window()),
            "Shape",
            "conv3d: the weight expects 4 channels per group, the input has 5 channels in 1 groups \
             (5 per group)",
        ),
        (
            refusal(X, W, None, Window { groups: 2, ..window() }),
            "Shape",
            "conv3d: the weight expects 4 channels per group, the input has 4 channels in 2 groups \
             (2 per group)",
        ),
        (
            refusal(X, W, Some(7), window()),
            "Shape",
            "conv3d: the bias has 7 elements, the weight has 8 output channels",
        ),
        (
            refusal(X, W, None, Window { stride: [0, 1, 1], ..window() }),
            "OutOfRange",
            "conv3d: the stride of the depth axis is 0, it must be at least 1",
        ),
        (
            refusal(X, W, None, Window { stride: [1, 0, 1], ..window() }),
            "OutOfRange",
            "conv3d: the stride of the height axis is 0, it must be at least 1",
        ),
        (
            refusal(X, W, None, Window { dilation: [1, 1, 0], ..window() }),
            "OutOfRange",
            "conv3d: the dilation of the width axis is 0, it must be at least 1",
        ),
        (
            refusal(X, [8, 4, 0, 3, 3], None, window()),
            "OutOfRange",
            "conv3d: the kernel of the depth axis is 0, it must be at least 1",
        ),
        (
            refusal([1, 4, 2, 6, 7], W, None, Window { dilation: [2, 1, 1], ..window() }),
            "Invalid",
            "conv3d: padded input depth 2 is smaller than the dilated kernel depth 5 \
             (kernel 3, dilation 2, padding 0+0)",
        ),
        (
            refusal([1, 4, 5, 1, 7], W, None, Window { padding: [(0, 0), (1, 0), (0, 0)], ..window() }),
            "Invalid",
            "conv3d: padded input height 2 is smaller than the dilated kernel height 3 \
             (kernel 3, dilation 1, padding 1+0)",
        ),
        (
            refusal([1, 4, 5, 6, 0], W, None, window()),
            "Invalid",
            "conv3d: padded input width 0 is smaller than the dilated kernel width 3 \
             (kernel 3, dilation 1, padding 0+0)",
        ),
        (
            refusal(X, W, None, Window { dilation: [usize::MAX, 1, 1], ..window() }),
            "Invalid",
            "conv3d: padded input depth 5 is smaller than the dilated kernel depth beyond 2^64 \
             (kernel 3, dilation 18446744073709551615, padding 0+0)",
        ),
        (
            refusal(
                [1, 4, 0, 6, 7],
                W,
                None,
                Window {
                    padding: [(2, 2), (0, 0), (0, 0)],
                    padding_mode: [PaddingMode::Replicate; 3],
                    ..window()
                },
            ),
            "Invalid",
            "conv3d: replicate padding of an input with depth 0 has nothing to repeat",
        ),
        (
            refusal(
                X,
                W,
                None,
                Window {
                    padding: [(9, 9), (0, X[3]), (0, 0)],
                    padding_mode: [PaddingMode::Zeros, PaddingMode::Reflect, PaddingMode::Zeros],
                    ..window()
                },
            ),
            "OutOfRange",
            "conv3d: reflect padding of (0, 6) must be below the input's height, which is 6",
        ),
        (
            refusal(
                X,
                W,
                None,
                Window {
                    padding: [(X[2] + 1, X[2]), (0, 0), (0, 0)],
                    padding_mode: [PaddingMode::Circular; 3],
                    ..window()
                },
            ),
            "OutOfRange",
            "conv3d: circular padding of (6, 5) must be at most the input's depth, which is 5",
        ),
        (
            refusal(X, W, None, Window { padding: [(1 << 62, 0), (0, 0), (0, 0)], ..window() }),
            "OutOfRange",
            "conv3d: depth padding 4611686018427387904 is larger than 2147483647",
        ),
        (
            refusal(X, W, None, Window { padding: [(0, 0), (i32::MAX as usize, 1), (0, 0)], ..window() }),
            "OutOfRange",
            "conv3d: padded input height 2147483654 (padding 2147483647+1) is larger than 2147483647",
        ),
        (
            refusal([1, 4, 5, 6, huge], W, None, window()),
            "OutOfRange",
            "conv3d: width input 1099511627776 is larger than 2147483647",
        ),
        (
            refusal(X, W, None, Window { stride: [huge, 1, 1], ..window() }),
            "OutOfRange",
            "conv3d: depth stride 1099511627776 is larger than 2147483647",
        ),
        (
            refusal([1 << 30, 4, 1 << 20, 1 << 20, 7], [8, 4, 1, 1, 1], None, window()),
            "TooLarge",
            "conv3d: the input [1073741824, 4, 1048576, 1048576, 7] has more elements than can be addressed",
        ),
        (
            refusal([1 << 30, 1, 1, 1, 1], [1 << 33, 1, 1, 1, 1], None, window()),
            "TooLarge",
            "conv3d: the output [1073741824, 8589934592, 1, 1, 1] has more elements than can be addressed",
        ),
    ];
    for (error, class, message) in rows {
        assert_eq!(error.message(), message);
        assert!(format!("{error:?}").starts_with(class), "{error:?} is not {class}");
        assert_eq!(error.to_string(), message, "Display is the sentence");
    }
}

#[test]
fn conv3d_plans_and_devices() {
    let limits = Limits::apple_m1();
    let ask = |window: Window, kernel: [usize; 3], pass: Pass, algorithm: Algorithm, limits: &Limits| {
        let [kd, kh, kw] = kernel;
        let group_channels = 4 / window.groups;
        let problem = Conv3dProblem::new(X, [8, group_channels, kd, kh, kw], None, window, FloatType::Bf16)
            .expect("a valid problem");
        plan(&problem, pass, algorithm, limits).expect_err("a refusal").to_string()
    };
    let f4 = Algorithm::Winograd(WinogradTile::F4x4);
    let rows = [
        (
            ask(window(), [1, 5, 3], Pass::Forward, f4, &limits),
            "conv3d: winograd_4x4 needs a 3x3 kernel in H and W, got 5x3",
        ),
        (
            ask(Window { stride: [1, 2, 1], ..window() }, [3, 3, 3], Pass::Forward, f4, &limits),
            "conv3d: winograd_4x4 needs stride 1 and dilation 1 in H and W, got stride 2x1, dilation 1x1",
        ),
        (
            ask(Window { dilation: [1, 1, 2], ..window() }, [3, 3, 3], Pass::Forward, f4, &limits),
            "conv3d: winograd_4x4 needs stride 1 and dilation 1 in H and W, got stride 1x1, dilation 1x2",
        ),
        (
            ask(Window { groups: 4, ..window() }, [3, 3, 3], Pass::Forward, f4, &limits),
            "conv3d: winograd_4x4 needs one group, got 4",
        ),
        (
            ask(Window { stride: [2, 1, 1], ..window() }, [3, 3, 3], Pass::InputGradient, f4, &limits),
            "conv3d: the input gradient by winograd_4x4 needs depth stride 1, got 2",
        ),
        (
            ask(window(), [3, 3, 3], Pass::WeightGradient, Algorithm::Winograd(WinogradTile::F6x6), &limits),
            "conv3d: winograd_6x6 has no weight gradient, its error would be too large",
        ),
        (
            ask(window(), [3, 3, 3], Pass::Forward, f4, &Limits { workspace_bytes: 4096, ..limits.clone() }),
            "conv3d: winograd_4x4 needs at least 29952 bytes of workspace here, the limit is 4096",
        ),
        (
            ask(
                window(),
                [3, 3, 3],
                Pass::Forward,
                Algorithm::Auto,
                &Limits { dtypes: vec![FloatType::F32, FloatType::F16], ..limits.clone() },
            ),
            "conv3d: this device cannot hold bf16 tensors, it serves f32, f16",
        ),
    ];
    for (message, expected) in rows {
        assert_eq!(message, expected);
    }
}
