//! The model's figures for layers that are counted by hand.

use super::*;
use crate::chip::Chip;
use crate::conv3d::choose::plan;
use crate::conv3d::gemm::{MatrixTile, RegisterTile};
use crate::conv3d::plan::{Algorithm, PassProblem};
use crate::conv3d::problem::{PaddingMode, Window};
use crate::conv3d::winograd::WinogradTile;
use crate::dtype::FloatType;

/// Four groups of 8 to 16 channels, stride 2: 1024 positions of 8192 inputs.
fn layer() -> Conv3dProblem {
    let window = Window { stride: [2; 3], padding: [(1, 1); 3], groups: 4, ..Window::default() };
    Conv3dProblem::new([1, 32, 8, 32, 32], [64, 8, 3, 3, 3], None, window, FloatType::F32).expect("valid")
}

/// A device that is never idle: one threadgroup fills it.
fn busy(limits: Limits) -> Limits {
    Limits { chip: Chip { idle_waves: 0.0, ..limits.chip }, cubes_in_flight: 1, ..limits }
}

/// A fourth of the rate of multiply-adds, for the products of all groups; dx counts every input.
#[test]
fn direct_counts_every_product_at_a_fourth_of_the_rate() {
    let limits = Limits::apple_m1();
    let seconds = |pass| work_seconds(&Plan::Direct, &layer(), pass, &limits) * limits.chip.fma;
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
    let limits = busy(Limits::apple_m1());
    let operations = |tile, pass| {
        work_seconds(&Plan::Gemm(GemmTile::Fma(tile)), &layer(), pass, &limits) * limits.chip.fma
    };
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
    let seconds = work_seconds(&Plan::Direct, &layer.expect("valid"), Pass::Forward, &limits);
    let bytes = 2.0 * (2 * 8 * 64 * 64 + 1) as f64;
    assert!((seconds * limits.chip.bandwidth / bytes - 1.0).abs() < 1e-12);
}

/// Kernels that reach less of the same rate take longer for the same products.
#[test]
fn kinds_of_kernels_have_their_share_of_the_rate() {
    let wide = Window { padding: [(1, 1); 3], ..Window::default() };
    let layer = Conv3dProblem::new([1, 64, 16, 64, 64], [128, 64, 3, 3, 3], None, wide, FloatType::F16)
        .expect("valid");
    let rate = |plan: Plan, pass, limits: &Limits| {
        let tiles = plan.tiles(&layer, pass).expect("a GEMM").products();
        2.0 * tiles / work_seconds(&plan, &layer, pass, limits)
    };
    let near = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-12, "{got} {want}");
    let fma = |tile| Plan::Gemm(GemmTile::Fma(tile));
    let (forward, dw) = (Pass::Forward, Pass::WeightGradient);
    let [h200, m1] = [Limits::h200(), Limits::apple_m1()].map(busy);
    for (tile, shares, of_m1) in [
        (RegisterTile::M256N4, [0.2, 0.2], [0.8, 0.8]),
        (RegisterTile::M128N8, [0.35, 0.35], [0.8, 0.8]),
        (RegisterTile::M128N32, [0.8, 1.0], [0.8, 1.0]),
        (RegisterTile::M128N64, [1.0, 1.0], [1.0, 1.0]),
    ] {
        for (pass, place) in [(forward, 0), (dw, 1)] {
            near(rate(fma(tile), pass, &h200), shares[place] * h200.chip.fma);
            near(rate(fma(tile), pass, &m1), of_m1[place] * m1.chip.fma);
        }
    }
    let gathered = Plan::Gemm(GemmTile::Mma(MatrixTile::all(16)[0]));
    near(rate(gathered, forward, &h200), 0.35 * h200.chip.matrices);
    let window = crate::conv3d::window::kernels(&layer, forward, &h200).next().map(Plan::Window);
    near(rate(window.expect("serves"), forward, &h200), 0.675 * h200.chip.matrices);
}

