//! conv3d, causal conv1d and RoPE as CubeCL kernels: forward and every gradient, from one source for Metal,
//! Vulkan, WGSL and CUDA. The crate does not depend on Burn; `burn-conv-ops` offers the ops on Burn's
//! tensors.
//!
//! Each op is `Problem -> Plan -> launch`: a problem is validated, a plan is a pure function of problem, pass
//! and device [`Limits`] and can be forced, a launch writes into an [`Operand`] that the caller allocated.
//! Every op has an f64 `reference` next to its kernels.
//!
//! Numerics: tensors are f32, f16 or bf16; all sums accumulate in fp32, with one rounding at the end. No
//! float atomics: results are bitwise reproducible.
//!
//! # Map
//!
//! ```text
//! conv3d            choose/ takes one of (tune.rs: the fastest of a few)
//!   direct            one output per thread; always valid
//!   gemm              gathered implicit GEMM on fp32 multiply-adds or MMA
//!   window            implicit GEMM with a shared input window (halo tile), on MMA
//!   few_outputs       at most four result channels per group
//!   subpixel          dx of layers with at most four input channels, as a sub-pixel convolution
//!   depthwise         one channel per group
//!   winograd          3x3 in H and W: F(2x2), F(4x4), F(6x6)
//! causal_conv1d     narrow: W <= 8, taps in registers; wide: taps in shared memory; update: decoding steps
//! rope              one kernel for all angles, which it computes itself
//!
//! operand, index_operand, dtype     tensors and their storage types
//! geometry, limits, error           what is valid, what the device offers, how a call is refused
//! chip                              what a device does in a second, by its name
//! needs                             what a plan asks of a device
//! launch                            grids, waves and dispatches
//! registers, half_words, activation device code that all ops use
//! tolerance                         error bounds for tests
//! ```
//!
//! # Glossary
//!
//! Letters: N batch, C input channels, O output channels, D H W input extents, KD KH KW kernel extents, OD OH
//! OW output extents. In causal conv1d: B batch, T time, W filter width. In a GEMM: M, N, K.
//!
//! | here                  | Metal, WGSL            | CUDA           | CubeCL                |
//! |-----------------------|------------------------|----------------|-----------------------|
//! | thread                | thread, invocation     | thread         | unit (`UNIT_POS`)     |
//! | subgroup              | simdgroup, subgroup    | warp           | plane (`PLANE_DIM`)   |
//! | threadgroup           | threadgroup, workgroup | block          | cube (`CUBE_POS`)     |
//! | shared memory         | threadgroup, workgroup | shared         | `Shared`              |
//! | MMA on fragments      | simdgroup_matrix       | mma, wmma      | `cmma`                |
//!
//! * tap: one element of a filter window. Halo: inputs around a tile that its windows also read.
//! * frame: the H x W slice of a tensor at one image, channel and depth.
//! * GEMM row, output position: an M index. K index, K element: one product of a sum.
//! * stage: the K elements that are in shared memory at a time. Tile: the results of a threadgroup.
//! * split-K slice: the part of a sum that one threadgroup computes; slices are added by a second kernel.
//! * wave: as many threadgroups as the device runs at once ([`Limits::cubes_in_flight`]).
//! * epilogue: accumulators to memory, with bias, activation, rounding and masks.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(feature = "std"))]
compile_error!(
    "conv-kernels needs the standard library: turn on its feature `std`, which is a default feature"
);

mod activation;
pub mod causal_conv1d;
mod chip;
pub mod conv3d;
#[cfg(test)]
mod device_classes;
mod dtype;
mod error;
mod geometry;
mod half_words;
mod index_operand;
mod launch;
mod limits;
mod needs;
mod operand;
mod registers;
pub mod rope;
pub mod tolerance;

pub use activation::Activation;
pub use chip::{Chip, Shares};
pub use dtype::FloatType;
pub use error::{ConvError, DeviceLimit};
pub use geometry::AxisGeometry;
pub use index_operand::{IndexOperand, IndexType};
pub use limits::Limits;
pub use needs::Needs;
pub use operand::{Operand, row_major};
