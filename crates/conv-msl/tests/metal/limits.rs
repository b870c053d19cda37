//! What conv-kernels concludes from a device's properties: an M1's, changed one by one.

use conv_kernels::conv3d::{Algorithm, Conv3dProblem, Pass, Window, plan};
use conv_kernels::{FloatType, Limits};
use cubecl::ir::{DeviceProperties, ElemType, UIntKind};
use msl_host::Recorder;
use msl_host::properties::{apple_m1, apple_m1_before_macos_15};

fn limits_of(properties: DeviceProperties) -> Limits {
    Limits::of(Recorder::with_properties(properties).client())
}

/// The limits of an M1 with changed properties.
fn changed(change: impl FnOnce(&mut DeviceProperties)) -> Limits {
    let mut properties = apple_m1();
    change(&mut properties);
    limits_of(properties)
}

/// Every pass of a layer that an M1 computes on matrix units has a plan whose needs the device meets.
fn assert_plans(limits: &Limits, what: &str) {
    let window = Window { padding: [(1, 1); 3], ..Window::default() };
    for dtype in [FloatType::F32, FloatType::F16] {
        let problem = Conv3dProblem::new([1, 64, 4, 28, 28], [64, 64, 3, 3, 3], Some(64), window, dtype)
            .unwrap_or_else(|error| panic!("{error}"));
        for pass in [Pass::Forward, Pass::InputGradient, Pass::WeightGradient] {
            let plan = plan(&problem, pass, Algorithm::Auto, limits)
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            let needs = plan.needs(&problem, pass, limits);
            if let Err(error) = needs.check(format_args!("{what}"), limits) {
                panic!("{error}");
            }
        }
    }
}

/// The fragments are dealt to 32 threads: other subgroups, and sizes that a driver chooses from, have none.
#[test]
fn subgroups_of_other_sizes_have_no_fragments() {
    let m1 = limits_of(apple_m1());
    assert_eq!(m1.matrices, [(FloatType::F32, 8), (FloatType::F16, 8)]);
    for [least, most] in [[8, 8], [16, 16], [64, 64], [8, 32], [16, 32], [32, 64], [32, 128]] {
        let limits = changed(|properties| {
            properties.hardware.plane_size_min = least;
            properties.hardware.plane_size_max = most;
        });
        let what = format!("subgroups of {least} to {most}");
        assert_eq!(limits, Limits { matrices: Vec::new(), ..m1.clone() }, "{what}");
        assert_plans(&limits, &what);
    }
}

#[test]
fn fragments_without_fp32_accumulators_are_not_taken() {
    let without = |dtype: FloatType| {
        changed(|properties| properties.features.matmul.cmma.retain(|each| each.a_type != dtype.elem()))
    };
    assert_eq!(without(FloatType::F32).matrices, [(FloatType::F16, 8)]);
    assert_eq!(without(FloatType::F16).matrices, [(FloatType::F32, 8)]);
    let none = changed(|properties| {
        properties.features.matmul.cmma.retain(|each| each.cd_type != FloatType::F32.elem());
    });
    assert_eq!(none.matrices, []);
}

#[test]
fn smaller_resources_are_seen_and_planned_for() {
    let m1 = limits_of(apple_m1());
    let [shared, threads, buffers, bindings] = [
        changed(|properties| properties.hardware.max_shared_memory_size = 16 << 10),
        changed(|properties| properties.hardware.max_units_per_cube = 256),
        changed(|properties| properties.memory.max_page_size = 128 << 20),
        changed(|properties| properties.hardware.max_bindings = 8),
    ];
    assert_eq!(shared, Limits { shared_bytes: 16 << 10, ..m1.clone() });
    assert_eq!(threads, Limits { units_per_cube: 256, ..m1.clone() });
    assert_eq!(buffers, Limits { buffer_bytes: 128 << 20, ..m1.clone() });
    assert_eq!(bindings, Limits { bindings: 8, ..m1.clone() });
    let all = changed(|properties| {
        properties.hardware.max_shared_memory_size = 16 << 10;
        properties.hardware.max_units_per_cube = 256;
        properties.memory.max_page_size = 128 << 20;
        properties.hardware.max_bindings = 8;
    });
    let expected = Limits {
        shared_bytes: 16 << 10,
        units_per_cube: 256,
        buffer_bytes: 128 << 20,
        bindings: 8,
        ..m1.clone()
    };
    assert_eq!(all, expected);
    for (limits, what) in [
        (shared, "16 KiB"),
        (threads, "256 threads"),
        (buffers, "128 MiB"),
        (bindings, "8 bindings"),
        (all, "all"),
    ] {
        assert_plans(&limits, what);
    }
    let grid = changed(|properties| properties.hardware.max_cube_count = (65_535, 100, 7));
    assert_eq!(grid, Limits { cubes_per_axis: 7, ..m1 });
}

/// More than an Apple GPU has is not used.
#[test]
fn larger_resources_are_capped() {
    let large = changed(|properties| {
        properties.hardware.max_shared_memory_size = 64 << 10;
        properties.hardware.max_units_per_cube = 2048;
        properties.hardware.max_cube_count = (1 << 20, 1 << 20, 1 << 20);
    });
    assert_eq!(large, limits_of(apple_m1()));
}

#[test]
fn names_and_types_are_read() {
    let m1 = limits_of(apple_m1());
    let named = |name: &str| changed(|properties| properties.identity.name = name.into());
    let loops = |name: &str| named(name).loop_iterations;
    assert_eq!((m1.loop_iterations, loops("llvmpipe (LLVM 19.1.1, 256 bits)")), (None, Some(60_000)));
    assert_eq!((m1.unroll, named("NVIDIA H200").unroll), (false, true));
    assert_eq!((m1.wide_index, m1.halves_in_words), (true, true));
    let before = limits_of(apple_m1_before_macos_15());
    assert_eq!((before.wide_index, before.halves_in_words), (false, false));
    assert_eq!((before.dtypes.as_slice(), before.matrices.len()), (&[FloatType::F32, FloatType::F16][..], 0));
    let without = changed(|properties| {
        properties.features.types.elem.remove(&ElemType::UInt(UIntKind::U16));
    });
    assert_eq!(without, Limits { halves_in_words: false, ..m1 });
}
