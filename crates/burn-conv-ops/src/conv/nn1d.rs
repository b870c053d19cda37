//! conv1d as a module, with the configuration, parameters and records of Burn's `nn::conv`.

use crate::conv::{Conv1dOptions, try_conv1d};
use crate::conv3d::same_padding;
use crate::forms::{ActivationForm, AlgorithmForm, PaddingModeForm};
use crate::nn::{check_groups, config, setters};
use crate::{Activation, Algorithm, ConvError, PaddingMode, or_panic};
use burn::module::{Content, DisplaySettings, Initializer, Module, ModuleDisplay, Param};
use burn::nn::PaddingConfig1d;
use burn::serde::{Deserialize, Serialize};
use burn::tensor::{Device, Tensor};
use derive_new::new;

/// Configuration of a [`Conv1d`]: `Conv1dConfig::new(c_in, c_out, k).init(&device)`.
#[derive(Clone, Debug, new, Serialize, Deserialize)]
#[serde(crate = "burn::serde")]
pub struct Conv1dConfig {
    /// C.
    pub channels_in: usize,
    /// O.
    pub channels_out: usize,
    /// K.
    pub kernel_size: usize,
    /// Distance between windows; 1.
    #[new(value = "1")]
    pub stride: usize,
    /// Distance between taps; 1.
    #[new(value = "1")]
    pub dilation: usize,
    /// Groups; 1.
    #[new(value = "1")]
    pub groups: usize,
    /// Padding; none.
    #[new(value = "PaddingConfig1d::Valid")]
    pub padding: PaddingConfig1d,
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

config!(Conv1dConfig);
setters!(Conv1dConfig {
    /// Sets the distance between windows.
    with_stride(stride: usize);
    /// Sets the distance between taps.
    with_dilation(dilation: usize);
    /// Sets the number of groups.
    with_groups(groups: usize);
    /// Sets the padding.
    with_padding(padding: PaddingConfig1d);
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

impl Conv1dConfig {
    /// The module with fresh parameters on `device`.
    ///
    /// # Panics
    /// If the groups do not divide both channel counts.
    pub fn init(&self, device: &Device) -> Conv1d {
        let [c_in, c_out] = [self.channels_in, self.channels_out];
        let groups = self.groups;
        check_groups("Conv1d", [c_in, c_out], groups);
        let taps = self.kernel_size;
        let (fan_in, fan_out) = (Some(c_in / groups * taps), Some(c_out / groups * taps));
        let init = &self.initializer;
        Conv1d {
            weight: init.init_with([c_out, c_in / groups, taps], fan_in, fan_out, device),
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

/// conv1d with learned weight and bias. Parameters are named and shaped as `torch.nn.Conv1d`'s.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct Conv1d {
    /// `[O, C/groups, K]`.
    pub weight: Param<Tensor<3>>,
    /// `[O]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// Distance between windows.
    pub stride: usize,
    /// Taps.
    pub kernel_size: usize,
    /// Distance between taps.
    pub dilation: usize,
    /// Groups.
    pub groups: usize,
    /// Padding.
    #[module(skip)]
    pub padding: PaddingConfig1d,
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

impl Conv1d {
    /// y `[N, O, OL]` of x `[N, C, L]`.
    ///
    /// # Panics
    /// Where [`try_forward`](Self::try_forward) returns an error.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        or_panic(self.try_forward(x))
    }

    /// [`forward`](Self::forward) with errors as values.
    ///
    /// # Errors
    /// As [`try_conv1d`](crate::try_conv1d).
    pub fn try_forward(&self, x: Tensor<3>) -> Result<Tensor<3>, ConvError> {
        let bias = self.bias.as_ref().map(|bias| bias.val());
        let [_, _, input @ ..] = x.dims();
        try_conv1d(x, self.weight.val(), bias, self.options(input))
    }

    /// The options that the module calls [`conv1d`](crate::conv1d()) with, for an input of these extents.
    pub fn options(&self, input: [usize; 1]) -> Conv1dOptions {
        let [length] = input;
        let padding = match self.padding {
            PaddingConfig1d::Same => same_padding(length, self.kernel_size, self.stride, self.dilation),
            PaddingConfig1d::Valid => (0, 0),
            PaddingConfig1d::Explicit(before, after) => (before, after),
        };
        Conv1dOptions {
            stride: [self.stride],
            padding: [padding],
            dilation: [self.dilation],
            groups: self.groups,
            padding_mode: self.padding_mode,
            activation: self.activation,
            algorithm: self.algorithm,
        }
    }
}

impl ModuleDisplay for Conv1d {
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
