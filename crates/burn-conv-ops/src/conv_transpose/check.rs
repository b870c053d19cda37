//! What a transposed convolution checks before anything is launched.

use super::ConvTranspose3dOptions;
use crate::backend::Conv3dCall;
use crate::check::{fits, limits, operand, same_device_and_dtype};
use burn::tensor::Tensor;
use conv_kernels::ConvError;
use conv_kernels::conv3d::{self, Conv3dProblem, PaddingMode, Pass, Window};
#[cfg(feature = "autodiff")]
use {crate::conv3d::autodiff::Saved, conv_kernels::FloatType};

const OP: &str = "conv_transpose3d";

/// The conv3d whose input gradient is the result, and how many elements without a product are behind it.
pub(super) fn check(
    x: &Tensor<5>,
    weight: &Tensor<5>,
    bias: Option<&Tensor<1>>,
    options: &ConvTranspose3dOptions,
) -> Result<(Conv3dCall, [usize; 3]), ConvError> {
    let mut operands = vec![operand("x", x), operand("the weight", weight)];
    operands.extend(bias.map(|bias| operand("the bias", bias)));
    let dtype = same_device_and_dtype(OP, &operands)?;
    let ([n, channels, input @ ..], [rows, group_out, kernel @ ..]) = (x.dims(), weight.dims());
    let ConvTranspose3dOptions { stride, padding, padding_out, dilation, groups, activation, algorithm } =
        *options;
    if rows != channels {
        invalid(format!("x has {channels} channels, the weight {:?} is for {rows}", weight.dims()))?;
    }
    if groups == 0 || channels % groups != 0 {
        invalid(format!("{channels} input channels cannot be split into {groups} groups"))?;
    }
    let out_channels = group_out.saturating_mul(groups);
    if let Some(bias) = bias
        && bias.dims()[0] != out_channels
    {
        invalid(format!(
            "the bias has {} elements, there are {out_channels} output channels",
            bias.dims()[0]
        ))?;
    }
    let mut behind = [0; 3];
    let mut output = [0; 3];
    let mut cut = [(0, 0); 3];
    for axis in 0..3 {
        let (step, dilation, kernel) = (stride[axis], dilation[axis], kernel[axis]);
        if step == 0 || dilation == 0 || kernel == 0 || input[axis] == 0 {
            invalid(format!(
                "stride {stride:?}, dilation {:?}, the kernel {:?} and x's extents {input:?} must not have a 0",
                options.dilation,
                &weight.dims()[2..]
            ))?;
        }
        let longer = padding_out[axis];
        if longer >= step.max(dilation) {
            invalid(format!(
                "padding_out {padding_out:?} must be below the larger of stride {stride:?} and dilation {:?} \
                 on each axis",
                options.dilation
            ))?;
        }
        // All elements with a product, before padding cuts both ends.
        let whole = (input[axis] - 1)
            .checked_mul(step)
            .zip(dilation.checked_mul(kernel - 1))
            .and_then(|(windows, reach)| windows.checked_add(reach)?.checked_add(1));
        let Some(whole) = whole.filter(|whole| whole.checked_add(longer).is_some()) else {
            return Err(ConvError::TooLarge(format!(
                "{OP}: the result of x {:?} with stride {stride:?} and dilation {:?} has more elements along \
                 axis {axis} than can be addressed",
                x.dims(),
                options.dilation
            )));
        };
        let begin = padding[axis];
        if whole + longer <= begin.saturating_mul(2) {
            invalid(format!(
                "padding {padding:?} leaves nothing of a result that has {whole} elements along axis {axis} and \
                 padding_out {longer}"
            ))?;
        }
        // What padding_out adds is cut less behind; elements past `whole` have no product.
        let end = begin.saturating_sub(longer);
        let past = longer - (begin - end);
        // A conv3d leaves fewer than `stride` elements behind its last window; others are appended.
        let kept = past.min(step - 1);
        behind[axis] = past - kept;
        output[axis] = whole + kept - begin - end;
        cut[axis] = (begin, end);
        // With the same padding on both sides where the windows are the same.
        if longer < step {
            cut[axis] = (begin, begin);
        }
    }
    let window =
        Window { stride, padding: cut, dilation, groups, padding_mode: [PaddingMode::Zeros; 3], activation };
    let [d, h, w] = output;
    let problem = Conv3dProblem::new([n, out_channels, d, h, w], weight.dims(), None, window, dtype)
        .map_err(|error| crate::conv::renamed(error, OP, "conv3d", "the result"))?;
    debug_assert_eq!(problem.y_shape(), x.dims());
    let limits = limits(&x.device());
    let result = [n, out_channels, d + behind[0], h + behind[1], w + behind[2]];
    fits(OP, &result, dtype, &limits)?;
    conv3d::plan(&problem, Pass::InputGradient, algorithm, &limits)?;
    let call = Conv3dCall::new(problem, algorithm);
    // A backward pass has nowhere to report an error: its plans are made here.
    #[cfg(feature = "autodiff")]
    {
        let tracked = [x.is_tracked(), weight.is_tracked(), bias.is_some_and(Tensor::is_tracked)];
        for (pass, tracked) in [Pass::Forward, Pass::WeightGradient].into_iter().zip(tracked) {
            if tracked {
                conv3d::gradient_plan(&problem, pass, algorithm, &limits)?;
            }
        }
        if matches!(Saved::of(&call, tracked.contains(&true)), Saved::Pre) {
            // What a tracked call keeps.
            fits(OP, &problem.x_shape(), FloatType::F32, &limits)?;
        }
    }
    Ok((call, behind))
}

fn invalid(text: String) -> Result<(), ConvError> {
    Err(ConvError::Invalid(format!("{OP}: {text}")))
}
