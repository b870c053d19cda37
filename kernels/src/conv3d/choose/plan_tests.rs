//! The automatic choice against the rules in `choose/`, layer by layer.

use super::*;
use crate::chip::Chip;
use crate::conv3d::problem::{PaddingMode, Window};
use crate::conv3d::window::WindowTile;
use crate::dtype::FloatType;

fn problem(x: [usize; 5], o: usize, kernel: [usize; 3], stride: usize, groups: usize) -> Conv3dProblem {
    let padding = kernel.map(|taps| (taps / 2, taps / 2));
    let window = Window { stride: [stride; 3], padding, groups, ..Window::default() };
    let weight = [o, x[1] / groups, kernel[0], kernel[1], kernel[2]];
    Conv3dProblem::new(x, weight, None, window, FloatType::F32).expect("a valid layer")
}

const PASSES: [Pass; 3] = [Pass::Forward, Pass::InputGradient, Pass::WeightGradient];

fn names(problem: &Conv3dProblem, limits: &Limits) -> [String; 3] {
    PASSES.map(|pass| plan(problem, pass, Algorithm::NoWinograd, limits).expect("a plan").name())
}

/// A device with many cores, matrices for f16 only.
fn wide() -> Limits {
    let matrices = vec![(FloatType::F16, 16)];
    Limits { cubes_in_flight: 528, chip: Chip::of("NVIDIA H200"), matrices, ..Limits::apple_m1() }
}

/// Whether `Auto` takes Winograd in each pass; otherwise it takes what `NoWinograd` takes.
fn winograd(problem: &Conv3dProblem, limits: &Limits) -> [bool; 3] {
    PASSES.map(|pass| {
        let ask = |algorithm| plan(problem, pass, algorithm, limits).expect("a plan");
        match ask(Algorithm::Auto) {
            Plan::Winograd(config) => {
                assert_eq!(config.tile, WinogradTile::F4x4);
                true
            }
            other => {
                assert_eq!(other, ask(Algorithm::NoWinograd));
                false
            }
        }
    })
}

/// The rule of `choose/winograd.rs`.
#[test]
fn winograd_is_taken_where_it_was_measured_to_be_faster() {
    let padded =
        |input: [usize; 3], c, o, kernel| problem([1, c, input[0], input[1], input[2]], o, kernel, 1, 1);
    let taken = [true; 3];
    // The weight gradient's GEMM tile is 64 x 64 channels.
    let not_dw = [true, true, false];
    for (layer, expected) in [
        (padded([41, 60, 104], 256, 256, [3; 3]), taken),
        (padded([16, 56, 56], 64, 128, [3; 3]), taken),
        (padded([8, 28, 28], 256, 256, [3; 3]), taken),
        (problem([2, 32, 128, 128, 128], 32, [3; 3], 1, 1), not_dw),
        (padded([8, 56, 56], 64, 64, [1, 3, 3]), taken),
        (padded([3, 60, 90], 16, 512, [3; 3]), taken),
        // Streaming video, padded by two cached frames; dw in 64x64 takes two waves.
        (
            Conv3dProblem {
                window: Window { padding: [(0, 0), (1, 1), (1, 1)], ..Window::default() },
                ..problem([1, 16, 5, 60, 90], 512, [3; 3], 1, 1)
            },
            taken,
        ),
        (padded([8, 7, 7], 192, 384, [3; 3]), [false; 3]),
        (padded([2, 7, 7], 512, 512, [3; 3]), [false; 3]),
        (padded([16, 112, 112], 3, 64, [3; 3]), [false; 3]),
        (padded([8, 56, 56], 64, 64, [3, 5, 3]), [false; 3]),
        (problem([1, 64, 16, 56, 56], 128, [3; 3], 2, 1), [false; 3]),
    ] {
        assert_eq!(winograd(&layer, &wide()), expected, "{layer:?}");
        // Matrix units are faster in the types they serve.
        let half = Conv3dProblem { dtype: FloatType::F16, ..layer };
        assert_eq!(winograd(&half, &wide()), [false; 3], "{half:?}");
    }
}

