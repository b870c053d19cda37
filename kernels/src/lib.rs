//! conv3d, causal conv1d and RoPE2D as CubeCL kernels: forward and every gradient, from one source for Metal,
//! Vulkan, WGSL and CUDA. Nothing of Burn is in here; the crate `burn-conv-ops` puts these ops under Burn's
//! tensors.
//!
//! Each op is `Problem -> Plan -> launch`: a problem is validated, a plan is a pure function of problem, pass
//! and device [`Limits`] and can be forced, a launch writes into an [`Operand`] the caller allocated. Beside
//! each op's kernels stands its f64 `reference`.
//!
//! Numerics: tensors are f32, f16 or bf16; every sum is fp32 and is rounded once. No float atomics: equal
//! calls give equal bits.
//!
//! Letters: N batch, C input channels, O output channels, D H W input extents, KD KH KW kernel extents, OD OH
//! OW output extents; B batch, T time, W width of a causal filter.

mod activation;
pub mod causal_conv1d;
pub mod conv3d;
mod dtype;
mod error;
mod geometry;
mod half_words;
mod index_operand;
mod launch;
mod limits;
mod operand;
mod registers;
pub mod rope2d;
pub mod tolerance;

pub use activation::Activation;
pub use dtype::FloatType;
pub use error::ConvError;
pub use geometry::AxisGeometry;
pub use index_operand::{IndexOperand, IndexType};
pub use limits::Limits;
pub use operand::{Operand, row_major};
