//! What calls carry next to plain tensors: optional ones, conv3d's problem, RoPE's positions.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, ExtensionType};
use conv_kernels::conv3d::{Algorithm, Conv3dProblem};
use conv_kernels::rope::{RopeGrid, RopeVolume};

/// `Option<FloatTensor<B>>` in a form that passes Burn's dispatch.
#[derive(ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub enum OptionalTensor<B: Backend> {
    /// A tensor.
    Some(FloatTensor<B>),
    /// None.
    None,
}

impl<B: Backend> OptionalTensor<B> {
    /// The tensor, where there is one.
    pub fn into_option(self) -> Option<FloatTensor<B>> {
        match self {
            Self::Some(tensor) => Some(tensor),
            Self::None => None,
        }
    }

    /// The tensor, where there is one.
    pub fn as_option(&self) -> Option<&FloatTensor<B>> {
        match self {
            Self::Some(tensor) => Some(tensor),
            Self::None => None,
        }
    }
}

impl<B: Backend> From<Option<FloatTensor<B>>> for OptionalTensor<B> {
    fn from(tensor: Option<FloatTensor<B>>) -> Self {
        tensor.map_or(Self::None, Self::Some)
    }
}

/// `Option<IntTensor<B>>` in a form that passes Burn's dispatch.
#[derive(ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub enum OptionalIntTensor<B: Backend> {
    /// A tensor.
    Some(IntTensor<B>),
    /// None.
    None,
}

impl<B: Backend> OptionalIntTensor<B> {
    /// The tensor, where there is one.
    pub fn into_option(self) -> Option<IntTensor<B>> {
        match self {
            Self::Some(tensor) => Some(tensor),
            Self::None => None,
        }
    }

    /// The tensor, where there is one.
    pub fn as_option(&self) -> Option<&IntTensor<B>> {
        match self {
            Self::Some(tensor) => Some(tensor),
            Self::None => None,
        }
    }
}

impl<B: Backend> From<Option<IntTensor<B>>> for OptionalIntTensor<B> {
    fn from(tensor: Option<IntTensor<B>>) -> Self {
        tensor.map_or(Self::None, Self::Some)
    }
}

/// The positions of the tokens of a rotation.
#[derive(ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
#[non_exhaustive]
pub enum RopePositions<B: Backend> {
    /// Integers `[B, N, axes]`.
    Index(IntTensor<B>),
    /// fp32 numbers `[B, N, axes]`.
    Float(FloatTensor<B>),
    /// A grid of two axes after the tokens of the prefix.
    Grid(RopeGrid),
    /// A grid of three axes.
    Volume(RopeVolume),
    /// Consecutive positions from this one on, along all axes.
    Offset(i32),
}

impl<B: Backend> Clone for RopePositions<B> {
    fn clone(&self) -> Self {
        match self {
            Self::Index(positions) => Self::Index(positions.clone()),
            Self::Float(positions) => Self::Float(positions.clone()),
            Self::Grid(grid) => Self::Grid(*grid),
            Self::Volume(volume) => Self::Volume(*volume),
            Self::Offset(offset) => Self::Offset(*offset),
        }
    }
}

impl<B: Backend> std::fmt::Debug for RopePositions<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Index(positions) => f.debug_tuple("Index").field(positions).finish(),
            Self::Float(positions) => f.debug_tuple("Float").field(positions).finish(),
            Self::Grid(grid) => f.debug_tuple("Grid").field(grid).finish(),
            Self::Volume(volume) => f.debug_tuple("Volume").field(volume).finish(),
            Self::Offset(offset) => f.debug_tuple("Offset").field(offset).finish(),
        }
    }
}

/// A conv3d call: shapes and options, and the kernels to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Conv3dCall {
    /// Shapes, window, activation and dtype.
    pub problem: Conv3dProblem,
    /// The kernel family the caller asked for.
    pub algorithm: Algorithm,
}

impl Conv3dCall {
    /// The call of a problem.
    pub fn new(problem: Conv3dProblem, algorithm: Algorithm) -> Self {
        Self { problem, algorithm }
    }
}

#[cfg(feature = "cubecl")]
impl Conv3dCall {
    /// The call as one of a whole clip: without a cache any plan gives the weight's gradient.
    pub(crate) fn whole(self) -> Self {
        Self { problem: Conv3dProblem { streaming: false, ..self.problem }, ..self }
    }
}

#[cfg(feature = "autodiff")]
impl Conv3dCall {
    /// The call without bias, activation and residual: the linear map that its input gradient transposes.
    pub(crate) fn linear(self) -> Self {
        use conv_kernels::conv3d::{Activation, Window};
        let window = Window { activation: Activation::None, ..self.problem.window };
        Self { problem: Conv3dProblem { bias: false, residual: false, window, ..self.problem }, ..self }
    }

    /// A call whose bias gradient is that of the transposed convolution: its y has the shape of this one's x,
    /// and the sum asks for nothing else.
    pub(crate) fn of_transposed_bias(self) -> Self {
        use conv_kernels::conv3d::Window;
        let problem = Conv3dProblem {
            channels: 1,
            out_channels: self.problem.channels,
            kernel: [1; 3],
            window: Window::default(),
            ..self.problem
        };
        Self { problem, ..self }
    }
}
