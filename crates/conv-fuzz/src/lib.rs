//! Random problems of every op, under every plan and under the limits of smaller devices, compared with the
//! f64 references.
//!
//! ```text
//! text.rs      a case as one line and as numbers         shrink.rs   a failing case made smaller
//! conv3d.rs causal_conv1d.rs decoding.rs rope.rs         random cases of each op, and what is checked of one
//! device.rs    devices, and limits to impose on them     tensors.rs  values and memory layouts
//! generate.rs  case number n of a seed                   run.rs      the loop, the report, named regressions
//! ```
//!
//! Cases come in families that share everything kernels are compiled for (types, window, plans): compiling a
//! kernel takes longer than running a hundred small problems.

pub mod causal_conv1d;
pub mod conv3d;
pub mod decoding;
pub mod device;
pub mod generate;
pub mod outcome;
pub mod random;
pub mod rope;
pub mod run;
pub mod shrink;
pub mod tensors;
pub mod text;
