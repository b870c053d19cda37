//! Filter transform, one thread per (kd, in, out), outs fastest and rounded up to a multiple of four:
//!
//! ```text
//! U[point, kd, in, out] = (G g G^T)[point]         t * t points; the layout that the product loads
//! ```
//!
//! Bytes per thread: 9 weights read (strided), t * t fp32 values written (coalesced). A threadgroup is 64
//! threads; about 400 FLOP per thread. Off NVIDIA rows are transformed in loops ([`super::row_loops`]).
//! Declined: what [`super`] declines.

use super::WinogradCall;
use super::constants::{Matrix, WinogradTile, scale_exponent};
use super::region::VECTOR;
use super::row_loops::{add_row, finished_row, no_rows};
use super::transform::{scale_down, transform_square};
use crate::conv3d::args::offset;
use crate::launch::{Span, dispatches};
use crate::operand::Operand;
use cubecl::ir::{AddressType, ElemType};
use cubecl::prelude::*;

/// Threads of a threadgroup.
const THREADS: u32 = 64;

pub(crate) fn launch(call: &WinogradCall, address: AddressType, w: &Operand, u: &Operand) {
    let correlation = call.correlation;
    let filters = correlation.kernel_depth * correlation.in_channels * correlation.out_channels;
    let flop = f64::from(THREADS) * 400.0;
    for dispatch in dispatches(filters.div_ceil(THREADS as usize), flop, call.limits) {
        // SAFETY: see `mod.rs`; the thread index is checked against the number of filters.
        unsafe {
            filter_kernel::launch_unchecked(
                call.client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                w.tensor_arg(),
                u.tensor_arg(),
                dispatch.span(),
                correlation.kernel_depth as u32,
                correlation.in_channels as u32,
                correlation.out_channels as u32,
                correlation.mirror,
                call.config.tile,
                call.limits.unroll,
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
    #[comptime] unroll: bool,
    #[define(E)] _dtype: ElemType,
) {
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
    let filters = kernel_depth as usize * in_channels as usize * out_channels as usize;
    if span.is_idle() || index >= filters {
        terminate!();
    }
    let rest = index / out_channels as usize;
    let out_channel = (index - rest * out_channels as usize) as u32;
    let kd = (rest / in_channels as usize) as u32;
    let in_channel = (rest - kd as usize * in_channels as usize) as u32;
    if comptime!(unroll) {
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
                taps[comptime!((i * 3 + j) as usize)] =
                    scale_down(f32::cast_from(w[at]), comptime!(scale_exponent(tile, Matrix::Filter)));
            }
        }
        let transformed = transform_square(&taps, tile, Matrix::Filter);
        let pitch = (out_channels as usize + comptime!(VECTOR - 1)) / VECTOR * VECTOR;
        let k_elements = kernel_depth as usize * in_channels as usize;
        let first = rest * pitch + out_channel as usize;
        #[unroll]
        for point in 0..comptime!(tile.inputs() * tile.inputs()) {
            u[point * k_elements * pitch + first] = transformed[point];
        }
    } else {
        let size = comptime!(tile.inputs());
        let half = no_rows(tile, Matrix::Filter);
        for i in 0..3u32 {
            let at = if comptime!(mirror) {
                offset(w, in_channel, out_channel, kernel_depth - 1u32 - kd, 2u32 - i, 2u32)
            } else {
                offset(w, out_channel, in_channel, kd, i, 0u32)
            };
            let mut row = Sequence::<f32>::new();
            #[unroll]
            for j in 0..3usize {
                let along = j * w.stride(4);
                let at = if comptime!(mirror) { at - along } else { at + along };
                let exponent = comptime!(scale_exponent(tile, Matrix::Filter));
                row.push(scale_down(f32::cast_from(w[at]), exponent));
            }
            add_row(&half, &row, i, tile, Matrix::Filter);
        }
        let pitch = (out_channels as usize + comptime!(VECTOR - 1)) / VECTOR * VECTOR;
        let k_elements = kernel_depth as usize * in_channels as usize;
        let first = rest * pitch + out_channel as usize;
        for i in 0..comptime!(size as u32) {
            let row = finished_row(&half, i, tile, Matrix::Filter);
            let first = first + (i as usize * size) * k_elements * pitch;
            #[unroll]
            for j in 0..size {
                u[j * k_elements * pitch + first] = row[j];
            }
        }
    }
}
