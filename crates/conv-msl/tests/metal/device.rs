//! The device under test: an M1's properties, and the emitted MSL on the CPU.

use cubecl::prelude::*;
use msl_host::Recorder;

/// This thread's device. Each test has a thread of its own.
pub(crate) fn client() -> Client {
    thread_local! {
        static RECORDER: Recorder = Recorder::executing();
    }
    RECORDER.with(|recorder| recorder.client().clone())
}

/// The limit of work per launch, lower than on other devices: fibers are slow.
pub(crate) const MOST_WORK: usize = 30_000_000;

/// Launches of each plan in tests of bitwise reproducibility: in both tiers what the quick one has, since
/// threads are fibers and the order of threads and threadgroups changes from launch to launch anyway.
pub(crate) fn repeats(_: &conv_kernels::Limits, quick: usize) -> usize {
    quick
}

/// Whether threads are executed on the CPU: sums with K in the millions are left to other devices.
pub(crate) const EXECUTED: bool = true;
