//! The rotation: one unit per pair, two loads, two stores, and one table row (per digit) of cos and sin.
//!
//! Any strides; both layouts are read as `[B, N, H, D]`. Units run along the pairs of a head, so u and v are read as
//! runs of Q neighbours, and along the heads of a token, which share positions and table rows.

use super::table::{self, Digits};
use super::{Rope2dProblem, RopeLayout};
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::grid::{Span, dispatches};
use crate::index_operand::IndexOperand;
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Units of a cube. 256 is what WebGPU guarantees.
const UNITS: u32 = 256;

/// Launches the rotation.
pub(crate) fn launch(
    client: &Client,
    limits: &Limits,
    problem: &Rope2dProblem,
    tokens: &Operand,
    positions: &IndexOperand,
    out: &Operand,
    inverse: bool,
) -> Result<(), ConvError> {
    let (tokens, out) = (token_major(tokens, problem.layout), token_major(out, problem.layout));
    let pairs = out.len() / 2;
    let digits = Digits::of(problem.frequencies());
    let shape = [digits.nan_row() as usize + 1, problem.frequencies(), 2];
    let largest = (pairs + UNITS as usize).max(positions.extent()).max(shape.iter().product());
    let address = address_type("rope2d", &[&tokens, &out], largest, limits)?;
    let table = Operand::contiguous(table::get(client, problem), &shape, FloatType::F32);
    for dispatch in dispatches(pairs.div_ceil(UNITS as usize), 64.0 * f64::from(UNITS), limits) {
        // SAFETY: tokens are checked in the kernel, table rows come from digits below the table's rows.
        unsafe {
            rotate_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                tokens.tensor_arg(),
                positions.tensor_arg(),
                table.tensor_arg(),
                out.tensor_arg(),
                dispatch.span(),
                digits,
                inverse,
                problem.dtype.elem(),
                positions.dtype.elem(),
            );
        }
    }
    Ok(())
}

/// `operand` with its axes in `[B, N, H, D]` order.
fn token_major(operand: &Operand, layout: RopeLayout) -> Operand {
    let mut view = operand.clone();
    if layout == RopeLayout::Bhnd {
        view.shape.swap(1, 2);
        view.strides.swap(1, 2);
    }
    view
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn rotate_kernel<E: Float, I: Int>(
    tokens: &Tensor<E>,
    positions: &Tensor<I>,
    table: &Tensor<f32>,
    out: &mut Tensor<E>,
    span: Span,
    #[comptime] digits: Digits,
    #[comptime] inverse: bool,
    #[define(E)] _dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    let frequencies = table.shape(1);
    let index = span.cube() * UNITS as usize + UNIT_POS as usize;
    let pairs = 2 * frequencies;
    let row = index / pairs;
    let pair = index - row * pairs;
    let token = row / out.shape(2);
    let h = row - token * out.shape(2);
    let b = token / out.shape(1);
    let n = token - b * out.shape(1);
    if span.is_idle() || b >= out.shape(0) {
        terminate!();
    }
    let axis = pair / frequencies;
    let i = pair - axis * frequencies;

    let at = b * positions.stride(0) + n * positions.stride(1) + axis * positions.stride(2);
    let (cos, sin) = angle::<I>(table, positions[at], i, digits);
    let sin = if comptime!(inverse) { 0.0f32 - sin } else { sin };

    let first = axis * pairs + i;
    let source =
        b * tokens.stride(0) + n * tokens.stride(1) + h * tokens.stride(2) + first * tokens.stride(3);
    let u = f32::cast_from(tokens[source]);
    let v = f32::cast_from(tokens[source + frequencies * tokens.stride(3)]);
    let target = b * out.stride(0) + n * out.stride(1) + h * out.stride(2) + first * out.stride(3);
    let second = target + frequencies * out.stride(3);
    out[target] = E::cast_from(u * cos - v * sin);
    out[second] = E::cast_from(v * cos + u * sin);
}

/// cos and sin of the angle of `position` at frequency `i`.
#[cube]
fn angle<I: Int>(table: &Tensor<f32>, position: I, i: usize, #[comptime] digits: Digits) -> (f32, f32) {
    let (bits, radix) = comptime!((digits.bits, digits.radix()));
    let frequencies = table.shape(1);
    let narrow = i32::cast_from(position);
    let served = I::cast_from(narrow) == position;
    let negative = narrow < 0i32;
    // As an unsigned number, where the magnitude of -2^31 exists.
    let magnitude = select(negative, 0u32 - u32::cast_from(narrow), u32::cast_from(narrow));
    let first = select(served, magnitude & comptime!(radix - 1), comptime!(digits.nan_row()));
    let at = (first as usize * frequencies + i) * 2;
    let mut cos = table[at];
    let mut sin = table[at + 1];
    if magnitude >= radix {
        #[unroll]
        for level in 1..comptime!(digits.levels()) {
            let mut digit = magnitude >> comptime!(bits * level);
            if comptime!(level + 1 < digits.levels()) {
                digit &= comptime!(radix - 1);
            }
            let at = ((digit + comptime!(level * radix)) as usize * frequencies + i) * 2;
            let (c, s) = (table[at], table[at + 1]);
            let sum = cos * c - sin * s;
            sin = sin * c + cos * s;
            cos = sum;
        }
    }
    (cos, select(negative, 0.0f32 - sin, sin))
}