/// Every kernel of a pass, one after the other.
#[test]
fn launches_are_counted() {
    let limits = Limits::apple_m1();
    let window = Window { padding: [(1, 1); 3], ..Window::default() };
    let large = |window| {
        let weight = [64, 64, 3, 3, 3];
        Conv3dProblem::new([1, 64, 16, 56, 56], weight, None, window, FloatType::F32).expect("valid")
    };
    let body = large(window);
    let strided = large(Window { stride: [2; 3], ..window });
    let replicate = large(Window { padding_mode: [PaddingMode::Replicate; 3], ..window });
    let winograd =
        |pass| plan(&body, pass, Algorithm::Winograd(WinogradTile::F4x4), &limits).expect("serves");
    let gathered = Plan::Gemm(GemmTile::Mma(MatrixTile::all(8)[0]));
    let (forward, dx, dw) = (Pass::Forward, Pass::InputGradient, Pass::WeightGradient);
    for (plan, problem, pass, count) in [
        (Plan::Empty, &body, forward, 0),
        (Plan::Direct, &body, forward, 1),
        // Partials and their sum.
        (Plan::Direct, &body, dw, 2),
        (gathered, &body, forward, 1),
        // Packed weights, for each of eight phases.
        (gathered, &body, dx, 2),
        (gathered, &strided, dx, 16),
        // And the fold.
        (gathered, &replicate, dx, 3),
        (gathered, &body, dw, 2),
        // Filters, input, product and output; dw: both transforms, the product and the taps.
        (winograd(forward), &body, forward, 4),
        (winograd(dw), &body, dw, 4),
    ] {
        assert_eq!(plan.launches(problem, pass, &limits), count, "{plan} {pass:?} {:?}", problem.window);
        let launched = *plan.launched(&PassProblem::of(problem, pass));
        let launches = plan.family().launches(&launched, pass, &limits) as f64;
        let work = work_seconds(&plan, &launched, pass, &limits);
        assert_eq!(seconds(&plan, &launched, pass, &limits), launches * limits.chip.launch + work);
    }
    // A workspace that holds half of V and M: filters, and two regions.
    let few = Limits { workspace_bytes: 20 << 20, ..limits };
    let winograd = plan(&body, forward, Algorithm::Winograd(WinogradTile::F4x4), &few).expect("serves");
    let regions = (winograd.launches(&body, forward, &few) - 1) / 3;
    assert!(regions > 1, "{winograd:?}");
    assert_eq!(winograd.launches(&body, forward, &few), 1 + 3 * regions);
}

/// A product on multiply-adds takes whole waves, and a fifth of one; on matrix units nothing is counted.
#[test]
fn small_grids_leave_the_device_idle() {
    let limits = Limits::apple_m1();
    assert_eq!((limits.cubes_in_flight, limits.chip.idle_waves), (64, 0.2));
    let factor = |plan: &Plan, problem: &Conv3dProblem, pass, limits: &Limits| {
        let seconds = |limits: &Limits| work_seconds(plan, problem, pass, limits);
        seconds(limits) / seconds(&busy(limits.clone()))
    };
    let near = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-12, "{got} {want}");
    let fma = |tile| Plan::Gemm(GemmTile::Fma(tile));
    let forward = Pass::Forward;
    // Sixteen tiles of each of four groups are a wave; half as many of 128x32 are half a wave.
    near(factor(&fma(RegisterTile::M64N64), &layer(), forward, &limits), 1.2);
    near(factor(&fma(RegisterTile::M128N32), &layer(), forward, &limits), 2.4);
    // Of a tile four times as large a fourth runs at once: 32 tiles are two waves.
    near(factor(&fma(RegisterTile::M128N128), &layer(), forward, &limits), 1.1);
    // Eight phases of 1024 rows each are eight launches.
    near(factor(&fma(RegisterTile::M64N64), &layer(), Pass::InputGradient, &limits), 1.2);
    let window = Window { padding: [(1, 1); 3], ..Window::default() };
    let body = Conv3dProblem::new([1, 64, 16, 64, 64], [64, 64, 3, 3, 3], None, window, FloatType::F32)
        .expect("valid");
    // 16x16 tiles of 16 frames are 64 rows of tiles, for each of 36 points: 36 waves.
    let winograd = |limits: &Limits| {
        plan(&body, forward, Algorithm::Winograd(WinogradTile::F4x4), limits).expect("serves")
    };
    let without = Limits { matrices: Vec::new(), ..limits.clone() };
    let cost = |idle: f64| {
        let Plan::Winograd(config) = winograd(&without) else { unreachable!("forced") };
        let cost = config.cost(&body, forward);
        cost.operations / limits.chip.fma * (36.0 + idle) / 36.0 + cost.bytes / limits.chip.bandwidth
    };
    near(factor(&winograd(&without), &body, forward, &without), cost(0.2) / cost(0.0));
    near(factor(&winograd(&limits), &body, forward, &limits), 1.0);
    let matrices = Plan::Gemm(GemmTile::Mma(MatrixTile::all(8)[0]));
    near(factor(&matrices, &layer(), forward, &limits), 1.0);
}
