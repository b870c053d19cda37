//! The backend trait: what a Burn backend has to offer for this crate's functions and modules to run on it.
//!
//! Users call the functions at the crate's root. A call carries its validated problem, so that every backend, Fusion's
//! metadata and the kernels agree on every shape: they ask the same problem.

use crate::portable;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, ExtensionType, backend_extension};
use burn::tensor::Shape;
use conv_kernels::conv3d::{Activation, Algorithm, Conv3dProblem};

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
}

impl<B: Backend> From<Option<FloatTensor<B>>> for OptionalTensor<B> {
    fn from(tensor: Option<FloatTensor<B>>) -> Self {
        tensor.map_or(Self::None, Self::Some)
    }
}

/// A conv3d call: shapes and options, and the kernels to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv3dCall {
    /// Shapes, window, activation and dtype.
    pub problem: Conv3dProblem,
    /// The kernel family the caller asked for.
    pub algorithm: Algorithm,
}

impl Conv3dCall {
    /// The same call without the activation.
    #[must_use]
    pub fn without_activation(mut self) -> Self {
        self.problem.window.activation = Activation::None;
        self
    }
}

/// The ops of this crate. Implemented by every backend of Burn that the features select; the default bodies are
/// composed from Burn's own ops. Arguments are taken as validated: shapes and dtypes are those of the call's problem.
#[backend_extension(
    Autodiff: cfg(feature = "autodiff"),
    Fusion: cfg(feature = "fusion"),
    Cube: cfg(any(feature = "wgpu", feature = "cuda")),
    Flex: cfg(feature = "flex"),
)]
pub trait ConvOps: Backend {
    /// y `[N, O, OD, OH, OW]` of x `[N, C, D, H, W]`, weight `[O, C/groups, KD, KH, KW]` and bias `[O]`.
    #[fusion(dtype = x, shape = Shape::from(call.problem.y_shape()))]
    fn conv3d_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        portable::conv3d::forward::<Self>(x, weight, bias.into_option(), &call.problem)
    }

    /// Gradient of x from dy, the gradient before the activation, and the weight.
    #[fusion(dtype = dy, shape = Shape::from(call.problem.x_shape()))]
    fn conv3d_input_gradient(
        dy: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        portable::conv3d::input_gradient::<Self>(dy, weight, &call.problem)
    }

    /// Gradient of the weight from x and dy, the gradient before the activation.
    #[fusion(dtype = x, shape = Shape::from(call.problem.weight_shape()))]
    fn conv3d_weight_gradient(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        portable::conv3d::weight_gradient::<Self>(x, dy, &call.problem)
    }

    /// Gradient of the bias from dy, the gradient before the activation.
    #[fusion(dtype = dy, shape = Shape::from([call.problem.out_channels]))]
    fn conv3d_bias_gradient(dy: FloatTensor<Self>, call: Conv3dCall) -> FloatTensor<Self> {
        portable::conv3d::bias_gradient::<Self>(dy, &call.problem)
    }

    /// The gradient before the activation from dy. `saved` is the value before the activation; for ReLU the output
    /// serves as well.
    #[fusion(dtype = dy, shape = dy)]
    fn conv3d_activation_gradient(
        saved: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        portable::activation_gradient::<Self>(saved, dy, activation)
    }
}

#[cfg(feature = "flex")]
impl ConvOps for burn::backend::Flex {}
