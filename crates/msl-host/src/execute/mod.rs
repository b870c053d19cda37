//! Runs emitted MSL on the CPU.
//!
//! ```text
//! MSL text    -> rewrite (two changes) -> clang++ behind shim/metal.h -> shared library     (library)
//! launch      -> buffers between guard pages -> threadgroups, one after another             (memory, run)
//! threadgroup -> a fiber per thread, resumed in varied orders until each waits or ends      (run, fiber)
//! matrices    -> computed once per simdgroup; lanes must execute the same operations        (matrices)
//! ```
//!
//! A launch fails, naming the thread and the reason, where Metal would misbehave silently: an access outside
//! a buffer or an array, a write to constant memory, threads at different barriers, matrix operations that
//! differ between lanes, a division by zero. Uninitialized memory reads as NaN.

mod cache;
mod fiber;
mod library;
mod matrices;
mod memory;
mod order;
mod rewrite;
mod run;
mod session;
mod trap;

pub(crate) use run::Grid;
pub use session::{Edit, compile_ahead};
pub(crate) use session::{Kernel, Session};
