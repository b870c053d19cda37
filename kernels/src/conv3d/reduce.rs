//! Deterministic reductions without atomics: a tree inside a threadgroup, then split-K partials in fp32
//! `[slices, elements]` that a second kernel adds and rounds once. Also the bias gradient, a sum over dy
//! alone.
//!
//! ```text
//! target[i] = activation(bias[channel of i] + sum over slices s of partials[s, i]) + residual[i]
//!
//! slices      0 .. 63 | 64 .. 127 | ..      a thread adds 64: eight trees of eight, one after another
//! levels              |                     repeated in place while there are more than 64; the last level
//!                                           writes the target
//! ```
//!
//! Rounding errors grow with the logarithm of the number of slices. Layouts: partials row-major fp32, the
//! target any strides, one thread per element. Bytes: the partials are written and read once, `8 * slices *
//! elements`, and a 64th of that per further level; FLOP: one addition per partial. Nothing is declined.

use super::args::{Geometry, offset};
use super::epilogue::{Epilogue, add_residual, bias_of};
use super::problem::Conv3dProblem;
use super::split::ReductionSplit;
use crate::activation::activate_by_code;
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type, row_major};
use crate::registers::Registers;
use cubecl::ir::{AddressType, ElemType};
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// Threads of a threadgroup; a power of two for the tree.
const THREADS: u32 = 256;

/// Loads that a thread issues before the first addition; a power of two, the leaves of a tree.
const LOADS_IN_FLIGHT: usize = 8;

/// Slices that a thread adds.
const LEVEL: usize = 64;

/// fp32 partials `[slices, elements]`.
pub(crate) fn workspace(client: &Client, slices: usize, elements: usize) -> Operand {
    Operand::empty(client, &[slices, elements], FloatType::F32)
}

/// Partials of `slices` split-K slices of a result, and the first slice as a tensor of the result's shape.
pub(crate) fn split_result(client: &Client, slices: usize, out: &Operand) -> (Operand, Operand) {
    let partials = workspace(client, slices, out.len());
    let first = Operand { shape: out.shape.clone(), strides: row_major(&out.shape), ..partials.clone() };
    (partials, first)
}

/// Kernels that add the partials of `slices` slices: a level for every 64.
pub(crate) fn sum_launches(slices: usize) -> usize {
    std::iter::successors(Some(slices), |slices| Some(slices.div_ceil(LEVEL)))
        .take_while(|slices| *slices > 1)
        .count()
}

/// Where the partials of `slices` slices are stored: in the target itself for a single slice and a row-major
/// target, else in a workspace.
pub(crate) fn partials(client: &Client, slices: usize, target: &Operand) -> Operand {
    let direct = slices == 1 && target.is_row_major();
    if direct { target.clone() } else { workspace(client, slices, target.len()) }
}

/// `target[i] = sum over slices s of partials[s, i]`, in the target's row-major order. Nothing is left to do
/// for partials in the target's own memory ([`partials`]).
pub(crate) fn sum_partials(
    client: &Client,
    limits: &Limits,
    partials: &Operand,
    target: &Operand,
) -> Result<(), ConvError> {
    // A workspace is [slices, elements], which no target is.
    if partials.shape == target.shape {
        return Ok(());
    }
    finish_partials(client, limits, partials, target, Epilogue::default())
}

/// `target[i] = activation(bias[channel of i] + sum over slices s of partials[s, i]) + residual[i]`; channels
/// are the target's axis 1.
pub(crate) fn finish_partials(
    client: &Client,
    limits: &Limits,
    partials: &Operand,
    target: &Operand,
    epilogue: Epilogue,
) -> Result<(), ConvError> {
    finish_partials_from(client, limits, (partials, 0), target, epilogue)
}

