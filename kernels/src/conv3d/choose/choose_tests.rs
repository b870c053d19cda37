//! Choices at their boundaries: empty results, pieces of streams, fallbacks, few channels.

use super::*;
use crate::conv3d::problem::{PaddingMode, Window};
use crate::conv3d::tiles::Tiles;
use crate::conv3d::winograd::WinogradTile;
use crate::dtype::FloatType;

const PASSES: [Pass; 3] = [Pass::Forward, Pass::InputGradient, Pass::WeightGradient];

fn layer(x: [usize; 5], o: usize, kernel: [usize; 3], window: Window) -> Conv3dProblem {
    let weight = [o, x[1] / window.groups, kernel[0], kernel[1], kernel[2]];
    Conv3dProblem::new(x, weight, None, window, FloatType::F32).expect("valid")
}

/// Nothing is launched for a result without elements; dw of no images is zero.
#[test]
fn empty_results_have_an_empty_plan() {
    let empty = |x, o| {
        let problem = layer(x, o, [1; 3], Window::default());
        PASSES.map(|pass| plan(&problem, pass, Algorithm::Auto, &Limits::apple_m1()) == Ok(Plan::Empty))
    };
    assert_eq!(empty([0, 2, 4, 4, 4], 3), [true, true, false]);
    assert_eq!(empty([1, 0, 4, 4, 4], 3), [false, true, true]);
    assert_eq!(empty([1, 2, 4, 4, 4], 0), [true, false, true]);
    assert_eq!(empty([1, 2, 4, 4, 4], 3), [false; 3]);
}

/// dx does not read the frames of a stream.
#[test]
fn the_input_gradient_of_a_stream_is_that_of_the_clip() {
    let clip = layer([1, 8, 5, 20, 20], 8, [3; 3], Window::default());
    for pass in PASSES {
        let [of_stream, of_clip] = [clip.for_streams(), clip].map(|problem| PassProblem::of(&problem, pass));
        assert_eq!(of_stream.asked == of_clip.asked, pass == Pass::InputGradient, "{pass:?}");
        assert_eq!(of_stream.launched.streaming, pass != Pass::InputGradient);
    }
}

/// A piece takes the tile of few outputs for its own frames, where a single window takes such a tile at all.
#[test]
fn pieces_of_a_stream_take_tiles_of_their_own() {
    let limits = Limits::apple_m1();
    let piece = |frames, plane| {
        let window = Window { padding: [(0, 0), (1, 1), (1, 1)], ..Window::default() };
        layer([1, 96, frames, plane, plane], 3, [3; 3], window).for_streams()
    };
    let chosen = |problem: &Conv3dProblem| plan(problem, Pass::Forward, Algorithm::Auto, &limits);
    let tile = |problem: &Conv3dProblem| few_outputs::cheapest_tile(problem, Pass::Forward, &limits);
    let [one, many] = [piece(3, 64), piece(18, 64)];
    assert_ne!(tile(&one), tile(&many));
    for problem in [one, many] {
        assert_eq!(chosen(&problem), Ok(Plan::FewOutputs(tile(&problem).expect("few outputs"))));
    }
    for frames in [3, 18] {
        assert_eq!(chosen(&piece(frames, 3)).expect("a plan").name(), "gemm_256x4x16", "{frames}");
    }
}

#[test]
fn the_gemm_to_fall_back_on_has_few_columns_or_small_tiles() {
    for (o, tile) in [(8, RegisterTile::M128N8), (9, RegisterTile::M64N64)] {
        let layer = layer([1, 4, 4, 9, 9], o, [3; 3], Window::default());
        assert_eq!(fallback_gemm(&layer, Pass::Forward), Plan::Gemm(GemmTile::Fma(tile)));
    }
}

/// Of a stem's dx both products count: those of all tiles.
#[test]
fn the_sub_pixel_product_is_compared_over_all_tiles() {
    let stem = |size| {
        let window = Window { stride: [2; 3], padding: [(3, 3); 3], ..Window::default() };
        layer([1, 3, 16, size, size], 64, [7; 3], window)
    };
    let tile = |size| subpixel_tile(&stem(size), Pass::InputGradient, &Limits::h200());
    assert_eq!([tile(56), tile(7)], [Some(SubpixelTile::M512N12), None]);
}

/// Fewer than 16 channels on either side are left to the other plans, however slow these are.
#[test]
fn winograd_needs_sixteen_channels() {
    let taken = |channels, o| {
        let window = Window { padding: [(1, 1); 3], ..Window::default() };
        let layer = layer([1, channels, 8, 56, 56], o, [3; 3], window);
        PASSES.map(|pass| winograd::winner(&layer, pass, &Plan::Direct, &Limits::apple_m1()).is_some())
    };
    assert_eq!(taken(16, 64), [true; 3]);
    assert_eq!([taken(15, 64), taken(64, 15)], [[false; 3]; 2]);
}

