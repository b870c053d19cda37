//! Causal conv3d as a module.

use super::{CausalConv3dOptions, FirstFrames, PaddingPairs, try_piece, try_whole};
use crate::forms::{ActivationForm, AlgorithmForm};
use crate::nn::{check_groups, config, convolution_setters, setters};
use crate::{Activation, Algorithm, ConvError, PaddingMode, PerAxis, or_panic};
use burn::module::{Content, DisplaySettings, Initializer, Module, ModuleDisplay, Param};
use burn::serde::{Deserialize, Serialize};
use burn::tensor::{Device, Tensor};

/// Configuration of a [`CausalConv3d`]: `CausalConv3dConfig::new([c_in, c_out], [kd, kh,
/// kw]).init(&device)`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "burn::serde")]
#[non_exhaustive]
pub struct CausalConv3dConfig {
    /// C and O.
    pub channels: [usize; 2],
    /// KD, KH, KW.
    pub kernel_size: [usize; 3],
    /// Distance between windows along D; 1.
    pub depth_stride: usize,
    /// Distance between windows along H, W; 1.
    pub stride: [usize; 2],
    /// Distance between taps along D, H, W; 1.
    pub dilation: [usize; 3],
    /// Groups; 1.
    pub groups: usize,
    /// Padding before and after H, W; none.
    pub plane_padding: [(usize, usize); 2],
    /// How taps outside the plane read along H, W; as zero. One name is read as both.
    #[serde(with = "crate::forms::padding_modes")]
    pub plane_mode: [PaddingMode; 2],
    /// What precedes the first frame; zeros.
    pub first: FirstFrames,
    /// Whether a bias is learned; yes.
    pub bias: bool,
    /// Applied to the result before it is rounded and stored; none.
    #[serde(with = "ActivationForm")]
    pub activation: Activation,
    /// The kernel family; chosen by shape.
    #[serde(with = "AlgorithmForm")]
    pub algorithm: Algorithm,
    /// How the parameters start; PyTorch's and Burn's default, uniform within
    /// `1 / sqrt(C/groups * KD * KH * KW)`.
    pub initializer: Initializer,
}

config!(CausalConv3dConfig);
convolution_setters!(CausalConv3dConfig);
setters!(CausalConv3dConfig {
    /// Sets the distance between windows along D.
    with_depth_stride(depth_stride: usize);
    /// Sets how taps outside the plane read along H, W.
    with_plane_modes(plane_mode: [PaddingMode; 2]);
    /// Sets what precedes the first frame.
    with_first(first: FirstFrames);
    /// Sets the distance between windows along H, W: one number or two.
    with_stride(stride => PerAxis<2>);
    /// Sets the distance between taps along D, H, W: one number or three.
    with_dilation(dilation => PerAxis<3>);
    /// Sets the padding of H, W: one number for all sides, one for each axis, or pairs (before, after).
    with_plane_padding(plane_padding => PaddingPairs<2>);
});

impl CausalConv3dConfig {
    /// Strides and dilation 1, one group, no padding in the plane, zeros before the first frame, a bias.
    pub fn new(channels: [usize; 2], kernel_size: [usize; 3]) -> Self {
        let options = CausalConv3dOptions::new();
        Self {
            channels,
            kernel_size,
            depth_stride: options.depth_stride,
            stride: options.stride,
            dilation: options.dilation,
            groups: options.groups,
            plane_padding: options.plane_padding,
            plane_mode: options.plane_mode,
            first: options.first,
            bias: true,
            activation: options.activation,
            algorithm: options.algorithm,
            initializer: Initializer::KaimingUniform { gain: 1.0 / 3f64.sqrt(), fan_out_only: false },
        }
    }

    /// Sets how taps outside the plane read, the same along H and W.
    #[must_use]
    pub fn with_plane_mode(self, plane_mode: PaddingMode) -> Self {
        self.with_plane_modes([plane_mode; 2])
    }

    /// The module with fresh parameters on `device`.
    ///
    /// # Panics
    /// If the groups do not divide both channel counts.
    pub fn init(&self, device: &Device) -> CausalConv3d {
        let [c_in, c_out] = self.channels;
        let groups = self.groups;
        check_groups("CausalConv3d", [c_in, c_out], groups);
        let [kd, kh, kw] = self.kernel_size;
        let taps = kd * kh * kw;
        let (fan_in, fan_out) = (Some(c_in / groups * taps), Some(c_out / groups * taps));
        let init = &self.initializer;
        CausalConv3d {
            weight: init.init_with([c_out, c_in / groups, kd, kh, kw], fan_in, fan_out, device),
            bias: self.bias.then(|| init.init_with([c_out], fan_in, fan_out, device)),
            depth_stride: self.depth_stride,
            stride: self.stride,
            dilation: self.dilation,
            groups,
            plane_padding: self.plane_padding,
            plane_mode: self.plane_mode,
            first: self.first,
            activation: self.activation,
            algorithm: self.algorithm,
        }
    }
}

/// Causal conv3d with learned weight and bias. Parameters are named and shaped as `torch.nn.Conv3d`'s.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct CausalConv3d {
    /// `[O, C/groups, KD, KH, KW]`.
    pub weight: Param<Tensor<5>>,
    /// `[O]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// Distance between windows along D.
    pub depth_stride: usize,
    /// Distance between windows along H, W.
    pub stride: [usize; 2],
    /// Distance between taps along D, H, W.
    pub dilation: [usize; 3],
    /// Groups.
    pub groups: usize,
    /// Padding before and after H, W.
    #[module(skip)]
    pub plane_padding: [(usize, usize); 2],
    /// How taps outside the plane read along H, W.
    #[module(skip)]
    pub plane_mode: [PaddingMode; 2],
    /// What precedes the first frame.
    #[module(skip)]
    pub first: FirstFrames,
    /// Applied to the result.
    #[module(skip)]
    pub activation: Activation,
    /// The kernel family.
    #[module(skip)]
    pub algorithm: Algorithm,
}

