//! What the caller of conv3d may choose.

use crate::nn::setters;
use burn::nn::PaddingConfig3d;
use burn::serde::{Deserialize, Serialize};
use burn::tensor::ops::ConvOptions;
use conv_kernels::conv3d::{Activation, Algorithm, PaddingMode, Window};

/// One number for each axis: from an array, or from one number for all axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PerAxis<const D: usize = 3>(pub [usize; D]);

impl<const D: usize> From<usize> for PerAxis<D> {
    fn from(size: usize) -> Self {
        Self([size; D])
    }
}

impl<const D: usize> From<[usize; D]> for PerAxis<D> {
    fn from(sizes: [usize; D]) -> Self {
        Self(sizes)
    }
}

impl<const D: usize> From<PerAxis<D>> for [usize; D] {
    fn from(sizes: PerAxis<D>) -> Self {
        sizes.0
    }
}

/// Padding before and after D, H, W: from one number for all sides, one for each axis, pairs (before, after)
/// for each axis, or Burn's `PaddingConfig3d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(crate = "burn::serde")]
#[non_exhaustive]
pub enum Conv3dPadding {
    /// These sizes; the two sides may differ.
    Explicit([(usize, usize); 3]),
    /// As much as gives `ceil(input / stride)` outputs; the odd one goes behind.
    Same,
}

impl Conv3dPadding {
    /// The sizes for an input and a kernel of these sizes.
    pub(crate) fn resolve(
        self,
        input: [usize; 3],
        kernel: [usize; 3],
        stride: [usize; 3],
        dilation: [usize; 3],
    ) -> [(usize, usize); 3] {
        match self {
            Self::Explicit(padding) => padding,
            Self::Same => {
                [0, 1, 2].map(|axis| same_padding(input[axis], kernel[axis], stride[axis], dilation[axis]))
            }
        }
    }
}

/// Padding that gives `ceil(input / stride)` windows. Zeros in an argument are left to the op to refuse.
pub(crate) fn same_padding(input: usize, kernel: usize, stride: usize, dilation: usize) -> (usize, usize) {
    let reach = dilation.saturating_mul(kernel.saturating_sub(1)).saturating_add(1);
    let windows = input.div_ceil(stride.max(1));
    let covered = windows.saturating_sub(1).saturating_mul(stride).saturating_add(reach);
    let total = covered.saturating_sub(input);
    (total / 2, total - total / 2)
}

impl Default for Conv3dPadding {
    fn default() -> Self {
        Self::Explicit([(0, 0); 3])
    }
}

impl From<usize> for Conv3dPadding {
    fn from(size: usize) -> Self {
        Self::Explicit([(size, size); 3])
    }
}

impl From<[usize; 3]> for Conv3dPadding {
    fn from(sizes: [usize; 3]) -> Self {
        Self::Explicit(sizes.map(|size| (size, size)))
    }
}

impl From<[(usize, usize); 3]> for Conv3dPadding {
    fn from(padding: [(usize, usize); 3]) -> Self {
        Self::Explicit(padding)
    }
}

impl From<PaddingConfig3d> for Conv3dPadding {
    fn from(padding: PaddingConfig3d) -> Self {
        match padding {
            PaddingConfig3d::Valid => Self::default(),
            PaddingConfig3d::Same => Self::Same,
            PaddingConfig3d::Explicit(depth, height, width) => [depth, height, width].into(),
        }
    }
}

/// Options of [`conv3d`](crate::conv3d()). `Conv3dOptions::new()` is a plain convolution: stride 1, no
/// padding, dilation 1, one group, no activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Conv3dOptions {
    /// Distance between windows along D, H, W.
    pub stride: [usize; 3],
    /// Padding before and after D, H, W.
    pub padding: Conv3dPadding,
    /// Distance between taps along D, H, W.
    pub dilation: [usize; 3],
    /// Groups into which the channels C and O are split; C for a depthwise convolution.
    pub groups: usize,
    /// How taps outside the input read along D, H, W.
    pub padding_mode: [PaddingMode; 3],
    /// Applied to the result before it is rounded and stored.
    pub activation: Activation,
    /// The kernel family. A forced algorithm that cannot serve the problem is an error. The CPU backend has
    /// one algorithm of its own; there the choice is checked and has no other effect.
    pub algorithm: Algorithm,
}

impl Default for Conv3dOptions {
    fn default() -> Self {
        Self {
            stride: [1; 3],
            padding: Conv3dPadding::default(),
            dilation: [1; 3],
            groups: 1,
            padding_mode: [PaddingMode::Zeros; 3],
            activation: Activation::None,
            algorithm: Algorithm::Auto,
        }
    }
}

impl Conv3dOptions {
    /// A plain convolution.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how taps outside the input read, the same along all axes.
    #[must_use]
    pub fn with_padding_mode(self, padding_mode: PaddingMode) -> Self {
        self.with_padding_modes([padding_mode; 3])
    }

    /// The same options as the kernels name them, for an input and a kernel of these sizes.
    pub(crate) fn window(&self, input: [usize; 3], kernel: [usize; 3]) -> Window {
        Window {
            stride: self.stride,
            padding: self.padding.resolve(input, kernel, self.stride, self.dilation),
            dilation: self.dilation,
            groups: self.groups,
            padding_mode: self.padding_mode,
            activation: self.activation,
        }
    }
}

setters!(Conv3dOptions {
    /// Sets the distance between windows along D, H, W: one number or three.
    with_stride(stride => PerAxis);
    /// Sets the padding: one number, one for each axis, pairs (before, after), or Burn's `PaddingConfig3d`.
    with_padding(padding => Conv3dPadding);
    /// Sets the distance between taps along D, H, W: one number or three.
    with_dilation(dilation => PerAxis);
    /// Sets the number of groups.
    with_groups(groups: usize);
    /// Sets how taps outside the input read along D, H, W.
    with_padding_modes(padding_mode: [PaddingMode; 3]);
    /// Sets the activation applied to the result.
    with_activation(activation: Activation);
    /// Forces a kernel family.
    with_algorithm(algorithm: Algorithm);
});

/// Burn's own options: zero padding, no activation.
impl From<ConvOptions<3>> for Conv3dOptions {
    fn from(options: ConvOptions<3>) -> Self {
        let ConvOptions { stride, padding, dilation, groups } = options;
        Self { stride, padding: padding.into(), dilation, groups, ..Self::default() }
    }
}
