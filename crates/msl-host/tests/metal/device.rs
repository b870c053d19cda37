//! The device under test: an M1's properties, and the emitted MSL on the CPU.

use cubecl::prelude::*;
use msl_host::server::Recorder;

/// This thread's device. Each test has a thread of its own.
pub(crate) fn client() -> Client {
    thread_local! {
        static RECORDER: Recorder = Recorder::executing();
    }
    RECORDER.with(|recorder| recorder.client().clone())
}

/// As for the other devices; threads that are fibers are slower by far.
pub(crate) const MOST_WORK: usize = 30_000_000;

/// As for the other devices: few, since each is computed on the CPU.
pub(crate) fn repeats(_: &conv_kernels::Limits) -> usize {
    60
}

/// Whether threads are executed on the CPU: sums of millions of terms are left to other devices.
pub(crate) const EXECUTED: bool = true;
