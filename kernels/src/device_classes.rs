//! Devices that lack something, as data: planning must find a plan on each, or refuse in one sentence.

use crate::dtype::FloatType;
use crate::limits::Limits;

/// WebGPU's defaults, small integrated GPUs, Vulkan drivers without matrix units or with subgroups of other
/// sizes than 32 (which have none for these kernels), a software driver, GPUs without 16-bit types.
pub(crate) fn device_classes() -> Vec<Limits> {
    let m1 = Limits::apple_m1;
    let plain = || Limits { matrices: Vec::new(), ..m1() };
    let webgpu = || Limits {
        shared_bytes: 16 * 1024,
        units_per_cube: 256,
        bindings: 8,
        buffer_bytes: 128 << 20,
        wide_index: false,
        halves_in_words: false,
        ..plain()
    };
    vec![
        m1(),
        Limits::h200(),
        Limits { matrices: vec![(FloatType::F16, 16)], unroll: true, cubes_in_flight: 528, ..m1() },
        webgpu(),
        Limits { dtypes: vec![FloatType::F32], ..webgpu() },
        // 64-bit offsets and 16-bit pairs, but few bindings and small buffers.
        Limits { wide_index: true, halves_in_words: true, ..webgpu() },
        // Matrix units, but little threadgroup memory for their stages.
        Limits { shared_bytes: 16 * 1024, units_per_cube: 256, ..m1() },
        Limits { bindings: 8, ..m1() },
        Limits { wide_index: false, buffer_bytes: 128 << 20, ..plain() },
        Limits { wide_index: false, loop_iterations: Some(60_000), ..plain() },
        Limits { workspace_bytes: 1 << 20, buffer_bytes: 1 << 20, dtypes: vec![FloatType::F32], ..m1() },
    ]
}
