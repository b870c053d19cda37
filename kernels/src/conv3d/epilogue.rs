//! What epilogues share: a channel's bias, and the residual at an output position. The order of the rest
//! (patch, bias, activation, residual, rounding, mask, store) follows from each kernel's layout of results.

use super::gemm::index::GatherArgs;
use crate::activation::{Activation, activate, activate_by_code};
use crate::operand::Operand;
use cubecl::prelude::*;

/// What follows a convolution's sums before they are rounded: `activation(sum + bias) + residual`.
#[derive(Clone, Copy, Default)]
pub(super) struct Epilogue<'a> {
    /// `[channels]`.
    pub(super) bias: Option<&'a Operand>,
    /// Of the result's shape and the bias' type, any strides.
    pub(super) residual: Option<&'a Operand>,
    pub(super) activation: Activation,
}

/// A channel's bias; zero without a bias.
#[cube]
pub(super) fn channel_bias<E: Float>(bias: ComptimeOption<&Tensor<E>>, channel: u32) -> f32 {
    let bias: ComptimeOption<f32> = bias.map(|bias| bias_of(bias, channel as usize));
    bias.unwrap_or_else(|| 0.0f32.runtime())
}

/// A channel's element of a bias.
#[cube]
pub(super) fn bias_of<E: Float>(bias: &Tensor<E>, channel: usize) -> f32 {
    f32::cast_from(bias[channel * bias.stride(0)])
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

/// `activation(sum) + residual`, of a sum with its bias, an activation by its code and a channel's element of
/// the residual; `at` is that of channel 0 ([`residual_offset`]).
#[cube]
pub(super) fn finished_with_channel<E: Float>(
    sum: f32,
    residual: ComptimeOption<&Tensor<E>>,
    at: usize,
    channel: u32,
    activation: u32,
) -> f32 {
    let value = activate_by_code(sum, activation);
    let added: ComptimeOption<f32> =
        residual.map(|residual| f32::cast_from(residual[at + channel as usize * residual.stride(1)]));
    add_residual(value, added, activation)
}

/// [`finished_with_channel`] with an element of a vector of the residual.
#[cube]
pub(super) fn finished_with_lane<N: Size>(
    sum: f32,
    residual: ComptimeOption<Vector<f32, N>>,
    #[comptime] lane: usize,
    activation: u32,
) -> f32 {
    let value = activate_by_code(sum, activation);
    let added: ComptimeOption<f32> = residual.map(|residual| residual.extract(lane));
    add_residual(value, added, activation)
}

/// The value after the activation of this code, with the residual added, where there is a residual.
#[cube]
pub(super) fn add_residual(value: f32, residual: ComptimeOption<f32>, activation: u32) -> f32 {
    #[comptime]
    match residual {
        ComptimeOption::Some(residual) => {
            f32::reinterpret(u32::reinterpret(value) ^ never(activation)) + residual
        }
        ComptimeOption::None => value,
    }
}

/// [`add_residual`] of a vector of values.
#[cube]
pub(super) fn add_residual_vector<N: Size>(
    values: Vector<f32, N>,
    residual: ComptimeOption<Vector<f32, N>>,
    activation: u32,
) -> Vector<f32, N> {
    #[comptime]
    match residual {
        ComptimeOption::Some(residual) => {
            let bits = Vector::<u32, N>::reinterpret(values) ^ Vector::new(never(activation));
            Vector::<f32, N>::reinterpret(bits) + residual
        }
        ComptimeOption::None => values,
    }
}

/// Zero, which no compiler knows. On the bits of SiLU's product it keeps compilers from fusing the product
/// with the addition behind it, as NVIDIA's did in one kernel and not in another: y then depended in its last
/// bits on whether the value before the activation is kept.
#[cube]
fn never(activation: u32) -> u32 {
    activation >> 8u32
}

/// Offset in a residual of channel 0 at a gather's output position.
#[cube]
pub(super) fn residual_offset<E: CubePrimitive>(
    residual: &Tensor<E>,
    gather: &GatherArgs,
    n: u32,
    d: u32,
    h: u32,
    w: u32,
) -> usize {
    n as usize * residual.stride(0)
        + gather.depth.out_coordinate(d) as usize * residual.stride(2)
        + gather.height.out_coordinate(h) as usize * residual.stride(3)
        + gather.width.out_coordinate(w) as usize * residual.stride(4)
}

/// [`residual_offset`] of the output position at a linear index; 0 without a residual.
#[cube]
pub(super) fn residual_row<E: Float>(
    residual: ComptimeOption<&Tensor<E>>,
    gather: &GatherArgs,
    index: u32,
) -> usize {
    #[comptime]
    match residual {
        ComptimeOption::Some(residual) => {
            let (n, d, h, w) = gather.position_coordinates(index);
            residual_offset(residual, gather, n, d, h, w)
        }
        ComptimeOption::None => 0usize,
    }
}
