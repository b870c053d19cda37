//! Burn's conv3d module as this crate's and back: the same parameters, with their ids.

use super::nn::Conv3d;
use super::{Conv3dPadding, FilterCache};
use crate::{Activation, Algorithm, ConvError, PaddingMode};
use burn::nn::PaddingConfig3d;
use burn::nn::conv::Conv3d as BurnConv3d;

/// Zero padding, no activation, the kernel family chosen by shape.
///
/// # Errors
/// For `PaddingConfig3d::Same` with dilated taps and a stride: Burn pads as if the taps were not dilated, by
/// a size that depends on the input's. With stride 1 that size is a constant, which is taken.
impl TryFrom<BurnConv3d> for Conv3d {
    type Error = ConvError;

    fn try_from(module: BurnConv3d) -> Result<Self, ConvError> {
        let BurnConv3d { weight, bias, stride, kernel_size, dilation, groups, padding } = module;
        let dilated = (0..3).any(|axis| dilation[axis] > 1 && kernel_size[axis] > 1);
        let padding = match padding {
            PaddingConfig3d::Same if dilated => {
                if stride != [1; 3] {
                    return Err(ConvError::Unsupported(format!(
                        "Conv3d: Burn's Same padding leaves the dilation {dilation:?} out, with the stride \
                         {stride:?} there is no padding that gives the same for every input"
                    )));
                }
                kernel_size.map(|taps| ((taps - 1) / 2, taps / 2)).into()
            }
            other => Conv3dPadding::from(other),
        };
        Ok(Self {
            weight,
            bias,
            stride,
            padding,
            dilation,
            groups,
            padding_mode: [PaddingMode::Zeros; 3],
            activation: Activation::None,
            algorithm: Algorithm::Auto,
            reuse_filters: false,
            filters: FilterCache::default(),
        })
    }
}

/// The kernel family and the kept filters are left behind.
///
/// # Errors
/// For what Burn's module lacks: an activation, padding with anything but zeros, sides with different
/// padding, `Same` padding of an even number of taps or of dilated ones.
impl TryFrom<Conv3d> for BurnConv3d {
    type Error = ConvError;

    fn try_from(module: Conv3d) -> Result<Self, ConvError> {
        let Conv3d { weight, bias, stride, padding, dilation, groups, padding_mode, activation, .. } = module;
        let [_, _, kernel_size @ ..] = weight.dims();
        let lacks =
            |what: String| Err(ConvError::Unsupported(format!("Conv3d: Burn's module has no {what}")));
        if activation != Activation::None {
            return lacks(format!("activation, this one has {activation:?}"));
        }
        if let Some(mode) = padding_mode.into_iter().find(|mode| *mode != PaddingMode::Zeros) {
            return lacks(format!("padding mode, this one has {mode:?}"));
        }
        let padding = match padding {
            Conv3dPadding::Explicit(sides) if sides.iter().all(|(before, after)| before == after) => {
                let [depth, height, width] = sides.map(|(before, _)| before);
                PaddingConfig3d::Explicit(depth, height, width)
            }
            Conv3dPadding::Explicit(sides) => {
                return lacks(format!("padding that differs between two sides, this one has {sides:?}"));
            }
            Conv3dPadding::Same => {
                let served =
                    |axis: usize| kernel_size[axis] == 1 || kernel_size[axis] % 2 == 1 && dilation[axis] == 1;
                if !(0..3).all(served) {
                    return lacks(format!(
                        "Same padding of {kernel_size:?} taps with the dilation {dilation:?}, only of odd \
                         numbers of taps without dilation"
                    ));
                }
                PaddingConfig3d::Same
            }
        };
        Ok(Self { weight, bias, stride, kernel_size, dilation, groups, padding })
    }
}
