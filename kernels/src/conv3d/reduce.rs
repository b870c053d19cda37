//! Deterministic sums without atomics: a tree inside a cube, then fp32 partials `[parts, elements]` added by
//! a second kernel that rounds once. Also the bias gradient, which is nothing but such a sum.
//!
//! ```text
//! parts       0 .. 63 | 64 .. 127 | ..      a unit adds 64: eights as trees, one after the other
//! level by level      |                     while there are more than 64, in place; the last level writes
//!                                           the result
//! ```
//!
//! So an error grows with the logarithm of the parts. Bytes: the partials are written and read once,
//! `8 * parts * elements`, and a 64th of that for another level; operations: one addition per partial.

use super::args::{Geometry, offset};
use super::problem::Conv3dProblem;
use super::split::ReductionSplit;
use crate::activation::{Activation, activate_by_code};
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type, row_major};
use crate::registers::Registers;
use cubecl::ir::{AddressType, ElemType};
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

const UNITS: u32 = 256;

/// Values that a unit reads before it waits for them; a power of two, whose tree has so many leaves.
const STEPS: usize = 8;

/// Parts that a unit adds.
const LEVEL: usize = 64;

/// fp32 partial sums `[parts, elements]`.
pub(crate) fn workspace(client: &Client, parts: usize, elements: usize) -> Operand {
    Operand::empty(client, &[parts, elements], FloatType::F32)
}

/// Partials of `parts` parts of a result, and the first part as a tensor of the result's shape.
pub(crate) fn split_result(client: &Client, parts: usize, out: &Operand) -> (Operand, Operand) {
    let partials = workspace(client, parts, out.len());
    let part = Operand { shape: out.shape.clone(), strides: row_major(&out.shape), ..partials.clone() };
    (partials, part)
}

/// Where `parts` parts of a sum go: the target itself where one part in its order is all, else a workspace.
pub(crate) fn partials(client: &Client, parts: usize, target: &Operand) -> Operand {
    let direct = parts == 1 && target.strides == row_major(&target.shape);
    if direct { target.clone() } else { workspace(client, parts, target.len()) }
}

/// `target[i] = sum over part of partials[part, i]`, in the target's row-major order. Partials that are the
/// target's own memory ([`partials`]) are the sum already.
pub(crate) fn sum_partials(
    client: &Client,
    limits: &Limits,
    partials: &Operand,
    target: &Operand,
) -> Result<(), ConvError> {
    // A workspace is [parts, elements], which no target is.
    if partials.shape == target.shape {
        return Ok(());
    }
    finish_partials(client, limits, partials, target, (None, Activation::None))
}

/// `target[i] = activation(bias[channel of i] + sum over part of partials[part, i])`; channels are the
/// target's axis 1.
pub(crate) fn finish_partials(
    client: &Client,
    limits: &Limits,
    partials: &Operand,
    target: &Operand,
    epilogue: (Option<&Operand>, Activation),
) -> Result<(), ConvError> {
    finish_partials_from(client, limits, (partials, 0), target, epilogue)
}

/// [`finish_partials`] of the partials from element `first` of every part on.
pub(crate) fn finish_partials_from(
    client: &Client,
    limits: &Limits,
    (partials, first): (&Operand, usize),
    target: &Operand,
    (bias, activation): (Option<&Operand>, Activation),
) -> Result<(), ConvError> {
    let elements = target.len();
    let address = address_type("conv3d", &[partials, target], elements, limits)?;
    let partials = &levels(client, limits, (partials, first), elements, address);
    let operations = f64::from(UNITS) * partials.shape[0] as f64;
    for dispatch in dispatches(elements.div_ceil(UNITS as usize), operations, limits) {
        // SAFETY: indices stay below `elements`; as many lie in every part from `first` on.
        unsafe {
            sum_partials_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                partials.tensor_arg(),
                bias.map(|bias| bias.tensor_arg()).into(),
                target.tensor_arg(),
                dispatch.span(),
                first,
                elements,
                activation.code(),
                bias.map_or(target.dtype, |bias| bias.dtype).elem(),
                target.dtype.elem(),
            );
        }
    }
    Ok(())
}

/// Adds the elements from `first` on of every 64 parts into the first of them, until there are no more than
/// 64: those.
fn levels(
    client: &Client,
    limits: &Limits,
    (partials, first): (&Operand, usize),
    elements: usize,
    address: AddressType,
) -> Operand {
    let mut partials = partials.clone();
    while partials.shape[0] > LEVEL {
        let groups = partials.shape[0].div_ceil(LEVEL);
        let operations = f64::from(UNITS) * LEVEL as f64;
        for dispatch in dispatches((groups * elements).div_ceil(UNITS as usize), operations, limits) {
            // SAFETY: as in `finish_partials_from`; a unit reads and writes the elements of its own parts
            // alone.
            unsafe {
                level_kernel::launch_unchecked(
                    client,
                    dispatch.count(),
                    CubeDim::new_1d(UNITS),
                    address,
                    partials.tensor_arg(),
                    dispatch.span(),
                    first,
                    elements,
                    groups * elements,
                );
            }
        }
        partials.shape[0] = groups;
        partials.strides[0] *= LEVEL;
    }
    partials
}

