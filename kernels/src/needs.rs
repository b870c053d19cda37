//! What a plan needs of a device. Planning declines what the device lacks, so that some plan always serves
//! and every refusal comes before a launch.
//!
//! Loop iterations are upper bounds for one thread, summed over all loops of a kernel: a software device ends
//! every loop once they are spent ([`Limits::loop_iterations`]).

use crate::error::{ConvError, DeviceLimit};
use crate::limits::Limits;
use std::fmt::Arguments;

/// What a plan needs of a device: the maximum over its kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Needs {
    /// Bytes of threadgroup memory.
    pub shared_bytes: usize,
    /// Threads of a threadgroup.
    pub threads: usize,
    /// Buffers that a kernel binds, its argument buffer included.
    pub bindings: usize,
    /// Bytes of the largest intermediate buffer.
    pub buffer_bytes: u64,
    /// Loop iterations of a thread, all loops together.
    pub loop_iterations: usize,
}

impl Needs {
    /// What the kernels without a plan need at most (RoPE of one tensor, states, ids): WebGPU's least has it.
    pub const OF_ANY_CALL: Self =
        Self { shared_bytes: 1024, threads: 256, bindings: 6, buffer_bytes: 0, loop_iterations: 0 };

    /// What either needs.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            shared_bytes: self.shared_bytes.max(other.shared_bytes),
            threads: self.threads.max(other.threads),
            bindings: self.bindings.max(other.bindings),
            buffer_bytes: self.buffer_bytes.max(other.buffer_bytes),
            loop_iterations: self.loop_iterations.max(other.loop_iterations),
        }
    }

    /// Refuses what the device lacks, in one sentence whose subject is `what`.
    ///
    /// # Errors
    /// [`ConvError::DeviceLimit`].
    pub fn check(&self, what: Arguments, limits: &Limits) -> Result<(), ConvError> {
        let threads = limits.units_per_cube as usize;
        let resources = [
            (DeviceLimit::SharedBytes, self.shared_bytes, limits.shared_bytes, "bytes of shared memory"),
            (DeviceLimit::Threads, self.threads, threads, "threads per threadgroup"),
            (DeviceLimit::Bindings, self.bindings, limits.bindings, "buffer bindings"),
        ];
        for (limit, needed, offered, unit) in resources {
            let message = || format!("{what} needs {needed} {unit}, the device has {offered}");
            within(limit, [needed as u64, offered as u64], message)?;
        }
        within(DeviceLimit::BufferBytes, [self.buffer_bytes, limits.buffer_bytes], || {
            format!(
                "{what} needs an intermediate buffer of {} bytes, this device's largest has {}",
                self.buffer_bytes, limits.buffer_bytes
            )
        })?;
        let Some(most) = limits.loop_iterations else { return Ok(()) };
        within(DeviceLimit::LoopIterations, [self.loop_iterations as u64, most as u64], || {
            format!(
                "{what} takes {} loop iterations per thread, this software device ends loops after {most}",
                self.loop_iterations
            )
        })
    }
}

/// Refuses more than the device has.
fn within(
    limit: DeviceLimit,
    [needed, available]: [u64; 2],
    message: impl FnOnce() -> String,
) -> Result<(), ConvError> {
    if needed <= available {
        return Ok(());
    }
    Err(ConvError::device_limit(limit, needed, available, message()))
}
