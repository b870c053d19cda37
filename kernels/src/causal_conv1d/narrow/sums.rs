//! dw and db from the partial sums `[parts, W + 1, C]`, db in the last slot: one launch, deterministic. More
//! parts than 256 are added 64 at a time first ([`fold`](crate::causal_conv1d::looped::weight::fold)), so
//! that no unit adds many in a row.
//!
//! A cube has 32 channels of one slot, a unit every eighth part of a channel; the eight are added in order.
//! Bytes: the partial sums once. Operations: one addition per partial sum.
//! [`store_total`] is where the backward kernels leave them, or whole sums where a cube was alone with its
//! channels.

use super::access::Sizes;
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

/// Parts that a launch takes at most: 32 for a unit.
pub(super) const MOST_PARTS: usize = 32 * ROWS;

/// Launches the sums.
pub(super) fn launch(
    client: &Client,
    limits: &Limits,
    partials: &Operand,
    out: &Gradients,
) -> Result<(), ConvError> {
    let address = address_type("causal_conv1d", &[partials, out.weight], 0, limits)?;
    let [parts, slots, channels] = [partials.shape[0], partials.shape[1], partials.shape[2]];
    let slots = if out.bias.is_some() { slots } else { slots - 1 };
    let cubes = slots * channels.div_ceil(LANES);
    for dispatch in dispatches(cubes, (LANES * parts.max(ROWS)) as f64, limits) {
        // SAFETY: channels and parts are checked in the kernel.
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
    // The whole cube leaves together: a barrier follows.
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
        let mut part = row;
        while part < partials.shape(0) {
            sum += partials[(part * slots + slot) * channels + channel];
            part += ROWS;
        }
    }
    let mut shared = Shared::<[f32]>::new_slice(comptime!(LANES * ROWS));
    shared[UNIT_POS as usize] = sum;
    sync_cube();
    if row == 0 && channel < channels {
        #[unroll]
        for other in 1..ROWS {
            sum += shared[UNIT_POS as usize + other * LANES];
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

/// Stores the sum of `slot`, a tap or, past those, the bias.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn store_total<W: Float>(
    total: f32,
    dw: &mut Tensor<W>,
    db: &mut Tensor<W>,
    partials: &mut Tensor<f32>,
    sizes: &Sizes,
    part: u32,
    slot: u32,
    channel: u32,
) {
    if !sizes.has(Present::DIRECT) {
        let row = part as usize * (sizes.width as usize + 1) + slot as usize;
        partials[row * sizes.channels as usize + channel as usize] = total;
    } else if slot < sizes.width {
        let at = channel as usize * dw.stride(0) + slot as usize * dw.stride(1);
        dw[at] = W::cast_from(total);
    } else if sizes.has(Present::DBIAS) {
        let at = channel as usize * db.stride(0);
        db[at] = W::cast_from(total);
    }
}
