//! conv3d: cross-correlation in three dimensions with PyTorch's semantics, and its three gradients. The input
//! gradient is also the transposed convolution, with bias and activation ([`transposed_forward`]).
//!
//! ```text
//! y[n,o,q] = activation( b[o] + sum_{c in group(o), k} X(n, c, q*stride - begin + k*dilation) * w[o,c,k] )
//!            + residual[n,o,q]
//! ```
//!
//! `X` reads zero outside the input, or an element of it (`padding.rs`). Problem -> plan -> kernel:
//! [`Conv3dProblem`] is validated, [`plan`] chooses, [`forward`], [`input_gradient`] and [`weight_gradient`]
//! launch (`call.rs`). [`fastest_plan`] measures instead of choosing (`tune.rs`). Every plan accumulates in
//! fp32 with one final rounding. No plan uses atomics: results are bitwise reproducible, also under other
//! limits on dispatches, which split the grid into more launches.
//!
//! # Non-finite operands, and the range of finite ones
//!
//! One contract for every plan but Winograd's and strided `Subpixel`, every device and pass
//! ([`reference::reach`] states it per result). With NaN or infinities among the operands
//!
//! - a result is not finite where a product of its sum holds one of them;
//! - other results of the same channel may be NaN or infinite: a weight `w[o,c,k]` may reach any result of
//!   channel o (dx: of channel c), an element of x or dy any weight gradient of its channel. The reason: most
//!   plans multiply by the zeros of the padding and of windows that do not exist, and 0 times infinity is
//!   NaN. [`Plan::Direct`] skips these products;
//! - every other result is finite and right.
//!
//! Under [`Plan::Winograd`] (`Auto` may take it) an element of x (dx: of dy) also reaches the other results
//! of its m x m tiles along H and W (in dw all taps of its channel's 3x3 filters). Under [`Plan::Subpixel`]
//! and a stride along H or W, an element of dy also reaches the other positions of the stride x stride blocks
//! that its window reaches. [`Notes::non_finite`] says which of them holds for a plan.
//!
//! Finite operands give finite, right results under every plan where the products' magnitudes have a finite
//! sum, counted with the largest of each channel: `C/groups * taps * max|x| * max|w| < 2^128` is enough (dx:
//! `O/groups * taps * max|dy| * max|w|`; dw: `N*OD*OH*OW * max|x| * max|dy|`). Results in a half type are
//! infinite above its largest number.
//!
//! # Long sums
//!
//! The weight's and the bias' gradients sum in slices of bounded length and add the slices as trees: see
//! `split.rs` for each kernel's bound. y and dx are fp32 sums over `C/groups * taps` and `O/groups * taps`
//! products, in one piece or in the few split-K slices that fill the device.
//!
//! # Safety of the launches
//!
//! Kernels are launched without bounds checks. Every launch relies on this contract; its `SAFETY` comment
//! adds what keeps its own indices in bounds.
//!
//! - Operands have the problem's shapes and dtype (`check.rs`), and every extent is below 2^31
//!   (`Conv3dProblem::new`).
//! - The plan serves the problem that is launched, within the device's limits (`call.rs`).
//! - The kernel's address type reaches every offset (`address_type`).
//! - The caller's output tensors overlap no input. Kernels that work in place (`reduce.rs`) touch each
//!   thread's own elements only.
//! - Threadgroups past the end of their span exit (`Span::is_idle`).
//!
//! tests/conformance runs every plan with guard zones around the tensors.

mod activation_pass;
mod args;
mod cache;
mod call;
mod check;
mod choose;
mod depthwise;
mod direct;
mod direct_weight;
mod epilogue;
mod family;
mod few_outputs;
mod fold;
mod frames;
mod gemm;
mod loops;
mod mma;
mod needs;
mod notes;
mod padding;
mod pass;
mod plan;
mod problem;
mod reduce;
pub mod reference;
mod row_segments;
mod split;
mod subpixel;
mod tiles;
mod transposed;
mod tune;
mod window;
pub mod winograd;

pub use crate::activation::Activation;
pub use activation_pass::activation_gradient;
pub use call::{
    Added, bias_gradient, forward, forward_cached, forward_with_pre, input_gradient, reads_cache,
    weight_and_bias_gradient, weight_gradient, weight_gradient_cached,
};
pub use choose::burn::{burn_seconds, fitted_seconds};
pub use choose::{eligible, gradient_plan, plan, predicted_bytes, predicted_seconds};
pub use depthwise::DepthwiseKernel;
pub use few_outputs::FewOutputsTile;
pub use gemm::{GemmTile, MatrixTile, RegisterTile};
pub use notes::{NonFinite, Notes};
pub use pass::Pass;
pub use plan::{Algorithm, Plan};
pub use problem::{Conv3dProblem, PaddingMode, Window};
pub use subpixel::SubpixelTile;
pub use tiles::Tiles;
pub use transposed::{transposed_forward, transposed_forward_with_pre};
pub use tune::fastest_plan;
pub use window::{WindowKernel, WindowTile, WindowWeightTile};
pub use winograd::{RegionExtent, WinogradConfig, WinogradTile};
