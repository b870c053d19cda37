//! conv3d's plans for certain kinds of layers, each on the cases that reach the ends of its tiles.

use crate::conv3d::{Tiles, run_with};
use crate::support::client;
use conv_cases::conv3d::{self as cases, Activation, Conv3dCase};
use conv_cases::fill;
use conv_kernels::conv3d::{Plan, RegisterTile};
use conv_kernels::{FloatType, Limits};

/// Checks a table with normal data and, but for SiLU, with integers, under the plans that `picks` picks.
fn run_only(table: &[Conv3dCase], picks: fn(&Plan) -> bool) {
    run_types(table, &FloatType::ALL, picks);
}

/// [`run_only`] in some types, as far as the device has them.
fn run_types(table: &[Conv3dCase], types: &[FloatType], picks: fn(&Plan) -> bool) {
    let client = client();
    let mut limits = Limits::of(&client);
    limits.dtypes.retain(|dtype| types.contains(dtype));
    let run = |table: &[Conv3dCase], fill: &dyn Fn(u64, usize) -> Vec<f32>, exact| {
        run_with((&client, &limits), table, fill, exact, Tiles::Only(picks));
    };
    run(table, &fill::normal, false);
    let exact = table.iter().filter(|case| case.activation != Activation::Silu).cloned();
    run(&exact.collect::<Vec<_>>(), &|seed, length| fill::integers(seed, length, -4, 4), true);
}

#[test]
fn depthwise_planes_in_shared_memory() {
    run_only(&cases::depthwise_tiles(), |plan| *plan == Plan::Depthwise);
}

#[test]
fn few_result_channels() {
    // Many windows, each a kernel of its own that a software device compiles for a second: the other types
    // and reading ahead differ by how a channel travels, and take turns on a few.
    let table = cases::few_output_layers();
    run_types(&table, &[FloatType::F32], |plan| matches!(plan, Plan::FewOutputs(tile) if !tile.prefetch));
    run_types(&table[..2], &[FloatType::F16, FloatType::Bf16], |plan| matches!(plan, Plan::FewOutputs(_)));
    run_types(
        &table[2..5],
        &[FloatType::F32],
        |plan| matches!(plan, Plan::FewOutputs(tile) if tile.prefetch),
    );
}

#[test]
fn runs_of_frames() {
    run_only(&cases::few_frames(), |plan| match plan {
        Plan::Gemm(tile) => *tile == RegisterTile::M128N8,
        Plan::MatrixGemm(tile) => tile.tile_n == 64,
        _ => false,
    });
}

#[test]
fn planes_that_are_runs_of_sites() {
    let served = |plan: &Plan| matches!(plan, Plan::Gemm(_) | Plan::MatrixGemm(_) | Plan::WindowGemm(_));
    run_only(&cases::contiguous_slices(), served);
}

#[test]
fn few_input_channels() {
    run_only(&cases::few_input_layers(), |plan| matches!(plan, Plan::Subpixel(_)));
}

/// On devices with matrix units.
#[test]
fn phases_of_strided_gradients() {
    run_only(&cases::strided_windows(), |plan| matches!(plan, Plan::WindowGemm(_)));
}

/// On devices with matrix units.
#[test]
fn windows_in_shared_memory() {
    run_only(&cases::shared_windows(), |plan| matches!(plan, Plan::WindowGemm(_) | Plan::WindowWeight(_)));
}
