//! Lowers, checks and executes the Metal kernels of any CubeCL program without a Mac.
//!
//! CubeCL's MSL compiler is plain Rust. This crate gives it a device with an M1's [`properties`]: a
//! [`Recorder`] is a CubeCL client whose server keeps what is launched on it instead of running it. Ordinary
//! launch functions work unchanged, so there is no second list of kernels to keep in step.
//!
//! 1. **Lower.** [`Recorder::apple_m1`] lowers each distinct kernel to MSL, [`Recorder::before_macos_15`]
//!    to WGSL that naga validates and translates. [`Recorder::log`] has the texts with their [`Facts`].
//! 2. **Check.** [`violations`] holds a kernel against an Apple GPU's limits; [`report`] makes a table.
//! 3. **Execute.** [`Recorder::executing`] compiles the text by clang and runs it on the CPU (Linux and
//!    macOS, x86-64 and arm64). Faults that Metal would pass over are the error of the next read of the
//!    outputs.
//! 4. **Compare.** A [`manifest`] hashes the texts without the names of functions and the numbers of
//!    variables, to show that a refactor changed none.
//!
//! The README has an example, and what this cannot show: faults of Apple's compiler, the effects of its fast
//! math, register pressure, and speed.

#[cfg(all(
    any(target_os = "linux", target_os = "macos"),
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod execute;
#[cfg(not(all(
    any(target_os = "linux", target_os = "macos"),
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
#[path = "execute/elsewhere.rs"]
mod execute;
mod fallback;
mod log;
mod lower;
pub mod manifest;
pub mod properties;
mod recorder;
pub mod report;
mod server;

pub use execute::{Edit, compile_ahead};
pub use log::{Kernel, Label, Launch, Log};
pub use lower::{Facts, Lowered, violations};
pub use recorder::Recorder;

#[cfg(test)]
#[path = "execute/elsewhere.rs"]
pub mod execute_elsewhere;
#[cfg(test)]
mod tests;
