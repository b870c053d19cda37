//! The direct weight gradient: always valid.
//!
//! ```text
//! dw[o,c,k] = sum over n, q of X(n,c,p) * dy[n,o,q]
//! ```
//!
//! One cube per dw[o,c,k] and part of the windows: 256 partial sums, one tree, fp32 partials that
//! [`super::reduce`] adds. Where the windows are few, one unit per dw[o,c,k]. Two loads per product; nothing
//! is declined.

use super::args::{Geometry, offset};
use super::direct::{read_tap, reads};
use super::problem::{Conv3dProblem, PaddingMode};
use super::reduce;
use super::split::ReductionSplit;
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Units of a cube; a power of two for the tree.
const UNITS: u32 = 256;

/// Products that a unit adds before it adds their sum to those before.
const RUN: usize = 64;

/// Launches the weight gradient: fp32 partial sums over `split`, then their deterministic sum.
pub(crate) fn weight_gradient(
    client: &Client,
    problem: &Conv3dProblem,
    split: ReductionSplit,
    limits: &Limits,
    [x, dy, dw]: [&Operand; 3],
) -> Result<(), ConvError> {
    let sums = split.parts * dw.len();
    let address = address_type("conv3d", &[x, dy, dw], sums.max(problem.positions()), limits)?;
    let partials = reduce::workspace(client, split.parts, dw.len());
    // A cube per sum pays for its barriers when every unit has a few terms.
    let cube_per_sum = split.length >= 2 * UNITS as usize;
    let sums_per_cube = if cube_per_sum { 1 } else { UNITS as usize };
    let operations = 2.0 * (split.length * sums_per_cube) as f64;
    for dispatch in dispatches(sums.div_ceil(sums_per_cube), operations, limits) {
        // SAFETY: windows, channels and taps are checked in the kernel, which tests/conformance runs between
        // guards.
        unsafe {
            weight_gradient_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                x.tensor_arg(),
                dy.tensor_arg(),
                partials.tensor_arg(),
                problem.geometry(),
                dispatch.span(),
                dw.len(),
                split.length,
                sums,
                cube_per_sum,
                problem.window.padding_mode,
                problem.dtype.elem(),
            );
        }
    }
    reduce::sum_partials(client, limits, &partials, dw)
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn weight_gradient_kernel<E: Float>(
    x: &Tensor<E>,
    dy: &Tensor<E>,
    partials: &mut Tensor<f32>,
    geometry: Geometry,
    span: Span,
    weights: usize,
    split_length: usize,
    sums: usize,
    #[comptime] cube_per_sum: bool,
    #[comptime] padding: PaddingMode,
    #[define(E)] _dtype: ElemType,
) {
    let mut this = span.index();
    if comptime!(!cube_per_sum) {
        this = span.index() * UNITS as usize + UNIT_POS as usize;
    }
    // With a cube per sum the whole cube leaves together: a barrier follows.
    if span.is_idle() || this >= sums {
        terminate!();
    }
    let part = this / weights;
    let weight = this - part * weights;
    let columns = (geometry.group_channels * geometry.taps()) as usize;
    let o = (weight / columns) as u32;
    let column = geometry.column((weight - o as usize * columns) as u32);
    let first_channel = o / geometry.group_out * geometry.group_channels;
    let end = min((part + 1) * split_length, geometry.windows());
    let mut sum = 0.0f32;
    let mut index = part * split_length;
    let step = comptime!(if cube_per_sum { UNITS as usize } else { 1 });
    if comptime!(cube_per_sum) {
        index += UNIT_POS as usize;
    }
    while index < end {
        let run_end = min(index + comptime!(RUN * step), end);
        let mut run = 0.0f32;
        while index < run_end {
            let q = geometry.window(index);
            let value = read_tap(x, &geometry, q.n, first_channel, q.d, q.h, q.w, &column, padding);
            // A tap in the padding adds nothing, whatever dy is.
            if reads(&geometry, q.d, q.h, q.w, &column, padding) {
                run += value * f32::cast_from(dy[offset(dy, q.n, o, q.d, q.h, q.w)]);
            }
            index += step;
        }
        sum += run;
    }
    if comptime!(cube_per_sum) {
        let total = reduce::cube_sum(sum, UNITS);
        if UNIT_POS == 0 {
            partials[this] = total;
        }
    } else {
        partials[this] = sum;
    }
}
