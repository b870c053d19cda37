//! How the unrolled kernels reach memory: four neighbouring elements at a time, as one vector where every run
//! of four lies aligned in every tensor, else one by one through the strides; along time eight 16-bit ones as
//! four words, where runs of eight lie aligned. The arithmetic is the same either way.
//!
//! `S` is what memory is read as: the element's type X, or 32-bit words with two elements each.

use crate::causal_conv1d::args::Present;
pub(super) use crate::causal_conv1d::args::Strides;
use crate::half_words::{pack_quads, unpack_quad};
use crate::registers::Registers;
use cubecl::prelude::*;

/// Four neighbours in fp32: steps of a row, or channels of a step.
pub(super) type Quad = Vector<f32, Const<4>>;

/// What is known of a call only when it runs.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) channels: u32,
    /// T.
    pub(super) length: u32,
    /// W.
    pub(super) width: u32,
    /// [`Activation::code`](crate::activation::Activation::code).
    pub(super) activation: u32,
    /// [`Present`](crate::causal_conv1d::args::Present) as bits.
    pub(super) present: u32,
    /// Distances in elements: between channels and between taps of the weight, between elements of the bias.
    pub(super) weight_c: usize,
    pub(super) weight_k: usize,
    pub(super) bias_c: usize,
}

#[cube]
impl Sizes {
    pub(super) fn has(&self, #[comptime] what: u32) -> bool {
        self.present & what != 0u32
    }

    /// Steps of state before x.
    pub(super) fn history(&self) -> u32 {
        self.width - 1u32
    }
}

/// Reads the elements `first..first + run` of a line of `length`, `stride` apart from `base` on, into `raw`;
/// places beside the line read its tensor's first element. Nothing waits for what is read. `run` is 8 where
/// memory is read in words, else 4.
#[cube]
pub(super) fn read_run<S: Numeric, N: Size>(
    source: &[Vector<S, N>],
    base: usize,
    stride: usize,
    first: u32,
    length: u32,
    raw: &mut Sequence<Vector<S, N>>,
    #[comptime] wide: bool,
) {
    let together = N::value();
    if comptime!(together == 4) {
        let at = select(first < length, base + first as usize, 0usize);
        raw.push(source[at / comptime!(if wide { 8usize } else { 4usize })]);
    } else {
        #[unroll]
        for i in 0..4u32 {
            let place = first + i;
            let at = select(place < length, base + place as usize * stride, 0usize);
            raw.push(source[at]);
        }
    }
}

/// Four neighbours of a run that [`read_run`] has read, as fp32: those from `4 * half` on.
#[cube]
pub(super) fn quad_of<X: Float, S: Numeric, N: Size>(
    raw: &Sequence<Vector<S, N>>,
    #[comptime] run: usize,
    #[comptime] half: usize,
    #[comptime] wide: bool,
) -> Quad {
    let mut quad = Quad::new(0.0f32);
    let together = N::value();
    if comptime!(wide) {
        quad = unpack_quad::<X, S, N>(*raw.index(run), half);
    } else if comptime!(together == 4) {
        quad = Vector::cast_from(*raw.index(run));
    } else {
        #[unroll]
        for i in 0..4usize {
            quad.insert(i, f32::cast_from(raw.index(comptime!(4 * run + i)).extract(0usize)));
        }
    }
    quad
}

/// Writes the elements `first..first + run` of a line, those that it has.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn write_run<X: Float, S: Numeric, N: Size>(
    target: &mut [Vector<S, N>],
    base: usize,
    stride: usize,
    first: u32,
    length: u32,
    values: &Registers<f32>,
    #[comptime] wide: bool,
) {
    let together = N::value();
    if comptime!(together == 4) {
        if first < length {
            // In fp32 until they are whole: 16-bit vectors that are put together element by element leave the
            // registers.
            let quads =
                Registers::<Quad>::new(comptime!(if wide { 2usize } else { 1usize }), Quad::new(0.0f32));
            #[unroll]
            for q in 0..comptime!(if wide { 2usize } else { 1usize }) {
                let mut quad = Quad::new(0.0f32);
                #[unroll]
                for i in 0..4usize {
                    quad.insert(i, values.get(comptime!(4 * q + i)));
                }
                quads.set(q, quad);
            }
            if comptime!(wide) {
                target[(base + first as usize) / 8] =
                    pack_quads::<X, S, N>(quads.get(0usize), quads.get(1usize));
            } else {
                target[(base + first as usize) / 4] = Vector::cast_from(quads.get(0usize));
            }
        }
    } else {
        #[unroll]
        for i in 0..4usize {
            let place = first + i as u32;
            if place < length {
                // Rounded to the element's type, which is the memory's here.
                let value = S::cast_from(values.get(i));
                target[base + place as usize * stride] = Vector::<S, N>::new(value);
            }
        }
    }
}

#[cube]
impl Sizes {
    /// What stands at place `k` of `taps`, of which the W taps take the last; those before them are not used
    /// and get the first tap.
    pub(super) fn tap<W: Float>(&self, weight: &[W], c: u32, k: u32, #[comptime] taps: usize) -> f32 {
        let own = max(k + self.width, taps as u32) - taps as u32;
        f32::cast_from(weight[c as usize * self.weight_c + own as usize * self.weight_k])
    }

    /// The bias of a channel; 0 where there is none.
    pub(super) fn bias_of<W: Float>(&self, bias: &[W], c: u32) -> f32 {
        let mut value = 0.0f32;
        if self.has(Present::BIAS) {
            value = f32::cast_from(bias[c as usize * self.bias_c]);
        }
        value
    }
}

/// The taps of a channel.
#[cube]
pub(super) fn read_taps<W: Float>(
    weight: &[W],
    sizes: &Sizes,
    c: u32,
    #[comptime] taps: usize,
) -> Registers<f32> {
    let values = Registers::<f32>::new(taps, 0.0f32);
    #[unroll]
    for k in 0..taps {
        values.set(k, sizes.tap(weight, c, k as u32, taps));
    }
    values
}
