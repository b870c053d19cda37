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

use super::index::GatherArgs;
use super::tap_check::TapCheck;
use crate::conv3d::pass::Pass;
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Threads of a threadgroup.
pub(super) const THREADS: usize = 256;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn pack_terms_kernel<E: Float>(
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
