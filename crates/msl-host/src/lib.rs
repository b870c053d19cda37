//! What a Mac would run, on a machine without one.
//!
//! CubeCL's MSL compiler is plain Rust. This crate gives it a device with an M1's properties
//! ([`properties`]), runs the launch functions of conv-kernels against a server that records instead of
//! executing ([`server`]), reads the emitted text ([`lower`]) and holds it against Apple's limits
//! ([`report`]), for every kernel, dtype and plan ([`variants`]). The same server executes the text on the
//! CPU ([`execute`], on Linux and macOS); [`fallback`] is the way of an older macOS, through WGSL. [`paper`]
//! counts what the workloads cost.
//!
//! What this cannot show: faults of Apple's compiler, the effects of its fast math, register pressure, and
//! speed.

#[cfg(all(
    any(target_os = "linux", target_os = "macos"),
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
pub mod execute;
#[cfg(not(all(
    any(target_os = "linux", target_os = "macos"),
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
#[path = "execute/elsewhere.rs"]
pub mod execute;
pub mod fallback;
mod log;
pub mod lower;
pub mod manifest;
pub mod paper;
pub mod properties;
mod recorder;
pub mod report;
pub mod server;
pub mod variants;

#[cfg(test)]
#[path = "execute/elsewhere.rs"]
pub mod execute_elsewhere;
#[cfg(test)]
mod tests;
