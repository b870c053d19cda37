//! What the caller of conv2d and conv1d may choose.

use crate::nn::setters;
use crate::{Conv3dOptions, Conv3dPadding, PerAxis};
use conv_kernels::conv3d::{Activation, Algorithm, PaddingMode};

/// Padding before and after each axis: from one number for all sides, one for each axis, or pairs (before,
/// after) for each axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PaddingPairs<const D: usize>(pub [(usize, usize); D]);

impl<const D: usize> From<usize> for PaddingPairs<D> {
    fn from(size: usize) -> Self {
        Self([(size, size); D])
    }
}

impl<const D: usize> From<[usize; D]> for PaddingPairs<D> {
    fn from(sizes: [usize; D]) -> Self {
        Self(sizes.map(|size| (size, size)))
    }
}

impl<const D: usize> From<[(usize, usize); D]> for PaddingPairs<D> {
    fn from(padding: [(usize, usize); D]) -> Self {
        Self(padding)
    }
}

impl<const D: usize> From<PaddingPairs<D>> for [(usize, usize); D] {
    fn from(padding: PaddingPairs<D>) -> Self {
        padding.0
    }
}

/// Options of [`conv2d`](crate::conv2d()) (D = 2: H, W) and [`conv1d`](crate::conv1d()) (D = 1: L). `new()`
/// is a plain convolution: stride 1, no padding, dilation 1, one group, no activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ConvOptions<const D: usize> {
    /// Distance between windows.
    pub stride: [usize; D],
    /// Padding before and after.
    pub padding: [(usize, usize); D],
    /// Distance between taps.
    pub dilation: [usize; D],
    /// Groups into which the channels C and O are split; C for a depthwise convolution.
    pub groups: usize,
    /// How taps outside the input read.
    pub padding_mode: PaddingMode,
    /// Applied to the result before it is rounded and stored.
    pub activation: Activation,
    /// The kernel family; see [`Conv3dOptions::algorithm`].
    pub algorithm: Algorithm,
}

/// Options of [`conv2d`](crate::conv2d()).
pub type Conv2dOptions = ConvOptions<2>;

/// Options of [`conv1d`](crate::conv1d()).
pub type Conv1dOptions = ConvOptions<1>;

impl<const D: usize> Default for ConvOptions<D> {
    fn default() -> Self {
        Self {
            stride: [1; D],
            padding: [(0, 0); D],
            dilation: [1; D],
            groups: 1,
            padding_mode: PaddingMode::Zeros,
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

    /// The options of the conv3d whose other axes have size 1.
    pub(crate) fn volume(&self) -> Conv3dOptions {
        Conv3dOptions {
            stride: last_axes(self.stride, 1),
            padding: Conv3dPadding::Explicit(last_axes(self.padding, (0, 0))),
            dilation: last_axes(self.dilation, 1),
            groups: self.groups,
            padding_mode: [self.padding_mode; 3],
            activation: self.activation,
            algorithm: self.algorithm,
        }
    }
}

setters!(const D: ConvOptions<D> {
    /// Sets the distance between windows: one number or one for each axis.
    with_stride(stride => PerAxis<D>);
    /// Sets the padding: one number for all sides, one for each axis, or pairs (before, after) for each axis.
    with_padding(padding => PaddingPairs<D>);
    /// Sets the distance between taps: one number or one for each axis.
    with_dilation(dilation => PerAxis<D>);
    /// Sets the number of groups.
    with_groups(groups: usize);
    /// Sets how taps outside the input read.
    with_padding_mode(padding_mode: PaddingMode);
    /// Sets the activation applied to the result.
    with_activation(activation: Activation);
    /// Forces a kernel family.
    with_algorithm(algorithm: Algorithm);
});

/// `values` for the last D of three axes, `other` for the others.
pub(crate) fn last_axes<T: Copy, const D: usize>(values: [T; D], other: T) -> [T; 3] {
    let mut all = [other; 3];
    all[3 - D..].copy_from_slice(&values);
    all
}

/// Burn's own options: zero padding, no activation.
impl<const D: usize> From<burn::tensor::ops::ConvOptions<D>> for ConvOptions<D> {
    fn from(options: burn::tensor::ops::ConvOptions<D>) -> Self {
        let burn::tensor::ops::ConvOptions { stride, padding, dilation, groups } = options;
        Self { stride, padding, dilation, groups, ..Self::default() }
    }
}
