//! Repacks the weights of one gather of an input gradient ([`super::gather`]) so that the forward kernels
//! multiply by them with K contiguous. In the weight itself adjacent K indices are a channel's taps apart:
//! reading them there takes four times as long.
//!
//! ```text
//! packed[(group, c)][(o, tap)] = w[o, c, tap]      taps of the gather's residue class; c in the group
//!
//! w       | o 0: c 0 taps, c 1 taps, .. | o 1: ..        any strides
//! packed  | c 0: o 0 taps, o 1 taps, .. | c 1: ..        row-major: a row of K per channel of dx
//! ```
//!
//! One thread per element of `packed`, 256 per threadgroup: as many elements read and written, no FLOP.
//! Declined: nothing; columns with several taps (patches) are read from the weight.

use super::gather::{Gather, columns, gather_args, packed_shape};
use super::index::GatherArgs;
use super::tap_check::TapCheck;
use crate::conv3d::call::Conv3dCall;
use crate::conv3d::pass::Pass;
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::operand::{Operand, address_type};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Threads of a threadgroup.
const THREADS: usize = 256;

/// An input gradient's weights, packed for one gather. None where the pass reads the weight itself: the
/// forward pass, and patches.
pub(super) fn packed_weight(
    call: &Conv3dCall,
    gather: &Gather,
    weight: &Operand,
    k: usize,
) -> Result<Option<Operand>, ConvError> {
    let Conv3dCall { client, limits, ref problem, pass, .. } = *call;
    if pass != Pass::InputGradient || columns(gather) > 1 || k == 0 {
        return Ok(None);
    }
    let packed = Operand::empty(client, &packed_shape(problem, gather), weight.dtype);
    let elements = packed.len();
    let address = address_type("conv3d", &[weight, &packed], elements, limits)?;
    for dispatch in dispatches(elements.div_ceil(THREADS), THREADS as f64, limits) {
        // SAFETY: the contract of the module `gemm`; each thread copies one element, at taps and channels of
        // the gather.
        unsafe {
            pack_terms_kernel::launch_unchecked(
                client,
                dispatch.count(),
                CubeDim::new_1d(THREADS as u32),
                address,
                weight.buffer_arg(1),
                packed.buffer_arg(1),
                gather_args(problem, pass, gather, [weight, weight, weight]),
                k,
                problem.group_channels(),
                elements,
                dispatch.span(),
                weight.dtype.elem(),
            );
        }
    }
    Ok(Some(packed))
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn pack_terms_kernel<E: Float>(
    weight: &[E],
    out: &mut [E],
    gather: GatherArgs,
    k: usize,
    columns: usize,
    elements: usize,
    span: Span,
    #[define(E)] _dtype: ElemType,
) {
    let index = span.index() * THREADS + UNIT_POS as usize;
    if span.is_idle() || index >= elements {
        terminate!();
    }
    let tap = gather.channel_tap((index % k) as u32, true.runtime(), Pass::InputGradient, TapCheck::Masks);
    let row = index / k;
    let at = gather.weight_group((row / columns) as u32) + gather.weight_column((row % columns) as u32);
    out[index] = weight[at + tap.weight];
}
