//! Memory access of these kernels. A thread handles slices of 4 contiguous elements (steps in `[B, C, T]`,
//! channels in `[B, T, C]`), or of 8 16-bit steps:
//!
//! | access  | argument type | condition on every tensor                        |
//! |---------|---------------|--------------------------------------------------|
//! | scalar  | `X`           | none: four loads through the strides             |
//! | vector  | `X` x 4       | contiguous and aligned to 4 elements             |
//! | words   | `u32` x 4     | contiguous and aligned to 8 elements of 16 bits  |
//!
//! `S` is the argument's element type: X or `u32`. The arithmetic is the same for all three.

use crate::causal_conv1d::args::Present;
pub(super) use crate::causal_conv1d::args::Strides;
use crate::half_words::{pack_quads, unpack_quad};
use crate::registers::Registers;
use cubecl::prelude::*;

/// Four contiguous elements in fp32: steps of a row, or channels of a step.
pub(super) type Quad = Vector<f32, Const<4>>;

/// Run-time parameters of a call: extents, activation, presence bits, strides of weight and bias.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct CallParams {
    pub(super) channels: u32,
    /// T.
    pub(super) length: u32,
    /// W.
    pub(super) width: u32,
    /// [`Activation::code`](crate::activation::Activation::code).
    pub(super) activation: u32,
    /// [`Present`](crate::causal_conv1d::args::Present) as bits.
    pub(super) present: u32,
    /// Strides in elements: channels and taps of the weight, channels of the bias.
    pub(super) weight_c: usize,
    pub(super) weight_k: usize,
    pub(super) bias_c: usize,
}

#[cube]
impl CallParams {
    pub(super) fn has(&self, #[comptime] what: u32) -> bool {
        self.present & what != 0u32
    }

    /// W - 1: steps of state before x.
    pub(super) fn history(&self) -> u32 {
        self.width - 1u32
    }
}

/// Loads the slice of a row that begins at `first` into `raw`: elements `stride` apart from `base` on.
/// Indices outside `0..length` load the tensor's first element. No use of the values here, so that loads of
/// several slices are in flight at once.
#[cube]
pub(super) fn read_slice<S: Numeric, N: Size>(
    source: &[Vector<S, N>],
    base: usize,
    stride: usize,
    first: u32,
    length: u32,
    raw: &mut Sequence<Vector<S, N>>,
    #[comptime] words: bool,
) {
    let vector_size = N::value();
    if comptime!(vector_size == 4) {
        let at = select(first < length, base + first as usize, 0usize);
        raw.push(source[at / comptime!(if words { 8usize } else { 4usize })]);
    } else {
        #[unroll]
        for i in 0..4u32 {
            let index = first + i;
            let at = select(index < length, base + index as usize * stride, 0usize);
            raw.push(source[at]);
        }
    }
}

/// Elements `4 * half..4 * half + 4` of slice number `slice` of `raw`, in fp32.
#[cube]
pub(super) fn quad_of_slice<X: Float, S: Numeric, N: Size>(
    raw: &Sequence<Vector<S, N>>,
    #[comptime] slice: usize,
    #[comptime] half: usize,
    #[comptime] words: bool,
) -> Quad {
    let mut quad = Quad::new(0.0f32);
    let vector_size = N::value();
    if comptime!(words) {
        quad = unpack_quad::<X, S, N>(*raw.index(slice), half);
    } else if comptime!(vector_size == 4) {
        quad = Vector::cast_from(*raw.index(slice));
    } else {
        #[unroll]
        for i in 0..4usize {
            quad.insert(i, f32::cast_from(raw.index(comptime!(4 * slice + i)).extract(0usize)));
        }
    }
    quad
}

/// Stores the slice of a row that begins at `first`, without the elements past `length`.
#[cube]
pub(super) fn write_slice<X: Float, S: Numeric, N: Size>(
    target: &mut [Vector<S, N>],
    base: usize,
    stride: usize,
    first: u32,
    length: u32,
    values: &Registers<f32>,
    #[comptime] words: bool,
) {
    let vector_size = N::value();
    if comptime!(vector_size == 4) {
        if first < length {
            // Assembled in fp32: 16-bit vectors built element by element spill to local memory.
            let quads =
                Registers::<Quad>::new(comptime!(if words { 2usize } else { 1usize }), Quad::new(0.0f32));
            #[unroll]
            for q in 0..comptime!(if words { 2usize } else { 1usize }) {
                let mut quad = Quad::new(0.0f32);
                #[unroll]
                for i in 0..4usize {
                    quad.insert(i, values.get(comptime!(4 * q + i)));
                }
                quads.set(q, quad);
            }
            if comptime!(words) {
                target[(base + first as usize) / 8] =
                    pack_quads::<X, S, N>(quads.get(0usize), quads.get(1usize));
            } else {
                target[(base + first as usize) / 4] = Vector::cast_from(quads.get(0usize));
            }
        }
    } else {
        #[unroll]
        for i in 0..4usize {
            let index = first + i as u32;
            if index < length {
                // S is X here: this rounds to the tensor's type.
                let value = S::cast_from(values.get(i));
                target[base + index as usize * stride] = Vector::<S, N>::new(value);
            }
        }
    }
}

#[cube]
impl CallParams {
    /// Tap register `k` of `taps`: the filter fills the last W; the unused ones before get its first tap.
    pub(super) fn tap<W: Float>(&self, weight: &[W], c: u32, k: u32, #[comptime] taps: usize) -> f32 {
        let tap = max(k + self.width, taps as u32) - taps as u32;
        f32::cast_from(weight[c as usize * self.weight_c + tap as usize * self.weight_k])
    }

    /// The bias of a channel; 0 without a bias.
    pub(super) fn bias_of<W: Float>(&self, bias: &[W], c: u32) -> f32 {
        let mut value = 0.0f32;
        if self.has(Present::BIAS) {
            value = f32::cast_from(bias[c as usize * self.bias_c]);
        }
        value
    }
}

/// The tap registers of a channel.
#[cube]
pub(super) fn read_taps<W: Float>(
    weight: &[W],
    params: &CallParams,
    c: u32,
    #[comptime] taps: usize,
) -> Registers<f32> {
    let values = Registers::<f32>::new(taps, 0.0f32);
    #[unroll]
    for k in 0..taps {
        values.set(k, params.tap(weight, c, k as u32, taps));
    }
    values
}
