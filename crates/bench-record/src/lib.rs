//! Benchmark records: one row per measurement, the same columns for every op, implementation and device.
//!
//! ```text
//! record.rs        the columns; reads and writes them
//! statistics.rs    median, p10, p90, geometric mean
//! peers.rs         ours next to other implementations
//! compare.rs       what got slower between two records
//! report/          a record as one HTML page with plots
//! ```
//!
//! Nothing of the GPU is a dependency, so that comparing two records builds in seconds.

pub mod compare;
pub mod peers;
pub mod record;
pub mod report;
pub mod statistics;

pub use record::{Record, Writer, read};
