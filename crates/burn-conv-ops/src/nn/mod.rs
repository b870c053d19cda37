//! The ops as modules, with configurations in Burn's style and parameters named and shaped as PyTorch's, so
//! that state dicts load through `burn-store`.

mod causal_conv1d;
mod conv3d;
mod filters;
mod forms;
mod rope2d;

pub use causal_conv1d::{CausalConv1d, CausalConv1dConfig};
pub use conv3d::{Conv3d, Conv3dConfig, Conv3dPadding};
pub use filters::FilterCache;
pub use rope2d::{Rope2d, Rope2dConfig};

/// Builder methods of a configuration, one per line: documentation, name, argument type, field.
macro_rules! setters {
    ($config:ident { $($(#[$doc:meta])* $setter:ident($field:ident: $type:ty);)* }) => {
        impl $config {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $setter(mut self, $field: $type) -> Self {
                    self.$field = $field.into();
                    self
                }
            )*
        }
    };
}
use setters;

/// What Burn asks of a configuration beside its data.
macro_rules! config {
    ($config:ident) => {
        impl burn::config::Config for $config {}

        /// The configuration as JSON.
        impl std::fmt::Display for $config {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&burn::config::config_to_json(self))
            }
        }
    };
}
use config;
