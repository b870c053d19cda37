//! conv3d's plans for certain kinds of layers, each on cases that reach the boundaries of its tiles.

use crate::conv3d::{PASSES, Selection, problem, run_with};
use crate::support::client;
use conv_cases::conv3d::{self as cases, Activation, Conv3dCase};
use conv_cases::fill;
use conv_kernels::conv3d::{GemmTile, Pass, Plan, RegisterTile, WindowKernel, eligible};
use conv_kernels::{FloatType, Limits};
use cubecl::prelude::*;

/// Checks a table with normal data and, except for SiLU, with integers, under the plans that `picks` picks.
fn run_only(table: &[Conv3dCase], picks: fn(&Plan) -> bool) {
    run_types(table, &FloatType::ALL, picks);
}

/// [`run_only`] in those of `types` that the device has.
fn run_types(table: &[Conv3dCase], types: &[FloatType], picks: fn(&Plan) -> bool) {
    let client = client();
    let mut limits = Limits::of(&client);
    limits.dtypes.retain(|dtype| types.contains(dtype));
    let run = |table: &[Conv3dCase], fill: &dyn Fn(u64, usize) -> Vec<f32>, exact| {
        run_with((&client, &limits), table, fill, exact, Selection::Only(picks));
    };
    run(table, &fill::normal, false);
    let exact = table.iter().filter(|case| case.activation != Activation::Silu).cloned();
    run(&exact.collect::<Vec<_>>(), &|seed, length| fill::integers(seed, length, -4, 4), true);
}

#[test]
pub(crate) fn depthwise_frames_in_shared_memory() {
    run_only(&cases::depthwise_tiles(), |plan| matches!(plan, Plan::Depthwise(_)));
}

#[test]
pub(crate) fn few_output_channels() {
    // Each window is another kernel, which a software device compiles for a second. The other types change
    // only how a channel is loaded: a few windows are enough.
    let table = cases::few_output_layers();
    let picks = |plan: &Plan| matches!(plan, Plan::FewOutputs(_));
    run_types(&table, &[FloatType::F32], picks);
    run_types(&table[..2], &[FloatType::F16, FloatType::Bf16], picks);
    // NVIDIA's structure: prefetched channels, larger tiles, all outputs of a weight gradient at once.
    let client = client();
    let limits = Limits { unroll: true, ..Limits::of(&client) };
    run_with((&client, &limits), &table[1..2], &fill::normal, false, Selection::Only(picks));
    let limits = Limits { dtypes: vec![FloatType::F32], ..limits };
    run_with((&client, &limits), &table[2..5], &fill::normal, false, Selection::Only(picks));
    let plans = eligible(&problem(&table[2], FloatType::F32), Pass::Forward, &limits);
    assert!(plans.iter().any(|plan| matches!(plan, Plan::FewOutputs(tile) if tile.prefetch)), "{plans:?}");
}

/// Winograd's transforms as NVIDIA gets them; other devices loop over a tile's rows at run time.
#[test]
pub(crate) fn unrolled_transforms() {
    let client = client();
    let limits = Limits { unroll: true, dtypes: vec![FloatType::F32], ..Limits::of(&client) };
    let case = |name, kernel| Conv3dCase {
        padding: [(1, 1); 3],
        bias: true,
        activation: Activation::Silu,
        residual: true,
        ..Conv3dCase::new(name, [1, 5, 3, 9, 10], 6, kernel)
    };
    let table = [case("three_depth_taps", [3; 3]), case("one_depth_tap", [1, 3, 3])];
    let only = Selection::Only(|plan| matches!(plan, Plan::Winograd(_)));
    run_with((&client, &limits), &table, &fill::normal, false, only);
}

#[test]
pub(crate) fn ranges_of_frames_with_equal_depth_taps() {
    run_only(&cases::few_frames(), |plan| match plan {
        Plan::Gemm(GemmTile::Fma(tile)) => *tile == RegisterTile::M128N8,
        Plan::Gemm(GemmTile::Mma(tile)) => tile.tile_n == 64,
        _ => false,
    });
}

/// Taps checked by coordinates. Also without matrix units, and with the other K loop.
#[test]
pub(crate) fn more_taps_than_a_mask_has_bits() {
    run_only(&cases::many_taps(), |plan| matches!(plan, Plan::Gemm(_)));
    let client = client();
    let limits = without_matrices(&client);
    let integers = |seed, length| fill::integers(seed, length, -4, 4);
    let run = |limits: &Limits, table: &[Conv3dCase]| {
        run_with(
            (&client, limits),
            table,
            &integers,
            true,
            Selection::Only(|plan| {
                let tiles = [RegisterTile::M128N8, RegisterTile::M64N64].map(GemmTile::Fma);
                matches!(plan, Plan::Gemm(tile) if tiles.contains(tile))
            }),
        );
    };
    run(&limits, &cases::many_taps());
    run(&Limits { unroll: true, ..limits }, &cases::many_taps()[..1]);
}