/// [`finish_partials`] of the partials from element `first` of every slice on.
pub(crate) fn finish_partials_from(
    client: &Client,
    limits: &Limits,
    (partials, first): (&Operand, usize),
    target: &Operand,
    Epilogue { bias, residual, activation }: Epilogue,
) -> Result<(), ConvError> {
    let elements = target.len();
    let reached: Vec<_> = [partials, target].into_iter().chain(residual).collect();
    let address = address_type("conv3d", &reached, elements, limits)?;
    let partials = &reduce_levels(client, limits, (partials, first), elements, address);
    let operations = f64::from(THREADS) * partials.shape[0] as f64;
    for dispatch in dispatches(elements.div_ceil(THREADS as usize), operations, limits) {
        // SAFETY: see `conv3d`; threads past `elements` exit, every slice has as many from `first` on.
        unsafe {
            sum_partials_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                partials.tensor_arg(),
                bias.map(|bias| bias.tensor_arg()).into(),
                residual.map(|residual| residual.tensor_arg()).into(),
                target.tensor_arg(),
                dispatch.span(),
                first,
                elements,
                activation.code(),
                residual.is_some(),
                bias.or(residual).map_or(target.dtype, |added| added.dtype).elem(),
                target.dtype.elem(),
            );
        }
    }
    Ok(())
}

