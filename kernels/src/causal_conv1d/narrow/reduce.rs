//! Deterministic reduction of the partial sums `[P, W + 1, C]` of dw (slots 0..W) and db (slot W).
//!
//! ```text
//! dw[c,k] = sum over p < P of partials[p,k,c]        db[c] = sum over p < P of partials[p,W,c]
//!
//!              32 lanes: channels of one slot
//!   row 0    | p = 0, 8, 16, ..             |
//!   ..       |                              |  -> shared memory -> row 0 adds the 8 rows in order
//!   row 7    | p = 7, 15, 23, ..            |
//! ```
//!
//! A threadgroup reads 32 P floats, coalesced, with one addition each; 1 KiB of shared memory. P is at most
//! 256: more are first added 64 at a time ([`weight::fold`](crate::causal_conv1d::looped::weight::fold)),
//! which keeps the chains of additions short. [`store_total`] stores what the backward kernels leave: a
//! partial sum, or dw and db themselves where one threadgroup has all of its channels' steps.

use super::access::CallParams;
use crate::causal_conv1d::Gradients;
use crate::causal_conv1d::args::Present;
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::limits::Limits;
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

const LANES: usize = 32;
const ROWS: usize = 8;

/// The most partial sums of one launch: 32 for a thread.
pub(super) const MAX_PARTIALS: usize = 32 * ROWS;

/// Launches the reduction.
pub(super) fn launch(
    client: &Client,
    limits: &Limits,
    partials: &Operand,
    out: &Gradients,
) -> Result<(), ConvError> {
    let address = address_type("causal_conv1d", &[partials, out.weight], 0, limits)?;
    let [count, slots, channels] = [partials.shape[0], partials.shape[1], partials.shape[2]];
    let slots = if out.bias.is_some() { slots } else { slots - 1 };
    let threadgroups = slots * channels.div_ceil(LANES);
    for dispatch in dispatches(threadgroups, (LANES * count.max(ROWS)) as f64, limits) {
        // SAFETY: the kernel checks channels and partial sums; `partials` is contiguous `[P, W + 1, C]`.
        unsafe {
            sums_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d((LANES * ROWS) as u32),
                address,
                partials.tensor_arg(),
                out.weight.tensor_arg(),
                out.bias.unwrap_or(out.weight).tensor_arg(),
                dispatch.span(),
                out.weight.dtype.elem(),
            );
        }
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn sums_kernel<W: Float>(
    partials: &Tensor<f32>,
    dw: &mut Tensor<W>,
    db: &mut Tensor<W>,
    span: Span,
    #[define(W)] _dtype: ElemType,
) {
    // Whole threadgroups exit here: a barrier follows.
    if span.is_idle() {
        terminate!();
    }
    let (slots, channels) = (partials.shape(1), partials.shape(2));
    let groups = channels.div_ceil(LANES);
    let slot = span.index() / groups;
    let row = UNIT_POS as usize / LANES;
    let channel = (span.index() - slot * groups) * LANES + UNIT_POS as usize % LANES;
    let mut sum = 0.0f32;
    if channel < channels {
        let mut partial = row;
        while partial < partials.shape(0) {
            sum += partials[(partial * slots + slot) * channels + channel];
            partial += ROWS;
        }
    }
    let mut shared = Shared::<[f32]>::new_slice(comptime!(LANES * ROWS));
    shared[UNIT_POS as usize] = sum;
    sync_cube();
    if row == 0 && channel < channels {
        #[unroll]
        for i in 1..ROWS {
            sum += shared[UNIT_POS as usize + i * LANES];
        }
        if slot + 1 < slots {
            let at = channel * dw.stride(0) + slot * dw.stride(1);
            dw[at] = W::cast_from(sum);
        } else {
            let at = channel * db.stride(0);
            db[at] = W::cast_from(sum);
        }
    }
}

/// Stores the sum of `slot`: tap 0..W, or W for the bias.
#[cube]
pub(super) fn store_total<W: Float>(
    total: f32,
    dw: &mut Tensor<W>,
    db: &mut Tensor<W>,
    partials: &mut Tensor<f32>,
    params: &CallParams,
    partial: u32,
    slot: u32,
    channel: u32,
) {
    if !params.has(Present::DIRECT) {
        let row = partial as usize * (params.width as usize + 1) + slot as usize;
        partials[row * params.channels as usize + channel as usize] = total;
    } else if slot < params.width {
        let at = channel as usize * dw.stride(0) + slot as usize * dw.stride(1);
        dw[at] = W::cast_from(total);
    } else if params.has(Present::DBIAS) {
        let at = channel as usize * db.stride(0);
        db[at] = W::cast_from(total);
    }
}
