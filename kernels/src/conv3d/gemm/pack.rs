//! The weights of an input gradient in the order of its product's terms, `[group, channel of dx][term]`: a
//! walk of dx ([`super::walk`]) then multiplies as a forward pass does, by weights whose terms lie behind
//! each other. In the weight itself a term's neighbour lies the taps of a channel away: f16, 384 <- 768
//! channels, 3x1x1, takes 0.55 ms with weights read there, the forward pass 0.13. One unit per element;
//! bytes: the walk's weights twice.

use super::index::Walk;
use crate::conv3d::pass::Pass;
use crate::launch::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Units of a cube.
pub(super) const UNITS: usize = 256;

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn pack_terms_kernel<E: Float>(
    weight: &[E],
    out: &mut [E],
    walk: Walk,
    terms: usize,
    columns: usize,
    elements: usize,
    span: Span,
    #[define(E)] _dtype: ElemType,
) {
    let index = span.index() * UNITS + UNIT_POS as usize;
    if span.is_idle() || index >= elements {
        terminate!();
    }
    let term = walk.tap((index % terms) as u32, true.runtime(), Pass::InputGradient);
    let row = index / terms;
    let at = walk.weight_group((row / columns) as u32) + walk.weight_column((row % columns) as u32);
    out[index] = weight[at + term.weight];
}
