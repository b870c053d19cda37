//! Executes every kernel that `cargo xtask msl` lists and compares its results with the reference. Checks the
//! list itself: every kernel of the source is in it, within an Apple GPU's limits, and no two share a cache
//! key. (The command checks the path through WGSL and naga. Kernels that only a conformance test launches are
//! checked against the limits when they are launched: `Recorder::executing`.)
//!
//! Tests start in the order of their names: these go first, since they compile in batches what the others
//! use.

use crate::{causal_conv1d, conv3d, conv3d_pre, conv3d_streams, conv3d_sums, conv3d_transposed, rope};
use conv_cases::fill;
use conv_kernels::{FloatType, IndexType, Limits};
use conv_msl::{IndexWidth, Op, Variants};
use msl_host::{Recorder, compile_ahead, report};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::OnceLock;

/// Kernels that no choice takes on a Mac with matrix units. They are executed and compared here under limits
/// of other devices: `stages_prefetched_on_matrix_units`, and conv3d_winograd's sums with and without.
const NOT_ON_METAL: [&str; 3] = [
    "conv_kernels::conv3d::subpixel::mma::subpixel_mma_kernel",
    "conv_kernels::conv3d::winograd::product::product_kernel",
    "conv_kernels::conv3d::winograd::weight_product::weight_product_kernel",
];

/// The kernels of a dtype, lowered once.
fn listed(dtype: FloatType) -> &'static Variants {
    static LISTED: [OnceLock<Variants>; 3] = [const { OnceLock::new() }; 3];
    let place = FloatType::ALL.iter().position(|each| *each == dtype).expect("one of all");
    LISTED[place].get_or_init(|| conv_msl::of_dtype(dtype, &Op::ALL))
}

#[test]
fn every_listed_f32_kernel_is_executed_and_compared() {
    check(FloatType::F32);
}

#[test]
fn every_listed_f16_kernel_is_executed_and_compared() {
    check(FloatType::F16);
}

#[test]
fn every_listed_bf16_kernel_is_executed_and_compared() {
    check(FloatType::Bf16);
}

fn check(dtype: FloatType) {
    let listed = &listed(dtype).kernels;
    let texts: Vec<_> =
        listed.iter().filter_map(|kernel| Some((&kernel.id, &kernel.lowered.as_ref().ok()?.msl))).collect();
    compile_ahead(&texts);

    let recorder = Recorder::executing();
    let client = recorder.client();
    let mut failures = Vec::new();
    for index in IndexWidth::ALL {
        let limits = index.limits(&Limits::of(client));
        let alone = (client, &Limits { dtypes: vec![dtype], ..limits.clone() });
        let table = conv_msl::conv3d::table(index);
        // In the quick tier only launches that may need kernels of their own.
        let picks =
            |problem: &_, pass, _: &_| conv_testing::is_full() || conv_msl::conv3d::lists(problem, pass);
        conv3d::run_with(alone, &table, &fill::normal, false, conv3d::Selection::Launches(picks));
        conv3d_sums::check_activation_gradients(alone);
        for stream in conv_msl::conv3d::streams() {
            conv3d_streams::check(alone, &stream, &fill::normal, false, &|plans| plans);
        }
        let kept: Vec<_> = table.iter().filter(|case| conv_msl::conv3d::keeps_pre(case)).cloned().collect();
        conv3d_pre::check(alone, &kept, |plans, _| plans);
        let transposed = conv_msl::conv3d::transposed(&table);
        conv3d_transposed::check(alone, &transposed, &fill::normal, false, |problem, mut plans, _| {
            plans.retain(|plan| conv_msl::conv3d::lists_transposed(problem, plan));
            plans
        });
        let levels = conv3d::problem(&conv_msl::conv3d::levels(), dtype);
        conv3d_sums::check_bias_gradient(alone, levels);
        for case in table.iter().filter(|case| case.bias) {
            conv3d_sums::check_bias_gradient(alone, conv3d::problem(case, dtype));
            if case.groups == case.c {
                let problem = conv3d::problem(case, dtype);
                conv3d_sums::check_weight_and_bias_gradient(alone, problem, &fill::normal);
            }
        }
        let device = (client, &limits);
        for call in conv_msl::causal_conv1d::table(dtype, index) {
            let problem = call.problem().expect("a valid problem");
            // Two sequences and padding, if there are enough steps.
            let id = |step: usize| [0, 0, 0, 0, 0, -1, 1, 1][step % problem.length / 4 % 8];
            let ids: Vec<i32> = (0..problem.batch * problem.length).map(id).collect();
            let ids = (&ids[..], call.ids.unwrap_or(IndexType::I32));
            for with_dfinal in [true, false] {
                let (_, wrong) = causal_conv1d::check(device, &problem, ids, with_dfinal, false);
                failures.extend(wrong.into_iter().map(|wrong| format!("{call:?}: {wrong}")));
            }
        }
        for (case, activation, weight_dtype) in conv_msl::causal_conv1d::updates(index) {
            causal_conv1d::streaming::check_update(device, &case, activation, [dtype, weight_dtype]);
        }
        for index_type in IndexType::ALL {
            causal_conv1d::decoding::check_steps(device, dtype, index_type, 4..=4);
            causal_conv1d::decoding::check_last_states(device, dtype, index_type);
        }
        for (angles, d) in conv_msl::rope::table() {
            rope::options::check_sources(device, dtype, angles, d);
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));

    let log = recorder.log();
    let executed: HashSet<_> = log.kernels.iter().map(|kernel| &kernel.id).collect();
    let missing: Vec<_> = listed.iter().filter(|kernel| !executed.contains(&kernel.id)).collect();
    let names: Vec<_> =
        missing.iter().map(|kernel| format!("{} ({})", kernel.id.short_name(), kernel.label)).collect();
    println!("{} kernels listed, {} launches executed", listed.len(), log.launches.len());
    assert!(names.is_empty(), "{} of {} were not executed:\n{}", names.len(), listed.len(), names.join("\n"));
}