#[test]
pub(crate) fn one_tap_along_height_and_width() {
    let served = |plan: &Plan| matches!(plan, Plan::Gemm(_) | Plan::Window(WindowKernel::Gemm(_)));
    run_only(&cases::contiguous_slices(), served);
}

#[test]
pub(crate) fn few_input_channels() {
    run_only(&cases::few_input_layers(), |plan| matches!(plan, Plan::Subpixel(_)));
}

/// The device without matrix units, in f32: there wide tiles of multiply-adds are taken as well.
fn without_matrices(client: &Client) -> Limits {
    Limits { matrices: Vec::new(), dtypes: vec![FloatType::F32], ..Limits::of(client) }
}

/// Every tile of multiply-adds in every pass: several stages and tiles, none of them full. On the Metal
/// executor, which has matrix units, this is where wide tiles run under its checks of every access.
#[test]
pub(crate) fn tiles_of_multiply_adds() {
    let client = client();
    let limits = without_matrices(&client);
    let case = Conv3dCase {
        padding: [(1, 1), (0, 1), (1, 2)],
        stride: [1, 2, 1],
        bias: true,
        ..Conv3dCase::new("multiply_adds", [2, 6, 3, 9, 7], 35, [2, 3, 3])
    };
    let table = [case.clone(), Conv3dCase { replicate: true, ..case }];
    let integers = |seed, length| fill::integers(seed, length, -4, 4);
    let picks = |plan: &Plan| matches!(plan, Plan::Gemm(GemmTile::Fma(_)));
    run_with((&client, &limits), &table, &integers, true, Selection::Only(picks));
    for pass in PASSES {
        let plans = eligible(&problem(&table[0], FloatType::F32), pass, &limits);
        assert_eq!(plans.iter().filter(|plan| picks(plan)).count(), RegisterTile::ALL.len(), "{pass:?}");
    }
}

/// The other structure of the gathered GEMM's K loop, for devices whose compilers schedule long straight-line
/// code: a tile of 8 x 8 and one of 4 x 4 sums per thread.
#[test]
pub(crate) fn stages_prefetched_into_registers() {
    let client = client();
    let limits = Limits { unroll: true, ..without_matrices(&client) };
    let window = |name: &str, replicate| Conv3dCase {
        padding: [(1, 1), (0, 1), (1, 2)],
        stride: [1, 2, 1],
        bias: true,
        activation: Activation::Relu,
        replicate,
        ..Conv3dCase::new(name, [2, 3, 3, 5, 6], 9, [3, 2, 3])
    };
    let run = |case: Conv3dCase, picks| {
        let integers = |seed, length| fill::integers(seed, length, -4, 4);
        run_with((&client, &limits), &[case], &integers, true, Selection::Only(picks));
    };
    run(window("prefetched_8x8", false), |plan| *plan == Plan::Gemm(GemmTile::Fma(RegisterTile::M64N64)));
    for replicate in [false, true] {
        run(window("prefetched_4x4", replicate), |plan| {
            *plan == Plan::Gemm(GemmTile::Fma(RegisterTile::M128N8))
        });
    }
}

/// The same on devices with matrix units, where the executor's own device does not prefetch.
#[test]
pub(crate) fn stages_prefetched_on_matrix_units() {
    let client = client();
    let all = Limits::of(&client);
    let dtypes = all.dtypes.iter().copied().filter(|dtype| *dtype != FloatType::Bf16).collect();
    let limits = Limits { unroll: true, dtypes, ..all };
    let gathered = Conv3dCase {
        padding: [(1, 1), (0, 1), (1, 2)],
        stride: [1, 2, 1],
        bias: true,
        ..Conv3dCase::new("prefetched", [2, 6, 3, 9, 7], 35, [2, 3, 3])
    };
    let mut table = vec![gathered.clone(), Conv3dCase { replicate: true, ..gathered }];
    let windows = [cases::strided_windows(), cases::shared_windows(), cases::contiguous_slices()];
    table.extend(windows.into_iter().flat_map(|cases| cases.into_iter().step_by(4)));
    let integers = |seed, length| fill::integers(seed, length, -4, 4);
    let picks = |plan: &Plan| match plan {
        Plan::Gemm(GemmTile::Mma(_)) | Plan::Window(_) => true,
        Plan::Subpixel(tile) => tile.fragment > 0,
        _ => false,
    };
    table.extend(cases::few_input_layers().into_iter().step_by(2));
    run_with((&client, &limits), &table, &integers, true, Selection::Only(picks));
}

/// On devices with matrix units.
#[test]
pub(crate) fn phases_of_strided_gradients() {
    run_only(&cases::strided_windows(), |plan| matches!(plan, Plan::Window(WindowKernel::Gemm(_))));
}

/// On devices with matrix units.
#[test]
pub(crate) fn windows_in_shared_memory() {
    run_only(&cases::shared_windows(), |plan| matches!(plan, Plan::Window(_)));
}
