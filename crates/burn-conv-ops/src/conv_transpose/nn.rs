//! Transposed conv3d, conv2d and conv1d as modules, with the configuration, parameters and records of Burn's
//! `nn::conv`.

use super::{
    ConvTranspose1dOptions, ConvTranspose2dOptions, ConvTranspose3dOptions, try_conv_transpose1d,
    try_conv_transpose2d, try_conv_transpose3d,
};
use crate::forms::{ActivationForm, AlgorithmForm};
use crate::nn::{check_groups, config, convolution_setters, setters};
use crate::{Activation, Algorithm, ConvError, PerAxis, or_panic};
use burn::module::{Content, DisplaySettings, Initializer, Module, ModuleDisplay, Param};
use burn::serde::{Deserialize, Serialize};
use burn::tensor::{Device, Tensor};

/// A configuration and its module for `$axes` axes and tensors of `$rank`: a type cannot compute its tensors'
/// rank, and Burn's conv_transpose1d has numbers (`$extents`) where the others have arrays.
macro_rules! conv_transpose {
    (
        $axes:literal, $rank:literal, $extents:ty, $options:ident, $function:ident,
        $(#[$config_doc:meta])* $config:ident,
        $(#[$doc:meta])* $module:ident
    ) => {
        $(#[$config_doc])*
        #[derive(Clone, Debug, Serialize, Deserialize)]
        #[serde(crate = "burn::serde")]
        #[non_exhaustive]
        pub struct $config {
            /// C and O.
            pub channels: [usize; 2],
            /// Taps along each axis.
            pub kernel_size: $extents,
            /// Distance in the result between the windows of neighbouring elements of x; 1.
            pub stride: $extents,
            /// Distance between taps; 1.
            pub dilation: $extents,
            /// Groups; 1.
            pub groups: usize,
            /// Elements that are cut from both ends of the result; 0.
            pub padding: $extents,
            /// Elements that the result has behind these, PyTorch's `output_padding`; 0.
            pub padding_out: $extents,
            /// Whether a bias is learned; yes.
            pub bias: bool,
            /// Applied to the result; none.
            #[serde(default, with = "ActivationForm")]
            pub activation: Activation,
            /// The kernel family; chosen by shape.
            #[serde(default, with = "AlgorithmForm")]
            pub algorithm: Algorithm,
            /// How the parameters start; PyTorch's and Burn's default, uniform within `1 / sqrt(O/groups *
            /// taps)`.
            pub initializer: Initializer,
        }

        config!($config);
        convolution_setters!($config);
        setters!($config {
            /// Sets the stride: one number or one for each axis.
            with_stride(stride => PerAxis<$axes>);
            /// Sets the distance between taps: one number or one for each axis.
            with_dilation(dilation => PerAxis<$axes>);
            /// Sets how much is cut from both ends of the result: one number or one for each axis.
            with_padding(padding => PerAxis<$axes>);
            /// Sets how much longer the result is: one number or one for each axis.
            with_padding_out(padding_out => PerAxis<$axes>);
        });

        impl $config {
            /// Stride and dilation 1, one group, no padding, a bias, no activation.
            pub fn new(channels: [usize; 2], kernel_size: $extents) -> Self {
                Self {
                    channels,
                    kernel_size,
                    stride: PerAxis::<$axes>::from(1).into(),
                    dilation: PerAxis::<$axes>::from(1).into(),
                    groups: 1,
                    padding: PerAxis::<$axes>::from(0).into(),
                    padding_out: PerAxis::<$axes>::from(0).into(),
                    bias: true,
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
                let [c_in, c_out] = self.channels;
                let groups = self.groups;
                check_groups(stringify!($module), [c_in, c_out], groups);
                let PerAxis(kernel) = PerAxis::<$axes>::from(self.kernel_size);
                let fan_in = Some(c_out / groups * kernel.iter().product::<usize>());
                let mut shape = [c_in; $rank];
                shape[1] = c_out / groups;
                shape[2..].copy_from_slice(&kernel);
                let init = &self.initializer;
                $module {
                    weight: init.init_with(shape, fan_in, None, device),
                    bias: self.bias.then(|| init.init_with([c_out], fan_in, None, device)),
                    stride: self.stride,
                    kernel_size: self.kernel_size,
                    dilation: self.dilation,
                    groups,
                    padding: self.padding,
                    padding_out: self.padding_out,
                    channels: self.channels,
                    activation: self.activation,
                    algorithm: self.algorithm,
                }
            }
        }

        $(#[$doc])*
        #[derive(Module, Debug)]
        #[module(custom_display)]
        pub struct $module {
            /// `[C, O/groups, taps ..]`.
            pub weight: Param<Tensor<$rank>>,
            /// `[O]`.
            pub bias: Option<Param<Tensor<1>>>,
            /// Distance in the result between the windows of neighbouring elements of x.
            pub stride: $extents,
            /// Taps along each axis.
            pub kernel_size: $extents,
            /// Distance between taps.
            pub dilation: $extents,
            /// Groups.
            pub groups: usize,
            /// Elements that are cut from both ends of the result.
            pub padding: $extents,
            /// Elements that the result has behind these.
            pub padding_out: $extents,
            /// C and O.
            pub channels: [usize; 2],
            /// Applied to the result.
            #[module(skip)]
            pub activation: Activation,
            /// The kernel family.
            #[module(skip)]
            pub algorithm: Algorithm,
        }

        impl $module {
            /// y of x `[N, C, ..]`.
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

            /// The options that the module calls the function of the op with.
            pub fn options(&self) -> $options {
                $options {
                    stride: PerAxis::from(self.stride).0,
                    padding: PerAxis::from(self.padding).0,
                    padding_out: PerAxis::from(self.padding_out).0,
                    dilation: PerAxis::from(self.dilation).0,
                    groups: self.groups,
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
                content
                    .add_debug_attribute("channels", &self.channels)
                    .add_debug_attribute("kernel_size", &self.kernel_size)
                    .add_debug_attribute("stride", &self.stride)
                    .add_debug_attribute("padding", &self.padding)
                    .add_debug_attribute("padding_out", &self.padding_out)
                    .add_debug_attribute("dilation", &self.dilation)
                    .add("groups", &self.groups)
                    .add_debug_attribute("activation", &self.activation)
                    .add_debug_attribute("algorithm", &self.algorithm)
                    .optional()
            }
        }
    };
}

conv_transpose!(
    3,
    5,
    [usize; 3],
    ConvTranspose3dOptions,
    try_conv_transpose3d,
    /// Configuration of a [`ConvTranspose3d`]: `ConvTranspose3dConfig::new([c_in, c_out], [kd, kh,
    /// kw]).init(&device)`.
    ConvTranspose3dConfig,
    /// Transposed conv3d with learned weight and bias. Parameters are named and shaped as
    /// `torch.nn.ConvTranspose3d`'s.
    ConvTranspose3d
);

conv_transpose!(
    2,
    4,
    [usize; 2],
    ConvTranspose2dOptions,
    try_conv_transpose2d,
    /// Configuration of a [`ConvTranspose2d`]: `ConvTranspose2dConfig::new([c_in, c_out], [kh,
    /// kw]).init(&device)`.
    ConvTranspose2dConfig,
    /// Transposed conv2d with learned weight and bias. Parameters are named and shaped as
    /// `torch.nn.ConvTranspose2d`'s.
    ConvTranspose2d
);

conv_transpose!(
    1,
    3,
    usize,
    ConvTranspose1dOptions,
    try_conv_transpose1d,
    /// Configuration of a [`ConvTranspose1d`]: `ConvTranspose1dConfig::new([c_in, c_out], k).init(&device)`.
    ConvTranspose1dConfig,
    /// Transposed conv1d with learned weight and bias. Parameters are named and shaped as
    /// `torch.nn.ConvTranspose1d`'s.
    ConvTranspose1d
);
