//! The weights as the shifted product reads them: `[group][depth tap][block][tap][channel of the result][16 channels]`,
//! channels filled up to tiles and blocks with zeros. One unit per vector; bytes: the weights twice.

use super::config::CHANNELS;
use crate::conv3d::gemm::place::Walk;
use crate::conv3d::plan::Pass;
use crate::grid::Span;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// Units of a cube.
pub(super) const UNITS: usize = 256;

/// Extents of the packed weights.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Packed {
    pub(super) packed_n: FastDivmod<u32>,
    pub(super) blocks: FastDivmod<u32>,
    pub(super) depth_taps: FastDivmod<u32>,
    pub(super) n: u32,
    pub(super) channels: u32,
    /// Taps of a plane, and of the whole window.
    pub(super) taps: FastDivmod<u32>,
    pub(super) plane_taps: u32,
    pub(super) all_taps: u32,
    /// Vectors of the packed weights.
    pub(super) vectors: u32,
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn pack_kernel<E: Float, S: Float, V: Size>(
    weight: &[E],
    out: &mut [Vector<S, V>],
    walk: Walk,
    packed: Packed,
    span: Span,
    #[comptime] pass: Pass,
    #[define(E)] _dtype: ElemType,
    #[define(S)] _stage_dtype: ElemType,
) {
    let width = V::value();
    let index = span.cube() as u32 * UNITS as u32 + UNIT_POS;
    if span.is_idle() || index >= packed.vectors {
        terminate!();
    }
    let run = comptime!((CHANNELS / width) as u32);
    let (rest, n) = packed.packed_n.div_mod(index / run);
    let (rest, tap) = packed.taps.div_mod(rest);
    let (rest, block) = packed.blocks.div_mod(rest);
    let (group, depth_tap) = packed.depth_taps.div_mod(rest);
    let channel = block * CHANNELS as u32 + index % run * width as u32;
    let mut values = Vector::<S, V>::new(S::from_int(0));
    #[unroll]
    for i in 0..width {
        let channel = channel + i as u32;
        if channel < packed.channels && n < packed.n {
            let term = channel * packed.all_taps + depth_tap * packed.plane_taps + tap;
            let at = walk.weight_group(group)
                + walk.weight_column(n)
                + walk.tap(term, true.runtime(), pass).weight;
            values.insert(i, S::cast_from(weight[at]));
        }
    }
    out[index as usize] = values;
}
