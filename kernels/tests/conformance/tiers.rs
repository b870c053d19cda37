//! Every plan is in a tier: what the tests of this binary launch, noted instead of launched, has every plan
//! with every tile in every pass and type that the device serves.
//!
//! In the quick tier the Metal executor answers for the plans that need matrix units, the software device for
//! all others (docs/testing.md); a real device, and the full tier, for all that it serves. Kernels have a
//! list of their own (conv-msl's `all_kernels.rs`): RoPE, which has no plans, is in that alone.

use crate::conv3d::{PASSES, noted};
use crate::device::EXECUTED;
use crate::support::client;
use crate::{causal_conv1d, conv3d, conv3d_behaviour, conv3d_sums, conv3d_tiles};
use conv_kernels::causal_conv1d::Plan as Conv1dPlan;
use conv_kernels::conv3d::{
    DepthwiseKernel, GemmTile, MatrixTile, Pass, Plan, RegisterTile, SubpixelTile, WindowKernel, WindowTile,
    WindowWeightTile, WinogradTile,
};
use conv_kernels::{FloatType, Limits};
use conv_testing::is_full;
use std::collections::HashSet;

/// The tests whose tables launch conv3d's plans.
const CONV3D: [fn(); 18] = [
    conv3d::every_plan_matches_the_reference_on_normal_data,
    conv3d::integer_inputs_are_exact,
    conv3d::tile_boundaries_are_exact,
    conv3d_behaviour::empty_problems_give_empty_or_bias_only_results,
    conv3d_behaviour::shapes_that_broke_other_libraries,
    conv3d_behaviour::shapes_that_broke_this_library,
    conv3d_sums::split_k_has_the_same_epilogue,
    conv3d_tiles::depthwise_frames_in_shared_memory,
    conv3d_tiles::few_output_channels,
    conv3d_tiles::ranges_of_frames_with_equal_depth_taps,
    conv3d_tiles::more_taps_than_a_mask_has_bits,
    conv3d_tiles::one_tap_along_height_and_width,
    conv3d_tiles::few_input_channels,
    conv3d_tiles::tiles_of_multiply_adds,
    conv3d_tiles::stages_prefetched_into_registers,
    conv3d_tiles::stages_prefetched_on_matrix_units,
    conv3d_tiles::phases_of_strided_gradients,
    conv3d_tiles::windows_in_shared_memory,
];

/// A plan's variant and tile. Another variant of [`Plan`] belongs in [`every_plan`]. Tiles that are computed
/// for a problem differ by what else their kernels are specialized by.
pub(crate) fn kind(plan: &Plan) -> String {
    match plan {
        Plan::FewOutputs(tile) => few_outputs(tile.prefetch),
        Plan::Winograd(config) => winograd(config.tile, config.mma_tile.is_some()),
        _ => plan.name(),
    }
}

fn few_outputs(prefetch: bool) -> String {
    format!("few_outputs, prefetched: {prefetch}")
}

fn winograd(tile: WinogradTile, matrices: bool) -> String {
    format!("{}, matrix units: {matrices}", tile.name())
}

/// Every variant with every tile in every pass that it serves, and whether it needs matrix units, on a device
/// with these fragments for a type.
fn every_plan(dtype: FloatType, limits: &Limits) -> Vec<(Pass, String, bool)> {
    let fragments =
        |dtype| limits.matrices.iter().filter(move |served| served.0 == dtype).map(|served| served.1);
    let mut all = Vec::new();
    let mut add = |passes: &[Pass], kind: String, matrices: bool| {
        all.extend(passes.iter().map(|pass| (*pass, kind.clone(), matrices)));
    };
    let sources = &PASSES[..2];
    let [_, input, weight] = PASSES.map(|pass| [pass]);
    add(&PASSES, kind(&Plan::Empty), false);
    add(&PASSES, kind(&Plan::Direct), false);
    // A type without matrix units of its own is staged in another (bf16 as f32 on an M1): no tile of its own.
    for fragment in fragments(dtype) {
        for tile in MatrixTile::all(fragment) {
            add(&PASSES, kind(&Plan::Gemm(GemmTile::Mma(*tile))), true);
        }
        for tile in WindowTile::all(fragment) {
            add(sources, kind(&Plan::Window(WindowKernel::Gemm(*tile))), true);
        }
        for tile in WindowWeightTile::all(fragment) {
            add(&weight, kind(&Plan::Window(WindowKernel::Weight(*tile))), true);
        }
        if let Some(tile) = SubpixelTile::with_fragment(fragment) {
            add(&input, kind(&Plan::Subpixel(tile)), true);
        }
    }
    // Wide tiles are taken in f32 alone where matrix units serve (`tiles_of_multiply_adds`), bf16's by f32.
    let stage = if dtype == FloatType::Bf16 { FloatType::F32 } else { dtype };
    let is_served = fragments(dtype).chain(fragments(stage)).next().is_some();
    let served = |tile: &&RegisterTile| dtype == FloatType::F32 || !is_served || tile.tile_n <= 8;
    for tile in RegisterTile::ALL.iter().filter(served) {
        add(&PASSES, kind(&Plan::Gemm(GemmTile::Fma(*tile))), false);
    }
    for tile in SubpixelTile::ALL {
        add(&input, kind(&Plan::Subpixel(tile)), false);
    }
    add(&PASSES, few_outputs(false), false);
    add(sources, few_outputs(true), false);
    add(&PASSES, kind(&Plan::Depthwise(DepthwiseKernel::Staged)), false);
    add(&PASSES, kind(&Plan::Depthwise(DepthwiseKernel::March)), false);
    add(&input, kind(&Plan::Depthwise(DepthwiseKernel::Phases)), false);
    // The transform domain is fp32 whatever the type.
    let matrices = fragments(FloatType::F32).next().is_some();
    for tile in WinogradTile::ALL {
        add(sources, winograd(tile, matrices), matrices);
        if tile != WinogradTile::F6x6 {
            add(&weight, winograd(tile, matrices), matrices);
        }
    }
    all
}

