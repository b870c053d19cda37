//! The model's figures for layers that are counted by hand.

use super::*;
use crate::conv3d::gemm::RegisterTile;
use crate::conv3d::problem::Window;
use crate::dtype::FloatType;

/// Four groups of 8 to 16 channels, stride 2: 1024 positions of 8192 inputs.
fn layer() -> Conv3dProblem {
    let window = Window { stride: [2; 3], padding: [(1, 1); 3], groups: 4, ..Window::default() };
    Conv3dProblem::new([1, 32, 8, 32, 32], [64, 8, 3, 3, 3], None, window, FloatType::F32).expect("valid")
}

/// A fourth of the rate of multiply-adds, for the products of all groups; dx counts every input.
#[test]
fn direct_counts_every_product_at_a_fourth_of_the_rate() {
    let limits = Limits::apple_m1();
    let seconds = |pass| seconds(&Plan::Direct, &layer(), pass, &limits) * limits.chip.fma;
    let products = |counts: [usize; 3]| (4 * 2 * 4 * counts.iter().product::<usize>()) as f64;
    for (pass, counts) in [
        (Pass::Forward, [1024, 16, 8 * 27]),
        (Pass::InputGradient, [8192, 8, 16 * 27]),
        (Pass::WeightGradient, [16, 8 * 27, 1024]),
    ] {
        let (got, want) = (seconds(pass), products(counts));
        assert!((got / want - 1.0).abs() < 1e-12, "{pass:?}: {got} {want}");
    }
}

/// Tiles of few columns reach 0.8 of the rate, in the forward pass and dx; the padding of tiles counts.
#[test]
fn tiles_count_with_their_padding() {
    let limits = Limits::apple_m1();
    let operations =
        |tile, pass| seconds(&Plan::Gemm(GemmTile::Fma(tile)), &layer(), pass, &limits) * limits.chip.fma;
    let near = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-12, "{got} {want}");
    // Of a group's columns 16 are not padding, of 224 K elements 216.
    near(operations(RegisterTile::M64N64, Pass::Forward), (2 * 4 * 1024 * 64 * 224) as f64);
    near(operations(RegisterTile::M128N32, Pass::Forward), (2 * 4 * 1024 * 32 * 224) as f64 / 0.8);
}

/// A layer without products takes the time of its bytes.
#[test]
fn bytes_are_the_least() {
    let limits = Limits::apple_m1();
    let window = Window::default();
    let layer = Conv3dProblem::new([1, 1, 8, 64, 64], [1, 1, 1, 1, 1], None, window, FloatType::F16);
    let seconds = seconds(&Plan::Direct, &layer.expect("valid"), Pass::Forward, &limits);
    let bytes = 2.0 * (2 * 8 * 64 * 64 + 1) as f64;
    assert!((seconds * limits.chip.bandwidth / bytes - 1.0).abs() < 1e-12);
}
