//! RoPE as a module.

use super::{RopeBase, RopeOptions, RopePositions, try_rope, try_rope_qk};
use crate::forms::{RopeAxesForm, RopeLayoutForm, RopePairsForm, RopeScalingForm};
use crate::nn::{config, setters};
use crate::{RopeAxes, RopeLayout, RopePairs, RopeScaling};
use burn::module::Module;
use burn::serde::{Deserialize, Serialize};
use burn::tensor::Tensor;

/// Configuration of a [`Rope`]: `RopeConfig::llama().init()`, or another model's.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(crate = "burn::serde")]
#[non_exhaustive]
pub struct RopeConfig {
    /// Which frequencies belong to which axis.
    #[serde(with = "RopeAxesForm")]
    pub axes: RopeAxes,
    /// Which elements of a head are a pair.
    #[serde(with = "RopePairsForm")]
    pub pairs: RopePairs,
    /// Ratio of the highest to about the lowest frequency of each axis.
    pub base: [f32; 3],
    /// Factor of every angle.
    pub f0: f32,
    /// How frequencies are changed for longer sequences.
    #[serde(with = "RopeScalingForm")]
    pub scaling: RopeScaling,
    /// Order of the axes of the tokens.
    #[serde(with = "RopeLayoutForm")]
    pub layout: RopeLayout,
    /// Tokens at the beginning that stay as they are.
    pub prefix: usize,
    /// Elements of a head that are rotated, from the first; `None` for those that the axes name, or all.
    pub rotated: Option<usize>,
}

config!(RopeConfig);
setters!(RopeConfig {
    /// Sets which frequencies belong to which axis.
    with_axes(axes: RopeAxes);
    /// Sets which elements of a head are a pair.
    with_pairs(pairs: RopePairs);
    /// Sets the base: one number, or one for each axis.
    with_base(base => RopeBase);
    /// Sets the factor of every angle.
    with_f0(f0: f32);
    /// Sets how frequencies are changed.
    with_scaling(scaling: RopeScaling);
    /// Sets the order of the axes of the tokens.
    with_layout(layout: RopeLayout);
    /// Sets how many tokens at the beginning stay as they are.
    with_prefix(prefix: usize);
    /// Sets how many elements of a head are rotated; `None` for those that the axes name, or all.
    with_rotated(rotated => Option<usize>);
});

impl From<RopeOptions> for RopeConfig {
    fn from(options: RopeOptions) -> Self {
        let RopeOptions { axes, pairs, base, f0, scaling, layout, prefix, rotated } = options;
        Self { axes, pairs, base, f0, scaling, layout, prefix, rotated }
    }
}

impl RopeConfig {
    /// The configuration of any options.
    #[must_use]
    pub fn new(options: RopeOptions) -> Self {
        options.into()
    }

    /// [`RopeOptions::llama`].
    #[must_use]
    pub fn llama() -> Self {
        RopeOptions::llama().into()
    }

    /// [`RopeOptions::gpt_j`].
    #[must_use]
    pub fn gpt_j() -> Self {
        RopeOptions::gpt_j().into()
    }

    /// [`RopeOptions::croco`].
    #[must_use]
    pub fn croco() -> Self {
        RopeOptions::croco().into()
    }

    /// [`RopeOptions::qwen2_vl`].
    #[must_use]
    pub fn qwen2_vl(sections: [usize; 3]) -> Self {
        RopeOptions::qwen2_vl(sections).into()
    }

    /// [`RopeOptions::qwen3_vl`].
    #[must_use]
    pub fn qwen3_vl(sections: [usize; 3]) -> Self {
        RopeOptions::qwen3_vl(sections).into()
    }

    /// [`RopeOptions::wan`].
    #[must_use]
    pub fn wan(head_dim: usize) -> Self {
        RopeOptions::wan(head_dim).into()
    }

    /// [`RopeOptions::hunyuan_video`].
    #[must_use]
    pub fn hunyuan_video(dims: [usize; 3]) -> Self {
        RopeOptions::hunyuan_video(dims).into()
    }

    /// [`RopeOptions::cog_video_x`].
    #[must_use]
    pub fn cog_video_x(head_dim: usize) -> Self {
        RopeOptions::cog_video_x(head_dim).into()
    }

    /// The module. It has no parameters and belongs to no device.
    #[must_use]
    pub fn init(&self) -> Rope {
        let Self { axes, pairs, base, f0, scaling, layout, prefix, rotated } = *self;
        Rope { options: RopeOptions { axes, pairs, base, f0, scaling, layout, prefix, rotated } }
    }
}

/// Rotary position embedding over one, two or three axes, without parameters.
#[derive(Module, Debug)]
pub struct Rope {
    /// What turns by which angle, the layout, and what is not rotated.
    #[module(skip)]
    pub options: RopeOptions,
}

/// A module's functions, next to those of the op.
macro_rules! forward {
    ($module:ident, $rope:ident, $rope_qk:ident, $(#[$doc:meta])*) => {
        impl $module {
            $(#[$doc])*
            ///
            /// # Panics
            /// Where [`try_forward`](Self::try_forward) returns an error.
            pub fn forward(&self, tokens: Tensor<4>, positions: impl Into<RopePositions>) -> Tensor<4> {
                crate::or_panic(self.try_forward(tokens, positions))
            }

            /// [`forward`](Self::forward) with errors as values.
            ///
            /// # Errors
            #[doc = concat!("As [`", stringify!($rope), "`](crate::", stringify!($rope), ").")]
            pub fn try_forward(
                &self,
                tokens: Tensor<4>,
                positions: impl Into<RopePositions>,
            ) -> Result<Tensor<4>, crate::ConvError> {
                $rope(tokens, positions, self.options)
            }

            /// Queries and keys, each rotated by its positions, in one launch.
            ///
            /// # Panics
            /// Where [`try_forward_qk`](Self::try_forward_qk) returns an error.
            pub fn forward_qk(
                &self,
                q: Tensor<4>,
                k: Tensor<4>,
                q_positions: impl Into<RopePositions>,
                k_positions: impl Into<RopePositions>,
            ) -> (Tensor<4>, Tensor<4>) {
                crate::or_panic(self.try_forward_qk(q, k, q_positions, k_positions))
            }

            /// [`forward_qk`](Self::forward_qk) with errors as values.
            ///
            /// # Errors
            #[doc = concat!("As [`", stringify!($rope_qk), "`](crate::", stringify!($rope_qk), ").")]
            pub fn try_forward_qk(
                &self,
                q: Tensor<4>,
                k: Tensor<4>,
                q_positions: impl Into<RopePositions>,
                k_positions: impl Into<RopePositions>,
            ) -> Result<(Tensor<4>, Tensor<4>), crate::ConvError> {
                $rope_qk(q, k, q_positions, k_positions, self.options)
            }
        }
    };
}
pub(super) use forward;

forward!(
    Rope,
    try_rope,
    try_rope_qk,
    /// The tokens `[B, H, N, D]` (or `[B, N, H, D]`), rotated by their positions: a tensor `[B, N, axes]` of
    /// integers or fp32 numbers, a grid, or the position of the first token.
);
