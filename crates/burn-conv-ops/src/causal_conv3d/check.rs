//! What a causal conv3d checks of its frames; the convolution checks the rest.

use super::CausalConv3dOptions;
use crate::check::{operand, same_device_and_dtype};
use burn::tensor::Tensor;
use conv_kernels::ConvError;

pub(super) const OP: &str = "causal_conv3d";

/// The frames of a call, counted from the first that a window reads.
#[derive(Clone, Copy)]
pub(super) struct Frames {
    /// Frames of padding before x.
    pub(super) padding: usize,
    /// Frames of the cache or padding and of x.
    all: usize,
    /// Frames of x.
    x: usize,
    /// Frames that a window spans.
    span: usize,
    stride: usize,
}

impl Frames {
    fn windows(&self) -> usize {
        (self.all - self.span) / self.stride + 1
    }

    /// How many of the last frames the next window still reads.
    pub(super) fn kept(&self) -> Result<usize, ConvError> {
        let next = self.windows() * self.stride;
        self.all.checked_sub(next).ok_or_else(|| {
            ConvError::Invalid(format!(
                "{OP}: with {} frames of x the next window begins {} frames behind them, with depth stride {} and \
                 windows of {} frames their number must keep that distance at 0",
                self.x,
                next - self.all,
                self.stride,
                self.span
            ))
        })
    }
}

pub(super) fn check(
    x: &Tensor<5>,
    weight: &Tensor<5>,
    bias: Option<&Tensor<1>>,
    cache: Option<&Tensor<5>>,
    options: &CausalConv3dOptions,
) -> Result<Frames, ConvError> {
    let mut operands = vec![operand("x", x), operand("the weight", weight)];
    operands.extend(bias.map(|bias| operand("the bias", bias)));
    operands.extend(cache.map(|cache| operand("the cache", cache)));
    same_device_and_dtype(OP, &operands)?;
    let (taps, stride, dilation) = (weight.dims()[2], options.depth_stride, options.dilation[0]);
    let [n, c, frames, h, w] = x.dims();
    if taps == 0 || stride == 0 || dilation == 0 || frames == 0 {
        return invalid(format!(
            "depth stride {stride}, depth dilation {dilation}, KD {taps} and x's {frames} frames must not be 0"
        ));
    }
    let Some(reach) = (taps - 1).checked_mul(dilation).filter(|reach| *reach < 1 << 31) else {
        return Err(ConvError::TooLarge(format!(
            "{OP}: {taps} taps {dilation} frames apart span more than 2^31 frames"
        )));
    };
    let span = reach + 1;
    let before = match cache {
        None => reach,
        Some(cache) => {
            let [cache_n, cache_c, held, cache_h, cache_w] = cache.dims();
            // After a piece that ends between two windows.
            let fewest = span.saturating_sub(stride);
            if [cache_n, cache_c, cache_h, cache_w] != [n, c, h, w] || !(fewest..=reach).contains(&held) {
                let expected =
                    if fewest == reach { format!("{reach}") } else { format!("{fewest} to {reach}") };
                return invalid(format!(
                    "the cache is {:?}, with x {:?}, KD {taps}, depth dilation {dilation} and depth stride {stride} \
                     it must be [{n}, {c}, {expected}, {h}, {w}]",
                    cache.dims(),
                    x.dims()
                ));
            }
            held
        }
    };
    if before + frames < span {
        return invalid(format!(
            "{before} frames of the cache and {frames} of x hold no window of {span} frames"
        ));
    }
    let padding = if cache.is_some() { 0 } else { reach };
    Ok(Frames { padding, all: before + frames, x: frames, span, stride })
}

fn invalid<T>(text: String) -> Result<T, ConvError> {
    Err(ConvError::Invalid(format!("{OP}: {text}")))
}
