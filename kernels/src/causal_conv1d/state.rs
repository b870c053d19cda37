//! The final state, and the last states of packed sequences: copies of a few columns. And the ids of packed
//! sequences.
//!
//! With ids the final state is what the next step of the row's last sequence would read: its columns end with
//! the row's last step that is no padding, and those of other sequences are 0. Where that step is, a launch
//! of its own searches ([`launch_ends`]).

use super::args::{Present, Rows, UNITS, at2, at3, canonical, column, id_of};
use super::plan::check_iterations;
use super::problem::CausalConv1dProblem;
use crate::error::ConvError;
use crate::index_operand::{IndexOperand, IndexType};
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// The final state into `out [B, C, W-1]`. Ids are those of a problem with steps and rows.
pub(crate) fn launch_final_state(
    client: &Client,
    limits: &Limits,
    problem: &CausalConv1dProblem,
    x: &Operand,
    initial_state: Option<&Operand>,
    seq_idx: Option<&IndexOperand>,
    out: &Operand,
) -> Result<(), ConvError> {
    let x = canonical(x, problem.layout).bindable(client);
    let ends = seq_idx.map(|ids| {
        let bytes = (problem.batch * ids.dtype.size()).max(16);
        let ends = IndexOperand::contiguous(client.empty(bytes), &[problem.batch, 1], ids.dtype);
        launch_ends(client, limits, problem, ids, (&ends, 0)).map(|()| ends)
    });
    let ends = ends.transpose()?;
    let index = seq_idx.map_or(IndexType::I32, |ids| ids.dtype);
    let operands: Vec<&Operand> = [&x, out].into_iter().chain(initial_state).collect();
    let present = Present::bits(&[(initial_state.is_some(), Present::INITIAL)]);
    let largest = out.len().max(seq_idx.map_or(0, IndexOperand::extent)) + UNITS as usize;
    let address = address_type("causal_conv1d", &operands, largest, limits)?;
    for dispatch in dispatches(out.len().div_ceil(UNITS as usize), 8.0 * f64::from(UNITS), limits) {
        // SAFETY: rows and columns are checked in the kernel.
        unsafe {
            final_state_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                x.tensor_arg(),
                initial_state.unwrap_or(&x).tensor_arg(),
                seq_idx.map(IndexOperand::tensor_arg).into(),
                ends.as_ref().map(IndexOperand::tensor_arg).into(),
                out.tensor_arg(),
                problem.rows(0, problem.channels, present),
                dispatch.span(),
                seq_idx.is_some(),
                problem.dtype.elem(),
                problem.state_dtype.elem(),
                index.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn final_state_kernel<X: Float, H: Float, I: Int>(
    x: &Tensor<X>,
    initial: &Tensor<H>,
    seq_idx: ComptimeOption<&Tensor<I>>,
    ends: ComptimeOption<&Tensor<I>>,
    out: &mut Tensor<H>,
    rows: Rows,
    span: Span,
    #[comptime] packed: bool,
    #[define(X)] _dtype: ElemType,
    #[define(H)] _state_dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    let index = span.index() * UNITS as usize + UNIT_POS as usize;
    let row = index / rows.history();
    let m = index - row * rows.history();
    let b = row / rows.channels;
    let c = row - b * rows.channels;
    if span.is_idle() || b >= rows.batch {
        terminate!();
    }
    let mut end = rows.length;
    let mut same = true;
    if comptime!(packed) {
        let (ids, ends) = (seq_idx.unwrap(), ends.unwrap());
        end = usize::cast_from(ends[at2(ends, b, 0usize)]);
        // Where there is only padding the initial state stays.
        let last = id_of(ids, &rows, b, max(end, 1usize) - 1 + rows.history());
        same = end == 0 || id_of(ids, &rows, b, end + m) == last;
    }
    let mut value = 0.0f32;
    if same {
        value = column(x, initial, &rows, b, c, end + m);
    }
    let at = at3(&*out, b, c, m);
    out[at] = H::cast_from(value);
}

/// Steps that a unit looks at in a turn.
const SEARCHED: usize = 8;

/// How many steps each row has up to its last that is no padding, as column `column` of `out`: a cube per row
/// searches from its end.
fn launch_ends(
    client: &Client,
    limits: &Limits,
    problem: &CausalConv1dProblem,
    seq_idx: &IndexOperand,
    (out, column): (&IndexOperand, usize),
) -> Result<(), ConvError> {
    check_iterations("causal_conv1d", problem.length.div_ceil(UNITS as usize * SEARCHED), limits)?;
    let largest = seq_idx.extent().max(out.extent()).max(problem.length + SEARCHED * UNITS as usize);
    let address = address_type("causal_conv1d", &[], largest, limits)?;
    for dispatch in dispatches(problem.batch, (problem.length * 2) as f64, limits) {
        // SAFETY: rows are as many as cubes, steps are checked in the kernel.
        unsafe {
            ends_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                seq_idx.tensor_arg(),
                out.tensor_arg(),
                problem.length,
                column,
                dispatch.span(),
                seq_idx.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn ends_kernel<I: Int>(
    seq_idx: &Tensor<I>,
    out: &mut Tensor<I>,
    length: usize,
    column: usize,
    span: Span,
    #[define(I)] _index_dtype: ElemType,
) {
    // The whole cube leaves together: barriers follow.
    if span.is_idle() {
        terminate!();
    }
    let b = span.index();
    let unit = UNIT_POS as usize;
    // Every 256th step is the unit's, counted from the end: `left - 1` is the next that it looks at.
    let mut left = length - min(length, unit);
    let mut end = 0usize;
    while left > 0 {
        #[unroll]
        for i in 0..SEARCHED {
            let back = comptime!(i * UNITS as usize);
            let step = max(left, back) - back;
            if end == 0 && step > 0 && seq_idx[at2(seq_idx, b, max(step, 1usize) - 1)] >= I::from_int(0) {
                end = step;
            }
        }
        let back = comptime!(SEARCHED * UNITS as usize);
        left = select(end > 0, 0usize, max(left, back) - back);
    }
    let mut shared = Shared::<[u32]>::new_slice(UNITS as usize);
    shared[unit] = end as u32;
    sync_cube();
    #[unroll]
    for level in 1..comptime!(UNITS.ilog2() + 1) {
        let half = comptime!((UNITS >> level) as usize);
        if unit < half {
            shared[unit] = max(shared[unit], shared[unit + half]);
        }
        sync_cube();
    }
    if unit == 0 {
        let at = at2(&*out, b, column);
        out[at] = I::cast_from(shared[0usize]);
    }
}

/// The ids with one more step, at which is what [`launch_ends`] finds: `[B, T + 1]`, for kernels of the
/// gradient of the final state.
pub(crate) fn with_ends(
    client: &Client,
    limits: &Limits,
    problem: &CausalConv1dProblem,
    seq_idx: &IndexOperand,
) -> Result<IndexOperand, ConvError> {
    let shape = [problem.batch, problem.length + 1];
    let bytes = shape[0] * shape[1] * seq_idx.dtype.size();
    let out = IndexOperand::contiguous(client.empty(bytes.max(16)), &shape, seq_idx.dtype);
    let units = problem.batch * problem.length;
    let largest = seq_idx.extent().max(out.extent()) + UNITS as usize;
    let address = address_type("causal_conv1d", &[], largest, limits)?;
    for dispatch in dispatches(units.div_ceil(UNITS as usize), 8.0 * f64::from(UNITS), limits) {
        // SAFETY: rows and steps are checked in the kernel.
        unsafe {
            copy_ids_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                seq_idx.tensor_arg(),
                out.tensor_arg(),
                dispatch.span(),
                seq_idx.dtype.elem(),
            );
        }
    }
    launch_ends(client, limits, problem, seq_idx, (&out, problem.length))?;
    Ok(out)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn copy_ids_kernel<I: Int>(
    seq_idx: &Tensor<I>,
    out: &mut Tensor<I>,
    span: Span,
    #[define(I)] _index_dtype: ElemType,
) {
    let index = span.index() * UNITS as usize + UNIT_POS as usize;
    let b = index / seq_idx.shape(1);
    let t = index - b * seq_idx.shape(1);
    if span.is_idle() || b >= seq_idx.shape(0) {
        terminate!();
    }
    let at = at2(&*out, b, t);
    out[at] = seq_idx[at2(seq_idx, b, t)];
}

/// The last S steps of each packed sequence, those from `bounds[i]` to `bounds[i + 1]` of row 0 of x, into
/// `out [N, C, S]`; zeros where a sequence is shorter.
pub(crate) fn launch_last_states(
    client: &Client,
    limits: &Limits,
    x: &Operand,
    bounds: &IndexOperand,
    out: &Operand,
) -> Result<(), ConvError> {
    let largest = out.len().max(bounds.extent()) + UNITS as usize;
    let address = address_type("causal_conv1d_last_states", &[x, out], largest, limits)?;
    for dispatch in dispatches(out.len().div_ceil(UNITS as usize), 8.0 * f64::from(UNITS), limits) {
        // SAFETY: sequences, channels and steps are checked in the kernel.
        unsafe {
            last_states_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                x.tensor_arg(),
                bounds.tensor_arg(),
                out.tensor_arg(),
                dispatch.span(),
                x.dtype.elem(),
                bounds.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn last_states_kernel<X: Float, I: Int>(
    x: &Tensor<X>,
    bounds: &Tensor<I>,
    out: &mut Tensor<X>,
    span: Span,
    #[define(X)] _dtype: ElemType,
    #[define(I)] _index_dtype: ElemType,
) {
    let index = span.index() * UNITS as usize + UNIT_POS as usize;
    let row = index / out.shape(2);
    let m = index - row * out.shape(2);
    let sequence = row / out.shape(1);
    let c = row - sequence * out.shape(1);
    if span.is_idle() || sequence >= out.shape(0) {
        terminate!();
    }
    // Bounds outside x, which no checked call has, read nothing.
    let start = min(usize::cast_from(bounds[sequence * bounds.stride(0)]), x.shape(2));
    let end = min(usize::cast_from(bounds[(sequence + 1) * bounds.stride(0)]), x.shape(2));
    let mut value = X::from_int(0);
    if end + m >= start + out.shape(2) {
        value = x[at3(x, 0usize, c, end + m - out.shape(2))];
    }
    let at = at3(&*out, sequence, c, m);
    out[at] = value;
}

/// The ids of the sequences from `bounds[i]` to `bounds[i + 1]` into `out [1, T]`, -1 elsewhere: a search per
/// step.
pub(crate) fn launch_sequence_ids(
    client: &Client,
    limits: &Limits,
    bounds: &IndexOperand,
    out: &IndexOperand,
) -> Result<(), ConvError> {
    let largest = out.extent().max(bounds.extent()) + UNITS as usize;
    let address = address_type("causal_conv1d_seq_idx", &[], largest, limits)?;
    for dispatch in dispatches(out.shape[1].div_ceil(UNITS as usize), 64.0 * f64::from(UNITS), limits) {
        // SAFETY: steps are checked in the kernel, places of bounds stay below their number.
        unsafe {
            sequence_ids_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                bounds.tensor_arg(),
                out.tensor_arg(),
                dispatch.span(),
                bounds.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn sequence_ids_kernel<I: Int>(
    bounds: &Tensor<I>,
    out: &mut Tensor<I>,
    span: Span,
    #[define(I)] _index_dtype: ElemType,
) {
    let t = span.index() * UNITS as usize + UNIT_POS as usize;
    if span.is_idle() || t >= out.shape(1) {
        terminate!();
    }
    // How many bounds are at or before the step.
    let (mut reached, mut end) = (0usize, bounds.shape(0));
    while reached < end {
        let middle = (reached + end) / 2;
        if bounds[middle * bounds.stride(0)] <= I::cast_from(t) {
            reached = middle + 1;
        } else {
            end = middle;
        }
    }
    let inside = reached < bounds.shape(0);
    let at = t * out.stride(1);
    out[at] = select(inside, I::cast_from(reached) - I::from_int(1), I::from_int(-1));
}
