//! The rules of `gemm.rs` on both sides of their boundaries, worked out by hand.

use super::*;
use crate::chip::Chip;
use crate::conv3d::problem::Window;
use crate::dtype::FloatType;

fn layer(x: [usize; 5], o: usize, kernel: [usize; 3], window: Window) -> Conv3dProblem {
    let [kd, kh, kw] = kernel;
    Conv3dProblem::new(x, [o, x[1] / window.groups, kd, kh, kw], None, window, FloatType::F16).expect("valid")
}

/// `rows` positions of one tap.
fn pointwise(rows: usize, channels: usize, o: usize, groups: usize) -> Conv3dProblem {
    layer([1, channels, 1, 1, rows], o, [1; 3], Window { groups, ..Window::default() })
}

/// One, three and three taps, padded, of height and width strides of 2.
fn strided(x: [usize; 5], o: usize) -> Conv3dProblem {
    let window = Window { stride: [1, 2, 2], padding: [(0, 0), (1, 1), (1, 1)], ..Window::default() };
    layer(x, o, [1, 3, 3], window)
}

/// 528 threadgroups in flight, fragments of 16.
fn wide() -> Limits {
    let matrices = vec![(FloatType::F16, 16)];
    Limits { cubes_in_flight: 528, chip: Chip::of("NVIDIA H200"), matrices, ..Limits::apple_m1() }
}

/// Half a wave of threadgroups of 128 threads is a fourth of what is in flight: 16 tiles of all groups, in
/// each phase of a stride.
#[test]
fn tiles_of_multiply_adds_fill_half_a_wave() {
    let limits = Limits { cubes_in_flight: 64, ..Limits::apple_m1() };
    let forward = |rows, o, groups| fma_tile(&pointwise(rows, groups, o, groups), Pass::Forward, &limits);
    assert_eq!(forward(128 * 15, 64, 1), RegisterTile::M64N64);
    assert_eq!(forward(128 * 15 + 1, 64, 1), RegisterTile::M128N64);
    assert_eq!(forward(128 * 7, 128, 2), RegisterTile::M64N64);
    assert_eq!(forward(128 * 8, 128, 2), RegisterTile::M128N64);
    assert_eq!(forward(128 * 5, 192, 1), RegisterTile::M64N64);
    assert_eq!(forward(128 * 6, 192, 1), RegisterTile::M128N64);
    assert_eq!(forward(128 * 8, 128, 1), RegisterTile::M128N64, "eight tiles of 128x128");
    assert_eq!(forward(128 * 16, 128, 1), RegisterTile::M128N128);
    // Four phases of 128 rows.
    for (height, tile) in [(30, RegisterTile::M64N64), (32, RegisterTile::M128N64)] {
        let layer = strided([1, 64, 16, height, 16], 1);
        assert_eq!(launches(&layer, Pass::InputGradient), (4, 0.25));
        assert_eq!(fma_tile(&layer, Pass::InputGradient, &limits), tile);
    }
}

/// From 512 rows on, channels times taps, the weight gradient has the larger tile.
#[test]
fn weight_gradients_with_many_rows_take_the_larger_tile() {
    for (channels, tile) in [(63, RegisterTile::M64N64), (64, RegisterTile::M128N64)] {
        let layer = layer([1, channels, 9, 9, 9], 64, [2; 3], Window::default());
        assert_eq!(fma_tile(&layer, Pass::WeightGradient, &Limits::apple_m1()), tile);
    }
}