/// Where matrix units multiply half types alone, Winograd is for fp32, however fast its multiply-adds are.
#[test]
fn half_types_leave_winograd_to_devices_whose_matrix_units_take_fp32() {
    let halves = Limits { matrices: vec![(FloatType::F16, 16)], ..Limits::apple_m1() };
    let window = Window { padding: [(1, 1); 3], ..Window::default() };
    let body = layer([1, 64, 16, 56, 56], 64, [3; 3], window);
    for (dtype, limits, expected) in [
        (FloatType::F32, &halves, true),
        (FloatType::F16, &halves, false),
        (FloatType::F16, &Limits::apple_m1(), true),
    ] {
        let body = Conv3dProblem { dtype, ..body };
        let taken = winograd::winner(&body, Pass::Forward, &Plan::Direct, limits);
        assert_eq!(taken.is_some(), expected, "{}", dtype.name());
        let auto = plan(&body, Pass::Forward, Algorithm::Auto, limits).expect("a plan");
        assert_eq!(matches!(auto, Plan::Winograd(_)), expected, "{}", dtype.name());
    }
}

/// x, w and y once, as they are launched: dx under replicate padding is that of the padded input, except
/// under `Direct`.
#[test]
fn tiles_and_bytes_are_those_of_the_launched_problem() {
    let of = |padding_mode| {
        let window = Window { padding: [(0, 0), (0, 0), (1, 1)], padding_mode, ..Window::default() };
        Conv3dProblem { dtype: FloatType::F16, ..layer([1, 2, 4, 5, 6], 3, [1, 1, 3], window) }
    };
    let [zeros, replicate] = [of([PaddingMode::Zeros; 3]), of([PaddingMode::Replicate; 3])];
    let gemm = Plan::Gemm(GemmTile::Fma(RegisterTile::M64N64));
    let (x, padded, w, y) = (240, 320, 18, 360);
    for (problem, plan, pass, elements) in [
        (&zeros, &gemm, Pass::InputGradient, x + w + y),
        (&replicate, &gemm, Pass::Forward, x + w + y),
        (&replicate, &gemm, Pass::InputGradient, padded + w + y),
        (&replicate, &Plan::Direct, Pass::InputGradient, x + w + y),
    ] {
        assert_eq!(predicted_bytes(problem, pass, plan), f64::from(2 * elements), "{plan} {pass:?}");
    }
    // 120 rows, or 160 with the padding, of 9 K elements.
    for (problem, count) in [(&zeros, 2), (&replicate, 3)] {
        let tiles = Tiles { count, rows: 64, columns: 64, terms: 16 };
        assert_eq!(gemm.tiles(problem, Pass::InputGradient), Some(tiles));
    }
    assert_eq!(Plan::Direct.tiles(&zeros, Pass::Forward), None);
}

/// What the model counts at the rate of matrix units.
#[test]
fn plans_on_matrix_units() {
    let window = Window { padding: [(1, 1); 3], ..Window::default() };
    let layer = layer([1, 32, 8, 32, 32], 32, [3; 3], window);
    let winograd = |limits: &Limits| {
        Plan::Winograd(
            super::super::winograd::config(&layer, Pass::Forward, WinogradTile::F4x4, limits)
                .expect("serves"),
        )
    };
    let m1 = Limits::apple_m1();
    let mma = gathered::mma_tiles(&layer, Pass::Forward, &m1).map(|tile| Plan::Gemm(GemmTile::Mma(tile)));
    let windows = crate::conv3d::window::kernels(&layer, Pass::Forward, &m1).map(Plan::Window);
    let subpixel = SubpixelTile::with_fragment(16).map(Plan::Subpixel);
    let on: Vec<Plan> = mma.chain(windows).chain(subpixel).chain([winograd(&m1)]).collect();
    assert!(on.len() >= 5, "{on:?}");
    let off = [
        Plan::Direct,
        Plan::Gemm(GemmTile::Fma(RegisterTile::M128N128)),
        Plan::Subpixel(SubpixelTile::M512N12),
        winograd(&Limits { matrices: Vec::new(), ..m1 }),
    ];
    for (plans, expected) in [(&on[..], true), (&off[..], false)] {
        for plan in plans {
            assert_eq!(model::is_on_matrices(plan), expected, "{plan}");
        }
    }
}