/// `db[o] = sum over n, q of dy[n,o,q]`.
pub(crate) fn bias_gradient(
    client: &Client,
    problem: &Conv3dProblem,
    limits: &Limits,
    dy: &Operand,
    db: &Operand,
) -> Result<(), ConvError> {
    let split = ReductionSplit::of(problem.positions(), problem.out_channels, limits);
    let cubes = split.parts * db.len();
    let address = address_type("conv3d", &[dy, db], cubes.max(problem.positions()), limits)?;
    let partials = partials(client, split.parts, db);
    // An image's results of a channel that lie behind each other are counted by one division.
    let run = problem.output().iter().product::<usize>();
    let runs = dy.strides[2..] == row_major(&dy.shape)[2..] && problem.positions() < 1 << 31;
    for dispatch in dispatches(cubes, split.length as f64, limits) {
        // SAFETY: windows stay below `positions`, channels below O.
        unsafe {
            bias_gradient_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                dy.tensor_arg(),
                partials.buffer_arg(1),
                problem.geometry(),
                if runs { run.max(1) as u32 } else { 1 },
                dispatch.span(),
                split.length,
                runs,
                problem.dtype.elem(),
                partials.dtype.elem(),
            );
        }
    }
    sum_partials(client, limits, &partials, db)
}

/// The sum of `value` over the cube's `units` units (a power of two), in every unit.
#[cube]
pub(crate) fn cube_sum(value: f32, #[comptime] units: u32) -> f32 {
    let mut shared = Shared::<[f32]>::new_slice(comptime!(units as usize));
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for level in 1..comptime!(units.ilog2() + 1) {
        let half = comptime!((units >> level) as usize);
        if unit < half {
            shared[unit] += shared[unit + half];
        }
        sync_cube();
    }
    shared[0]
}

/// The sum of an element over `parts` parts from `part` on.
#[cube]
fn sum_of_parts(partials: &Tensor<f32>, part: usize, parts: usize, element: usize) -> f32 {
    let mut sum = 0.0f32;
    let mut part = part;
    let end = part + parts;
    while part < end {
        // Several reads are under way at once.
        let values = Registers::<f32>::new(STEPS, 0.0f32);
        #[unroll]
        for step in 0..STEPS {
            if part + step < end {
                values.set(step, partials[(part + step) * partials.stride(0) + element]);
            }
        }
        sum += tree(&values);
        part += comptime!(STEPS);
    }
    sum
}

/// The sum of [`STEPS`] values in pairs.
#[cube]
fn tree(values: &Registers<f32>) -> f32 {
    #[unroll]
    for level in 1..comptime!(STEPS.ilog2() as usize + 1) {
        #[unroll]
        for i in 0..comptime!(STEPS >> level) {
            values.set(i, values.get(i) + values.get(comptime!(i + (STEPS >> level))));
        }
    }
    values.get(0usize)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn level_kernel(partials: &mut Tensor<f32>, span: Span, first: usize, elements: usize, sums: usize) {
    let index = span.index() * UNITS as usize + UNIT_POS as usize;
    if span.is_idle() || index >= sums {
        terminate!();
    }
    let part = index / elements * LEVEL;
    let element = first + index % elements;
    let parts = min(partials.shape(0) - part, comptime!(LEVEL));
    let sum = sum_of_parts(&*partials, part, parts, element);
    let at = part * partials.stride(0) + element;
    partials[at] = sum;
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn sum_partials_kernel<E: Float, O: Float>(
    partials: &Tensor<f32>,
    bias: ComptimeOption<&Tensor<E>>,
    target: &mut Tensor<O>,
    span: Span,
    first: usize,
    elements: usize,
    activation: u32,
    #[define(E)] _bias_dtype: ElemType,
    #[define(O)] _dtype: ElemType,
) {
    let index = span.index() * UNITS as usize + UNIT_POS as usize;
    if span.is_idle() || index >= elements {
        terminate!();
    }
    let sum = sum_of_parts(partials, 0usize.runtime(), partials.shape(0), first + index);
    let mut at = 0usize;
    let mut rest = index;
    let mut channel = 0usize;
    for step in 0..target.rank() {
        let axis = target.rank() - 1 - step;
        let size = target.shape(axis);
        let place = rest % size;
        if axis == 1 {
            channel = place;
        }
        at += place * target.stride(axis);
        rest /= size;
    }
    let bias: ComptimeOption<f32> = bias.map(|bias| f32::cast_from(bias[channel * bias.stride(0)]));
    target[at] = O::cast_from(activate_by_code(sum + bias.unwrap_or_else(|| 0.0f32.runtime()), activation));
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn bias_gradient_kernel<E: Float, O: Float>(
    dy: &Tensor<E>,
    out: &mut [O],
    geometry: Geometry,
    run: FastDivmod<u32>,
    span: Span,
    split_length: usize,
    #[comptime] runs: bool,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    if span.is_idle() {
        terminate!();
    }
    let cube = span.index();
    let channels = dy.shape(1);
    let part = cube / channels;
    let o = (cube - part * channels) as u32;
    let end = min((part + 1) * split_length, geometry.windows());
    let mut sum = 0.0f32;
    let mut index = part * split_length + UNIT_POS as usize;
    while index < end {
        // Several reads are under way at once.
        let values = Registers::<f32>::new(STEPS, 0.0f32);
        #[unroll]
        for step in 0..STEPS {
            let index = index + comptime!(step * UNITS as usize);
            if index < end {
                if comptime!(runs) {
                    let (n, place) = run.div_mod(index as u32);
                    let at = n as usize * dy.stride(0) + o as usize * dy.stride(1) + place as usize;
                    values.set(step, f32::cast_from(dy[at]));
                } else {
                    let q = geometry.window(index);
                    values.set(step, f32::cast_from(dy[offset(dy, q.n, o, q.d, q.h, q.w)]));
                }
            }
        }
        sum += tree(&values);
        index += comptime!(STEPS * UNITS as usize);
    }
    let total = cube_sum(sum, UNITS);
    if UNIT_POS == 0 {
        out[cube] = O::cast_from(total);
    }
}
