//! conv3d as a module.

use super::filters::{FilterCache, is_composed};
use super::{Conv3dOptions, Conv3dPadding, check};
use crate::backend::ConvOps;
use crate::forms::{ActivationForm, AlgorithmForm};
use crate::nn::{check_groups, config, convolution_setters, setters};
use crate::{Activation, Algorithm, ConvError, PaddingMode, PerAxis, or_panic};
use burn::backend::Dispatch;
use burn::module::{Content, DisplaySettings, Initializer, Module, ModuleDisplay, Param};
use burn::serde::{Deserialize, Serialize};
use burn::tensor::{Device, Tensor};
use derive_new::new;

/// Configuration of a [`Conv3d`]: `Conv3dConfig::new([c_in, c_out], [kd, kh, kw]).init(&device)`.
#[derive(Clone, Debug, new, Serialize, Deserialize)]
#[serde(crate = "burn::serde")]
#[non_exhaustive]
pub struct Conv3dConfig {
    /// C and O.
    pub channels: [usize; 2],
    /// KD, KH, KW.
    pub kernel_size: [usize; 3],
    /// Distance between windows along D, H, W; 1.
    #[new(value = "[1; 3]")]
    pub stride: [usize; 3],
    /// Padding; none.
    #[new(default)]
    pub padding: Conv3dPadding,
    /// Distance between taps along D, H, W; 1.
    #[new(value = "[1; 3]")]
    pub dilation: [usize; 3],
    /// Groups; 1.
    #[new(value = "1")]
    pub groups: usize,
    /// Whether a bias is learned; yes.
    #[new(value = "true")]
    pub bias: bool,
    /// How taps outside the input read along D, H, W; as zero.
    #[new(default)]
    #[serde(with = "crate::forms::padding_modes")]
    pub padding_mode: [PaddingMode; 3],
    /// Applied to the result before it is rounded and stored; none.
    #[new(default)]
    #[serde(with = "ActivationForm")]
    pub activation: Activation,
    /// The kernel family; chosen by shape.
    #[new(default)]
    #[serde(with = "AlgorithmForm")]
    pub algorithm: Algorithm,
    /// Whether transformed filters are kept for the next call ([`Conv3d::reuse_filters`]); no.
    #[new(default)]
    #[serde(default)]
    pub reuse_filters: bool,
    /// How the parameters start; PyTorch's and Burn's default, uniform within
    /// `1 / sqrt(C/groups * KD * KH * KW)`.
    #[new(value = "Initializer::KaimingUniform { gain: 1.0 / 3f64.sqrt(), fan_out_only: false }")]
    pub initializer: Initializer,
}

config!(Conv3dConfig);
convolution_setters!(Conv3dConfig);
setters!(Conv3dConfig {
    /// Sets the padding: one number, one for each axis, pairs (before, after), or Burn's `PaddingConfig3d`.
    with_padding(padding => Conv3dPadding);
    /// Sets how taps outside the input read along D, H, W.
    with_padding_modes(padding_mode: [PaddingMode; 3]);
    /// Sets whether transformed filters are kept for the next call.
    with_reuse_filters(reuse_filters: bool);
    /// Sets the distance between windows along D, H, W: one number or one for each axis.
    with_stride(stride => PerAxis<3>);
    /// Sets the distance between taps along D, H, W: one number or one for each axis.
    with_dilation(dilation => PerAxis<3>);
});

impl Conv3dConfig {
    /// Sets how taps outside the input read, the same along all axes.
    #[must_use]
    pub fn with_padding_mode(self, padding_mode: PaddingMode) -> Self {
        self.with_padding_modes([padding_mode; 3])
    }

    /// The module with fresh parameters on `device`.
    ///
    /// # Panics
    /// If the groups do not divide both channel counts.
    pub fn init(&self, device: &Device) -> Conv3d {
        let [c_in, c_out] = self.channels;
        let groups = self.groups;
        check_groups("Conv3d", [c_in, c_out], groups);
        let [kd, kh, kw] = self.kernel_size;
        let taps = kd * kh * kw;
        let (fan_in, fan_out) = (c_in / groups * taps, c_out / groups * taps);
        let init = &self.initializer;
        let weight = init.init_with([c_out, c_in / groups, kd, kh, kw], Some(fan_in), Some(fan_out), device);
        let bias = self.bias.then(|| init.init_with([c_out], Some(fan_in), Some(fan_out), device));
        Conv3d {
            weight,
            bias,
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
            groups,
            padding_mode: self.padding_mode,
            activation: self.activation,
            algorithm: self.algorithm,
            reuse_filters: self.reuse_filters,
            filters: FilterCache::default(),
        }
    }
}

