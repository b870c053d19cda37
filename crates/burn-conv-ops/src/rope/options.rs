//! What the caller of RoPE may choose.

use crate::backend::RopePositions as BackendPositions;
use crate::nn::setters;
use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};
use conv_kernels::rope::{RopeAngles, RopeAxes, RopeGrid, RopeLayout, RopePairs, RopeScaling, RopeVolume};

/// Options of [`rope`](crate::rope()): axes, pairs and frequencies of a model, and the layout of its tokens.
/// [`llama`](Self::llama) and the like are those of published models.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct RopeOptions {
    /// Which frequencies belong to which axis; one axis.
    pub axes: RopeAxes,
    /// Which elements of a head are a pair; the first half with the second.
    pub pairs: RopePairs,
    /// Ratio of the highest to about the lowest frequency of each axis (`theta`, `rope_theta`); 10,000.
    pub base: [f32; 3],
    /// Factor of every angle; 1. Coordinates in -1..1 want a large one. Angles may grow by up to 2^20 radians
    /// from one position to the next.
    pub f0: f32,
    /// How frequencies are changed for sequences longer than those of training; not at all.
    pub scaling: RopeScaling,
    /// Order of the axes of the tokens; `[B, H, N, D]`.
    pub layout: RopeLayout,
    /// Tokens at the beginning that stay as they are; none. Their positions do not matter.
    pub prefix: usize,
    /// Elements of a head that are rotated, from the first; those that the axes name, or all of them.
    pub rotated: Option<usize>,
}

impl Default for RopeOptions {
    fn default() -> Self {
        Self::llama()
    }
}

impl RopeOptions {
    /// As [`llama`](Self::llama).
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn of(axes: RopeAxes, pairs: RopePairs, base: f32) -> Self {
        let (base, f0, scaling) = ([base; 3], 1.0, RopeScaling::None);
        Self { axes, pairs, base, f0, scaling, layout: RopeLayout::Bhnd, prefix: 0, rotated: None }
    }

    /// LLaMA, Mistral, Qwen2: one axis, halves, base 10,000 (Llama 3: 500,000; Qwen2: 1,000,000).
    #[must_use]
    pub fn llama() -> Self {
        Self::of(RopeAxes::Even(1), RopePairs::Halves, 1e4)
    }

    /// GPT-J: one axis, neighbours, base 10,000, of a head the first 64 elements.
    #[must_use]
    pub fn gpt_j() -> Self {
        Self { rotated: Some(64), ..Self::of(RopeAxes::Even(1), RopePairs::Neighbours, 1e4) }
    }

    /// CroCo, DUSt3R, VGGT: rows and columns, halves of each axis, base 100.
    #[must_use]
    pub fn croco() -> Self {
        Self::of(RopeAxes::Even(2), RopePairs::HalvesOfAxes, 100.0)
    }

    /// M-RoPE of Qwen2-VL and Qwen2.5-VL: time, row and column, halves, base 1,000,000. `sections` is
    /// `mrope_section`, the pairs of each axis: `[16, 24, 24]`.
    #[must_use]
    pub fn qwen2_vl(sections: [usize; 3]) -> Self {
        Self::of(RopeAxes::Sections(sections), RopePairs::Halves, 1e6)
    }

    /// M-RoPE of Qwen3-VL, whose sections are dealt in turn: base 5,000,000, `[24, 20, 20]`.
    #[must_use]
    pub fn qwen3_vl(sections: [usize; 3]) -> Self {
        Self::of(RopeAxes::Interleaved(sections), RopePairs::Halves, 5e6)
    }

    /// Wan: time, row and column, neighbours, base 10,000; row and column get `2 * (D / 6)` elements each,
    /// time the rest.
    #[must_use]
    pub fn wan(head_dim: usize) -> Self {
        let side = 2 * (head_dim / 6);
        Self::of(RopeAxes::Dims([head_dim - 2 * side, side, side]), RopePairs::Neighbours, 1e4)
    }

