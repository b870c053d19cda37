//! The recording server on kernels of this file: the text agrees with CubeCL's direct lowering, memory
//! behaves as a device's, and what a Mac could not run is reported.

use crate::manifest::{Change, Manifest, normalise};
use crate::properties::apple_m1;
use crate::{Label, Recorder, report, violations};
use cubecl::prelude::*;
use cubecl_ir::TargetProperties;
use std::sync::Arc;

#[cube(launch, create_dummy_kernel)]
fn saxpy(x: &[f32], y: &mut [f32], #[comptime] n: u32) {
    let mut reversed = Shared::<[f32]>::new_slice(256usize);
    let i = ABSOLUTE_POS;
    reversed[UNIT_POS as usize] = if i < x.len() { x[i] } else { f32::new(0.0) };
    sync_cube();
    if i < y.len() {
        y[i] += reversed[(255u32 - UNIT_POS) as usize] * f32::cast_from(n);
    }
}

/// [`saxpy`] under another name.
#[cube(launch)]
fn axpy_of_reversed(x: &[f32], y: &mut [f32], #[comptime] n: u32) {
    let mut behind = Shared::<[f32]>::new_slice(256usize);
    let i = ABSOLUTE_POS;
    behind[UNIT_POS as usize] = if i < x.len() { x[i] } else { f32::new(0.0) };
    sync_cube();
    if i < y.len() {
        y[i] += behind[(255u32 - UNIT_POS) as usize] * f32::cast_from(n);
    }
}

#[cube(launch)]
fn shared_sum(y: &mut [f32], #[comptime] floats: usize) {
    let mut shared = Shared::<[f32]>::new_slice(floats);
    shared[UNIT_POS as usize] = f32::cast_from(UNIT_POS);
    sync_cube();
    y[ABSOLUTE_POS] = shared[(floats - 1usize) - UNIT_POS as usize];
}

#[cube(launch)]
fn float_atomics(y: &mut [Atomic<f32>]) {
    y[0].fetch_add(f32::new(1.0));
}

#[cube(launch)]
fn panics(y: &mut [f32], #[comptime] n: u32) {
    comptime!(assert!(n > 100, "n is {n}"));
    y[ABSOLUTE_POS] = f32::cast_from(n);
}

fn label(what: &str) -> Label {
    Label { what: what.into(), options: "-".into() }
}

/// A buffer of 1,024 floats.
fn buffer(client: &Client) -> BufferArg {
    let handle = client.empty(4096);
    // SAFETY: the handle covers 1,024 floats.
    unsafe { BufferArg::from_raw_parts(handle, 1024) }
}

fn launch_saxpy(client: &Client, n: u32) {
    saxpy::launch(
        client,
        CubeCount::Static(4, 1, 1),
        CubeDim::new_1d(256),
        buffer(client),
        buffer(client),
        n,
    );
}

#[test]
fn a_launch_is_lowered_to_the_text_that_the_kernel_alone_lowers_to() {
    let recorder = Recorder::apple_m1();
    recorder.record(&label("saxpy"), |client| launch_saxpy(client, 3));

    let client = recorder.client();
    let kernel = saxpy::create_dummy_kernel(
        Arc::new(apple_m1()),
        Arc::new(TargetProperties { mma: Default::default() }),
        CubeCount::Static(4, 1, 1),
        CubeDim::new_1d(256),
        buffer(client),
        buffer(client),
        3,
    );
    let definition = cubecl_runtime::kernel::define_kernel(&kernel).unwrap();
    let options = Default::default();
    let mut compiler = cubecl_cpp::MslCompiler::default();
    let alone = cubecl_runtime::compiler::Compiler::compile(&mut compiler, definition, &options).unwrap();

    let log = recorder.log();
    assert_eq!((log.kernels.len(), log.launches.len()), (1, 1));
    let lowered = log.kernels[0].lowered.as_ref().unwrap();
    assert_eq!(normalise(&lowered.msl), normalise(&alone.source));
    assert!(lowered.msl.contains("threadgroup_barrier(mem_flags::mem_threadgroup);"), "{}", lowered.msl);
    assert_eq!((lowered.threads, lowered.facts.declared_threads), ((256, 1, 1), 256));
    assert_eq!((lowered.facts.threadgroup_bytes, lowered.facts.bindings), (1024, 3));
    assert_eq!(violations(lowered), Vec::<String>::new());
    let launch = &log.launches[0];
    assert_eq!((launch.grid, launch.buffers.as_slice()), ((4, 1, 1), [4096u64, 4096].as_slice()));
    assert_eq!(*launch.label, label("saxpy"));
}

#[test]
fn kernels_are_told_apart_by_comptime_arguments_and_keep_their_first_label() {
    let recorder = Recorder::apple_m1();
    recorder.record(&label("first"), |client| launch_saxpy(client, 3));
    recorder.record(&label("second"), |client| {
        launch_saxpy(client, 3);
        launch_saxpy(client, 4);
    });
    let log = recorder.log();
    let labels: Vec<_> = log.kernels.iter().map(|kernel| kernel.label.what.as_str()).collect();
    assert_eq!(labels, ["first", "second"]);
    let kernels: Vec<_> = log.launches.iter().map(|launch| launch.kernel).collect();
    assert_eq!(kernels, [0, 0, 1]);
    let files: Vec<_> = report::rows(&log.kernels).into_iter().map(|row| row.file).collect();
    assert_ne!(files[0], files[1]);
}

