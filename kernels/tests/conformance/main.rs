//! Every kernel under every plan against the f64 references, on a device.

mod causal_conv1d;
mod conv3d;
mod conv3d_behaviour;
mod conv3d_cache_layouts;
mod conv3d_non_finite;
mod conv3d_pieces;
mod conv3d_pre;
mod conv3d_reference;
mod conv3d_repeats;
mod conv3d_residual;
mod conv3d_streams;
mod conv3d_sums;
mod conv3d_tiles;
mod conv3d_transposed;
mod conv3d_winograd;
mod device;
mod errors;
mod laws;
mod rope;
mod support;
mod tiers;
