//! What conv3d checks before anything is launched.

use super::Conv3dOptions;
use crate::backend::Conv3dCall;
use crate::check::{fits, limits, operand, same_device_and_dtype};
use burn::tensor::Tensor;
use conv_kernels::ConvError;
#[cfg(feature = "cubecl")]
use conv_kernels::Limits;
use conv_kernels::conv3d::{self, Conv3dProblem, Pass, WinogradTile};
#[cfg(feature = "autodiff")]
use {super::autodiff::Saved, conv_kernels::FloatType};

/// What a call computes.
#[derive(Clone, Copy)]
pub(super) enum Frames<'a> {
    /// A whole input.
    Whole,
    /// The next frames of a clip, behind those of the cache.
    Stream(Option<&'a Tensor<5>>),
}

pub(super) fn check(
    x: &Tensor<5>,
    weight: &Tensor<5>,
    (bias, residual): (Option<&Tensor<1>>, Option<&Tensor<5>>),
    options: &Conv3dOptions,
    frames: Frames,
) -> Result<Conv3dCall, ConvError> {
    const OP: &str = "conv3d";
    let cache = if let Frames::Stream(cache) = frames { cache } else { None };
    let mut operands = vec![operand("x", x), operand("the weight", weight)];
    operands.extend(bias.map(|bias| operand("the bias", bias)));
    operands.extend(cache.map(|cache| operand("the cache", cache)));
    operands.extend(residual.map(|residual| operand("the residual", residual)));
    let dtype = same_device_and_dtype(OP, &operands)?;
    #[cfg(feature = "autodiff")]
    let bias_is_tracked = bias.is_some_and(Tensor::is_tracked);
    let bias = bias.map(|bias| bias.dims()[0]);
    let ([n, c, d, h, w], [_, _, kd, kh, kw]) = (x.dims(), weight.dims());
    let d = d + cache.map_or(0, |cache| cache.dims()[2]);
    let window = options.window([d, h, w], [kd, kh, kw]);
    let whole = Conv3dProblem::new([n, c, d, h, w], weight.dims(), bias, window, dtype)?;
    let whole = Conv3dProblem { residual: residual.is_some(), ..whole };
    if let Some(residual) = residual
        && residual.dims() != whole.y_shape()
    {
        let (shape, y) = (residual.dims(), whole.y_shape());
        return Err(ConvError::Invalid(format!("{OP}: the residual has shape {shape:?}, y has {y:?}")));
    }
    let problem = if let Frames::Stream(_) = frames { whole.for_streams() } else { whole };
    let limits = limits(&x.device());
    fits(OP, &problem.y_shape(), dtype, &limits)?;
    conv3d::plan(&problem, Pass::Forward, options.algorithm, &limits)?;
    let call = Conv3dCall::new(problem, options.algorithm);
    // A backward pass has nowhere to report an error: its plans are made here.
    #[cfg(feature = "autodiff")]
    {
        let cache_is_tracked = cache.is_some_and(Tensor::is_tracked);
        let tracked = [x.is_tracked() || cache_is_tracked, weight.is_tracked(), bias_is_tracked];
        for (pass, tracked) in [Pass::InputGradient, Pass::WeightGradient].into_iter().zip(tracked) {
            if tracked {
                let problem = if cache.is_some() { &problem } else { &whole };
                conv3d::gradient_plan(problem, pass, options.algorithm, &limits)?;
            }
        }
        if matches!(Saved::of(&call, tracked.contains(&true)), Saved::Pre) {
            // What a tracked call keeps.
            fits(OP, &problem.y_shape(), FloatType::F32, &limits)?;
        }
    }
    Ok(call)
}

/// The tile of filters that a checked call could be given transformed: where its plan is Winograd's and none
/// of its tensors is on a device with gradients.
pub(super) fn prepared_tile(
    x: &Tensor<5>,
    weight: &Tensor<5>,
    (bias, residual): (Option<&Tensor<1>>, Option<&Tensor<5>>),
    call: &Conv3dCall,
) -> Option<WinogradTile> {
    #[cfg(feature = "cubecl")]
    {
        use burn::backend::DispatchDevice::Cube;
        let others = [Some(weight.device()), bias.map(Tensor::device), residual.map(Tensor::device)];
        let plain = others.iter().flatten().all(|device| matches!(device.as_dispatch(), Cube(_)));
        if let Cube(device) = x.device().as_dispatch()
            && plain
            && let Ok(conv3d::Plan::Winograd(config)) =
                conv3d::plan(&call.problem, Pass::Forward, call.algorithm, &Limits::shared(&device.client()))
        {
            return Some(config.tile);
        }
    }
    let _ = (x, weight, bias, residual, call);
    None
}
