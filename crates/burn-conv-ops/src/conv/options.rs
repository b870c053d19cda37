//! The options of conv2d and conv1d by name, their conversion to those of a conv3d, and Burn's padding.

use crate::{Conv3dOptions, ConvOptions, ConvPadding, PaddingMode};
use burn::nn::{PaddingConfig1d, PaddingConfig2d};

/// Options of [`conv2d`](crate::conv2d()).
pub type Conv2dOptions = ConvOptions<2>;

/// Options of [`conv1d`](crate::conv1d()).
pub type Conv1dOptions = ConvOptions<1>;

/// Padding of [`conv2d`](crate::conv2d()).
pub type Conv2dPadding = ConvPadding<2>;

/// Padding of [`conv1d`](crate::conv1d()).
pub type Conv1dPadding = ConvPadding<1>;

impl<const D: usize> ConvOptions<D> {
    /// The options of the conv3d whose other axes have size 1.
    pub(crate) fn volume(&self) -> Conv3dOptions {
        Conv3dOptions {
            stride: last_axes(self.stride, 1),
            padding: match self.padding {
                ConvPadding::Explicit(sides) => ConvPadding::Explicit(last_axes(sides, (0, 0))),
                ConvPadding::Same => ConvPadding::Same,
            },
            dilation: last_axes(self.dilation, 1),
            groups: self.groups,
            padding_mode: last_axes(self.padding_mode, PaddingMode::Zeros),
            activation: self.activation,
            algorithm: self.algorithm,
        }
    }
}

/// `values` for the last D of three axes, `other` for the others.
pub(crate) fn last_axes<T: Copy, const D: usize>(values: [T; D], other: T) -> [T; 3] {
    let mut all = [other; 3];
    all[3 - D..].copy_from_slice(&values);
    all
}

impl From<PaddingConfig2d> for Conv2dPadding {
    fn from(padding: PaddingConfig2d) -> Self {
        match padding {
            PaddingConfig2d::Valid => Self::default(),
            PaddingConfig2d::Same => Self::Same,
            PaddingConfig2d::Explicit(top, left, bottom, right) => [(top, bottom), (left, right)].into(),
        }
    }
}

impl From<Conv2dPadding> for PaddingConfig2d {
    fn from(padding: Conv2dPadding) -> Self {
        match padding {
            ConvPadding::Explicit([(top, bottom), (left, right)]) => Self::Explicit(top, left, bottom, right),
            ConvPadding::Same => Self::Same,
        }
    }
}

impl From<PaddingConfig1d> for Conv1dPadding {
    fn from(padding: PaddingConfig1d) -> Self {
        match padding {
            PaddingConfig1d::Valid => Self::default(),
            PaddingConfig1d::Same => Self::Same,
            PaddingConfig1d::Explicit(before, after) => [(before, after)].into(),
        }
    }
}

impl From<Conv1dPadding> for PaddingConfig1d {
    fn from(padding: Conv1dPadding) -> Self {
        match padding {
            ConvPadding::Explicit([(before, after)]) => Self::Explicit(before, after),
            ConvPadding::Same => Self::Same,
        }
    }
}