/// On Apple both sides run on matrix units at one rate: large sums are worth Winograd's bytes in every type,
/// in F(6x6) where 16 bits hide its error.
#[test]
fn apple_takes_winograd_by_operations_and_bytes() {
    let body = |input: [usize; 3], c, o, dtype| Conv3dProblem {
        dtype,
        ..problem([1, c, input[0], input[1], input[2]], o, [3; 3], 1, 1)
    };
    let f32 = ["winograd_4x4_matrices", "winograd_4x4_matrices", "winograd_4x4_matrices"];
    let rounded = ["winograd_6x6_matrices", "winograd_6x6_matrices", "winograd_4x4_matrices"];
    for chip in ["Apple M1", "Apple M1 Max", "Apple M3 Max", "Apple M4"] {
        let limits = Limits::apple(chip);
        let auto = |layer: &Conv3dProblem| {
            PASSES.map(|pass| plan(layer, pass, Algorithm::Auto, &limits).expect("a plan"))
        };
        for layer in [([41, 60, 104], 256, 256), ([32, 56, 56], 64, 192), ([16, 56, 56], 64, 128)] {
            for (dtype, expected) in
                [(FloatType::F32, f32), (FloatType::F16, rounded), (FloatType::Bf16, rounded)]
            {
                let (input, c, o) = layer;
                let problem = body(input, c, o, dtype);
                let plans = auto(&problem);
                assert_eq!(plans.map(|plan| plan.name()), expected, "{chip} {layer:?} {}", dtype.name());
                for (pass, taken) in PASSES.into_iter().zip(auto(&problem)) {
                    let other = plan(&problem, pass, Algorithm::NoWinograd, &limits).expect("a plan");
                    let seconds = |plan| predicted_seconds(&problem, pass, plan, &limits);
                    assert!(seconds(&taken) < seconds(&other), "{chip} {layer:?} {}", pass.name());
                }
            }
        }
        for small in [body([2, 7, 7], 512, 512, FloatType::F32), body([16, 112, 112], 3, 64, FloatType::F16)]
        {
            assert!(auto(&small).iter().all(|plan| !matches!(plan, Plan::Winograd(_))), "{chip} {small:?}");
        }
    }
    // F(6x6)'s filters alone take 201 MB there.
    let wide = body([41, 120, 208], 512, 512, FloatType::Bf16);
    let name =
        |chip| plan(&wide, Pass::Forward, Algorithm::Auto, &Limits::apple(chip)).expect("a plan").name();
    assert_eq!(name("Apple M3 Max"), "winograd_6x6_matrices");
}

/// 1024 to 1024 channels, 4x10x10: the filters of F(4x4) exceed the workspace, matrix units split K where
/// tiles are few.
#[test]
fn deep_layers_with_small_frames_have_their_own_plans() {
    let window = Window::default();
    let layer = Conv3dProblem::new([1, 1024, 4, 10, 10], [1024, 1024, 3, 3, 3], None, window, FloatType::F32)
        .expect("a valid layer");
    let auto =
        |layer: &Conv3dProblem, pass| plan(layer, pass, Algorithm::Auto, &wide()).expect("a plan").name();
    let names = PASSES.map(|pass| auto(&layer, pass));
    assert_eq!(names, ["gemm_64x64x16", "winograd_2x2", "gemm_128x64x16"]);
    let half = Conv3dProblem { dtype: FloatType::F16, ..layer };
    let names = PASSES.map(|pass| auto(&half, pass));
    assert_eq!(names, ["matrix_gemm_128x128x32", "window_gemm_128x128", "matrix_gemm_128x128x32"]);
    let tile = WindowTile::all(16)[0];
    // 2 frames of 8x8 by 8 tiles of channels, in enough split-K slices for half of the threadgroups in
    // flight.
    assert_eq!(window::threadgroups(&half, Pass::Forward, &tile, &wide()), Some(2 * 8 * 16));
    let packed = window::packed_bytes(&half, Pass::Forward, &tile, &wide());
    let few = Limits { workspace_bytes: packed + 4 * (1024 * 128 * 3), ..wide() };
    assert_eq!(window::threadgroups(&half, Pass::Forward, &tile, &few), Some(2 * 8 * 3), "three slices fit");
}

