//! What the caller of a convolution may choose, in one, two or three dimensions.

use crate::nn::setters;
use burn::nn::PaddingConfig3d;
use burn::serde::{Deserialize, Serialize};
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

/// Along one axis: one number. For modules whose extents along one axis are numbers, as Burn's are.
impl From<PerAxis<1>> for usize {
    fn from(PerAxis([size]): PerAxis<1>) -> Self {
        size
    }
}

/// Padding before and after each axis: from one number for all sides, one for each axis, pairs (before,
/// after) for each axis, or Burn's `PaddingConfig1d`, `PaddingConfig2d` or `PaddingConfig3d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(
    crate = "burn::serde",
    bound(
        serialize = "[(usize, usize); D]: Serialize",
        deserialize = "[(usize, usize); D]: Deserialize<'de>"
    )
)]
#[non_exhaustive]
pub enum ConvPadding<const D: usize> {
    /// These sizes; the two sides may differ.
    Explicit([(usize, usize); D]),
    /// As much as gives `ceil(input / stride)` outputs; the odd one goes behind.
    Same,
}

/// Padding of [`conv3d`](crate::conv3d()).
pub type Conv3dPadding = ConvPadding<3>;

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
fn same_padding(input: usize, kernel: usize, stride: usize, dilation: usize) -> (usize, usize) {
    let reach = dilation.saturating_mul(kernel.saturating_sub(1)).saturating_add(1);
    let windows = input.div_ceil(stride.max(1));
    let covered = windows.saturating_sub(1).saturating_mul(stride).saturating_add(reach);
    let total = covered.saturating_sub(input);
    (total / 2, total - total / 2)
}

impl<const D: usize> Default for ConvPadding<D> {
    fn default() -> Self {
        Self::Explicit([(0, 0); D])
    }
}

impl<const D: usize> From<usize> for ConvPadding<D> {
    fn from(size: usize) -> Self {
        Self::Explicit([(size, size); D])
    }
}

impl<const D: usize> From<[usize; D]> for ConvPadding<D> {
    fn from(sizes: [usize; D]) -> Self {
        Self::Explicit(sizes.map(|size| (size, size)))
    }
}

impl<const D: usize> From<[(usize, usize); D]> for ConvPadding<D> {
    fn from(padding: [(usize, usize); D]) -> Self {
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

/// Options of [`conv3d`](crate::conv3d()) (D = 3: D, H, W), [`conv2d`](crate::conv2d()) (D = 2: H, W) and
/// [`conv1d`](crate::conv1d()) (D = 1: L). `new()` is a plain convolution: stride 1, no padding, dilation 1,
/// one group, no activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ConvOptions<const D: usize> {
    /// Distance between windows along each axis.
    pub stride: [usize; D],
    /// Padding before and after each axis.
    pub padding: ConvPadding<D>,
    /// Distance between taps along each axis.
    pub dilation: [usize; D],
    /// Groups into which the channels C and O are split; C for a depthwise convolution.
    pub groups: usize,
    /// How taps outside the input read along each axis.
    pub padding_mode: [PaddingMode; D],
    /// Applied to the result before it is rounded and stored.
    pub activation: Activation,
    /// The kernel family. A forced algorithm that cannot serve the problem is an error. The CPU backend has
    /// one algorithm of its own; there the choice is checked and has no other effect.
    pub algorithm: Algorithm,
}

/// Options of [`conv3d`](crate::conv3d()).
pub type Conv3dOptions = ConvOptions<3>;

impl<const D: usize> Default for ConvOptions<D> {
    fn default() -> Self {
        Self {
            stride: [1; D],
            padding: ConvPadding::default(),
            dilation: [1; D],
            groups: 1,
            padding_mode: [PaddingMode::Zeros; D],
            activation: Activation::None,
            algorithm: Algorithm::Auto,
        }
    }
}

impl<const D: usize> ConvOptions<D> {
    /// A plain convolution.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how taps outside the input read, the same along all axes.
    #[must_use]
    pub fn with_padding_mode(self, padding_mode: PaddingMode) -> Self {
        self.with_padding_modes([padding_mode; D])
    }
}

impl Conv3dOptions {
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

setters!(const D: ConvOptions<D> {
    /// Sets the distance between windows: one number or one for each axis.
    with_stride(stride => PerAxis<D>);
    /// Sets the padding: one number, one for each axis, pairs (before, after), Burn's `PaddingConfig` of as
    /// many axes, or [`ConvPadding::Same`].
    with_padding(padding => ConvPadding<D>);
    /// Sets the distance between taps: one number or one for each axis.
    with_dilation(dilation => PerAxis<D>);
    /// Sets the number of groups.
    with_groups(groups: usize);
    /// Sets how taps outside the input read along each axis.
    with_padding_modes(padding_mode: [PaddingMode; D]);
    /// Sets the activation applied to the result.
    with_activation(activation: Activation);
    /// Forces a kernel family.
    with_algorithm(algorithm: Algorithm);
});

/// Burn's own options: zero padding, no activation.
impl<const D: usize> From<burn::tensor::ops::ConvOptions<D>> for ConvOptions<D> {
    fn from(options: burn::tensor::ops::ConvOptions<D>) -> Self {
        let burn::tensor::ops::ConvOptions { stride, padding, dilation, groups } = options;
        Self { stride, padding: padding.into(), dilation, groups, ..Self::default() }
    }
}