/// Adds the elements from `first` on of every 64 slices into the first of them until at most 64 slices are
/// left, and returns those.
fn reduce_levels(
    client: &Client,
    limits: &Limits,
    (partials, first): (&Operand, usize),
    elements: usize,
    address: AddressType,
) -> Operand {
    let mut partials = partials.clone();
    while partials.shape[0] > LEVEL {
        let groups = partials.shape[0].div_ceil(LEVEL);
        let operations = f64::from(THREADS) * LEVEL as f64;
        for dispatch in dispatches((groups * elements).div_ceil(THREADS as usize), operations, limits) {
            // SAFETY: see `conv3d`; threads past the last sum exit, each one reads and writes its own slices.
            unsafe {
                level_kernel::launch_unchecked(
                    client,
                    dispatch.count(),
                    CubeDim::new_1d(THREADS),
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
    let threadgroups = split.slices * db.len();
    let address = address_type("conv3d", &[dy, db], threadgroups.max(problem.positions()), limits)?;
    let partials = partials(client, split.slices, db);
    // One division decodes the index where an image's channel is a contiguous slice of dy.
    let slice_length = problem.output().iter().product::<usize>();
    let contiguous = dy.strides[2..] == row_major(&dy.shape)[2..] && problem.positions() < 1 << 31;
    for dispatch in dispatches(threadgroups, split.length as f64, limits) {
        // SAFETY: see `conv3d`; slices end at the last output position, channels stay below O.
        unsafe {
            bias_gradient_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS),
                address,
                dy.tensor_arg(),
                partials.buffer_arg(1),
                problem.geometry(),
                if contiguous { slice_length.max(1) as u32 } else { 1 },
                dispatch.span(),
                split.length,
                contiguous,
                problem.dtype.elem(),
                partials.dtype.elem(),
            );
        }
    }
    sum_partials(client, limits, &partials, db)
}

/// The sum of `value` over the threadgroup's `threads` threads (a power of two), in every thread. Tree
/// reduction in `4 * threads` bytes of shared memory.
#[cube]
pub(crate) fn threadgroup_sum(value: f32, #[comptime] threads: u32) -> f32 {
    let mut shared = Shared::<[f32]>::new_slice(comptime!(threads as usize));
    let thread = UNIT_POS as usize;
    shared[thread] = value;
    sync_cube();
    #[unroll]
    for level in 1..comptime!(threads.ilog2() + 1) {
        let half = comptime!((threads >> level) as usize);
        if thread < half {
            shared[thread] += shared[thread + half];
        }
        sync_cube();
    }
    shared[0]
}

/// The sum of an element over `slices` slices from `first` on.
#[cube]
fn sum_slices(partials: &Tensor<f32>, first: usize, slices: usize, element: usize) -> f32 {
    let mut sum = 0.0f32;
    let mut slice = first;
    let end = slice + slices;
    while slice < end {
        // All loads of a batch are in flight before the first addition.
        let values = Registers::<f32>::new(LOADS_IN_FLIGHT, 0.0f32);
        #[unroll]
        for step in 0..LOADS_IN_FLIGHT {
            if slice + step < end {
                values.set(step, partials[(slice + step) * partials.stride(0) + element]);
            }
        }
        sum += tree_sum(&values);
        slice += comptime!(LOADS_IN_FLIGHT);
    }
    sum
}

/// The sum of [`LOADS_IN_FLIGHT`] values as a binary tree.
#[cube]
fn tree_sum(values: &Registers<f32>) -> f32 {
    #[unroll]
    for level in 1..comptime!(LOADS_IN_FLIGHT.ilog2() as usize + 1) {
        #[unroll]
        for i in 0..comptime!(LOADS_IN_FLIGHT >> level) {
            values.set(i, values.get(i) + values.get(comptime!(i + (LOADS_IN_FLIGHT >> level))));
        }
    }
    values.get(0usize)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn level_kernel(partials: &mut Tensor<f32>, span: Span, first: usize, elements: usize, sums: usize) {
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
    if span.is_idle() || index >= sums {
        terminate!();
    }
    let slice = index / elements * LEVEL;
    let element = first + index % elements;
    let slices = min(partials.shape(0) - slice, comptime!(LEVEL));
    let sum = sum_slices(&*partials, slice, slices, element);
    let at = slice * partials.stride(0) + element;
    partials[at] = sum;
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn sum_partials_kernel<E: Float, O: Float>(
    partials: &Tensor<f32>,
    bias: ComptimeOption<&Tensor<E>>,
    residual: ComptimeOption<&Tensor<E>>,
    target: &mut Tensor<O>,
    span: Span,
    first: usize,
    elements: usize,
    activation: u32,
    // For the kernel's key, in which optional arguments do not count.
    #[comptime] _has_residual: bool,
    #[define(E)] _bias_dtype: ElemType,
    #[define(O)] _dtype: ElemType,
) {
    let index = span.index() * THREADS as usize + UNIT_POS as usize;
    if span.is_idle() || index >= elements {
        terminate!();
    }
    let sum = sum_slices(partials, 0usize.runtime(), partials.shape(0), first + index);
    let mut at = 0usize;
    let mut rest = index;
    let mut channel = 0usize;
    for step in 0..target.rank() {
        let axis = target.rank() - 1 - step;
        let size = target.shape(axis);
        let coordinate = rest % size;
        if axis == 1 {
            channel = coordinate;
        }
        at += coordinate * target.stride(axis);
        rest /= size;
    }
    let bias: ComptimeOption<f32> = bias.map(|bias| bias_of(bias, channel));
    let value = activate_by_code(sum + bias.unwrap_or_else(|| 0.0f32.runtime()), activation);
    let added: ComptimeOption<f32> =
        residual.map(|residual| f32::cast_from(residual[offset_of_index(residual, index)]));
    target[at] = O::cast_from(add_residual(value, added, activation));
}

/// The offset of an element of a tensor by its row-major index.
#[cube]
fn offset_of_index<E: CubePrimitive>(tensor: &Tensor<E>, index: usize) -> usize {
    let mut at = 0usize;
    let mut rest = index;
    for step in 0..tensor.rank() {
        let axis = tensor.rank() - 1 - step;
        let size = tensor.shape(axis);
        at += rest % size * tensor.stride(axis);
        rest /= size;
    }
    at
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn bias_gradient_kernel<E: Float, O: Float>(
    dy: &Tensor<E>,
    out: &mut [O],
    geometry: Geometry,
    slice_length: FastDivmod<u32>,
    span: Span,
    split_length: usize,
    #[comptime] contiguous: bool,
    #[define(E)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    if span.is_idle() {
        terminate!();
    }
    let threadgroup = span.index();
    let channels = dy.shape(1);
    let slice = threadgroup / channels;
    let o = (threadgroup - slice * channels) as u32;
    let end = min((slice + 1) * split_length, geometry.output_positions());
    let mut sum = 0.0f32;
    let mut index = slice * split_length + UNIT_POS as usize;
    while index < end {
        // All loads of a batch are in flight before the first addition.
        let values = Registers::<f32>::new(LOADS_IN_FLIGHT, 0.0f32);
        #[unroll]
        for step in 0..LOADS_IN_FLIGHT {
            let index = index + comptime!(step * THREADS as usize);
            if index < end {
                if comptime!(contiguous) {
                    let (n, in_slice) = slice_length.div_mod(index as u32);
                    let at = n as usize * dy.stride(0) + o as usize * dy.stride(1) + in_slice as usize;
                    values.set(step, f32::cast_from(dy[at]));
                } else {
                    let q = geometry.output_position(index);
                    values.set(step, f32::cast_from(dy[offset(dy, q.n, o, q.d, q.h, q.w)]));
                }
            }
        }
        sum += tree_sum(&values);
        index += comptime!(LOADS_IN_FLIGHT * THREADS as usize);
    }
    let total = threadgroup_sum(sum, THREADS);
    if UNIT_POS == 0 {
        out[threadgroup] = O::cast_from(total);
    }
}