/// Split-K evens out a last wave that is mostly empty.
#[test]
fn split_k_evens_the_waves_of_threadgroups() {
    let tile = WindowTile::all(16)[0];
    let threadgroups = |x, o, padding| {
        let window = Window { padding, ..Window::default() };
        let layer = Conv3dProblem { window, dtype: FloatType::F16, ..problem(x, o, [3; 3], 1, 1) };
        let of_pass = |pass| window::threadgroups(&layer, pass, &tile, &wide()).unwrap();
        [of_pass(Pass::Forward), of_pass(Pass::InputGradient)]
    };
    let no_depth = [(0, 0), (1, 1), (1, 1)];
    // dx has frames with one, two and three depth taps, whose threadgroups together fill the waves.
    assert_eq!(threadgroups([1, 384, 3, 60, 104], 384, no_depth), [3 * 156, 3 * 156]);
    assert_eq!(threadgroups([1, 512, 7, 34, 34], 512, [(0, 0); 3]), [4 * 180, 280]);
    assert_eq!(threadgroups([1, 256, 8, 28, 28], 256, [(1, 1); 3]), [2 * 112; 2]);
    // Many waves already, or a sum so short that its partials would cost more.
    assert_eq!(threadgroups([1, 64, 16, 56, 56], 128, [(1, 1); 3]), [416, 416]);
}

#[test]
fn the_choice_follows_the_table() {
    let body = problem([1, 64, 16, 56, 56], 128, [3; 3], 1, 1);
    assert_eq!(names(&body, &wide()), ["gemm_128x128x16", "gemm_128x64x16", "gemm_128x64x16"]);
    let stem = problem([1, 3, 64, 224, 224], 64, [7; 3], 2, 1);
    assert_eq!(names(&stem, &wide()), ["gemm_128x64x16", "subpixel_512x12", "gemm_128x64x16"]);
    let deep = problem([1, 512, 2, 7, 7], 512, [3; 3], 1, 1);
    assert_eq!(names(&deep, &wide()), ["gemm_64x64x16", "gemm_64x64x16", "gemm_128x64x16"]);
    let few_columns = problem([1, 3, 8, 112, 112], 64, [1, 7, 7], 1, 1);
    assert_eq!(names(&few_columns, &wide())[2], "gemm_64x64x16");
    let grouped = problem([2, 128, 16, 32, 32], 128, [3; 3], 1, 4);
    assert_eq!(names(&grouped, &wide()), ["gemm_128x32x16"; 3]);
    let depthwise = problem([4, 108, 16, 56, 56], 108, [3; 3], 1, 108);
    assert_eq!(names(&depthwise, &wide()), ["depthwise"; 3]);
    let long_kernel = problem([1, 8, 4, 4, 64], 8, [1, 1, 11], 1, 1);
    assert_eq!(names(&long_kernel, &wide()), ["gemm_128x8x16"; 3]);
}