/// Wide tiles of multiply-adds are listed where matrix units do not serve or do not fit, narrow ones always,
/// none for more positions than they count.
#[test]
fn wide_tiles_of_multiply_adds_stand_in_for_matrix_units() {
    let listed = |problem: &Conv3dProblem, limits: &Limits| {
        PASSES.map(|pass| fma_tiles(&PassProblem::of(problem, pass), limits))
    };
    let body = layer([1, 64, 4, 16, 16], 64, [1, 3, 3], Window::default());
    let narrow = vec![RegisterTile::M128N8, RegisterTile::M256N4];
    let all = RegisterTile::ALL.to_vec();
    assert_eq!(listed(&body, &wide()), [(); 3].map(|()| narrow.clone()));
    let without = Limits { matrices: Vec::new(), ..wide() };
    assert_eq!(listed(&body, &without), [(); 3].map(|()| all.clone()));
    // The larger tile on matrix units takes 31 KiB, the smaller one 22 KiB.
    for shared_bytes in [24 << 10, 16 << 10] {
        assert_eq!(listed(&body, &Limits { shared_bytes, ..wide() }), [(); 3].map(|()| all.clone()));
    }
    let large = pointwise(i32::MAX as usize, 1, 8, 1);
    for limits in [wide(), without] {
        assert_eq!(listed(&large, &limits), [(); 3].map(|()| Vec::new()));
    }
}

const PASSES: [Pass; 3] = [Pass::Forward, Pass::InputGradient, Pass::WeightGradient];

/// Eight columns stay on multiply-adds where no window is cheaper, timed or not; nine do not.
#[test]
fn few_columns_stay_on_multiply_adds() {
    for frames in [4, 400] {
        let name = |o| choose(&strided([1, 64, frames, 32, 32], o), Pass::Forward, &wide()).name();
        assert_eq!(name(8), "gemm_128x8x16", "{frames}");
        assert!(name(9).starts_with("matrix_gemm_"), "{frames}");
    }
}

/// At most half as many tiles as threadgroups in flight, in one launch, on fragments of 16; weight gradients
/// always.
#[test]
fn times_decide_where_split_k_may() {
    let timed =
        |problem: &Conv3dProblem, pass, fragment| is_timed(problem, pass, MatrixTile::all(fragment), &wide());
    for (rows, o, groups, few) in [
        (128 * 132, 256, 1, true),
        (128 * 132 + 1, 256, 1, false),
        (128 * 66, 512, 4, true),
        (128 * 66 + 1, 512, 4, false),
    ] {
        let layer = pointwise(rows, groups, o, groups);
        assert_eq!(timed(&layer, Pass::Forward, 16), few, "{rows} {o} {groups}");
        assert!(timed(&layer, Pass::WeightGradient, 16));
        for pass in PASSES {
            assert!(!timed(&layer, pass, 8) && !timed(&layer, pass, 0));
        }
    }
    let small = strided([1, 64, 1, 16, 16], 64);
    assert!(timed(&small, Pass::Forward, 16));
    assert!(!timed(&small, Pass::InputGradient, 16), "four launches");
    let patches = layer([1, 64, 1, 16, 16], 64, [1, 2, 2], Window { stride: [1, 2, 2], ..Window::default() });
    assert!(is_patches(&patches, Pass::InputGradient) && !timed(&patches, Pass::InputGradient, 16));
}

/// The root of how many times the threadgroups would have to be there to fill half the device.
#[test]
fn windows_pay_for_an_idle_device() {
    let tile = WindowTile::all(16)[0];
    let layer = layer([1, 1024, 4, 10, 10], 1024, [3; 3], Window::default());
    let packed = window::packed_bytes(&layer, Pass::Forward, &tile, &wide());
    for (slices, penalty) in [(1, 16.5f64), (3, 5.5), (15, 1.1)] {
        let limits = Limits { workspace_bytes: packed + 4 * (1024 * 128 * slices), ..wide() };
        let got = occupancy_penalty(&layer, Pass::Forward, &tile, &limits);
        assert!((got - penalty.sqrt()).abs() < 1e-12, "{slices} slices of 16 threadgroups: {got}");
    }
    let few = Limits { cubes_in_flight: 16, ..wide() };
    assert_eq!(occupancy_penalty(&layer, Pass::Forward, &tile, &few), 1.0);
}