/// The manifest of what `launch` launches, in MSL and in WGSL.
fn manifest(launch: impl Fn(&Client) + Send + Sync) -> Manifest {
    let mut manifest = Manifest::default();
    for (language, recorder) in [("msl", Recorder::apple_m1()), ("wgsl", Recorder::before_macos_15())] {
        recorder.record(&label("axpy"), |client| launch(client));
        manifest.add(language, &recorder.log().kernels);
    }
    manifest
}

#[test]
fn a_manifest_notices_a_constant_and_not_the_name_of_a_function() {
    let three = manifest(|client| launch_saxpy(client, 3));
    let renamed = manifest(|client| {
        let (grid, threads) = (CubeCount::Static(4, 1, 1), CubeDim::new_1d(256));
        axpy_of_reversed::launch(client, grid, threads, buffer(client), buffer(client), 3);
    });
    assert_eq!(three.kernels(), 2);
    assert_eq!(three.compare(&renamed), []);

    let four = manifest(|client| launch_saxpy(client, 4));
    let texts = |changes: Vec<Change>| changes.iter().map(Change::to_string).collect::<Vec<_>>();
    assert_eq!(texts(three.compare(&four)), ["msl axpy -: 1 changed", "wgsl axpy -: 1 changed"]);
    let both = manifest(|client| [3, 4].iter().for_each(|n| launch_saxpy(client, *n)));
    assert_eq!(texts(three.compare(&both)), ["msl axpy -: 1 added", "wgsl axpy -: 1 added"]);
    assert_eq!(texts(both.compare(&three)), ["msl axpy -: 1 removed", "wgsl axpy -: 1 removed"]);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("manifest");
    both.write(&path).unwrap();
    assert_eq!(Manifest::read(&path).unwrap(), both);
    std::fs::write(&path, "msl axpy").unwrap();
    let error = Manifest::read(&path).unwrap_err().to_string();
    assert!(error.ends_with("line 1: `msl axpy` is not a label, a tab and a hash"), "{error}");
}

#[test]
fn what_a_mac_could_not_run_is_reported() {
    let recorder = Recorder::apple_m1();
    recorder.record(&label("over"), |client| {
        let one = || CubeCount::Static(1, 1, 1);
        shared_sum::launch(client, one(), CubeDim::new_1d(256), buffer(client), 8192);
        shared_sum::launch(client, one(), CubeDim::new_1d(256), buffer(client), 10 * 1024);
        shared_sum::launch(client, one(), CubeDim::new_1d(32), buffer(client), 64);
        float_atomics::launch(client, one(), CubeDim::new_1d(64), buffer(client));
    });
    let log = recorder.log();
    let found: Vec<_> =
        log.kernels.iter().map(|kernel| violations(kernel.lowered.as_ref().unwrap()).join("; ")).collect();
    assert_eq!(
        found,
        [
            "",
            "40960 bytes of threadgroup memory, an Apple GPU has 32768",
            "32 threads per threadgroup, two simdgroups are 64",
            "uses atomics of float",
        ]
    );

    let rows = report::rows(&log.kernels);
    assert_eq!(
        report::verdict(&rows, &[]).unwrap_err().to_string(),
        "3 kernels are over an Apple GPU's budget, 0 launches were refused"
    );
    assert!(report::verdict(&rows[..1], &[]).is_ok());
    assert!(report::verdict(&rows[..1], &["refused".into()]).is_err());
    let table = report::table(&rows, log.launches.len());
    assert!(table.contains("(over -): 40960 bytes of threadgroup memory"), "{table}");
    assert!(table.contains("4 kernels from 4 launches: at most 40960 of 32768"), "{table}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("of_an_earlier_run.metal"), "").unwrap();
    report::write(&rows, folder.path()).unwrap();
    let mut files: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    let mut expected: Vec<std::ffi::OsString> = vec!["kernels.csv".into()];
    expected.extend(rows.iter().map(|row| row.file.clone().into()));
    expected.sort();
    assert_eq!(files, expected);
    let csv = std::fs::read_to_string(folder.path().join("kernels.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + rows.len());
}

#[test]
fn a_kernel_that_does_not_lower_fails_the_reads_of_its_outputs() {
    let recorder = Recorder::apple_m1();
    let client = recorder.client();
    let (good, bad) = (client.create_from_slice(&[1, 2, 3, 4]), client.create_from_slice(&[5, 6, 7, 8]));
    recorder.record(&label("panics"), |client| {
        // SAFETY: the handle covers one float.
        let argument = unsafe { BufferArg::from_raw_parts(bad.clone(), 1) };
        panics::launch(client, CubeCount::Static(1, 1, 1), CubeDim::new_1d(64), argument, 7);
    });
    assert_eq!(client.read_one(good).unwrap().to_vec(), [1, 2, 3, 4]);
    let error = client.read_one(bad.clone()).unwrap_err().to_string();
    assert!(error.contains("n is 7"), "{error}");
    assert!(recorder.log().kernels[0].lowered.as_ref().unwrap_err().contains("n is 7"));
    client.write(&bad, cubecl_common::bytes::Bytes::from_bytes_vec(vec![9, 9, 9, 9]));
    assert_eq!(client.read_one(bad).unwrap().to_vec(), [9, 9, 9, 9]);
}

#[test]
fn untouched_memory_costs_nothing_and_reads_as_zero() {
    let recorder = Recorder::apple_m1();
    let client = recorder.client();
    // 4 TiB: no machine that builds this has them.
    let huge = client.empty(4 << 40);
    let part = client.empty(64).offset_start(16).offset_end(32);
    assert_eq!(client.read_one(part).unwrap().to_vec(), [0; 16]);
    drop(huge);
}