impl CausalConv3d {
    /// y `[N, O, OD, OH, OW]` of the whole clip x `[N, C, D, H, W]`.
    ///
    /// # Panics
    /// Where [`try_forward`](Self::try_forward) returns an error.
    pub fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        or_panic(self.try_forward(x))
    }

    /// [`forward`](Self::forward) with errors as values.
    ///
    /// # Errors
    /// As [`try_causal_conv3d`](crate::try_causal_conv3d).
    pub fn try_forward(&self, x: Tensor<5>) -> Result<Tensor<5>, ConvError> {
        try_whole(x, self.weight.val(), self.bias(), None, &self.options())
    }

    /// [`forward`](Self::forward) with a residual of y's shape added after the activation.
    ///
    /// # Panics
    /// Where [`try_forward_with_residual`](Self::try_forward_with_residual) returns an error.
    pub fn forward_with_residual(&self, x: Tensor<5>, residual: Tensor<5>) -> Tensor<5> {
        or_panic(self.try_forward_with_residual(x, residual))
    }

    /// [`forward_with_residual`](Self::forward_with_residual) with errors as values.
    ///
    /// # Errors
    /// As [`try_causal_conv3d_with_residual`](crate::try_causal_conv3d_with_residual).
    pub fn try_forward_with_residual(
        &self,
        x: Tensor<5>,
        residual: Tensor<5>,
    ) -> Result<Tensor<5>, ConvError> {
        try_whole(x, self.weight.val(), self.bias(), Some(residual), &self.options())
    }

    /// y of the clip's next frames. `cache` holds what this module still reads of the frames before them:
    /// `None` at the beginning of a clip, then what the call before left there.
    ///
    /// # Panics
    /// Where [`try_forward_streaming`](Self::try_forward_streaming) returns an error.
    pub fn forward_streaming(&self, x: Tensor<5>, cache: &mut Option<Tensor<5>>) -> Tensor<5> {
        or_panic(self.try_forward_streaming(x, cache))
    }

    /// [`forward_streaming`](Self::forward_streaming) with errors as values; the cache is then as it was.
    ///
    /// # Errors
    /// As [`try_causal_conv3d`](crate::try_causal_conv3d).
    pub fn try_forward_streaming(
        &self,
        x: Tensor<5>,
        cache: &mut Option<Tensor<5>>,
    ) -> Result<Tensor<5>, ConvError> {
        self.piece(x, None, cache)
    }

    /// [`forward_streaming`](Self::forward_streaming) with a residual of y's shape, which is added after the
    /// activation.
    ///
    /// # Panics
    /// Where [`try_forward_streaming_with_residual`](Self::try_forward_streaming_with_residual) returns an
    /// error.
    pub fn forward_streaming_with_residual(
        &self,
        x: Tensor<5>,
        residual: Tensor<5>,
        cache: &mut Option<Tensor<5>>,
    ) -> Tensor<5> {
        or_panic(self.try_forward_streaming_with_residual(x, residual, cache))
    }

    /// [`forward_streaming_with_residual`](Self::forward_streaming_with_residual) with errors as values; the
    /// cache is then as it was.
    ///
    /// # Errors
    /// As [`try_causal_conv3d_with_residual`](crate::try_causal_conv3d_with_residual).
    pub fn try_forward_streaming_with_residual(
        &self,
        x: Tensor<5>,
        residual: Tensor<5>,
        cache: &mut Option<Tensor<5>>,
    ) -> Result<Tensor<5>, ConvError> {
        self.piece(x, Some(residual), cache)
    }

    fn piece(
        &self,
        x: Tensor<5>,
        residual: Option<Tensor<5>>,
        cache: &mut Option<Tensor<5>>,
    ) -> Result<Tensor<5>, ConvError> {
        let (weight, bias) = (self.weight.val(), self.bias());
        let (y, next) = try_piece(x, weight, bias, cache.clone(), residual, self.options())?;
        *cache = Some(next);
        Ok(y)
    }

    fn bias(&self) -> Option<Tensor<1>> {
        self.bias.as_ref().map(|bias| bias.val())
    }

    /// The options that the module calls [`causal_conv3d`](crate::causal_conv3d()) with.
    pub fn options(&self) -> CausalConv3dOptions {
        CausalConv3dOptions {
            depth_stride: self.depth_stride,
            stride: self.stride,
            dilation: self.dilation,
            groups: self.groups,
            plane_padding: self.plane_padding,
            plane_mode: self.plane_mode,
            first: self.first,
            activation: self.activation,
            algorithm: self.algorithm,
        }
    }
}

impl ModuleDisplay for CausalConv3d {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [channels_out, group_channels, kernel @ ..] = self.weight.dims();
        content
            .add("ch_in", &(group_channels * self.groups))
            .add("ch_out", &channels_out)
            .add_debug_attribute("kernel_size", &kernel)
            .add("depth_stride", &self.depth_stride)
            .add_debug_attribute("stride", &self.stride)
            .add_debug_attribute("dilation", &self.dilation)
            .add("groups", &self.groups)
            .add_debug_attribute("plane_padding", &self.plane_padding)
            .add_debug_attribute("plane_mode", &self.plane_mode)
            .add_debug_attribute("first", &self.first)
            .add_debug_attribute("activation", &self.activation)
            .add_debug_attribute("algorithm", &self.algorithm)
            .optional()
    }
}