/// Products with padded columns, times what narrow tiles, groups and several launches cost.
#[test]
fn gathered_products_cost_by_tile_and_launches() {
    let [large, small] = [MatrixTile::all(16)[0], MatrixTile::all(16)[1]];
    let near = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-12, "{got} {want}");
    // 200 columns of each of two groups, 9 taps of 3 channels.
    let window = Window { groups: 2, ..Window::default() };
    let body = layer([1, 6, 4, 12, 12], 400, [1, 3, 3], window);
    let products = |columns: usize| (2 * 400 * columns * 3 * 9) as f64;
    near(gathered_cost(&body, Pass::Forward, &large), GATHERED_COST * products(256));
    near(gathered_cost(&body, Pass::Forward, &small), GATHERED_COST * WIDE_GAIN * products(256));
    near(gathered_cost(&body, Pass::Forward, &MatrixTile::all(8)[0]), GATHERED_COST * products(256));
    // Four launches with a fourth of the taps each.
    let stride = strided([1, 64, 4, 16, 16], 32);
    let products = (4 * 16 * 16 * 128 * 32 * 9) as f64;
    near(gathered_cost(&stride, Pass::InputGradient, &large), GATHERED_COST * LAUNCHES_COST * products / 4.0);
}

/// At least eight chunks of 32 positions in a frame, and less than one and a half times the products of the
/// gathered GEMM.
#[test]
fn windows_of_the_weight_gradient_pay() {
    let (tile, gathered) = (WindowWeightTile::all(16)[0], MatrixTile::all(16)[0]);
    let pays = |channels, o, height, width| {
        let window = Window { padding: [(0, 0), (1, 1), (1, 1)], ..Window::default() };
        window_weight_pays(&layer([1, channels, 4, height, width], o, [1, 3, 3], window), &tile, &gathered)
    };
    assert!(pays(128, 128, 16, 16), "256 positions");
    assert!(!pays(128, 128, 15, 17), "255 positions");
    // With a halo of two the rows have 7/5 and 6/4 of the elements.
    assert!(pays(128, 128, 64, 5));
    assert!(!pays(128, 128, 64, 4));
    assert!(!pays(3, 128, 64, 64), "three channels of 32");
}

/// Layers whose plan turns on one term: an idle device, equal costs, the time of a narrow tile, packing. The
/// plan is what the choice gives today.
#[test]
fn layers_at_the_edge_of_a_rule() {
    let [m1, m3, h200] = [Limits::apple_m1(), Limits::apple("Apple M3 Max"), Limits::h200()];
    let padded = |kernel: [usize; 3], stride: usize| {
        let [_, h, w] = kernel;
        let padding = [(0, 0), (h / 2, h / 2), (w / 2, w / 2)];
        Window { stride: [1, stride, stride], padding, ..Window::default() }
    };
    let (forward, dx) = (Pass::Forward, Pass::InputGradient);
    for (limits, pass, x, o, kernel, stride, plan) in [
        // By costs the window is cheaper, but its threadgroups fill little of the device.
        (&m3, dx, [1, 256, 3, 7, 10], 768, [3, 5, 5], 2, "matrix_gemm_64x64x16"),
        // Both cost the same to the last bit.
        (&m1, forward, [1, 512, 40, 16, 16], 768, [1, 3, 3], 1, "matrix_gemm_64x64x16"),
        (&h200, forward, [1, 192, 16, 28, 4], 192, [3, 5, 5], 1, "matrix_gemm_128x128x32"),
        (&h200, dx, [1, 16, 40, 56, 8], 64, [3, 1, 1], 1, "matrix_gemm_128x64x32"),
        (&h200, dx, [2, 48, 16, 7, 20], 192, [1, 3, 3], 1, "window_gemm_256x32"),
    ] {
        let layer = layer(x, o, kernel, padded(kernel, stride));
        assert_eq!(choose(&layer, pass, limits).name(), plan, "{pass:?} {x:?} {o}");
    }
}
