//! Emits, checks and executes the Metal kernels of conv-kernels without a Mac.
//!
//! CubeCL's MSL compiler is plain Rust. This crate gives it a device with an M1's properties
//! ([`properties`]), runs the launch functions of conv-kernels against a server that records instead of
//! executing ([`server`]), reads the emitted text ([`lower`]) and checks it against Apple's limits
//! ([`report`]), for every kernel, dtype and plan ([`variants`]). The same server can execute the text on the
//! CPU ([`execute`], on Linux and macOS). [`fallback`] lowers through WGSL, as on macOS before 15.
//! [`manifest`] hashes the texts, to show that a refactor changed none; [`first_calls`] counts what a
//! network's first step compiles.
//!
//! What this cannot show: bugs of Apple's compiler, the effects of its fast math, register pressure, and
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
pub mod first_calls;
mod log;
pub mod lower;
pub mod manifest;
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