#[test]
fn matrix_units_are_used_where_the_type_has_them() {
    let half = Conv3dProblem { dtype: FloatType::F16, ..problem([1, 64, 16, 56, 56], 128, [3; 3], 1, 1) };
    assert_eq!(names(&half, &wide()), ["window_gemm_128x128", "window_gemm_256x64", "window_weight_64x32x9"]);
    let few_channels =
        Conv3dProblem { dtype: FloatType::F16, ..problem([2, 32, 128, 128, 128], 32, [3; 3], 1, 1) };
    assert_eq!(
        names(&few_channels, &wide()),
        ["window_gemm_256x32", "window_gemm_256x32", "window_weight_64x32x9"]
    );
    // Frames of a few chunks share a window as well; three input channels of a segment's 32 do not.
    for (x, name) in
        [([1, 256, 32, 14, 14], "window_weight_64x32x9"), ([1, 3, 16, 112, 112], "matrix_gemm_128x64x32")]
    {
        let layer = Conv3dProblem { dtype: FloatType::F16, ..problem(x, 64, [3; 3], 1, 1) };
        assert_eq!(names(&layer, &wide())[2], name, "{layer:?}");
    }
    // One tap along H and W: vector loads where an H x W slice is contiguous and a whole number of vectors,
    // else gathered. 144 columns leave less of a 64-wide tile idle than of a 128-wide one.
    let temporal = |size: usize| {
        let layer = problem([1, 144, 16, size, size], 64, [3, 1, 1], 1, 1);
        names(&Conv3dProblem { dtype: FloatType::F16, ..layer }, &wide())
    };
    assert_eq!(temporal(56)[..2], ["window_gemm_256x64"; 2]);
    assert_eq!(temporal(55)[..2], ["matrix_gemm_128x64x32"; 2]);
    let streamed = Conv3dProblem {
        dtype: FloatType::F16,
        window: Window::default(),
        ..problem([1, 384, 3, 60, 104], 768, [3, 1, 1], 1, 1)
    };
    assert_eq!(names(&streamed, &wide())[..2], ["window_gemm_128x128"; 2]);
    // Frames or channels that would fill too little of a tile, and a stride.
    let half = |x, kernel, stride| {
        let layer = problem(x, 256, kernel, stride, 1);
        names(&Conv3dProblem { dtype: FloatType::F16, ..layer }, &wide())[0].clone()
    };
    assert_eq!(half([8, 256, 16, 7, 7], [3; 3], 1), "matrix_gemm_128x128x32");
    assert_eq!(half([1, 3, 16, 112, 112], [3; 3], 1), "matrix_gemm_128x128x32");
    assert_eq!(half([1, 256, 16, 56, 56], [3; 3], 2), "matrix_gemm_128x128x32");
    let half = Conv3dProblem { dtype: FloatType::F16, ..problem([1, 64, 16, 56, 56], 128, [3; 3], 1, 1) };
    // Apple's simdgroups multiply bf16 as fp32, since the accumulators are fp32.
    for dtype in FloatType::ALL {
        let problem = Conv3dProblem { dtype, ..half };
        assert_eq!(names(&problem, &Limits::apple_m1())[0], "window_gemm_64x64", "{}", dtype.name());
    }
}

/// The input gradients of strided windows, whose stride phases are one launch.
#[test]
fn strided_gradients_share_windows_on_matrix_units() {
    let input = |x, o, kernel, stride: [usize; 3], padding| {
        let window = Window { stride, padding, ..Window::default() };
        let layer = Conv3dProblem { window, dtype: FloatType::F16, ..problem(x, o, kernel, 1, 1) };
        names(&layer, &wide())[1].clone()
    };
    let all = [(1, 1); 3];
    let no_depth = [(0, 0), (1, 1), (1, 1)];
    assert_eq!(input([8, 64, 16, 56, 56], 128, [3; 3], [2; 3], all), "window_gemm_256x64");
    assert_eq!(input([2, 32, 128, 128, 128], 64, [3; 3], [2; 3], all), "window_gemm_256x32");
    assert_eq!(input([1, 64, 16, 56, 56], 230, [1, 3, 3], [1, 2, 2], no_depth), "window_gemm_256x64");
    assert_eq!(input([1, 384, 5, 60, 104], 384, [3, 1, 1], [2, 1, 1], [(0, 0); 3]), "window_gemm_128x128");
    // Declined: windows that tile the input (one GEMM); stride and dilation 2, which leave elements without
    // taps.
    assert_eq!(input([14, 32, 16, 56, 56], 256, [2; 3], [2; 3], [(0, 0); 3]), "matrix_gemm_128x128x32");
    let dilated = Window { stride: [2; 3], dilation: [2; 3], padding: all, ..Window::default() };
    let layer = problem([8, 64, 16, 56, 56], 128, [3; 3], 1, 1);
    let dilated = Conv3dProblem { window: dilated, dtype: FloatType::F16, ..layer };
    assert_eq!(names(&dilated, &wide())[1], "matrix_gemm_128x64x32");
    // The gathered GEMM has a fourth of the taps for each of four phases.
    let layer = problem([1, 256, 3, 2, 41], 32, [1, 7, 7], 2, 1);
    assert_eq!(names(&layer, &Limits::apple_m1())[1], "matrix_gemm_64x64x16");
}

#[test]
fn counts_beyond_31_bits_go_to_the_plans_that_count_further() {
    let positions = problem([1, 8, 2048, 2048, 1024], 8, [1; 3], 1, 1);
    assert_eq!(names(&positions, &wide()), ["direct"; 3]);
    let depthwise = problem([1, 8, 512, 1024, 1024], 8, [1; 3], 1, 8);
    assert!(names(&depthwise, &wide())[0].starts_with("few_outputs_"));
}

