//! Every kernel that `cargo xtask msl` lists is executed here, and what it computes is compared with the reference. Tests
//! start in the order of their names: these go first, since they compile together what the others then find compiled.

use crate::{causal_conv1d, conv3d, conv3d_sums, rope2d};
use conv_cases::fill;
use conv_kernels::{FloatType, IndexType, Limits};
use msl_host::execute::compile_ahead;
use msl_host::server::Recorder;
use msl_host::variants::{self, IndexWidth};
use std::collections::HashSet;

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
    let listed = variants::of_dtype(dtype).kernels;
    let texts: Vec<_> =
        listed.iter().filter_map(|kernel| Some((&kernel.id, &kernel.lowered.as_ref().ok()?.msl))).collect();
    compile_ahead(&texts);

    let recorder = Recorder::executing();
    let client = recorder.client();
    let mut failures = Vec::new();
    for index in IndexWidth::ALL {
        let limits = index.limits(&Limits::of(client));
        let alone = (client, &Limits { dtypes: vec![dtype], ..limits.clone() });
        let table = variants::conv3d::table(index);
        conv3d::run_with(alone, &table, &fill::normal, false, conv3d::Tiles::All);
        conv3d_sums::check_activation_gradients(alone);
        for case in table.iter().filter(|case| case.bias) {
            conv3d_sums::check_bias_gradient(alone, conv3d::problem(case, dtype));
        }
        let device = (client, &limits);
        for call in variants::causal_conv1d::table(dtype, index) {
            let problem = call.problem().expect("a valid problem");
            // Two sequences and padding, as far as there are steps.
            let id = |step: usize| [0, 0, 0, 0, 0, -1, 1, 1][step % problem.length / 4 % 8];
            let ids: Vec<i32> = (0..problem.batch * problem.length).map(id).collect();
            let ids = (&ids[..], call.ids.unwrap_or(IndexType::I32));
            for with_dfinal in [true, false] {
                let (_, wrong) = causal_conv1d::check(device, &problem, ids, with_dfinal, false);
                failures.extend(wrong.into_iter().map(|wrong| format!("{call:?}: {wrong}")));
            }
        }
        for (case, activation, weight_dtype) in variants::causal_conv1d::updates(index) {
            causal_conv1d::streaming::check_update(device, &case, activation, [dtype, weight_dtype]);
        }
        for index_type in IndexType::ALL {
            causal_conv1d::decoding::check_steps(device, dtype, index_type, 4..=4);
            causal_conv1d::decoding::check_last_states(device, dtype, index_type);
        }
        rope2d::options::check_sources(device, dtype);
        for case in variants::rope2d::table() {
            for positions in IndexType::ALL {
                failures.extend(rope2d::check(device, &case, dtype, positions));
            }
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
