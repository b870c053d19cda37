//! What another project does with its kernels: records, checks, executes and compares them. The README shows
//! the kernel and the first test.

use cubecl::prelude::*;
use msl_host::manifest::Manifest;
use msl_host::{Label, Recorder, report};

/// `y += a x`, and the sum of each threadgroup's results, which are 64.
#[cube(launch)]
fn saxpy_and_sums(a: f32, x: &[f32], y: &mut [f32], sums: &mut [f32], #[comptime] barrier: bool) {
    let mut shared = Shared::<[f32]>::new_slice(64usize);
    y[ABSOLUTE_POS] += a * x[ABSOLUTE_POS];
    shared[UNIT_POS as usize] = y[ABSOLUTE_POS];
    if comptime!(barrier) {
        sync_cube();
    }
    if UNIT_POS == 0u32 {
        let mut sum = 0.0f32;
        for i in 0..64usize {
            sum += shared[i];
        }
        sums[CUBE_POS] = sum;
    }
}

const GROUPS: usize = 3;

/// Launches the kernel on x = 0, 1, 2, .. and y = 1; returns y and the sums, or why the launch failed.
fn launch(client: &Client, threads: u32, barrier: bool) -> Result<[Vec<f32>; 2], String> {
    let length = GROUPS * threads as usize;
    let x: Vec<f32> = (0..length).map(|index| index as f32).collect();
    let [x, y] = [&x, &vec![1.0f32; length]].map(|values| client.create_from_slice(f32::as_bytes(values)));
    let sums = client.empty(GROUPS * size_of::<f32>());
    // SAFETY: the handles hold as many numbers.
    let argument = |handle: &cubecl::server::Handle, length| unsafe {
        BufferArg::from_raw_parts(handle.clone(), length)
    };
    saxpy_and_sums::launch(
        client,
        CubeCount::Static(GROUPS as u32, 1, 1),
        CubeDim::new_1d(threads),
        2.0,
        argument(&x, length),
        argument(&y, length),
        argument(&sums, GROUPS),
        barrier,
    );
    let read = |handle| client.read_one(handle).map_err(|error| error.to_string());
    Ok([f32::from_bytes(&read(y)?).to_vec(), f32::from_bytes(&read(sums)?).to_vec()])
}

fn label() -> Label {
    Label { what: "saxpy f32".into(), options: "-".into() }
}

#[test]
fn a_kernel_is_lowered_checked_executed_and_compared() {
    let mut manifests = [Manifest::default(), Manifest::default()];
    for (manifest, barrier) in manifests.iter_mut().zip([true, false]) {
        for (language, recorder) in [("msl", Recorder::apple_m1()), ("wgsl", Recorder::before_macos_15())] {
            recorder.record(&label(), |client| launch(client, 64, barrier)).expect("nothing is executed");
            let log = recorder.log();
            report::verdict(&report::rows(&log.kernels), &[]).expect("within an Apple GPU's budget");
            let facts = &log.kernels[0].lowered.as_ref().expect("it lowers").facts;
            assert_eq!((facts.threadgroup_bytes, facts.declared_threads), (256, 64));
            manifest.add(language, &log.kernels);
        }
    }
    let changes: Vec<_> = manifests[0].compare(&manifests[1]).iter().map(ToString::to_string).collect();
    assert_eq!(changes, ["msl saxpy f32 -: 1 changed", "wgsl saxpy f32 -: 1 changed"]);

    let executed =
        |barrier| launch(Recorder::executing().client(), 64, barrier).expect("the launch succeeds");
    let [y, sums] = executed(true);
    let want: Vec<f32> = (0..GROUPS * 64).map(|index| 1.0 + 2.0 * index as f32).collect();
    assert_eq!(y, want);
    assert_eq!(sums, want.chunks(64).map(|group| group.iter().sum()).collect::<Vec<f32>>());
    // Without the barrier the first thread reads what the others have not written yet.
    assert!(executed(false)[1].iter().any(|sum| sum.is_nan()));
}

#[test]
fn what_a_mac_would_not_run_is_not_executed() {
    let refused = launch(Recorder::executing().client(), 32, true).expect_err("half a threadgroup");
    assert!(refused.contains("32 threads per threadgroup, two simdgroups are 64"), "{refused}");
    launch(Recorder::executing_any().client(), 32, true).expect("anything is executed");
}

#[test]
fn the_readme_shows_this_kernel() {
    let kernel =
        include_str!("../../README.md").split("```rust\n").nth(1).and_then(|text| text.split("```").next());
    assert!(include_str!("example.rs").contains(kernel.expect("a block of Rust")));
}
