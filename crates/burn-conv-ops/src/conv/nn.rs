//! conv2d and conv1d as modules, with the configuration, parameters and records of Burn's `nn::conv`.

use super::{
    Conv1dOptions, Conv2dOptions, try_conv1d, try_conv1d_with_residual, try_conv2d, try_conv2d_with_residual,
};
use crate::forms::{ActivationForm, AlgorithmForm};
use crate::nn::{check_groups, config, convolution_setters, setters};
use crate::{Activation, Algorithm, ConvError, ConvPadding, PaddingMode, PerAxis, or_panic};
use burn::module::{Content, DisplaySettings, Initializer, Module, ModuleDisplay, Param};
use burn::nn::{PaddingConfig1d, PaddingConfig2d};
use burn::serde::{Deserialize, Serialize};
use burn::tensor::{Device, Tensor};

/// A configuration and its module for `$axes` axes and tensors of `$rank`: a type cannot compute its tensors'
/// rank, and Burn's conv1d has numbers (`$extents`) where its conv2d has arrays.
macro_rules! conv {
    (
        $axes:literal, $rank:literal, $extents:ty, $padding:ident, $options:ident, $function:ident,
        $with_residual:ident,
        $(#[$config_doc:meta])* $config:ident {
            $($(#[$channels_doc:meta])* $channels:ident: $channels_type:ty),*
        }
        $(#[$doc:meta])* $module:ident
    ) => {
        $(#[$config_doc])*
        #[derive(Clone, Debug, Serialize, Deserialize)]
        #[serde(crate = "burn::serde")]
        #[non_exhaustive]
        pub struct $config {
            $($(#[$channels_doc])* pub $channels: $channels_type,)*
            /// Taps along each axis.
            pub kernel_size: $extents,
            /// Distance between windows; 1.
            pub stride: $extents,
            /// Distance between taps; 1.
            pub dilation: $extents,
            /// Groups; 1.
            pub groups: usize,
            /// Padding; none.
            pub padding: $padding,
            /// Whether a bias is learned; yes.
            pub bias: bool,
            /// How taps outside the input read along each axis; as zero. One name is read as all.
            #[serde(default, with = "crate::forms::padding_modes")]
            pub padding_mode: [PaddingMode; $axes],
            /// Applied to the result before it is rounded and stored; none.
            #[serde(default, with = "ActivationForm")]
            pub activation: Activation,
            /// The kernel family; chosen by shape.
            #[serde(default, with = "AlgorithmForm")]
            pub algorithm: Algorithm,
            /// How the parameters start; PyTorch's and Burn's default, uniform within `1 / sqrt(C/groups *
            /// taps)`.
            pub initializer: Initializer,
        }

        config!($config);
        convolution_setters!($config);
        setters!($config {
            /// Sets the distance between windows: one number or one for each axis.
            with_stride(stride => PerAxis<$axes>);
            /// Sets the distance between taps: one number or one for each axis.
            with_dilation(dilation => PerAxis<$axes>);
            /// Sets the padding: one number, one for each axis, pairs (before, after), Burn's configuration
            /// or [`ConvPadding::Same`].
            with_padding(padding => ConvPadding<$axes>);
            /// Sets how taps outside the input read along each axis.
            with_padding_modes(padding_mode: [PaddingMode; $axes]);
        });

        impl $config {
            /// Stride and dilation 1, one group, no padding, a bias, no activation.
            pub fn new($($channels: $channels_type,)* kernel_size: $extents) -> Self {
                Self {
                    $($channels,)*
                    kernel_size,
                    stride: PerAxis::<$axes>::from(1).into(),
                    dilation: PerAxis::<$axes>::from(1).into(),
                    groups: 1,
                    padding: $padding::Valid,
                    bias: true,
                    padding_mode: [PaddingMode::Zeros; $axes],
                    activation: Activation::None,
                    algorithm: Algorithm::Auto,
                    initializer: Initializer::KaimingUniform { gain: 1.0 / 3f64.sqrt(), fan_out_only: false },
                }
            }

            /// Sets how taps outside the input read, the same along all axes.
            #[must_use]
            pub fn with_padding_mode(self, padding_mode: PaddingMode) -> Self {
                self.with_padding_modes([padding_mode; $axes])
            }

            /// The module with fresh parameters on `device`.
            ///
            /// # Panics
            /// If the groups do not divide both channel counts.
            pub fn init(&self, device: &Device) -> $module {
                let [c_in, c_out] = self.channel_counts();
                let groups = self.groups;
                check_groups(stringify!($module), [c_in, c_out], groups);
                let PerAxis(kernel) = PerAxis::<$axes>::from(self.kernel_size);
                let taps: usize = kernel.iter().product();
                let (fan_in, fan_out) = (Some(c_in / groups * taps), Some(c_out / groups * taps));
                let mut shape = [c_out; $rank];
                shape[1] = c_in / groups;
                shape[2..].copy_from_slice(&kernel);
                let init = &self.initializer;
                $module {
                    weight: init.init_with(shape, fan_in, fan_out, device),
                    bias: self.bias.then(|| init.init_with([c_out], fan_in, fan_out, device)),
                    stride: self.stride,
                    kernel_size: self.kernel_size,
                    dilation: self.dilation,
                    groups,
                    padding: self.padding.clone(),
                    padding_mode: self.padding_mode,
                    activation: self.activation,
                    algorithm: self.algorithm,
                }
            }
        }

        $(#[$doc])*
        #[derive(Module, Debug)]
        #[module(custom_display)]
        pub struct $module {
            /// `[O, C/groups, taps ..]`.
            pub weight: Param<Tensor<$rank>>,
            /// `[O]`.
            pub bias: Option<Param<Tensor<1>>>,
            /// Distance between windows.
            pub stride: $extents,
            /// Taps.
            pub kernel_size: $extents,
            /// Distance between taps.
            pub dilation: $extents,
            /// Groups.
            pub groups: usize,
            /// Padding.
            #[module(skip)]
            pub padding: $padding,
            /// How taps outside the input read along each axis.
            #[module(skip)]
            pub padding_mode: [PaddingMode; $axes],
            /// Applied to the result.
            #[module(skip)]
            pub activation: Activation,
            /// The kernel family.
            #[module(skip)]
            pub algorithm: Algorithm,
        }

        impl $module {
            /// y `[N, O, ..]` of x `[N, C, ..]`.
            ///
            /// # Panics
            /// Where [`try_forward`](Self::try_forward) returns an error.
            pub fn forward(&self, x: Tensor<$rank>) -> Tensor<$rank> {
                or_panic(self.try_forward(x))
            }

            /// [`forward`](Self::forward) with errors as values.
            ///
            /// # Errors
            #[doc = concat!("As [`", stringify!($function), "`](crate::", stringify!($function), ").")]
            pub fn try_forward(&self, x: Tensor<$rank>) -> Result<Tensor<$rank>, ConvError> {
                let bias = self.bias.as_ref().map(|bias| bias.val());
                $function(x, self.weight.val(), bias, self.options())
            }

            /// [`forward`](Self::forward) with a residual of y's shape added after the activation.
            ///
            /// # Panics
            /// Where [`try_forward_with_residual`](Self::try_forward_with_residual) returns an error.
            pub fn forward_with_residual(&self, x: Tensor<$rank>, residual: Tensor<$rank>) -> Tensor<$rank> {
                or_panic(self.try_forward_with_residual(x, residual))
            }

            /// [`forward_with_residual`](Self::forward_with_residual) with errors as values.
            ///
            /// # Errors
            #[doc = concat!("As [`", stringify!($with_residual), "`](crate::", stringify!($with_residual), ").")]
            pub fn try_forward_with_residual(
                &self,
                x: Tensor<$rank>,
                residual: Tensor<$rank>,
            ) -> Result<Tensor<$rank>, ConvError> {
                let bias = self.bias.as_ref().map(|bias| bias.val());
                $with_residual(x, self.weight.val(), bias, residual, self.options())
            }

            /// The options that the module calls the function of the op with.
            pub fn options(&self) -> $options {
                $options {
                    stride: PerAxis::from(self.stride).0,
                    padding: self.padding.clone().into(),
                    dilation: PerAxis::from(self.dilation).0,
                    groups: self.groups,
                    padding_mode: self.padding_mode,
                    activation: self.activation,
                    algorithm: self.algorithm,
                }
            }
        }

        impl ModuleDisplay for $module {
            fn custom_settings(&self) -> Option<DisplaySettings> {
                DisplaySettings::new().with_new_line_after_attribute(false).optional()
            }

            fn custom_content(&self, content: Content) -> Option<Content> {
                let [channels_out, group_channels, ..] = self.weight.dims();
                content
                    .add("ch_in", &(group_channels * self.groups))
                    .add("ch_out", &channels_out)
                    .add_debug_attribute("kernel_size", &self.kernel_size)
                    .add_debug_attribute("stride", &self.stride)
                    .add_debug_attribute("padding", &self.padding)
                    .add_debug_attribute("dilation", &self.dilation)
                    .add("groups", &self.groups)
                    .add_debug_attribute("padding_mode", &self.padding_mode)
                    .add_debug_attribute("activation", &self.activation)
                    .add_debug_attribute("algorithm", &self.algorithm)
                    .optional()
            }
        }
    };
}

conv!(
    2, 4, [usize; 2], PaddingConfig2d, Conv2dOptions, try_conv2d, try_conv2d_with_residual,
    /// Configuration of a [`Conv2d`]: `Conv2dConfig::new([c_in, c_out], [kh, kw]).init(&device)`.
    Conv2dConfig {
        /// C and O.
        channels: [usize; 2]
    }
    /// conv2d with learned weight and bias. Parameters are named and shaped as `torch.nn.Conv2d`'s.
    Conv2d
);

conv!(
    1, 3, usize, PaddingConfig1d, Conv1dOptions, try_conv1d, try_conv1d_with_residual,
    /// Configuration of a [`Conv1d`]: `Conv1dConfig::new(c_in, c_out, k).init(&device)`.
    Conv1dConfig {
        /// C.
        channels_in: usize,
        /// O.
        channels_out: usize
    }
    /// conv1d with learned weight and bias. Parameters are named and shaped as `torch.nn.Conv1d`'s.
    Conv1d
);

impl Conv2dConfig {
    fn channel_counts(&self) -> [usize; 2] {
        self.channels
    }
}

impl Conv1dConfig {
    fn channel_counts(&self) -> [usize; 2] {
        [self.channels_in, self.channels_out]
    }
}
