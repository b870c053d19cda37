//! The ops as modules, with configurations in Burn's style and parameters named and shaped as PyTorch's, so
//! that state dicts load through `burn-store`.

pub use crate::causal_conv1d::nn::{CausalConv1d, CausalConv1dConfig};
pub use crate::causal_conv3d::nn::{CausalConv3d, CausalConv3dConfig};
pub use crate::conv::nn::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig};
pub use crate::conv_transpose::nn::{
    ConvTranspose1d, ConvTranspose1dConfig, ConvTranspose2d, ConvTranspose2dConfig, ConvTranspose3d,
    ConvTranspose3dConfig,
};
pub use crate::conv3d::nn::{Conv3d, Conv3dConfig};
pub use crate::conv3d::{Conv3dPadding, FilterCache};
pub use crate::rope::nn::{Rope, RopeConfig};
pub use crate::rope::nn2d::{Rope2d, Rope2dConfig};

/// The methods that compile a module's kernels before training: the module, the rank of its input.
macro_rules! warm_up {
    ($module:ident, $rank:literal) => {
        impl $module {
            /// This layer, for x of these extents, in a list for [`warm_up`](crate::warm_up()).
            pub fn warm_up_layer(&self, x: [usize; $rank]) -> crate::WarmUpLayer<'_> {
                // Parameters start at their first use, with kernels that are not the layer's.
                let (weight, _) = (self.weight.val(), self.bias.as_ref().map(|bias| bias.val()));
                let name = format!("{} {x:?} by {:?}", stringify!($module), weight.dims());
                let like = (&weight.device(), weight.dtype());
                crate::WarmUpLayer::new(name, x, like, move |x| self.try_forward(x))
            }

            /// Compiles what training with x of these extents compiles at its first step: forward and, on a
            /// device with gradients, every gradient. See [`warm_up`](crate::warm_up()).
            ///
            /// # Errors
            /// As `try_forward`.
            ///
            /// # Panics
            /// When the device fails.
            pub fn warm_up(
                &self,
                x: [usize; $rank],
                progress: impl FnMut(&crate::WarmUpStep),
            ) -> Result<Vec<crate::WarmUpStep>, crate::ConvError> {
                crate::warm_up(&[self.warm_up_layer(x)], progress)
            }
        }
    };
}

warm_up!(CausalConv1d, 3);
warm_up!(CausalConv3d, 5);
warm_up!(Conv1d, 3);
warm_up!(Conv2d, 4);
warm_up!(Conv3d, 5);
warm_up!(ConvTranspose1d, 3);
warm_up!(ConvTranspose2d, 4);
warm_up!(ConvTranspose3d, 5);

/// Builder methods of a configuration or of options, one per line: documentation, name, field and its type,
/// or `=>` and what the field is made from an argument through (one number for all axes, say).
macro_rules! setters {
    ($(const $axes:ident:)? $name:ty {
        $($(#[$doc:meta])* $setter:ident($field:ident $(: $type:ty)? $(=> $via:ty)?);)*
    }) => {
        impl $(<const $axes: usize>)? $name {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $setter(mut self, $field: $($type)? $(impl Into<$via>)?) -> Self {
                    $(let $field: $via = $field.into();)?
                    self.$field = $field.into();
                    self
                }
            )*
        }
    };
}
pub(crate) use setters;

/// The setters that the configurations of all convolutions have.
macro_rules! convolution_setters {
    ($config:ty) => {
        crate::nn::setters!($config {
            /// Sets the number of groups.
            with_groups(groups: usize);
            /// Sets whether a bias is learned.
            with_bias(bias: bool);
            /// Sets the activation applied to the result.
            with_activation(activation: crate::Activation);
            /// Forces a kernel family.
            with_algorithm(algorithm: crate::Algorithm);
            /// Sets how the parameters start.
            with_initializer(initializer: burn::module::Initializer);
        });
    };
}
pub(crate) use convolution_setters;

/// Panics unless the groups divide both channel counts.
pub(crate) fn check_groups(module: &str, [c_in, c_out]: [usize; 2], groups: usize) {
    assert!(
        groups > 0 && c_in % groups == 0 && c_out % groups == 0,
        "{module}: {c_in} input and {c_out} output channels cannot be split into {groups} groups"
    );
}

/// What Burn asks of a configuration besides its data.
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
