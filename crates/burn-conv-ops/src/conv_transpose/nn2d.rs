//! Transposed conv2d as a module, with the configuration, parameters and records of Burn's `nn::conv`.

use super::{ConvTranspose2dOptions, try_conv_transpose2d};
use crate::forms::AlgorithmForm;
use crate::nn::{config, setters};
use crate::{Algorithm, ConvError, PerAxis, or_panic};
use burn::module::{Content, DisplaySettings, Initializer, Module, ModuleDisplay, Param};
use burn::serde::{Deserialize, Serialize};
use burn::tensor::{Device, Tensor};
use derive_new::new;

/// Configuration of a [`ConvTranspose2d`]: `ConvTranspose2dConfig::new([c_in, c_out], [kh,
/// kw]).init(&device)`.
#[derive(Clone, Debug, new, Serialize, Deserialize)]
#[serde(crate = "burn::serde")]
pub struct ConvTranspose2dConfig {
    /// C and O.
    pub channels: [usize; 2],
    /// Taps along each axis.
    pub kernel_size: [usize; 2],
    /// Distance in the result between the windows of neighbouring elements of x; 1.
    #[new(value = "[1; 2]")]
    pub stride: [usize; 2],
    /// Distance between taps; 1.
    #[new(value = "[1; 2]")]
    pub dilation: [usize; 2],
    /// Groups; 1.
    #[new(value = "1")]
    pub groups: usize,
    /// Elements that are cut from both ends of the result; 0.
    #[new(value = "[0; 2]")]
    pub padding: [usize; 2],
    /// Elements that the result has behind these; 0.
    #[new(value = "[0; 2]")]
    pub padding_out: [usize; 2],
    /// Whether a bias is learned; yes.
    #[new(value = "true")]
    pub bias: bool,
    /// The kernel family; chosen by shape.
    #[new(default)]
    #[serde(default, with = "AlgorithmForm")]
    pub algorithm: Algorithm,
    /// How the parameters start; PyTorch's and Burn's default, uniform within `1 / sqrt(O/groups * taps)`.
    #[new(value = "Initializer::KaimingUniform { gain: 1.0 / 3f64.sqrt(), fan_out_only: false }")]
    pub initializer: Initializer,
}

config!(ConvTranspose2dConfig);
setters!(ConvTranspose2dConfig {
    /// Sets the number of groups.
    with_groups(groups: usize);
    /// Sets whether a bias is learned.
    with_bias(bias: bool);
    /// Forces a kernel family.
    with_algorithm(algorithm: Algorithm);
    /// Sets how the parameters start.
    with_initializer(initializer: Initializer);
});

impl ConvTranspose2dConfig {
    /// Sets the stride: one number or one for each axis.
    #[must_use]
    pub fn with_stride(self, stride: impl Into<PerAxis<2>>) -> Self {
        Self { stride: stride.into().0, ..self }
    }

    /// Sets the distance between taps: one number or one for each axis.
    #[must_use]
    pub fn with_dilation(self, dilation: impl Into<PerAxis<2>>) -> Self {
        Self { dilation: dilation.into().0, ..self }
    }

    /// Sets how much is cut from both ends of the result: one number or one for each axis.
    #[must_use]
    pub fn with_padding(self, padding: impl Into<PerAxis<2>>) -> Self {
        Self { padding: padding.into().0, ..self }
    }

    /// Sets how much longer the result is: one number or one for each axis.
    #[must_use]
    pub fn with_padding_out(self, padding_out: impl Into<PerAxis<2>>) -> Self {
        Self { padding_out: padding_out.into().0, ..self }
    }

    /// The module with fresh parameters on `device`.
    ///
    /// # Panics
    /// If the groups do not divide both channel counts.
    pub fn init(&self, device: &Device) -> ConvTranspose2d {
        let [c_in, c_out] = self.channels;
        let groups = self.groups;
        assert!(
            groups > 0 && c_in % groups == 0 && c_out % groups == 0,
            "ConvTranspose2d: {c_in} input and {c_out} output channels cannot be split into {groups} groups"
        );
        let [kh, kw] = self.kernel_size;
        let fan_in = Some(c_out / groups * (kh * kw));
        let init = &self.initializer;
        ConvTranspose2d {
            weight: init.init_with([c_in, c_out / groups, kh, kw], fan_in, None, device),
            bias: self.bias.then(|| init.init_with([c_out], fan_in, None, device)),
            stride: self.stride,
            kernel_size: self.kernel_size,
            dilation: self.dilation,
            groups,
            padding: self.padding,
            padding_out: self.padding_out,
            channels: self.channels,
            algorithm: self.algorithm,
        }
    }
}

/// Transposed conv2d with learned weight and bias. Parameters are named and shaped as
/// `torch.nn.ConvTranspose2d`'s.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct ConvTranspose2d {
    /// `[C, O/groups, KH, KW]`.
    pub weight: Param<Tensor<4>>,
    /// `[O]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// Distance in the result between the windows of neighbouring elements of x.
    pub stride: [usize; 2],
    /// Taps along each axis.
    pub kernel_size: [usize; 2],
    /// Distance between taps.
    pub dilation: [usize; 2],
    /// Groups.
    pub groups: usize,
    /// Elements that are cut from both ends of the result.
    pub padding: [usize; 2],
    /// Elements that the result has behind these.
    pub padding_out: [usize; 2],
    /// C and O.
    pub channels: [usize; 2],
    /// The kernel family.
    #[module(skip)]
    pub algorithm: Algorithm,
}

impl ConvTranspose2d {
    /// y of x `[N, C, H, W]`.
    ///
    /// # Panics
    /// Where [`try_forward`](Self::try_forward) returns an error.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        or_panic(self.try_forward(x))
    }

    /// [`forward`](Self::forward) with errors as values.
    ///
    /// # Errors
    /// As [`try_conv_transpose2d`].
    pub fn try_forward(&self, x: Tensor<4>) -> Result<Tensor<4>, ConvError> {
        let bias = self.bias.as_ref().map(|bias| bias.val());
        try_conv_transpose2d(x, self.weight.val(), bias, self.options())
    }

    /// The options that the module calls [`conv_transpose2d`](crate::conv_transpose2d()) with.
    pub fn options(&self) -> ConvTranspose2dOptions {
        ConvTranspose2dOptions {
            stride: self.stride,
            padding: self.padding,
            output_padding: self.padding_out,
            dilation: self.dilation,
            groups: self.groups,
            algorithm: self.algorithm,
        }
    }
}

impl ModuleDisplay for ConvTranspose2d {
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
            .add_debug_attribute("algorithm", &self.algorithm)
            .optional()
    }
}
