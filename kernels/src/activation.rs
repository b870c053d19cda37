//! The activation applied in a convolution's epilogue, and its derivative, in fp32.

use crate::registers::Registers;
use cubecl::prelude::*;

/// The function applied to a convolution's fp32 result before it is rounded and stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
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
    /// The code that [`activate_by_code`] takes.
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
        // On the bits, to pass NaN on: drivers turn `value < 0 ? 0 : value` into a maximum, which drops it.
        // Bits above -0 up to -infinity are the negative numbers.
        let bits = u32::reinterpret(value);
        select(bits > 0x8000_0000u32 && bits <= 0xFF80_0000u32, 0.0f32, value)
    } else if comptime!(activation == Activation::Silu) {
        value / (1.0f32 + f32::exp(0.0f32 - value))
    } else {
        value
    }
}

/// [`activate`] chosen at run time by [`Activation::code`], so that one compilation of a large kernel serves
/// all three.
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
        // An explicit fma: CubeCL fuses scalars but not vectors, and both must give the same bits.
        dy * sigmoid * fma(value, 1.0f32 - sigmoid, 1.0f32)
    } else {
        dy
    }
}

/// [`activate_by_code`] for the first `count` of `values`; `silu` fixes SiLU at compile time.
#[cube]
pub(crate) fn activate_all(
    values: &Registers<f32>,
    #[comptime] count: usize,
    code: u32,
    #[comptime] silu: bool,
) {
    if !comptime!(silu) && code == 1u32 {
        #[unroll]
        for i in 0..count {
            values.set(i, activate(values.get(i), Activation::Relu));
        }
    }
    if comptime!(silu) || code == 2u32 {
        #[unroll]
        for i in 0..count {
            values.set(i, activate(values.get(i), Activation::Silu));
        }
    }
}

/// Replaces the first `count` of `gradients` by [`activate_gradient`] at `values`; `silu` fixes SiLU at
/// compile time.
#[cube]
pub(crate) fn activate_gradient_all(
    values: &Registers<f32>,
    gradients: &Registers<f32>,
    #[comptime] count: usize,
    code: u32,
    #[comptime] silu: bool,
) {
    if !comptime!(silu) && code == 1u32 {
        #[unroll]
        for i in 0..count {
            gradients.set(i, activate_gradient(values.get(i), gradients.get(i), Activation::Relu));
        }
    }
    if comptime!(silu) || code == 2u32 {
        #[unroll]
        for i in 0..count {
            gradients.set(i, activate_gradient(values.get(i), gradients.get(i), Activation::Silu));
        }
    }
}

/// [`activate_all`] of a vector.
#[cube]
pub(crate) fn activate_vector<C: Size>(
    value: Vector<f32, C>,
    code: u32,
    #[comptime] silu: bool,
) -> Vector<f32, C> {
    let mut result = value;
    if !comptime!(silu) && code == 1u32 {
        #[unroll]
        for lane in 0..C::value() {
            result.insert(lane, activate(value.extract(lane), Activation::Relu));
        }
    }
    if comptime!(silu) || code == 2u32 {
        result = value
            / (Vector::<f32, C>::new(1.0f32) + Vector::<f32, C>::exp(Vector::<f32, C>::new(0.0f32) - value));
    }
    result
}

/// [`activate_gradient_all`] of a vector.
#[cube]
pub(crate) fn activate_gradient_vector<C: Size>(
    value: Vector<f32, C>,
    dy: Vector<f32, C>,
    code: u32,
    #[comptime] silu: bool,
) -> Vector<f32, C> {
    let mut result = dy;
    if !comptime!(silu) && code == 1u32 {
        #[unroll]
        for lane in 0..C::value() {
            let gradient = activate_gradient(value.extract(lane), dy.extract(lane), Activation::Relu);
            result.insert(lane, gradient);
        }
    }
    if comptime!(silu) || code == 2u32 {
        let one = Vector::<f32, C>::new(1.0f32);
        let sigmoid = one / (one + Vector::<f32, C>::exp(Vector::<f32, C>::new(0.0f32) - value));
        result = dy * sigmoid * fma(value, one - sigmoid, one);
    }
    result
}
