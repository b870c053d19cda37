//! `U[point, kd, in, out] = G g G^T`, one unit per (kd, in, out), outs fastest and filled up to vectors: as the product reads it.
//!
//! A cube transforms 8 ins by 8 outs of one tap: outs are neighbours in U and ins in the weight (outs where it is mirrored), so
//! both reads and writes come in runs of 32 bytes and more.
//!
//! Bytes per unit: 9 weights read, t*t fp32 values written.

use super::Call;
use super::matrices::{Matrix, WinogradTile};
use super::region::VECTOR;
use super::transform::transform_square;
use crate::conv3d::args::offset;
use crate::grid::{Span, dispatches};
use crate::operand::Operand;
use cubecl::ir::{AddressType, ElemType};
use cubecl::prelude::*;

/// Ins and outs of a cube.
const SIDE: u32 = 8;
const UNITS: u32 = SIDE * SIDE;

pub(crate) fn launch(call: &Call, address: AddressType, w: &Operand, u: &Operand) {
    let correlation = call.correlation;
    let blocks = |channels: usize| channels.div_ceil(SIDE as usize);
    let cubes = correlation.kernel_depth * blocks(correlation.in_channels) * blocks(correlation.out_channels);
    let operations = f64::from(UNITS) * 400.0;
    for dispatch in dispatches(cubes, operations, call.limits) {
        // SAFETY: the unit's channels are checked against their numbers; u holds t*t values for each filter.
        unsafe {
            filter_kernel::launch_unchecked(
                call.client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                w.tensor_arg(),
                u.tensor_arg(),
                dispatch.span(),
                correlation.kernel_depth as u32,
                correlation.in_channels as u32,
                correlation.out_channels as u32,
                correlation.mirror,
                call.config.tile,
                w.dtype.elem(),
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn filter_kernel<E: Float>(
    w: &Tensor<E>,
    u: &mut Tensor<f32>,
    span: Span,
    kernel_depth: u32,
    in_channels: u32,
    out_channels: u32,
    #[comptime] mirror: bool,
    #[comptime] tile: WinogradTile,
    #[define(E)] _dtype: ElemType,
) {
    let cube = span.cube();
    let out_blocks = ((out_channels + comptime!(SIDE - 1)) / SIDE) as usize;
    let in_blocks = ((in_channels + comptime!(SIDE - 1)) / SIDE) as usize;
    let rest = cube / out_blocks;
    let kd = (rest / in_blocks) as u32;
    let out_channel = (cube % out_blocks) as u32 * SIDE + UNIT_POS % SIDE;
    let in_channel = (rest % in_blocks) as u32 * SIDE + UNIT_POS / SIDE;
    if span.is_idle() || in_channel >= in_channels || out_channel >= out_channels {
        terminate!();
    }
    let mut taps = Array::<f32>::new(9usize);
    #[unroll]
    for i in 0..3u32 {
        #[unroll]
        for j in 0..3u32 {
            let at = if comptime!(mirror) {
                offset(
                    w,
                    in_channel,
                    out_channel,
                    kernel_depth - 1u32 - kd,
                    comptime!(2 - i),
                    comptime!(2 - j),
                )
            } else {
                offset(w, out_channel, in_channel, kd, i, j)
            };
            taps[comptime!((i * 3 + j) as usize)] = f32::cast_from(w[at]);
        }
    }
    let transformed = transform_square(&taps, tile, Matrix::Filter);
    let pitch = (out_channels as usize + comptime!(VECTOR - 1)) / VECTOR * VECTOR;
    let terms = kernel_depth as usize * in_channels as usize;
    let at = (kd as usize * in_channels as usize + in_channel as usize) * pitch + out_channel as usize;
    #[unroll]
    for point in 0..comptime!(tile.inputs() * tile.inputs()) {
        u[point * terms * pitch + at] = transformed[point];
    }
}
