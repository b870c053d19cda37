//! The shapes that the kernel tests, the Burn tests and the benchmarks share, as plain data.
//!
//! Nothing here knows a tensor library, a device or a dtype; a case is a handful of integers and flags, and
//! each table is a deterministic function, so that a failing case can be named and run again.
//!
//! | module | holds |
//! | --- | --- |
//! | [`conv3d`] | conformance table (pairwise covering and hand-picked edges), empty problems, named regressions |
//! | [`causal_conv1d`] | conformance table over length x width, one-step updates, regressions, sequence ids |
//! | [`rope2d`] | RoPE over rows and columns: conformance table and positions |
//! | [`workloads`] | layer shapes of published models, read from the CSV tables of this crate |
//! | [`fill`] | deterministic normal and integer data without a random number generator |
//!
//! The conformance tables are sized for a software GPU and a double precision reference on the CPU: every
//! case runs several passes, dtypes and plans. The workload tables hold the real sizes, for benchmarks.

pub mod causal_conv1d;
pub mod conv3d;
pub mod fill;
mod pairwise;
pub mod rope2d;
pub mod workloads;
