//! conv2d and conv1d as modules, with the configuration, parameters and records of Burn's `nn::conv`.

use super::{Conv1dOptions, Conv2dOptions, try_conv1d, try_conv2d};
use crate::conv3d::same_padding;
use crate::forms::{ActivationForm, AlgorithmForm, PaddingModeForm};
use crate::nn::{check_groups, config, convolution_setters, setters};
use crate::{Activation, Algorithm, ConvError, PaddingMode, PerAxis, or_panic};
use burn::module::{Content, DisplaySettings, Initializer, Module, ModuleDisplay, Param};
use burn::nn::{PaddingConfig1d, PaddingConfig2d};
use burn::serde::{Deserialize, Serialize};
use burn::tensor::{Device, Tensor};

/// A configuration and its module for `$axes` axes and tensors of `$rank`: a type cannot compute its tensors'
/// rank, and Burn's conv1d has numbers (`$extents`) where its conv2d has arrays.
macro_rules! conv {
    (
        $axes:literal, $rank:literal, $extents:ty, $one:expr, $padding:ident, $options:ident, $function:ident,
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
            /// How taps outside the input read; as zero.
            #[serde(default, with = "PaddingModeForm")]
            pub padding_mode: PaddingMode,
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
            /// Sets the padding.
            with_padding(padding: $padding);
            /// Sets how taps outside the input read.
            with_padding_mode(padding_mode: PaddingMode);
        });

        impl $config {
            /// Stride and dilation 1, one group, no padding, a bias, no activation.
            pub fn new($($channels: $channels_type,)* kernel_size: $extents) -> Self {
                Self {
                    $($channels,)*
                    kernel_size,
                    stride: $one,
                    dilation: $one,
                    groups: 1,
                    padding: $padding::Valid,
                    bias: true,
                    padding_mode: PaddingMode::Zeros,
                    activation: Activation::None,
                    algorithm: Algorithm::Auto,
                    initializer: Initializer::KaimingUniform { gain: 1.0 / 3f64.sqrt(), fan_out_only: false },
                }
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
            /// How taps outside the input read.
            #[module(skip)]
            pub padding_mode: PaddingMode,
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
                let [_, _, input @ ..] = x.dims();
                $function(x, self.weight.val(), bias, self.options(input))
            }

            /// The options that the module calls the function of the op with, for an input of these extents.
            pub fn options(&self, input: [usize; $axes]) -> $options {
                let [PerAxis(kernel), PerAxis(stride), PerAxis(dilation)] =
                    [self.kernel_size, self.stride, self.dilation].map(PerAxis::<$axes>::from);
                let same = |axis| same_padding(input[axis], kernel[axis], stride[axis], dilation[axis]);
                $options {
                    stride,
                    padding: self.explicit_padding().unwrap_or_else(|| std::array::from_fn(same)),
                    dilation,
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
    2, 4, [usize; 2], [1; 2], PaddingConfig2d, Conv2dOptions, try_conv2d,
    /// Configuration of a [`Conv2d`]: `Conv2dConfig::new([c_in, c_out], [kh, kw]).init(&device)`.
    Conv2dConfig {
        /// C and O.
        channels: [usize; 2]
    }
    /// conv2d with learned weight and bias. Parameters are named and shaped as `torch.nn.Conv2d`'s.
    Conv2d
);

conv!(
    1, 3, usize, 1, PaddingConfig1d, Conv1dOptions, try_conv1d,
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

setters!(Conv2dConfig {
    /// Sets the distance between windows: one number or one for each axis.
    with_stride(stride => PerAxis<2>);
    /// Sets the distance between taps: one number or one for each axis.
    with_dilation(dilation => PerAxis<2>);
});

setters!(Conv1dConfig {
    /// Sets the distance between windows.
    with_stride(stride: usize);
    /// Sets the distance between taps.
    with_dilation(dilation: usize);
});

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

impl Conv2d {
    /// None: as much as gives `ceil(input / stride)` outputs.
    fn explicit_padding(&self) -> Option<[(usize, usize); 2]> {
        match self.padding {
            PaddingConfig2d::Same => None,
            PaddingConfig2d::Valid => Some([(0, 0); 2]),
            PaddingConfig2d::Explicit(top, left, bottom, right) => Some([(top, bottom), (left, right)]),
        }
    }
}

impl Conv1d {
    /// None: as much as gives `ceil(input / stride)` outputs.
    fn explicit_padding(&self) -> Option<[(usize, usize); 1]> {
        match self.padding {
            PaddingConfig1d::Same => None,
            PaddingConfig1d::Valid => Some([(0, 0)]),
            PaddingConfig1d::Explicit(before, after) => Some([(before, after)]),
        }
    }
}
