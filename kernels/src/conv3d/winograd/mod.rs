//! Winograd in H and W, with the depth taps summed in the transform domain.
//!
//! ```text
//! Y[n,o,od] = A^T [ sum over kd, c of (G g[o,c,kd] G^T) . (B^T d[n,c,f] B) ] A
//! f         = od*stride + kd*dilation - begin                          the input frame of (od, kd)
//!
//! filter.rs    U[point, kd, c, o]                = G g G^T
//! input.rs     V[point, c, (image, frame, tile)] = B^T d B
//! product.rs   M[point, o, (image, frame, tile)] = sum over (kd, c) of V * U    one GEMM per point
//! output.rs    y                                 = activation(A^T M A + bias) + residual, edges masked
//! ```
//!
//! Each input frame is transformed once, whatever KD; each output frame is transformed back once. Frames are
//! addressed by index, so any batch, depth padding, stride and dilation is served: a frame outside the input
//! is skipped, or clamped under replicate padding. A stream's first frames are transformed from their cache.
//!
//! The input gradient is the same correlation with the filter mirrored on all three axes and its channels
//! swapped; the weight gradient is in `weight_gradient.rs`. Everything between load and store is fp32. Frames
//! are processed in regions whose V and M fit the workspace; for y and dx the regions change no sum and
//! therefore no bit. The transforms are separate kernels: a fused kernel would have to hold all t * t points
//! of a tile in one threadgroup, and the product dominates. Depth is summed, not transformed, because
//! transforming it doubles V and M (measurements: docs/decisions/winograd.md).
//!
//! Declined: kernels other than 3x3 in H and W, stride or dilation in H or W, groups, dx with a depth stride,
//! dw by F(6x6).
//!
//! A non-finite input reaches every output of its tiles (up to t * t inputs make m * m outputs non-finite),
//! unlike in a direct sum; [`Algorithm::NoWinograd`](super::Algorithm::NoWinograd) keeps it in its receptive
//! field.
//!
//! Range: an input transform enlarges values up to 49 times (F(4x4); 225 times for F(6x6)), and outputs are
//! small differences of sums up to 876 times (4579 times) the direct ones. The products U * V are therefore
//! scaled by 2^-7, 2^-10, 2^-13 (F(2x2), F(4x4), F(6x6)), and y is multiplied back in its last fma
//! (`constants::scale_exponent`): exact and free. With the largest |d| of a tile and the largest |g| of a
//! filter, every number is finite if
//!
//! ```text
//! sum over c, kd            of max|d| * max|g|  < 2^128
//! sum over n, frames, tiles of max|d| * max|dy| < 2^128      (the weight gradient)
//! ```
//!
//! however large x and w are by themselves. Intermediates below 2^-126 are lost: products |d * g| below
//! 2^-113, about 1e-34.
//!
//! # Safety of the launches
//!
//! Every launch of this folder is unchecked. The public entry points compare operands, dtypes and shapes with
//! the problem (`conv3d::call`, `check_operands`), `address_type` reaches every offset, U, V, M, D and S are
//! sized by `Correlation::workspace` for the largest region, and no launch writes a buffer that it also
//! reads through another binding. Kernels drop idle threads and mask the padding. The comment at a launch
//! says only what that kernel masks in addition.

mod config;
mod constants;
mod cost;
mod depth;
mod filter;
mod input;
mod launch;
mod output;
mod product;
mod product_mma;
pub mod reference;
mod region;
mod row_loops;
mod transform;
mod weight_gradient;
mod weight_product;
mod weight_product_mma;
mod weight_work;

pub use config::WinogradConfig;
pub(crate) use config::config;
pub use constants::WinogradTile;
pub use cost::Cost;
pub use launch::{forward_prepared, prepare, prepared_shape};
pub(super) use product_mma::tile as mma_tile;
pub use region::RegionExtent;

use config::{PRODUCT, padding};
use launch::WinogradCall;
