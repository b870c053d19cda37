//! The direct weight gradient: always valid.
//!
//! ```text
//! dw[o,c,k] = sum over n, q of X(n,c,p) * dy[n,o,q]
//!
//!                        N * OD * OH * OW output positions
//! dw[o,c,k]   | slice 0             | slice 1             | ..     one threadgroup per weight and slice,
//!             | 0 1 .. 255 0 1 ..   |                              thread t takes positions t, t + 256, ..
//! ```
//!
//! Split-K over the output positions: a threadgroup reduces its 256 sums as a tree and stores one fp32
//! partial, which [`super::reduce`] adds up. Slices below 512 positions are summed by one thread each.
//!
//! Layouts: any strides. Per slice `length` multiply-adds and `2 * length` loads; 1 KiB of shared memory.
//! Taps in the padding are skipped. Nothing is declined.

use super::args::{Geometry, offset};
use super::call::Conv3dCall;
use super::direct::{read_tap, reads};
use super::loops::nest;
use super::needs::kernel_needs;
use super::problem::{Conv3dProblem, PaddingMode};
use super::reduce;
use super::split::ReductionSplit;
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::needs::Needs;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Threads of a threadgroup; a power of two for the tree.
const THREADS: u32 = 256;

/// Products in a row before their sum is added to the thread's total: bounds the rounding error.
const SERIAL_PRODUCTS: usize = 64;

/// The split-K slices.
fn weight_split(problem: &Conv3dProblem, limits: &Limits) -> ReductionSplit {
    ReductionSplit::of(problem.positions(), problem.weight_shape().iter().product(), limits)
}

/// What the weight gradient needs of a device: a thread sums a short slice, a threadgroup a long one. dw has
/// fp32 partials even for one slice.
pub(super) fn needs(problem: &Conv3dProblem, limits: &Limits) -> Needs {
    let threads = THREADS as usize;
    let ReductionSplit { slices, length } = weight_split(problem, limits);
    let iterations = nest(length.min(2 * threads).max(length.div_ceil(threads)), 0);
    let weights: usize = problem.weight_shape().iter().product();
    let buffer_bytes = (4 * slices * weights) as u64;
    Needs { buffer_bytes, ..kernel_needs(4 * threads, threads, iterations) }
}

/// Kernels of the weight gradient: the partials, and their sum even for one slice.
pub(super) fn launches(problem: &Conv3dProblem, limits: &Limits) -> usize {
    1 + reduce::sum_launches(weight_split(problem, limits).slices).max(1)
}

/// Launches the weight gradient: fp32 partials of the slices, then their deterministic sum.
pub(super) fn weight_gradient(call: &Conv3dCall, [x, dy, dw]: [&Operand; 3]) -> Result<(), ConvError> {
    let Conv3dCall { client, limits, ref problem, cache, .. } = *call;
    let split = weight_split(problem, limits);
    let sums = split.slices * dw.len();
    let address =
        address_type("conv3d", &[x, cache.unwrap_or(x), dy, dw], sums.max(problem.positions()), limits)?;
    let partials = reduce::workspace(client, split.slices, dw.len());
    // With two products per thread or more, a threadgroup per sum is worth its barriers.
    let threadgroup_per_sum = split.length >= 2 * THREADS as usize;
    let sums_per_threadgroup = if threadgroup_per_sum { 1 } else { THREADS as usize };
    let operations = 2.0 * (split.length * sums_per_threadgroup) as f64;
    for dispatch in dispatches(sums.div_ceil(sums_per_threadgroup), operations, limits) {
        // SAFETY: see `conv3d`; sums past the last exit, slices end at the last output position.
        unsafe {
            weight_gradient_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                x.tensor_arg(),
                cache.map(|cache| cache.tensor_arg()).into(),
                dy.tensor_arg(),
                partials.tensor_arg(),
                problem.geometry(),
                dispatch.span(),
                dw.len(),
                split.length,
                sums,
                threadgroup_per_sum,
                problem.window.padding_mode,
                problem.dtype.elem(),
            );
        }
    }
    reduce::sum_partials(client, limits, &partials, dw)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn weight_gradient_kernel<E: Float>(
    x: &Tensor<E>,
    cache: ComptimeOption<&Tensor<E>>,
    dy: &Tensor<E>,
    partials: &mut Tensor<f32>,
    geometry: Geometry,
    span: Span,
    weights: usize,
    split_length: usize,
    sums: usize,
    #[comptime] threadgroup_per_sum: bool,
    #[comptime] padding: [PaddingMode; 3],
    #[define(E)] _dtype: ElemType,
) {
    let mut sum_index = span.index();
    if comptime!(!threadgroup_per_sum) {
        sum_index = span.index() * THREADS as usize + UNIT_POS as usize;
    }
    // With a threadgroup per sum the condition is uniform: a barrier follows.
    if span.is_idle() || sum_index >= sums {
        terminate!();
    }
    let slice = sum_index / weights;
    let weight = sum_index - slice * weights;
    let weights_per_out = (geometry.group_channels * geometry.taps()) as usize;
    let o = (weight / weights_per_out) as u32;
    let tap = geometry.channel_tap((weight - o as usize * weights_per_out) as u32);
    let first_channel = o / geometry.group_out * geometry.group_channels;
    let end = min((slice + 1) * split_length, geometry.output_positions());
    let mut sum = 0.0f32;
    let mut index = slice * split_length;
    let step = comptime!(if threadgroup_per_sum { THREADS as usize } else { 1 });
    if comptime!(threadgroup_per_sum) {
        index += UNIT_POS as usize;
    }
    while index < end {
        let serial_end = min(index + comptime!(SERIAL_PRODUCTS * step), end);
        let mut serial_sum = 0.0f32;
        while index < serial_end {
            let q = geometry.output_position(index);
            let value = read_tap(x, cache, &geometry, q.n, first_channel, q.d, q.h, q.w, &tap, padding);
            // A tap in the padding adds nothing, even if dy is not finite.
            if reads(&geometry, q.d, q.h, q.w, &tap, padding) {
                serial_sum += value * f32::cast_from(dy[offset(dy, q.n, o, q.d, q.h, q.w)]);
            }
            index += step;
        }
        sum += serial_sum;
    }
    if comptime!(threadgroup_per_sum) {
        let total = reduce::threadgroup_sum(sum, THREADS);
        if UNIT_POS == 0 {
            partials[sum_index] = total;
        }
    } else {
        partials[sum_index] = sum;
    }
}