#[test]
fn the_list_is_complete_and_within_an_apple_gpu_s_budget() {
    let parts = FloatType::ALL.map(listed);
    let kernels: Vec<_> = parts.iter().flat_map(|part| part.kernels.iter().cloned()).collect();
    let refused: Vec<_> = parts.iter().flat_map(|part| part.refused.iter().cloned()).collect();
    let rows = report::rows(&kernels);
    report::verdict(&rows, &refused)
        .map_err(|error| {
            format!("{error}\n{}", report::table(&rows, parts.iter().map(|part| part.launches).sum()))
        })
        .unwrap();

    // CubeCL keys its disk caches (SPIR-V, PTX) by this hash. The hash of a `ComptimeOption` does not include
    // whether there is a value, so kernels with two optional arguments need a comptime argument for that.
    let mut keys = HashMap::new();
    let mut shared = Vec::new();
    for kernel in &kernels {
        if let Some(other) = keys.insert(kernel.id.stable_hash(), kernel)
            && other.id != kernel.id
        {
            shared.push(format!("`{}` and `{}`: {}", other.label, kernel.label, kernel.id.short_name()));
        }
    }
    assert!(
        shared.is_empty(),
        "{} kernels share the key of another in CubeCL's caches on disk:\n{}",
        shared.len(),
        shared[..shared.len().min(20)].join("\n")
    );

    let mut expected = Vec::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/src");
    kernels_in_source(&source, "conv_kernels", &mut expected);
    expected.sort();
    assert!(expected.len() >= 8, "the source has {} kernels: {expected:?}", expected.len());
    let launched =
        |path: &&String| kernels.iter().any(|kernel| kernel.id.type_name().starts_with(&format!("{path}::")));
    let unlisted: Vec<_> = expected.iter().filter(|path| !launched(path)).map(String::as_str).collect();
    assert_eq!(unlisted, NOT_ON_METAL, "kernels that the list never launches");
}

/// Module paths of the kernels in conv-kernels' source, `conv_kernels::op::file::kernel`, without
/// those of unit tests.
fn kernels_in_source(folder: &Path, module: &str, found: &mut Vec<String>) {
    let launchable = regex::Regex::new(
        r"#\[cube\([^\]]*\blaunch[^\]]*\)\]\s*(?:#\[[^\]]*\]\s*)*(?:pub(?:\(\w+\))? )?(?:unsafe )?fn (\w+)",
    )
    .unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_string();
        if path.is_dir() {
            kernels_in_source(&path, &format!("{module}::{stem}"), found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !stem.ends_with("_tests") {
            let module = if matches!(stem.as_str(), "mod" | "lib") {
                module.into()
            } else {
                format!("{module}::{stem}")
            };
            let text = std::fs::read_to_string(&path).unwrap();
            found.extend(launchable.captures_iter(&text).map(|kernel| format!("{module}::{}", &kernel[1])));
        }
    }
}