#[test]
fn every_plan_of_conv3d_is_in_a_tier() {
    let launched = noted(|| CONV3D.iter().for_each(|test| test()));
    let launched: HashSet<_> =
        launched.iter().map(|(dtype, pass, plan)| (*dtype, *pass, kind(plan))).collect();
    let limits = Limits::of(&client());
    let mut expected = HashSet::new();
    for dtype in &limits.dtypes {
        let plans = every_plan(*dtype, &limits).into_iter();
        let here = plans.filter(|(.., matrices)| *matrices || !EXECUTED || is_full());
        expected.extend(here.map(|(pass, kind, _)| (*dtype, pass, kind)));
    }
    let mut missing: Vec<_> = expected.difference(&launched).map(|plan| format!("{plan:?}")).collect();
    missing.sort();
    println!("{} of {} plans, passes and types", expected.len() - missing.len(), expected.len());
    assert!(missing.is_empty(), "{} plans are in no table:\n{}", missing.len(), missing.join("\n"));
    // What no list above has, a new tile say, would pass unseen.
    let mut unknown: Vec<_> = launched.iter().map(|(_, pass, kind)| (*pass, kind.clone())).collect();
    let known: HashSet<_> = FloatType::ALL
        .into_iter()
        .flat_map(|dtype| {
            [
                every_plan(dtype, &limits),
                every_plan(dtype, &Limits { matrices: Vec::new(), ..limits.clone() }),
            ]
        })
        .flatten()
        .map(|(pass, kind, _)| (pass, kind))
        .collect();
    unknown.retain(|plan| !known.contains(plan));
    assert!(unknown.is_empty(), "plans that `every_plan` does not list: {unknown:?}");
}

#[test]
fn every_plan_of_causal_conv1d_is_in_a_tier() {
    let launched = causal_conv1d::noted(|| causal_conv1d::TABLES.iter().for_each(|test| test()));
    // Another variant belongs into this list.
    let all = [Conv1dPlan::Empty, Conv1dPlan::Narrow, Conv1dPlan::Wide, Conv1dPlan::Looped];
    assert!(launched.iter().all(|(.., plans)| plans.iter().all(|plan| all.contains(plan))));
    let dtypes = Limits::of(&client()).dtypes.into_iter().filter(|dtype| *dtype != FloatType::Bf16);
    let mut missing = Vec::new();
    for (dtype, btc) in dtypes.flat_map(|dtype| [(dtype, false), (dtype, true)]) {
        for (plan, pass) in all.into_iter().flat_map(|plan| [(plan, 0), (plan, 1)]) {
            let covers = |(of, last, plans): &(_, _, [Conv1dPlan; 2])| {
                (*of, *last) == (dtype, btc) && plans[pass] == plan
            };
            if !launched.iter().any(covers) {
                missing.push(format!(
                    "{} btc {btc} {} {}",
                    dtype.name(),
                    plan.name(),
                    ["forward", "backward"][pass]
                ));
            }
        }
    }
    assert!(missing.is_empty(), "{} plans are in no table:\n{}", missing.len(), missing.join("\n"));
}
