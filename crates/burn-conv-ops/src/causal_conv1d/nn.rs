//! Causal conv1d as a module.

use super::{
    CausalConv1dOptions, CausalConv1dUpdateOptions, try_causal_conv1d, try_causal_conv1d_packed,
    try_causal_conv1d_update, try_causal_conv1d_update_steps, try_causal_conv1d_with_state,
};
use crate::forms::{ActivationForm, Conv1dLayoutForm};
use crate::nn::{config, setters};
use crate::{Activation, Conv1dLayout, ConvError, or_panic};
use burn::module::{Content, DisplaySettings, Initializer, Module, ModuleDisplay, Param};
use burn::serde::{Deserialize, Serialize};
use burn::tensor::{Device, Int, Tensor};
use derive_new::new;

/// Configuration of a [`CausalConv1d`]: `CausalConv1dConfig::new(channels, width).init(&device)`.
#[derive(Clone, Debug, new, Serialize, Deserialize)]
#[serde(crate = "burn::serde")]
#[non_exhaustive]
pub struct CausalConv1dConfig {
    /// C.
    pub channels: usize,
    /// W, the number of steps that an output sees; 4 in Mamba.
    pub width: usize,
    /// Whether a bias is learned; yes.
    #[new(value = "true")]
    pub bias: bool,
    /// Applied to the result before it is rounded and stored; none.
    #[new(default)]
    #[serde(with = "ActivationForm")]
    pub activation: Activation,
    /// Order of the axes of x and y; `[B, C, T]`.
    #[new(default)]
    #[serde(with = "Conv1dLayoutForm")]
    pub layout: Conv1dLayout,
    /// How the parameters start; PyTorch's and Burn's default, uniform within `1 / sqrt(W)`.
    #[new(value = "Initializer::KaimingUniform { gain: 1.0 / 3f64.sqrt(), fan_out_only: false }")]
    pub initializer: Initializer,
}

config!(CausalConv1dConfig);
setters!(CausalConv1dConfig {
    /// Sets whether a bias is learned.
    with_bias(bias: bool);
    /// Sets the activation applied to the result.
    with_activation(activation: Activation);
    /// Sets the order of the axes of x and y.
    with_layout(layout: Conv1dLayout);
    /// Sets how the parameters start.
    with_initializer(initializer: Initializer);
});

impl CausalConv1dConfig {
    /// The module with fresh parameters on `device`.
    pub fn init(&self, device: &Device) -> CausalConv1d {
        let Self { channels, width, .. } = *self;
        let fan = Some(width);
        let init = &self.initializer;
        CausalConv1d {
            weight: init.init_with([channels, 1, width], fan, fan, device),
            bias: self.bias.then(|| init.init_with([channels], fan, fan, device)),
            activation: self.activation,
            layout: self.layout,
        }
    }
}

/// Causal depthwise conv1d with learned weight and bias. Parameters are named and shaped as those of the
/// depthwise `torch.nn.Conv1d` in Mamba.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct CausalConv1d {
    /// `[C, 1, W]`.
    pub weight: Param<Tensor<3>>,
    /// `[C]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// Applied to the result.
    #[module(skip)]
    pub activation: Activation,
    /// Order of the axes of x and y.
    #[module(skip)]
    pub layout: Conv1dLayout,
}

