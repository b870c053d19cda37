//! The conformance suite of conv-kernels on emitted MSL, executed on this machine's
//! CPU: the same problems, references and tolerances, from the same files.

mod all_kernels;
mod defects;
mod device;
mod limits;

#[path = "../../../../kernels/tests/conformance/causal_conv1d/mod.rs"]
mod causal_conv1d;
#[path = "../../../../kernels/tests/conformance/conv3d.rs"]
mod conv3d;
#[path = "../../../../kernels/tests/conformance/conv3d_behaviour.rs"]
mod conv3d_behaviour;
#[path = "../../../../kernels/tests/conformance/conv3d_non_finite.rs"]
mod conv3d_non_finite;
#[path = "../../../../kernels/tests/conformance/conv3d_pieces.rs"]
mod conv3d_pieces;
#[path = "../../../../kernels/tests/conformance/conv3d_pre.rs"]
mod conv3d_pre;
#[path = "../../../../kernels/tests/conformance/conv3d_reference.rs"]
mod conv3d_reference;
#[path = "../../../../kernels/tests/conformance/conv3d_repeats.rs"]
mod conv3d_repeats;
#[path = "../../../../kernels/tests/conformance/conv3d_residual.rs"]
mod conv3d_residual;
#[path = "../../../../kernels/tests/conformance/conv3d_streams.rs"]
mod conv3d_streams;
#[path = "../../../../kernels/tests/conformance/conv3d_sums.rs"]
mod conv3d_sums;
#[path = "../../../../kernels/tests/conformance/conv3d_tiles.rs"]
mod conv3d_tiles;
#[path = "../../../../kernels/tests/conformance/conv3d_transposed.rs"]
mod conv3d_transposed;
#[path = "../../../../kernels/tests/conformance/conv3d_winograd.rs"]
mod conv3d_winograd;
#[path = "../../../../kernels/tests/conformance/laws.rs"]
mod laws;
#[path = "../../../../kernels/tests/conformance/rope/mod.rs"]
mod rope;
#[path = "../../../../kernels/tests/conformance/support.rs"]
mod support;
#[path = "../../../../kernels/tests/conformance/tiers.rs"]
mod tiers;
