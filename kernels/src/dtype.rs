//! The three floating-point storage types. Arithmetic is always fp32: a kernel widens on load and rounds once
//! on store.

use cubecl::features::TypeUsage;
use cubecl::ir::{DeviceProperties, ElemType, FloatKind};

/// Storage type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FloatType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl FloatType {
    /// Every storage type.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// CubeCL's name for the type.
    pub fn elem(self) -> ElemType {
        ElemType::Float(match self {
            Self::F32 => FloatKind::F32,
            Self::F16 => FloatKind::F16,
            Self::Bf16 => FloatKind::BF16,
        })
    }

    /// Name in messages and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Unit roundoff u: the largest relative error of rounding a normal value to this type.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            Self::F32 => 2f64.powi(-24),
            Self::F16 => 2f64.powi(-11),
            Self::Bf16 => 2f64.powi(-8),
        }
    }

    /// Half the spacing of the type's subnormal numbers: the absolute error of one rounding near zero.
    pub fn subnormal_roundoff(self) -> f64 {
        match self {
            Self::F32 => 2f64.powi(-126),
            Self::F16 => 2f64.powi(-25),
            Self::Bf16 => 2f64.powi(-126),
        }
    }

    /// Whether the device supports the type in full. These kernels only need buffers and conversions, but a
    /// device without arithmetic may convert by truncation, as NVIDIA's Vulkan driver does for bf16, which
    /// doubles the rounding error and biases it.
    pub(crate) fn served_by(self, properties: &DeviceProperties) -> bool {
        let usage = properties.type_usage(self.elem());
        [TypeUsage::Buffer, TypeUsage::Conversion, TypeUsage::Arithmetic]
            .iter()
            .all(|need| usage.contains(*need))
    }
}