    /// HunyuanVideo: time, row and column, neighbours, base 256. `dims` is `rope_dim_list`: `[16, 56, 56]`.
    #[must_use]
    pub fn hunyuan_video(dims: [usize; 3]) -> Self {
        Self::of(RopeAxes::Dims(dims), RopePairs::Neighbours, 256.0)
    }

    /// CogVideoX: time, row and column, neighbours, base 10,000; time gets a quarter of the elements, row and
    /// column three eighths each.
    #[must_use]
    pub fn cog_video_x(head_dim: usize) -> Self {
        let side = head_dim / 8 * 3;
        Self::of(RopeAxes::Dims([head_dim / 4, side, side]), RopePairs::Neighbours, 1e4)
    }

    pub(super) fn angles(&self) -> RopeAngles {
        let Self { axes, pairs, base, f0, scaling, .. } = *self;
        RopeAngles { axes, pairs, base, f0, scaling }
    }
}

setters!(RopeOptions {
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

/// The base of each axis: from one number, or from three.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeBase(pub [f32; 3]);

impl From<RopeBase> for [f32; 3] {
    fn from(base: RopeBase) -> Self {
        base.0
    }
}

impl From<f32> for RopeBase {
    fn from(base: f32) -> Self {
        Self([base; 3])
    }
}

impl From<[f32; 3]> for RopeBase {
    fn from(bases: [f32; 3]) -> Self {
        Self(bases)
    }
}

/// The positions of the tokens of [`rope`](crate::rope()) along each axis. A position outside the range of
/// i32, an infinite one and NaN make the elements that it turns NaN.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RopePositions {
    /// Integers `[B, N, axes]`, negative ones too; `[B, N]` becomes this where there is one axis.
    Index(Tensor<3, Int>),
    /// fp32 numbers `[B, N, axes]`, such as those between the patches of a grid of another size. No gradient
    /// reaches them.
    Float(Tensor<3>),
    /// The patches of a grid of two axes in row-major order, after the tokens of the prefix: no tensor is
    /// needed.
    Grid(RopeGrid),
    /// The same of three axes.
    Volume(RopeVolume),
    /// Consecutive positions, along all axes the same, after the tokens of the prefix: a sequence that begins
    /// here, 0 or as many tokens as a cache of keys has. The number is an argument of the kernel.
    Offset(i32),
}

impl From<Tensor<3, Int>> for RopePositions {
    fn from(positions: Tensor<3, Int>) -> Self {
        Self::Index(positions)
    }
}

impl From<Tensor<2, Int>> for RopePositions {
    fn from(positions: Tensor<2, Int>) -> Self {
        Self::Index(positions.unsqueeze_dim(2))
    }
}

impl From<Tensor<3>> for RopePositions {
    fn from(positions: Tensor<3>) -> Self {
        Self::Float(positions)
    }
}

impl From<Tensor<2>> for RopePositions {
    fn from(positions: Tensor<2>) -> Self {
        Self::Float(positions.unsqueeze_dim(2))
    }
}

impl From<RopeGrid> for RopePositions {
    fn from(grid: RopeGrid) -> Self {
        Self::Grid(grid)
    }
}

impl From<RopeVolume> for RopePositions {
    fn from(volume: RopeVolume) -> Self {
        Self::Volume(volume)
    }
}

impl From<i32> for RopePositions {
    fn from(offset: i32) -> Self {
        Self::Offset(offset)
    }
}

impl RopePositions {
    /// The positions as backends get them.
    pub(crate) fn into_dispatch(self) -> BackendPositions<Dispatch> {
        match self {
            Self::Index(positions) => BackendPositions::Index(positions.into_dispatch()),
            Self::Float(positions) => BackendPositions::Float(positions.into_dispatch()),
            Self::Grid(grid) => BackendPositions::Grid(grid),
            Self::Volume(volume) => BackendPositions::Volume(volume),
            Self::Offset(offset) => BackendPositions::Offset(offset),
        }
    }
}
