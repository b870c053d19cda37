//! The weight gradient by Winograd: F(3x3, m x m), with the taps as outputs and tiles of dy as filters.
//!
//! ```text
//! dw[o,c,kd] = A^T [ sum over n, frames, tiles of (G dy G^T) . (B^T x B) ] A
//!
//! input.rs           V[point, c, (image, frame, tile)]  = B^T d B      as in the forward pass
//! input.rs           D[point, o, (image, frame, tile)]  = G dy G^T     disjoint tiles of m x m
//! weight_product.rs  S[slice, point, kd, c, o]         += sum over tiles of D * V      split-K over tiles
//! this file          dw                                 = A^T (sum over slices of S) A
//! ```
//!
//! t * t products per m * m values of dy and 9 taps: 4 times fewer than the direct sum for F(4x4), 2.25 times
//! for F(2x2). Regions and split-K slices group the sums, so dw's bits depend on the plan's region and on
//! `Limits`, as for any split-K sum. F(6x6) is declined: its error would be too large for sums this long.
//!
//! Last step, one thread per (kd, c, o): t * t fp32 sums read per slice (coalesced), 9 taps written;
//! `400 + 64 * slices` FLOP. A threadgroup is 64 threads. Off NVIDIA rows are summed and transformed in loops
//! ([`super::row_loops`]).

use super::constants::{Matrix, WinogradTile, rescale};
use super::region::VECTOR;
use super::row_loops::{add_row, finished_row, no_rows};
use super::transform::transform_square;
use super::{WinogradCall, padding};
use crate::launch::{Span, dispatches};
use crate::operand::Operand;
use crate::registers::Registers;
use cubecl::ir::{AddressType, ElemType};
use cubecl::prelude::*;

/// Threads of a threadgroup.
const THREADS: u32 = 64;

/// Sums the slices of S and transforms them to dw.
pub(super) fn launch(call: &WinogradCall, address: AddressType, slices: usize, [sums, dw]: [&Operand; 2]) {
    let correlation = call.correlation;
    let filters = correlation.kernel_depth * correlation.in_channels * correlation.out_channels;
    let padding = padding(call.config.mma_tile);
    let flop = f64::from(THREADS) * (400 + 64 * slices) as f64;
    for dispatch in dispatches(filters.div_ceil(THREADS as usize), flop, call.limits) {
        // SAFETY: see `mod.rs`; the thread index is checked against the number of filters.
        unsafe {
            taps_kernel::launch_unchecked(
                call.client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                sums.buffer_arg(1),
                dw.tensor_arg(),
                dispatch.span(),
                correlation.kernel_depth as u32,
                correlation.in_channels as u32,
                correlation.out_channels as u32,
                correlation.in_channels.next_multiple_of(padding),
                correlation.out_channels.next_multiple_of(padding.max(VECTOR)),
                slices,
                call.config.tile,
                call.limits.unroll,
                dw.dtype.elem(),
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn taps_kernel<E: Float>(
    sums: &[f32],
    dw: &mut Tensor<E>,
    span: Span,
    kernel_depth: u32,
    in_channels: u32,
    out_channels: u32,
    // Channels of S.
    in_pitch: usize,
    out_pitch: usize,
    slices: usize,
    #[comptime] tile: WinogradTile,
    #[comptime] unroll: bool,
    #[define(E)] _dtype: ElemType,
) {
    let size = comptime!(tile.inputs());
    let points = comptime!(size * size);
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
    let filters_per_out_channel = kernel_depth as usize * in_channels as usize;
    if span.is_idle() || index >= filters_per_out_channel * out_channels as usize {
        terminate!();
    }
    let rest = index / out_channels as usize;
    let out_channel = index - rest * out_channels as usize;
    let kd = rest / in_channels as usize;
    let in_channel = rest - kd * in_channels as usize;
    let mut at = (kd * in_pitch + in_channel) * out_pitch + out_channel;
    if comptime!(unroll) {
        let mut square = Array::<f32>::new(points);
        #[unroll]
        for point in 0..points {
            square[point] = 0.0f32;
        }
        for _ in 0..slices {
            #[unroll]
            for point in 0..points {
                square[point] += sums[at];
                at += kernel_depth as usize * in_pitch * out_pitch;
            }
        }
        let result = transform_square(&square, tile, Matrix::Taps);
        let first = out_channel * dw.stride(0) + in_channel * dw.stride(1) + kd * dw.stride(2);
        #[unroll]
        for i in 0..3usize {
            #[unroll]
            for j in 0..3usize {
                let tap = first + i * dw.stride(3) + j * dw.stride(4);
                dw[tap] = E::cast_from(result[comptime!(i * 3 + j)] * comptime!(rescale(tile, Matrix::Taps)));
            }
        }
    } else {
        let point_pitch = kernel_depth as usize * in_pitch * out_pitch;
        let half = no_rows(tile, Matrix::Taps);
        for k in 0..comptime!(size as u32) {
            let row = Registers::<f32>::new(size, 0.0f32);
            for slice in 0..slices {
                let first = at + (slice * points + k as usize * size) * point_pitch;
                #[unroll]
                for j in 0..size {
                    row.set(j, row.get(j) + sums[first + j * point_pitch]);
                }
            }
            add_row(&half, &row.values(), k, tile, Matrix::Taps);
        }
        let first = out_channel * dw.stride(0) + in_channel * dw.stride(1) + kd * dw.stride(2);
        for i in 0..3u32 {
            let row = finished_row(&half, i, tile, Matrix::Taps);
            #[unroll]
            for j in 0..3usize {
                let tap = first + i as usize * dw.stride(3) + j * dw.stride(4);
                dw[tap] = E::cast_from(row[j] * comptime!(rescale(tile, Matrix::Taps)));
            }
        }
    }
}
