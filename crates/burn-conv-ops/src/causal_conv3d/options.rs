//! What the caller of a causal conv3d may choose.

use crate::nn::setters;
use crate::{Activation, Algorithm, Conv3dOptions, PaddingMode, PerAxis};
use burn::serde::{Deserialize, Serialize};

/// What precedes the first frame of a clip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(crate = "burn::serde")]
#[non_exhaustive]
pub enum FirstFrames {
    /// Frames of zeros.
    #[default]
    Zeros,
    /// The first frame, repeated.
    Replicate,
}

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

/// Options of [`causal_conv3d`](crate::causal_conv3d()). `new()`: stride and dilation 1, one group, no
/// padding in the plane, zeros before the first frame, no activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct CausalConv3dOptions {
    /// Distance between windows along D.
    pub depth_stride: usize,
    /// Distance between windows along H, W.
    pub stride: [usize; 2],
    /// Distance between taps along D, H, W.
    pub dilation: [usize; 3],
    /// Groups into which the channels C and O are split; C for a depthwise convolution.
    pub groups: usize,
    /// Padding before and after H, W.
    pub plane_padding: [(usize, usize); 2],
    /// How taps outside the plane read along H, W.
    pub plane_mode: [PaddingMode; 2],
    /// What precedes the first frame where no cache is given.
    pub first: FirstFrames,
    /// Applied to the result before it is rounded and stored.
    pub activation: Activation,
    /// The kernel family; see [`ConvOptions::algorithm`](crate::ConvOptions::algorithm).
    pub algorithm: Algorithm,
}

impl Default for CausalConv3dOptions {
    fn default() -> Self {
        Self {
            depth_stride: 1,
            stride: [1; 2],
            dilation: [1; 3],
            groups: 1,
            plane_padding: [(0, 0); 2],
            plane_mode: [PaddingMode::Zeros; 2],
            first: FirstFrames::Zeros,
            activation: Activation::None,
            algorithm: Algorithm::Auto,
        }
    }
}

impl CausalConv3dOptions {
    /// Stride and dilation 1, one group, no padding in the plane, zeros before the first frame.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how taps outside the plane read, the same along H and W.
    #[must_use]
    pub fn with_plane_mode(self, plane_mode: PaddingMode) -> Self {
        self.with_plane_modes([plane_mode; 2])
    }

    /// The conv3d of frames that have `front` frames of padding before them.
    pub(super) fn conv3d(&self, front: usize) -> Conv3dOptions {
        let depth = match self.first {
            FirstFrames::Zeros => PaddingMode::Zeros,
            FirstFrames::Replicate => PaddingMode::Replicate,
        };
        let [height, width] = self.plane_padding;
        let [of_height, of_width] = self.plane_mode;
        Conv3dOptions {
            stride: [self.depth_stride, self.stride[0], self.stride[1]],
            padding: [(front, 0), height, width].into(),
            dilation: self.dilation,
            groups: self.groups,
            padding_mode: [depth, of_height, of_width],
            activation: self.activation,
            algorithm: self.algorithm,
        }
    }
}

setters!(CausalConv3dOptions {
    /// Sets the distance between windows along D.
    with_depth_stride(depth_stride: usize);
    /// Sets the distance between windows along H, W: one number or two.
    with_stride(stride => PerAxis<2>);
    /// Sets the distance between taps along D, H, W: one number or three.
    with_dilation(dilation => PerAxis);
    /// Sets the number of groups.
    with_groups(groups: usize);
    /// Sets the padding of H, W: one number for all sides, one for each axis, or pairs (before, after).
    with_plane_padding(plane_padding => PaddingPairs<2>);
    /// Sets how taps outside the plane read along H, W.
    with_plane_modes(plane_mode: [PaddingMode; 2]);
    /// Sets what precedes the first frame.
    with_first(first: FirstFrames);
    /// Sets the activation applied to the result.
    with_activation(activation: Activation);
    /// Forces a kernel family.
    with_algorithm(algorithm: Algorithm);
});