#[test]
fn a_stride_of_thousands_of_phases_is_not_launched_phase_by_phase() {
    let problem = problem([1, 16, 64, 64, 64], 16, [8; 3], 16, 1);
    let [forward, input, _] = names(&problem, &wide());
    assert_eq!([forward.as_str(), input.as_str()], ["gemm_128x32x16", "direct"]);
    // Forced, it is an error, and a gradient is computed by the automatic choice.
    let error =
        plan(&problem, Pass::InputGradient, Algorithm::ImplicitGemm, &wide()).expect_err("4096 phases");
    assert!(error.message().contains("few phases of a stride"), "{error}");
    let gradient = gradient_plan(&problem, Pass::InputGradient, Algorithm::ImplicitGemm, &wide());
    assert_eq!(gradient, Ok(Plan::Direct));
}

/// Windows with more taps than a mask has bits take the tiles of other windows, on matrix units as well.
#[test]
fn many_taps_are_gathered_by_coordinates() {
    let mut layer = problem([1, 64, 16, 56, 56], 128, [1, 13, 13], 1, 1);
    assert_eq!(names(&layer, &wide()), ["gemm_128x128x16", "gemm_128x64x16", "gemm_128x64x16"]);
    layer.dtype = FloatType::F16;
    assert_eq!(
        names(&layer, &wide())[..],
        ["matrix_gemm_128x128x32", "matrix_gemm_128x64x32", "matrix_gemm_128x128x32"]
    );
    for pass in PASSES {
        let forced = plan(&layer, pass, Algorithm::ImplicitGemm, &wide()).expect("a plan");
        assert!(matches!(forced, Plan::Gemm(GemmTile::Mma(_))), "{forced}");
        // Little shared memory: no matrix units, then no GEMM.
        let named = |shared_bytes| names(&layer, &Limits { shared_bytes, ..wide() });
        assert_eq!(named(16 << 10), ["gemm_64x64x16"; 3]);
        assert_eq!(named(8 << 10), ["direct"; 3]);
    }
}

/// Few result channels, stride 1.
#[test]
fn few_outputs_have_their_own_kernel() {
    let stem = problem([1, 3, 16, 112, 112], 64, [3; 3], 1, 1);
    let video = Conv3dProblem {
        window: Window { padding: [(0, 0), (1, 1), (1, 1)], ..Window::default() },
        ..problem([1, 96, 6, 480, 832], 3, [3; 3], 1, 1)
    };
    for dtype in FloatType::ALL {
        let video = Conv3dProblem { dtype, ..video };
        // Off NVIDIA fewer accumulators a thread: the same tile by twice the threads, one output of dw.
        let [forward, _, weight] = names(&video, &wide());
        assert_eq!(forward, "few_outputs_4x16x32_256", "{}", dtype.name());
        assert!(weight.starts_with("few_outputs_") && weight.ends_with("_split"), "{weight}");
        let [forward, _, weight] = names(&video, &Limits { unroll: true, ..wide() });
        assert_eq!(
            [forward.as_str(), weight.as_str()],
            ["few_outputs_4x16x32_128_ahead", "few_outputs_4x8x32_128"]
        );
        let [_, input, _] = names(&Conv3dProblem { dtype, ..stem }, &wide());
        assert!(input.starts_with("few_outputs_"), "{input}");
    }
    // Two groups of four channels.
    assert!(names(&problem([1, 8, 16, 64, 64], 64, [3; 3], 1, 2), &wide())[1].starts_with("few_outputs_"));
    // One channel per group, several results.
    assert!(names(&problem([1, 8, 16, 64, 64], 24, [3; 3], 1, 8), &wide())[0].starts_with("few_outputs_"));
    // More results, a stride, mostly empty tiles.
    assert_eq!(names(&problem([1, 96, 6, 64, 64], 5, [3; 3], 1, 1), &wide())[0], "gemm_128x8x16");
    assert_eq!(names(&problem([1, 96, 6, 64, 64], 3, [3; 3], 2, 1), &wide())[0], "gemm_256x4x16");
    assert_eq!(names(&problem([1, 96, 1, 3, 3], 3, [3; 3], 1, 1), &wide())[0], "gemm_256x4x16");
}

