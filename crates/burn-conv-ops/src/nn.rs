//! The ops as modules, with configurations in Burn's style and parameters named and shaped as PyTorch's, so
//! that state dicts load through `burn-store`.

pub use crate::causal_conv1d::nn::{CausalConv1d, CausalConv1dConfig};
pub use crate::conv::nn1d::{Conv1d, Conv1dConfig};
pub use crate::conv::nn2d::{Conv2d, Conv2dConfig};
pub use crate::conv_transpose::nn2d::{ConvTranspose2d, ConvTranspose2dConfig};
pub use crate::conv_transpose::nn3d::{ConvTranspose3d, ConvTranspose3dConfig};
pub use crate::conv3d::nn::{Conv3d, Conv3dConfig};
pub use crate::conv3d::{Conv3dPadding, FilterCache};
pub use crate::rope2d::nn::{Rope2d, Rope2dConfig};

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
pub(crate) use setters;

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
pub(crate) use config;
