//! Burn's conv1d module as this crate's causal one: the same parameters, with their ids.

use super::nn::CausalConv1d;
use crate::{Activation, Conv1dLayout, ConvError};
use burn::nn::PaddingConfig1d;
use burn::nn::conv::Conv1d;

/// `[B, C, T]`, no activation.
///
/// Padding that is causal is W-1 before the sequence. As much behind it, whose W-1 results a model cuts off
/// (Mamba's), is taken too: here y has x's length, and there is nothing to cut off.
///
/// # Errors
/// Where the module is not a causal depthwise convolution: it has other groups than channels, a stride,
/// dilated taps, or another padding.
impl TryFrom<Conv1d> for CausalConv1d {
    type Error = ConvError;

    fn try_from(module: Conv1d) -> Result<Self, ConvError> {
        let Conv1d { weight, bias, stride, kernel_size: width, dilation, groups, padding } = module;
        let [channels, group_channels, _] = weight.dims();
        let refused = |what: String| Err(ConvError::Unsupported(format!("CausalConv1d: {what}")));
        if groups != channels || group_channels != 1 {
            return refused(format!(
                "the Conv1d has {} input channels, {channels} output channels and {groups} groups, a depthwise one \
                 has as many of each",
                group_channels * groups
            ));
        }
        if stride != 1 || dilation != 1 && width != 1 {
            return refused(format!(
                "the Conv1d has the stride {stride} and the dilation {dilation}, both must be 1"
            ));
        }
        let (before, behind) = match padding {
            PaddingConfig1d::Explicit(before, behind) => (before, behind),
            PaddingConfig1d::Valid => (0, 0),
            // As Burn pads without a stride.
            PaddingConfig1d::Same => ((width - 1) / 2, width / 2),
        };
        if before != width - 1 || behind != 0 && behind != width - 1 {
            return refused(format!(
                "the Conv1d pads {before} elements before and {behind} behind the sequence, a causal one of \
                 {width} taps {} before, and behind as many or none",
                width - 1
            ));
        }
        Ok(Self { weight, bias, activation: Activation::None, layout: Conv1dLayout::Bct })
    }
}