/// The input gradient of few channels with a stride.
#[test]
fn strided_few_channels_have_their_own_kernel() {
    let input = |problem: &Conv3dProblem| names(problem, &wide())[1].clone();
    assert_eq!(input(&problem([1, 3, 64, 224, 224], 64, [3; 3], 2, 1)), "subpixel_512x12");
    // Matrix units, except for few columns.
    let half = Conv3dProblem { dtype: FloatType::F16, ..problem([1, 3, 64, 224, 224], 64, [7; 3], 2, 1) };
    assert_eq!(input(&half), "subpixel_matrix_128x16");
    // Not on Apple's fragments, which were not measured.
    assert_eq!(names(&half, &Limits::apple_m1())[1], "subpixel_512x12");
    // A device that ends loops early.
    let short = Limits { loop_iterations: Some(2_000), ..wide() };
    assert_eq!(names(&problem([1, 3, 64, 224, 224], 64, [3; 3], 2, 1), &short)[1], "gemm_256x4x16");
    // More channels; frames of which a tile computes mostly the halo.
    assert_eq!(input(&problem([1, 8, 16, 112, 112], 64, [3; 3], 2, 1)), "gemm_128x8x16");
    assert_eq!(input(&problem([1, 3, 8, 7, 7], 64, [3; 3], 2, 1)), "gemm_256x4x16");
    assert_eq!(input(&problem([1, 1, 9, 13, 3], 32, [1; 3], 3, 1)), "gemm_256x4x16");
    // Windows that tile the input, and more taps than fit.
    let patches = Conv3dProblem {
        window: Window { stride: [2; 3], ..Window::default() },
        ..problem([1, 3, 16, 64, 64], 64, [2; 3], 1, 1)
    };
    assert_eq!(input(&patches), "gemm_128x32x16");
    assert_eq!(input(&problem([1, 3, 4, 64, 64], 8, [1, 17, 17], 2, 1)), "gemm_256x4x16");
}

#[test]
fn streams_take_the_kernels_of_joined_frames_for_dw() {
    for (o, kernel) in [(96, "window_weight_"), (3, "few_outputs_")] {
        let layer = Conv3dProblem { dtype: FloatType::F16, ..problem([1, 96, 6, 480, 832], o, [3; 3], 1, 1) };
        for limits in [Limits::apple("Apple M4 Max"), Limits::h200()] {
            let [joined, stream] = [layer, layer.for_streams()].map(|of| names(&of, &limits)[2].clone());
            assert!(joined.starts_with(kernel) && joined == stream, "{joined} {stream}");
        }
    }
}

/// A stream takes Winograd where one window along depth is faster by it: not for small planes.
#[test]
fn streams_take_winograd_for_any_number_of_frames() {
    let tile = |limits: &Limits, (frames, front): (usize, usize), plane: usize, modes| {
        let window =
            Window { padding: [(front, 0), (1, 1), (1, 1)], padding_mode: modes, ..Window::default() };
        let problem = Conv3dProblem::new(
            [1, 128, frames, plane, plane],
            [128, 128, 3, 3, 3],
            None,
            window,
            FloatType::F32,
        );
        match plan(&problem.expect("sound shapes").for_streams(), Pass::Forward, Algorithm::Auto, limits) {
            Ok(Plan::Winograd(config)) => Some(config.tile),
            Ok(_) => None,
            Err(error) => panic!("{error}"),
        }
    };
    let devices = [Limits::apple("Apple M1"), Limits::apple("Apple M4 Max"), Limits::h200()];
    let first = [PaddingMode::Zeros, PaddingMode::Replicate]
        .map(|mode| [mode, PaddingMode::Zeros, PaddingMode::Zeros]);
    for limits in devices.into_iter().chain([Limits::named("llvmpipe")]) {
        for modes in first {
            assert_eq!(tile(&limits, (3, 0), 16, modes), None);
            for frames in [(3, 0), (4, 0), (18, 0), (1, 2), (5, 2)] {
                assert_eq!(
                    tile(&limits, frames, 240, modes),
                    Some(WinogradTile::F4x4),
                    "{frames:?} {modes:?}"
                );
            }
        }
    }
}
