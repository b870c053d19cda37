//! What the caller may choose: options of the functional API.

use burn::tensor::ops::ConvOptions;
use conv_kernels::conv3d::{Activation, Algorithm, PaddingMode, Window};

/// Options of [`conv3d`](crate::conv3d()). `Conv3dOptions::new()` is a plain convolution: stride 1, no padding, dilation
/// 1, one group, no activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv3dOptions {
    /// Distance between windows along D, H, W.
    pub stride: [usize; 3],
    /// Padding before and after D, H, W. The two sides may differ.
    pub padding: [(usize, usize); 3],
    /// Distance between taps along D, H, W.
    pub dilation: [usize; 3],
    /// Groups into which the channels C and O are split; C for a depthwise convolution.
    pub groups: usize,
    /// How taps outside the input read.
    pub padding_mode: PaddingMode,
    /// Applied to the result before it is rounded and stored.
    pub activation: Activation,
    /// The kernel family. A forced algorithm that cannot serve the problem is an error. The CPU backend has one
    /// algorithm of its own; there the choice is checked and has no other effect.
    pub algorithm: Algorithm,
}

impl Default for Conv3dOptions {
    fn default() -> Self {
        Self {
            stride: [1; 3],
            padding: [(0, 0); 3],
            dilation: [1; 3],
            groups: 1,
            padding_mode: PaddingMode::Zeros,
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

    /// Sets the distance between windows along D, H, W.
    #[must_use]
    pub fn with_stride(self, stride: [usize; 3]) -> Self {
        Self { stride, ..self }
    }

    /// Sets equal padding on both sides of D, H, W.
    #[must_use]
    pub fn with_padding(self, padding: [usize; 3]) -> Self {
        self.with_asymmetric_padding(padding.map(|size| (size, size)))
    }

    /// Sets the padding before and after D, H, W.
    #[must_use]
    pub fn with_asymmetric_padding(self, padding: [(usize, usize); 3]) -> Self {
        Self { padding, ..self }
    }

    /// Sets the distance between taps along D, H, W.
    #[must_use]
    pub fn with_dilation(self, dilation: [usize; 3]) -> Self {
        Self { dilation, ..self }
    }

    /// Sets the number of groups.
    #[must_use]
    pub fn with_groups(self, groups: usize) -> Self {
        Self { groups, ..self }
    }

    /// Sets how taps outside the input read.
    #[must_use]
    pub fn with_padding_mode(self, padding_mode: PaddingMode) -> Self {
        Self { padding_mode, ..self }
    }

    /// Sets the activation applied to the result.
    #[must_use]
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// Forces a kernel family.
    #[must_use]
    pub fn with_algorithm(self, algorithm: Algorithm) -> Self {
        Self { algorithm, ..self }
    }

    /// The same options as the kernels name them.
    pub(crate) fn window(&self) -> Window {
        Window {
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
            groups: self.groups,
            padding_mode: self.padding_mode,
            activation: self.activation,
        }
    }
}

/// Burn's own options: zero padding, no activation.
impl From<ConvOptions<3>> for Conv3dOptions {
    fn from(options: ConvOptions<3>) -> Self {
        let ConvOptions { stride, padding, dilation, groups } = options;
        Self { stride, padding, dilation, groups, ..Self::default() }
    }
}