/// conv3d with learned weight and bias. Parameters are named and shaped as `torch.nn.Conv3d`'s.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct Conv3d {
    /// `[O, C/groups, KD, KH, KW]`.
    pub weight: Param<Tensor<5>>,
    /// `[O]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// Distance between windows along D, H, W.
    pub stride: [usize; 3],
    /// Padding before and after D, H, W.
    #[module(skip)]
    pub padding: Conv3dPadding,
    /// Distance between taps along D, H, W.
    pub dilation: [usize; 3],
    /// Groups.
    pub groups: usize,
    /// How taps outside the input read along D, H, W.
    #[module(skip)]
    pub padding_mode: [PaddingMode; 3],
    /// Applied to the result.
    #[module(skip)]
    pub activation: Activation,
    /// The kernel family.
    #[module(skip)]
    pub algorithm: Algorithm,
    /// Whether calls without gradients keep the filters that Winograd's kernels transform the weight into, so
    /// that the next call (a video decoder's next frames) starts with them and gives the same bits. It costs
    /// memory: F(4x4) keeps 36 fp32 numbers for every 9 weights.
    ///
    /// The filters belong to the weight's present value; another value (a step, a loaded record, another
    /// device, an assignment) has its own, made at the next call. They are no part of records. Nothing is
    /// kept where the input, the weight or the bias is on a device with gradients (call `valid()` after
    /// training), where the plan is not Winograd's, on the CPU backend, or of a
    /// reparameterized weight, which other parameters change too.
    pub reuse_filters: bool,
    /// What is kept.
    #[module(skip)]
    pub filters: FilterCache,
}

impl Conv3d {
    /// y `[N, O, OD, OH, OW]` of x `[N, C, D, H, W]`.
    ///
    /// # Panics
    /// Where [`try_forward`](Self::try_forward) returns an error.
    pub fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        or_panic(self.try_forward(x))
    }

    /// [`forward`](Self::forward) with errors as values.
    ///
    /// # Errors
    /// As [`try_conv3d`](crate::try_conv3d).
    pub fn try_forward(&self, x: Tensor<5>) -> Result<Tensor<5>, ConvError> {
        self.call(x, None)
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
    /// As [`try_conv3d_with_residual`](crate::try_conv3d_with_residual).
    pub fn try_forward_with_residual(
        &self,
        x: Tensor<5>,
        residual: Tensor<5>,
    ) -> Result<Tensor<5>, ConvError> {
        self.call(x, Some(residual))
    }

    fn call(&self, x: Tensor<5>, residual: Option<Tensor<5>>) -> Result<Tensor<5>, ConvError> {
        let (weight, bias) = (self.weight.val(), self.bias.as_ref().map(|bias| bias.val()));
        let options = self.options();
        let added = (bias.as_ref(), residual.as_ref());
        let call = check::check(&x, &weight, added, &options, check::Frames::Whole)?;
        let tile = self.reuse_filters.then(|| check::prepared_tile(&x, &weight, added, &call)).flatten();
        let x = x.into_dispatch();
        let bias = bias.map(Tensor::into_dispatch).into();
        let residual = residual.map(Tensor::into_dispatch).into();
        let y = match tile.filter(|_| !is_composed(&self.weight)) {
            Some(tile) => {
                let transform = |weight: Tensor<5>| {
                    Tensor::from_dispatch(Dispatch::conv3d_prepare(weight.into_dispatch(), call, tile))
                };
                let filters = self.filters.of(&self.weight, tile, transform);
                Dispatch::conv3d_forward_prepared(x, filters.into_dispatch(), bias, residual, call)
            }
            None => {
                self.filters.keep_only(&self.weight, self.reuse_filters);
                Dispatch::conv3d_forward(x, weight.into_dispatch(), bias, residual, call)
            }
        };
        Ok(Tensor::from_dispatch(y))
    }

    /// Whether transformed filters of the present weight are held.
    pub fn holds_filters(&self) -> bool {
        self.filters.holds(&self.weight)
    }

    /// Frees the transformed filters that are held.
    pub fn release_filters(&self) {
        self.filters.clear();
    }

    /// The options that the module calls [`conv3d`](crate::conv3d()) with.
    pub fn options(&self) -> Conv3dOptions {
        Conv3dOptions {
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
            groups: self.groups,
            padding_mode: self.padding_mode,
            activation: self.activation,
            algorithm: self.algorithm,
        }
    }
}

impl ModuleDisplay for Conv3d {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [channels_out, group_channels, kernel @ ..] = self.weight.dims();
        content
            .add("ch_in", &(group_channels * self.groups))
            .add("ch_out", &channels_out)
            .add_debug_attribute("kernel_size", &kernel)
            .add_debug_attribute("stride", &self.stride)
            .add_debug_attribute("padding", &self.padding)
            .add_debug_attribute("dilation", &self.dilation)
            .add("groups", &self.groups)
            .add_debug_attribute("padding_mode", &self.padding_mode)
            .add_debug_attribute("activation", &self.activation)
            .add_debug_attribute("algorithm", &self.algorithm)
            .add_debug_attribute("filters", &self.filters)
            .optional()
    }
}
