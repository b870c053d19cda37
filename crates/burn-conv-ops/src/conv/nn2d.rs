//! conv2d as a module, with the configuration, parameters and records of Burn's `nn::conv`.

use crate::conv::{Conv2dOptions, try_conv2d};
use crate::conv3d::same_padding;
use crate::forms::{ActivationForm, AlgorithmForm, PaddingModeForm};
use crate::nn::{axis_setters, check_groups, config, setters};
use crate::{Activation, Algorithm, ConvError, PaddingMode, or_panic};
use burn::module::{Content, DisplaySettings, Initializer, Module, ModuleDisplay, Param};
use burn::nn::PaddingConfig2d;
use burn::serde::{Deserialize, Serialize};
use burn::tensor::{Device, Tensor};
use derive_new::new;

/// Configuration of a [`Conv2d`]: `Conv2dConfig::new([c_in, c_out], [kh, kw]).init(&device)`.
#[derive(Clone, Debug, new, Serialize, Deserialize)]
#[serde(crate = "burn::serde")]
pub struct Conv2dConfig {
    /// C and O.
    pub channels: [usize; 2],
    /// KH, KW.
    pub kernel_size: [usize; 2],
    /// Distance between windows; 1.
    #[new(value = "[1; 2]")]
    pub stride: [usize; 2],
    /// Distance between taps; 1.
    #[new(value = "[1; 2]")]
    pub dilation: [usize; 2],
    /// Groups; 1.
    #[new(value = "1")]
    pub groups: usize,
    /// Padding; none.
    #[new(value = "PaddingConfig2d::Valid")]
    pub padding: PaddingConfig2d,
    /// Whether a bias is learned; yes.
    #[new(value = "true")]
    pub bias: bool,
    /// How taps outside the input read; as zero.
    #[new(default)]
    #[serde(default, with = "PaddingModeForm")]
    pub padding_mode: PaddingMode,
    /// Applied to the result before it is rounded and stored; none.
    #[new(default)]
    #[serde(default, with = "ActivationForm")]
    pub activation: Activation,
    /// The kernel family; chosen by shape.
    #[new(default)]
    #[serde(default, with = "AlgorithmForm")]
    pub algorithm: Algorithm,
    /// How the parameters start; PyTorch's and Burn's default, uniform within `1 / sqrt(C/groups * taps)`.
    #[new(value = "Initializer::KaimingUniform { gain: 1.0 / 3f64.sqrt(), fan_out_only: false }")]
    pub initializer: Initializer,
}

config!(Conv2dConfig);
setters!(Conv2dConfig {
    /// Sets the number of groups.
    with_groups(groups: usize);
    /// Sets the padding.
    with_padding(padding: PaddingConfig2d);
    /// Sets whether a bias is learned.
    with_bias(bias: bool);
    /// Sets how taps outside the input read.
    with_padding_mode(padding_mode: PaddingMode);
    /// Sets the activation applied to the result.
    with_activation(activation: Activation);
    /// Forces a kernel family.
    with_algorithm(algorithm: Algorithm);
    /// Sets how the parameters start.
    with_initializer(initializer: Initializer);
});

axis_setters!(Conv2dConfig, 2 {
    /// Sets the distance between windows: one number or one for each axis.
    with_stride(stride);
    /// Sets the distance between taps: one number or one for each axis.
    with_dilation(dilation);
});

impl Conv2dConfig {
    /// The module with fresh parameters on `device`.
    ///
    /// # Panics
    /// If the groups do not divide both channel counts.
    pub fn init(&self, device: &Device) -> Conv2d {
        let [c_in, c_out] = self.channels;
        let groups = self.groups;
        check_groups("Conv2d", [c_in, c_out], groups);
        let [kh, kw] = self.kernel_size;
        let taps = kh * kw;
        let (fan_in, fan_out) = (Some(c_in / groups * taps), Some(c_out / groups * taps));
        let init = &self.initializer;
        Conv2d {
            weight: init.init_with([c_out, c_in / groups, kh, kw], fan_in, fan_out, device),
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

/// conv2d with learned weight and bias. Parameters are named and shaped as `torch.nn.Conv2d`'s.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct Conv2d {
    /// `[O, C/groups, KH, KW]`.
    pub weight: Param<Tensor<4>>,
    /// `[O]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// Distance between windows.
    pub stride: [usize; 2],
    /// Taps.
    pub kernel_size: [usize; 2],
    /// Distance between taps.
    pub dilation: [usize; 2],
    /// Groups.
    pub groups: usize,
    /// Padding.
    #[module(skip)]
    pub padding: PaddingConfig2d,
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

impl Conv2d {
    /// y `[N, O, OH, OW]` of x `[N, C, H, W]`.
    ///
    /// # Panics
    /// Where [`try_forward`](Self::try_forward) returns an error.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        or_panic(self.try_forward(x))
    }

    /// [`forward`](Self::forward) with errors as values.
    ///
    /// # Errors
    /// As [`try_conv2d`](crate::try_conv2d).
    pub fn try_forward(&self, x: Tensor<4>) -> Result<Tensor<4>, ConvError> {
        let bias = self.bias.as_ref().map(|bias| bias.val());
        let [_, _, input @ ..] = x.dims();
        try_conv2d(x, self.weight.val(), bias, self.options(input))
    }

    /// The options that the module calls [`conv2d`](crate::conv2d()) with, for an input of these extents.
    pub fn options(&self, input: [usize; 2]) -> Conv2dOptions {
        let same = |axis: usize| {
            same_padding(input[axis], self.kernel_size[axis], self.stride[axis], self.dilation[axis])
        };
        let padding = match self.padding {
            PaddingConfig2d::Same => [0, 1].map(same),
            PaddingConfig2d::Valid => [(0, 0); 2],
            PaddingConfig2d::Explicit(top, left, bottom, right) => [(top, bottom), (left, right)],
        };
        Conv2dOptions {
            stride: self.stride,
            padding,
            dilation: self.dilation,
            groups: self.groups,
            padding_mode: self.padding_mode,
            activation: self.activation,
            algorithm: self.algorithm,
        }
    }
}

impl ModuleDisplay for Conv2d {
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
