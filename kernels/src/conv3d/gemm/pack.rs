//! Repacks the weights of one gather of an input gradient ([`super::gather`]) to `[group, channel of dx][k]`,
//! so that the forward kernels multiply by them with K contiguous. In the weight itself adjacent K indices
//! are a channel's taps apart: reading them there takes four times as long. One thread per element; the
//! gather's weights are read and written once.

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
