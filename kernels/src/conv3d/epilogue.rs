//! What epilogues share: the bias of a result's channel. The order of the rest (patch, bias, activation,
//! rounding, mask, store) follows from each kernel's layout of results.

use crate::activation::{Activation, activate};
use cubecl::prelude::*;

/// A channel's bias; zero without a bias.
#[cube]
pub(super) fn channel_bias<E: Float>(bias: ComptimeOption<&Tensor<E>>, channel: u32) -> f32 {
    let bias: ComptimeOption<f32> = bias.map(|bias| f32::cast_from(bias[channel as usize * bias.stride(0)]));
    bias.unwrap_or_else(|| 0.0f32.runtime())
}

/// `activation(sum + bias)`, for kernels that are compiled without either where a call has none.
#[cube]
pub(super) fn finished(sum: f32, bias: ComptimeOption<f32>, #[comptime] activation: Activation) -> f32 {
    #[comptime]
    match bias {
        ComptimeOption::Some(bias) => activate(sum + bias, activation),
        ComptimeOption::None => activate(sum, activation),
    }
}
