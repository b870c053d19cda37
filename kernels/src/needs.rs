//! What a plan needs of a device. Planning declines what the device lacks, so that some plan always serves
//! and every refusal comes before a launch.
//!
//! Loop iterations are upper bounds for one thread, summed over all loops of a kernel: a software device ends
//! every loop once they are spent ([`Limits::loop_iterations`]).

use crate::error::{ConvError, unsupported};
use crate::limits::Limits;
use std::fmt::Arguments;

/// What a plan needs of a device: the maximum over its kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// [`ConvError::Unsupported`] for a lack of threadgroup memory, threads or bindings,
    /// [`ConvError::TooLarge`] for buffers and loops.
    pub fn check(&self, what: Arguments, limits: &Limits) -> Result<(), ConvError> {
        let resources = [
            (self.shared_bytes, limits.shared_bytes, "bytes of shared memory"),
            (self.threads, limits.units_per_cube as usize, "threads per threadgroup"),
            (self.bindings, limits.bindings, "buffer bindings"),
        ];
        for (needed, offered, unit) in resources {
            if needed > offered {
                unsupported!("{what} needs {needed} {unit}, the device has {offered}");
            }
        }
        if self.buffer_bytes > limits.buffer_bytes {
            return Err(ConvError::TooLarge(format!(
                "{what} needs an intermediate buffer of {} bytes, this device's largest has {}",
                self.buffer_bytes, limits.buffer_bytes
            )));
        }
        if let Some(most) = limits.loop_iterations
            && self.loop_iterations > most
        {
            return Err(ConvError::TooLarge(format!(
                "{what} takes {} loop iterations per thread, this software device ends loops after {most}",
                self.loop_iterations
            )));
        }
        Ok(())
    }
}