impl CausalConv1d {
    /// y of x's shape, `[B, C, T]` or `[B, T, C]`.
    ///
    /// # Panics
    /// Where [`try_forward`](Self::try_forward) returns an error.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        or_panic(self.try_forward(x))
    }

    /// [`forward`](Self::forward) with errors as values.
    ///
    /// # Errors
    /// As [`try_causal_conv1d`].
    pub fn try_forward(&self, x: Tensor<3>) -> Result<Tensor<3>, ConvError> {
        self.try_forward_with(x, CausalConv1dOptions::new())
    }

    /// [`forward`](Self::forward) with an initial state, sequence ids or a residual. Activation and layout
    /// are the module's; options that ask for others are refused.
    ///
    /// # Panics
    /// Where [`try_forward_with`](Self::try_forward_with) returns an error.
    pub fn forward_with(&self, x: Tensor<3>, options: impl Into<CausalConv1dOptions>) -> Tensor<3> {
        or_panic(self.try_forward_with(x, options))
    }

    /// [`forward_with`](Self::forward_with) with errors as values.
    ///
    /// # Errors
    /// As [`try_causal_conv1d`].
    pub fn try_forward_with(
        &self,
        x: Tensor<3>,
        options: impl Into<CausalConv1dOptions>,
    ) -> Result<Tensor<3>, ConvError> {
        try_causal_conv1d(x, self.taps(), self.bias(), self.complete(options.into())?)
    }

    /// y, and the state to continue with, `[B, C, W-1]`. The state of the piece before is given as it is:
    /// `conv.forward_with_state(x, state)`; the first piece takes `CausalConv1dOptions::new()`.
    ///
    /// # Panics
    /// Where [`try_forward_with_state`](Self::try_forward_with_state) returns an error.
    pub fn forward_with_state(
        &self,
        x: Tensor<3>,
        options: impl Into<CausalConv1dOptions>,
    ) -> (Tensor<3>, Tensor<3>) {
        or_panic(self.try_forward_with_state(x, options))
    }

    /// [`forward_with_state`](Self::forward_with_state) with errors as values.
    ///
    /// # Errors
    /// As [`try_causal_conv1d_with_state`].
    pub fn try_forward_with_state(
        &self,
        x: Tensor<3>,
        options: impl Into<CausalConv1dOptions>,
    ) -> Result<(Tensor<3>, Tensor<3>), ConvError> {
        try_causal_conv1d_with_state(x, self.taps(), self.bias(), self.complete(options.into())?)
    }

    /// y of sequences that are packed into one row `[1, C, T]` or `[1, T, C]`, and the state of each to
    /// continue with, `[N, C, W-1]`: sequence i has the steps from `cu_seqlens[i]` to `cu_seqlens[i + 1]`.
    /// The states that the sequences begin with, `[N, C, W-1]`, are given as they are; without any,
    /// `CausalConv1dOptions::new()`.
    ///
    /// # Panics
    /// Where [`try_forward_packed`](Self::try_forward_packed) returns an error.
    pub fn forward_packed(
        &self,
        x: Tensor<3>,
        cu_seqlens: Tensor<1, Int>,
        options: impl Into<CausalConv1dOptions>,
    ) -> (Tensor<3>, Tensor<3>) {
        or_panic(self.try_forward_packed(x, cu_seqlens, options))
    }

    /// [`forward_packed`](Self::forward_packed) with errors as values.
    ///
    /// # Errors
    /// As [`try_causal_conv1d_packed`].
    pub fn try_forward_packed(
        &self,
        x: Tensor<3>,
        cu_seqlens: Tensor<1, Int>,
        options: impl Into<CausalConv1dOptions>,
    ) -> Result<(Tensor<3>, Tensor<3>), ConvError> {
        let options = self.complete(options.into())?;
        try_causal_conv1d_packed(x, self.taps(), self.bias(), cu_seqlens, options)
    }

    /// One decoding step: y `[B, C]` and the new state from x `[B, C]` and a state `[B, C, S]`, S >= W-1.
    ///
    /// # Panics
    /// Where [`try_step`](Self::try_step) returns an error.
    pub fn step(&self, x: Tensor<2>, state: Tensor<3>) -> (Tensor<2>, Tensor<3>) {
        or_panic(self.try_step(x, state))
    }

    /// [`step`](Self::step) with errors as values.
    ///
    /// # Errors
    /// As [`try_causal_conv1d_update`].
    pub fn try_step(&self, x: Tensor<2>, state: Tensor<3>) -> Result<(Tensor<2>, Tensor<3>), ConvError> {
        try_causal_conv1d_update(x, state, self.taps(), self.bias(), self.activation)
    }

    /// Several decoding steps in one launch: y `[B, C, L]` and the new state from x `[B, C, L]` and a state
    /// `[B, C, S]`, S >= W-1, or slots of states and rings as the options say. The activation is the
    /// module's; options that ask for another are refused.
    ///
    /// # Panics
    /// Where [`try_steps`](Self::try_steps) returns an error.
    pub fn steps(
        &self,
        x: Tensor<3>,
        state: Tensor<3>,
        options: impl Into<CausalConv1dUpdateOptions>,
    ) -> (Tensor<3>, Tensor<3>) {
        or_panic(self.try_steps(x, state, options))
    }

    /// [`steps`](Self::steps) with errors as values.
    ///
    /// # Errors
    /// As [`try_causal_conv1d_update_steps`].
    pub fn try_steps(
        &self,
        x: Tensor<3>,
        state: Tensor<3>,
        options: impl Into<CausalConv1dUpdateOptions>,
    ) -> Result<(Tensor<3>, Tensor<3>), ConvError> {
        let options = options.into();
        self.check_activation(options.activation)?;
        let options = options.with_activation(self.activation);
        try_causal_conv1d_update_steps(x, state, self.taps(), self.bias(), options)
    }

    /// The state before the first step, zeros `[batch, C, W-1]`.
    pub fn empty_state(&self, batch: usize) -> Tensor<3> {
        let [channels, _, width] = self.weight.dims();
        let weight = self.weight.val();
        Tensor::zeros([batch, channels, width.saturating_sub(1)], (&weight.device(), weight.dtype()))
    }

    /// The weight as the op takes it, `[C, W]`.
    fn taps(&self) -> Tensor<2> {
        let [channels, _, width] = self.weight.dims();
        self.weight.val().reshape([channels, width])
    }

    fn bias(&self) -> Option<Tensor<1>> {
        self.bias.as_ref().map(|bias| bias.val())
    }

    /// The options of a call with the module's activation and layout.
    fn complete(&self, options: CausalConv1dOptions) -> Result<CausalConv1dOptions, ConvError> {
        self.check_activation(options.activation)?;
        if options.layout != Conv1dLayout::default() && options.layout != self.layout {
            return Err(ConvError::Invalid(format!(
                "causal_conv1d: the options ask for the layout {:?}, the module has {:?}",
                options.layout, self.layout
            )));
        }
        Ok(options.with_activation(self.activation).with_layout(self.layout))
    }

    /// Refuses an activation that is neither the default nor the module's.
    fn check_activation(&self, activation: Activation) -> Result<(), ConvError> {
        if activation != Activation::default() && activation != self.activation {
            return Err(ConvError::Invalid(format!(
                "causal_conv1d: the options ask for the activation {activation:?}, the module has {:?}",
                self.activation
            )));
        }
        Ok(())
    }
}

impl ModuleDisplay for CausalConv1d {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [channels, _, width] = self.weight.dims();
        content
            .add("channels", &channels)
            .add("width", &width)
            .add_debug_attribute("activation", &self.activation)
            .add_debug_attribute("layout", &self.layout)
            .optional()
    }
}
