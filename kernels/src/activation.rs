//! The function applied to a convolution's result in its epilogue, and its derivative, in fp32.

use cubecl::prelude::*;

/// The function applied to the convolution's result before it is rounded and stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// None.
    #[default]
    None,
    /// `max(0, v)`, NaN passed on.
    Relu,
    /// `v / (1 + exp(-v))`.
    Silu,
}

impl Activation {
    /// What [`activate_by_code`] knows it by.
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Relu => 1,
            Self::Silu => 2,
        }
    }
}

/// The activation at `value`.
#[cube]
pub(crate) fn activate(value: f32, #[comptime] activation: Activation) -> f32 {
    if comptime!(activation == Activation::Relu) {
        // On the bits, because NaN must come out as NaN: drivers turn `value < 0 ? 0 : value` into a maximum, which
        // loses it. Between -0 and -infinity lie the negative numbers.
        let bits = u32::reinterpret(value);
        select(bits > 0x8000_0000u32 && bits <= 0xFF80_0000u32, 0.0f32, value)
    } else if comptime!(activation == Activation::Silu) {
        value / (1.0f32 + f32::exp(0.0f32 - value))
    } else {
        value
    }
}

/// [`activate`] chosen at run time, by [`Activation::code`]: kernels that are compiled for seconds serve all three.
#[cube]
pub(crate) fn activate_by_code(value: f32, code: u32) -> f32 {
    let mut result = value;
    if code == 1u32 {
        result = activate(value, Activation::Relu);
    }
    if code == 2u32 {
        result = activate(value, Activation::Silu);
    }
    result
}

/// The activation's derivative at `value` times `dy`; ReLU's derivative at 0 is 0, as in PyTorch.
#[cube]
pub(crate) fn activate_gradient(value: f32, dy: f32, #[comptime] activation: Activation) -> f32 {
    if comptime!(activation == Activation::Relu) {
        select(value > 0.0f32, dy, 0.0f32)
    } else if comptime!(activation == Activation::Silu) {
        let sigmoid = 1.0f32 / (1.0f32 + f32::exp(0.0f32 - value));
        dy * sigmoid * (1.0f32 + value * (1.0f32 - sigmoid))
    } else {
        dy
    }
}
