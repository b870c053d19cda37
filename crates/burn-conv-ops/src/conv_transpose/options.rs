//! What the caller of a transposed convolution may choose.

use crate::PerAxis;
use crate::conv::last_axes;
use crate::nn::setters;
use conv_kernels::conv3d::{Activation, Algorithm};

/// Options of [`conv_transpose3d`](crate::conv_transpose3d()) (D = 3: D, H, W),
/// [`conv_transpose2d`](crate::conv_transpose2d()) (D = 2: H, W) and
/// [`conv_transpose1d`](crate::conv_transpose1d()) (D = 1: L). `new()`: stride 1, no padding, dilation 1, one
/// group, no activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ConvTransposeOptions<const D: usize> {
    /// Distance in the result between the windows of neighbouring elements of x.
    pub stride: [usize; D],
    /// Elements that are cut from both ends of the result.
    pub padding: [usize; D],
    /// Elements that the result has behind these, PyTorch's `output_padding`; below the larger of stride and
    /// dilation.
    pub padding_out: [usize; D],
    /// Distance between taps.
    pub dilation: [usize; D],
    /// Groups into which the channels C and O are split.
    pub groups: usize,
    /// Applied to the result before it is rounded and stored.
    pub activation: Activation,
    /// The kernel family of the input gradient that computes the result.
    pub algorithm: Algorithm,
}

/// Options of [`conv_transpose3d`](crate::conv_transpose3d()).
pub type ConvTranspose3dOptions = ConvTransposeOptions<3>;

/// Options of [`conv_transpose2d`](crate::conv_transpose2d()).
pub type ConvTranspose2dOptions = ConvTransposeOptions<2>;

/// Options of [`conv_transpose1d`](crate::conv_transpose1d()).
pub type ConvTranspose1dOptions = ConvTransposeOptions<1>;

impl<const D: usize> Default for ConvTransposeOptions<D> {
    fn default() -> Self {
        Self {
            stride: [1; D],
            padding: [0; D],
            padding_out: [0; D],
            dilation: [1; D],
            groups: 1,
            activation: Activation::None,
            algorithm: Algorithm::Auto,
        }
    }
}

impl<const D: usize> ConvTransposeOptions<D> {
    /// Stride 1, no padding, dilation 1, one group, no activation.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The options of the transposed conv3d whose other axes have size 1.
    pub(super) fn volume(&self) -> ConvTranspose3dOptions {
        ConvTransposeOptions {
            stride: last_axes(self.stride, 1),
            padding: last_axes(self.padding, 0),
            padding_out: last_axes(self.padding_out, 0),
            dilation: last_axes(self.dilation, 1),
            groups: self.groups,
            activation: self.activation,
            algorithm: self.algorithm,
        }
    }
}

setters!(const D: ConvTransposeOptions<D> {
    /// Sets the stride: one number or one for each axis.
    with_stride(stride => PerAxis<D>);
    /// Sets how much is cut from both ends of the result: one number or one for each axis.
    with_padding(padding => PerAxis<D>);
    /// Sets how much longer the result is: one number or one for each axis.
    with_padding_out(padding_out => PerAxis<D>);
    /// Sets the distance between taps: one number or one for each axis.
    with_dilation(dilation => PerAxis<D>);
    /// Sets the number of groups.
    with_groups(groups: usize);
    /// Sets the activation applied to the result.
    with_activation(activation: Activation);
    /// Forces a kernel family.
    with_algorithm(algorithm: Algorithm);
});

/// Burn's own options: no activation.
impl<const D: usize> From<burn::tensor::ops::ConvTransposeOptions<D>> for ConvTransposeOptions<D> {
    fn from(options: burn::tensor::ops::ConvTransposeOptions<D>) -> Self {
        let burn::tensor::ops::ConvTransposeOptions { stride, padding, padding_out, dilation, groups } =
            options;
        Self { stride, padding, padding_out, dilation, groups, ..Self::default() }
    }
}
